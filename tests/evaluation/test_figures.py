"""Every figure of an evaluation against scikit-learn, and what missing scores do."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from fastdetect.errors import DataError
from fastdetect.evaluation import figures
from fastdetect.evaluation.index import Entry
from fastdetect.evaluation.metrics import expected_calibration_error
from fastdetect.evaluation.page import write_page
from fastdetect.evaluation.resampling import Resamples
from fastdetect.evaluation.robustness import Condition
from fastdetect.evaluation.scoring import VideoScore
from fastdetect.evaluation.tables import to_markdown, write_csv


def entry(name: str, manipulation: str = "", paired: str | None = None) -> Entry:
    return Entry(
        path=Path(name),
        name=name,
        label=int(bool(manipulation)),
        manipulation=manipulation or "real",
        identity=paired or name,
        paired=paired,
    )


def scored(margin: float | None) -> VideoScore:
    return VideoScore(margin, None if margin is None else 0, np.full(0 if margin is None else 4, margin or 0.0))


@pytest.fixture
def study() -> tuple[list[Entry], list[VideoScore | str]]:
    rng = np.random.default_rng(0)
    entries = [entry(f"r{i}") for i in range(30)]
    entries += [entry(f"s{i}", "face swap, A" if i < 4 else "face swap, B", f"r{i}") for i in range(10)]
    entries += [entry(f"l{i}", "lip sync, C") for i in range(5)]
    return entries, [scored(rng.normal() + (1.0 if "swap" in e.manipulation else 0.0)) for e in entries]


def test_figures(study) -> None:
    entries, scores = study
    result = figures.report(entries, scores, resamples=100)
    labels, margins = np.array([e.label for e in entries]), np.array([s.margin for s in scores])
    assert result["overall"]["auc"]["value"] == pytest.approx(roc_auc_score(labels, margins))
    for name, prefix in (("face swap", "rs"), ("lip sync", "rl")):
        rows = [i for i, e in enumerate(entries) if e.name[0] in prefix]
        block = result["types"][name]
        assert block["auc"]["value"] == pytest.approx(roc_auc_score(labels[rows], margins[rows]))
        assert block["auc"]["low"] <= block["auc"]["value"] <= block["auc"]["high"]
    assert list(result["methods"]) == sorted(result["methods"], key=lambda k: result["methods"][k]["auc"]["value"])
    assert {k: v["fakes"] for k, v in result["methods"].items()} == {
        "face swap, A": 4,
        "face swap, B": 6,
        "lip sync, C": 5,
    }
    assert result["mean_auc"]["value"] == pytest.approx(
        np.mean([block["auc"]["value"] for block in result["types"].values()])
    )
    wins = sum(scores[30 + i].margin > scores[i].margin for i in range(10))
    assert result["paired"] == {"wins": wins, "ties": 0, "n": 10}
    assert result["frame_auc"] == pytest.approx(result["overall"]["auc"]["value"])  # constant within a video
    assert result["coverage"] == 1
    assert result["intervals"]["ap"]["value"] == pytest.approx(average_precision_score(labels, margins))
    for name, block in result["intervals"].items():
        assert block["low"] <= block["value"] <= block["high"], name
        assert block["high"] > block["low"], name
    fpr, tpr, _ = roc_curve(labels, margins, drop_intermediate=False)
    np.testing.assert_allclose(result["roc"]["fpr"], fpr, atol=1e-6)
    np.testing.assert_allclose(result["roc"]["tpr"], tpr, atol=1e-6)
    at = np.interp(np.array(result["roc"]["grid"]) + 1e-9, fpr, tpr)
    assert (np.array(result["roc"]["low"]) <= at + 1e-6).all()
    assert (np.array(result["roc"]["high"]) >= at - 1e-6).all()
    drawn = Resamples([e.identity for e in entries], labels.tolist(), resamples=100)
    curves = []
    for counts in np.concatenate(list(drawn.weights())).astype(int):
        rows = np.repeat(np.arange(45), counts)
        fpr, tpr, _ = roc_curve(labels[rows], margins[rows], drop_intermediate=False)
        curves.append(np.interp(np.array(result["roc"]["grid"]) + 1e-9, fpr, tpr))
    for name, share in (("low", 0.025), ("high", 0.975)):
        np.testing.assert_allclose(result["roc"][name], np.quantile(curves, share, axis=0), atol=1e-5)
    assert set(result["coverage_by_class"].values()) == {1.0}
    json.dumps(result, allow_nan=False)


def test_missing_scores_are_named_and_enter_nothing(study) -> None:
    entries, scores = study
    extra = [entry("dark.mp4"), entry("broken.mp4", "face swap, A", "r0")]
    more = figures.report([*entries, *extra], [*scores, scored(None), "DECODE_ERROR: no moov"], resamples=50)
    assert more["abstained"] == ["dark.mp4"]
    assert more["failed"] == {"broken.mp4": "DECODE_ERROR: no moov"}
    assert more["coverage"] == pytest.approx(45 / 47)
    same = figures.report(entries, scores, resamples=50)
    assert more["overall"] == same["overall"]
    assert more["paired"] == same["paired"]
    text = to_markdown(more)
    assert "dark.mp4" in text
    assert "Failed: broken.mp4: DECODE_ERROR" in text
    with pytest.raises(DataError, match="both classes"):
        figures.report(entries[:30], scores[:30])


def block_at(*raw: float) -> dict:
    """A calibration block with thresholds for 10 %, 20 %, ... at these raw scores."""
    thresholds = {f"{0.1 * n:g}": float(expit(2 * score - 1)) for n, score in enumerate(raw, 1)}
    return {"id": "abc", "method": "platt", "a": 2.0, "b": -1.0, "thresholds": thresholds}


def test_rates_at_the_stored_thresholds(study) -> None:
    entries, scores = study
    reals = sorted(s.margin for s in scores[:30])
    result = figures.report(entries, scores, block_at(reals[-3], reals[15]), resamples=50)
    row = result["thresholds"]["0.1"]
    assert row["fpr"] == pytest.approx(0.1)  # the three highest reals reach it, the third exactly
    assert row["tpr"] == pytest.approx(np.mean([s.margin >= reals[-3] for s in scores[30:]]))
    assert row["fpr_interval"][0] < 0.1 < row["fpr_interval"][1]
    assert row["fpr_is"] == "as asked"
    assert result["thresholds"]["0.2"]["fpr_is"] == "higher"  # half of them do
    assert figures.report(entries, scores, block_at(0, 99), resamples=50)["thresholds"]["0.2"]["fpr_is"] == "lower"
    assert "| 10 % |" in to_markdown(result)


def test_fresh_reals_alone_check_the_thresholds(study, tmp_path: Path) -> None:
    entries, scores = study[0][:30], study[1][:30]
    highest = sorted(s.margin for s in scores)[-2]
    result = figures.report(entries, scores, block_at(highest))
    row = result["thresholds"]["0.1"]
    assert row["fpr"] == pytest.approx(2 / 30)
    assert (row["tpr"], row["tpr_interval"], row["fpr_is"]) == (None, None, "as asked")
    assert "types" not in result
    text = to_markdown(result)
    assert "| 10 % | " in text
    assert "| as asked | – |" in text
    changed = figures.conditions(entries, scores, {Condition("jpeg", 50): scores}, block_at(highest))
    assert changed[0]["auc"] is None
    assert changed[0]["rates"]["fpr"] == row["fpr"]
    assert "| none | – | | 1.000 | | |" in to_markdown(result | {"robustness": changed})
    write_page(result | {"fastdetect": "0"}, tmp_path / "r.html", title="reals")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "0.067 [" in page
    assert "Manipulations" not in page
    fakes = figures.report(study[0][30:], study[1][30:], block_at(0.0))
    assert fakes["thresholds"]["0.1"]["fpr_is"] is None
    assert 0 < fakes["thresholds"]["0.1"]["tpr"] <= 1


def test_calibration_and_abstention(study) -> None:
    entries, scores = study
    result = figures.report(entries, scores, block_at(0.0), resamples=50)
    labels = np.array([e.label for e in entries])
    p = expit(2 * np.array([s.margin for s in scores]) - 1)
    assert [row["score"] for row in result["rows"]] == pytest.approx(p.tolist())
    bins = result["reliability"]
    assert sum(b["real"] for b in bins) == 30
    assert sum(b["fake"] for b in bins) == 15
    for b in bins:
        inside = (p > b["from"]) & (p <= b["to"])
        fakes, reals = (labels[inside] == 1).sum() / 15, (labels[inside] == 0).sum() / 30
        assert b["share"]["value"] == pytest.approx(fakes / (fakes + reals))
    assert result["ece"] == pytest.approx(expected_calibration_error(labels, p))
    twice = np.repeat(np.arange(45), np.where(labels == 1, 2, 1))  # 30 of each class
    assert result["ece_even"]["value"] == pytest.approx(expected_calibration_error(labels[twice], p[twice]))
    assert result["ece_interval"]["low"] <= result["ece"] <= result["ece_interval"]["high"] + 0.1  # biased upwards
    risks = result["abstention"]["risk_at_coverage"]
    assert risks["1"] == pytest.approx(np.mean((p >= 0.5) != labels))
    certain = np.argsort(-np.abs(p - 0.5))[:23]  # half of 45, rounded up
    assert risks["0.5"] == pytest.approx(np.mean((p >= 0.5)[certain] != labels[certain]))


def test_conditions_are_compared_on_the_videos_scored_both_ways(study) -> None:
    entries, scores = study
    blurred = [scored(s.margin / 2 + 5) for s in scores]  # the same order: nothing lost
    lost = [scored(None) if i % 3 == 0 else s for i, s in enumerate(scores)]
    reals_gone = [scored(None) if e.label == 0 else s for e, s in zip(entries, scores, strict=True)]
    kinds = [Condition("blur", 1), Condition("resize", 0.5), Condition("h264", 40)]
    changed = dict(zip(kinds, (blurred, lost, reals_gone), strict=True))
    rows = figures.conditions(entries, scores, changed, block_at(5.0), resamples=50)
    assert [row["condition"] for row in rows] == ["blur:1", "resize:0.5", "h264:40"]
    assert rows[0]["change"] == {"value": 0, "low": 0, "high": 0}
    assert rows[0]["auc"]["value"] == figures.report(entries, scores, resamples=50)["overall"]["auc"]["value"]
    assert (rows[1]["coverage"], rows[1]["change"]["value"]) == (30 / 45, 0)  # what is left is as it was
    assert rows[0]["rates"]["fpr"] > 0.3
    assert (rows[2]["auc"], rows[2]["change"], rows[2]["rates"]["fpr"]) == (None, None, None)
    result = figures.report(entries, scores, resamples=50) | {"robustness": rows}
    assert "| h264:40 | – | – | 0.333 | – | 0.000 [" in to_markdown(result)


def test_pooled_auc_falls_where_sets_need_thresholds_of_their_own(study) -> None:
    entries, scores = study
    sets, shifted = [], []
    for name, shift in (("a", 0.0), ("b", 3.0)):
        for e, s in zip(entries, scores, strict=True):
            sets.append(replace(e, path=Path(f"{name}{e.path}"), identity=f"{name}{e.identity}", dataset=name))
            shifted.append(scored(s.margin + shift))
    sets.append(entry("lone fake", "face swap, A"))
    shifted.append(scored(0.0))
    found = figures.across(sets, shifted, None, resamples=50)
    own = [found["datasets"][name]["overall"]["auc"]["value"] for name in "ab"]
    assert own[0] == pytest.approx(own[1])
    assert found["datasets"][""] is None  # one class
    pooled = found["pooled"]
    assert pooled["mean_of_sets"]["value"] == pytest.approx(own[0])
    labels, margins = [e.label for e in sets], [s.margin for s in shifted]
    assert pooled["auc"]["value"] == pytest.approx(roc_auc_score(labels, margins))
    assert pooled["auc"]["value"] < own[0] - 0.05
    at = pooled["at_one_threshold"]
    assert at["a"]["fpr"]["value"] == 0
    assert at["b"]["fpr"]["value"] == pytest.approx(0.1)  # 5 % of all reals, all of them in one set
    assert at[""]["fpr"] is None
    text = to_markdown(figures.report(sets, shifted, resamples=50) | found)
    assert "| **pooled** |" in text
    assert "| (no name) | – | – | – | – | – |" in text


def test_csv_files_hold_every_figure_and_every_video(study, tmp_path: Path) -> None:
    entries, scores = study
    result = figures.report(entries, scores, block_at(0.5), resamples=50)
    write_csv(result, tmp_path)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [float(row["margin"]) for row in rows] == [s.margin for s in scores]
    table = {row["figure"]: row for row in csv.DictReader((tmp_path / "figures.csv").open())}
    assert float(table["types/lip sync/auc"]["value"]) == result["types"]["lip sync"]["auc"]["value"]
    assert float(table["intervals/tpr@0.05"]["high"]) == result["intervals"]["tpr@0.05"]["high"]
    assert float(table["thresholds/0.1/fpr_interval/1"]["value"]) == result["thresholds"]["0.1"]["fpr_interval"][1]
