"""Decode many clips at once with NVIDIA DALI, on the GPU (NVDEC) or the CPU, to the frames that PyAV would give.

The timeline and the choice of frames are PyAV's; DALI gets the file's bytes and a list of frame numbers. Each batch
has a time limit, and every clip brings a proof: a keyframe that PyAV decoded too. DALI has been seen to put frames of
one clip into another's sequence and to hang on variable frame rates; neither may cost more than a second try.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cv2
import numpy as np

from fastdetect.errors import MediaError, MissingDependencyError
from fastdetect.reasons import Reason
from fastdetect.video.probe import DEFAULT_LIMITS, Limits, VideoInfo, probe
from fastdetect.video.pyav import (
    DecodedClip,
    Frame,
    _check_kept,
    _decode_ranges,
    _falls_short,
    _packet_ranges,
    _read_packets,
    _Timeline,
    _timeline_of,
    _Unsure,
)
from fastdetect.video.sampling import DEFAULT_POLICY, SamplingPolicy, check_max_seconds, pick_frames

PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
INSTALL = "pip install 'fastdetect[gpu]'"
BATCH_FILES = 8
BATCH_BYTES = 2**30  # of frames; a file beyond it is a batch of its own
TIMEOUT_S = 60.0
MAX_FILE_BYTES = 2**29  # files are read whole; DALI counts their bytes in an int

_SKIPPED_FRAMES = 10  # DALI decodes through up to this many unwanted frames before it seeks
# Mean over 16 x 16 cells of |DALI - PyAV|. Same frame: 0.7 to 1.2 on smooth colours, 3.4 on random 8 px blocks;
# the wrong colour matrix: 7.4; another clip: tens.
_PROOF_CELLS, _PROOF_LEVELS = 16, 6.0
_BT709 = 1
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, MemoryError)  # what DALI's C++ exceptions become


def installed() -> str | None:
    """The version of DALI that is installed, without importing it."""
    for package in PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _luma_chroma(red: float, blue: float) -> np.ndarray:
    """The matrix [3, 3] from (Y, Cb, Cr) to (R, G, B) for the luma weights of red and blue."""
    green = 1 - red - blue
    return np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * blue * (1 - blue) / green, -2 * red * (1 - red) / green],
            [1, 2 * (1 - blue), 0],
        ]
    )


# DALI knows the matrix of BT.601 alone. Back to luma and chroma, then forward by BT.709: exact but for rounding and
# for colours that BT.601 clipped. Rows sum to 1, so it holds for both ranges.
_FROM_601_TO_709 = (_luma_chroma(0.2126, 0.0722) @ np.linalg.inv(_luma_chroma(0.299, 0.114))).astype(np.float32)


@dataclass
class _Plan:
    """What to ask of DALI for one clip."""

    info: VideoInfo
    timeline: _Timeline
    chosen: np.ndarray  # [K] positions in the timeline, increasing
    asked: np.ndarray  # chosen and the proof, increasing
    proof: int
    proof_rgb: np.ndarray
    decoded: int  # frames that DALI has to decode for them
    seconds: float

    @property
    def output_bytes(self) -> int:
        return len(self.asked) * self.info.width * self.info.height * 3


def _plan(info: VideoInfo, policy: SamplingPolicy, max_seconds: float | None, limits: Limits) -> _Plan:
    """Choose the frames; MediaError where DALI's frame numbers could differ from ours, or the file is damaged."""
    begin = time.perf_counter()
    packets = _read_packets(info, max_seconds, limits)
    try:
        if os.path.getsize(info.path) > MAX_FILE_BYTES:
            raise _Unsure(f"the file is over {MAX_FILE_BYTES >> 20} MiB, and DALI reads it whole")
        timeline, order = _timeline_of(packets)
        if packets.damaged or (packets.complete and _falls_short(info, len(packets.pts), timeline.end_s)):
            raise _Unsure("it is damaged, and DALI does not tell which pictures are whole")
        if not all(packets.shown) or min(pts for pts in packets.pts if pts is not None) < 0:
            raise _Unsure("it holds packets that are not shown, which DALI counts otherwise")
        chosen = pick_frames(policy, timeline.times_s, timeline.keyframes, timeline.end_s, max_seconds)
        before = np.flatnonzero(timeline.keyframes[: chosen[-1] + 1]) if len(chosen) else chosen
        if not len(before):
            raise _Unsure("no packet is marked as a keyframe")
        proof = int(before[-1])
        _check_kept(len(chosen) + 1, info, limits)
        place = int(order[proof])
        pictures, _ = _decode_ranges(info, packets, [(place, place)], order[[proof]], 1, limits)
    except (_Unsure, OSError) as why:
        raise _refusal(info, str(why)) from why
    asked = np.union1d(chosen, [proof])
    ranges = _packet_ranges(packets, order[asked], _SKIPPED_FRAMES)
    decoded = sum(last - first + 1 for first, last in ranges)
    return _Plan(info, timeline, chosen, asked, proof, pictures[0], decoded, time.perf_counter() - begin)


