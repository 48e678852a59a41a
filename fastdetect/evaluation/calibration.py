"""Fits raw video scores to probabilities, and thresholds at chosen false-positive rates on held-out reals.

Two fits that share nothing: the map from score to probability (Platt or isotonic) needs held-out fakes for
its slope; the thresholds need reals only. Everything is weighted by identity: a person with ten videos
counts as much as one with one.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, log_expit

from fastdetect.errors import DataError, ShapeError

# Identities above the tail's start: fewer make its mean excess noise, more leave the tail.
TAIL_IDENTITIES = 10
TAIL_SHARE = 0.25
DRAWS = 20_000


def fit_platt(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, float]:
    """Fit P(fake) = sigmoid(a * score + b) by maximum likelihood; both classes weigh the same [Platt, 1999].

    Targets are Platt's, (n + 1) / (n + 2) instead of 1, so separable data give finite values. Both classes
    weighing the same makes 0.5 the point of equal likelihood whatever the shares in the sample; it is no
    claim about how common fakes are.

    Args:
        scores: [N] raw scores, higher is more fake.
        labels: [N] 0 or 1.
        weights: [N] >= 0, weight of a row inside its class; equal by default.
    Returns:
        (a, b), a > 0.
    Raises:
        DataError: one class only, a score that is not finite, or fakes no higher than reals (a <= 0).
    """
    from scipy import optimize

    s, y, w = _rows(scores, labels, weights)
    n = np.array([(y == 0).sum(), (y == 1).sum()])
    target = np.where(y == 1, (n[1] + 1) / (n[1] + 2), 1 / (n[0] + 2))
    w = np.where(y == 1, w / w[y == 1].sum(), w / w[y == 0].sum()) / 2
    shift, spread = np.average(s, weights=w), s.std() or 1.0
    z = (s - shift) / spread  # standardised, so that the optimum is of order one

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        logit = theta[0] * z + theta[1]
        value = -np.sum(w * (target * log_expit(logit) + (1 - target) * log_expit(-logit)))
        slope = w * (expit(logit) - target)
        return float(value), np.array([slope @ z, slope.sum()])

    fit = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-8})
    a = float(fit.x[0] / spread)
    if not a > 0:
        raise DataError(
            f"held-out fakes score no higher than reals (slope {a:.3g} over {n[0]} reals and {n[1]} fakes): "
            "there is nothing to calibrate; train the model longer or look at what it is given"
        )
    return a, float(fit.x[1] - a * shift)


def fit_isotonic(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> tuple[list[float], list[float]]:
    """Fit a non-decreasing curve score -> P(fake) by pooling adjacent violators; both classes weigh the same.

    Returns:
        (x, y): knots for linear interpolation; flat outside.
    """
    from scipy import optimize

    s, y, w = _rows(scores, labels, weights)
    w = np.where(y == 1, w / w[y == 1].sum(), w / w[y == 0].sum())
    x, index = np.unique(s, return_inverse=True)
    mass = np.bincount(index, w)
    fit = optimize.isotonic_regression(np.bincount(index, w * y) / mass, weights=mass).x
    # A flat piece is its two ends.
    keep = np.r_[True, np.diff(fit) != 0] | np.r_[np.diff(fit) != 0, True]
    return x[keep].tolist(), fit[keep].tolist()


def fit_threshold(
    real_scores: ArrayLike, identities: Sequence[str], target_fpr: float, *, seed: int = 0
) -> dict[str, Any]:
    """The raw score that about a share `target_fpr` of fresh reals reaches, on the safe side [ours].

    With n identities and target_fpr >= 1 / (n + 1): the conservative order statistic of split conformal
    prediction ("order_statistic"): just above the smallest score t for which the share of reals at or below
    t, of n + 1 identities, is at least 1 - target_fpr. For one video an identity the realised FPR is then
    Beta(n + 1 - r, r) with mean <= target_fpr (r the rank), whose central 95 % are stated.
    Below that no order statistic exists. The tail beyond a high order statistic u of the reals is taken as
    exponential ("exponential_tail"): with k identities above u, k / (n + 1) of all, and mean excess beta,
    t = u + beta * k * ((k / (n + 1) / target_fpr) ** (1 / k) - 1), which a fresh real reaches with chance
    target_fpr when the noise in beta is counted too; never below the highest real seen. The stated 95 %
    interval holds as far as the tail is exponential, which so few reals cannot show; a lighter tail (a normal
    one) realises less than target_fpr.

    Args:
        real_scores: [N] raw video scores of reals that the model was not trained on.
        identities: [N] who is in each; rows of one identity share one weight.
        target_fpr: 0 to 0.5, exclusive.
    Returns:
        {"threshold": raw score, "method", "rank" or "tail", "fpr_interval": [low, high]}.
    Raises:
        DataError: fewer than three identities, or reals that all score the same.
    """
    from scipy import stats

    s, _, w = _rows(real_scores, np.zeros(len(identities), int), identity_weights(identities), one_class=True)
    if not 0 < target_fpr < 0.5:
        raise ShapeError(f"target_fpr {target_fpr}: wanted above 0 and below 0.5")
    n = len(set(identities))
    if n < 3 or np.ptp(s) == 0:
        raise DataError(f"thresholds need three identities and scores that differ; got {n} and {s.size} reals")
    order = np.argsort(s, kind="stable")
    rising, share = s[order], np.cumsum(w[order])  # share of n identities at or below, ends at n
    above_it = 1e-6 * np.ptp(s)  # a real at a threshold counts as found, also after rounding in the sigmoid
    if target_fpr >= 1 / (n + 1):
        at = int(np.searchsorted(share, (1 - target_fpr) * (n + 1) - 1e-9))
        rank = share[np.searchsorted(rising, rising[at], "right") - 1]
        low, high = stats.beta.ppf([0.025, 0.975], n + 1 - rank, rank)
        return {
            "threshold": float(rising[at] + above_it),
            "method": "order_statistic",
            "rank": float(rank),
            "fpr_interval": [float(low), float(high)],
        }
    start, k, mean = _tail(s, w)
    above = k / (n + 1)
    threshold = start + mean * k * ((above / target_fpr) ** (1 / k) - 1)
    threshold = max(threshold, rising[-1] + above_it)
    # The share truly above u is Beta(k, n + 1 - k), the true mean excess k * mean / Gamma(k).
    rng = np.random.default_rng(seed)
    share_above, gamma = rng.beta(k, n + 1 - k, DRAWS), rng.gamma(k, size=DRAWS)
    fpr = share_above * np.exp(-gamma * (threshold - start) / (k * mean))
    low, high = np.quantile(fpr, [0.025, 0.975])
    return {
        "threshold": float(threshold),
        "method": "exponential_tail",
        "tail": {"start": start, "identities_above": k, "share_above": above, "mean_excess": mean},
        "fpr_interval": [float(low), float(high)],
    }


def _tail(s: np.ndarray, w: np.ndarray) -> tuple[float, float, float]:
    """Start of the upper tail, the weight (identities) above it and their mean excess."""
    order = np.argsort(s, kind="stable")
    rising, share = s[order], np.cumsum(w[order])
    wanted = min(max(TAIL_SHARE * share[-1], TAIL_IDENTITIES), 0.5 * share[-1])
    start = rising[max(0, int(np.searchsorted(share, share[-1] - wanted + 1e-9, "right")) - 1)]
    if start == rising[-1]:  # ties at the top: the excess is over what lies below them
        start = rising[rising < start][-1]
    over = s > start
    return float(start), float(w[over].sum()), float(np.average(s[over] - start, weights=w[over]))


def identity_weights(identities: Sequence[str]) -> np.ndarray:
    """[N] weights that sum to one over the rows of each identity."""
    _, index, counts = np.unique(np.asarray(identities), return_inverse=True, return_counts=True)
    return 1 / counts[index]


def check_fpr(scores: ArrayLike, threshold: float, *, level: float = 0.95) -> tuple[float, tuple[float, float]]:
    """The share of reals that reach a threshold, with its exact (Clopper-Pearson) interval.

    Args:
        scores: [N] scores of reals only, on the threshold's scale (raw or calibrated).
        threshold: a real at or above it is a false positive, as in a verdict.
    Returns:
        (fpr, (low, high)). The interval takes the rows as independent; give one row per identity where they
        are not.
    Raises:
        DataError: no score, or one that is not finite.
    """
    from scipy import stats

    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise DataError(f"realised FPR needs finite scores of reals, got {values.shape}")
    result = stats.binomtest(int((values >= threshold).sum()), values.size)
    interval = result.proportion_ci(level, method="exact")
    return float(result.statistic), (float(interval.low), float(interval.high))


def against(target: float, interval: tuple[float, float]) -> Literal["as asked", "lower", "higher"]:
    """Whether a rate's interval holds the asked rate, or lies below or above it."""
    if interval[0] <= target <= interval[1]:
        return "as asked"
    return "lower" if interval[1] < target else "higher"


