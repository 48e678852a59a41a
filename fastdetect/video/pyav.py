"""Decode the frames that a sampling policy asks for, on the CPU, and no more of the file than they need."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import av
import numpy as np
from av.video.frame import VideoFrame

from fastdetect.errors import MediaError
from fastdetect.reasons import Reason
from fastdetect.video.probe import (
    CLOCKED_FORMATS,
    DEFAULT_LIMITS,
    Limits,
    VideoInfo,
    first_frame,
    open_stream,
    probe,
    tick_seconds,
)
from fastdetect.video.sampling import DEFAULT_POLICY, SamplingPolicy, check_max_seconds, pick_frames

DECODER = f"pyav-{av.__version__}/ffmpeg-{av.ffmpeg_version_info}"

# Jump to the next needed keyframe when that spares more than this many packets. A jump costs 0.1 to 0.9 ms, less than
# a decoded frame (2.3 to 5.6 ms), but on several threads it drains them; 2 was the best of 0, 1, 2, 4 and 8.
JUMP_PACKETS = 2
_REORDER_PACKETS = 32  # pictures are shown at most this far from where they are stored; codecs allow 16
_SHORTFALL = 0.02  # a file with over 2 % fewer packets than it declares frames is truncated

# Decoders that obey skip_frame packet by packet; dav1d reads it once, as it opens, and would drop some.
_SKIPPING = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})

Method = Literal["sequential", "seek", "keyframes", "image", "frame-list"]  # the last is DALI's


@dataclass
class Frame:
    """One decoded picture: index counts from the clip's first frame, rgb is uint8 [H, W, 3], upright."""

    index: int
    time_s: float  # from the first frame
    rgb: np.ndarray
    keyframe: bool


@dataclass
class DecodedClip:
    """The frames of one clip, in order of time, and how they were got."""

    info: VideoInfo
    frames: list[Frame]
    reasons: list[Reason]
    decoder: str
    frames_decoded: int
    method: Method
    seconds: float
    note: str = ""  # why another decoder was not used


@dataclass
class _Packets:
    """A stream's packets in decoding order, read without decoding."""

    pts: list[int | None] = field(default_factory=list)
    key: list[bool] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    clocked: bool = True  # False where the container stores when to decode, not when to show
    tick_s: float = 1.0
    last_ticks: int = 0  # duration of the picture shown last
    damaged: bool = False
    complete: bool = True  # False where max_seconds ended the reading


@dataclass
class _Timeline:
    """A clip's pictures in order of time."""

    times_s: np.ndarray  # [N] float64 from 0
    keyframes: np.ndarray  # [N] bool
    end_s: float

    @classmethod
    def build(cls, ticks: np.ndarray, keyframes: np.ndarray, tick_s: float, last_ticks: int) -> "_Timeline":
        times = (ticks - ticks[0]) * tick_s
        last_s = last_ticks * tick_s
        if last_s <= 0 and len(times) > 1:
            last_s = float(np.median(np.diff(times)))
        return cls(times, keyframes, float(times[-1]) + last_s)


class _Unsure(Exception):
    """The quick way met something that only decoding everything can judge."""


def decode(
    path: str | os.PathLike[str],
    policy: SamplingPolicy = DEFAULT_POLICY,
    *,
    max_seconds: float | None = None,
    threads: int = 1,
    limits: Limits = DEFAULT_LIMITS,
    info: VideoInfo | None = None,
) -> DecodedClip:
    """Decode the frames that a policy picks from a video or an image.

    The packets are first read without decoding, which gives the exact timeline; then only the groups of
    pictures that hold a wanted frame are decoded. A damaged file is decoded from its start on one thread, and
    what comes out is sampled anew, so that the frames still spread evenly over it.

    Args:
        path: a local file.
        policy: which frames.
        max_seconds: use only this much of the clip's beginning, in seconds.
        threads: decoder threads; 0 = one per core. The frames are the same for any number.
        limits: bounds; see `Limits`.
        info: what `probe` said of this file, where that is known.

    Returns:
        DecodedClip with at least one frame; its reasons hold TRUNCATED where part is missing or damaged.

    Raises:
        MediaError: with the Reason that the result row carries.
        UsageError: for max_seconds out of range.
    """
    begin = time.perf_counter()
    check_max_seconds(max_seconds)
    info = info or probe(path, limits)
    if info.is_image:
        frames, decoded, method, damaged = _decode_image(info, limits)
    else:
        frames, decoded, method, damaged = _decode_video(info, policy, max_seconds, threads, limits)
    reasons = [Reason.TRUNCATED] if damaged else []
    return DecodedClip(info, frames, reasons, DECODER, decoded, method, time.perf_counter() - begin)


