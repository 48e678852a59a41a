"""TensorRT-RTX builds engines without a GPU; what needs one says so."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastdetect.engines import load_engine
from fastdetect.engines.base import Profile
from fastdetect.engines.export import export_graph, export_model
from fastdetect.engines.graph import Graph
from fastdetect.engines.tensorrt_build import build_plan, load_runtime, make_logger, parse, plan_key
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


def test_the_parser_takes_every_exported_graph(rtx: ModuleType, graph: Graph, half: Graph, folder: Path) -> None:
    faces = export_graph(str(folder), "face-detector", "fp32", print)
    for exported in (graph, half, faces):
        logger = make_logger(rtx)
        network, _parser = parse(rtx, rtx.Builder(logger), exported, logger)
        assert network.get_flag(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        names = [network.get_output(i).name for i in range(network.num_outputs)]
        assert names == list(exported.info.outputs)
        assert logger.lines == []


def test_an_fp32_engine_of_the_whole_scorer_is_built(rtx: ModuleType, graph: Graph) -> None:
    said: list[str] = []
    built = build_plan(graph, "tensorrt-rtx", Profile.parse("1,4,8"), gpu="sm_86", say=said.append)
    assert len(built.plan) > 100_000
    assert built.key["gpu"] == "sm_86"
    assert "Building engine" in said


def test_an_fp16_engine_is_built_by_the_types_of_its_graph(rtx: ModuleType, half: Graph) -> None:
    full = build_plan(half, "tensorrt-rtx", Profile.parse("1,4,8"), gpu="sm_89")
    assert full.key["precision"] == "fp16"
    assert len(full.plan) > 100_000


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


def test_what_the_engine_calls_is_there(rtx: ModuleType) -> None:
    called = {
        "Runtime": ["deserialize_cuda_engine"],
        "ICudaEngine": ["create_execution_context", "create_runtime_config"],
        "IRuntimeConfig": ["create_runtime_cache", "set_runtime_cache"],
        "IRuntimeCache": ["serialize", "deserialize"],
        "IExecutionContext": ["set_input_shape", "set_tensor_address", "execute_async_v3"],
        "IBuilderConfig": ["create_timing_cache", "set_timing_cache", "add_optimization_profile"],
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
