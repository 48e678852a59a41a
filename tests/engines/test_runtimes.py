"""Every runtime gives torch's scores, whatever else is in the batch."""

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_helpers import SIDE, crops

from fastdetect.engines import Engine, TorchEngine, load_engine
from fastdetect.engines.base import PROFILES, EngineName, Precision, Profile
from fastdetect.engines.export import export_model
from fastdetect.engines.graph import Graph
from fastdetect.engines.machine import cpu_has_bf16
from fastdetect.engines.onnxruntime_engine import OnnxRuntimeEngine
from fastdetect.errors import CheckpointError, EngineError, MissingDependencyError, ShapeError, UsageError
from fastdetect.openvino_runtime import openvino_core

FIELDS = ("logits", "image_logits", "residual_logits", "patch_scores")


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, onnx_file: Path) -> Engine:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'fastdetect[openvino]'")
    return load_engine(str(onnx_file), engine=request.param, device="cpu", precision="fp32", threads=1, batch_size=4)


@pytest.fixture(scope="module")
def torch_fp32(folder: Path) -> Engine:
    return TorchEngine(str(folder), device="cpu", precision="fp32", batch_size=4)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_scores_are_torchs(engine: Engine, torch_fp32: Engine, count: int) -> None:
    got, want = engine.run(crops(count)), torch_fp32.run(crops(count))
    assert np.abs(want.logits).max() > 0.1  # else a wrong graph could pass
    for field in FIELDS:
        ours, theirs = getattr(got, field), getattr(want, field)
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-3


