"""Detection metrics; labels are 0 = real, 1 = fake, higher scores are more fake."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastdetect.errors import DataError, ShapeError

BINS = 15  # of the calibration error
TARGET_FPR = (0.001, 0.01, 0.05)


def _checked(labels: ArrayLike, scores: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels as bool and the scores as float64, after every check."""
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ShapeError(f"{name}: labels {truth.shape} and scores {values.shape}; wanted two vectors of one length")
    if not np.isin(truth, (0, 1)).all():
        raise ShapeError(f"{name}: labels {np.unique(truth)[:5].tolist()}; wanted 0 (real) and 1 (fake) only")
    if not np.isfinite(values).all():
        raise DataError(f"{name}: {np.count_nonzero(~np.isfinite(values))} of {values.size} scores are not finite")
    is_fake = truth == 1
    if is_fake.all() or not is_fake.any():
        raise DataError(f"{name} needs both classes, got {(~is_fake).sum()} real and {is_fake.sum()} fake")
    return is_fake, values


@dataclass(frozen=True)
class Roc:
    """ROC curves of B weightings of the same rows, at "score >= t" for t from +inf down over the distinct scores.

    Attributes:
        alarms, hits: [B,K+1] weight of the reals and of the fakes found at each of K distinct scores, first 0.
    """

    alarms: np.ndarray
    hits: np.ndarray

    @property
    def fpr(self) -> np.ndarray:
        return self.alarms / self.alarms[:, -1:]

    @property
    def tpr(self) -> np.ndarray:
        return self.hits / self.hits[:, -1:]

    def auc(self) -> np.ndarray:
        """[B] area: the share of (fake, real) pairs in the right order, ties counted half."""
        middle = (self.hits[:, 1:] + self.hits[:, :-1]) / 2
        area = (np.diff(self.alarms) * middle).sum(1)
        return area / (self.alarms[:, -1] * self.hits[:, -1])

    def average_precision(self) -> np.ndarray:
        """[B] sum of precision times the step in recall."""
        found = self.alarms[:, 1:] + self.hits[:, 1:]
        precision = np.divide(self.hits[:, 1:], found, out=np.zeros_like(found), where=found > 0)
        return (np.diff(self.hits) * precision).sum(1) / self.hits[:, -1]

    def equal_error_rate(self) -> np.ndarray:
        """[B] the error rate where false alarms equal misses, on the curve's straight pieces."""
        fpr, row = self.fpr, np.arange(len(self.alarms))
        gap = fpr - (1 - self.tpr)
        after = np.argmax(gap >= 0, axis=1)  # never 0: the curve starts at a gap of -1
        share = gap[row, after - 1] / (gap[row, after - 1] - gap[row, after])
        return fpr[row, after - 1] + share * (fpr[row, after] - fpr[row, after - 1])

    def tpr_at(self, fpr: float) -> np.ndarray:
        """[B] the highest TPR of a threshold that at most a share `fpr` of these reals reaches; no interpolation."""
        return np.where(self.fpr <= fpr + 1e-12, self.tpr, 0.0).max(1)

    def at(self, grid: np.ndarray) -> np.ndarray:
        """[B,G] TPR at the false-positive rates `grid`, on the curve's straight pieces, upper end of vertical ones."""
        just_after = grid + 1e-9  # the top of a vertical piece
        return np.stack([np.interp(just_after, f, t) for f, t in zip(self.fpr, self.tpr, strict=True)])


class Ranking:
    """Rows in order of their scores, sorted once for many weightings.

    Args:
        labels: [N], 0 = real, 1 = fake; both classes.
        scores: [N], finite, any scale.
        name: of the metric, for messages.
    Raises:
        DataError: one class only, or a score that is not finite.
        ShapeError: not two vectors of one length, or other labels.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike, name: str = "ROC") -> None:
        is_fake, values = _checked(labels, scores, name)
        self.order = np.argsort(-values, kind="stable")
        falling = values[self.order]
        self.starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])
        self.is_fake = is_fake[self.order]
        self.thresholds = falling[self.starts]

    def roc(self, counts: np.ndarray | None = None) -> Roc:
        """Curves where rows weigh `counts` [B,N], by default one each."""
        weights = np.ones((1, self.order.size)) if counts is None else counts[:, self.order]
        fakes = np.add.reduceat(weights * self.is_fake, self.starts, axis=1)
        both = np.add.reduceat(weights, self.starts, axis=1)
        nothing = np.zeros((len(weights), 1))
        hits = np.cumsum(np.concatenate([nothing, fakes], 1), axis=1)
        return Roc(np.cumsum(np.concatenate([nothing, both - fakes], 1), axis=1), hits)


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
    return float(Ranking(labels, scores, "AUC").roc().auc()[0])


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision, the fakes being what is looked for: the sum of precision times the step in recall.

    It depends on the share of fakes; compare it only on the same files. Arguments and errors as in `roc_auc`.
    """
    return float(Ranking(labels, scores, "AP").roc().average_precision()[0])


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> float:
    """The error rate where false alarms equal misses, on the ROC curve's straight pieces.

    Arguments and errors as in `roc_auc`.
    """
    return float(Ranking(labels, scores, "EER").roc().equal_error_rate()[0])


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
    return float(Ranking(labels, scores, "TPR at FPR").roc().tpr_at(fpr)[0])


