"""Which decoder a file goes to: NVDEC through DALI or PyNvVideoCodec, DALI on the CPU, or PyAV, the last resort."""

import ctypes
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from fastdetect.errors import MediaError, MissingDependencyError, UsageError
from fastdetect.reasons import Reason
from fastdetect.video import nvcodec, pyav
from fastdetect.video.batch import BatchDecoder, Source
from fastdetect.video.dali import DaliDecoder, installed, lack
from fastdetect.video.planned import BATCH_FILES, TIMEOUT_S, PlannedDecoder
from fastdetect.video.probe import DEFAULT_LIMITS, Limits, VideoInfo, probe
from fastdetect.video.pyav import DecodedClip
from fastdetect.video.sampling import DEFAULT_POLICY, SamplingPolicy, check_max_seconds

DecoderName = Literal["auto", "dali", "nvcodec", "pyav"]
Lane = Literal["nvdec", "nvcodec", "dali-cpu", "pyav"]

# The codec matrix. NVDEC: the longest side that every generation from Turing on takes.
NVDEC_SIDES = {"h264": 4096, "hevc": 8192, "vp8": 4096, "vp9": 8192, "av1": 8192, "mpeg4": 1920}
NVDEC_SMALLEST = 144  # HEVC's minimum, the largest of the codecs'
DALI_CPU_CODECS = ("vp8", "vp9", "mjpeg")  # the others left DALI's CPU build after 2.1
_AV1_SINCE = ((8, 6), (8, 7), (8, 9))  # Ampere but A100, Ada; then everything from Blackwell on; Hopper lacks it
_AV1_FROM = (10, 0)
_MATRICES = {1: "BT.709", 2: "not named", 5: "BT.601", 6: "BT.601"}  # what the lanes bring to the same RGB
_NAMES = {"libdav1d": "av1", "libaom-av1": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9"}
_PLANES = ("yuv420p", "yuvj420p")
_CU_MAJOR, _CU_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Machine:
    """What there is to decode with.

    Args:
        dali: its version; None where it is not installed.
        nvdec: the compute capability of the GPU whose video decoder can be used; None without one.
        nvcodec: the version of PyNvVideoCodec; None where it is not installed.
    """

    dali: str | None = None
    nvdec: tuple[int, int] | None = None
    nvcodec: str | None = None


@functools.cache
def this_machine(device: int | None = 0) -> Machine:
    """Look at this machine, once, and at the GPU of this number (None: at none); nothing is allocated there."""
    return Machine(installed(), None if device is None else nvdec(device), nvcodec.installed())


def nvdec(number: int) -> tuple[int, int] | None:
    """The compute capability of a GPU with a usable video decoder; None without GPU, driver or libnvcuvid."""
    try:
        ctypes.CDLL("libnvcuvid.so.1")
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    calls = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), number),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), _CU_MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CU_MINOR, device),
    )
    return None if any(call() for call in calls) else (major.value, minor.value)


@dataclass(frozen=True)
class Choice:
    """The lane of a file, and why it is not a faster one (empty where there is none)."""

    lane: Lane
    why: str = ""


def choose(info: VideoInfo, wanted: DecoderName = "auto", machine: Machine | None = None) -> Choice:
    """Choose the lane of a file by the codec matrix.

    `auto` uses NVDEC where it can, through DALI or else PyNvVideoCodec, and PyAV otherwise: DALI's CPU decoder is the
    same FFmpeg with less of it, so it is used only where `dali` asks for DALI.

    Args:
        info: what `probe` said of the file.
        wanted: 'auto', 'dali', 'nvcodec' or 'pyav'.
        machine: what there is to decode with; this machine by default.

    Returns:
        Choice: the lane, and why not NVDEC (`auto`, where there is one) or not DALI (`dali`).
    """
    if wanted == "pyav":
        return Choice("pyav")
    machine = machine or this_machine()
    codec = _NAMES.get(info.codec, info.codec)
    unfit = _unfit(info)
    gpu = unfit or _unfit_for_nvdec(info, codec, machine)
    if wanted == "nvcodec" or (wanted == "auto" and machine.dali is None and machine.nvcodec):
        return Choice("pyav", gpu if machine.nvdec or wanted == "nvcodec" else "") if gpu else Choice("nvcodec")
    if machine.dali is None:
        unfit = gpu = lack()
    if not gpu:
        return Choice("nvdec")
    if wanted == "auto":
        return Choice("pyav", gpu if machine.nvdec else "")
    cpu = unfit or ("" if codec in DALI_CPU_CODECS else f"DALI's CPU decoder has no {codec}")
    if not cpu:
        return Choice("dali-cpu", gpu)
    return Choice("pyav", unfit or f"{gpu}; {cpu}")


