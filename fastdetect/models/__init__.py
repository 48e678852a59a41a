"""Masked image model, inpainting protocols, two-branch detector and their checkpoints.

The names below are loaded when they are asked for: a run whose engine needs no torch does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdetect.models.detector import DetectorConfig, DetectorOutput, TwoBranchDetector
    from fastdetect.models.inpainting import Inpainted, inpaint
    from fastdetect.models.masked_image_model import MaskedImageModel, MaskedImageModelConfig

__all__ = [
    "DetectorConfig",
    "DetectorOutput",
    "Inpainted",
    "MaskedImageModel",
    "MaskedImageModelConfig",
    "TwoBranchDetector",
    "inpaint",
]
_HOMES = {
    "detector": ("DetectorConfig", "DetectorOutput", "TwoBranchDetector"),
    "inpainting": ("Inpainted", "inpaint"),
    "masked_image_model": ("MaskedImageModel", "MaskedImageModelConfig"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
