"""Metrics against scikit-learn (ties, imbalance), and the bootstrap's coverage and errors."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from fastdetect.errors import DataError, ShapeError
from fastdetect.evaluation import metrics


def sample(seed: int, n_real: int, n_fake: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.r_[np.zeros(n_real, int), np.ones(n_fake, int)]
    scores = rng.normal(size=labels.size) + 0.7 * labels
    order = rng.permutation(labels.size)
    return labels[order], (np.round(scores) if ties else scores)[order]


CASES = [
    (s, n, m, t) for s, (n, m) in enumerate([(1, 1), (1, 7), (50, 3), (29, 26), (400, 300)]) for t in (False, True)
]


@pytest.mark.parametrize(("seed", "n_real", "n_fake", "ties"), CASES)
def test_against_scikit_learn(seed: int, n_real: int, n_fake: int, ties: bool) -> None:
    labels, scores = sample(seed, n_real, n_fake, ties)
    assert metrics.roc_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.average_precision(labels, scores) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    for limit in (0.0, 0.001, 0.01, 0.05, 0.5, 1.0):
        assert metrics.tpr_at_fpr(labels, scores, limit) == pytest.approx(tpr[fpr <= limit].max(), abs=1e-12)
    eer = metrics.equal_error_rate(labels, scores)
    assert np.interp(eer, fpr, tpr) >= 1 - eer - 1e-9  # the point (eer, 1 - eer) is on or under the curve ...
    if n_real > 20:  # ... and on it, to the height of one vertical step
        assert np.interp(eer - 1e-9, fpr, tpr) <= 1 - eer + 1e-6


def test_eer_of_known_distributions() -> None:
    # N(0,1) against N(2,1): both errors are Phi(-1) at the threshold 1.
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100_000)
    assert metrics.equal_error_rate(labels, rng.normal(size=200_000) + 2 * labels) == pytest.approx(0.15866, abs=0.003)
    assert metrics.equal_error_rate([0, 1], [0, 1]) == 0
    assert metrics.equal_error_rate([0, 1], [1, 0]) == 1
    assert metrics.equal_error_rate([0, 1], [1, 1]) == 0.5


def test_ece() -> None:
    # One bin each: |0.2 - 0| and |0.9 - 0.5| weighted 1/3 and 2/3.
    assert metrics.expected_calibration_error([0, 0, 1], [0.2, 0.9, 0.9]) == pytest.approx((0.2 + 2 * 0.4) / 3)
    rng = np.random.default_rng(1)
    p = rng.random(50_000)
    assert metrics.expected_calibration_error(rng.random(50_000) < p, p) < 0.02
    assert metrics.expected_calibration_error(rng.random(50_000) < 0.5, p) > 0.2
    with pytest.raises(ShapeError, match="0 to 1"):
        metrics.expected_calibration_error([0, 1], [0.2, 1.2])


def test_paired_counts() -> None:
    counts = metrics.paired_counts([1, 2, 3, 0], [0, 2, 1, 1])
    assert (counts.wins, counts.ties, counts.n) == (2, 1, 4)
    assert str(counts) == "2/4 (+1 ties)"
    with pytest.raises(ShapeError, match="one length"):
        metrics.paired_counts([1, 2], [1])


def test_types_count_once_each() -> None:
    classes = ["real"] * 4 + ["a"] * 8 + ["b"]
    scores = [0, 1, 2, 3] + [9] * 8 + [-1]
    assert metrics.auc_by_type(classes, scores) == {"a": 1.0, "b": 0.0}
    assert metrics.mean_auc(classes, scores) == 0.5


@pytest.mark.parametrize(
    "function",
    [
        metrics.roc_auc,
        metrics.average_precision,
        metrics.equal_error_rate,
        metrics.expected_calibration_error,
        metrics.summary,
    ],
)
def test_one_class_and_bad_input(function) -> None:
    with pytest.raises(DataError, match="0 real and 3 fake"):
        function([1, 1, 1], [0.1, 0.2, 0.3])
    with pytest.raises(DataError, match="2 real and 0 fake"):
        function([0, 0], [0.1, 0.2])
    with pytest.raises(DataError, match="1 of 2 scores"):
        function([0, 1], [np.nan, 0.2])
    with pytest.raises(ShapeError, match="one length"):
        function([0, 1, 1], [0.1, 0.2])
    with pytest.raises(ShapeError, match="0 \\(real\\) and 1"):
        function([0, 2], [0.1, 0.2])


def test_bootstrap_covers_the_true_auc() -> None:
    # Identities of four correlated videos; N(0,1) against N(1,1) marginally: the true AUC is Phi(1/sqrt(2)).
    truth, hits, naive, runs = 0.7602, 0, 0, 60
    for run in range(runs):
        rng = np.random.default_rng(run)
        labels = np.repeat([0, 1], 40 * 4)
        groups = np.repeat(np.arange(80), 4)
        scores = 0.9 * rng.normal(size=80)[groups] + np.sqrt(1 - 0.81) * rng.normal(size=320) + labels
        by_group = metrics.auc_interval(labels, scores, groups.astype(str).tolist(), resamples=150, seed=run)
        by_row = metrics.auc_interval(labels, scores, [str(i) for i in range(320)], resamples=150, seed=run)
        hits += by_group.low <= truth <= by_group.high
        naive += by_row.low <= truth <= by_row.high
    assert hits / runs > 0.88
    assert naive < hits  # ignoring identities makes intervals that are too narrow


def test_bootstrap_keeps_every_class_and_repeats_with_its_seed() -> None:
    # "b" lives only beside the rarer "c": its resamples need the redraw rule now and then.
    groups = ["g1", "g1", "g1", "g2", "g2", "g2", "g3", "g4", "g5", "g6"]
    classes = ["real", "b", "c", "real", "c", "d", "real", "real", "real", "real"]
    seen = []

    def statistic(index: np.ndarray) -> float:
        picked = {classes[i] for i in index}
        seen.append(picked)
        return float(len(index))

    first = metrics.bootstrap(statistic, groups, classes, resamples=100, seed=3)
    assert all(picked == {"real", "b", "c", "d"} for picked in seen)
    assert first == metrics.bootstrap(statistic, groups, classes, resamples=100, seed=3)
    assert first.groups == 1


def test_fast_intervals_are_the_generic_bootstrap() -> None:
    rng = np.random.default_rng(2)
    classes = ["real"] * 30 + ["a"] * 12 + ["b"] * 5
    groups = [f"g{i}" for i in rng.integers(0, 25, 47)]
    scores = np.round(rng.normal(size=47), 1)
    labels = np.array([kind != "real" for kind in classes]).astype(int)
    slow = metrics.bootstrap(lambda i: metrics.roc_auc(labels[i], scores[i]), groups, labels.tolist(), seed=5)
    fast = metrics.auc_interval(labels, scores, groups, seed=5)
    assert (fast.value, fast.low, fast.high, fast.groups) == pytest.approx(
        (slow.value, slow.low, slow.high, slow.groups)
    )
    kinds = np.array(classes)
    slow = metrics.bootstrap(lambda i: metrics.mean_auc(kinds[i], scores[i]), groups, classes, resamples=300)
    fast = metrics.mean_auc_interval(classes, scores, groups, resamples=300)
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high))


def test_bootstrap_needs_two_classes() -> None:
    with pytest.raises(DataError, match="both classes"):
        metrics.bootstrap(lambda i: 0.0, ["a", "b"], [1, 1])
    with pytest.raises(ShapeError, match="2 groups, 3 classes"):
        metrics.bootstrap(lambda i: 0.0, ["a", "b"], [1, 1, 0])