def _unfit(info: VideoInfo) -> str:
    if info.is_image:
        return "it is an image"
    if info.pix_fmt not in _PLANES:
        return f"its pixels are {info.pix_fmt}; DALI gets 8-bit 4:2:0 only"
    if info.colour_matrix not in _MATRICES:
        return f"its colour matrix is number {info.colour_matrix} of H.273; only BT.601 and BT.709 are alike in DALI"
    if info.video_streams > 1:
        return f"it has {info.video_streams} video streams, and DALI may show another than a player does"
    return ""


def _unfit_for_nvdec(info: VideoInfo, codec: str, machine: Machine) -> str:
    if machine.nvdec is None:
        return "there is no NVDEC here"
    if codec not in NVDEC_SIDES:
        return f"NVDEC has no {codec}"
    if codec == "av1" and machine.nvdec not in _AV1_SINCE and machine.nvdec < _AV1_FROM:
        return f"NVDEC of compute capability {machine.nvdec[0]}.{machine.nvdec[1]} has no AV1"
    if max(info.width, info.height) > NVDEC_SIDES[codec]:
        return f"{info.width}x{info.height} is over NVDEC's {NVDEC_SIDES[codec]} for {codec}"
    if min(info.width, info.height) < NVDEC_SMALLEST:
        return f"{info.width}x{info.height} is under {NVDEC_SMALLEST}, the smallest side that every NVDEC takes"
    if info.width % 2 or info.height % 2:
        return f"{info.width}x{info.height} is odd, and DALI's GPU conversion works on 2 x 2 pixels"
    if info.interlaced:
        return "it is interlaced, and NVDEC would mix its fields"
    return ""


