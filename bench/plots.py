"""SVG plots of a results file: time, extra memory and share of the floor against the size that grows."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.records import floor_share
from fastdetect.errors import MissingDependencyError

Case = Mapping[str, Any]


def groups(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Cases that differ in nothing but the size that grows, sorted by it; only where there are two at least."""
    found: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        rest = " ".join(f"{key}={value}" for key, value in case["shape"].items() if key != case["axis"])
        if any("time_ms" in result for result in case["providers"].values()):
            found[f"{case['op']} {rest}".strip()].append(case)
    return {name: sorted(its, key=_size) for name, its in found.items() if len({_size(case) for case in its}) > 1}


def _size(case: Case) -> float:
    return float(case["shape"][case["axis"]])


def draw(name: str, cases: Sequence[Case], path: Path) -> None:
    """Write one figure; the same cases give the same bytes."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib: pip install 'fastdetect[bench]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    providers = list(dict.fromkeys(n for case in cases for n in case["providers"]))
    axis = cases[0]["axis"]
    style: Any = {
        "svg.hashsalt": "fastdetect",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
    with matplotlib.rc_context(style):
        figure, (times, memory, share) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
        for number, provider in enumerate(providers):
            line: dict[str, Any] = {
                "marker": "o",
                "color": f"C{number}",
                "linewidth": 2.5 if provider == "ours" else 1.2,
            }
            _line(times, cases, provider, lambda c, r: r.get("graph", r).get("time_ms"), line | {"label": provider})
            _line(memory, cases, provider, lambda c, r: r.get("extra_mb"), line)
            _line(share, cases, provider, _percent, line)
        floor = [(_size(case), case["floor"]["ms"]) for case in cases if case["floor"]]
        if floor:
            times.plot(*zip(*floor, strict=True), "k--", label=f"floor ({cases[0]['floor']['bound']})")
            share.axhline(100, color="k", linestyle="--")
        heads = ("ms (graph replays where there are any)", "extra MB at the peak", "share of the floor, %")
        for plot, head in zip((times, memory, share), heads, strict=True):
            plot.set(xscale="log", yscale="linear" if plot is share else "log", xlabel=axis, title=head)
            plot.set_xticks([_size(case) for case in cases], [f"{_size(case):g}" for case in cases])
            plot.minorticks_off()
        times.legend(fontsize=7)
        figure.suptitle(name, fontsize=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _percent(case: Case, result: Mapping[str, Any]) -> float | None:
    value = floor_share(case, result)
    return None if value is None else 100 * value


def _line(plot: Any, cases: Sequence[Case], provider: str, value: Any, style: Mapping[str, Any]) -> None:
    points = [(_size(case), value(case, case["providers"].get(provider, {}))) for case in cases]
    points = [(x, y) for x, y in points if y]  # a logarithm has no place for 0
    if points:
        plot.plot(*zip(*points, strict=True), **style)


def file_name(machine: str, group: str) -> str:
    """The file of a group's figure."""
    return f"{machine}-{re.sub(r'[^a-z0-9]+', '-', group.lower()).strip('-')}.svg"
