"""The doctor: what is there, what is not, and the exit code that says whether videos can be screened."""

import json
import sys
from pathlib import Path

import pytest

from fastdetect.models import folder
from fastdetect.screening.doctor import describe_machine, examine, run_doctor

STATES = {"ok", "missing", "broken", "unused"}


@pytest.fixture
def shipped(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose shipped model is the tests' small one."""
    (tmp_path / "fastdetect-small").symlink_to(model_folder)
    monkeypatch.setattr(folder, "SHIPPED", tmp_path)
    return tmp_path


def test_json_is_one_object_with_every_key(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run_doctor(True)
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"ok", "why", "fastdetect", "machine", "findings"}
    assert status == 0, answer["why"]
    assert answer["ok"] is True
    assert answer["why"] == []
    assert {"python", "system", "cpu", "cores", "cpu features", "memory", "memory limit"} <= set(answer["machine"])
    names = [finding["name"] for finding in answer["findings"]]
    assert len(names) == len(set(names))
    assert {"face detector", "model", "calibration", "NVIDIA driver", "GPU", "DALI", "OpenVINO", "TensorRT"} <= set(
        names
    )
    for finding in answer["findings"]:
        assert set(finding) == {"name", "state", "found", "cost", "fix", "needed"}
        assert finding["state"] in STATES
        assert finding["state"] == "ok" or finding["cost"], finding


def test_the_table_ends_with_the_next_command(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor() == 0
    text = capsys.readouterr().out
    assert "CenterFace" in text
    assert text.rstrip().endswith("fastdetect screen FOLDER -o out")


def test_without_a_model_nothing_can_be_screened_and_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder, "SHIPPED", tmp_path)
    assert run_doctor(True) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert any(line.startswith("model: ") for line in answer["why"])


def test_damaged_weights_are_found(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shipped / "fastdetect-small"
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    source.unlink()
    copy.rename(source)
    assert run_doctor() == 1
    assert "SHA-256" in capsys.readouterr().out


def test_a_package_that_is_gone_is_named_with_its_command(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # the import system's own way to say: not there
    finding = next(f for f in examine() if f.name.startswith("timm"))
    assert (finding.state, finding.needed, finding.fix) == ("missing", True, "pip install 'timm'")


def test_memory_limits_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    real = resource.getrlimit
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (2**31, 2**31) if kind == resource.RLIMIT_AS else real(kind)
    )
    assert "2.0 GiB (address space)" in describe_machine()["memory limit"]
