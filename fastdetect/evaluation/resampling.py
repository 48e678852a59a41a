"""Bootstrap intervals by identity: whole persons are drawn, never single videos."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastdetect.errors import DataError, ShapeError
from fastdetect.evaluation.metrics import Ranking, auc_by_type

# A class that sits in few groups can be missing from a resample; it is drawn again, at most this often.
MAX_REDRAWS = 1000
_CHUNK = 2**22  # row weights in memory at a time, 32 MB

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval, and how many groups (identities) the interval rests on."""

    value: float
    low: float
    high: float
    groups: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float]:
        """Value and ends, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


class Resamples:
    """Resamples of rows that draw whole identity groups with replacement [ours].

    Videos of one identity are not independent, so a group is drawn with all its rows. Each group belongs
    to the stratum of the rarest class that it contains (fewest groups), and every stratum is resampled to its
    own size, so each class exists in each resample; where a class has no stratum of its own, a resample
    without it is drawn again. With few groups (below about ten in a class) intervals are too narrow:
    `rarest`, the groups of the rarest class, says so. They cannot show what was not seen: an AUC of 1.0 has the
    interval [1, 1].

    Args:
        groups: [N], identity of each row.
        classes: [N], real or fake, or the manipulation type.
        resamples: how many.
        seed: the same seed gives the same resamples.
        width: columns of the widest table that a statistic makes of its weights, where that is more than N; bounds
            the memory, changes no number.
    Raises:
        DataError: one class only, or a class that hardly any resample contains.
    """

    def __init__(
        self,
        groups: Sequence[str],
        classes: Sequence[str] | Sequence[int],
        *,
        resamples: int = 2000,
        seed: int = 0,
        width: int = 0,
    ) -> None:
        if len(groups) != len(classes):
            raise ShapeError(f"bootstrap: {len(groups)} groups, {len(classes)} classes; wanted one of each a row")
        kinds, kind_of = np.unique(np.asarray(classes), return_inverse=True)
        if len(kinds) < 2:
            raise DataError(f"bootstrap needs both classes, got {len(classes)} rows of {kinds.tolist()}")
        names, self._group_of = np.unique(np.asarray(groups), return_inverse=True)
        holds = np.zeros((len(names), len(kinds)), bool)
        holds[self._group_of, kind_of] = True
        spread = holds.sum(0)
        self.rarest = int(spread.min())
        self._width = max(width, len(groups))
        self._counts = _draw(holds, spread, resamples, np.random.default_rng(seed), kinds.tolist())

    def weights(self) -> Iterator[np.ndarray]:
        """How often each row is in each resample, [b,N] a chunk."""
        step = max(1, _CHUNK // self._width)
        for start in range(0, len(self._counts), step):
            yield self._counts[start : start + step, self._group_of]

    def draws(self, statistic: Statistic) -> np.ndarray:
        """[B, ...] values of a statistic that takes row weights [b,N] and gives [b, ...]."""
        return np.concatenate([statistic(weights) for weights in self.weights()])

    def interval(self, statistic: Statistic, *, level: float = 0.95) -> Interval:
        """Percentile interval of a statistic of row weights [b,N] -> [b]; its value is that of weights of one."""
        value = float(statistic(np.ones((1, len(self._group_of))))[0])
        return self._interval(value, self.draws(statistic), level)

    def intervals(
        self, statistics: Callable[[np.ndarray], Mapping[str, np.ndarray]], *, level: float = 0.95
    ) -> dict[str, Interval]:
        """`interval` of several statistics that are worked out together."""
        once = statistics(np.ones((1, len(self._group_of))))
        many = [statistics(weights) for weights in self.weights()]
        return {
            name: self._interval(float(value[0]), np.concatenate([some[name] for some in many]), level)
            for name, value in once.items()
        }

    def _interval(self, value: float, draws: np.ndarray, level: float) -> Interval:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        return Interval(value, float(low), float(high), self.rarest)


def _draw(
    holds: np.ndarray, spread: np.ndarray, resamples: int, rng: np.random.Generator, kinds: list[Any]
) -> np.ndarray:
    """How often each group is in each resample [resamples, G]."""
    stratum = np.where(holds, spread, len(holds) + 1).argmin(1)

    def draw(n: int) -> np.ndarray:
        drawn = np.zeros((n, len(holds)))
        for members in (np.flatnonzero(stratum == k) for k in range(len(spread))):
            if members.size:
                drawn[:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), n)
        return drawn

    counts = draw(resamples)
    for _ in range(MAX_REDRAWS):
        short = ~(counts @ holds > 0).all(1)
        if not short.any():
            return counts
        counts[short] = draw(int(short.sum()))
    raise DataError(f"bootstrap: {len(holds)} groups are too few to hold all of {kinds}")


def auc_interval(
    labels: ArrayLike, scores: ArrayLike, groups: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`metrics.roc_auc` with its 95 % bootstrap interval by identity."""
    ranking = Ranking(labels, scores, "AUC")
    drawn = Resamples(groups, np.asarray(labels).tolist(), resamples=resamples, seed=seed)
    return drawn.interval(lambda weights: ranking.roc(weights).auc())


def mean_auc_interval(
    classes: Sequence[str],
    scores: ArrayLike,
    groups: Sequence[str],
    *,
    real: str = "real",
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """`metrics.mean_auc` with its 95 % bootstrap interval by identity; every type is in every resample."""
    kinds, values = np.asarray(classes), np.asarray(scores, dtype=np.float64)
    rows = {name: np.flatnonzero((kinds == name) | (kinds == real)) for name in auc_by_type(classes, values, real=real)}
    rankings = [(keep, Ranking(kinds[keep] == name, values[keep])) for name, keep in rows.items()]
    drawn = Resamples(groups, kinds.tolist(), resamples=resamples, seed=seed)
    return drawn.interval(
        lambda weights: np.mean([ranking.roc(weights[:, keep]).auc() for keep, ranking in rankings], axis=0)
    )