def calibrate(block: Mapping[str, Any], scores: ArrayLike) -> np.ndarray:
    """Calibrated P(fake) [N] of raw scores [N] under a calibration block."""
    if block["method"] not in ("platt", "isotonic"):
        raise DataError(f"calibration method {block['method']!r}; wanted 'platt' or 'isotonic'")
    s = np.asarray(scores, dtype=np.float64)
    platt = expit(block["a"] * s + block["b"])
    if block["method"] == "platt":
        return platt
    # A hundredth of the Platt curve makes the steps strictly rising, so that a threshold cuts where it was
    # put.
    return 0.99 * np.interp(s, block["x"], block["y"]) + 0.01 * platt


def fit_calibration(
    real_scores: ArrayLike,
    real_identities: Sequence[str],
    fake_scores: ArrayLike,
    fake_identities: Sequence[str],
    *,
    sampling: str,
    aggregation: str,
    data_sha256: str,
    method: Literal["platt", "isotonic"] = "platt",
    target_fpr: Sequence[float] = (0.01, 0.05),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Fit the calibration block of a model's config.json.

    Args:
        real_scores, real_identities: [N] raw video scores of held-out reals, and who is in them.
        fake_scores, fake_identities: [M] the same of held-out fakes; they set the slope, not the thresholds.
        sampling: the sampling policy that the thresholds are meant for, e.g. "uniform:16".
        aggregation: how faces became a video's score.
        data_sha256: hash of the data, see `hash_data`.
        method: "platt", or "isotonic" (needs hundreds of videos).
        target_fpr: the false-positive rates that get a threshold.
        notes: what a reader must know about the data, e.g. how the fakes were made.
    Returns:
        The block, JSON-ready; thresholds are on the calibrated scale, `raw_thresholds` on the raw one.
    Raises:
        DataError: too few reals, one class, or fakes that score no higher than reals.
    """
    reals, fakes = np.asarray(real_scores, np.float64), np.asarray(fake_scores, np.float64)
    scores, labels = np.r_[reals, fakes], np.r_[np.zeros(reals.size, int), np.ones(fakes.size, int)]
    weights = np.r_[identity_weights(real_identities), identity_weights(fake_identities)]
    a, b = fit_platt(scores, labels, weights)
    block: dict[str, Any] = {"method": method, "a": a, "b": b}
    if method == "isotonic":
        block["x"], block["y"] = fit_isotonic(scores, labels, weights)
    fits = {f"{fpr:g}": fit_threshold(reals, real_identities, fpr) for fpr in sorted(target_fpr)}
    raw = {key: fit["threshold"] for key, fit in fits.items()}
    thresholds = dict(zip(raw, calibrate(block, list(raw.values())).tolist(), strict=True))
    if max(thresholds.values()) >= 1.0:
        raise DataError(
            f"the threshold {max(raw.values()):.3g} calibrates to 1.0, which no score passes (slope {a:.3g})"
        )
    identities = len(set(real_identities))
    block |= {
        "thresholds": thresholds,
        "raw_thresholds": raw,
        "target_fpr": sorted(target_fpr),
        "fits": {key: {k: v for k, v in fit.items() if k != "threshold"} for key, fit in fits.items()},
        "n_real": int(reals.size),
        "n_fake": int(fakes.size),
        "n_identities": identities,
        "sampling": sampling,
        "aggregation": aggregation,
        "method_notes": [*notes, *(_note(key, fit, identities) for key, fit in fits.items())],
        "data_sha256": data_sha256,
    }
    return block | {"id": hashlib.sha256(json.dumps(block, sort_keys=True).encode()).hexdigest()[:12]}


def _note(key: str, fit: Mapping[str, Any], identities: int) -> str:
    percent, (low, high) = f"{100 * float(key):g} %", fit["fpr_interval"]
    interval = f"{100 * low:.2g} to {100 * high:.2g} %"
    if fit["method"] == "order_statistic":
        return f"{percent} FPR: order statistic over {identities} identities; realised FPR in {interval} (95 %)"
    return (
        f"{percent} FPR: extrapolated, because {identities} identities have no such quantile (at least "
        f"{round(1 / float(key)) - 1} are needed); exponential tail over the highest "
        f"{100 * fit['tail']['share_above']:.0f} %; if it is exponential the FPR is in {interval} (95 %)"
    )


def hash_data(rows: Sequence[tuple[str, str, int]]) -> str:
    """SHA-256 over (content hash or name, identity, label) of every calibration file, in any order."""
    return hashlib.sha256("\n".join(sorted("\t".join(map(str, row)) for row in rows)).encode()).hexdigest()


def _rows(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None, *, one_class: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    w = np.ones(s.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if s.ndim != 1 or s.shape != y.shape or s.shape != w.shape:
        raise ShapeError(f"scores {s.shape}, labels {y.shape}, weights {w.shape}; wanted vectors of one length")
    if not np.isfinite(s).all():
        raise DataError(f"{np.count_nonzero(~np.isfinite(s))} of {s.size} calibration scores are not finite")
    if not one_class and set(np.unique(y).tolist()) != {0, 1}:
        raise DataError(f"calibration needs reals (0) and fakes (1), got labels {np.unique(y).tolist()}")
    return s, y, w
