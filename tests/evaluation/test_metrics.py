"""Metrics against scikit-learn: ties, imbalance, weights, and what is refused."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, auc, average_precision_score, roc_auc_score, roc_curve

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
        threshold = metrics.threshold_at_fpr(labels, scores, limit)
        assert np.mean(scores[labels == 0] >= threshold) <= limit
        assert np.mean(scores[labels == 1] >= threshold) == pytest.approx(tpr[fpr <= limit].max(), abs=1e-12)
    roc = metrics.Ranking(labels, scores).roc()
    np.testing.assert_allclose(roc.fpr[0], fpr, atol=1e-12)
    np.testing.assert_allclose(roc.tpr[0], tpr, atol=1e-12)
    eer = metrics.equal_error_rate(labels, scores)
    assert np.interp(eer, fpr, tpr) >= 1 - eer - 1e-9  # the point (eer, 1 - eer) is on or under the curve ...
    if n_real > 20:  # ... and on it, to the height of one vertical step
        assert np.interp(eer - 1e-9, fpr, tpr) <= 1 - eer + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_weighted_curves_against_scikit_learn(seed: int) -> None:
    labels, scores = sample(seed, 30, 20, ties=True)
    counts = np.random.default_rng(seed).integers(0, 4, (3, 50)).astype(float)
    roc = metrics.Ranking(labels, scores).roc(counts)
    found = metrics.summary_of(roc)
    grid = np.linspace(0, 1, 21)
    for b, weights in enumerate(counts):
        assert found["auc"][b] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
        assert found["ap"][b] == pytest.approx(average_precision_score(labels, scores, sample_weight=weights))
        rows = np.repeat(np.arange(50), weights.astype(int))  # a weight is a repeated row
        for name, value in metrics.summary(labels[rows], scores[rows]).items():
            assert found[name][b] == pytest.approx(value)
        fpr, tpr, _ = roc_curve(labels[rows], scores[rows], drop_intermediate=False)
        assert auc(grid, roc.at(grid)[b]) == pytest.approx(auc(fpr, tpr), abs=0.06)
        on = np.isin(np.round(grid, 9), np.round(fpr, 9))
        top = [tpr[np.isclose(fpr, at)].max() for at in grid[on]]
        np.testing.assert_allclose(roc.at(grid)[b][on], top, atol=1e-6)


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
    for wrong in (1.2, -0.2):
        with pytest.raises(ShapeError, match="0 to 1"):
            metrics.expected_calibration_error([0, 1], [0.2, wrong])


def test_a_bin_of_the_ece_ends_at_its_right_edge_and_the_first_holds_zero() -> None:
    index, gap = metrics.calibration_gaps([0, 0, 1, 1, 1], [0.0, 0.25, 0.26, 0.75, 1.0], bins=4)
    assert index.tolist() == [0, 0, 1, 2, 3]
    np.testing.assert_allclose(gap, [0, 0.25, -0.74, -0.25, 0])


def test_ece_against_scikit_learn_s_curve() -> None:
    rng = np.random.default_rng(3)
    p = rng.random(2000)
    labels = (rng.random(2000) < p**2).astype(int)
    share, mean = calibration_curve(labels, p, n_bins=15)
    counts = np.histogram(p, np.linspace(0, 1, 16))[0]
    assert metrics.expected_calibration_error(labels, p) == pytest.approx(
        np.average(np.abs(share - mean), weights=counts)
    )


def test_selective_risk_against_accuracy_on_the_most_certain() -> None:
    rng = np.random.default_rng(4)
    p = np.round(rng.random(60), 2)
    labels = (rng.random(60) < p).astype(int)
    found = metrics.selective_risk(labels, p)[0]
    certainty = np.abs(p - 0.5)
    for coverage, risk in zip(found.coverage, found.risk, strict=True):
        least = np.sort(certainty)[::-1][round(coverage * 60) - 1]
        kept = certainty >= least
        assert kept.mean() == pytest.approx(coverage)
        assert risk == pytest.approx(1 - accuracy_score(labels[kept], p[kept] >= 0.5))
    assert found.coverage[-1] == 1
    assert found.area == pytest.approx(np.average(found.risk, weights=np.diff(found.coverage, prepend=0)))
    # perfect on the certain half, coin flips on the other: abstaining from these leaves no error
    p = np.r_[np.full(50, 0.99), np.full(50, 0.51)]
    labels = np.r_[np.ones(50, int), np.tile([0, 1], 25)]
    sharp = metrics.selective_risk(labels, p)[0]
    assert sharp.risk.tolist() == [0, 0.25]
    doubled = metrics.selective_risk(labels, p, np.stack([np.ones(100), np.r_[np.full(50, 2.0), np.ones(50)]]))
    assert doubled[0].area == sharp.area
    assert doubled[1].risk.tolist() == pytest.approx([0, 25 / 150])
    undrawn = metrics.selective_risk(labels, p, np.r_[np.zeros(50), np.ones(50)][None])[0]  # the certain half
    assert (undrawn.coverage.tolist(), undrawn.risk.tolist(), undrawn.area) == ([1], [0.5], 0.5)


def test_a_half_is_called_fake() -> None:
    assert metrics.selective_risk([0, 1], [0.5, 0.5])[0].risk.tolist() == [0.5]
    assert metrics.selective_risk([0, 1], [0.1, 0.5])[0].risk.tolist() == [0, 0]


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
    assert metrics.mean_auc([*classes, "c"], [*scores, -1]) == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="all 'real'"):
        metrics.auc_by_type(["real"] * 2, [0, 1])


def test_a_rate_outside_0_to_1_is_refused() -> None:
    for fpr in (-0.01, 1.01):
        with pytest.raises(ShapeError, match="0 to 1"):
            metrics.tpr_at_fpr([0, 1], [0, 1], fpr)


@pytest.mark.parametrize(
    "function",
    [
        metrics.roc_auc,
        metrics.average_precision,
        metrics.equal_error_rate,
        metrics.expected_calibration_error,
        metrics.selective_risk,
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