def threshold_at_fpr(labels: ArrayLike, scores: ArrayLike, fpr: float) -> float:
    """The threshold of `tpr_at_fpr`: the lowest score that at most a share `fpr` of these reals reaches.

    Above every score where even the highest is reached by too many.
    """
    ranking = Ranking(labels, scores, "threshold at FPR")
    within = np.flatnonzero(ranking.roc().fpr[0] <= fpr + 1e-12)[-1]
    return float(ranking.thresholds[within - 1]) if within else float(np.nextafter(ranking.thresholds[0], np.inf))


def calibration_gaps(labels: ArrayLike, probabilities: ArrayLike, *, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """The rows' parts of the calibration error: bin [N] and gap [N] = probability - label.

    Args:
        labels: [N], 0 or 1; both classes.
        probabilities: [N], P(fake), 0 to 1.
        bins: of equal width; the right edge belongs to a bin, 0 to the first.
    """
    is_fake, p = _checked(labels, probabilities, "ECE")
    if p.min() < 0 or p.max() > 1:
        raise ShapeError(f"ECE: probabilities from {p.min():.3g} to {p.max():.3g}; wanted 0 to 1")
    return np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1), p - is_fake


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, *, bins: int = BINS) -> float:
    """Mean distance between the stated probability of fake and the share of fakes, over bins of equal width.

    Arguments as in `calibration_gaps`.
    """
    index, gap = calibration_gaps(labels, probabilities, bins=bins)
    return float(np.abs(np.bincount(index, weights=gap, minlength=bins)).sum() / gap.size)


@dataclass(frozen=True)
class Selective:
    """Error rates when the least certain videos get no verdict.

    Attributes:
        coverage, risk: [K] share of videos that keep one, and the share of these that is wrong, from the most certain
            on; videos of equal certainty are kept together.
        area: mean risk over the videos as they are added (AURC; 0 is best).
    """

    coverage: np.ndarray
    risk: np.ndarray
    area: float


def selective_risk(labels: ArrayLike, probabilities: ArrayLike, counts: np.ndarray | None = None) -> list[Selective]:
    """Risk against coverage [Geifman & El-Yaniv, 2017]: wrong at 0.5, the least certain abstained from first.

    Args:
        labels: [N], 0 or 1; both classes.
        probabilities: [N], calibrated P(fake).
        counts: [B,N] weights of the rows, by default one each.
    Returns:
        One for each weighting.
    """
    is_fake, p = _checked(labels, probabilities, "risk")
    certainty = np.abs(p - 0.5)
    order = np.argsort(-certainty, kind="stable")
    falling = certainty[order]
    ends = np.flatnonzero(np.r_[falling[1:] != falling[:-1], True])
    wrong = ((p >= 0.5) != is_fake)[order]
    found = []
    for weights in np.ones((1, p.size)) if counts is None else counts:
        kept = np.cumsum(weights[order])[ends]
        missed = np.cumsum(weights[order] * wrong)[ends]
        some = kept > 0
        kept, missed = kept[some], missed[some]
        risk = missed / kept
        found.append(Selective(kept / kept[-1], risk, float((np.diff(kept, prepend=0) * risk).sum() / kept[-1])))
    return found


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


def summary(labels: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """AUC, AP, EER and TPR at 0.1, 1 and 5 % FPR in one mapping; arguments and errors as in `roc_auc`."""
    return {name: float(values[0]) for name, values in summary_of(Ranking(labels, scores, "summary").roc()).items()}


def summary_of(roc: Roc) -> dict[str, np.ndarray]:
    """The figures of `summary`, [B] each."""
    return {
        "auc": roc.auc(),
        "ap": roc.average_precision(),
        "eer": roc.equal_error_rate(),
        **{f"tpr@{fpr:g}": roc.tpr_at(fpr) for fpr in TARGET_FPR},
    }
