"""Clips whose frames carry their own number, so that a test can see which frames it got."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 96, 64
_BITS = 12  # 6 x 2 blocks of 16 x 32 pixels


def numbered_picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Draw a number as black and white blocks in the top left 96 x 64 pixels of a grey picture."""
    picture = np.full((height, width, 3), 128, dtype=np.uint8)
    for bit in range(_BITS):
        row, column = divmod(bit, 6)
        value = 235 if number >> bit & 1 else 20
        picture[row * 32 : row * 32 + 32, column * 16 : column * 16 + 16] = value
    return picture


def read_number(rgb: np.ndarray) -> int:
    """Read the number back; an unclear block is an error, never a guess."""
    number = 0
    for bit in range(_BITS):
        row, column = divmod(bit, 6)
        level = rgb[row * 32 + 8 : row * 32 + 24, column * 16 + 4 : column * 16 + 12].mean()
        assert abs(level - 128) > 50, f"block {bit} is neither black nor white: {level:.0f}"
        number |= int(level > 128) << bit
    return number


def write_clip(
    path: Path,
    count: int = 50,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    times_ms: Sequence[int] | None = None,
    gop: int = 12,
    bframes: int = 2,
    turn: int = 0,
    mirror: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode numbered frames at 25 a second, or at times_ms; turn is the display matrix in degrees clockwise."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], pix_fmt
        stream.time_base = Fraction(1, 25 if times_ms is None else 1000)
        stream.codec_context.time_base = stream.time_base
        stream.codec_context.gop_size = gop
        if codec not in ("mjpeg", "libvpx", "libvpx-vp9", "libsvtav1", "png"):
            stream.codec_context.max_b_frames = bframes
        stream.codec_context.thread_count = 1
        stream.options = {"sc_threshold": "0", **(options or {})} if codec == "libx264" else options or {}
        if turn or mirror:
            stream.set_display_rotation(-turn, hflip=mirror)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, *size))
            frame.pts = number if times_ms is None else times_ms[number]
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def all_numbers(path: Path) -> list[int]:
    """Numbers of every frame that FFmpeg gives when it is asked for all, in its order."""
    with av.open(str(path)) as container:
        return [read_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
