"""Inference with ONNX Runtime, on CPU or CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from fastdetect.engines.base import Crops, FixedBatchEngine, on_host
from fastdetect.engines.graph import Graph, need_scorer
from fastdetect.engines.machine import torch_has_gpu
from fastdetect.errors import EngineError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

# CPUs without VNNI add two int8 products in 16 bits, which overflow; this has ONNX Runtime take kernels that do not.
EXACT_INT8 = ("session.x64quantprecision", "1")


class OnnxRuntimeEngine(FixedBatchEngine):
    """Runs an exported detector; on CUDA through onnxruntime-gpu's CUDA provider, never silently on the CPU.

    Args:
        graph: the whole detector or the verdict, fp32 or int8 for the CPU, fp16 too for CUDA.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: of one run on the CPU.
        batch_size: crops of one pass; default 16 on the CPU and 64 on CUDA.
    """

    def __init__(
        self, graph: Graph, *, device: str = "cpu", threads: int | None = None, batch_size: int | None = None
    ) -> None:
        self.image_size, self.grid = need_scorer(graph.info, "the graph")
        self._outputs = list(graph.info.outputs)
        self.precision, self.info, self.device = graph.info.precision, graph.info.model, device
        provider = check(device, self.precision)
        self.name = f"onnxruntime-{ort.__version__}"
        self.batch_size = batch_size or (16 if device == "cpu" else 64)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry(*EXACT_INT8)
        # Threads that wait for work would take it from the processes that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(graph.onnx, options, providers=[provider])
        except Exception as error:  # ONNX Runtime's own types derive from Exception alone
            raise EngineError(f"ONNX Runtime {ort.__version__} cannot load the graph: {_first(error)}") from error
        if provider[0] not in session.get_providers():
            raise EngineError(
                f"ONNX Runtime could not start {provider[0]} (it has {', '.join(session.get_providers())}); check that "
                "its CUDA and cuDNN are installed, or use --engine torch"
            )
        self._session: ort.InferenceSession | None = session

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _scores(self, batch: Crops) -> list[np.ndarray]:
        if self._session is None:
            raise EngineError("this engine is closed; load it again")
        try:
            if isinstance(batch, np.ndarray) or batch.device.type != self.device.partition(":")[0]:
                return list(self._session.run(self._outputs, {"crops": on_host(batch)}))
            return self._run_in_place(self._session, batch)
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on a batch of {len(batch)}: {_first(error)}") from error

    def _run_in_place(self, session: ort.InferenceSession, batch: Tensor) -> list[np.ndarray]:
        """Run crops that are where the model is."""
        binding, shape = session.io_binding(), list(batch.shape)
        binding.bind_input("crops", batch.device.type, batch.device.index or 0, np.uint8, shape, batch.data_ptr())
        for name in self._outputs:
            binding.bind_output(name)  # on the CPU
        if batch.is_cuda:
            import torch

            torch.cuda.current_stream(batch.device).synchronize()  # ONNX Runtime's stream knows nothing of torch's
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()


def best_device() -> str:
    """`cuda` where both ONNX Runtime and torch have it."""
    return "cuda" if "CUDAExecutionProvider" in ort.get_available_providers() and torch_has_gpu() else "cpu"


def check(device: str, precision: str) -> tuple[str, dict[str, str]]:
    """Return the provider of a device with its options.

    Raises:
        UsageError: no such device or precision here.
        MissingDependencyError: this ONNX Runtime has no provider for it.
    """
    kind, _, number = device.partition(":")
    if precision == "fp8":
        raise UsageError("ONNX Runtime does not run fp8 here; it is for --engine tensorrt and tensorrt-rtx")
    if precision == "bf16" or (precision == "fp16" and kind == "cpu"):
        more = ", or --engine torch or openvino for bf16" if kind == "cpu" else " or fp16"
        raise UsageError(f"ONNX Runtime on {device} does not run {precision} here; use --precision fp32{more}")
    if kind == "cpu":
        return "CPUExecutionProvider", {}
    if kind != "cuda":
        raise UsageError(f"ONNX Runtime runs on cpu or cuda here, got device {device!r}")
    have = ort.get_available_providers()
    if "CUDAExecutionProvider" not in have:
        raise MissingDependencyError(
            f"this ONNX Runtime {ort.__version__} has no CUDA provider (has: {', '.join(have)}): "
            "pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    return "CUDAExecutionProvider", {"device_id": number or "0", "use_tf32": "0"}


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
