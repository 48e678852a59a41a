"""The report: complete, ordered, safe against hostile names, readable without JavaScript, fast for many files."""

import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from report_rows import LINES, add_media, make_failure, make_row, make_run, make_track

from fastdetect.screening import report as report_module
from fastdetect.screening.report import write_report
from fastdetect.screening.results import DISCLAIMER, Row

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Parses strictly: every element that is opened is closed, in order; keeps tags and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def render(tmp_path: Path, rows: list[Row], media: Path | None = None, **run: object) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    write_report(iter(rows), path, run=make_run(rows, **run), media=media)
    html = path.read_text("utf-8")
    return html, Page(html)


def names_in_order(html: str) -> list[str]:
    return re.findall(r'<tr class="file">.*?</small><b>|<tr class="file">.*?<bdi><b>([^<]*)</b>', html, re.DOTALL)


def test_every_file_has_a_row_by_score_with_failures_last(tmp_path: Path) -> None:
    rows = [
        make_failure("broken.mp4"),
        make_row("low.mp4", 0.1),
        make_row("none.mp4", None, reasons=["NO_FACE"], message="no face in 16 sampled frames"),
        make_row("nan.mp4", 0.5).model_copy(update={"score": float("nan")}),
        make_row("top.mp4", 0.97),
        make_row("mid.mp4", 0.7),
    ]
    html, page = render(tmp_path, rows)
    assert names_in_order(html) == ["top.mp4", "mid.mp4", "low.mp4", "none.mp4", "nan.mp4", "broken.mp4"]
    assert [body["data-verdict"] for body in page.all("tbody")][-1] == "failed"
    assert "nan" not in re.findall(r'data-score="([^"]*)"', html)
    assert "2 of 6 files flagged" in page.text
    assert "1 file could not be screened" in page.text
    assert "moov atom not found" in page.text
    assert "no face was found in the sampled frames" in page.text
    assert page.text.count(DISCLAIMER) == 2
    assert len(page.ids) == len(set(page.ids))


def test_the_page_says_what_was_used_and_what_the_thresholds_mean(tmp_path: Path) -> None:
    _, page = render(tmp_path, [make_row()], warnings=["calibrated with another sampling"])
    for words in (
        "2,540",
        "score 0.810 or more; about 1 % of authentic videos",
        "score 0.620 or more; about 5 % of authentic videos",
        "fastdetect-small",
        "a1b2c3d4e5f6",
        "uniform:16",
        "decode 19.8 %",
        "model 45.2 %",
        "calibrated with another sampling",
        "reaches the manipulated line at 0.810",
        "pyav-18.1.0/ffmpeg-8.0",
        "2 January 2026, 03:05 UTC",
    ):
        assert words in page.text, words


def test_a_threshold_stricter_than_asked_is_said_to_be(tmp_path: Path) -> None:
    known = {"fpr_interval": (9.2e-7, 0.00125), "checked_on": 87}
    lines = [LINES[0], LINES[1].model_copy(update=known)]
    _, page = render(tmp_path, [make_row(thresholds=lines)], thresholds=lines)
    for words in (
        "score 0.810 or more; at most about 0.12 % of authentic videos",
        "score 0.620 or more; about 5 % of authentic videos",
        "reaches the manipulated line at 0.810, as at most about 0.12 % of authentic videos do",
        "set for a false-positive rate of 1 %, which lies in 9.2e-05 % to 0.12 % (95 %), checked on 87 persons",
    ):
        assert words in page.text, words


def test_hostile_names_and_messages_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    rows = [
        make_row(evil + ".mp4", 0.9, path=f"/tmp/{evil}", message=evil, decoder=evil),
        make_failure("</table></style>" + evil, message="</script><script>alert(3)</script>"),
        make_row("harmless\u202egpj.exe\x07\n.mp4", 0.8, tracks=[]),
    ]
    html, page = render(tmp_path, rows, stage_seconds={'"><b onclick=x>': 1.0}, machine={evil: evil})
    assert len(page.all("script")) == 1
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert not [attrs for attrs in page.all("img") if not (attrs["src"] or "").startswith("data:")]
    assert evil in "".join(page.words)
    assert "\u202e" not in html
    assert r"harmless\u202egpj.exe\x07\n.mp4" in page.text


def test_nothing_is_fetched_and_only_its_own_script_runs(tmp_path: Path) -> None:
    html, page = render(tmp_path, [make_row()])
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv")) or ""
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not [attrs for _, attrs in page.tags if "style" in attrs]  # the policy would drop them
    assert not page.all("link")
    assert not re.search(r"https?://|@import|url\((?!#)", html)


def test_media_is_shown_and_its_scale_is_named(tmp_path: Path) -> None:
    rows = [add_media(make_row("a.mp4", 0.9), tmp_path / "media", faces=2)]
    _, page = render(tmp_path, rows, tmp_path / "media")
    images = [attrs["alt"] for attrs in page.all("img")]
    assert images.count("Residual heat map of that face") == 2
    assert sum("Face at" in (alt or "") for alt in images) == 2
    assert "mean squared error per patch" in page.text