def _decode_image(info: VideoInfo, limits: Limits) -> tuple[list[Frame], int, Method, bool]:
    with open_stream(info.path, info.stream_index, limits) as (container, stream):
        rgb = _to_rgb(first_frame(container, stream, info.path), info)
    return [Frame(0, 0.0, rgb, True)], 1, "image", False


def _decode_video(
    info: VideoInfo,
    policy: SamplingPolicy,
    max_seconds: float | None,
    threads: int,
    limits: Limits,
    jump_packets: int = JUMP_PACKETS,
) -> tuple[list[Frame], int, Method, bool]:
    packets = _read_packets(info, max_seconds, limits)
    method: Method = "keyframes" if policy.kind == "keyframes" else "sequential"
    damaged = packets.damaged
    try:
        timeline, order = _timeline_of(packets)
        chosen = pick_frames(policy, timeline.times_s, timeline.keyframes, timeline.end_s, max_seconds)
        if not len(chosen):
            raise _Unsure("no packet is marked as a keyframe")
        _check_kept(len(chosen), info, limits)
        ranges = _packet_ranges(packets, order[chosen], jump_packets)
        pictures, decoded = _decode_ranges(info, packets, ranges, order[chosen], threads, limits)
        if method == "sequential" and (len(ranges) > 1 or ranges[0][0] > 0):
            method = "seek"
    except _Unsure:
        timeline, chosen, pictures, decoded, faulty = _decode_carefully(info, policy, max_seconds, limits)
        damaged |= faulty
    damaged |= packets.complete and _falls_short(info, len(packets.pts), timeline.end_s)
    frames = [
        Frame(int(i), float(timeline.times_s[i]), rgb, bool(timeline.keyframes[i]))
        for i, rgb in zip(chosen, pictures, strict=True)
    ]
    return frames, decoded, method, damaged


def _read_packets(info: VideoInfo, max_seconds: float | None, limits: Limits) -> _Packets:
    """Read the timestamp and flags of every packet up to max_seconds, without decoding."""
    packets = _Packets()
    with open_stream(info.path, info.stream_index, limits) as (container, stream):
        packets.tick_s = tick_seconds(stream)
        # AVI knows no presentation times: FFmpeg gives the decoding times, wrong once pictures are reordered
        packets.clocked = info.container != "avi" or not stream.codec_context.has_b_frames
        length = np.inf if max_seconds is None else max_seconds / packets.tick_s
        first = top = None
        beyond = 0
        try:
            for packet in container.demux(stream):
                pts = packet.pts
                if not packet.size:
                    continue
                packets.pts.append(pts)
                packets.key.append(packet.is_keyframe)
                packets.shown.append(not packet.is_discard)
                packets.damaged |= packet.is_corrupt
                limits.check("max_frames", len(packets.pts), "number of frames")
                if pts is None or packet.is_discard:
                    continue
                first = pts if first is None else min(first, pts)
                if top is None or pts > top:
                    top, packets.last_ticks = pts, packet.duration or 0
                beyond += pts - first > length
                if beyond > _REORDER_PACKETS:
                    packets.complete = False
                    break
        except av.error.FFmpegError:
            packets.damaged = True
    return packets


