"""The evaluation report: figures against scikit-learn, what a missing score does, and the whole command on media."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from fastdetect.errors import DataError, UsageError
from fastdetect.evaluation import protocol
from fastdetect.evaluation.index import Entry
from fastdetect.evaluation.scoring import VideoScore


def entry(name: str, manipulation: str = "", paired: str | None = None) -> Entry:
    return Entry(
        path=Path(name),
        name=name,
        label=int(bool(manipulation)),
        manipulation=manipulation or "real",
        identity=paired or name,
        paired=Path(paired) if paired else None,
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
    result = protocol.report(entries, scores, resamples=100)
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
    json.dumps(result, allow_nan=False)


def test_missing_scores_are_named_and_enter_nothing(study) -> None:
    entries, scores = study
    extra = [entry("dark.mp4"), entry("broken.mp4", "face swap, A", "r0")]
    more = protocol.report([*entries, *extra], [*scores, scored(None), "DECODE_ERROR: no moov"], resamples=50)
    assert more["abstained"] == ["dark.mp4"]
    assert more["failed"] == {"broken.mp4": "DECODE_ERROR: no moov"}
    assert more["coverage"] == pytest.approx(45 / 47)
    same = protocol.report(entries, scores, resamples=50)
    assert more["overall"] == same["overall"]
    assert more["paired"] == same["paired"]
    text = protocol.to_markdown(more)
    assert "dark.mp4" in text
    assert "Failed: broken.mp4: DECODE_ERROR" in text
    with pytest.raises(DataError, match="both classes"):
        protocol.report(entries[:30], scores[:30])


def test_rates_at_the_stored_thresholds(study) -> None:
    entries, scores = study
    reals = sorted(s.margin for s in scores[:30])
    block = {
        "id": "abc",
        "method": "platt",
        "a": 2.0,
        "b": -1.0,
        "thresholds": {"0.1": float(expit(2 * reals[-3] - 1))},
    }
    result = protocol.report(entries, scores, block, resamples=50)
    row = result["thresholds"]["0.1"]
    assert row["fpr"] == pytest.approx(0.1)  # the three highest reals reach it, the third exactly
    assert row["tpr"] == pytest.approx(np.mean([s.margin >= reals[-3] for s in scores[30:]]))
    assert row["fpr_interval"][0] < 0.1 < row["fpr_interval"][1]
    assert "| 10 % |" in protocol.to_markdown(result)


def test_config(tmp_path: Path) -> None:
    path = tmp_path / "evaluate.yaml"
    path.write_text("index: [a.csv]\nsampling: fps:2\n")
    settings = protocol.load_config(path, ["split=null", "index=[b.csv, c.csv]", "resamples=10"])
    assert settings.index == [Path("b.csv"), Path("c.csv")]
    assert (settings.split, settings.sampling, settings.resamples) == (None, "fps:2", 10)
    with pytest.raises(UsageError, match="wanted key=value"):
        protocol.load_config(None, ["split"])
    with pytest.raises(UsageError, match="index"):
        protocol.load_config(None, [])
    with pytest.raises(UsageError, match="colour"):
        protocol.load_config(path, ["colour=red"])
    with pytest.raises(UsageError, match="cannot be read"):
        protocol.load_config(tmp_path / "none.yaml", [])
