"""A model for OpenVINO, converted from torch once and kept; it needs no ONNX package."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdetect.engines.cache import Say, cached
from fastdetect.engines.graph import PARITY, GraphInfo, Scoring
from fastdetect.engines.kept import graph_key
from fastdetect.engines.openvino_engine import write_ir
from fastdetect.errors import EngineError
from fastdetect.openvino_runtime import import_openvino

if TYPE_CHECKING:
    from fastdetect.engines.export import Traced

_SIZE_BYTES = 8  # of the number that says how long the first file is


@dataclass(frozen=True)
class Converted:
    """A graph that scores faces, in OpenVINO's two files, fp32."""

    xml: bytes
    weights: bytes
    info: GraphInfo


def converted(model: str, say: Say, part: Scoring = "detector") -> Converted:
    """Convert a model, or take what was kept of it.

    Args:
        model: folder, shipped name or Hub id.
        say: hears that it is being made.
        part: of the model.
    Raises:
        MissingDependencyError: OpenVINO is not installed.
        CheckpointError: there is no such model.
        EngineError: it cannot be converted, comes out different, or cannot be kept.
    """
    key = graph_key(model, "fp32", part) | {"openvino": import_openvino().__version__}
    data = cached("openvino", key, lambda: _pack(model, say, part), say)
    file = io.BytesIO(data)
    xml, info = (file.read(int.from_bytes(file.read(_SIZE_BYTES), "big")) for _ in range(2))
    return Converted(xml, file.read(), GraphInfo.model_validate_json(info))


def _pack(model: str, say: Say, part: Scoring) -> bytes:
    import torch

    from fastdetect.engines.export import trace

    ov = import_openvino()
    say(f"converting the {part} of {model} for OpenVINO; this is done once")
    traced = trace(model, part, "fp32")
    (source, dims), *_ = traced.info.inputs.items()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about sizes that an export fixes on purpose
        try:
            graph = ov.convert_model(traced.module, example_input=traced.example)
            graph.reshape([-1, *dims[2:]])
        except Exception as error:  # OpenVINO's own types derive from Exception alone
            raise EngineError(f"OpenVINO cannot convert {model}: {str(error).splitlines()[0]}") from error
    graph.inputs[0].get_tensor().set_names({source})
    for output, name in zip(graph.outputs, traced.info.outputs, strict=True):
        output.get_tensor().set_names({name})
    _check(ov, graph, traced)
    xml, weights = write_ir(graph, compress=False)
    info = traced.info.model_dump_json().encode()
    return b"".join(part for text in (xml, info) for part in (len(text).to_bytes(_SIZE_BYTES, "big"), text)) + weights


def _check(ov: Any, graph: Any, traced: Traced) -> None:
    """Compare it in fp32 with torch, on another batch than it was traced with."""
    import torch

    crops = np.random.default_rng(0).integers(0, 256, (3, *traced.example.shape[1:]), np.uint8)
    got = ov.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([crops])
    with torch.no_grad():
        wanted = traced.module(torch.from_numpy(crops))
    for name, theirs in zip(traced.info.outputs, wanted, strict=True):
        difference = float(np.abs(got[name] - theirs.numpy()).max())
        if not difference <= PARITY:
            raise EngineError(
                f"{name} of OpenVINO's graph differs from torch by {difference:.2g} (allowed: {PARITY:g})"
            )