def _timeline_of(packets: _Packets) -> tuple[_Timeline, np.ndarray]:
    """Order the shown packets by time; also give the place of each in decoding order."""
    shown = np.flatnonzero(packets.shown)
    if not packets.clocked or not len(shown) or None in packets.pts or len(set(packets.pts)) < len(packets.pts):
        raise _Unsure("packets without a timestamp of their own")
    pts = np.asarray(packets.pts, dtype=np.int64)
    order = shown[np.argsort(pts[shown])]
    if np.abs(shown - order).max() > _REORDER_PACKETS:
        raise _Unsure("the clock jumps back")
    keyframes = np.asarray(packets.key, dtype=bool)[order]
    return _Timeline.build(pts[order], keyframes, packets.tick_s, packets.last_ticks), order


def _fewer_than_declared(info: VideoInfo, packets: int) -> bool:
    return packets < (info.frames or 0) * (1 - _SHORTFALL)


def _falls_short(info: VideoInfo, packets: int, end_s: float) -> bool:
    if info.frames:
        whole = info.duration_s is not None and end_s >= info.duration_s * (1 - _SHORTFALL)
        return _fewer_than_declared(info, packets) and not whole  # an edit list leaves frames out on purpose
    if info.duration_s and info.container in CLOCKED_FORMATS:
        return end_s < info.duration_s - max(1.0, 0.05 * info.duration_s)  # sound may go on a little
    return False


def _check_kept(count: int, info: VideoInfo, limits: Limits) -> None:
    size = count * info.width * info.height * 3
    if size > limits.max_kept_bytes:
        raise MediaError(
            Reason.TOO_LARGE,
            f"{count} frames of {info.width}x{info.height} are {size / 2**20:,.0f} MiB of RGB, over the limit "
            f"max_kept_bytes = {limits.max_kept_bytes:,}; use uniform:N, a lower fps:X or max_seconds",
        )


def _packet_ranges(packets: _Packets, wanted: np.ndarray, jump_packets: int) -> list[tuple[int, int]]:
    """Find the runs of packets (first, last) to decode: a picture needs all from its keyframe on.

    A keyframe serves only pictures shown after it: those before (open GOP) lean on the GOP before too.
    Runs with at most jump_packets unneeded packets between them become one.
    """
    keys = np.flatnonzero(packets.key)
    pts = np.asarray(packets.pts, dtype=np.int64)
    spans = []
    for place in wanted.tolist():
        at = int(np.searchsorted(keys, place, side="right")) - 1
        while at >= 0 and pts[keys[at]] > pts[place]:
            at -= 1
        spans.append((int(keys[at]) if at >= 0 else 0, place))
    runs = [(0, -1)]  # nothing yet, at the head of the file
    for first, last in sorted(spans):
        if first - runs[-1][1] - 1 <= jump_packets:
            runs[-1] = (runs[-1][0], max(runs[-1][1], last))
        else:
            runs.append((first, last))
    return runs if runs[0][1] >= 0 else runs[1:]


def _decode_ranges(
    info: VideoInfo,
    packets: _Packets,
    ranges: Sequence[tuple[int, int]],
    wanted: np.ndarray,
    threads: int,
    limits: Limits,
    seek: bool = True,
) -> tuple[list[np.ndarray], int]:
    """Decode runs of packets and keep the wanted pictures; _Unsure where one is not as promised."""
    place = {pts: i for i, pts in enumerate(packets.pts)}
    kept: dict[int | None, np.ndarray | None] = {packets.pts[i]: None for i in wanted.tolist()}
    decoded = 0

    def take(frames: Sequence[VideoFrame]) -> None:
        nonlocal decoded
        decoded += len(frames)
        for frame in frames:
            if frame.is_corrupt:
                raise _Unsure("a picture with errors")
            if frame.pts in kept:
                kept[frame.pts] = _to_rgb(frame, info)

    with open_stream(info.path, info.stream_index, limits, threads) as (container, stream):
        skips = stream.codec_context.name in _SKIPPING
        try:
            reader = container.demux(stream)
            expected = 0
            for first, last in ranges:
                if seek and first > expected:
                    container.seek(packets.pts[first] or 0, stream=stream)
                    reader = container.demux(stream)
                expected = max(expected, first)
                for packet in reader:
                    here = place.get(packet.pts, -1)
                    if not packet.size or here < expected:
                        continue
                    if here > expected:
                        break
                    if skips:  # a picture that no other leans on is not worth decoding unless it is wanted
                        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in kept else "NONREF"
                    take(stream.decode(packet))
                    expected += 1
                    if here == last:
                        break
                if expected <= last:
                    if seek:  # landed behind the keyframe: read up to it instead
                        return _decode_ranges(info, packets, ranges, wanted, threads, limits, seek=False)
                    raise _Unsure("other packets than the first time")
                take(stream.decode(None))
                stream.codec_context.flush_buffers()
        except av.error.FFmpegError as error:
            raise _Unsure(str(error)) from error
    pictures = [picture for picture in kept.values() if picture is not None]
    if len(pictures) < len(kept):
        raise _Unsure("a packet without a picture")
    return pictures, decoded


