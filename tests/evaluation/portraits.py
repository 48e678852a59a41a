"""Small clips of one real face, made here, and an index of them."""

import csv
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from fastdetect.evaluation.index import COLUMNS


def write_video(path: Path, picture: np.ndarray, frames: int, *, late: np.ndarray | None = None) -> None:
    """The picture, drifting, as H.264; `late` takes its place in the second half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for i in range(frames):
            shown = late if late is not None and 2 * i >= frames else picture
            view = np.ascontiguousarray(shown[i : i + 256, 128 - i : 384 - i])
            for packet in stream.encode(av.VideoFrame.from_ndarray(view, "rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def tinted(picture: np.ndarray) -> np.ndarray:
    """What stands for a fake: the picture in red."""
    return (picture * np.array([1.0, 0.6, 0.6])).astype(np.uint8)


def write_index(path: Path, rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    return path
