"""The names by which the adapter calls TensorRT are those of its bindings; mypy holds the adapter to the stub."""

import json
import re
from pathlib import Path

import mypy.api
import pytest
from tensorrt_facts import STUB, written

ROOT = Path(__file__).parents[2]
CALLED = [
    (kind, name, parameters)
    for kind, members in written().items()
    for name, overloads in members.items()
    for parameters in overloads or [None]
]
TENSORRT_10 = json.loads((Path(__file__).parent / "tensorrt_10.json").read_text())


@pytest.mark.parametrize(("kind", "name", "parameters"), CALLED)
def test_tensorrt_10_has_it(kind: str, name: str, parameters: list[str] | None) -> None:
    members = TENSORRT_10["classes"][kind]
    assert name in members
    if parameters is not None:
        assert any(overload[: len(parameters)] == parameters for overload in members[name]), members[name]


@pytest.mark.parametrize(("kind", "name", "parameters"), CALLED)
def test_tensorrt_rtx_has_it(kind: str, name: str, parameters: list[str] | None) -> None:
    """Its interface is a subset of TensorRT 11's."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'fastdetect[rtx]'")
    owner = rtx
    for part in kind.split("."):
        owner = getattr(owner, part)
    member = getattr(owner, name)
    if parameters is not None:
        overloads = re.findall(rf"\b{name}\(self: [\w.]+(.*?)\)(?: ->|\n)", member.__doc__)
        found = [re.findall(r", (\w+):", text) for text in overloads]
        assert any(overload[: len(parameters)] == parameters for overload in found), member.__doc__


def test_a_wrong_name_would_be_seen(tmp_path: Path) -> None:
    """A method that is not there, one too many arguments, one of another type."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt\n\n\n"
        "def run(context: tensorrt.IExecutionContext, builder: tensorrt.Builder) -> None:\n"
        "    context.execute_async_v2(1)\n"
        "    context.execute_async_v3(1, 2)\n"
        "    builder.create_network('strong')\n"
        "    context.set_tensor_address('crops', 1)\n"
    )
    settings = tmp_path / "mypy.ini"
    settings.write_text(f"[mypy]\nmypy_path = {STUB.parents[1]}\ncache_dir = {tmp_path}\n")
    said, _, status = mypy.api.run(["--config-file", str(settings), str(wrong)])
    assert status == 1
    assert [int(line.split(":")[1]) for line in said.splitlines()[:-1]] == [5, 6, 7]


def test_the_project_reads_this_stub() -> None:
    assert (
        f'mypy_path = "$MYPY_CONFIG_FILE_DIR/{STUB.parents[1].relative_to(ROOT)}"'
        in (ROOT / "pyproject.toml").read_text()
    )
