"""Inference with TensorRT 10, 11 and TensorRT-RTX on NVIDIA's GPUs."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastdetect.engines.base import Crops, FixedBatchEngine, Profile
from fastdetect.engines.cache import Say, cache_folder, pack, unpack, write_atomic
from fastdetect.engines.graph import Graph, GraphInfo, need_scorer, parse_info, read_facts
from fastdetect.engines.tensorrt_build import Plan, cached_plan, gpu_here, load_runtime, make_logger
from fastdetect.errors import CheckpointError, EngineError

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True)
class PlanFile:
    """An engine as `fastdetect export --to tensorrt` wrote it."""

    plan: Plan
    info: GraphInfo


class TensorRtEngine(FixedBatchEngine):
    """Runs an engine that scores faces.

    Args:
        source: the graph, whose engine is taken from the cache or built, or a plan file.
        runtime: `tensorrt` or `tensorrt-rtx`.
        device: CUDA device.
        profile: batch sizes; the engine runs its `best` crops a pass. A plan file has its own.
        say: hears why a kept engine is not used, and the progress of a build.
    """

    def __init__(
        self,
        source: Graph | PlanFile,
        *,
        runtime: str = "tensorrt",
        device: str = "cuda",
        profile: Profile | None = None,
        say: Say = lambda text: None,
    ) -> None:
        self._turn = threading.Lock()  # of the one context and its buffers
        trt = load_runtime(runtime)
        capability, name = gpu_here(device)
        self.image_size, self.grid = need_scorer(source.info, "the graph")
        self._names = list(source.info.outputs)
        with torch.cuda.device(device):
            self._log = make_logger(trt)
            self._runtime: tensorrt.Runtime = trt.Runtime(self._log)
            self._engine: tensorrt.ICudaEngine | None = None
            if isinstance(source, PlanFile):
                built = source.plan
                check_plan(built.key, f"{runtime}-{trt.__version__}", capability, name)
            else:
                shapes = profile or Profile.parse("throughput")
                built = cached_plan(source, runtime, shapes, device=device, say=say, check=self._load)
            self.info, self.precision, self.device = source.info.model, source.info.precision, device
            self.name, self.batch_size = built.key["runtime"], Profile.parse(built.key["profile"]).best
            engine = self._load(built.plan) if self._engine is None else self._engine  # a kept one is loaded already
            self._kernels = _KernelCache(built.key)
            context = self._kernels.context(engine)
            if context is None:
                raise EngineError(f"{self.name} has no memory for batches of {self.batch_size}: {self._log.said()}")
            self._context: tensorrt.IExecutionContext | None = context
            self._allocate(context)

    def _load(self, plan: bytes) -> tensorrt.ICudaEngine:
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"the runtime cannot load the engine: {self._log.said()}; build it again here")
        return self._engine

    def _allocate(self, context: tensorrt.IExecutionContext) -> None:
        shape = (self.batch_size, self.image_size, self.image_size, 3)
        self._stream = torch.cuda.Stream()
        self._staging = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self._input = torch.zeros(shape, dtype=torch.uint8, device="cuda")
        shapes = [array.shape[1:] for array in self._nothing()]
        self._outputs = [torch.empty(self.batch_size, *size, device="cuda") for size in shapes]
        torch.cuda.synchronize()  # the buffers were made on another stream
        context.set_input_shape("crops", shape)
        for tensor, buffer in zip(("crops", *self._names), (self._input, *self._outputs), strict=True):
            context.set_tensor_address(tensor, buffer.data_ptr())

    def warm_up(self) -> None:
        """Run one batch of zeros; TensorRT-RTX compiles its kernels then, and they are kept."""
        super().warm_up()
        self._kernels.save()

    def close(self) -> None:
        """Free the engine and its buffers."""
        self._context = self._engine = None
        self._staging = self._input = torch.empty(0, dtype=torch.uint8)
        self._outputs.clear()

    def _scores(self, batch: Crops) -> list[np.ndarray]:
        if self._context is None:
            raise EngineError("this engine is closed; load it again")
        there = not isinstance(batch, np.ndarray) and batch.is_cuda
        source = torch.as_tensor(batch) if there else self._staging.copy_(torch.as_tensor(batch))
        if there:
            self._stream.wait_stream(torch.cuda.current_stream(source.device))  # which made the batch
        with torch.cuda.stream(self._stream):
            self._input.copy_(source, non_blocking=True)
            done = self._context.execute_async_v3(self._stream.cuda_stream)
            scores = [output.cpu() for output in self._outputs]  # waits for the stream
        if not done:
            raise EngineError(f"{self.name} failed on a batch of {len(batch)}: {self._log.said()}")
        return [array.numpy() for array in scores]


def read_plan(path: Path) -> PlanFile:
    """Read `detector.plan` with the `detector.json` beside it.

    Raises:
        CheckpointError: one of them is missing or damaged, or they do not belong together.
    """
    facts = read_facts(path)
    try:
        key = {name: facts[name] for name in ("onnx_sha256", "runtime", "gpu", "precision", "profile")}
        info = parse_info(json.dumps(facts["info"]), str(path))
    except KeyError as error:
        raise CheckpointError(f"the description beside {path} is of no engine: it lacks {error}") from error
    return PlanFile(Plan(path.read_bytes(), key), info)


def check_plan(key: dict[str, str], runtime: str, capability: str, gpu: str) -> None:
    """Raise EngineError unless an engine was built with this runtime and for this GPU."""
    wanted = capability if runtime.startswith("tensorrt-rtx") else f"{gpu} {capability}"
    for what, got, here in (("runtime", key["runtime"], runtime), ("GPU", key["gpu"], wanted)):
        if got != here:
            raise EngineError(f"the engine was built for the {what} {got}, here is {here}; export it again here")


class _KernelCache:
    """The kernels that TensorRT-RTX compiles on the device, kept between runs; TensorRT has none."""

    def __init__(self, key: dict[str, str]) -> None:
        self.key = key
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        self.path = cache_folder() / f"kernels-{name}.bin"
        self.cache: Any = None

    def context(self, engine: tensorrt.ICudaEngine) -> tensorrt.IExecutionContext | None:
        """An execution context, with the kernels that are there; None without memory."""
        if not self.key["runtime"].startswith("tensorrt-rtx"):
            return engine.create_execution_context()
        config: Any = engine.create_runtime_config()
        self.cache = config.create_runtime_cache()
        if self.path.exists():
            try:
                self.cache.deserialize(unpack(self.path.read_bytes(), self.key))
            except (EngineError, OSError):
                self.path.unlink(missing_ok=True)  # compiled again, a few seconds
        config.set_runtime_cache(self.cache)
        return engine.create_execution_context(config)

    def save(self) -> None:
        """Keep the kernels compiled so far."""
        if self.cache is not None:
            write_atomic(self.path, pack(bytes(self.cache.serialize()), self.key))
