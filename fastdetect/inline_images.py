"""Small pictures as data addresses, for report pages that are one file: face crops and maps of patch scores."""

import base64

import cv2
import numpy as np

from fastdetect.errors import ShapeError

HEAT_MAP = cv2.COLORMAP_INFERNO


def heat_image(patch_scores: np.ndarray, top: float) -> str:
    """A PNG data address of one face's patch scores, one pixel per patch.

    Args:
        patch_scores: float [gh, gw], mean squared residual of each patch, >= 0.
        top: the score that gets the brightest colour, > 0.
    Raises:
        ShapeError: not two-dimensional, or `top` is not positive.
    """
    if patch_scores.ndim != 2 or not top > 0:
        raise ShapeError(f"got patch scores {patch_scores.shape} and top {top}; want [gh, gw] and top > 0")
    levels = np.clip(np.nan_to_num(patch_scores, nan=0.0) / top, 0.0, 1.0)
    # Errors differ by orders of magnitude: on a linear scale all but the worst patch would be black.
    image = cv2.applyColorMap((255 * np.sqrt(levels)).astype(np.uint8), HEAT_MAP)
    return _address("png", image)


def crop_image(crop: np.ndarray, side: int) -> str:
    """A JPEG data address of a face crop, RGB uint8 [S, S, 3], at most `side` pixels wide."""
    if crop.shape[0] > side:
        crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    return _address("jpeg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))


def heat_stops(n: int = 9) -> list[tuple[str, str]]:
    """(offset, colour) of the heat map's legend."""
    colours = cv2.applyColorMap(np.linspace(0, 255, n).astype(np.uint8).reshape(1, n), HEAT_MAP)[0]
    return [(f"{i / (n - 1):.3f}", f"#{r:02x}{g:02x}{b:02x}") for i, (b, g, r) in enumerate(colours.tolist())]


def _address(kind: str, image: np.ndarray) -> str:
    flags = [cv2.IMWRITE_JPEG_QUALITY, 82] if kind == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 9]
    data = cv2.imencode(f".{kind}", image, flags)[1].tobytes()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
