"""Screening gives the same answer on every runtime, with either decoder."""

import json
from pathlib import Path

import pytest
from engine_helpers import portrait_clip
from typer.testing import CliRunner

from fastdetect.cli import app
from fastdetect.engines.export import export_model
from fastdetect.errors import UsageError
from fastdetect.video import dali

DALI = pytest.param(
    "dali", marks=pytest.mark.skipif(dali.installed() is None, reason="DALI is not installed: 'fastdetect[gpu]'")
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage", reason="scikit-image, which carries the portrait, is not installed")
    return portrait_clip(tmp_path_factory.mktemp("clip") / "person.webm")


def screened(clip: Path, model: Path, engine: str, output: Path, decoder: str = "pyav") -> dict:
    options = ["--model", model, "--engine", engine, "--precision", "fp32", "--device", "cpu", "--workers", "1"]
    options += ["--decoder", decoder]
    result = CliRunner().invoke(app, ["screen", str(clip), "-o", str(output), "--no-media", *map(str, options)])
    assert result.exit_code in (0, 1), (result.output, result.exception)
    (line,) = (output / "results.jsonl").read_text().splitlines()
    return json.loads(line)


@pytest.mark.parametrize("decoder", ["pyav", DALI])
def test_the_verdict_does_not_depend_on_engine_and_decoder(
    clip: Path, folder: Path, onnx_file: Path, tmp_path: Path, decoder: str
) -> None:
    want = screened(clip, folder, "torch", tmp_path / "torch")
    assert want["faces_scored"] == 16
    assert 0.02 < want["score"] < 0.98
    for engine in ("torch", "onnxruntime", "openvino")[decoder == "pyav" :]:
        if engine == "openvino":
            pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'fastdetect[openvino]'")
        model = folder if engine == "torch" else onnx_file
        row = screened(clip, model, engine, tmp_path / f"{decoder}-{engine}", decoder)
        assert row["engine"].startswith(engine)
        assert row["decoder"].startswith(decoder)
        assert row["verdict"] == want["verdict"]
        assert abs(row["score"] - want["score"]) <= 0.02
        same = ("model_id", "model_sha256", "preprocess_sha256", "calibration_id")
        assert [row[name] for name in same] == [want[name] for name in same]


def test_a_torch_export_screens_as_its_model_does(clip: Path, folder: Path, tmp_path: Path) -> None:
    export_model(str(folder), "torch", tmp_path / "export")
    want = screened(clip, folder, "torch", tmp_path / "torch")
    row = screened(clip, tmp_path / "export", "auto", tmp_path / "pt2")
    same = (
        "engine",
        "precision",
        "score",
        "verdict",
        "model_id",
        "model_sha256",
        "preprocess_sha256",
        "calibration_id",
    )
    assert [row[name] for name in same] == [want[name] for name in same]


def test_an_export_of_the_verdict_screens_without_pictures(clip: Path, image_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed: pip install 'fastdetect[onnx]'")
    file, _ = export_model(str(image_folder), "onnx", tmp_path / "export", part="verdict")
    want = screened(clip, image_folder, "torch", tmp_path / "torch")
    row = screened(clip, file, "onnxruntime", tmp_path / "onnx")
    assert abs(row["score"] - want["score"]) <= 1e-3
    for found in (row, want):
        assert [face["residual_margin"] for face in found["tracks"][0]["faces"]] == [None] * 16
    command = ["screen", str(clip), "-o", str(tmp_path / "pictures"), "--model", str(file), "--device", "cpu"]
    for more in ([], ["--no-media", "--residual", "all"]):
        with pytest.raises(UsageError, match="--part detector"):
            CliRunner().invoke(app, [*command, *more], catch_exceptions=False)
