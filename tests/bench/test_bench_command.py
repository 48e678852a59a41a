"""`python -m bench` and `fastdetect bench`: exit codes, results files, the GPU kit's syntax."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from squares import CEILINGS, CPU, Squares, method, right, wrong
from typer.testing import CliRunner

from bench import records, suites
from bench.__main__ import main
from fastdetect import cli
from fastdetect.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]
TINY = ["--shapes", "tiny", "--device", "cpu", "--threads", "1", "--only", "ours", "eager"]


def test_run_writes_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    assert main(["ops", "patch_residual", *TINY, "--seconds", "0", "--rounds", "3", "3", "--results", str(path)]) == 0
    data = records.load(path)
    block = data["suites"]["ops"]
    case, as_in_the_scorer = block["cases"]
    assert case["op"] == as_in_the_scorer["op"] == "patch_residual"
    assert as_in_the_scorer["shape"]["passes"] == 3
    assert set(case["providers"]) == {"ours", "eager"}
    assert block["threads"] == 1
    assert block["versions"]["torch"] == torch.__version__
    assert block["commit"]
    assert block["ceilings"]["copy_gbps"] > 0
    assert data["machine"]["cores"] >= 1
    assert "patch_residual" in capsys.readouterr().out


def test_the_ops_need_no_package_but_torchs(tmp_path: Path) -> None:
    """GPU machines without a network may have torch and little more."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('pydantic', 'av', 'cv2', 'timm', 'onnxruntime', 'huggingface_hub', 'typer'):\n"
        "    sys.modules[name] = None\n"
    )
    command = [sys.executable, "-m", "bench", "ops", *TINY, "--check-only"]
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "supcon_margin_loss" in run.stdout


def test_exit_code_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    op = Squares(ours=right, eager=wrong)
    op.shapes = {"tiny": (suites.Shape({"N": 10}, "toy"), suites.Shape({"N": 20}, "toy"))}  # type: ignore[misc]
    monkeypatch.setattr(suites, "OPS", {"squares": op})
    arguments = ["ops", "N=20", *TINY, "--rounds", "1", "1", "--results", str(tmp_path / "r.json")]
    assert main(arguments) == 1
    assert "squares N=20: eager wrong" in " ".join(capsys.readouterr().out.split())
    case = records.load(tmp_path / "r.json")["suites"]["ops"]["cases"][0]
    assert case["providers"]["eager"]["status"] == "wrong"
    op.given["eager"] = right
    assert main(arguments) == 0


def test_minutes_leave_the_rest_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op = Squares(ours=right)
    op.shapes = {"tiny": tuple(suites.Shape({"N": n}, "toy") for n in (10, 20, 30))}  # type: ignore[misc]
    monkeypatch.setattr(suites, "OPS", {"squares": op})
    clock = iter([0.0, 1.0, 100.0, 100.0, 100.0])
    monkeypatch.setattr(suites.time, "monotonic", lambda: next(clock))
    path = tmp_path / "r.json"
    options = suites.Options(method(rounds=(1, 1)), "tiny", minutes=1.0, results=path)
    from rich.console import Console

    assert suites.run("ops", options, Console(quiet=True)) == []
    assert [case["case"] for case in records.load(path)["suites"]["ops"]["cases"]] == ["N=10"]


def test_parts_of_a_suite_do_not_replace_the_committed_whole() -> None:
    assert suites.Options(method()).results_path().parent == records.RESULTS
    parts = (
        suites.Options(method(), "tiny"),
        suites.Options(method(), names=("supcon",)),
        suites.Options(method(only=frozenset({"ours"}))),
    )
    assert {part.results_path().parent for part in parts} == {ROOT / "build" / "bench"}
    assert suites.Options(method(), "tiny", results=Path("x.json")).results_path() == Path("x.json")


def test_suites_keep_each_other(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    records.Writer(path, "train", CPU, 1, CEILINGS).add({"op": "a"})
    records.Writer(path, "ops", CPU, 1, CEILINGS).add({"op": "b"})
    assert list(records.load(path)["suites"]) == ["ops", "train"]
    records.Writer(path, "ops", CPU, 1, CEILINGS).add({"op": "c"})
    assert [case["op"] for _, case in records.cases(records.load(path))] == ["c", "a"]
    with pytest.raises(ValueError, match="JSON"):  # NaN is no figure
        records.Writer(path, "ops", CPU, 1, CEILINGS).add({"op": float("nan")})
    with pytest.raises(DataError, match="Tensor"):
        records.Writer(path, "ops", CPU, 1, CEILINGS).add({"op": torch.zeros(1)})
    assert [case["op"] for _, case in records.cases(records.load(path))] == ["c", "a"]
    data = json.loads(path.read_text())
    data["machine"]["name"] = "another"
    path.write_text(json.dumps(data))
    records.Writer(path, "ops", CPU, 1, CEILINGS).add({"op": "d"})  # another machine's figures are not kept
    assert list(records.load(path)["suites"]) == ["ops"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ops", "no_such_op", *TINY], "no case matches"),
        (["ops", *TINY, "--threads", "0"], "want at least 1"),
        (["ops", *TINY, "--rounds", "5", "3"], "FEWEST <= MOST"),
    ],
)
def test_usage_errors(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*arguments, "--results", str(tmp_path / "r.json")]) == 2
    assert words in " ".join(capsys.readouterr().out.split())


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "supcon_margin_loss" in capsys.readouterr().out


def test_fastdetect_bench_is_the_same() -> None:
    result = CliRunner().invoke(cli.app, ["bench", "--help"])
    assert result.exit_code == 0
    assert "beyond the spread" in " ".join(result.output.split())
    assert CliRunner().invoke(cli.app, ["bench", "nonsense"]).exit_code == 2


def test_fastdetect_bench_without_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "fastdetect" / "cli.py"))
    result = CliRunner().invoke(cli.app, ["bench", "list"])
    assert isinstance(result.exception, UsageError)
    assert "clone it" in str(result.exception)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_gpu_kit_is_understood() -> None:
    script = ROOT / "bench" / "gpu_suite.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    refused = subprocess.run(["bash", script, "nonsense"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "want --rehearse, part1, part2, part3 or one of: env build" in refused.stderr


def test_each_part_of_the_gpu_kit_stays_under_ten_minutes() -> None:
    text = (ROOT / "bench" / "gpu_suite.sh").read_text()
    limits = {name: int(seconds) for name, seconds in re.findall(r"\[([a-z]+)\]=(\d+)", text)}
    parts = {name: steps.split() for name, steps in re.findall(r'\[(part\d)\]="([^"]+)"', text)}
    steps = re.search(r'^STEPS="([^"]+)"', text, re.MULTILINE)
    assert steps
    assert set(steps[1].split()) == set(limits) == {step for part in parts.values() for step in part}
    for part in parts.values():
        assert sum(limits[step] for step in part if step != "kernels") < 600
        assert f"step_{part[0]}() {{" in text
