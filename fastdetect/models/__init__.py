"""Masked image model, inpainting protocols, two-branch detector and their checkpoints."""

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
