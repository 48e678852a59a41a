"""Images a second of every engine: what is missing is listed, what is wrong is red."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import engines, records
from bench.__main__ import main
from fastdetect.engines import Engine, EngineOutput, load_engine
from fastdetect.errors import EngineError, MissingDependencyError
from fastdetect.models.detector import DETECTOR_PRESETS, DetectorConfig

TINY = ["--shapes", "tiny", "--device", "cpu", "--threads", "1", "--seconds", "0", "--rounds", "2", "2"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDETECT_CACHE", str(tmp_path / "cache"))


def run(path: Path, *only: str) -> tuple[int, dict[str, Any]]:
    code = main(["engines", "part=verdict", *TINY, "--results", str(path), "--only", *only])
    (case,) = records.load(path)["suites"]["engines"]["cases"]
    return code, case


def test_engines_that_are_here_have_a_rate_and_the_others_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript")
    monkeypatch.setitem(sys.modules, "openvino", None)  # a conversion takes long
    code, case = run(tmp_path / "r.json", "torch", "onnxruntime", "torch-cuda-graph", "tensorrt", "tensorrt-rtx")
    assert code == 0
    results = case["providers"]
    assert case["shape"] == {"model": "tiny", "part": "verdict", "precision": "fp32", "profile": "latency", "batch": 1}
    for name in ("torch", "onnxruntime"):
        assert results[name]["status"] == "ok"
        assert results[name]["images_per_s"] == pytest.approx(1e3 / results[name]["time_ms"])
    for name in ("torch-cuda-graph", "tensorrt", "tensorrt-rtx"):
        assert results[name]["status"] == "skipped"
        assert "CUDA" in results[name]["note"] or "pip install" in results[name]["note"]
    capsys.readouterr()
    assert main(["table", str(tmp_path / "r.json")]) == 0
    text = capsys.readouterr().out
    assert "images/s" in text
    assert "torch-cuda-graph: mode" in text


class Off:
    """An engine whose logits are half a logit off."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.grid = engine, engine.grid

    def run(self, crops: Any) -> EngineOutput:
        out = self.engine.run(crops)
        return EngineOutput(out.logits + np.float32(0.5), out.image_logits, out.residual_logits, out.patch_scores)


def refuse(error: Exception) -> Callable[[Engine], Engine]:
    def make(engine: Engine) -> Engine:
        raise error

    return make


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (Off, "wrong", "is allowed"),
        (refuse(EngineError("the builder ran out of memory")), "failed", "out of memory"),
        (refuse(EngineError("TensorRT-RTX 1.7 does not build for sm_90 (has sm_89)")), "skipped", "sm_90"),
        (refuse(MissingDependencyError("pip install it")), "skipped", "pip install it"),
        (refuse(ImportError("No module named 'onnxruntime'")), "skipped", "onnxruntime"),
    ],
)
def test_an_engine_that_is_wrong_or_broken_is_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Engine], Any], status: str, words: str
) -> None:
    def load(model: str, *, engine: str, **options: Any) -> Any:
        built = load_engine(model, engine="torch", **options)
        return make(built) if engine == "onnxruntime" else built

    monkeypatch.setattr(engines, "load_engine", load)
    code, case = run(tmp_path / "r.json", "torch", "onnxruntime")
    found = case["providers"]["onnxruntime"]
    assert found["status"] == status
    assert words in found["note"]
    assert "images_per_s" not in found
    assert code == (status != "skipped")


def test_what_a_gpu_is_asked_for() -> None:
    shapes = engines.Engines.shapes["cuda"]
    wanted = {(s["profile"], s["precision"], s["model"], s["part"]) for s in shapes}
    assert len(wanted) == len(shapes) == 3 * 3 * 3
    assert (shapes[0]["model"], shapes[0]["precision"], shapes[0]["batch"]) == (engines.VIT, "fp16", 64)
    vit = DetectorConfig.model_validate(engines.MODELS[engines.VIT].model_dump())  # a copy is not checked by itself
    assert vit.image_backbone == DETECTOR_PRESETS["paper-vit-b16"].image_backbone == "vit_base_patch16_224"
    assert (vit.image_size, vit.mim.grid, vit.token_selection) == (224, (14, 14), False)
