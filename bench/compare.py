"""Two results files against each other: what became slower, larger, wrong or is gone.

GPU times are compared as they are. CPU times of two runs are not comparable on shared machines; there the time of ours
over the same run's baseline is compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.records import cases
from fastdetect.errors import UsageError

LIMIT = 0.05  # beyond the spread of both runs
SMALL_MB = 1.0  # differences of memory below this are the allocator's


@dataclass(frozen=True)
class Change:
    """One figure of ours in both runs; `allowed` is the factor up to which the new one is no regression."""

    case: str
    figure: str
    old: float
    new: float
    allowed: float

    @property
    def factor(self) -> float:
        return self.new / self.old if self.old else float("inf")

    @property
    def regression(self) -> bool:
        return self.factor > self.allowed


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[Change], list[str]]:
    """Compare an older and a newer results file.

    Returns:
        Every figure of ours that both have, and what was lost: cases that are gone or no longer right.
    Raises:
        UsageError: the files are from different machines, or have no case in common.
    """
    if a["machine"]["name"] != b["machine"]["name"]:
        raise UsageError(
            f"results of different machines cannot be compared: {a['machine']['name']!r} and {b['machine']['name']!r}"
        )
    old, new = ({f"{s} {c['op']} {c['case']}": c for s, c in cases(data)} for data in (a, b))
    suites = set(a["suites"]) & set(b["suites"])
    changes: list[Change] = []
    lost: list[str] = []
    for key, before in old.items():
        if key.split()[0] not in suites or "time_ms" not in before["providers"].get("ours", {}):
            continue
        after = new.get(key)
        ours = (after or {}).get("providers", {}).get("ours", {})
        if "time_ms" not in ours:
            lost.append(f"{key}: {ours.get('status', 'gone')} {ours.get('note', '')}".strip())
            continue
        changes += _changes(key, before, after or {}, cuda=a["machine"]["device"] == "cuda")
    if not changes and not lost:
        raise UsageError("the two files have no case in common that ours was timed in; nothing to compare")
    return changes, lost


def _changes(key: str, before: Mapping[str, Any], after: Mapping[str, Any], *, cuda: bool) -> list[Change]:
    old, new = before["providers"]["ours"], after["providers"]["ours"]
    found = []
    if cuda:
        found.append(_change(key, "ms", [old], [new]))
        if "graph" in old and "graph" in new:
            found.append(_change(key, "graph ms", [old["graph"]], [new["graph"]]))
    else:
        peers = [case["providers"].get(before["baseline"], {}) for case in (before, after)]
        if all("time_ms" in peer for peer in peers):
            found.append(_change(key, f"time / {before['baseline']}", [old, peers[0]], [new, peers[1]]))
    memory = [result.get("extra_mb") for result in (old, new)]
    if None not in memory and max(memory) - min(memory) > SMALL_MB:
        found.append(Change(key, "extra MB", memory[0], memory[1], 1 + LIMIT))
    return found


def _change(key: str, figure: str, old: list[Mapping[str, Any]], new: list[Mapping[str, Any]]) -> Change:
    """A time, or the ratio of two times, with the spread of everything that went into it."""
    values = [run[0]["time_ms"] / (run[1]["time_ms"] if len(run) > 1 else 1.0) for run in (old, new)]
    spread = sum(result["spread"] for result in (*old, *new))
    return Change(key, figure, values[0], values[1], 1 + LIMIT + spread)


def show(changes: list[Change], lost: list[str], console: Console) -> int:
    """Print both; the exit code: 1 where anything became worse."""
    table = Table("case", "figure", "before", "after", "factor", "allowed", title="ours, newer over older")
    for change in sorted(changes, key=lambda c: c.allowed - c.factor):
        mark = "[red]" if change.regression else "[green]" if change.factor < 2 - change.allowed else ""
        values = (f"{change.old:.4g}", f"{change.new:.4g}", f"{mark}{change.factor:.3f}", f"{change.allowed:.3f}")
        table.add_row(change.case, change.figure, *values)
    console.print(table)
    for line in lost:
        console.print(f"[red]lost:[/red] {line}")
    worse = sum(change.regression for change in changes)
    console.print(f"{len(changes)} figures, {worse} regressions, {len(lost)} lost cases")
    return 1 if worse or lost else 0
