"""docs/performance.md says what the results files say, and nothing else."""

import copy
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_compare import results

from bench import report
from bench.plots import groups


def two_sizes() -> dict:
    data = results()
    case = data["suites"]["ops"]["cases"][0]
    larger = copy.deepcopy(case)
    larger |= {"case": "N=4000", "shape": {"N": 4000}}
    larger["providers"]["ours"]["time_ms"] = 7.654
    larger["targets"] = {"eager": {"want": 8.0, "got": 1.3, "met": False}}
    data["suites"]["ops"]["cases"].append(larger)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "toy.json").write_text(json.dumps(two_sizes()))
    (tmp_path / "results" / "other.json").write_text("{}")  # not ours: passed over
    return tmp_path / "results"


def test_page_is_written_from_the_results(folder: Path) -> None:
    text = report.page(folder)
    for part in (
        "## toy",
        "Commit abc",
        "N=1000 (toy)",
        "torch 2.15",
        "5 | 10 %",
        "7.65",
        "**missed**",
        "copy gbps 10",
    ):
        assert part in text, part
    assert "toy-squares.svg" in text
    assert "graph ms |" not in text  # nobody has any
    data = two_sizes()
    data["suites"]["ops"]["cases"][1]["providers"]["ours"]["time_ms"] = 3.21
    (folder / "toy.json").write_text(json.dumps(data))
    assert "7.65" not in report.page(folder)
    assert "3.21" in report.page(folder)


def test_screening_and_training(folder: Path) -> None:
    data = results()
    block = data["suites"].pop("ops")
    screening, train = copy.deepcopy(block), copy.deepcopy(block)
    case = screening["cases"][0]
    case |= {"target_videos_per_hour": 2500, "floor": None, "one_file_s": 3.25}
    for provider in case["providers"].values():
        provider |= {"videos_per_hour": 2834.6, "stages_ms": {"decode": 1.0, "model": 3.0}}
    train["cases"][0] |= {"loss_ms": {"ours": 0.5}, "loss_share": {"ours": 0.25}, "floor": None}
    data["suites"] = {"train": train, "screening": screening}
    (folder / "toy.json").write_text(json.dumps(data))
    text = report.page(folder)
    for part in (
        "| ours | 2,835 |",
        "decode 25 %, model 75 %",
        "Target 2,500 videos/h: met",
        "start: 3.25 s",
        "| 500 | 0.5 | 25.0 % |",
    ):
        assert part in text, part


def test_nothing_measured(tmp_path: Path) -> None:
    assert "Nothing has been measured yet" in report.page(tmp_path)


def test_only_sizes_that_grow_are_drawn() -> None:
    cases = two_sizes()["suites"]["ops"]["cases"]
    assert list(groups(cases)) == ["squares"]
    assert groups(cases[:1]) == {}
    cases[1]["shape"]["dtype"] = "bf16"
    assert groups(cases) == {}


def test_plots_and_being_current(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "performance.md"
    assert not report.is_current(folder, page)
    report.write(folder, page)
    assert report.is_current(folder, page)
    plot = tmp_path / "performance" / "toy-squares.svg"
    first = plot.read_bytes()
    words = " ".join(ElementTree.fromstring(first).itertext())
    assert all(word in words for word in ("ours", "eager", "floor (memory)", "extra MB"))
    report.write(folder, page)
    assert plot.read_bytes() == first
    page.write_text(page.read_text().replace("7.65", "6.65"))  # typed by hand
    assert not report.is_current(folder, page)
    report.write(folder, page)
    plot.unlink()
    assert not report.is_current(folder, page)


def test_committed_page_is_current() -> None:
    assert report.is_current(), "docs/performance.md is not what bench/results/ gives: python -m bench report"