def test_crops_of_torch_are_scored_where_they_are(engine: Engine, torch_fp32: Engine) -> None:
    for one in (engine, torch_fp32):
        array = crops(9)
        got, want = one.run(torch.from_numpy(array)), one.run(array)
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(got, field), getattr(want, field))
        with pytest.raises(ShapeError, match="float32"):
            one.run(torch.zeros(2, SIDE, SIDE, 3))


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_the_verdict_alone_is_the_detectors(name: str, image_folder: Path, folder: Path) -> None:
    if name != "torch":
        pytest.importorskip("openvino" if name == "openvino" else "onnxscript")
    options = {"device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 4}
    whole = TorchEngine(str(image_folder), device="cpu", precision="fp32", batch_size=4).run(crops(9))
    engine = load_engine(str(image_folder), engine=name, part="verdict", **options)
    found = engine.run(crops(9))
    assert np.abs(whole.logits).max() > 0.1
    assert np.abs(found.logits - whole.logits).max() <= 1e-3
    assert np.abs(found.image_logits - whole.image_logits).max() <= 1e-3
    assert found.residual_logits.shape == (9, 2)
    assert np.isnan(found.residual_logits).all()
    assert found.patch_scores.shape == (9, 0, 0)
    assert (engine.run(crops(0)).logits.shape, engine.run(crops(0)).patch_scores.shape) == ((0, 2), (0, 0, 0))
    engine.close()
    own = load_engine(str(image_folder), engine=name, part="verdict", device="cpu", threads=1, batch_size=4)
    assert own.precision == ("bf16" if cpu_has_bf16() and name != "onnxruntime" else "fp32")
    error = np.abs(own.run(crops(9)).logits - whole.logits).max()
    assert error <= (0.05 * np.abs(whole.logits).max() if own.precision == "bf16" else 1e-3)
    with pytest.raises((UsageError, EngineError), match="has a say"):
        load_engine(str(folder), engine=name, part="verdict", **options)


def test_a_crops_scores_do_not_depend_on_its_batch(engine: Engine) -> None:
    mine, others = crops(3), crops(13, seed=1)
    alone = engine.run(mine)
    for places in ((0, 1, 2), (3, 7, 11), (12, 13, 14)):
        together = others.copy()
        together = np.insert(together, np.array(places) - np.arange(3), mine, axis=0)
        found = engine.run(together)
        for field in FIELDS:
            assert np.abs(getattr(alone, field) - getattr(found, field)[list(places)]).max() <= 1e-5


def test_what_an_engine_says_about_itself(engine: Engine, folder: Path) -> None:
    assert (engine.device, engine.precision, engine.image_size, engine.batch_size) == ("cpu", "fp32", SIDE, 4)
    assert engine.name.split("-")[0] in ("onnxruntime", "openvino")
    assert engine.info == TorchEngine(str(folder), device="cpu").info


def test_no_crops_and_wrong_crops(engine: Engine) -> None:
    empty = engine.run(crops(0))
    assert empty.logits.shape == (0, 2)
    assert empty.patch_scores.shape == (0, 8, 8)
    with pytest.raises(ShapeError, match=f"{SIDE},{SIDE},3"):
        engine.run(crops(2)[:, 1:])
    with pytest.raises(ShapeError, match="list"):
        engine.run([crops(1)])


def test_threads_share_an_engine(engine: Engine, torch_fp32: Engine) -> None:
    for one in (engine, torch_fp32):
        batches = [crops(9)[start:] for start in range(4)]
        want = [one.run(batch).logits for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            got = pool.map(lambda batch, one=one: one.run(batch).logits, batches * 4)
            for ours, expected in zip(got, want * 4, strict=True):
                np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_closed_engine_says_so(onnx_file: Path, name: str) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'fastdetect[openvino]'")
    engine = load_engine(str(onnx_file), engine=name, device="cpu", batch_size=1)
    engine.warm_up()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(crops(1))


def test_openvino_in_bf16_is_near_fp32(onnx_file: Path, torch_fp32: Engine) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    half = load_engine(str(onnx_file), engine="openvino", device="cpu", precision="bf16", batch_size=4)
    assert half.precision == "bf16"
    assert np.abs(half.run(crops(8)).logits - torch_fp32.run(crops(8)).logits).max() < 0.05


def test_an_openvino_export_runs_by_itself(
    folder: Path, graph: Graph, torch_fp32: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'fastdetect[openvino]'")
    monkeypatch.setattr("fastdetect.engines.export.export_graph", lambda *args: graph)  # exported once already
    files = export_model(str(folder), "openvino", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["detector.bin", "detector.json", "detector.xml"]
    assert len(files) == 3
    engine = load_engine(str(tmp_path), device="cpu", precision="fp32", batch_size=4)  # auto: what the folder holds
    assert engine.name.startswith("openvino")
    assert engine.info == torch_fp32.info
    assert np.abs(engine.run(crops(4)).logits - torch_fp32.run(crops(4)).logits).max() <= 1e-3
    weights = bytearray((tmp_path / "detector.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / "detector.bin").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"detector\.bin is not the file that detector\.json describes"):
        load_engine(str(tmp_path), engine="openvino", device="cpu")
    (tmp_path / "detector.json").unlink()
    (tmp_path / "detector.xml").write_text("<net/>")
    with pytest.raises(CheckpointError, match="OpenVINO cannot read"):
        load_engine(str(tmp_path), engine="openvino", device="cpu")


def test_auto_takes_the_runtime_of_an_export_and_the_faster_one_for_a_model(onnx_file: Path, folder: Path) -> None:
    assert load_engine(str(onnx_file), device="cpu").name.startswith("onnxruntime")
    assert load_engine(str(onnx_file.parent), device="cpu", profile="latency").batch_size == 1
    fast = "openvino" if importlib.util.find_spec("openvino") else "torch"
    chosen = load_engine(str(folder), device="cpu")
    assert chosen.name.startswith(fast)
    assert chosen.precision == ("bf16" if cpu_has_bf16() else "fp32")
    assert load_engine(str(folder), device="cpu", precision="fp32").name.startswith("torch")


def test_a_model_is_converted_for_openvino_once_without_onnx(
    folder: Path, torch_fp32: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'fastdetect[openvino]'")
    monkeypatch.setenv("FASTDETECT_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said: list[str] = []
    for _ in range(2):
        engine = load_engine(
            str(folder), engine="openvino", device="cpu", precision="fp32", batch_size=4, say=said.append
        )
        assert np.abs(engine.run(crops(5)).logits - torch_fp32.run(crops(5)).logits).max() <= 1e-3
        assert engine.info == torch_fp32.info
    assert len(said) == 1
    assert "once" in said[0]
    (kept,) = tmp_path.glob("openvino-*.bin")
    kept.write_bytes(kept.read_bytes()[:-100])
    load_engine(str(folder), engine="openvino", device="cpu", say=said.append)
    assert any("is not used" in text for text in said)


def test_auto_falls_back_to_torch_with_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'fastdetect[openvino]'")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FASTDETECT_CACHE", str(tmp_path / "file" / "cache"))  # nothing can be kept there
    said: list[str] = []
    engine = load_engine(str(folder), device="cpu", say=said.append)
    assert engine.name.startswith("torch")
    assert len(said) == 1
    assert "torch instead" in said[0]
    monkeypatch.setitem(sys.modules, "openvino", None)
    said.clear()
    assert load_engine(str(folder), device="cpu", say=said.append).name.startswith("torch")
    assert len(said) <= 1
    with pytest.raises(CheckpointError):
        load_engine(str(tmp_path / "nothing"), device="cpu", say=said.append)


def test_what_a_runtime_cannot_do_is_a_typed_error(onnx_file: Path, folder: Path, graph: Graph) -> None:
    cases: list[tuple[dict[str, str], type[Exception], str]] = [
        ({"engine": "abacus"}, UsageError, "tensorrt-rtx"),
        ({"engine": "onnxruntime", "device": "cpu", "precision": "bf16"}, UsageError, "does not run bf16"),
        ({"engine": "onnxruntime", "device": "tpu"}, UsageError, "cpu or cuda"),
        ({"engine": "onnxruntime", "precision": "int4"}, UsageError, "int4"),
        ({"engine": "torch-cuda-graph", "device": "cpu"}, UsageError, "needs a CUDA device"),
        ({"engine": "onnxruntime", "profile": "huge"}, UsageError, "latency"),
    ]
    for options, error, said in cases:
        with pytest.raises(error, match=said):
            load_engine(str(folder), **options)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="cannot load the graph"):
        OnnxRuntimeEngine(Graph(graph.onnx[:-5000], graph.info))
    mim = graph.info.model_copy(update={"part": "masked-image-model"})
    with pytest.raises(EngineError, match="--part detector"):
        OnnxRuntimeEngine(Graph(graph.onnx, mim))


def test_a_missing_provider_is_no_silent_cpu(onnx_file: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(MissingDependencyError, match="onnxruntime-gpu"):
        load_engine(str(onnx_file), engine="onnxruntime", device="cuda")


def test_missing_openvino_names_the_extra(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"fastdetect\[openvino\]"):
        load_engine(str(onnx_file), engine="openvino", device="cpu")


def test_profiles() -> None:
    assert Profile.parse("throughput") is PROFILES["throughput"]
    assert Profile.parse("8") == Profile("8,8,8", 8, 8, 8)
    assert Profile.parse("1,16,64").best == 16
    for text in ("", "0", "4,2,8", "1,2", "a,b,c"):
        with pytest.raises(UsageError, match="latency"):
            Profile.parse(text)


def test_the_options_of_screening_are_those_of_the_engines() -> None:
    from typing import get_args

    from fastdetect.screening.config import ScreenConfig

    fields = ScreenConfig.model_fields
    assert get_args(fields["engine"].annotation) == get_args(EngineName)
    assert get_args(fields["precision"].annotation) == get_args(Precision)
    assert set(PROFILES) <= {n for part in get_args(fields["profile"].annotation) for n in get_args(part)}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch-compile", "torch-cuda-graph", "onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_cuda_runtimes_give_torchs_scores(folder: Path, torch_fp32: Engine, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    load = partial(load_engine, str(folder), engine=name, device="cuda", precision="fp32", batch_size=4)
    try:
        if name == "tensorrt-rtx" and torch.cuda.get_device_capability() == (9, 0):
            with pytest.raises(EngineError, match="does not build for sm_90"):
                load()
            return
        engine = load()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    got, want = engine.run(crops(9)), torch_fp32.run(crops(9))
    assert np.abs(got.logits - want.logits).max() < 1e-3
    engine.close()
