"""The report page: one file that loads nothing, shows everything, and trusts no name."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastdetect.evaluation import figures, plots
from fastdetect.evaluation.cross import Prediction, cross_manipulation
from fastdetect.evaluation.index import Entry
from fastdetect.evaluation.page import write_page
from fastdetect.evaluation.robustness import Condition
from fastdetect.evaluation.scoring import Pictures, VideoScore

EVIL = '<script>alert(1)</script>" onload=x ü.mp4'
BLOCK = {"id": "abc123", "method": "platt", "a": 1.0, "b": 0.0, "thresholds": {"0.01": 0.9, "0.05": 0.7}}


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def scored(margin: float | None) -> VideoScore:
    return VideoScore(margin, None if margin is None else 0, np.full(0 if margin is None else 3, margin or 0.0))


@pytest.fixture(scope="module")
def study() -> tuple[list[Entry], list[VideoScore | str]]:
    rng = np.random.default_rng(0)
    entries = [Entry(Path(f"r{i}"), f"r{i}", 0, "real", f"p{i}", dataset="a" if i < 10 else "b") for i in range(20)]
    entries += [
        Entry(Path(f"f{i}"), EVIL if i == 0 else f"f{i}", 1, "swap, <b>X</b>" if i % 2 else "lip sync", f"p{i}",
              dataset="a" if i < 5 else "b")
        for i in range(10)
    ]  # fmt: skip
    scores: list[VideoScore | str] = [scored(rng.normal() + 1.5 * e.label) for e in entries]
    scores[3], scores[4] = scored(None), "DECODE_ERROR: <i>moov</i>"
    return entries, scores


@pytest.fixture(scope="module")
def full(study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    entries, scores = study
    options = {"resamples": 50}
    result = {"model": "m", "sampling": "uniform:16", "fastdetect": "0", "warnings": ["mind <u>this</u>"], "splits": []}
    result |= figures.report(entries, scores, BLOCK, **options) | figures.across(entries, scores, BLOCK, **options)
    changed = {Condition("jpeg", 50): scores, Condition("jpeg", 30): [scored(None)] * 30}
    result["robustness"] = figures.conditions(entries, scores, changed, BLOCK, **options)
    auc = {"value": 0.9, "low": 0.8, "high": 1.0}
    result["synthetic"] = {"swap": {"fakes": 18, "auc": auc, "paired": {"wins": 9, "ties": 0, "n": 18}}}
    rng = np.random.default_rng(1)
    shown = {
        e.key: Pictures(rng.integers(0, 256, (2, 128, 128, 3), np.uint8), rng.random((2, 14, 14), np.float32),
                        np.array([1.25, -0.5]))
        for e in (entries[0], entries[1], entries[20])
    }  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(result, path, title="Evaluation of m", pictures=shown, entries={e.key: e for e in entries})
    assert list(path.parent.iterdir()) == [path]
    text = path.read_text("utf-8")
    return Page(text), text


def test_it_loads_nothing_and_runs_nothing(full) -> None:
    page, text = full
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "style", "onload", "onclick"):
            value = attributes.get(name)
            assert value is None or (tag == "img" and value.startswith("data:image/")), (tag, name, value)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert page.open == []  # every tag is closed


def test_names_are_shown_as_text(full) -> None:
    page, _ = full
    assert EVIL in page.text
    assert "swap, <b>X</b>" in page.text
    assert "DECODE_ERROR: <i>moov</i>" in page.text
    assert "mind <u>this</u>." in page.text


def test_everything_is_there(full, study) -> None:
    page, _ = full
    plotted = [a["aria-label"] for tag, a in page.tags if tag == "svg" and a.get("aria-label")]
    assert [name.split(",")[0].split(":")[0] for name in plotted] == [
        "ROC curve", "Scores", "Reliability", "Risk and coverage", "JPEG",
    ]  # fmt: skip
    for heading in ("At the stored thresholds", "Manipulations, worst first", "all of them under one threshold",
                    "Robustness", "Frame AUC", "Fakes made here", "got most wrong", "without a score"):  # fmt: skip
        assert heading in page.text
    pictures = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(pictures) == 12
    assert sum(src.startswith("data:image/png") for src in pictures) == 6
    worst_first = [page.text.index(name) for name in ("Reals with the highest scores", "Fakes with the lowest scores")]
    assert worst_first == sorted(worst_first)


def test_without_calibration_pictures_and_grid(study, tmp_path: Path) -> None:
    entries, scores = study
    result = figures.report(entries, scores, resamples=50) | {"fastdetect": "0"}
    write_page(result, tmp_path / "r.html", title="plain")
    page = Page((tmp_path / "r.html").read_text("utf-8"))
    assert "logit margin" in page.text
    assert "stored thresholds" not in page.text.replace("below, at the stored thresholds", "")
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_the_matrix_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [Prediction("", f"r{i}", 0, "real", f"p{i}", rng.normal(), (-0.5, 0.5)) for i in range(9)]
    rows += [
        Prediction("", f"{m}{i}", 1, f"swap, {m}", f"p{i}", 1 + rng.normal(), (0.1, 0.7))
        for m in "XY"
        for i in range(6)
    ]
    cross = cross_manipulation({"X": rows, "<Z>": rows}, resamples=50)
    write_page({"cross_manipulation": cross, "fastdetect": "0", "trained": {"X": "a"}}, tmp_path / "r.html", title="c")
    page = Page((tmp_path / "r.html").read_text("utf-8"))
    assert "<Z>" in page.text
    assert "Video AUC" in page.text
    assert "Frame AUC" in page.text
    assert len([a for tag, a in page.tags if tag == "td" and a.get("class") == "cell own"]) == 2


def test_shapes_stay_inside_their_box(study) -> None:
    entries, scores = study
    result = figures.report(entries, scores, BLOCK, resamples=50)
    rows = figures.conditions(entries, scores, {Condition("h264", 40): scores}, BLOCK, resamples=50)
    drawn = [plots.roc_plot(result), plots.histogram_plot(result), plots.reliability_plot(result),
             plots.risk_plot(result), *plots.robustness_plots(result | {"robustness": rows})]  # fmt: skip
    for plot in drawn:
        for shape in plot.shapes:
            for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", shape.d):
                assert plot.axes.left - 5 <= float(x) <= plot.axes.right + 5
                assert plot.axes.top <= float(y) <= plot.axes.bottom
    bars = [shape.title for shape in drawn[1].shapes if shape.title.split(" ")[1:2] in (["real"], ["fake"])]
    assert sum(int(title.split()[0]) for title in bars) == 28
