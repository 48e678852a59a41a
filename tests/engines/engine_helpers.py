"""Pictures for the tiny detector of the engine tests, and a process to spoil."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

SIDE = 80  # no multiple of the masked image model's 64, so that the area resize is in the graph


def crops(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, which no score is saturated by."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 10, 10, 3), dtype=np.uint8)
    return coarse.repeat(SIDE // 10, 1).repeat(SIDE // 10, 2)


def start_child(work: Callable[[], object]) -> int:
    """Run `work` in a fork (a fresh Python takes seconds to load torch) and return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def on_a_full_disk(work: Callable[[], object], message: Path) -> str:
    """Run `work` where no file can grow over 4 KiB, which a writer sees as a full disk; returns its error."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            work()
        except Exception as error:
            message.write_text(f"{type(error).__name__} {error}")

    os.waitpid(start_child(limited), 0)
    return message.read_text()


def portrait_clip(path: Path, frames: int = 25) -> Path:
    """A second of scikit-image's astronaut, moving a little, 256 x 256, VP9."""
    from skimage.data import astronaut

    picture = astronaut()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.height = stream.width = 256
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "b": "0"}
        for i in range(frames):
            left = 97 + round(6 * np.sin(i / 4))
            rgb = np.ascontiguousarray(picture[2:258, left : left + 256])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path
