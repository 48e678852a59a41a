"""The report's plots as coordinates for inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from fastdetect.screening.results import FaceRow, Row, ThresholdRow, TrackRow
from fastdetect.screening.wording import known, percent, score_text

# More points than a plot has room for are drawn as a line through the lowest and highest of each bin.
DOTS, BINS = 150, 150


@dataclass(frozen=True)
class Mark:
    """A tick, a threshold or a label: its place on the axis in plot units, and its text."""

    at: float
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    usable: bool
    title: str


@dataclass(frozen=True)
class Timeline:
    """A track's scores over time in a box of `width` x `height`, axes at `left`, `right`, `top`, `bottom`."""

    caption: str
    unit: str
    lines: list[str]
    dots: list[Dot]
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    thresholds: list[Mark]
    width: int = 580
    height: int = 176
    left: int = 46
    right: int = 486
    top: int = 12
    bottom: int = 138


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


@dataclass(frozen=True)
class Histogram:
    """How many files have which score; thresholds as vertical lines."""

    bars: list[Bar]
    thresholds: list[Mark]
    top_count: int
    scored: int
    width: int = 480
    height: int = 190
    left: int = 34
    right: int = 472
    top: int = 46
    bottom: int = 154
    x_ticks: list[Mark] = field(default_factory=list)


def timeline(track: TrackRow, thresholds: Sequence[ThresholdRow], seconds: float | None) -> Timeline | None:
    """The plot of a track's face scores over time; margins where the model is not calibrated.

    Args:
        track: faces in time order.
        thresholds: drawn as lines where scores are shown.
        seconds: the length of the clip; the last face's time where unknown.
    Returns:
        None where fewer than two faces have a finite value: one point is no course over time.
    """
    calibrated = any(known(face.score) is not None for face in track.faces)
    points = [(face, known(face.score if calibrated else face.margin)) for face in track.faces]
    valued = [(face, value) for face, value in points if value is not None]
    if len(valued) < 2:
        return None
    low, high = 0.0, 1.0
    if not calibrated:
        high = max(1.0, math.ceil(max(abs(value) for _, value in valued)))
        low = -high
    end = max(known(seconds) or 0.0, valued[-1][0].time_s, 1e-3)
    box = Timeline("", "", [], [], [], [], [])

    def x(time: float) -> float:
        return box.left + (box.right - box.left) * min(max(time / end, 0.0), 1.0)

    def y(value: float) -> float:
        return box.bottom - (box.bottom - box.top) * (min(max(value, low), high) - low) / (high - low)

    lines = [" ".join(f"{x(f.time_s):.1f},{y(v):.1f}" for f, v in _thin(run)) for run in _runs(valued)]
    dots = [Dot(x(f.time_s), y(v), f.usable, _dot_title(f, v, calibrated)) for f, v in valued]
    marks = [Mark(y(t.score), _line_text(t), t.verdict) for t in thresholds] if calibrated else []
    hidden = len(track.faces) - sum(face.usable for face in track.faces)
    return Timeline(
        caption=f"{len(valued)} faces from {valued[0][0].time_s:.1f} s to {valued[-1][0].time_s:.1f} s"
        + (f", {hidden} of them too poor to count (hollow)" if hidden else ""),
        unit="score" if calibrated else "logit margin",
        lines=lines,
        dots=dots if len(dots) <= DOTS else [],
        x_ticks=[Mark(x(t), f"{t:g}") for t in _ticks(end)],
        y_ticks=[Mark(y(v), f"{v:g}") for v in (low, (low + high) / 2, high)],
        thresholds=_spread(marks),
    )