def test_no_media_shows_no_picture_even_where_rows_have_some(tmp_path: Path) -> None:
    rows = [add_media(make_row("a.mp4", 0.9), tmp_path / "media")]
    html, page = render(tmp_path, rows, None)
    assert page.all("img") == []
    assert "data:image" not in html
    assert "Pictures of faces were switched off" in page.text


def test_lost_media_is_said_and_costs_nothing_else(tmp_path: Path) -> None:
    rows = [add_media(make_row(f"{i}.mp4", 0.9), tmp_path / "media") for i in range(6)]
    (tmp_path / "media" / "0.mp4.jpg").unlink()
    (tmp_path / "media" / "1.mp4.json").write_text("[[[0.0]]]")
    (tmp_path / "media" / "2.mp4.json").write_text("")  # torn, as a loss of power leaves files
    (tmp_path / "media" / "3.mp4.json").write_text("[[[0.0]], [[0.0, 0.0]]]")
    (tmp_path / "media" / "4.mp4.json").write_text("[0.0, 0.0]")
    (tmp_path / "media" / "5.mp4.json").unlink()
    _, page = render(tmp_path, rows, tmp_path / "media")
    assert page.text.count("pictures are missing") == 6


def test_media_is_limited_to_the_highest_scores_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "MEDIA_FILES", 2)
    rows = [add_media(make_row(f"{i}.mp4", 0.5 + i / 10), tmp_path / "media") for i in range(4)]
    _, page = render(tmp_path, rows, tmp_path / "media")
    assert len([attrs for attrs in page.all("img") if attrs.get("class") == "heat"]) == 4
    assert "shown for the 2 files with the highest scores; those of 2 more" in page.text


def test_plots_are_limited_and_rows_keep_their_order_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "PLOT_FILES", 3)
    scores = [((7 * i) % 20 + 1) / 22 for i in range(20)]
    html, page = render(tmp_path, [make_row(f"{score:.3f}.mp4", score) for score in scores])
    assert names_in_order(html) == [f"{score:.3f}.mp4" for score in sorted(scores, reverse=True)]
    assert html.count('<svg class="timeline"') == 3
    assert "Timelines are drawn for the first 3 files" in page.text


def test_odd_tracks_are_drawn(tmp_path: Path) -> None:
    gap = make_track(2, [0.5] * 8)
    for face in gap.faces[4:]:
        face.time_s += 30  # the person was away
    tracks = [
        make_track(0, [0.9, None, float("nan"), 0.8] * 4, decides=True),
        make_track(1, [0.4]),
        gap,
        make_track(3, [0.1 + 0.8 * (i % 7) / 7 for i in range(4000)], seconds=160),
        make_track(4, []),
        *(make_track(i, [0.2, 0.2]) for i in range(5, 12)),
    ]
    html, page = render(tmp_path, [make_row("many.mp4", 0.9, tracks=tracks)])
    first, second = re.findall(r'<svg class="timeline".*?</svg>', html, re.DOTALL)[:2]
    assert first.count("<circle") == 8
    assert "nan" not in html.split("</style>")[1].split("<script>")[0].lower()
    assert second.count("<polyline") == 2  # cut where the person was away
    assert max(len(points) for points in re.findall(r'points="([^"]*)"', html)) < 6000
    assert "6 more tracks" in page.text


def test_the_report_of_a_model_without_calibration_shows_margins(tmp_path: Path) -> None:
    track = make_track(0, [None] * 6, decides=True)
    for i, face in enumerate(track.faces):
        face.margin = i - 2.5
    track.margin = 0.0
    row = make_row("raw.mp4", None, tracks=[track], thresholds=[], calibration_id=None, message="margin only")
    _, page = render(tmp_path, [row], thresholds=[], calibration_id=None)
    assert "the model is not calibrated" in page.text
    assert "logit margin" in page.text
    assert "None of 1 file flagged" in page.text


def test_a_threshold_set_by_hand_promises_no_rate(tmp_path: Path) -> None:
    lines = [line.model_copy(update={"fpr": None}) for line in LINES]
    _, page = render(tmp_path, [make_row(thresholds=lines)], thresholds=lines)
    assert "1 %" not in page.text
    assert "set by hand" in page.text


def test_an_empty_run_is_a_page_too(tmp_path: Path) -> None:
    empty = {"stage_seconds": {}, "videos_per_hour": None, "media_s_per_s": None, "wall_s": 0.0}
    _, page = render(tmp_path, [], **empty)
    assert "No files were screened" in page.text
    assert page.all("table") == []


def test_a_failed_write_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    rows = [make_row("a.mp4"), make_row("b.mp4").model_copy(update={"timings_s": None})]
    with pytest.raises(UndefinedError):
        write_report(rows, path, run=make_run(rows), media=None)
    assert path.read_text() == "old"


def test_two_thousand_files_take_seconds_and_cost_grows_linearly(tmp_path: Path) -> None:
    rows = [make_row(f"dir/{i:05d}.mp4", (i % 997 + 1) / 999) for i in range(2000)]

    def seconds(count: int) -> float:
        start = time.process_time()
        render_to = tmp_path / f"{count}.html"
        write_report(rows[:count], render_to, run=make_run(rows[:count]), media=None)
        return time.process_time() - start

    few, many = seconds(250), seconds(2000)
    assert many < 20
    assert many < 3 * 8 * few
    assert (tmp_path / "2000.html").stat().st_size < 25 * 2**20
