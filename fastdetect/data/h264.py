"""H.264 as platforms apply it: clips through libx264 and back, as arrays in memory or from file to file."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from fastdetect.errors import MediaError, ShapeError, UsageError
from fastdetect.reasons import Reason
from fastdetect.video.probe import DEFAULT_LIMITS, open_stream, probe

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_FPS = 25  # of arrays, which have no clock: libx264 spends its bits by time
_LIMITED, _BT709 = 1, 1  # FFmpeg's numbers of MPEG range and of the BT.709 matrix


@dataclass(frozen=True)
class H264:
    """How libx264 encodes.

    Args:
        crf: constant rate factor, 0 (lossless but for the chroma) to 51; YouTube and FaceForensics++ c23 lie near 23,
            messengers and c40 near 40.
        preset: one of `PRESETS`; slower ones keep more at the same crf.
        gop: most frames from one keyframe to the next.
    """

    crf: int = 23
    preset: str = "veryfast"
    gop: int = 50

    def __post_init__(self) -> None:
        if not 0 <= self.crf <= 51 or self.preset not in PRESETS or self.gop < 1:
            raise UsageError(f"{self}: wanted crf 0 to 51, gop of at least 1 and a preset of {', '.join(PRESETS)}")

    @classmethod
    def random(cls, generator: torch.Generator, crf: tuple[int, int] = (23, 40)) -> "H264":
        """Draw a crf, evenly from both ends and all between, and a preset and gop as services use them."""

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))

        return cls(draw(*crf), PRESETS[draw(2, 5)], (12, 25, 50, 250)[draw(0, 3)])


def reencode(frames: np.ndarray, settings: H264 = H264()) -> np.ndarray:
    """Encode a clip with libx264 and decode it again, in memory; the same input gives the same output.

    Args:
        frames: RGB uint8 [T,H,W,3], T, H and W at least 1, in order of time, taken as 25 a second.
        settings: how.
    Returns:
        RGB uint8 [T,H,W,3]. Odd sides are encoded with their last row or column repeated.
    Raises:
        ShapeError: another shape or dtype.

    >>> reencode(np.zeros((3, 17, 32, 3), np.uint8)).shape
    (3, 17, 32, 3)
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ShapeError(f"frames are {frames.dtype} {list(frames.shape)}; wanted RGB uint8 [T,H,W,3], none of them 0")
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoder, decoder = _encoder(even.shape[2], even.shape[1], Fraction(_FPS), settings), _decoder()
    back = [frame.to_ndarray(format="rgb24") for frame in _there_and_back(even, encoder, decoder)]
    if len(back) != len(frames):
        raise MediaError(Reason.CRASH, f"libx264 gave back {len(back)} of {len(frames)} frames of {width}x{height}")
    return np.ascontiguousarray(np.stack(back)[:, :height, :width])


def _there_and_back(frames: np.ndarray, encoder: VideoCodecContext, decoder: VideoCodecContext) -> Iterator[VideoFrame]:
    for number, rgb in enumerate([*frames, None]):
        frame = None
        if rgb is not None:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24").reformat(format="yuv420p")
            frame.pts = number
        for packet in encoder.encode(frame):
            yield from decoder.decode(packet)
    yield from decoder.decode(None)


def _decoder() -> VideoCodecContext:
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    return decoder


def _encoder(width: int, height: int, rate: Fraction, settings: H264) -> VideoCodecContext:
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, VideoCodecContext)
    set_up(encoder, width, height, rate, settings)
    encoder.time_base = 1 / rate
    return encoder


def set_up(encoder: VideoCodecContext, width: int, height: int, rate: Fraction, settings: H264) -> None:
    """Prepare an encoder of libx264: what it gives then depends on the frames alone, not on the machine's cores."""
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = width, height, "yuv420p", rate
    encoder.thread_count = 1  # more share the picture out and change the result
    encoder.options = {"crf": str(settings.crf), "preset": settings.preset, "g": str(settings.gop)}
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        # libx264's AVX-512 code reads memory that nobody wrote, and now and then decides by it
        encoder.options |= {"x264-params": "asm=AVX2"}


def transcode(
    source: str | os.PathLike[str], target: str | os.PathLike[str], settings: H264, *, max_seconds: float | None = None
) -> Path:
    """Write every frame of a video to an MP4 as 8-bit 4:2:0 H.264, with its times and turned upright, without sound.

    Frame by frame, so that memory does not grow with the clip. Odd sides lose their last row or column.

    Args:
        source: a local video.
        target: the MP4 to write.
        settings: how.
        max_seconds: only this much of the beginning.
    Raises:
        MediaError: the source cannot be decoded.
    """
    info = probe(source)
    rate = Fraction(info.fps or _FPS).limit_denominator(1001)
    with av.open(os.fspath(target), "w", format="mp4") as out, \
            open_stream(os.fspath(source), info.stream_index, DEFAULT_LIMITS) as (container, stream):  # fmt: skip
        video = out.add_stream("libx264", rate=rate)
        set_up(video.codec_context, info.width & ~1, info.height & ~1, rate, settings)
        context = stream.codec_context
        video.codec_context.colorspace = int(context.colorspace) if not info.rotation else _BT709
        video.codec_context.color_range = _LIMITED
        video.codec_context.time_base = stream.time_base or 1 / rate
        written, last = 0, max_seconds
        for frame in _readable(container, stream):
            if last is not None and frame.time is not None:
                last += frame.time if not written else 0.0
                if frame.time >= last:
                    break
            out.mux(video.encode(_upright(frame, info.rotation, info.width & ~1, info.height & ~1)))
            written += 1
        out.mux(video.encode(None))
    if not written:
        raise MediaError(Reason.DECODE_ERROR, f"{os.fspath(source)!r} has no frame that can be decoded")
    return Path(target)


def _readable(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """All frames but those of damaged packets, which a player skips too."""
    for packet in container.demux(stream):
        with contextlib.suppress(av.FFmpegError):
            yield from packet.decode()


def _upright(frame: VideoFrame, rotation: int, width: int, height: int) -> VideoFrame:
    """The frame as the encoder takes it; only turned ones and those with odd sides go through RGB."""
    if not rotation and (frame.width, frame.height) == (width, height):
        made = frame.reformat(format="yuv420p", dst_color_range="MPEG")
    else:
        rgb: np.ndarray = np.rot90(frame.to_ndarray(format="rgb24"), -rotation // 90)[:height, :width]
        made = VideoFrame.from_ndarray(np.ascontiguousarray(rgb, np.uint8), format="rgb24")
        made = made.reformat(format="yuv420p", dst_colorspace="ITU709" if rotation else None, dst_color_range="MPEG")
    made.pts, made.time_base = frame.pts, frame.time_base
    made.pict_type = PictureType.NONE  # else libx264 makes keyframes where the source has them
    return made
