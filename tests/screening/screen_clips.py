"""Media that the screening tests make for themselves."""

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path, frames: Iterable[np.ndarray], *, fps: int = 25, codec: str = "libx264", kind: str | None = None
) -> Path:
    """Encode RGB frames of one size (even sides) to the container of that kind, else the one the name asks for."""
    with av.open(str(path), "w", format=kind) as container:
        stream = None
        for rgb in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=fps)
                stream.height, stream.width = rgb.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": "18", "g": "10"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")))
        assert stream is not None
        container.mux(stream.encode())
    return path
