"""Choose and build an engine by name."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from fastdetect.engines.base import Engine, EngineName, Mode, Precision, Profile
from fastdetect.engines.cache import Say
from fastdetect.engines.graph import SCORERS, Quantized, Scoring, Stored, need_precision
from fastdetect.engines.machine import cpu_has_bf16, torch_has_gpu
from fastdetect.errors import EngineError, MissingDependencyError, UsageError
from fastdetect.models.folder import residual_decides

_TORCH: dict[str, Mode] = {"torch": "eager", "torch-compile": "compile", "torch-cuda-graph": "cuda-graph"}
# `auto` takes the first that is there.
_SUFFIX = {"tensorrt": ".plan", "openvino": ".xml", "onnxruntime": ".onnx", "torch": ".pt2"}


def load_engine(
    model: str,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    profile: str | None = None,
    say: Say | None = None,
    part: Scoring = "detector",
) -> Engine:
    """Load a model into an engine.

    Args:
        model: folder, shipped name or Hub id, see `TwoBranchDetector.from_pretrained`; or what `fastdetect export`
            wrote: a folder, or its .onnx, .xml, .pt2 or .plan.
        engine: an EngineName. `auto` takes the engine of an export; for a model OpenVINO on CPUs, where it is
            installed and can be used, and else torch.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, and `gpu` for OpenVINO on Intel's.
        precision: `auto` is the fastest whose scores are as calibrated: see the engines.
        threads: of the model on a CPU, for torch set for the whole process; None leaves the runtime's own choice.
        batch_size: crops of one pass; profile: or a name of `fastdetect.engines.base.PROFILES`.
        say: hears slow steps; default: lines on standard error.
        part: `detector`, or the `verdict` alone of a model whose residual branch has no say in it, see
            `deciding_part`: several times as fast. An export is what it is.
    Raises:
        UsageError: an option cannot be used.
        MissingDependencyError: the engine's package is not installed; says which extra.
        CheckpointError: the model cannot be loaded.
        EngineError: the engine cannot be built or kept here.
    """
    if engine not in get_args(EngineName):
        raise UsageError(f"unknown engine {engine!r}; have: {', '.join(get_args(EngineName))}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")
    if precision not in get_args(Precision):
        made = "; `fastdetect export` makes int8 and fp8" if precision in get_args(Quantized) else ""
        raise UsageError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}{made}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    named = str(batch_size) if batch_size else profile
    shape = Profile.parse(named) if named else None
    options = _Options(engine, device, precision, threads, shape, say or _tell, part)
    if engine == "auto":
        engine = next((name for name, suffix in _SUFFIX.items() if _exported(model, suffix)), "")
        if not engine and (built := _fast_on_cpu(model, options)):
            return built
        engine = engine or "torch"
    build = _torch if engine in _TORCH else {"onnxruntime": _onnxruntime, "openvino": _openvino}.get(engine, _tensorrt)
    built = build(model, replace(options, engine=engine))
    if built.device != "cpu" or engine == "torch-compile":
        built.warm_up()  # here, and not in the first file's time; what cannot run says so before the run
    return built


@dataclass(frozen=True)
class _Options:
    engine: str
    device: str
    precision: Precision
    threads: int | None
    shape: Profile | None
    say: Say
    part: Scoring

    @property
    def batch_size(self) -> int | None:
        return self.shape.best if self.shape else None


def _torch(model: str, o: _Options) -> Engine:
    import torch

    from fastdetect.engines.torch_engine import TorchEngine

    if o.threads:
        torch.set_num_threads(o.threads)
    mode, file = _TORCH[o.engine], _exported(model, ".pt2")
    if file is None:
        return TorchEngine(
            model, device=o.device, precision=o.precision, batch_size=o.batch_size, mode=mode, part=o.part
        )
    from fastdetect.engines.torch_archive import read_detector

    detector, info = read_detector(file)
    need_precision(info, o.precision, str(file))
    precision, part = cast(Precision, info.precision), cast(Scoring, info.part)
    return TorchEngine(detector, device=o.device, precision=precision, batch_size=o.batch_size, mode=mode, part=part)


def _onnxruntime(model: str, o: _Options) -> Engine:
    from fastdetect.engines.kept import cached_graph
    from fastdetect.engines.onnxruntime_engine import OnnxRuntimeEngine, best_device, check

    device = best_device() if o.device == "auto" else o.device
    file = _exported(model, ".onnx")
    default: Stored = "fp32" if device == "cpu" else "fp16"
    check(device, default if o.precision == "auto" else o.precision)
    graph = cached_graph(str(file or model), o.precision, default, o.say, o.part)
    return OnnxRuntimeEngine(graph, device=device, threads=o.threads, batch_size=o.batch_size)


def _openvino(model: str, o: _Options) -> Engine:
    from fastdetect.engines.kept import cached_graph
    from fastdetect.engines.openvino_convert import converted
    from fastdetect.engines.openvino_engine import OpenVinoEngine, check

    device = "cpu" if o.device == "auto" else o.device
    precision = o.precision
    if precision == "auto":
        precision = "bf16" if device == "cpu" and cpu_has_bf16() else "fp32"
    check(device, precision)
    onnx = _exported(model, ".onnx")
    source = _exported(model, ".xml") or (
        cached_graph(str(onnx), "fp32", "fp32", o.say) if onnx else converted(model, o.say, o.part)
    )
    return OpenVinoEngine(source, device=device, precision=precision, threads=o.threads, batch_size=o.batch_size)


def _fast_on_cpu(model: str, o: _Options) -> Engine | None:
    """OpenVINO where it is the faster of two; None, and one line, where it cannot be had after all."""
    here = o.device == "cpu" or (o.device == "auto" and not torch_has_gpu())
    if not (here and o.precision in ("auto", "bf16") and importlib.util.find_spec("openvino")):
        return None
    try:
        return _openvino(model, replace(o, engine="openvino", device="cpu"))
    except (EngineError, MissingDependencyError, RuntimeError, OSError) as error:
        o.say(f"OpenVINO is not used, the model runs on torch instead: {error}")
        return None


def _tensorrt(model: str, o: _Options) -> Engine:
    from fastdetect.engines.kept import cached_graph
    from fastdetect.engines.tensorrt_build import gpu_here, load_runtime
    from fastdetect.engines.tensorrt_engine import TensorRtEngine, read_plan

    file = _exported(model, ".plan")
    plan = read_plan(file) if file else None
    if plan:
        need_precision(plan.info, o.precision, str(file))
        _need_profile(plan.plan.key["profile"], o.shape, str(file))
    # `auto` cannot tell the two runtimes apart by a file's name
    runtime = "tensorrt-rtx" if plan and plan.plan.key["runtime"].startswith("tensorrt-rtx") else o.engine
    load_runtime(runtime)
    if o.device == "cpu":
        raise UsageError(f"{runtime} runs on CUDA devices, got device 'cpu'; use --engine onnxruntime or openvino")
    device = "cuda" if o.device == "auto" else o.device
    gpu_here(device)
    source = plan or cached_graph(str(_exported(model, ".onnx") or model), o.precision, "fp16", o.say, o.part)
    return TensorRtEngine(source, runtime=runtime, device=device, profile=o.shape, say=o.say)


def _need_profile(built: str, wanted: Profile | None, source: str) -> None:
    """Raise UsageError unless an engine was built for the wanted batch sizes; None takes what it has."""
    asked = f"{wanted.least},{wanted.best},{wanted.most}" if wanted else built
    if asked != built:
        raise UsageError(
            f"{source} was built for batches of {built} (least, best, most), wanted {asked}; leave profile and batch "
            f"size out, or export it with --batch {asked}"
        )


def deciding_part(model: str) -> Scoring:
    """The least part of a model that gives its verdicts; of what `fastdetect export` wrote, all.

    Raises:
        CheckpointError: there is no such detector.
    """
    exported = any(_exported(model, suffix) for suffix in _SUFFIX.values())
    return "detector" if exported or residual_decides(model) else "verdict"


def _exported(model: str, suffix: str) -> Path | None:
    """The file of an export with this suffix, None where there is none."""
    path = Path(model)
    files = [path] if path.suffix == suffix else [path / f"{part}{suffix}" for part in SCORERS]
    return next((file for file in files if file.is_file()), None)


def _tell(text: str) -> None:
    print(f"fastdetect: {text}", file=sys.stderr, flush=True)
