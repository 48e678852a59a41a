"""Inference with OpenVINO on CPUs and Intel's GPUs, and conversion to its format."""

from __future__ import annotations

import io
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdetect.engines.base import Crops, FixedBatchEngine, on_host
from fastdetect.engines.cache import cached
from fastdetect.engines.graph import KEY, Graph, GraphInfo, need_scorer, parse_info, read_facts
from fastdetect.engines.rounding import balanced_bf16
from fastdetect.errors import CheckpointError, EngineError, UsageError
from fastdetect.openvino_runtime import import_openvino, openvino_core

if TYPE_CHECKING:
    from fastdetect.engines.openvino_convert import Converted

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoEngine(FixedBatchEngine):
    """Runs an exported detector.

    Args:
        source: the detector, or its part `verdict`, in fp32: its graph, converted, or an .xml file that
            `fastdetect export` wrote.
        device: `cpu`, or `gpu` for Intel's.
        precision: `fp32`; `bf16` computes everything but shapes in bf16, on CPUs that have it.
        threads: of one run on the CPU.
        batch_size: crops of one pass.
    """

    def __init__(
        self,
        source: Graph | Converted | Path,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self._turn = threading.Lock()  # of the one request
        core = check(device, precision)
        where = device.upper()
        model, info = _read(core, source)
        self.image_size, self.grid = need_scorer(info, "the graph")
        self._outputs = list(info.outputs)
        self.info, self.device, self.precision = info.model, device, precision
        self.name = f"openvino-{import_openvino().__version__.split('-')[0]}"
        self.batch_size = batch_size or 16
        if precision == "bf16":
            _balance(model)
        model.reshape([self.batch_size, self.image_size, self.image_size, 3])
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time
        }
        if where == "CPU":
            options["ENABLE_CPU_PINNING"] = False  # the cores are shared with the processes that decode
        if threads and where == "CPU":
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            if isinstance(source, Graph | Path):
                compiled = core.compile_model(model, where, options)
            else:
                compiled = _kept(core, model, where, options, info)
            self._request: Any = compiled.create_infer_request()
        except RuntimeError as error:
            raise EngineError(f"{self.name} cannot compile the graph for {device}: {_first(error)}") from error

    def close(self) -> None:
        """Free the compiled model."""
        self._request = None

    def _scores(self, batch: Crops) -> list[np.ndarray]:
        if self._request is None:
            raise EngineError("this engine is closed; load it again")
        try:
            found = self._request.infer({"crops": on_host(batch)})
        except RuntimeError as error:
            raise EngineError(f"{self.name} failed on a batch of {len(batch)}: {_first(error)}") from error
        return [np.array(found[name], np.float32) for name in self._outputs]


def _balance(model: Any) -> None:
    """Round the weights of a model's depthwise convolutions, which bf16 would round anyway, see `balanced_bf16`."""
    from openvino import opset13

    for op in model.get_ops():
        if op.get_type_name() != "GroupConvolution":
            continue
        stored = op.input_value(1).get_node()
        if stored.get_type_name() == "Convert":  # an export may keep its weights in fp16
            stored = stored.input_value(0).get_node()
        if stored.get_type_name() == "Constant":
            weights = np.array(stored.data, np.float32)
            groups, channels = weights.shape[:2]
            rounded = balanced_bf16(weights.reshape(groups * channels, -1)).reshape(weights.shape)
            op.input(1).replace_source_output(opset13.constant(rounded).output(0))


def _kept(core: Any, model: Any, where: str, options: dict[str, Any], info: GraphInfo) -> Any:
    """Compile a model once and keep that: a third of the time at the next start."""
    key = {name: str(value) for name, value in options.items()} | {
        "shape": str(model.inputs[0].shape),
        "weights": "balanced" if options["INFERENCE_PRECISION_HINT"] == "bf16" else "as given",
        "info": info.model_dump_json(),
        "openvino": import_openvino().__version__,
        "device": core.get_property(where, "FULL_DEVICE_NAME"),
        "able": " ".join(sorted(core.get_property(where, "OPTIMIZATION_CAPABILITIES"))),
    }

    def build() -> bytes:
        file = io.BytesIO()
        core.compile_model(model, where, options).export_model(file)
        return file.getvalue()

    return core.import_model(io.BytesIO(cached("compiled-openvino", key, build, lambda _: None)), where, options)


def check(device: str, precision: str) -> Any:
    """Return OpenVINO's core.

    Raises:
        MissingDependencyError: it is not installed.
        UsageError: it has no such device, or the device no such precision.
    """
    core = openvino_core()
    have = core.available_devices
    if device.upper() not in have:
        raise UsageError(f"OpenVINO has no device {device!r}; have: {', '.join(have).lower()}")
    able = core.get_property(device.upper(), "OPTIMIZATION_CAPABILITIES")
    if precision not in _HINTS or (precision != "fp32" and precision.upper() not in able):
        raise UsageError(f"OpenVINO on this {device} has no {precision} (has: {', '.join(able)}); use --precision fp32")
    return core


def to_ir(graph: Graph, *, compress: bool) -> tuple[bytes, bytes]:
    """Convert a graph to OpenVINO's files.

    Args:
        compress: store the weights as fp16; they are computed with as the run's precision says.
    Returns:
        (xml, bin), the description inside the xml.
    """
    model, _ = _read(openvino_core(), graph)
    model.set_rt_info(graph.info.model_dump_json(), [KEY, "info"])
    return write_ir(model, compress=compress)


def write_ir(model: Any, *, compress: bool) -> tuple[bytes, bytes]:
    """Return a model of OpenVINO's as its files (xml, bin)."""
    ov = import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        try:
            ov.save_model(model, path, compress_to_fp16=compress)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot write its files to {folder}: {_first(error)}") from error
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _read(core: Any, source: Graph | Converted | Path) -> tuple[Any, GraphInfo]:
    try:
        if isinstance(source, Graph):
            return core.read_model(io.BytesIO(source.onnx)), source.info
        if not isinstance(source, Path):
            return core.read_model(model=source.xml, weights=source.weights), source.info
        if source.with_suffix(".json").is_file():
            read_facts(source)  # OpenVINO reads changed weights without a word
        model = core.read_model(str(source))
    except RuntimeError as error:
        raise CheckpointError(f"OpenVINO cannot read {source}: {_first(error)}") from error
    text = model.get_rt_info([KEY, "info"]).astype(str) if model.has_rt_info([KEY, "info"]) else None
    return model, parse_info(text, str(source))


def _first(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception from")]
    return (lines or [type(error).__name__])[0]
