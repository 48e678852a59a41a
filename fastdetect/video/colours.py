"""Colour matrices and ranges: from luma and chroma to the RGB that PyAV would show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

BT709 = 1  # H.273's number; the others are taken for BT.601, also where a stream names none, as in FFmpeg


def luma_chroma(matrix: int) -> np.ndarray:
    """The matrix [3, 3] from (Y, Cb, Cr), chroma around 0, to (R, G, B), all of the full range."""
    red, blue = (0.2126, 0.0722) if matrix == BT709 else (0.299, 0.114)  # weights in the luma
    green = 1 - red - blue
    return np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * blue * (1 - blue) / green, -2 * red * (1 - red) / green],
            [1, 2 * (1 - blue), 0],
        ]
    )


# RGB by BT.601's matrix to what BT.709's gives: exact but for rounding and for colours that BT.601 clipped. Rows sum to
# 1, so it holds for both ranges.
FROM_601_TO_709 = luma_chroma(BT709) @ np.linalg.inv(luma_chroma(6))


def nv12_to_rgb(frames: Tensor, matrix: int, full_range: bool) -> Tensor:
    """Convert what video decoders on GPUs give; a chroma sample stands for its 2 x 2 pixels, as in FFmpeg's fast path.

    Args:
        frames: uint8 [F, H * 3 / 2, W]: H rows of luma, then H / 2 of Cb and Cr in turns; H and W even.
        matrix: H.273's number.
        full_range: luma and chroma have 0 to 255 rather than 16 to 235 and 240.
    Returns:
        uint8 [F, H, W, 3] on the same device; off from FFmpeg's fixed point by two levels at most.
    """
    import torch

    height, width = frames.shape[1] * 2 // 3, frames.shape[2]
    weights = torch.tensor(luma_chroma(matrix).T, dtype=torch.float32, device=frames.device)
    offset, luma, chroma = (0, 1.0, 1.0) if full_range else (16, 255 / 219, 255 / 224)
    out = torch.empty(len(frames), height, width, 3, dtype=torch.uint8, device=frames.device)
    for picture, target in zip(frames, out, strict=True):  # one at a time: floats take twelve bytes a pixel
        y = (picture[:height, :, None].float() - offset) * luma
        samples = (picture[height:].float() - 128) * chroma
        samples = samples.view(height // 2, 1, width // 2, 1, 2).expand(-1, 2, -1, 2, -1)
        rgb = torch.cat([y, samples.reshape(height, width, 2)], 2) @ weights
        target.copy_(rgb.floor_().clamp_(0, 255))  # FFmpeg's tables cut off, too
    return out
