"""Decoders that get a list of frame numbers: PyAV's timeline and choice of frames, another library's pictures.

Every clip brings a proof: a keyframe that PyAV decoded too. A wrong clip, stream, colour matrix, range or size is found
out by it, and costs a second try.
"""

import os
import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from fastdetect.errors import MediaError
from fastdetect.reasons import Reason
from fastdetect.video.batch import BatchDecoder, Source
from fastdetect.video.colours import BT709, FROM_601_TO_709
from fastdetect.video.probe import DEFAULT_LIMITS, Limits, VideoInfo, probe
from fastdetect.video.pyav import (
    DecodedClip,
    Frame,
    _check_kept,
    _decode_ranges,
    _falls_short,
    _fewer_than_declared,
    _packet_ranges,
    _read_packets,
    _Timeline,
    _timeline_of,
    _Unsure,
)
from fastdetect.video.sampling import DEFAULT_POLICY, SamplingPolicy, check_max_seconds, pick_frames

BATCH_FILES = 8
BATCH_BYTES = 2**30  # of frames; a file beyond it is a batch of its own
TIMEOUT_S = 60.0
MAX_FILE_BYTES = 2**29  # DALI reads files whole and counts their bytes in an int

_SKIPPED_FRAMES = 10  # DALI decodes through up to this many unwanted frames before it seeks
# Mean over 16 x 16 cells of |theirs - PyAV|. Same frame: 0.7 to 1.2 on smooth colours, 3.4 on random 8 px blocks;
# another clip: tens.
_PROOF_CELLS, _PROOF_LEVELS = 16, 6.0
# A wrong colour matrix is 1.4 in the median of real videos, too little for that limit and up to 0.06 of a score. But it
# explains what it did: with it, what is left of the difference is less than this share. Where there is no colour, it
# changes nothing.
_CONFUSED_SHARE, _CONFUSED_LEVELS = 0.7, 0.3
_CONFUSIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "by BT.709's matrix, not BT.601's": lambda rgb: rgb @ FROM_601_TO_709.T,
    "by BT.601's matrix, not BT.709's": lambda rgb: rgb @ np.linalg.inv(FROM_601_TO_709).T,
    "with the narrow range taken for the full one": lambda rgb: rgb * (219 / 255) + 16,
    "with the full range taken for the narrow one": lambda rgb: ((rgb - 16) * (255 / 219)).clip(0, 255),
}


@dataclass
class Plan:
    """What to ask for one clip."""

    info: VideoInfo
    timeline: _Timeline
    chosen: np.ndarray  # [K] positions in the timeline, increasing
    asked: np.ndarray  # chosen and the proof, increasing
    proof: int
    proof_rgb: np.ndarray
    decoded: int  # frames that have to be decoded for them
    seconds: float

    @property
    def output_bytes(self) -> int:
        return len(self.asked) * self.info.width * self.info.height * 3


def plan_clip(info: VideoInfo, policy: SamplingPolicy, max_seconds: float | None, limits: Limits) -> Plan:
    """Choose the frames; MediaError where others may count frames otherwise, or the file is damaged."""
    begin = time.perf_counter()
    packets = _read_packets(info, max_seconds, limits)
    try:
        if os.path.getsize(info.path) > MAX_FILE_BYTES:
            raise _Unsure(f"the file is over {MAX_FILE_BYTES >> 20} MiB, and may be read whole")
        timeline, order = _timeline_of(packets)
        if packets.damaged or (packets.complete and _falls_short(info, len(packets.pts), timeline.end_s)):
            raise _Unsure("it is damaged, and only PyAV tells which pictures are whole")
        if not all(packets.shown) or min(pts for pts in packets.pts if pts is not None) < 0:
            raise _Unsure("it holds packets that are not shown, which others count otherwise")
        if packets.complete and _fewer_than_declared(info, len(packets.pts)):
            raise _Unsure("its edit list leaves frames out, which others may count")
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
    return Plan(info, timeline, chosen, asked, proof, pictures[0], decoded, time.perf_counter() - begin)