class DaliDecoder:
    """Decodes clips in batches; build it once and reuse it, also after errors. Not for several threads at once.

    Args:
        device: CUDA device number for NVDEC; None decodes on the CPU (VP8, VP9 and MJPEG only).
        threads: of the CPU decoder, or those that feed NVDEC.
        batch: files per batch.
        timeout_s: wall-clock seconds for one batch.

    Raises:
        MissingDependencyError: DALI is not installed.
    """

    def __init__(
        self, device: int | None = None, *, threads: int = 1, batch: int = BATCH_FILES, timeout_s: float = TIMEOUT_S
    ) -> None:
        found = installed()
        if found is None:
            raise MissingDependencyError(f"decoding with DALI needs {PACKAGES[0]}; {INSTALL}")
        self.name = f"dali-{found}/{'cpu' if device is None else 'nvdec'}"
        self.device, self.threads, self.batch, self.timeout_s = device, threads, batch, timeout_s
        self._pipelines: dict[bool, Any] = {}

    def decode(
        self,
        path: str | os.PathLike[str],
        policy: SamplingPolicy = DEFAULT_POLICY,
        *,
        max_seconds: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
        info: VideoInfo | None = None,
    ) -> DecodedClip:
        """Decode one clip; arguments, result and errors as `fastdetect.video.pyav.decode`.

        Raises:
            MediaError: also for a clip that only PyAV decodes safely (damaged, no usable timestamps).
        """
        clip = self.decode_many([info or probe(path, limits)], policy, max_seconds=max_seconds, limits=limits)[0]
        if isinstance(clip, MediaError):
            raise clip
        return clip

    def decode_many(
        self,
        infos: Sequence[VideoInfo],
        policy: SamplingPolicy = DEFAULT_POLICY,
        *,
        max_seconds: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> list[DecodedClip | MediaError]:
        """Decode many clips of any sizes and frame rates; those of one codec and size go together.

        Args:
            infos: what `probe` said of each file.
            policy: which frames.
            max_seconds: use only this much of each clip's beginning, in seconds.
            limits: bounds; see `Limits`.

        Returns:
            One result per file, in order: the clip, or why it was not decoded. A failed batch is tried again file
            by file, so that a bad one costs itself only.
        """
        check_max_seconds(max_seconds)
        done: dict[int, DecodedClip | MediaError] = {}
        plans: dict[int, _Plan] = {}
        for i, info in enumerate(infos):
            try:
                plans[i] = _plan(info, policy, max_seconds, limits)
            except MediaError as error:
                done[i] = error
        for batch in _batches(plans, self.batch):
            try:
                done.update(zip(batch, self._decode([plans[i] for i in batch]), strict=True))
            except MediaError as error:
                done.update((i, error if len(batch) == 1 else self._alone(plans[i])) for i in batch)
        return [done[i] for i in range(len(infos))]

    def close(self) -> None:
        """Free the pipelines; the decoder can be used again."""
        self._pipelines.clear()

    def _alone(self, plan: _Plan) -> DecodedClip | MediaError:
        try:
            return self._decode([plan])[0]
        except MediaError as error:
            return error

    def _decode(self, plans: Sequence[_Plan]) -> list[DecodedClip | MediaError]:
        """Run one batch; MediaError where it fails as a whole, in the list where one clip is not what it should be."""
        begin = time.perf_counter()
        convert = plans[0].info.colour_matrix == _BT709
        names = ", ".join(repr(plan.info.path) for plan in plans)
        try:
            pipeline = self._pipeline(convert)
            pipeline.feed_input("encoded", [np.fromfile(plan.info.path, dtype=np.uint8) for plan in plans])
            pipeline.feed_input("frames", [plan.asked.astype(np.int32) for plan in plans])
            pipeline.feed_input("number", [np.array([i], dtype=np.int32) for i in range(len(plans))])
            videos, numbers = _within(self.timeout_s, pipeline.run)
            if [int(numbers.at(i)[0]) for i in range(len(numbers))] != list(range(len(plans))):
                raise MediaError(Reason.DECODE_ERROR, f"DALI gave another batch than {names}")
            videos = videos if self.device is None else videos.as_cpu()
            stacks = [np.array(videos.at(i)) for i in range(len(plans))]  # a copy: DALI uses its buffer again
        except (*_FAILURES, OSError, MediaError) as error:
            self._pipelines.pop(convert, None)  # nothing of a failed batch may reach the next one
            if isinstance(error, MediaError):
                raise MediaError(error.reason, f"{error} ({names})") from error
            raise MediaError(Reason.DECODE_ERROR, f"DALI cannot decode {names}: {_last_line(error)}") from error
        each = (time.perf_counter() - begin) / len(plans)
        return [self._clip(plan, stack, each) for plan, stack in zip(plans, stacks, strict=True)]

    def _clip(self, plan: _Plan, stack: np.ndarray, seconds: float) -> DecodedClip | MediaError:
        info = plan.info
        swap, flip_x, flip_y = info.display_axes
        stored = (info.width, info.height) if swap else (info.height, info.width)
        if stack.shape != (len(plan.asked), *stored, 3):
            return _refusal(info, f"DALI gave frames of shape {stack.shape} instead of {stored}")
        if swap:
            stack = stack.transpose(0, 2, 1, 3)
        stack = stack[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]
        pictures = dict(zip(plan.asked.tolist(), stack, strict=True))
        off = _difference(pictures[plan.proof], plan.proof_rgb)
        if off > _PROOF_LEVELS:
            return _refusal(info, f"DALI's frame {plan.proof} is another picture than PyAV's ({off:.0f} levels off)")
        frames = [
            Frame(
                i, float(plan.timeline.times_s[i]), np.ascontiguousarray(pictures[i]), bool(plan.timeline.keyframes[i])
            )
            for i in plan.chosen.tolist()
        ]
        return DecodedClip(info, frames, [], self.name, plan.decoded, "frame-list", plan.seconds + seconds)

    def _pipeline(self, convert: bool) -> Any:
        if convert not in self._pipelines:
            self._pipelines[convert] = _build(self.device, self.threads, self.batch, convert)
        return self._pipelines[convert]


def _build(device: int | None, threads: int, batch: int, convert: bool) -> Any:
    """A pipeline from bytes and frame numbers to RGB [F, H, W, 3]; convert: from BT.601's matrix to BT.709's."""
    from nvidia.dali import Pipeline, fn
    from nvidia.dali.types import DALIDataType

    pipeline = Pipeline(
        batch_size=batch, num_threads=threads, device_id=device, prefetch_queue_depth=1, exec_dynamic=True
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=DALIDataType.UINT8, ndim=1)
        frames = fn.external_source(name="frames", dtype=DALIDataType.INT32, ndim=1)
        number = fn.external_source(name="number", dtype=DALIDataType.INT32, ndim=1)
        # 'none': a frame past the end is an error, where the default pads with black
        # not affine: every process would tie its thread to the same core
        kind = "cpu" if device is None else "mixed"
        video = fn.decoders.video(encoded, frames=frames, pad_mode="none", device=kind, affine=False)
        if convert:
            video = fn.coord_transform(video, M=_FROM_601_TO_709.ravel().tolist(), dtype=DALIDataType.UINT8)
        pipeline.set_outputs(video, number)
    pipeline.build()
    return pipeline


def _batches(plans: dict[int, _Plan], most: int) -> Iterator[list[int]]:
    """Group clips: one colour matrix per batch, same codec and size next to each other, bounded memory."""

    def kind(i: int) -> tuple[bool, str, int, int]:
        info = plans[i].info
        return info.colour_matrix == _BT709, info.codec, info.width, info.height

    batch: list[int] = []
    size = 0
    for i in sorted(plans, key=kind):
        more = plans[i].output_bytes
        if batch and (len(batch) == most or size + more > BATCH_BYTES or kind(i)[0] != kind(batch[0])[0]):
            yield batch
            batch, size = [], 0
        batch.append(i)
        size += more
    if batch:
        yield batch


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Call with a time limit; a call that does not end is left behind in a daemon thread."""
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=work, name="fastdetect-dali", daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise MediaError(Reason.TIMEOUT, f"DALI took longer than {seconds:g} s") from None
    if error is not None:
        raise error
    return answer


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of two pictures [H, W, 3] in levels, seen so coarsely that the kind of chroma filter is lost."""
    cells = (_PROOF_CELLS, _PROOF_CELLS)
    small = [cv2.resize(np.ascontiguousarray(x), cells, interpolation=cv2.INTER_AREA).astype(int) for x in (a, b)]
    return float(np.abs(small[0] - small[1]).mean())


def _refusal(info: VideoInfo, why: str) -> MediaError:
    return MediaError(Reason.DECODE_ERROR, f"{info.path!r} is not for DALI: {why}")


def _last_line(error: BaseException) -> str:
    """What went wrong, out of DALI's message of a page."""
    text = str(error).split("C++ context")[0].split("encountered:")[-1]
    return " ".join(text.split())[:300] or type(error).__name__
