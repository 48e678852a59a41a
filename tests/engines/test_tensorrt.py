"""TensorRT-RTX builds engines without a GPU; what needs one says so."""

import hashlib
import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from engine_helpers import crops

from fastdetect.engines import load_engine, tensorrt_build
from fastdetect.engines.base import Profile
from fastdetect.engines.cache import pack, unpack
from fastdetect.engines.export import export_model, write_together
from fastdetect.engines.graph import Graph, Stored, read_graph
from fastdetect.engines.tensorrt_build import (
    _build_with_timings,
    build_plan,
    load_runtime,
    make_logger,
    parse,
    plan_key,
)
from fastdetect.engines.tensorrt_engine import check_plan, read_plan
from fastdetect.errors import CheckpointError, EngineError, MissingDependencyError, UsageError


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'fastdetect[rtx]' (95 MB)"
    )


def no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")


@pytest.mark.parametrize(
    ("part", "precision"),
    [
        *(("detector", precision) for precision in get_args(Stored)),
        ("verdict", "fp16"),
        ("masked-image-model", "fp16"),
        ("face-detector", "fp32"),
        ("face-detector", "fp16"),
    ],
)
def test_the_parser_takes_every_exported_graph(
    rtx: ModuleType, exported: Callable[..., Graph], part: str, precision: str
) -> None:
    graph, logger = exported(part, precision), make_logger(rtx)
    network, _parser = parse(rtx, rtx.Builder(logger), graph, logger)
    assert network.get_flag(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    names = [network.get_output(i).name for i in range(network.num_outputs)]
    assert names == list(graph.info.outputs)
    assert logger.lines == []


@pytest.mark.parametrize(
    ("gpu", "precision"), [*product(("sm_86", "sm_89", "sm_120"), ("fp32", "fp16")), ("sm_120", "bf16")]
)
def test_engines_of_the_whole_scorer_are_built(
    rtx: ModuleType, exported: Callable[..., Graph], gpu: str, precision: str
) -> None:
    said: list[str] = []
    built = build_plan(
        exported("detector", precision), "tensorrt-rtx", Profile.parse("1,4,8"), gpu=gpu, say=said.append
    )
    assert len(built.plan) > 100_000
    assert (built.key["gpu"], built.key["precision"]) == (gpu, precision)
    assert "Building engine" in said


def test_fp32_is_built_without_tf32(
    rtx: ModuleType, exported: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    aim = tensorrt_build._aim

    def look(config: Any, target: Any) -> None:
        seen.append(config.get_flag(rtx.BuilderFlag.TF32))
        aim(config, target)

    monkeypatch.setattr(tensorrt_build, "_aim", look)
    build_plan(exported("verdict", "fp16"), "tensorrt-rtx", Profile.parse("1"), gpu="sm_89")
    assert seen == [False]
    config = rtx.Builder(make_logger(rtx)).create_builder_config()
    assert config.get_flag(rtx.BuilderFlag.TF32)  # which it has by itself


def test_the_face_detector_is_built_in_half_precision(rtx: ModuleType, exported: Callable[..., Graph]) -> None:
    half = exported("face-detector", "fp16")
    assert len(build_plan(half, "tensorrt-rtx", Profile.parse("1,4,8"), gpu="sm_89").plan) > 100_000


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_kernel_timings_are_kept_and_damaged_or_foreign_ones_are_not_used(
    rtx: ModuleType, half: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's own way to build, by TensorRT-RTX's builder: its interface is the same, its timings are empty."""
    monkeypatch.setenv("FASTDETECT_CACHE", str(tmp_path))
    key = {"runtime": "tensorrt-10", "gpu": "NVIDIA L4 sm_89"}

    def build() -> list[str]:
        logger, said = make_logger(rtx), []
        builder = rtx.Builder(logger)
        network, _parser = parse(rtx, builder, half, logger)
        config, shapes = builder.create_builder_config(), builder.create_optimization_profile()
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx.ComputeCapability.SM89, 0)
        shapes.set_shape("images", *[(1, 3, 64, 64)] * 3)
        config.add_optimization_profile(shapes)
        assert _build_with_timings(builder, network, config, key, said.append) is not None
        return said

    assert build() == []
    (kept,) = tmp_path.glob("timings-*.bin")
    assert build() == []
    for foreign, why in ((kept.read_bytes()[:-1], "bytes"), (pack(b"", key | {"gpu": "T4 sm_75"}), "T4 sm_75")):
        kept.write_bytes(foreign)
        (said,) = build()
        assert f"{kept} is not used" in said
        assert why in said
        unpack(kept.read_bytes(), key)  # and the new ones are kept


def test_a_graph_with_quantised_nodes_is_built_by_its_types(rtx: ModuleType, onnx_file: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization", reason="needs onnx")
    batches = iter([{"crops": crops(4)}])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict | None:
            return next(batches, None)

    file = tmp_path / "int8.onnx"
    symmetric = {"QuantizeBias": False, "ActivationSymmetric": True, "WeightSymmetric": True}
    int8 = quantization.QuantType.QInt8
    quantization.quantize_static(
        onnx_file, file, Reader(), activation_type=int8, weight_type=int8, op_types_to_quantize=["Conv", "MatMul"],
        extra_options=symmetric,
    )  # fmt: skip
    quantised = read_graph(file)
    assert b"QuantizeLinear" in quantised.onnx
    assert len(build_plan(quantised, "tensorrt-rtx", Profile.parse("4"), gpu="sm_89").plan) > 100_000


def test_tensorrt_builds_on_the_gpu_that_is_here_only(
    rtx: ModuleType, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_build, "load_runtime", lambda runtime: rtx)
    monkeypatch.setattr(tensorrt_build, "gpu_here", lambda device="cuda": ("sm_90", "NVIDIA H200"))
    profile = Profile.parse("throughput")
    with pytest.raises(UsageError, match=r"GPU that is here \(sm_90\), not for sm_80"):
        plan_key(graph, "tensorrt", profile, "sm_80")
    assert plan_key(graph, "tensorrt", profile, "sm_90")["gpu"] == "NVIDIA H200 sm_90"
    with pytest.raises(EngineError, match="GPU NVIDIA H200 sm_90, here is NVIDIA H100 sm_90"):  # timed on the other
        check_plan(plan_key(graph, "tensorrt", profile, None), f"tensorrt-{rtx.__version__}", "sm_90", "NVIDIA H100")


def test_an_exported_plan_says_what_it_is_for(
    rtx: ModuleType, graph: Graph, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdetect.engines.export.export_graph", lambda *args: graph)  # exported once already
    files = export_model(str(folder), "tensorrt-rtx", tmp_path, gpu="sm_120", profile=Profile.parse("1,2,4"))
    assert [file.name for file in files] == ["detector.plan", "detector.json"]
    read = read_plan(files[0])
    assert read.info == graph.info
    assert read.plan.key == plan_key(graph, "tensorrt-rtx", Profile.parse("1,2,4"), "sm_120")
    check_plan(read.plan.key, f"tensorrt-rtx-{rtx.__version__}", "sm_120", "RTX 5090")
    with pytest.raises(EngineError, match="GPU sm_120, here is sm_89"):
        check_plan(read.plan.key, f"tensorrt-rtx-{rtx.__version__}", "sm_89", "RTX 4090")
    with pytest.raises(EngineError, match=r"runtime tensorrt-rtx-.*, here is tensorrt-rtx-9"):
        check_plan(read.plan.key, "tensorrt-rtx-9", "sm_120", "RTX 5090")
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="no CUDA device"):
            load_engine(str(tmp_path))
    files[0].write_bytes(files[0].read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_plan(files[0])
    files[1].unlink()
    with pytest.raises(CheckpointError, match=r"needs the detector\.json"):
        read_plan(files[0])


def test_a_plan_is_what_it_was_built_for(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the runtime or a GPU is looked for."""
    key = {"onnx_sha256": graph.sha256, "runtime": "tensorrt-10.13", "gpu": "L4 sm_89", "precision": "fp32"}
    about = {"info": graph.info.model_dump(mode="json"), **key, "profile": "1,16,64"}
    plan = {"detector.plan": b"plan"}
    about["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in plan.items()}
    write_together(tmp_path, plan | {"detector.json": json.dumps(about).encode()})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"precision": "fp16"}, r"detector\.plan is fp32, wanted fp16"),
        ({"profile": "throughput"}, r"batches of 1,16,64 .*, wanted 1,64,256"),
        ({"batch_size": 8}, r"wanted 8,8,8; .* --batch 8,8,8"),
    ]
    for options, said in cases:
        for engine in ("auto", "tensorrt"):
            with pytest.raises(UsageError, match=said):
                load_engine(str(tmp_path), engine=engine, **options)

    def reached(runtime: str) -> None:
        raise MissingDependencyError("the runtime is next")

    monkeypatch.setattr(tensorrt_build, "load_runtime", reached)
    same: list[dict[str, Any]] = [{}, {"precision": "fp32", "profile": "balanced"}, {"profile": "1,16,64"}]
    for options in same:
        with pytest.raises(MissingDependencyError, match="next"):
            load_engine(str(tmp_path), **options)


def test_tensorrt_takes_the_onnx_file_of_a_folder(
    exported: Callable[..., Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Graph] = []

    def engine(source: Graph, **options: object) -> SimpleNamespace:
        taken.append(source)
        return SimpleNamespace(device="cpu")  # needs no warm-up

    monkeypatch.setattr(tensorrt_build, "load_runtime", lambda runtime: None)
    monkeypatch.setattr(tensorrt_build, "gpu_here", lambda device: ("sm_89", "NVIDIA L4"))
    monkeypatch.setattr("fastdetect.engines.tensorrt_engine.TensorRtEngine", engine)
    for part in ("verdict", "detector"):
        graph = exported(part, "fp32")
        write_together(tmp_path / part, {f"{part}.onnx": graph.onnx})
        load_engine(str(tmp_path / part), engine="tensorrt")
        assert taken.pop().sha256 == graph.sha256
        with pytest.raises(UsageError, match=rf"{part}\.onnx is fp32, wanted fp16"):
            load_engine(str(tmp_path / part), engine="tensorrt", precision="fp16")


def test_what_cannot_be_built_is_a_typed_error(rtx: ModuleType, graph: Graph) -> None:
    small = Profile.parse("1")
    with pytest.raises(EngineError, match=r"does not build for sm_90 \(has .*sm_89"):
        build_plan(graph, "tensorrt-rtx", small, gpu="sm_90")
    broken = Graph(graph.onnx[: len(graph.onnx) // 2], graph.info)
    with pytest.raises(EngineError, match="cannot read the detector's graph"):
        build_plan(broken, "tensorrt-rtx", small, gpu="sm_89")


def test_without_a_gpu_an_engine_is_refused_before_anything_is_built(rtx: ModuleType, folder: Path) -> None:
    no_gpu()
    with pytest.raises(EngineError, match="no CUDA device"):
        load_engine(str(folder), engine="tensorrt-rtx")
    with pytest.raises(UsageError, match="device 'cpu'"):
        load_engine(str(folder), engine="tensorrt-rtx", device="cpu")


def test_what_only_tensorrt_rtx_is_asked_for_is_there(rtx: ModuleType) -> None:
    """The rest: tests/engines/test_tensorrt_api.py."""
    called = {
        "IRuntimeConfig": ["create_runtime_cache", "set_runtime_cache"],
        "IRuntimeCache": ["serialize", "deserialize"],
    }
    missing = [
        f"{kind}.{name}" for kind, names in called.items() for name in names if not hasattr(getattr(rtx, kind), name)
    ]
    assert missing == []


def test_a_missing_runtime_names_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for runtime, module, extra in (("tensorrt", "tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingDependencyError, match=rf"fastdetect\[{extra}\]"):
            load_engine(str(folder), engine=runtime)


def test_an_unknown_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("tensorrt")
    old.__version__ = "8.6.1"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(EngineError, match=r"tensorrt 8\.6\.1 is installed, this adapter is for 10 or 11"):
        load_runtime("tensorrt")
