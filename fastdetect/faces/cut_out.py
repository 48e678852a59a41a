"""Faces in frames that are cut-out faces, as datasets of face crops have them."""

from collections.abc import Sequence

import cv2
import numpy as np

from fastdetect.faces.centerface import CenterFaceDetector, Face
from fastdetect.faces.tracker import Track

_PAD = 3  # a border of a third of the frame: the detector misses what fills a picture


def cut_out_track(frames: Sequence[np.ndarray], detector: CenterFaceDetector) -> list[Track]:
    """The largest face of each frame, as one track: those who cut the faces out tracked them.

    Args:
        frames: RGB uint8 [H, W, 3], of any sizes.
    Returns:
        one track, whose boxes may overrun the frame as the face does; none where no frame shows a face.
    """
    pads = [max(frame.shape[:2]) // _PAD for frame in frames]
    padded = [cv2.copyMakeBorder(f, n, n, n, n, cv2.BORDER_REPLICATE) for f, n in zip(frames, pads, strict=True)]
    positions, faces = [], []
    for position, (found, pad) in enumerate(zip(detector.detect(padded), pads, strict=True)):
        height, width = frames[position].shape[:2]
        moved = [_moved(face, -pad) for face in found]
        inside = [f for f in moved if f.box[0] < width and f.box[1] < height and f.box[2] > 0 and f.box[3] > 0]
        if inside:
            positions.append(position)
            faces.append(max(inside, key=lambda face: face.side))
    return [Track(0, positions, faces)] if faces else []


def _moved(face: Face, by: float) -> Face:
    left, top, right, bottom = face.box
    return Face((left + by, top + by, right + by, bottom + by), face.score, face.landmarks + np.float32(by))
