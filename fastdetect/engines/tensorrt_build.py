"""Build TensorRT engines from ONNX graphs: one adapter for TensorRT 10, 11 and TensorRT-RTX."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fastdetect.engines.base import Profile
from fastdetect.engines.cache import Say, cache_folder, cached, pack, unpack, write_atomic
from fastdetect.engines.graph import Graph
from fastdetect.errors import EngineError, MissingDependencyError, UsageError

if TYPE_CHECKING:  # TensorRT 10's own signatures: mypy holds the adapter to them; TensorRT-RTX has those of 11
    import tensorrt

# Sides of the face detector's frames: 16:9 at its first pass, padded to multiples of 32.
_SIDES = {"height": (64, 192, 1280), "width": (64, 320, 1280)}
_RUNTIMES = {
    "tensorrt": ("tensorrt", (10, 11), "pip install 'fastdetect[tensorrt]' (the libraries come from NVIDIA's index)"),
    "tensorrt-rtx": ("tensorrt_rtx", (1,), "pip install 'fastdetect[rtx]'"),
}


@dataclass(frozen=True)
class Plan:
    """A serialised engine and everything that it depends on."""

    plan: bytes
    key: dict[str, str]


def load_runtime(runtime: str) -> Any:
    """Import `tensorrt` or `tensorrt-rtx`.

    Raises:
        MissingDependencyError: it is not installed, or its libraries do not load.
        EngineError: a version that this adapter does not know.
    """
    module, majors, advice = _RUNTIMES[runtime]
    try:
        trt = importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(f"--engine {runtime} needs the package {module} ({error}): {advice}") from error
    known = getattr(trt, "__version__", "none")
    if known.split(".")[0] not in map(str, majors):
        wanted = " or ".join(map(str, majors))
        raise EngineError(f"{module} {known} is installed, this adapter is for {wanted}.x: {advice}")
    return trt


def gpu_here(device: str = "cuda") -> tuple[str, str]:
    """(compute capability such as `sm_90`, name) of a CUDA device; raises EngineError without one."""
    if not torch.cuda.is_available():
        raise EngineError(
            "there is no CUDA device here, and TensorRT runs on NVIDIA's GPUs only; use --engine onnxruntime, openvino "
            "or torch (TensorRT-RTX can build for another machine: fastdetect export --to tensorrt-rtx --gpu sm_89)"
        )
    try:
        facts = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"device {device!r} cannot be used: {error}; have {torch.cuda.device_count()}") from error
    return f"sm_{facts.major}{facts.minor}", facts.name


def plan_key(graph: Graph, runtime: str, profile: Profile, gpu: str | None, device: str = "cuda") -> dict[str, str]:
    """What an engine depends on: graph, runtime version, GPU, precision, batch profile.

    TensorRT times its kernels on the GPU that is here; TensorRT-RTX builds for a compute capability, here or not.
    """
    trt = load_runtime(runtime)
    if runtime == "tensorrt":
        capability, name = gpu_here(device)
        if gpu not in (None, capability):
            raise UsageError(f"TensorRT builds for the GPU that is here ({capability}), not for {gpu}; build there")
        target = f"{name} {capability}"
    else:
        target = gpu or gpu_here(device)[0]
        if target.upper().replace("_", "") not in _targets(trt):
            have = ", ".join(sorted(name.replace("SM", "sm_") for name in _targets(trt)))
            raise EngineError(f"TensorRT-RTX {trt.__version__} does not build for {target} (has {have}); use TensorRT")
    return {
        "onnx_sha256": graph.sha256,
        "runtime": f"{runtime}-{trt.__version__}",
        "gpu": target,
        "precision": graph.info.precision,
        "profile": f"{profile.least},{profile.best},{profile.most}",
    }


def cached_plan(
    graph: Graph, runtime: str, profile: Profile, *, device: str, say: Say, check: Callable[[bytes], object]
) -> Plan:
    """The engine for this GPU from the cache, or, also where `check` raises EngineError, built and kept."""
    key = plan_key(graph, runtime, profile, None, device)

    def build() -> bytes:
        return build_plan(graph, runtime, profile, device=device, say=say).plan

    return Plan(cached("plan", key | {"fp32": "without TF32"}, build, say, check=check), key)


def build_plan(
    graph: Graph,
    runtime: str,
    profile: Profile,
    *,
    gpu: str | None = None,
    device: str = "cuda",
    say: Say = lambda text: None,
) -> Plan:
    """Build an engine; the graph's types are its precision (strongly typed).

    Args:
        gpu: target of TensorRT-RTX, such as `sm_89`, which need not be here; None: the GPU here.
        say: hears progress.
    Raises:
        EngineError: the parser refuses the graph, or the build fails; with the runtime's own words.
    """
    key = plan_key(graph, runtime, profile, gpu, device)
    trt = load_runtime(runtime)
    logger = make_logger(trt)
    builder: tensorrt.Builder = trt.Builder(logger)
    network, _parser = parse(trt, builder, graph, logger)  # the parser owns the weights
    config = builder.create_builder_config()
    config.progress_monitor = _monitor(trt, say)
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is what was asked for
    shapes = builder.create_optimization_profile()
    for name, (_, *dims) in graph.info.inputs.items():
        sizes: Any = [[_size(dim, i, profile) for dim in dims] for i in range(3)]
        shapes.set_shape(name, *sizes)
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"{key['runtime']} refuses the batch profile {key['profile']}: {logger.said()}")
    if runtime == "tensorrt-rtx":
        _aim(config, _targets(trt)[key["gpu"].upper().replace("_", "")])
        plan = builder.build_serialized_network(network, config)
    else:
        plan = _build_with_timings(builder, network, config, key, say)
    if plan is None:
        raise EngineError(f"{key['runtime']} could not build the {graph.info.part} for {key['gpu']}: {logger.said()}")
    return Plan(bytes(plan), key)


def parse(
    trt: Any, builder: tensorrt.Builder, graph: Graph, logger: tensorrt.ILogger
) -> tuple[tensorrt.INetworkDefinition, tensorrt.OnnxParser]:
    """The graph as a strongly typed network, and the parser, which must outlive it; raises EngineError."""
    network = builder.create_network(_strongly_typed(trt))
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.onnx):
        said = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot read the {graph.info.part}'s graph: {said}")
    return network, parser


def _strongly_typed(trt: Any) -> int:
    # The only kind from TensorRT 11 on, where the flag is allowed to be gone.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _targets(trt: Any) -> Mapping[str, Any]:
    members = trt.ComputeCapability.__members__
    return {name: value for name, value in members.items() if name.startswith("SM")}


def _aim(config: Any, capability: Any) -> None:
    """Build for this compute capability; TensorRT-RTX alone can."""
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)


def _size(dim: str | int, which: int, profile: Profile) -> int:
    if isinstance(dim, int):
        return dim
    return _SIDES[dim][which] if dim in _SIDES else (profile.least, profile.best, profile.most)[which]


def _build_with_timings(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    key: Mapping[str, str],
    say: Say,
) -> tensorrt.IHostMemory | None:
    """Build with the kernel timings of earlier builds on this GPU with this version, and keep the new ones."""
    of = {name: key[name] for name in ("runtime", "gpu")}
    path = cache_folder() / f"timings-{of['runtime']}-{of['gpu'].replace(' ', '_')}.bin"
    known = b""
    if path.exists():
        try:
            known = unpack(path.read_bytes(), of)
        except (EngineError, OSError) as error:
            say(f"{path} is not used: {error}")
    timings = config.create_timing_cache(known)
    if not config.set_timing_cache(timings, False):
        say(f"{path} is not used: it is of another device or version")
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    plan = builder.build_serialized_network(network, config)
    if plan is not None:
        write_atomic(path, pack(bytes(timings.serialize()), of))
    return plan


def make_logger(trt: Any) -> Any:
    """A logger that keeps warnings and errors instead of printing them."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.lines.append(message)

        def said(self) -> str:
            return "; ".join(self.lines[-3:]) or "it gave no reason"

    return Logger()


def _monitor(trt: Any, say: Say) -> Any:
    """Says each phase of a build once, and how far the optimisation is."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if phase not in self.steps:
                say(phase)
            self.steps[phase] = steps

        def phase_finish(self, phase: str) -> None:
            return None

        def step_complete(self, phase: str, step: int) -> bool:
            if self.steps[phase] >= 10 and (step + 1) % 10 == 0 and phase.startswith("Optimizing"):
                say(f"{phase}: {step + 1} of {self.steps[phase]}")
            return True  # False would stop the build

    return Monitor()
