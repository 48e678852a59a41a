"""Detection metrics, bootstrap intervals by identity; labels are 0 = real, 1 = fake, higher is more fake."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastdetect.errors import DataError, ShapeError

# A class that sits in few groups can be missing from a resample; it is drawn again, at most this often.
MAX_REDRAWS = 1000


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval, and how many groups (identities) the interval rests on."""

    value: float
    low: float
    high: float
    groups: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _split(labels: ArrayLike, scores: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the reals and of the fakes, float64, after every check."""
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ShapeError(f"{name}: labels {truth.shape} and scores {values.shape}; wanted two vectors of one length")
    if not np.isin(truth, (0, 1)).all():
        raise ShapeError(f"{name}: labels {np.unique(truth)[:5].tolist()}; wanted 0 (real) and 1 (fake) only")
    if not np.isfinite(values).all():
        raise DataError(f"{name}: {np.count_nonzero(~np.isfinite(values))} of {values.size} scores are not finite")
    real, fake = values[truth == 0], values[truth == 1]
    if not real.size or not fake.size:
        raise DataError(f"{name} needs both classes, got {real.size} real and {fake.size} fake")
    return real, fake


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the share of (fake, real) pairs in the right order, ties counted half.

    Args:
        labels: [N], 0 = real, 1 = fake.
        scores: [N], finite, any scale.
    Returns:
        0 to 1.
    Raises:
        DataError: one class only, or a score that is not finite.
        ShapeError: not two vectors of one length, or other labels.

    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.9])
    0.875
    """
    real, fake = _split(labels, scores, "AUC")
    real.sort()
    below = np.searchsorted(real, fake, "left") + np.searchsorted(real, fake, "right")
    return float(below.sum() / (2 * real.size * fake.size))


def _roc(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FPR and TPR of "score >= t" for every distinct t from +inf down."""
    steps = np.unique(np.concatenate([real, fake]))[::-1]
    fpr = 1 - np.searchsorted(np.sort(real), steps, "left") / real.size
    tpr = 1 - np.searchsorted(np.sort(fake), steps, "left") / fake.size
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision, the fakes being what is looked for: the sum of precision times the step in recall.

    It depends on the share of fakes; compare it only on the same files. Arguments and errors as in `roc_auc`.
    """
    real, fake = _split(labels, scores, "AP")
    fpr, tpr = _roc(real, fake)
    hits, alarms = tpr[1:] * fake.size, fpr[1:] * real.size
    return float(np.sum(np.diff(tpr) * hits / (hits + alarms)))


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> float:
    """The error rate where false alarms equal misses, on the ROC curve's straight pieces.

    Arguments and errors as in `roc_auc`.
    """
    fpr, tpr = _roc(*_split(labels, scores, "EER"))
    gap = fpr - (1 - tpr)
    after = int(np.argmax(gap >= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(fpr[after - 1] + share * (fpr[after] - fpr[after - 1]))


def tpr_at_fpr(labels: ArrayLike, scores: ArrayLike, fpr: float) -> float:
    """The highest share of fakes found by a threshold that at most a share `fpr` of these reals reaches.

    Steps, no interpolation: with n reals and fpr < 1/n no real may be reached. The threshold is chosen on the
    files that it is measured on; a stored threshold's rates come from `calibration.check_fpr`.

    Args:
        labels, scores: as in `roc_auc`.
        fpr: 0 to 1.
    """
    if not 0 <= fpr <= 1:
        raise ShapeError(f"fpr {fpr}: wanted 0 to 1")
    alarms, found = _roc(*_split(labels, scores, "TPR at FPR"))
    return float(found[alarms <= fpr + 1e-12].max())


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 15) -> float:
    """Mean distance between the stated probability of fake and the share of fakes, over bins of equal width.

    Args:
        labels: [N], 0 or 1; both classes.
        probabilities: [N], P(fake), 0 to 1.
        bins: how many; the right edge belongs to a bin, 0 to the first.
    """
    _split(labels, probabilities, "ECE")
    truth, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if p.min() < 0 or p.max() > 1:
        raise ShapeError(f"ECE: probabilities from {p.min():.3g} to {p.max():.3g}; wanted 0 to 1")
    index = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=p - truth, minlength=bins)
    return float(np.abs(gaps).sum() / p.size)


@dataclass(frozen=True)
class PairedCounts:
    """How many of `n` fakes score above the very real they were made from (`wins`), or as high (`ties`)."""

    wins: int
    ties: int
    n: int

    def __str__(self) -> str:
        return f"{self.wins}/{self.n}" + (f" (+{self.ties} ties)" if self.ties else "")


def paired_counts(fake_scores: ArrayLike, own_real_scores: ArrayLike) -> PairedCounts:
    """Count the fakes that score above their own real.

    Args:
        fake_scores: [N].
        own_real_scores: [N], of the real that each fake was made from; one real may stand for several fakes.
    """
    fake, real = np.asarray(fake_scores, dtype=np.float64), np.asarray(own_real_scores, dtype=np.float64)
    if fake.ndim != 1 or fake.shape != real.shape:
        raise ShapeError(f"pairs: {fake.shape} fakes and {real.shape} reals; wanted two vectors of one length")
    return PairedCounts(int((fake > real).sum()), int((fake == real).sum()), fake.size)


def auc_by_type(classes: Sequence[str], scores: ArrayLike, *, real: str = "real") -> dict[str, float]:
    """AUC of each manipulation type against all reals.

    Args:
        classes: [N], `real` or the name of a manipulation type.
        scores: [N].
        real: the class name of the reals.
    """
    names, values = np.asarray(classes), np.asarray(scores, dtype=np.float64)
    types = sorted(set(names.tolist()) - {real})
    if not types:
        raise DataError(f"AUC by type needs fakes, got {names.size} rows, all {real!r}")
    rows = {name: (names == name) | (names == real) for name in types}
    return {name: roc_auc(names[keep] == name, values[keep]) for name, keep in rows.items()}


def mean_auc(classes: Sequence[str], scores: ArrayLike, *, real: str = "real") -> float:
    """Unweighted mean of `auc_by_type`: a type counts once, however many files it has."""
    return float(np.mean(list(auc_by_type(classes, scores, real=real).values())))


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[str],
    classes: Sequence[str] | Sequence[int],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic, resampling whole identity groups with replacement [ours].

    Videos of one identity are not independent, so a group is drawn with all its rows. Each group belongs
    to the stratum of the rarest class that it contains (fewest groups), and every stratum is resampled to its
    own size, so each class exists in each resample; where a class has no stratum of its own, a resample
    without it is drawn again. With few groups (below about ten in a class) the interval is too narrow:
    `groups`, those of the rarest class, says so. It cannot show what was not seen: an AUC of 1.0 has the
    interval [1, 1].

    Args:
        statistic: value of the rows whose indices [M] it gets, repeats included.
        groups: [N], identity of each row.
        classes: [N], real or fake, or the manipulation type.
        resamples: how many.
        level: 0 to 1.
        seed: the same seed gives the same interval.
    Raises:
        DataError: one class only, or a class that hardly any resample contains.
    """
    counts, rarest = _resample(groups, classes, resamples, seed)
    rows = np.arange(len(groups))
    values = [statistic(np.repeat(rows, count.astype(int))) for count in counts]
    return _interval(statistic(rows), np.array(values), level, rarest)


def _resample(groups: Sequence[str], classes: Sequence[Any], resamples: int, seed: int) -> tuple[np.ndarray, int]:
    """How often each row is in each resample [resamples, N], and the number of groups of the rarest class."""
    if len(groups) != len(classes):
        raise ShapeError(f"bootstrap: {len(groups)} groups, {len(classes)} classes; wanted one of each a row")
    kinds, kind_of = np.unique(np.asarray(classes), return_inverse=True)
    if len(kinds) < 2:
        raise DataError(f"bootstrap needs both classes, got {len(classes)} rows of {kinds.tolist()}")
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    holds = np.zeros((len(names), len(kinds)), bool)
    holds[group_of, kind_of] = True
    spread = holds.sum(0)
    stratum = np.where(holds, spread, len(names) + 1).argmin(1)
    rng = np.random.default_rng(seed)

    def draw(n: int) -> np.ndarray:
        drawn = np.zeros((n, len(names)))
        for members in (np.flatnonzero(stratum == k) for k in range(len(kinds))):
            if members.size:
                drawn[:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), n)
        return drawn

    counts = draw(resamples)
    for _ in range(MAX_REDRAWS):
        short = ~(counts @ holds > 0).all(1)
        if not short.any():
            return counts[:, group_of], int(spread.min())
        counts[short] = draw(int(short.sum()))
    raise DataError(f"bootstrap: {len(names)} groups are too few to hold all of {kinds.tolist()}")


def _interval(value: float, values: np.ndarray, level: float, groups: int) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), groups)


def _weighted_auc(is_fake: np.ndarray, is_real: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """AUC [B] of rows that are there counts [B,N] times."""
    fake, real = scores[is_fake, None], scores[None, is_real]
    order = (fake > real) + 0.5 * (fake == real)
    heavy_fake, heavy_real = counts[:, is_fake], counts[:, is_real]
    won = ((heavy_fake @ order) * heavy_real).sum(1)
    return won / (heavy_fake.sum(1) * heavy_real.sum(1))


def auc_interval(
    labels: ArrayLike, scores: ArrayLike, groups: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`roc_auc` with its 95 % `bootstrap` interval by identity."""
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    value = roc_auc(truth, values)
    counts, rarest = _resample(groups, truth.tolist(), resamples, seed)
    return _interval(value, _weighted_auc(truth == 1, truth == 0, values, counts), 0.95, rarest)


def mean_auc_interval(
    classes: Sequence[str],
    scores: ArrayLike,
    groups: Sequence[str],
    *,
    real: str = "real",
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """`mean_auc` with its 95 % `bootstrap` interval by identity; every type is in every resample."""
    kinds, values = np.asarray(classes), np.asarray(scores, dtype=np.float64)
    by_type = auc_by_type(classes, values, real=real)
    counts, rarest = _resample(groups, kinds.tolist(), resamples, seed)
    draws = [_weighted_auc(kinds == name, kinds == real, values, counts) for name in by_type]
    return _interval(float(np.mean(list(by_type.values()))), np.mean(draws, axis=0), 0.95, rarest)


def summary(labels: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """AUC, AP, EER and TPR at 0.1, 1 and 5 % FPR in one mapping; arguments and errors as in `roc_auc`."""
    return {
        "auc": roc_auc(labels, scores),
        "ap": average_precision(labels, scores),
        "eer": equal_error_rate(labels, scores),
        **{f"tpr@{fpr:g}": tpr_at_fpr(labels, scores, fpr) for fpr in (0.001, 0.01, 0.05)},
    }
