"""Screening gives the same answer on every runtime."""

import json
from pathlib import Path

import pytest
from engine_helpers import portrait_clip
from typer.testing import CliRunner

from fastdetect.cli import app


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage", reason="scikit-image, which carries the portrait, is not installed")
    return portrait_clip(tmp_path_factory.mktemp("clip") / "person.mp4")


def screened(clip: Path, model: Path, engine: str, output: Path) -> dict:
    options = ["--model", model, "--engine", engine, "--precision", "fp32", "--device", "cpu", "--workers", "1"]
    result = CliRunner().invoke(app, ["screen", str(clip), "-o", str(output), "--no-media", *map(str, options)])
    assert result.exit_code in (0, 1), (result.output, result.exception)
    (line,) = (output / "results.jsonl").read_text().splitlines()
    return json.loads(line)


def test_the_verdict_does_not_depend_on_the_engine(clip: Path, folder: Path, onnx_file: Path, tmp_path: Path) -> None:
    want = screened(clip, folder, "torch", tmp_path / "torch")
    assert want["faces_scored"] == 16
    assert 0.02 < want["score"] < 0.98
    for engine in ("onnxruntime", "openvino"):
        if engine == "openvino":
            pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'fastdetect[openvino]'")
        row = screened(clip, onnx_file, engine, tmp_path / engine)
        assert row["engine"].startswith(engine)
        assert row["verdict"] == want["verdict"]
        assert abs(row["score"] - want["score"]) <= 0.02
        same = ("model_id", "model_sha256", "preprocess_sha256", "calibration_id")
        assert [row[name] for name in same] == [want[name] for name in same]