class Decoder(BatchDecoder):
    """Decodes files by their lanes and falls back to PyAV per file; keep it, its pipelines are reused.

    Args:
        wanted: 'auto', 'dali', 'nvcodec' or 'pyav', see `choose`.
        device: number of the GPU whose NVDEC may be used; None uses none.
        threads: decoder threads.
        batch: files that DALI gets at once.
        timeout_s: wall-clock seconds for a batch outside PyAV, after which its files go there.
        machine: what there is to decode with; this machine by default.
        keep: leave frames where they were decoded, see `PlannedDecoder`.

    Raises:
        UsageError: for another name.
        MissingDependencyError: 'dali' without DALI, 'nvcodec' without PyNvVideoCodec or NVDEC.
    """

    def __init__(
        self,
        wanted: DecoderName = "auto",
        *,
        device: int | None = 0,
        threads: int = 1,
        batch: int = BATCH_FILES,
        timeout_s: float = TIMEOUT_S,
        machine: Machine | None = None,
        keep: bool = False,
    ) -> None:
        self.machine = machine or this_machine(device)
        check_decoder(wanted, self.machine)
        self.device, self.keep = device, keep
        self.wanted, self.threads, self.batch, self.timeout_s = wanted, threads, batch, timeout_s
        self._others: dict[Lane, PlannedDecoder] = {}

    def decode_many(
        self,
        sources: Sequence[Source],
        policy: SamplingPolicy = DEFAULT_POLICY,
        *,
        max_seconds: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> list[DecodedClip | MediaError]:
        """Decode many files, see `BatchDecoder`; a clip's `note` says why no faster lane was used."""
        check_max_seconds(max_seconds)
        done: list[DecodedClip | MediaError | None] = [None] * len(sources)
        infos: dict[int, VideoInfo] = {}
        lanes: dict[Lane, list[int]] = {lane: [] for lane in get_args(Lane)}
        notes: dict[int, str] = {}
        for i, source in enumerate(sources):
            try:
                infos[i] = source if isinstance(source, VideoInfo) else probe(source, limits)
            except MediaError as error:
                done[i] = error
                continue
            choice = choose(infos[i], self.wanted, self.machine)
            lanes[choice.lane].append(i)
            notes[i] = choice.why
        for lane in get_args(Lane):
            if lane == "pyav" or not lanes[lane]:
                continue
            clips = self._try(lane, [infos[i] for i in lanes[lane]], policy, max_seconds, limits)
            for i, clip in zip(lanes[lane], clips, strict=True):
                if isinstance(clip, MediaError):
                    lanes["pyav"].append(i)
                    notes[i] = str(clip)
                else:
                    done[i] = clip
        for i in lanes["pyav"]:
            try:
                clip = pyav.decode(
                    infos[i].path, policy, max_seconds=max_seconds, threads=self.threads, limits=limits, info=infos[i]
                )
                done[i] = replace(clip, note=notes[i])
            except MediaError as error:
                done[i] = error
        return [clip for clip in done if clip is not None]

    def close(self) -> None:
        """Free what the decoders hold."""
        for decoder in self._others.values():
            decoder.close()

    def _try(
        self, lane: Lane, infos: list[VideoInfo], policy: SamplingPolicy, max_seconds: float | None, limits: Limits
    ) -> list[DecodedClip | MediaError]:
        try:
            return self._other(lane).decode_many(infos, policy, max_seconds=max_seconds, limits=limits)
        except (MissingDependencyError, RuntimeError) as error:  # a library without its driver
            return [MediaError(Reason.DECODE_ERROR, str(error)) for _ in infos]

    def _other(self, lane: Lane) -> PlannedDecoder:
        if lane not in self._others:
            options: dict[str, Any] = {"batch": self.batch, "timeout_s": self.timeout_s, "keep": self.keep}
            if lane == "nvcodec":
                self._others[lane] = nvcodec.NvCodecDecoder(self.device or 0, **options)
            else:
                device = self.device if lane == "nvdec" else None
                self._others[lane] = DaliDecoder(device, threads=self.threads, **options)
        return self._others[lane]


@contextmanager
def in_memory(data: bytes) -> Iterator[str]:
    """Give bytes a path while the block lasts, for every function here that takes a file; nothing is written to disk.

    Example:
        >>> with in_memory(b"...") as path:  # doctest: +SKIP
        ...     clip = decoder.decode(path)
    """
    number = os.memfd_create("clip")
    with os.fdopen(number, "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{number}"


def check_decoder(wanted: str, machine: Machine | None = None) -> None:
    """Refuse a decoder that cannot be had on a machine at all.

    Raises:
        UsageError: for a name that is none of auto, dali, nvcodec, pyav.
        MissingDependencyError: 'dali' without DALI, 'nvcodec' without PyNvVideoCodec or NVDEC.
    """
    if wanted not in get_args(DecoderName):
        raise UsageError(f"unknown decoder {wanted!r}; use one of {', '.join(get_args(DecoderName))}")
    machine = machine or this_machine()
    if wanted == "nvcodec" and (machine.nvcodec is None or machine.nvdec is None):
        gpu = "a GPU with a video decoder, and its driver's libnvcuvid (containers: NVIDIA_DRIVER_CAPABILITIES=video)"
        needs = gpu if machine.nvcodec else f"{nvcodec.PACKAGE}; {nvcodec.INSTALL}"
        raise MissingDependencyError(f"--decoder nvcodec needs {needs}, or use --decoder auto")
    if wanted == "dali" and machine.dali is None:
        raise MissingDependencyError(f"--decoder dali: {lack()}, or use --decoder auto")
