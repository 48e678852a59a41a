"""An exported ONNX graph and what it says about itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from fastdetect.errors import CheckpointError, EngineError, UsageError
from fastdetect.models.folder import ModelFolder
from fastdetect.onnx_wire import read_metadata

Part = Literal["detector", "verdict", "masked-image-model", "face-detector"]
Scoring = Literal["detector", "verdict"]
SCORERS = get_args(Scoring)
Stored = Literal["fp32", "fp16", "bf16"]
Quantized = Literal["int8", "fp8"]
KEY = "fastdetect"
OPSET = 20  # of the ONNX graphs that are written
PARITY = 1e-3  # an fp32 graph that differs more from torch is not written


class GraphInfo(BaseModel):
    """What an export carries beside its weights.

    Attributes:
        part: which network; precision: type of its weights and activations (int8, fp8: of those that are quantised).
        inputs, outputs: name -> [dtype, dimension, ...], a str dimension being free.
        values: what the input's numbers are.
        model: config of the model folder: preprocess contract, calibration, id, licence, the weights' SHA-256.
        grid: (rows, columns) of the patch scores, where it has any.
    """

    model_config = ConfigDict(extra="forbid")

    part: Part
    precision: Stored | Quantized
    inputs: dict[str, list[str | int]]
    outputs: dict[str, list[str | int]]
    values: str
    model: ModelFolder
    grid: tuple[int, int] | None = None
    opset: int
    made_with: dict[str, str]

    def metadata(self) -> dict[str, str]:
        """ONNX metadata: all of it as JSON under `fastdetect`, and what others look for by itself."""
        calibration = self.model.calibration or {}
        preprocess = self.model.preprocess
        return {
            KEY: self.model_dump_json(),
            f"{KEY}.part": self.part,
            f"{KEY}.precision": self.precision,
            f"{KEY}.model_id": self.model.model_id,
            f"{KEY}.weights_sha256": self.model.weights_sha256,
            f"{KEY}.calibration_id": str(calibration.get("id", "")),
            f"{KEY}.preprocess": preprocess.model_dump_json() if preprocess else "",
            f"{KEY}.license": self.model.license,
        }


@dataclass(frozen=True)
class Graph:
    """A serialised ONNX model with its description."""

    onnx: bytes
    info: GraphInfo

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the ONNX bytes."""
        return hashlib.sha256(self.onnx).hexdigest()


def read_graph(path: Path) -> Graph:
    """Read an ONNX file that `fastdetect export` wrote.

    Raises:
        CheckpointError: it cannot be read, or does not describe itself.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return Graph(data, parse_info(read_metadata(data, str(path)).get(KEY), str(path)))


def read_facts(path: Path) -> dict[str, Any]:
    """The PART.json beside a file of an export.

    Raises:
        CheckpointError: it is missing or damaged, or the files beside it are not those that it names.
    """
    about = path.with_suffix(".json")
    try:
        facts = json.loads(about.read_text("utf-8"))
        for name, digest in facts["files"].items():
            if hashlib.sha256((path.parent / name).read_bytes()).hexdigest() != digest:
                raise CheckpointError(
                    f"{path.with_name(name)} is not the file that {about.name} describes (SHA-256); export it again"
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} needs the {about.name} that was exported with it ({error!r})") from error
    return facts


def parse_info(text: str | None, source: str) -> GraphInfo:
    """Read the description that an export carries; raises CheckpointError."""
    if not text:
        raise CheckpointError(f"{source} carries no description of fastdetect's; make it with `fastdetect export`")
    try:
        return GraphInfo.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(f"{source}: its description cannot be read: {error.errors()[0]['msg']}") from error


def need_precision(info: GraphInfo, wanted: str, source: str) -> None:
    """Raise UsageError unless an export has the wanted precision; `auto` takes what it has."""
    if wanted not in ("auto", info.precision):
        raise UsageError(f"{source} is {info.precision}, wanted {wanted}; export it so, or leave --precision out")


def need_scorer(info: GraphInfo, source: str) -> tuple[int, tuple[int, int] | None]:
    """(crop side, patch grid) of a graph that scores faces; raises EngineError for another part."""
    if info.part not in SCORERS:
        raise EngineError(f"{source} holds the {info.part}, which scores no faces; export --part detector")
    return int(info.inputs["crops"][2]), info.grid
