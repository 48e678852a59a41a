"""What every inference engine takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastdetect.errors import ShapeError
from fastdetect.models.checkpoint import ModelFolder


@dataclass(frozen=True)
class EngineOutput:
    """Scores of B face crops, float32.

    Attributes:
        logits: [B,2], column 0 = real, 1 = fake; image_logits, residual_logits: the same of each branch.
        patch_scores: [B,gh,gw] reconstruction error of each patch, for heat maps.
    """

    logits: np.ndarray
    image_logits: np.ndarray
    residual_logits: np.ndarray
    patch_scores: np.ndarray


class Engine(Protocol):
    """A model on one runtime, device and precision.

    Attributes:
        name: runtime and version; device; precision: for the result row.
        image_size: side S of the crops in pixels.
        batch_size: crops of one pass of the model; fewer cost as much, because they are padded to it.
        info: the model folder's config: preprocess contract, calibration, id, licence.
    """

    name: str
    device: str
    precision: str
    image_size: int
    batch_size: int
    info: ModelFolder

    def run(self, crops: np.ndarray) -> EngineOutput:
        """Score crops, uint8 RGB [B,S,S,3], B >= 0; a crop's scores do not depend on its batch."""

    def close(self) -> None:
        """Free the runtime; the engine cannot run afterwards."""


def check_crops(crops: np.ndarray, size: int) -> None:
    """Raise ShapeError unless crops are uint8 [B,size,size,3]."""
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
        raise ShapeError(
            f"crops must be uint8 [B,{size},{size},3] (RGB), got {crops.dtype} {list(crops.shape)}; "
            "cut them with fastdetect.faces.crop.crop_face"
        )
