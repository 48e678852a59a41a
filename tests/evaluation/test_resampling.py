"""The bootstrap by identity: its coverage, its strata, what it refuses, and that batches of it are the plain thing."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fastdetect.errors import DataError, ShapeError
from fastdetect.evaluation import metrics, resampling
from fastdetect.evaluation.resampling import Resamples, auc_interval, mean_auc_interval


def test_bootstrap_covers_the_true_auc() -> None:
    # Identities of four correlated videos; N(0,1) against N(1,1) marginally: the true AUC is Phi(1/sqrt(2)).
    truth, hits, naive, runs = 0.7602, 0, 0, 60
    for run in range(runs):
        rng = np.random.default_rng(run)
        labels = np.repeat([0, 1], 40 * 4)
        groups = np.repeat(np.arange(80), 4)
        scores = 0.9 * rng.normal(size=80)[groups] + np.sqrt(1 - 0.81) * rng.normal(size=320) + labels
        by_group = auc_interval(labels, scores, groups.astype(str).tolist(), resamples=150, seed=run)
        by_row = auc_interval(labels, scores, [str(i) for i in range(320)], resamples=150, seed=run)
        hits += by_group.low <= truth <= by_group.high
        naive += by_row.low <= truth <= by_row.high
    assert hits / runs > 0.88
    assert naive < hits  # ignoring identities makes intervals that are too narrow


def test_every_resample_has_every_class_whole_identities_and_repeats_with_its_seed() -> None:
    # "z" lives beside the as rare "c" and "d", whose strata they are: one resample in sixteen is drawn again for it.
    groups = ["g1", "g1", "g2", "g3", "g3", "g4", "g5", "g6", "g7", "g8"]
    classes = ["z", "c", "c", "z", "d", "d", "real", "real", "real", "real"]
    drawn = Resamples(groups, classes, resamples=100, seed=3)
    weights = np.concatenate(list(drawn.weights()))
    assert weights.shape == (100, 10)
    for kind in set(classes):
        assert (weights[:, np.array(classes) == kind].sum(1) > 0).all()
    assert (weights[:, 0] == weights[:, 1]).all()  # an identity is drawn with all its rows
    assert drawn.rarest == 2
    again = Resamples(groups, classes, resamples=100, seed=3)
    assert np.array_equal(weights, np.concatenate(list(again.weights())))
    other = Resamples(groups, classes, resamples=100, seed=4)
    assert not np.array_equal(weights, np.concatenate(list(other.weights())))


def test_each_stratum_keeps_its_size() -> None:
    # Two of twelve identities have fakes, beside reals: they are drawn from each other, twice in every resample.
    groups = [f"p{i}" for i in range(12)] + ["p0", "p1"]
    weights = np.concatenate(list(Resamples(groups, [0] * 12 + [1] * 2, resamples=50).weights()))
    assert (weights[:, 12:].sum(1) == 2).all()
    assert (weights[:, :12].sum(1) == 12).all()
    assert len(np.unique(weights, axis=0)) > 25


def test_intervals_are_quantiles_of_the_metric_on_repeated_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    classes = ["real"] * 30 + ["a"] * 12 + ["b"] * 5
    groups = [f"g{i}" for i in rng.integers(0, 25, 47)]
    scores = np.round(rng.normal(size=47), 1)
    labels = np.array([kind != "real" for kind in classes]).astype(int)
    monkeypatch.setattr(resampling, "_CHUNK", 47 * 7)  # chunks of seven resamples
    rows = [
        np.repeat(np.arange(47), counts.astype(int))
        for weights in Resamples(groups, labels.tolist(), resamples=200, seed=5).weights()
        for counts in weights
    ]
    slow = np.quantile([roc_auc_score(labels[r], scores[r]) for r in rows], [0.025, 0.975])
    fast = auc_interval(labels, scores, groups, resamples=200, seed=5)
    assert (fast.value, fast.low, fast.high) == pytest.approx((roc_auc_score(labels, scores), *slow))
    kinds = np.array(classes)
    rows = [
        np.repeat(np.arange(47), counts.astype(int))
        for weights in Resamples(groups, classes, resamples=100).weights()
        for counts in weights
    ]
    slow = np.quantile([metrics.mean_auc(kinds[r], scores[r]) for r in rows], [0.025, 0.975])
    fast = mean_auc_interval(classes, scores, groups, resamples=100)
    assert (fast.value, fast.low, fast.high) == pytest.approx((metrics.mean_auc(classes, scores), *slow))


def test_several_statistics_at_once_are_each_alone() -> None:
    rng = np.random.default_rng(0)
    labels, scores = np.repeat([0, 1], 20), rng.normal(size=40)
    ranking = metrics.Ranking(labels, scores)
    drawn = Resamples([f"p{i % 13}" for i in range(40)], labels.tolist(), resamples=50)
    both = drawn.intervals(lambda weights: metrics.summary_of(ranking.roc(weights)))
    assert both["eer"] == drawn.interval(lambda weights: ranking.roc(weights).equal_error_rate())
    assert both["auc"].as_dict() == {"value": both["auc"].value, "low": both["auc"].low, "high": both["auc"].high}


def test_it_needs_two_classes_that_can_be_drawn() -> None:
    with pytest.raises(DataError, match="both classes"):
        Resamples(["a", "b"], [1, 1])
    with pytest.raises(ShapeError, match="2 groups, 3 classes"):
        Resamples(["a", "b"], [1, 1, 0])