class PlannedDecoder(BatchDecoder):
    """Decodes planned clips in batches; not for several threads at once.

    Attributes:
        name: library, version and device, for the result row; title: the library alone.
        batch: files per batch.
        timeout_s: wall-clock seconds for one batch.
        keep: leave the frames on the device: `Frame.rgb` is a torch tensor there, and not a numpy array.
    """

    title: str
    name: str
    batch: int
    timeout_s: float
    keep: bool

    def decode_many(
        self,
        sources: Sequence[Source],
        policy: SamplingPolicy = DEFAULT_POLICY,
        *,
        max_seconds: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> list[DecodedClip | MediaError]:
        """Decode many clips, see `BatchDecoder`; those of one codec and size go together.

        A clip that only PyAV decodes safely (damaged, no usable timestamps) is a MediaError. A failed batch is tried
        again file by file, so that a bad one costs itself only.
        """
        check_max_seconds(max_seconds)
        done: dict[int, DecodedClip | MediaError] = {}
        plans: dict[int, Plan] = {}
        for i, source in enumerate(sources):
            try:
                info = source if isinstance(source, VideoInfo) else probe(source, limits)
                plans[i] = plan_clip(info, policy, max_seconds, limits)
                if self.keep and plans[i].output_bytes > BATCH_BYTES:
                    size = plans.pop(i).output_bytes / 2**30
                    raise _refusal(info, f"its frames are {size:.1f} GiB, and {BATCH_BYTES >> 30} GiB may lie on a GPU")
            except MediaError as error:
                done[i] = error
        for batch in _batches(plans, self.batch):
            try:
                done.update(zip(batch, self._decode([plans[i] for i in batch]), strict=True))
            except MediaError as error:
                done.update((i, error if len(batch) == 1 else self._alone(plans[i])) for i in batch)
        return [done[i] for i in range(len(sources))]

    @abstractmethod
    def _stacks(self, plans: Sequence[Plan]) -> list[Any]:
        """The pictures asked for of each clip: uint8 [F, H, W, 3] as stored, numpy, or with `keep` torch."""

    def _alone(self, plan: Plan) -> DecodedClip | MediaError:
        try:
            return self._decode([plan])[0]
        except MediaError as error:
            return error

    def _decode(self, plans: Sequence[Plan]) -> list[DecodedClip | MediaError]:
        """Run one batch; MediaError where it fails as a whole, in the list where one clip is not what it should be."""
        begin = time.perf_counter()
        names = ", ".join(repr(plan.info.path) for plan in plans)
        try:
            stacks = within(self.timeout_s, lambda: self._stacks(plans))
        except Exception as error:  # PyNvVideoCodec's own types, and what it raises itself, derive from Exception alone
            self.close()  # nothing of a failed batch may reach the next one
            if isinstance(error, MediaError):
                raise MediaError(error.reason, f"{self.title}: {error} ({names})") from error
            raise MediaError(Reason.DECODE_ERROR, f"{self.title} cannot decode {names}: {_last_line(error)}") from error
        each = (time.perf_counter() - begin) / len(plans)
        return [self._clip(plan, stack, each) for plan, stack in zip(plans, stacks, strict=True)]

    def _clip(self, plan: Plan, stack: Any, seconds: float) -> DecodedClip | MediaError:
        info = plan.info
        swap, flip_x, flip_y = info.display_axes
        stored = (info.width, info.height) if swap else (info.height, info.width)
        if tuple(stack.shape) != (len(plan.asked), *stored, 3):
            return _refusal(info, f"{self.title} gave frames of shape {stack.shape} instead of {stored}")
        stack = stack.swapaxes(1, 2) if swap else stack
        flipped = [axis for axis, turned in ((1, flip_y), (2, flip_x)) if turned]
        if self.keep:
            upright = [frame.contiguous() for frame in (stack.flip(flipped) if flipped else stack)]
        else:
            upright = [np.ascontiguousarray(frame) for frame in np.flip(stack, tuple(flipped))]
        pictures = dict(zip(plan.asked.tolist(), upright, strict=True))
        if wrong := _disproof(pictures[plan.proof], plan.proof_rgb):
            return _refusal(info, f"{self.title}'s frame {plan.proof} is {wrong}")
        frames = [
            Frame(i, float(plan.timeline.times_s[i]), pictures[i], bool(plan.timeline.keyframes[i]))
            for i in plan.chosen.tolist()
        ]
        return DecodedClip(info, frames, [], self.name, plan.decoded, "frame-list", plan.seconds + seconds)


def _batches(plans: dict[int, Plan], most: int) -> Iterator[list[int]]:
    """Group clips: one colour matrix per batch, same codec and size next to each other, bounded memory."""

    def kind(i: int) -> tuple[bool, str, int, int]:
        info = plans[i].info
        return info.colour_matrix == BT709, info.codec, info.width, info.height

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


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Call with a time limit; a call that does not end is left behind in a daemon thread."""
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=work, name="fastdetect-decode", daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise MediaError(Reason.TIMEOUT, f"it took longer than {seconds:g} s") from None
    if error is not None:
        raise error
    return answer


def _disproof(found: Any, wanted: np.ndarray) -> str:
    """What is wrong with a picture [H, W, 3] that should be PyAV's; empty where nothing is.

    Both are seen so coarsely that the kind of chroma filter is lost.
    """
    theirs, ours = _cells(found), _cells(wanted)
    off = float(np.abs(theirs - ours).mean())
    how, least = min(
        ((name, float(np.abs(theirs - change(ours)).mean())) for name, change in _CONFUSIONS.items()),
        key=lambda pair: pair[1],
    )
    if off > _CONFUSED_LEVELS and least < _CONFUSED_SHARE * off:
        return f"PyAV's, but {how} ({off:.1f} levels off)"
    return f"another picture than PyAV's ({off:.0f} levels off)" if off > _PROOF_LEVELS else ""


def _cells(picture: Any) -> np.ndarray:
    """Mean colours [16, 16, 3] of a picture [H, W, 3]."""
    if isinstance(picture, np.ndarray):
        cells = (_PROOF_CELLS, _PROOF_CELLS)
        return cv2.resize(np.ascontiguousarray(picture), cells, interpolation=cv2.INTER_AREA).astype(float)
    import torch  # a tensor stays where it is

    small = torch.nn.functional.adaptive_avg_pool2d(picture.permute(2, 0, 1).float(), _PROOF_CELLS)
    return small.permute(1, 2, 0).cpu().numpy().astype(float)


def _refusal(info: VideoInfo, why: str) -> MediaError:
    return MediaError(Reason.DECODE_ERROR, f"{info.path!r} is for PyAV alone: {why}")


def _last_line(error: BaseException) -> str:
    """What went wrong, out of a message of a page."""
    text = str(error).split("C++ context")[0].split("encountered:")[-1]
    return " ".join(text.split())[:300] or type(error).__name__
