"""What is in a media file: opened safely, held to limits, every failure mapped to its Reason."""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from fastdetect.errors import MediaError
from fastdetect.reasons import Reason

# Demuxers that read one file and nothing else. Left out on purpose: playlists and joiners (hls, concat, dash,
# sdp), devices, scripts, readers of subtitles and of text (FFmpeg shows a .txt file as video).
_VIDEO_FORMATS = (
    "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,av1,obu,ivf,asf,ogg,mxf,dv,nut,rm,gif,apng,mjpeg,"
    "yuv4mpegpipe,wtv,nsv,gxf,vc1,h263,h261,cavsvideo,avs2,avs3,dirac,mpegtsraw"
)
_AUDIO_FORMATS = "mp3,wav,flac,aac,aiff,caf,ac3,eac3,amr,opus,w64,au,ape,wv,tta,dts"
_IMAGE_FORMATS = (
    "image2,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,ppm_pipe,pgm_pipe,pam_pipe,pbm_pipe,j2k_pipe,jpegls_pipe,"
    "jpegxl_pipe,qoi_pipe,dpx_pipe,exr_pipe,hdr_pipe,psd_pipe,sgi_pipe,sunrast_pipe,pcx_pipe,gif_pipe,dds_pipe,ico"
)
CLOCKED_FORMATS = ("matroska,webm", "flv", "asf", "mov,mp4,m4a,3gp,3g2,mj2")  # declare their length; others guess
_FORMATS = f"{_VIDEO_FORMATS},{_AUDIO_FORMATS},{_IMAGE_FORMATS}"
_STILL_BRANDS = frozenset({"avif", "heic", "heix", "mif1"})  # image files inside an MP4 box structure
_FULL_RANGE = 2  # of FFmpeg's colour ranges
_PLAYLIST_HEADS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"[playlist]", b"v=0\n", b"v=0\r")
_PROBE_PACKETS = 1000  # a stream that shows no frame in its first 1000 packets counts as undecodable


@dataclass(frozen=True)
class Limits:
    """Bounds on what is opened and kept; a file beyond one raises MediaError(TOO_LARGE) that names it.

    Args:
        max_bytes: file size in bytes.
        max_pixels: width x height of one frame.
        max_streams: streams of any kind in the file.
        max_duration_s: declared length in seconds.
        max_frames: frames in the video stream.
        max_kept_bytes: RGB bytes of the frames that one decode call may return.
    """

    max_bytes: int = 16 * 2**30
    max_pixels: int = 2**26
    max_streams: int = 64
    max_duration_s: float = 6 * 3600.0
    max_frames: int = 2_000_000
    max_kept_bytes: int = 2 * 2**30

    def check(self, name: str, got: float, what: str) -> None:
        """Raise MediaError(TOO_LARGE) where `got` is over the limit called `name`."""
        limit = getattr(self, name)
        if got > limit:
            raise MediaError(Reason.TOO_LARGE, f"{what}: {got:,.10g} is over the limit {name} = {limit:,}")


DEFAULT_LIMITS = Limits()

