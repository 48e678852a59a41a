"""What a screening run shows on the terminal: progress while it runs, then the worst files and figures."""

import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from fastdetect.screening.results import STAGES, Row, RunInfo
from fastdetect.screening.wording import (
    FLAGGED,
    OUTCOMES,
    clock,
    outcome,
    printable,
    reason_text,
    score_text,
    verdict_meanings,
    worst_first,
)

STYLES = {
    "manipulated": "bold red",
    "suspicious": "yellow",
    "inconclusive": "cyan",
    "authentic": "green",
    "failed": "magenta",
}
# A log wants to see that the run lives, not every file: results.jsonl has those.
PLAIN_SECONDS = 10.0


class ScreenProgress:
    """Progress of a run: a bar on a terminal, else one plain line every ten seconds; both on standard error.

    Args:
        total: files of the run, those resumed included.
        resumed: files whose rows were already there.
        console: where to write; standard error by default.

    Example:
        >>> with ScreenProgress(0) as progress:
        ...     pass
    """

    def __init__(self, total: int, *, resumed: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.total, self.resumed, self.done = total, resumed, resumed
        self.flagged = self.failed = 0
        self._started = self._said = time.monotonic()
        self._bar: Progress | None = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("screening"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
                expand=True,
            )
            self._task = self._bar.add_task("screen", total=total, completed=resumed, figures="")

    def __enter__(self) -> "ScreenProgress":
        self._started = self._said = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.total:
            self._say()

    def update(self, row: Row) -> None:
        """Count one finished file."""
        self.done += 1
        self.flagged += outcome(row) in FLAGGED
        self.failed += outcome(row) == "failed"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, figures=escape(self.figures()))
        elif time.monotonic() - self._said >= PLAIN_SECONDS:
            self._say()

    def figures(self) -> str:
        """Files done, videos per hour, time left, flagged and failed files, as one line."""
        seconds, here = time.monotonic() - self._started, self.done - self.resumed
        parts = [f"{self.done:,}/{self.total:,} files"]
        if here and seconds > 0:
            parts.append(f"{3600 * here / seconds:,.0f} videos/h")
            if self.done < self.total:
                parts.append(f"{clock((self.total - self.done) * seconds / here)} left")
        parts.append(f"{self.flagged:,} flagged")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return " · ".join(parts)

    def _say(self) -> None:
        self._said = time.monotonic()
        self.console.print(f"screening: {self.figures()}", markup=False, highlight=False, soft_wrap=True)


def print_summary(
    rows: Iterable[Row],
    run: RunInfo,
    *,
    report: Path | None,
    limit: int = 20,
    console: Console | None = None,
) -> None:
    """Print the worst files, what the verdicts mean, the stage times and where the report is.

    Args:
        rows: the run's rows in any order.
        run: the run's figures.
        report: the HTML report, or None where none was written.
        limit: files shown; the rest is counted.
        console: where to write; standard output by default.
    """
    console = console or Console(file=sys.stdout)
    ordered = sorted(rows, key=worst_first)
    if ordered:
        console.print(_table(ordered[:limit]))
    if len(ordered) > limit:
        rest = len(ordered) - limit
        console.print(f"… and {rest:,} more: see the report or results.jsonl", style="dim", highlight=False)
    counts, meanings = Counter(map(outcome, ordered)), verdict_meanings(run.thresholds)
    for name in (name for name in OUTCOMES if counts[name]):
        console.print(Text(f"{counts[name]:>6,} {name:<13}", style=STYLES[name]) + Text(meanings[name]))
    console.print(_speed(run), highlight=False)
    console.print(run.disclaimer, style="italic", highlight=False)
    if run.interrupted:
        console.print("Stopped before the end; run the same command with --resume to go on.", style="bold")
    if report is not None:
        console.print(Text("Report: ", style="bold") + Text(str(report)), soft_wrap=True)


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("file", overflow="fold")
    table.add_column("why", overflow="fold")
    for row in rows:
        name = outcome(row)
        why = (name == "failed" and row.message) or reason_text(row) or row.message
        table.add_row(
            Text(name, style=STYLES[name]),
            score_text(row.score),
            Text(printable(row.name)),
            Text(printable(why), style="dim"),
        )
    return table


def _speed(run: RunInfo) -> str:
    parts = [f"{run.files_this_run:,} files in {clock(run.wall_s)}"]
    if run.videos_per_hour is not None:
        parts.append(f"{run.videos_per_hour:,.0f} videos/h")
    if run.media_s_per_s is not None:
        parts.append(f"{run.media_s_per_s:.1f} s of footage per second")
    busy = sum(run.stage_seconds.values())
    if busy > 0:
        names = [s for s in STAGES if s in run.stage_seconds]
        names += [s for s in run.stage_seconds if s not in STAGES]
        parts.append("time: " + ", ".join(f"{s} {100 * run.stage_seconds[s] / busy:.0f} %" for s in names))
    return " · ".join(parts)
