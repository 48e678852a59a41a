"""The command line as a user meets it: help, errors, exit codes."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fastdetect
from fastdetect.cli import app, main
from fastdetect.errors import CheckpointError, MissingDependencyError, UsageError
from fastdetect.models.folder import find_folder

VERBS = ("screen", "demo", "doctor", "pretrain", "train", "evaluate")
SCREEN = """
    --output --resume --list --shard --model --sample --max-seconds --faces --fpr-suspicious --fpr-manipulated
    --threshold-suspicious --threshold-manipulated --engine --device --precision --workers --timeout --no-media
    --uncalibrated --config --set
"""


def call(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fastdetect", *map(str, args)], capture_output=True, text=True)


def shown(*args: str) -> str:
    result = CliRunner().invoke(app, list(args), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_help_names_every_verb_and_option() -> None:
    assert all(verb in shown("--help") for verb in VERBS)
    assert all(option in shown("screen", "--help") for option in SCREEN.split())
    assert all(engine in shown("screen", "--help") for engine in ("torch-compile", "torch-cuda-graph"))
    assert all(shown(verb, "--help") for verb in VERBS)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; import fastdetect.cli; heavy = 'torch av cv2 onnxruntime numpy pydantic pyarrow'.split(); "
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_help_is_quick() -> None:
    def cpu_seconds() -> float:  # not wall time, which a busy machine stretches
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) < 0.5


def test_version() -> None:
    assert fastdetect.__version__ in shown("--version")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["screen"], "nothing to screen"),
        (["screen", "https://example.org/a.mp4"], "local files"),
        (["screen", "x.mp4", "--sample", "every:2"], "sample"),
        (["screen", "x.mp4", "--set", "verdict.min_facs=3"], "min_facs"),
        (["screen", "x.mp4", "--set", "workers"], "key=value"),
        (["screen", "x.mp4", "--device", "tpu"], "device"),
        (["screen", "x.mp4", "--workers", "0"], "workers"),
        (["screen", "x.mp4", "--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["screen", "x.mp4", "--shard", "3/2"], "--shard"),
        (["screen", "x.mp4", "--fpr-suspicious", "0.001"], "fpr_manipulated"),
        (["screen", "x.mp4", "--sample", "every:2"], "sample: cannot read"),  # and not "Value error, ... got 'every:2'"
        (["screen", ""], "'' names no file"),  # an unset variable, not the working folder
        (["screen", "-"], "'-' names no file"),
        (["screen", "x.mp4", "--model", "."], "no config.json"),
        (["pretrain"], "--output"),
        (["train", "-o", "run"], "configuration: give a pack"),
        (["models", "average", ".", "--start", "0.1", "-o", "mean"], "no config.json"),
        (["evaluate", "--set", "index=5"], "index"),
        (["doctor", "--model", "fastdetect-small"], "with --parity only; got --model fastdetect-small"),
        (["doctor", "clip.mp4"], "with --parity only; got clip.mp4"),
        (["doctor", "--parity", "--json"], "--json is of doctor without --parity"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(
    args: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fastdetect", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.startswith("fastdetect: ")
    assert said in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir()), "something was written"


def test_an_unknown_option_or_verb_is_exit_code_2() -> None:
    assert call("screen", "--nonsense").returncode == 2
    assert call("nonsense").returncode == 2


def test_a_model_that_is_not_there_is_exit_code_2_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    args = ["screen", str(tmp_path / "x.mp4"), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "nothing")]
    monkeypatch.setattr(sys, "argv", ["fastdetect", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.count("\n") == 1
    assert "nothing" in message
    monkeypatch.setattr(sys, "argv", ["fastdetect", "--debug", *args])
    with pytest.raises(CheckpointError):
        main()


def test_what_is_printed_reaches_a_pipe() -> None:
    answer = json.loads(call("doctor", "--json").stdout)
    assert answer["fastdetect"] == fastdetect.__version__
    assert [line for line in call("bench", "list").stdout.splitlines() if "supcon" in line]


def test_a_run_folder_is_told_from_the_model_in_it(tmp_path: Path) -> None:
    shutil.copytree(find_folder("fastdetect-small"), tmp_path / "run" / "model")
    with pytest.raises(UsageError, match=r"did you mean .*run/model\?"):
        find_folder(tmp_path / "run")
    assert find_folder(tmp_path / "run" / "model") == tmp_path / "run" / "model"


def test_a_package_that_is_not_there_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_args: object, **_options: object) -> int:
        raise MissingDependencyError("pip install 'fastdetect[redraw]'")

    monkeypatch.setattr("fastdetect.data.neural_redraw.main", absent)
    monkeypatch.setattr(sys, "argv", ["fastdetect", "data", "redraw", "pack"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
