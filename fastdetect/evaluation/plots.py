"""The evaluation report's plots as shapes for inline SVG."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from fastdetect.evaluation.robustness import KINDS

_BINS = 32
_NAMES = {"jpeg": "JPEG", "blur": "Blur", "resize": "Scaled down", "noise": "Noise", "h264": "H.264"}


@dataclass(frozen=True)
class Axes:
    """A plot's box inside a picture, in its units, and the values at the box's edges."""

    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)
    width: float = 360
    height: float = 330
    left: float = 58
    right: float = 346
    top: float = 14
    bottom: float = 284

    def x(self, value: float) -> float:
        share = (value - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        return round(self.left + (self.right - self.left) * min(max(share, 0.0), 1.0), 2)

    def y(self, value: float) -> float:
        share = (value - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return round(self.bottom - (self.bottom - self.top) * min(max(share, 0.0), 1.0), 2)

    def path(self, xs: Iterable[float], ys: Iterable[float]) -> str:
        points = [f"{self.x(x)} {self.y(y)}" for x, y in zip(xs, ys, strict=True)]
        return "M" + "L".join(points)


@dataclass(frozen=True)
class Shape:
    """`kind` is its CSS class; `title` is shown when it is pointed at."""

    kind: str
    d: str
    title: str = ""


@dataclass(frozen=True)
class Text:
    kind: str
    x: float
    y: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Plot:
    """What is drawn, in this order: shapes, then texts; ticks are (place, text)."""

    axes: Axes
    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    shapes: list[Shape] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def _dot(axes: Axes, kind: str, x: float, y: float, title: str) -> Shape:
    return Shape(f"dot {kind}", f"M{axes.x(x)} {axes.y(y)}m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", title)


def _whisker(axes: Axes, x: float, low: float, high: float) -> Shape:
    at, a, b = axes.x(x), axes.y(low), axes.y(high)
    return Shape("whisker", f"M{at} {a}V{b}M{at - 3} {a}h6M{at - 3} {b}h6")


def _bar(axes: Axes, kind: str, x0: float, x1: float, y0: float, y1: float, title: str) -> Shape:
    left, right = axes.x(x0) + 0.5, axes.x(x1) - 0.5
    return Shape(kind, f"M{left:.2f} {axes.y(y0)}V{axes.y(y1)}H{right:.2f}V{axes.y(y0)}z", title)


def _ticks(axis: Any, values: Sequence[float]) -> list[tuple[float, str]]:
    return [(axis(value), f"{value:g}") for value in values]


_QUARTERS = (0, 0.25, 0.5, 0.75, 1)


def roc_plot(result: Mapping[str, Any]) -> Plot:
    """The ROC curve, its band by identity, and where the stored thresholds stand."""
    axes, roc = Axes(), result["roc"]
    band = axes.path([*roc["grid"], *roc["grid"][::-1]], [*roc["low"], *roc["high"][::-1]]) + "z"
    shapes = [
        Shape("guide", axes.path([0, 1], [0, 1])),
        Shape("band", band),
        Shape("curve", axes.path(roc["fpr"], roc["tpr"])),
    ]
    texts: list[Text] = []
    for key, row in sorted(result.get("thresholds", {}).items(), key=lambda item: float(item[0])):
        told = f"stored threshold for {100 * float(key):g} % FPR: FPR {row['fpr']:.3f}, TPR {row['tpr']:.3f}"
        shapes.append(_dot(axes, "mark", row["fpr"], row["tpr"], told))
        note = Text("note", axes.x(row["fpr"]) + 8, axes.y(row["tpr"]) + 4, f"{100 * float(key):g} % line", "start")
        if texts and abs(texts[-1].y - note.y) < 13 and abs(texts[-1].x - note.x) < 60:
            note = replace(note, text=f"{texts.pop().text.removesuffix(' line')}, {note.text}")
        texts.append(note)
    return Plot(
        axes,
        f"ROC curve, AUC {result['overall']['auc']['value']:.3f}",
        "false-positive rate",
        "true-positive rate",
        _ticks(axes.x, _QUARTERS),
        _ticks(axes.y, _QUARTERS),
        shapes,
        texts,
    )


def histogram_plot(result: Mapping[str, Any]) -> Plot:
    """Reals upwards and fakes downwards by score, as shares of their class; logit margins without calibration."""
    calibrated = "thresholds" in result
    key = "score" if calibrated else "margin"
    values = {label: np.array([row[key] for row in result["rows"] if row["label"] == label]) for label in (0, 1)}
    both = np.concatenate(list(values.values()))
    low, high = (0.0, 1.0) if calibrated else (float(np.floor(both.min())), float(np.ceil(both.max() + 1e-9)))
    edges = np.linspace(low, high, _BINS + 1)
    shares = {label: np.histogram(v, edges)[0] / v.size for label, v in values.items()}
    most = float(max(share.max() for share in shares.values()))
    axes = Axes((low, high), (-most, most))
    shapes = []
    for label, kind, sign in ((0, "real", 1), (1, "fake", -1)):
        for k in np.flatnonzero(shares[label]).tolist():
            told = f"{shares[label][k] * values[label].size:.0f} {kind} from {edges[k]:.3g} to {edges[k + 1]:.3g}"
            shapes.append(_bar(axes, kind, edges[k], edges[k + 1], 0, sign * shares[label][k], told))
    shapes.append(Shape("axis-line", axes.path([low, high], [0, 0])))
    for target, row in result.get("thresholds", {}).items():
        shapes.append(
            Shape("threshold", axes.path([row["threshold"]] * 2, [-most, most]), f"{100 * float(target):g} % FPR line")
        )
    return Plot(
        axes,
        f"Scores: {values[0].size} reals up, {values[1].size} fakes down",
        "score (calibrated probability)" if calibrated else "logit margin",
        "share of its class",
        _ticks(axes.x, _QUARTERS if calibrated else (low, (low + high) / 2, high)),
        [(axes.y(v), f"{100 * abs(v):.0f} %") for v in (-most, 0, most)],
        shapes,
    )


def reliability_plot(result: Mapping[str, Any]) -> Plot | None:
    """Stated probability against the share of fakes at even odds; None without calibration."""
    if "reliability" not in result:
        return None
    axes = Axes()
    shapes = [Shape("guide", axes.path([0, 1], [0, 1]))]
    line = [(b["probability"], b["share"]["value"]) for b in result["reliability"]]
    shapes.append(Shape("curve", axes.path([x for x, _ in line], [y for _, y in line])))
    for b in result["reliability"]:
        told = f"{b['from']:g} to {b['to']:g}: {b['real']} real, {b['fake']} fake, share {b['share']['value']:.2f}"
        shapes.append(_whisker(axes, b["probability"], b["share"]["low"], b["share"]["high"]))
        shapes.append(_dot(axes, "point", b["probability"], b["share"]["value"], told))
    return Plot(
        axes,
        f"Reliability, error {result['ece_even']['value']:.3f}",
        "stated probability",
        "share of fakes at even odds",
        _ticks(axes.x, _QUARTERS),
        _ticks(axes.y, _QUARTERS),
        shapes,
    )


def risk_plot(result: Mapping[str, Any]) -> Plot | None:
    """Error rate against the share of videos that keep a verdict; None without calibration."""
    if "abstention" not in result:
        return None
    curve = result["abstention"]
    top = max(0.1, float(np.ceil(10 * max(curve["risk"])) / 10))
    axes = Axes(y_range=(0.0, top))
    shapes = [Shape("curve", axes.path(curve["coverage"], curve["risk"]))]
    for at, risk in curve["risk_at_coverage"].items():
        told = f"{risk:.3f} wrong where the most certain {100 * float(at):.0f} % keep a verdict"
        shapes.append(_dot(axes, "point", float(at), risk, told))
    return Plot(
        axes,
        f"Risk and coverage, mean {curve['area']['value']:.3f}",
        "share of videos with a verdict",
        "share of these that is wrong",
        _ticks(axes.x, _QUARTERS),
        _ticks(axes.y, (0, top / 2, top)),
        shapes,
    )


def robustness_plots(result: Mapping[str, Any]) -> list[Plot]:
    """One plot a kind: AUC with its interval from untouched to strongest, and the coverage as a dashed line."""
    plots = []
    clean = {"auc": result["overall"]["auc"], "coverage": result["coverage"], "value": None}
    for kind, group in groupby(result.get("robustness", ()), key=lambda row: row["kind"]):
        rows = [clean, *group]
        lows = [row["auc"]["low"] for row in rows if row["auc"]]
        low = min(0.5, float(np.floor(10 * min(lows)) / 10))
        axes = Axes((-0.3, len(rows) - 0.7), (low, 1.0), width=300, height=240, right=288, bottom=194)
        known = [(n, row) for n, row in enumerate(rows) if row["auc"]]
        shapes = [Shape("guide", axes.path([-0.3, len(rows) - 0.7], [0.5, 0.5]))]
        shapes.append(Shape("cover", axes.path(range(len(rows)), [row["coverage"] for row in rows]), "coverage"))
        shapes.append(Shape("curve", axes.path([n for n, _ in known], [row["auc"]["value"] for _, row in known])))
        for n, row in known:
            shapes.append(_whisker(axes, n, row["auc"]["low"], row["auc"]["high"]))
            told = f"AUC {row['auc']['value']:.3f}, coverage {100 * row['coverage']:.0f} %"
            shapes.append(_dot(axes, "point", n, row["auc"]["value"], told))
        names = ["none" if row["value"] is None else f"{row['value']:g}" for row in rows]
        ticks = [value for value in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1) if value >= low]
        plots.append(
            Plot(
                axes,
                _NAMES[kind],
                KINDS[kind].unit,
                "AUC",
                [(axes.x(n), name) for n, name in enumerate(names)],
                _ticks(axes.y, ticks if low >= 0.5 else [low, 0.5, 0.75, 1]),
                shapes,
            )
        )
    return plots
