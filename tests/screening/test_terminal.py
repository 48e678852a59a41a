"""What a run prints: progress on a terminal and in a log, the final table, and words for everything."""

import io
import time
from pathlib import Path

import pytest
from report_rows import make_failure, make_row, make_run
from rich.console import Console

from fastdetect.reasons import Reason
from fastdetect.screening import terminal
from fastdetect.screening.results import DISCLAIMER, Row
from fastdetect.screening.terminal import ScreenProgress, print_summary
from fastdetect.screening.wording import REASON_TEXT, clock, moment, percent, printable, score_text, worst_first


def log(width: int = 160) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def summary(rows: list[Row], limit: int = 20, width: int = 160, **run: object) -> str:
    console = log(width)
    print_summary(iter(rows), make_run(rows, **run), report=Path("out/report.html"), limit=limit, console=console)
    return said(console)


def test_a_log_gets_plain_lines_and_a_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.0)
    console = log()
    with ScreenProgress(4, resumed=1, console=console) as progress:
        for row in (make_row("a", 0.9), make_row("b", 0.1), make_failure("c")):
            time.sleep(0.01)
            progress.update(row)
    lines = said(console).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("screening: 2/4 files · ")
    assert "left" in lines[0]
    assert lines[-1].endswith("1 flagged · 1 failed")
    assert "4/4 files" in lines[-1]
    assert "\x1b" not in said(console)


def test_a_log_is_not_flooded() -> None:
    console = log()
    with ScreenProgress(500, console=console) as progress:
        for i in range(500):
            progress.update(make_row(str(i), 0.1))
    assert len(said(console).splitlines()) == 1


def test_a_terminal_gets_a_bar() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with ScreenProgress(2, console=console) as progress:
        progress.update(make_row("a", 0.9))
        progress.update(make_row("b", 0.1))
    assert "100%" in said(console)
    assert "2/2 files" in said(console)
    assert "1 flagged" in said(console)


def test_videos_per_hour_leave_out_what_was_resumed() -> None:
    progress = ScreenProgress(10, resumed=9, console=log())
    assert "videos/h" not in progress.figures()
    progress._started -= 3600
    progress.update(make_row("a", 0.1))
    assert " 1 videos/h" in progress.figures()


def test_the_table_shows_the_worst_and_counts_the_rest() -> None:
    rows = [make_row(f"clip{i:02d}.mp4", i / 40) for i in range(1, 40)] + [make_failure("broken.mp4")]
    text = summary(rows, limit=5)
    shown = [line.split()[2] for line in text.splitlines()[1:6]]
    assert shown == [f"clip{i}.mp4" for i in (39, 38, 37, 36, 35)]
    assert "… and 35 more" in text
    assert "broken.mp4" not in text
    assert "1 failed" in text
    assert DISCLAIMER.split(".")[0] in text
    assert "out/report.html" in text
    assert "decode 20 %" in text


def test_names_are_not_markup_and_cannot_steer_the_terminal() -> None:
    text = summary([make_row("[bold]x[/bold]\x1b[2J\u202e.mp4", 0.9), make_failure("y", message="\x1b[31mred")])
    assert r"[bold]x[/bold]\x1b[2J\u202e.mp4" in text
    assert "\x1b" not in text


def test_an_inconclusive_file_without_a_reason_shows_its_message() -> None:
    row = make_row("a.mp4", 0.5).model_copy(update={"verdict": "inconclusive", "score": None, "message": "no scale"})
    assert "no scale" in summary([row])


def test_an_empty_and_an_interrupted_run_are_said() -> None:
    text = summary([], interrupted=True, stage_seconds={}, videos_per_hour=None, media_s_per_s=None)
    assert "--resume" in text


def test_every_reason_has_words() -> None:
    assert set(REASON_TEXT) == set(Reason)


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0.000"),
        (1e-5, "<0.001"),
        (0.6204, "0.620"),
        (0.99999, ">0.999"),
        (1.0, "1.000"),
    ],
)
def test_a_score_is_never_rounded_to_certainty(score: float | None, text: str) -> None:
    assert score_text(score) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (-1, "–"),
        (float("inf"), "–"),
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7440, "2 h 04 min"),
    ],
)
def test_clock(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


def test_small_words() -> None:
    assert [percent(x) for x in (0.05, 0.01, 0.001)] == ["5 %", "1 %", "0.1 %"]
    assert moment("2026-01-02T03:04:05Z") == "2 January 2026, 03:04 UTC"
    assert moment("yesterday") == "yesterday"
    assert printable("naïve 文 \u200d") == "naïve 文 \u200d"
    assert printable("\udcff") == r"\udcff"


def test_the_order_is_total_and_puts_missing_scores_last() -> None:
    rows = [make_failure("f"), make_row("n", None), make_row("z", 0.0), make_row("a", 0.5), make_row("b", 0.5)]
    assert [row.name for row in sorted(rows, key=worst_first)] == ["a", "b", "z", "n", "f"]