_EXIF_CODECS = ("mjpeg", "png", "webp")
_EXIF_ORIENTATION = 0x0112
_EXIF_ORIENTATIONS = {  # (swap axes, then flip x, flip y) shows it upright
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


@dataclass(frozen=True)
class VideoInfo:
    """What the chosen video stream of a file is; sizes are as displayed, after rotation."""

    path: str
    container: str
    codec: str
    profile: str | None
    pix_fmt: str
    bit_depth: int
    width: int
    height: int
    rotation: int  # degrees clockwise that the stored picture is turned for display: 0, 90, 180, 270
    fps: float | None
    duration_s: float | None  # declared
    start_s: float  # the stream's own first timestamp
    frames: int | None  # declared
    stream_index: int
    video_streams: int
    is_image: bool
    sample_aspect: float = 1.0  # pixel width / height; noted, not applied
    colour_matrix: int = 2  # as in H.273: 1 = BT.709, 5 and 6 = BT.601, 2 = not named
    full_range: bool = False  # 0 to 255 rather than 16 to 235
    interlaced: bool = False
    display_axes: tuple[bool, bool, bool] = (False, False, False)  # swap axes, then flip x, flip y, to show it upright


def check_file(path: str, limits: Limits) -> None:
    """Refuse what is not a readable, non-empty, regular file of permitted size, without opening it for long.

    A FIFO or device is never opened (it could block for ever); playlists are known by their first bytes.
    """
    try:
        status = os.stat(path)
    except PermissionError as error:
        raise MediaError(Reason.NOT_PERMITTED, f"{path!r} cannot be reached: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise MediaError(Reason.NOT_FOUND, f"no such file {path!r}: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "device, pipe or socket"
        raise MediaError(Reason.NOT_PERMITTED, f"{path!r} is a {kind}; only regular files are read")
    limits.check("max_bytes", status.st_size, "file size in bytes")
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except PermissionError as error:
        raise MediaError(Reason.NOT_PERMITTED, f"{path!r} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise MediaError(Reason.DECODE_ERROR, f"{path!r} cannot be read: {error}") from error
    if not head:
        raise MediaError(Reason.DECODE_ERROR, f"{path!r} is empty (0 bytes)")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_PLAYLIST_HEADS):
        raise MediaError(Reason.UNSUPPORTED_CONTAINER, f"{path!r} is a playlist or a text; give the media file itself")


@contextmanager
def open_container(path: str, limits: Limits) -> Iterator[InputContainer]:
    """Open a local media file and nothing that it points to; FFmpeg's errors inside become MediaError."""
    check_file(path, limits)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _FORMATS,
        "pattern_type": "none",  # a file called a%03d.jpg is that file, not a sequence
        "max_streams": str(limits.max_streams),
        "max_pixels": str(limits.max_pixels),
    }
    try:
        container = av.open("file:" + os.path.abspath(path), options=options, metadata_errors="replace")
    except av.error.ArgumentError as error:  # what FFmpeg answers for a format that is not on the list
        raise MediaError(
            Reason.UNSUPPORTED_CONTAINER,
            f"{path!r} is in a container format that is not read: {error.strerror}",
        ) from error
    except (PermissionError, av.error.ProtocolNotFoundError) as error:
        raise MediaError(Reason.NOT_PERMITTED, f"{path!r} may not be opened: {error.strerror}") from error
    except (av.error.FFmpegError, MemoryError, OSError) as error:
        raise MediaError(Reason.DECODE_ERROR, f"{path!r} is not readable media: {error}") from error
    with container:
        try:
            yield container
        except av.error.DecoderNotFoundError as error:
            raise MediaError(Reason.UNSUPPORTED_CODEC, f"{path!r} has no decoder: {error.strerror}") from error
        except (av.error.FFmpegError, MemoryError) as error:
            raise MediaError(Reason.DECODE_ERROR, f"{path!r} cannot be decoded: {error}") from error


@contextmanager
def open_stream(
    path: str, index: int, limits: Limits, threads: int = 1
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and set up the decoder of one of its streams (threads: 0 = one per core)."""
    with open_container(path, limits) as container:
        stream = next((s for s in container.streams.video if s.index == index), None)
        if stream is None:
            raise MediaError(Reason.DECODE_ERROR, f"{path!r} has no video stream {index}; it has changed since")
        set_up_decoder(stream, limits, threads)
        yield container, stream


def tick_seconds(stream: VideoStream) -> float:
    """Length of one unit of the stream's timestamps, in seconds."""
    return float(stream.time_base or 0)


def pick_stream(container: InputContainer, path: str) -> VideoStream:
    """Choose the video stream that a player would show: decodable, default disposition, then the largest."""
    skip = Disposition.attached_pic | Disposition.timed_thumbnails
    moving = [s for s in container.streams.video if not s.disposition & skip]
    if not moving:
        count = len(container.streams)
        raise MediaError(Reason.NO_VIDEO_STREAM, f"none of the {count} stream(s) of {path!r} is video")
    whole = [s for s in moving if not s.disposition & Disposition.dependent]
    if not whole:
        raise MediaError(Reason.UNSUPPORTED_CONTAINER, f"{path!r} is an image cut in tiles, which is not put together")
    decodable = [s for s in whole if s.codec_context is not None]
    if not decodable:
        raise MediaError(Reason.UNSUPPORTED_CODEC, f"FFmpeg {av.ffmpeg_version_info} has no decoder for {path!r}")

    def rank(stream: VideoStream) -> tuple[bool, int]:
        context = stream.codec_context
        return bool(stream.disposition & Disposition.default), context.width * context.height

    return max(decodable, key=rank)


def set_up_decoder(stream: VideoStream, limits: Limits, threads: int = 1) -> None:
    """Bound the pictures that the decoder will allocate and set its threads (0 = one per core)."""
    context = stream.codec_context
    context.options = {"max_pixels": str(limits.max_pixels)}
    context.thread_count = threads
    context.thread_type = "AUTO" if threads != 1 else "SLICE"


def display_axes(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Read the display matrix as (swap axes, then flip x, flip y), to the nearest quarter turn.

    PyAV 18 can crash when a frame whose `side_data` was read is garbage-collected, so only the frames whose angle is
    not zero are asked for their matrix: a picture that is flipped top to bottom and nothing else stays as it is stored.
    """
    turn = quarter_turns(frame)
    if not turn:
        return False, False, False
    try:
        side_data: Any = frame.side_data
        matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), dtype=np.int32)
    except (KeyError, ValueError):  # it cannot list side data that holds EXIF; the angle alone lacks only the mirror
        return turn % 2 == 1, turn in (1, 2), turn in (2, 3)
    a, b, _, c, d = matrix[:5].tolist()
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


def _exif_axes(path: str) -> tuple[bool, bool, bool] | None:
    """The same of an image's EXIF orientation, mirrors too; None where it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:  # reads the header only
                return _EXIF_ORIENTATIONS.get(image.getexif().get(_EXIF_ORIENTATION, 0))
    except Exception:  # no such image, or damaged tags: Pillow's readers have no error in common
        return None


def _turn(axes: tuple[bool, bool, bool]) -> int:
    """Clockwise quarter turns of display axes, a mirror aside."""
    swap, flip_x, flip_y = axes
    if swap:
        return 1 if flip_x else 3
    return 2 if flip_x and flip_y else 0


def quarter_turns(frame: VideoFrame) -> int:
    """Clockwise quarter turns (0 to 3) that the display matrix asks for."""
    try:
        return round(-frame.rotation / 90) % 4
    except ValueError:  # a matrix of zeros has no angle
        return 0


def first_frame(container: InputContainer, stream: VideoStream, path: str) -> VideoFrame:
    """Decode until the stream's first picture comes out; MediaError where none does."""
    problem: Exception | None = None
    for count, packet in enumerate(container.demux(stream)):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            problem, frames = error, []
        if frames:
            return frames[0]
        if count >= _PROBE_PACKETS:
            break
    name = stream.codec_context.name
    if isinstance(problem, av.error.DecoderNotFoundError | av.error.PatchWelcomeError):
        raise MediaError(Reason.UNSUPPORTED_CODEC, f"{path!r}: this kind of {name} is not decoded: {problem}")
    if name == "webp" and _is_animated_webp(path):
        raise MediaError(Reason.UNSUPPORTED_CODEC, f"{path!r} is an animated WebP, which FFmpeg does not decode")
    raise MediaError(Reason.DECODE_ERROR, f"no frame of {path!r} ({name}) decodes: {problem or 'it holds none'}")


def _is_animated_webp(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(21)
    return head[12:16] == b"VP8X" and len(head) == 21 and bool(head[20] & 2)


def _declared_duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration:
        return stream.duration * tick_seconds(stream)
    if not container.duration:
        return None
    duration = container.duration / av.time_base
    # Matroska counts from zero, not from the first frame
    before = max(0.0, (stream.start_time or 0) * tick_seconds(stream)) if "matroska" in container.format.name else 0.0
    return duration - before if before < duration else duration


def _check_hidden_size(path: str, limits: Limits) -> None:
    """Find the size of an image that FFmpeg shows as 0x0, which it does when max_pixels made it refuse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:  # reads the header only
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise MediaError(Reason.TOO_LARGE, f"{path!r} is over the limit max_pixels: {error}") from error
    except Exception:  # no image, in the words of any of Pillow's readers: decoding will say what is wrong
        return
    limits.check("max_pixels", width * height, f"{width}x{height} picture")


def probe(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> VideoInfo:
    """Describe the video stream that would be decoded; its first frame is decoded to be sure that it can be.

    Args:
        path: a local file: a video, or an image, which is a video of one frame.
        limits: bounds; see `Limits`.

    Returns:
        VideoInfo with sizes after rotation.

    Raises:
        MediaError: with the Reason that the result row carries.
    """
    path = os.fsdecode(path)
    with open_container(path, limits) as container:
        limits.check("max_streams", len(container.streams), "number of streams")
        stream = pick_stream(container, path)
        codec = stream.codec_context
        limits.check("max_pixels", codec.width * codec.height, f"{codec.width}x{codec.height} picture")
        if not codec.width:
            _check_hidden_size(path, limits)
        duration = _declared_duration(container, stream)
        if container.format.name in CLOCKED_FORMATS:
            limits.check("max_duration_s", duration or 0.0, "declared duration in seconds")
        limits.check("max_frames", stream.frames, "declared number of frames")
        set_up_decoder(stream, limits)
        frame = first_frame(container, stream, path)
        limits.check("max_pixels", frame.width * frame.height, f"{frame.width}x{frame.height} picture")
        axes = _exif_axes(path) if codec.name in _EXIF_CODECS else None
        axes, turn = (display_axes(frame), quarter_turns(frame)) if axes is None else (axes, _turn(axes))
        swap, _, _ = axes
        name = container.format.name
        rate = stream.average_rate or stream.guessed_rate
        aspect = stream.sample_aspect_ratio
        return VideoInfo(
            path=path,
            container=name,
            codec=codec.name,
            profile=codec.profile,
            pix_fmt=frame.format.name,
            bit_depth=max(c.bits for c in frame.format.components),
            width=frame.height if swap else frame.width,
            height=frame.width if swap else frame.height,
            rotation=90 * turn,
            fps=float(rate) if rate else None,
            duration_s=duration,
            start_s=(stream.start_time or 0) * tick_seconds(stream),
            frames=stream.frames or None,
            stream_index=stream.index,
            video_streams=len(container.streams.video),
            is_image=name.endswith("_pipe")
            or name in ("image2", "ico")
            or container.metadata.get("major_brand") in _STILL_BRANDS,
            sample_aspect=float(aspect) if aspect else 1.0,
            colour_matrix=int(frame.colorspace),
            full_range=int(frame.color_range) == _FULL_RANGE or frame.format.name.startswith("yuvj"),
            interlaced=bool(frame.interlaced_frame),
            display_axes=axes,
        )
