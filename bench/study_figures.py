"""AUCs of several models on the same pictures: intervals over identities and seeds, and paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastdetect.evaluation.index import REAL
from fastdetect.evaluation.metrics import Ranking
from fastdetect.evaluation.resampling import Resamples

Scores = dict[str, dict[str, list[float]]]  # "video" or "pairs" -> head -> margins
Aucs = dict[str, dict[str, dict[str, np.ndarray]]]  # the same -> head -> type of fake, "mean" -> [S,1+B]


class Draws:
    """Bootstrap over whole identities and, independently, over seeds [ours].

    The draws are the same for whatever is measured with them, so that a difference is taken within each: paired.

    Args:
        groups, classes: [N], identity and type of each row, "real" for reals.
        seeds: S, how many there are.
        resamples, seed: of the bootstrap.
    """

    def __init__(
        self, groups: Sequence[str], classes: Sequence[str], seeds: int, *, resamples: int = 2000, seed: int = 0
    ) -> None:
        self.classes = np.asarray(classes)
        self.rows = Resamples(groups, classes, resamples=resamples, seed=seed)
        drawn = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
        self.seeds = np.concatenate([np.ones((1, seeds)), drawn]).T / seeds  # [S,1+B], first the seeds as they are

    def aucs(self, margins: Sequence[Sequence[float]]) -> dict[str, np.ndarray]:
        """AUC of each type against all reals, and their mean, from margins [S,N]: [S,1+B], first of the rows as they
        are, then of each resample."""
        found = {}
        for kind in sorted(set(self.classes.tolist()) - {REAL}):
            at = np.flatnonzero((self.classes == kind) | (self.classes == REAL))
            rankings = [Ranking(self.classes[at] == kind, np.asarray(row)[at]) for row in margins]
            found[kind] = np.stack([self._auc(ranking, at) for ranking in rankings])
        return found | {"mean": np.mean(list(found.values()), axis=0)}

    def _auc(self, ranking: Ranking, at: np.ndarray) -> np.ndarray:
        return np.r_[ranking.roc().auc(), self.rows.draws(lambda weights: ranking.roc(weights[:, at]).auc())]

    def interval(self, figures: np.ndarray) -> dict[str, Any]:
        """Mean over the seeds with its 95 % interval, and each seed's own figure, of [S,1+B]."""
        value, *draws = (self.seeds * figures).sum(0)
        low, high = np.quantile(draws, [0.025, 0.975])
        return {"value": value, "low": low, "high": high, "per_seed": figures[:, 0].tolist()}


def aucs_of(draws: Mapping[str, Draws], scores: Sequence[Scores]) -> Aucs:
    """All AUCs of an arm from the scores of each of its seeds."""
    return {
        what: {head: drawn.aucs([own[what][head] for own in scores]) for head in scores[0][what]}
        for what, drawn in draws.items()
    }


def intervals(draws: Mapping[str, Draws], after: Aucs, before: Aucs | None = None) -> dict[str, Any]:
    """Intervals of an arm's AUCs, or of what they are above those of another arm, for the heads that both have."""
    return {
        what: {
            head: {
                kind: draws[what].interval(figures if before is None else figures - before[what][head][kind])
                for kind, figures in kinds.items()
            }
            for head, kinds in heads.items()
            if before is None or head in before[what]
        }
        for what, heads in after.items()
    }
