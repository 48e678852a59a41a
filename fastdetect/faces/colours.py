"""Colours by which the tracker tells persons and scenes apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from fastdetect.faces.crop import crop_face

LOOK_MARGINS = (1.0, 2.2)  # the face survives a neighbour in front of the shoulders, hair and collar tell more
LOOK_CELLS, PICTURE_CELLS = 4, 8
SIDE = 32  # pixels a side of what is turned into Lab
SAMPLES = 64  # pixels a side that it is averaged from: taking all of them costs five times


@dataclass(frozen=True)
class FrameColours:
    """Mean Lab colours of cells, L in [0, 100]: of the whole picture and of each face, alone and with hair and collar.

    Args:
        picture: float32 [8, 8, 3].
        faces: float32 [2, 4, 4, 3] each.
    """

    picture: np.ndarray
    faces: list[np.ndarray]


def colours(frames: Sequence[Any], boxes_per_frame: Sequence[Sequence[Sequence[float]]]) -> list[FrameColours]:
    """Measure each frame and the faces in it. [ours]

    Args:
        frames: RGB uint8 [H, W, 3], all numpy or all torch; what is measured of tensors is measured on their device.
        boxes_per_frame: (x0, y0, x1, y1) of each frame's faces, in its pixels.
    """
    if not frames or isinstance(frames[0], np.ndarray):
        return [
            FrameColours(_picture(frame), [_face(frame, box) for box in boxes])
            for frame, boxes in zip(frames, boxes_per_frame, strict=True)
        ]
    from fastdetect.faces.device_colours import device_colours  # takes torch with it

    return device_colours(frames, boxes_per_frame)


def picture_step(shape: Sequence[int]) -> int:
    """Every which pixel of a frame [H, W, 3] is looked at."""
    return max(1, min(shape[:2]) // SAMPLES)


def face_step(box: Sequence[float]) -> int:
    """Every which pixel of the frame is looked at for a face."""
    return max(1, int(max(box[2] - box[0], box[3] - box[1])) // SAMPLES)


def _picture(frame: np.ndarray) -> np.ndarray:
    step = picture_step(frame.shape)
    thinned = np.ascontiguousarray(frame[::step, ::step])
    return _lab(cv2.resize(thinned, (SIDE, SIDE), interpolation=cv2.INTER_AREA), PICTURE_CELLS)


def _face(frame: np.ndarray, box: Sequence[float]) -> np.ndarray:
    step = face_step(box)
    thinned, place = frame[::step, ::step], [v / step for v in box]
    return np.stack([_lab(crop_face(thinned, place, size=SIDE, margin=m), LOOK_CELLS) for m in LOOK_MARGINS])


def _lab(rgb: np.ndarray, cells: int) -> np.ndarray:
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return cv2.resize(lab, (cells, cells), interpolation=cv2.INTER_AREA)
