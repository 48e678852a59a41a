"""The preprocess contract: how a face becomes the square picture that the models see."""

from collections.abc import Sequence

import cv2
import numpy as np

from fastdetect.errors import ShapeError

MARGIN = 1.3


def crop_square(box: Sequence[float], margin: float = MARGIN) -> tuple[int, int, int]:
    """Returns (x, y, side): the integer square of the frame that `crop_face` reads; it may overrun the frame.

    side = round(margin * longer box side), at least 1; x and y = round(box centre - side / 2), halves upwards. So the
    crop's centre lies within half a pixel of the box's, and no pixel is interpolated before the resize.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    if not (np.isfinite([x0, y0, x1, y1, margin]).all() and x1 > x0 and y1 > y0 and margin > 0):
        raise ShapeError(f"box {tuple(box)} with margin {margin}; wanted finite x0 < x1, y0 < y1 and margin > 0")
    side = max(1, int(np.floor(margin * max(x1 - x0, y1 - y0) + 0.5)))
    corner = np.floor([(x0 + x1 - side) / 2 + 0.5, (y0 + y1 - side) / 2 + 0.5])
    return int(corner[0]), int(corner[1]), side


def crop_face(frame: np.ndarray, box: Sequence[float], *, size: int, margin: float = MARGIN) -> np.ndarray:
    """Cuts a square around a face and scales it to `size`: the preprocess contract of every shipped model.

    The square is `crop_square(box, margin)`; where it overruns the frame the edge pixels are repeated; it is
    scaled by `cv2.INTER_AREA` where it shrinks and `cv2.INTER_LINEAR` where it grows.

    Args:
        frame: RGB uint8 [H, W, 3].
        box: (x0, y0, x1, y1) in pixels of the frame.
        size: side of the result in pixels.
        margin: side of the square in longer box sides.

    Returns:
        uint8 [size, size, 3], C-contiguous, never a view of the frame.

    Raises:
        ShapeError: the frame, box or size is not as above, or the square lies wholly outside the frame.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ShapeError(f"frame is {frame.dtype} {list(frame.shape)}; wanted RGB uint8 [H, W, 3]")
    square, overrun = visible_square(frame.shape, box, size=size, margin=margin)
    patch = frame[square]
    if any(overrun):
        patch = cv2.copyMakeBorder(patch, *overrun, borderType=cv2.BORDER_REPLICATE)
    side = patch.shape[0]
    if side == size:
        return np.array(patch, order="C")
    return cv2.resize(patch, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


def visible_square(
    shape: Sequence[int], box: Sequence[float], *, size: int, margin: float
) -> tuple[tuple[slice, slice], tuple[int, int, int, int]]:
    """Where a crop's square lies in a frame: its (rows, columns) there, and its pixels past the four edges.

    Args:
        shape: of the frame, height and width first.
        box, size, margin: as of `crop_face`.

    Returns:
        the slices, and how many pixels of the square are missing above, below, on the left and on the right.

    Raises:
        ShapeError: the box or size is not as asked for, or the square lies wholly outside the frame.
    """
    if size < 1:
        raise ShapeError(f"crop size is {size}; wanted at least 1")
    x, y, side = crop_square(box, margin)
    height, width = shape[:2]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    if left >= right or top >= bottom:
        raise ShapeError(f"box {tuple(box)} lies outside the frame of {width}x{height} pixels")
    return (slice(top, bottom), slice(left, right)), (top - y, y + side - bottom, left - x, x + side - right)
