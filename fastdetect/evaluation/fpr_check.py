"""Do thresholds keep their promise on reals that they were not fitted on?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastdetect.errors import DataError
from fastdetect.evaluation.calibration import against, check_fpr, fit_threshold


def fresh_fpr(
    scores: ArrayLike, identities: Sequence[str], raw_thresholds: Mapping[str, float], *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Realised false-positive rates of stored thresholds on reals that calibration never saw.

    The exact binomial interval needs independent rows, so one video of each identity, drawn with the seed, is counted.

    Args:
        scores: [N] raw video scores.
        identities: [N] who is in each.
        raw_thresholds: asked rate, as text -> threshold on the raw scale.
        seed: of the draw.
    Returns:
        Asked rate -> {"fpr", "interval", "identities", "fpr_is": "as asked" where that lies in
        the interval, else "lower" or "higher"}.
    """
    rows = _one_each(identities, seed)
    values = np.asarray(scores, np.float64)[rows]
    return {target: _told(values >= threshold, target) for target, threshold in raw_thresholds.items()}


def held_out_fpr(
    scores: ArrayLike, identities: Sequence[str], target_fpr: Sequence[float], *, folds: int = 5, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The same without a second set of reals: each fold's identities meet a threshold fitted on the other folds'.

    It checks the way of fitting, at a sample smaller by one fold, not the one threshold that is stored.

    Raises:
        DataError: fewer than three identities to fit on.
    """
    names = np.unique(np.asarray(identities))
    if len(names) < folds + 3:
        raise DataError(f"{folds} folds of {len(names)} identities leave too few to fit on; wanted {folds + 3} or more")
    fold_of = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % folds, strict=True))
    fold, values = np.array([fold_of[name] for name in identities]), np.asarray(scores, np.float64)
    single = np.zeros(len(values), bool)
    single[_one_each(identities, seed)] = True
    found = {}
    for target in sorted(target_fpr):
        reached = []
        for k in range(folds):
            others = np.flatnonzero(fold != k)
            fit = fit_threshold(values[others], [identities[int(i)] for i in others], target, seed=seed)
            reached.append(values[(fold == k) & single] >= fit["threshold"])
        found[f"{target:g}"] = _told(np.concatenate(reached), f"{target:g}")
    return found


def _one_each(identities: Sequence[str], seed: int) -> np.ndarray:
    shuffled = np.random.default_rng(seed).permutation(len(identities))
    _, first = np.unique(np.asarray(identities)[shuffled], return_index=True)
    return shuffled[first]


def _told(reached: np.ndarray, target: str) -> dict[str, Any]:
    fpr, (low, high) = check_fpr(reached.astype(float), 0.5)
    return {
        "fpr": fpr,
        "interval": [low, high],
        "identities": int(reached.size),
        "fpr_is": against(float(target), (low, high)),
    }