class _Survivors:
    """A stream's pictures, decoded in order on one thread, less those between an error and a keyframe."""

    def __init__(self, info: VideoInfo, limits: Limits) -> None:
        self.info, self.limits = info, limits
        self.problem: Exception | None = None
        self.damaged = False
        self.decoded = 0

    def __iter__(self) -> Iterator[VideoFrame]:
        sound = True
        with open_stream(self.info.path, self.info.stream_index, self.limits) as (container, stream):
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                    if packet is None:
                        return
                    frames = stream.decode(packet)
                except av.error.FFmpegError as error:
                    self.problem, self.damaged, sound = error, True, False
                    continue
                for frame in frames:
                    self.decoded += 1
                    self.damaged |= frame.is_corrupt  # patched up by the decoder: kept, and told
                    sound |= frame.key_frame
                    if sound:
                        yield frame


def _decode_carefully(
    info: VideoInfo, policy: SamplingPolicy, max_seconds: float | None, limits: Limits
) -> tuple[_Timeline, np.ndarray, list[np.ndarray], int, bool]:
    """Decode everything to learn which pictures there are, then once more to keep the wanted ones."""
    survey = _Survivors(info, limits)
    pts: list[int | None] = []
    keyframes: list[bool] = []
    tick_s = 1.0
    for frame in survey:
        pts.append(frame.pts)
        keyframes.append(frame.key_frame)
        limits.check("max_frames", len(pts), "number of frames")
        if frame.pts is None or pts[0] is None:
            continue
        tick_s = float(frame.time_base or 1)
        if max_seconds is not None and (frame.pts - pts[0]) * tick_s > max_seconds:
            break
    if not pts:
        raise MediaError(Reason.DECODE_ERROR, f"no frame of {info.path!r} decodes: {survey.problem}")
    if None in pts or any(b <= a for a, b in pairwise(pts)):  # type: ignore[operator]
        pts, tick_s = list(range(len(pts))), 1.0 / (info.fps or 25.0)
    timeline = _Timeline.build(np.asarray(pts, dtype=np.int64), np.asarray(keyframes, dtype=bool), tick_s, 0)
    chosen = pick_frames(policy, timeline.times_s, timeline.keyframes, timeline.end_s, max_seconds)
    if not len(chosen):
        raise MediaError(Reason.DECODE_ERROR, f"no keyframe of {info.path!r} decodes: {survey.problem}")
    _check_kept(len(chosen), info, limits)
    again = _Survivors(info, limits)
    wanted = set(chosen.tolist())
    pictures: list[np.ndarray] = []
    for index, frame in enumerate(again):
        if index in wanted:
            pictures.append(_to_rgb(frame, info))
        if len(pictures) == len(wanted):
            break
    return timeline, chosen, pictures, survey.decoded + again.decoded, survey.damaged


def _to_rgb(frame: VideoFrame, info: VideoInfo) -> np.ndarray:
    """Convert by the stream's own matrix and range (BT.601 if it names none) to upright uint8 [H, W, 3]."""
    swap, flip_x, flip_y = info.display_axes  # of the first frame: reading a frame's side data can crash PyAV 18 later
    width, height = (info.height, info.width) if swap else (info.width, info.height)
    rgb = frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)
    if swap:
        rgb = rgb.transpose(1, 0, 2)
    return np.ascontiguousarray(rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