def histogram(rows: Sequence[Row], thresholds: Sequence[ThresholdRow], bins: int = 40) -> Histogram | None:
    """Files by score; None where no file has one."""
    scores = [score for row in rows if (score := known(row.score)) is not None]
    if not scores:
        return None
    counts, _ = np.histogram(scores, bins=bins, range=(0.0, 1.0))
    box = Histogram([], [], int(counts.max()), len(scores))
    step = (box.right - box.left) / bins
    bars = []
    for i, count in enumerate(counts.tolist()):
        if count:
            height = max(2.0, (box.bottom - box.top) * count / box.top_count)
            reached = [t.verdict for t in thresholds if (i + 0.5) / bins >= t.score]
            bars.append(
                Bar(
                    box.left + i * step + 0.75,
                    box.bottom - height,
                    step - 1.5,
                    height,
                    reached[-1] if reached else "authentic" if thresholds else "plain",
                    f"{count} files from {i / bins:.3f} to {(i + 1) / bins:.3f}",
                )
            )
    span = box.right - box.left
    marks = [Mark(box.left + span * t.score, _line_text(t, long=True), t.verdict) for t in thresholds]
    ticks = [Mark(box.left + span * v, f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)]
    return Histogram(bars, marks, box.top_count, len(scores), x_ticks=ticks)


def shares(parts: dict[str, float], width: float = 1000) -> list[tuple[str, float, Bar]]:
    """A stacked bar: (name, value, its piece) for each part above zero, in the given order."""
    total, at, pieces = sum(parts.values()), 0.0, []
    for name, value in parts.items():
        if value > 0:
            piece = width * value / total
            pieces.append((name, value, Bar(at, 0, piece, 1, name, f"{100 * value / total:.1f} %")))
            at += piece
    return pieces


def _line_text(line: ThresholdRow, long: bool = False) -> str:
    rate = "set by hand" if line.fpr is None else f"{percent(line.fpr)} FPR"
    return f"{line.verdict} from {score_text(line.score)} ({rate})" if long else rate


def _dot_title(face: FaceRow, value: float, calibrated: bool) -> str:
    parts = [f"{face.time_s:.2f} s (frame {face.frame})"]
    parts += [f"score {score_text(value)}"] if calibrated else []
    parts.append(f"margin {face.margin:+.2f}")
    parts.append(f"image branch {face.image_margin:+.2f}")
    parts += [] if face.residual_margin is None else [f"residual branch {face.residual_margin:+.2f}"]
    parts.append(f"{face.face_px:.0f} px face")
    return ", ".join(parts) + ("" if face.usable else ", too poor to count")


def _runs(valued: Sequence[tuple[FaceRow, float]]) -> list[list[tuple[FaceRow, float]]]:
    """Cut where the person was away: a gap of over 2.5 times the usual step."""
    steps = [b[0].time_s - a[0].time_s for a, b in pairwise(valued)]
    usual = float(np.median(steps))
    runs = [[valued[0]]]
    for step, point in zip(steps, valued[1:], strict=True):
        if usual > 0 and step > 2.5 * usual:
            runs.append([])
        runs[-1].append(point)
    return [run for run in runs if len(run) > 1]


def _thin(run: list[tuple[FaceRow, float]]) -> list[tuple[FaceRow, float]]:
    if len(run) <= 2 * BINS:
        return run
    kept = []
    for part in np.array_split(np.arange(len(run)), BINS):
        ends = {min(part, key=lambda i: run[i][1]), max(part, key=lambda i: run[i][1])}
        kept += [run[i] for i in sorted(ends)]
    return kept


def _spread(marks: list[Mark], gap: float = 13) -> list[Mark]:
    """The same lines; their texts say both where two lines are too near to be labelled apart."""
    out: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: -mark.at):
        near = out and abs(out[-1].at - mark.at) < gap
        if near:
            out[-1] = Mark(out[-1].at, "", out[-1].kind)
            mark = Mark(mark.at, f"{mark.text.removesuffix(' FPR')}, {marks[0].text}", mark.kind)
        out.append(mark)
    return out


def _ticks(end: float, most: int = 6) -> list[float]:
    steps = (m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5))
    step = next((step for step in steps if end / step <= most), end)
    return [i * step for i in range(int(end / step + 1e-9) + 1)]
