"""Detectors out of the .pt2 files that `fastdetect export --to torch` writes, read as data: nothing in them is run."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from fastdetect.engines.graph import KEY, GraphInfo, need_scorer, parse_info
from fastdetect.engines.scorer import FaceScorer, VerdictScorer
from fastdetect.engines.torch_engine import prepare
from fastdetect.errors import CheckpointError
from fastdetect.models.checkpoint import load_state
from fastdetect.models.detector import DetectorConfig, TwoBranchDetector
from fastdetect.models.folder import first_problem

# By their numbers in torch.export's files.
_TYPES = {5: torch.int64, 6: torch.float16, 7: torch.float32, 13: torch.bfloat16}


def read_detector(path: Path) -> tuple[TwoBranchDetector, GraphInfo]:
    """Read an export of the part `detector` or `verdict`, for a `TorchEngine` of the export's precision.

    `torch.export.load` would run what the file says: it unpickles, and evaluates guards and sizes as Python. So the
    weights are taken out of the archive and put into the network that the description names, and the program in the
    file, which the export held to that network, is left to others.

    Returns:
        (detector in fp32, description); what the part `verdict` does not need is not filled.
    Raises:
        CheckpointError: the file cannot be read, is not such an export, or its weights do not fit.
        EngineError: it holds another part.
    """
    weights, info = _read(path)
    need_scorer(info, str(path))
    try:
        config = DetectorConfig.model_validate(info.model.architecture)
    except ValidationError as error:
        raise CheckpointError(f"{path}: architecture: {first_problem(error)}") from error
    detector = prepare(TwoBranchDetector(config), torch.device("cpu"), "fp32")  # as it was exported, batch norms folded
    if info.part == "detector":
        load_state(FaceScorer(detector), weights, str(path))
    else:
        scorer = VerdictScorer(detector.decide_by_image())
        load_state(scorer, weights, str(path))
        detector.head.weight[:, : detector.image_branch.features] = scorer.head.weight
        detector.head.bias.copy_(scorer.head.bias)
    detector.info = info.model
    return detector, info


def _read(path: Path) -> tuple[dict[str, Tensor], GraphInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = names[0].partition("/")[0] if names else ""
            about = f"{root}/extra/{KEY}.json"
            info = parse_info(archive.read(about).decode() if about in names else None, str(path))
            stored = json.loads(archive.read(f"{root}/data/weights/model_weights_config.json"))["config"]
            return {name: _tensor(archive, root, entry) for name, entry in stored.items()}, info
    except (OSError, zipfile.BadZipFile, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no archive of torch.export, or not all of one ({error})") from error


def _tensor(archive: zipfile.ZipFile, root: str, entry: dict[str, Any]) -> Tensor:
    """One weight: bytes, and how it lies in them; a pickled one has no such description."""
    meta = entry["tensor_meta"]
    data = bytearray(archive.read(f"{root}/data/weights/{entry['path_name']}"))
    size, strides = ([side["as_int"] for side in meta[which]] for which in ("sizes", "strides"))
    offset = meta["storage_offset"]["as_int"]
    return torch.frombuffer(data, dtype=_TYPES[meta["dtype"]]).as_strided(size, strides, offset)
