"""Crops and measures of faces on the device that holds their frames: `crop_face` and `face_quality` in torch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdetect.faces.crop import MARGIN, visible_square
from fastdetect.faces.device import resize
from fastdetect.faces.quality import SIDE, FaceQuality, quality_of

_LUMA = (0.299, 0.587, 0.114)  # OpenCV's RGB to grey


def crop_faces(
    frames: Sequence[Tensor], boxes: Sequence[Sequence[float]], *, size: int, margin: float = MARGIN
) -> Tensor:
    """Cut a square around each face as `crop_face` does; waits for nothing.

    Pixels are OpenCV's or one level beside them.

    Args:
        frames: RGB uint8 [H, W, 3] on one device, one for each box.
        boxes: (x0, y0, x1, y1) in pixels of the frame.
        size, margin: as of `crop_face`.
    Returns:
        uint8 [N, size, size, 3] on the frames' device, N >= 1.
    Raises:
        ShapeError: as `crop_face`.
    """
    crops = []
    for frame, box in zip(frames, boxes, strict=True):
        (rows, columns), overrun = visible_square(frame.shape, box, size=size, margin=margin)
        patch = frame[rows, columns].permute(2, 0, 1)[None].float()
        top, bottom, left, right = overrun
        crops.append(resize(F.pad(patch, (left, right, top, bottom), mode="replicate"), size, size))
    return torch.cat(crops).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def face_qualities(frames: Sequence[Tensor], boxes: Sequence[Sequence[float]]) -> list[FaceQuality]:
    """Measure faces as `face_quality` does, on their device; one small copy to the host.

    Args:
        frames, boxes: as of `crop_faces`.
    """
    colours = crop_faces(frames, boxes, size=SIDE, margin=1.0).float()
    luma = (colours @ colours.new_tensor(_LUMA)).round_()  # [N, SIDE, SIDE]
    ring = F.pad(luma[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    edges = ring[:, :-2, 1:-1] + ring[:, 2:, 1:-1] + ring[:, 1:-1, :-2] + ring[:, 1:-1, 2:] - 4 * luma
    found = [x.flatten(1) for x in (luma, edges)]
    table = torch.stack([*(x.var(1, correction=0) for x in found), found[0].mean(1)], 1).tolist()
    return [quality_of(box, *row) for box, row in zip(boxes, table, strict=True)]
