"""Thresholds meet reals that they were not fitted on."""

import numpy as np
import pytest

from fastdetect.errors import DataError
from fastdetect.evaluation.calibration import against, fit_threshold
from fastdetect.evaluation.fpr_check import fresh_fpr, held_out_fpr


def people(n: int, each: int = 1) -> list[str]:
    return [f"p{i}" for i in range(n) for _ in range(each)]


def test_fresh_reals_count_once_a_person() -> None:
    scores = np.r_[np.full(90, -1.0), np.full(10, 1.0)]
    found = fresh_fpr(scores, people(100), {"0.05": 0.0, "0.5": 0.0, "0.1": 0.0})
    assert found["0.05"]["fpr"] == 0.1
    assert found["0.05"]["identities"] == 100
    low, high = found["0.05"]["interval"]
    assert low == pytest.approx(0.049, abs=0.001)  # Clopper-Pearson of 10 of 100
    assert high == pytest.approx(0.176, abs=0.001)
    assert [found[key]["fpr_is"] for key in ("0.05", "0.5", "0.1")] == ["as asked", "lower", "as asked"]
    # one person with a thousand loud videos is one of 21
    loud = fresh_fpr(np.r_[np.full(20, -1.0), np.full(1000, 1.0)], people(20) + ["loud"] * 1000, {"0.05": 0.0})
    assert loud["0.05"]["fpr"] == pytest.approx(1 / 21)


def test_folds_realise_what_is_asked_and_show_what_is_not() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=900) + np.repeat(rng.normal(size=300), 3)
    found = held_out_fpr(scores, people(300, 3), (0.05, 0.2))
    assert all(rate["fpr_is"] == "as asked" for rate in found.values())
    assert found["0.2"]["fpr"] == pytest.approx(0.2, abs=0.07)
    assert found == held_out_fpr(scores, people(300, 3), (0.05, 0.2))
    # a threshold fitted on quiet reals, met by loud ones
    raw = fit_threshold(scores[:450], people(150, 3), 0.05)["threshold"]
    assert fresh_fpr(scores[450:] + 3, people(150, 3), {"0.05": raw})["0.05"]["fpr_is"] == "higher"


def test_too_few_persons_for_folds() -> None:
    with pytest.raises(DataError, match="5 folds of 7 identities"):
        held_out_fpr(np.arange(7.0), people(7), (0.05,))


def test_words() -> None:
    assert against(0.05, (0.05, 0.1)) == "as asked"
    assert against(0.05, (0.06, 0.1)) == "higher"
    assert against(0.05, (0.0, 0.04)) == "lower"
