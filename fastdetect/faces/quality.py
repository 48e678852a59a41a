"""Measures of one face in its frame by which screening tells a face it can judge from one it cannot."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fastdetect.faces.crop import crop_face

SIDE = 112


@dataclass(frozen=True)
class FaceQuality:
    """How good a picture of a face is.

    Args:
        face_px: longer side of the box in pixels of the source frame.
        sharpness: variance of the 3x3 Laplacian over the variance of the luma, no unit: 0 for a flat or wholly
            blurred face; contrast and exposure cancel out. See `face_quality` for where it is measured.
        brightness: mean luma in [0, 1], 0 = black.
    """

    face_px: float
    sharpness: float
    brightness: float


def face_quality(frame: np.ndarray, box: Sequence[float]) -> FaceQuality:
    """Measures a face on its box (margin 1) scaled to 112 px, so that figures of large and small faces compare. [ours]

    Args:
        frame: RGB uint8 [H, W, 3].
        box: (x0, y0, x1, y1) in pixels of the frame.

    Raises:
        ShapeError: as `crop_face`.
    """
    luma = cv2.cvtColor(crop_face(frame, box, size=SIDE, margin=1.0), cv2.COLOR_RGB2GRAY).astype(np.float32)
    return quality_of(box, float(luma.var()), float(cv2.Laplacian(luma, cv2.CV_32F).var()), float(luma.mean()))


def quality_of(box: Sequence[float], variance: float, edges: float, mean: float) -> FaceQuality:
    """Returns the measures of a face: of the luma [0, 255] of its box, variance, variance of the Laplacian, mean."""
    # Under one grey level of deviation there is only coding noise, whose Laplacian would read as sharp.
    sharpness = edges / variance if variance > 1 else 0.0
    x0, y0, x1, y1 = (float(v) for v in box)
    return FaceQuality(max(x1 - x0, y1 - y0), sharpness, mean / 255)
