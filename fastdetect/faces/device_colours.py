"""The tracker's colours in torch, on the device that holds the frames."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdetect.faces.colours import (
    LOOK_CELLS,
    LOOK_MARGINS,
    PICTURE_CELLS,
    SIDE,
    FrameColours,
    face_step,
    picture_step,
)
from fastdetect.faces.device import resize
from fastdetect.faces.device_crop import crop_faces

# sRGB (IEC 61966-2-1) to XYZ over the D65 white, and what CIE Lab makes of it.
_XYZ = (
    (0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754),
)
_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))


def device_colours(
    frames: Sequence[Tensor], boxes_per_frame: Sequence[Sequence[Sequence[float]]]
) -> list[FrameColours]:
    """Measure as `fastdetect.faces.colours.colours` does; one small copy to the host.

    Args:
        frames: uint8 [H, W, 3] on one device, at least one.
        boxes_per_frame: as of `colours`.
    """
    pictures = torch.cat([_small(frame) for frame in frames])
    cells = [_lab(pictures, PICTURE_CELLS).flatten()]
    faces = [(frame, box) for frame, boxes in zip(frames, boxes_per_frame, strict=True) for box in boxes]
    if faces:
        steps = [face_step(box) for _, box in faces]
        thinned = [frame[::step, ::step] for (frame, _), step in zip(faces, steps, strict=True)]
        places = [[v / step for v in box] for (_, box), step in zip(faces, steps, strict=True)]
        cells += [_lab(crop_faces(thinned, places, size=SIDE, margin=m), LOOK_CELLS).flatten() for m in LOOK_MARGINS]
    table = torch.cat(cells).cpu().numpy()
    shown = table[: cells[0].numel()].reshape(len(frames), PICTURE_CELLS, PICTURE_CELLS, 3)
    looks = table[cells[0].numel() :].reshape(len(LOOK_MARGINS), len(faces), LOOK_CELLS, LOOK_CELLS, 3)
    each = iter(looks.swapaxes(0, 1))
    return [
        FrameColours(picture, [next(each) for _ in boxes])
        for picture, boxes in zip(shown, boxes_per_frame, strict=True)
    ]


def _small(frame: Tensor) -> Tensor:
    """The whole frame as uint8 levels, float32 [1, SIDE, SIDE, 3]."""
    step = picture_step(frame.shape)
    thinned = frame[::step, ::step].permute(2, 0, 1)[None].float()
    return resize(thinned, SIDE, SIDE).round_().permute(0, 2, 3, 1)


def _lab(rgb: Tensor, cells: int) -> Tensor:
    """Levels [N, SIDE, SIDE, 3] to mean Lab colours [N, cells, cells, 3]."""
    level = rgb.float() / 255
    linear = torch.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    xyz = linear @ linear.new_tensor(_XYZ).T
    bent = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116)
    lab = bent @ bent.new_tensor(_LAB).T - bent.new_tensor((16.0, 0.0, 0.0))
    return F.avg_pool2d(lab.permute(0, 3, 1, 2), SIDE // cells).permute(0, 2, 3, 1)
