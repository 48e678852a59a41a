"""Every figure of one model on one set of videos, JSON-ready, with intervals by identity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdetect.errors import DataError
from fastdetect.evaluation import metrics
from fastdetect.evaluation.calibration import against, calibrate, check_fpr
from fastdetect.evaluation.index import REAL, Entry
from fastdetect.evaluation.metrics import Ranking
from fastdetect.evaluation.resampling import Resamples, auc_interval, mean_auc_interval
from fastdetect.evaluation.scoring import VideoScore
from fastdetect.reasons import Reason

GRID = np.linspace(0, 1, 101)  # false-positive rates at which the ROC curve's band is given
_STEPS = 400  # points of the curve itself, at most
_BINS = 10  # of the reliability diagram
SHOWN = 5  # failures that an error tells
COVERAGES = (1.0, 0.9, 0.8, 0.5)


@dataclass(frozen=True)
class Table:
    """The videos that have a score, by columns."""

    entries: list[Entry]
    scores: list[VideoScore]
    labels: np.ndarray
    margins: np.ndarray

    @classmethod
    def of(cls, entries: Sequence[Entry], outcomes: Sequence[VideoScore | str]) -> "Table":
        """Keep the videos with a score."""
        pairs = zip(entries, outcomes, strict=True)
        rows = [(e, s) for e, s in pairs if isinstance(s, VideoScore) and s.margin is not None]
        labels, margins = [e.label for e, _ in rows], [s.margin for _, s in rows]
        return cls([e for e, _ in rows], [s for _, s in rows], np.array(labels, int), np.array(margins, np.float64))

    @property
    def groups(self) -> list[str]:
        return [entry.identity for entry in self.entries]


def report(
    entries: Sequence[Entry],
    scores: Sequence[VideoScore | str],
    calibration: Mapping[str, Any] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure of an evaluation, JSON-ready.

    A video without a score (no person with enough usable faces, or a failure) enters no metric; `coverage`
    and `abstained` say which they are.

    Args:
        entries: the videos.
        scores: of each; a text says why the file failed.
        calibration: the model's block: adds rates at its thresholds, the calibration error and risk at abstention.
        resamples, seed: of the bootstrap.
    Returns:
        The figures; where all videos are real, or all are fake, only the rates at the calibration's thresholds.
    Raises:
        DataError: no score at all, or of one class only and there is no calibration; says why files have none.
    """
    table = Table.of(entries, scores)
    classes = len(set(table.labels.tolist()))
    if calibration and classes == 1:
        return _one_class(entries, scores, table, calibration)
    if classes < 2:
        raise DataError(_unscored(entries, scores, table))
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    ranking = Ranking(table.labels, table.margins, "evaluation")
    drawn = Resamples(table.groups, table.labels.tolist(), **options)
    found = drawn.intervals(_summary(ranking))
    found["frame_auc"] = _frame_auc(table, options)
    types = [entry.type for entry in table.entries]
    result: dict[str, Any] = _counts(entries, scores, table) | {
        "mean_auc": mean_auc_interval(types, table.margins, table.groups, **options).as_dict(),
        "overall": {name: i.value for name, i in found.items() if name not in ("auc", "frame_auc")}
        | {"auc": found["auc"].as_dict()},
        "intervals": {name: interval.as_dict() for name, interval in found.items()},
        "frame_auc": found["frame_auc"].value,
        "paired": _paired(table, np.ones(len(types), bool)),
        "types": _by_class(table, types, options),
        "methods": _by_class(table, [entry.manipulation for entry in table.entries], options),
        "roc": _roc(ranking, drawn),
    }
    return result | (_calibrated(table, calibration, drawn, result["rows"]) if calibration else {})


def _unscored(entries: Sequence[Entry], scores: Sequence[VideoScore | str], table: Table) -> str:
    """Why there are no figures: the first of the files without a score, each with its reason."""
    reals = int((table.labels == 0).sum())
    told = f"evaluation needs both classes, got {reals} real and {len(table.entries) - reals} fake videos with a score"
    failed = [(e, s) for e, s in zip(entries, scores, strict=True) if isinstance(s, str)]
    faceless = len(entries) - len(table.entries) - len(failed)
    lines = [f"{told}, of {len(entries)}: {faceless} have too few usable faces, {len(failed)} could not be read"]
    lines += [f"  {entry.path}: {why}" for entry, why in failed[:SHOWN]]
    if len(failed) > SHOWN:
        lines.append(f"  and {len(failed) - SHOWN} more")
    if any(why.startswith(Reason.NOT_FOUND) for _, why in failed):
        lines.append("where the data was moved, --root FOLDER says where it lies now")
    return "\n".join(lines)


def _counts(entries: Sequence[Entry], scores: Sequence[VideoScore | str], table: Table) -> dict[str, Any]:
    return {
        "videos": {
            "real": int((table.labels == 0).sum()),
            "fake": int((table.labels == 1).sum()),
            "listed": len(entries),
        },
        "identities": len(set(table.groups)),
        "coverage": len(table.entries) / len(entries),
        "coverage_by_class": {name: _coverage(entries, table, label) for label, name in enumerate(("real", "fake"))},
        "abstained": [
            e.name for e, s in zip(entries, scores, strict=True) if not isinstance(s, str) and s.margin is None
        ],
        "failed": {e.name: s for e, s in zip(entries, scores, strict=True) if isinstance(s, str)},
        "rows": [
            {
                "dataset": e.dataset,
                "file": e.name,
                "label": e.label,
                "manipulation": e.manipulation,
                "identity": e.identity,
                "margin": s.margin,
                "face_margins": s.face_margins.tolist(),
            }
            for e, s in zip(table.entries, table.scores, strict=True)
        ],
    }


def _one_class(
    entries: Sequence[Entry], scores: Sequence[VideoScore | str], table: Table, calibration: Mapping[str, Any]
) -> dict[str, Any]:
    result, p = _counts(entries, scores, table), calibrate(calibration, table.margins)
    for row, probability in zip(result["rows"], p.tolist(), strict=True):
        row["score"] = probability
    stored = {key: rates(p, table.labels, key, value) for key, value in calibration["thresholds"].items()}
    return result | {"calibration_id": calibration["id"], "thresholds": stored}


def _summary(ranking: Ranking) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    return lambda weights: metrics.summary_of(ranking.roc(weights))


def _coverage(entries: Sequence[Entry], table: Table, label: int) -> float | None:
    listed = sum(entry.label == label for entry in entries)
    return int((table.labels == label).sum()) / listed if listed else None


def _frame_auc(table: Table, options: Mapping[str, int]) -> Any:
    """AUC of single faces, those of the persons who decided the videos' scores."""
    row_of = np.repeat(np.arange(len(table.entries)), [score.face_margins.size for score in table.scores])
    ranking = Ranking(table.labels[row_of], np.concatenate([s.face_margins for s in table.scores]), "frame AUC")
    groups = [table.entries[row].identity for row in row_of]
    drawn = Resamples(groups, table.labels[row_of].tolist(), **options)
    return drawn.interval(lambda weights: ranking.roc(weights).auc())


def _roc(ranking: Ranking, drawn: Resamples) -> dict[str, list[float]]:
    roc = ranking.roc()
    low, high = np.quantile(drawn.draws(lambda weights: ranking.roc(weights).at(GRID)), [0.025, 0.975], axis=0)
    at = np.unique(np.linspace(0, roc.fpr.shape[1] - 1, _STEPS).round().astype(int))
    columns = {"fpr": roc.fpr[0, at], "tpr": roc.tpr[0, at], "grid": GRID, "low": low, "high": high}
    return {name: np.round(values, 6).tolist() for name, values in columns.items()}


def _by_class(table: Table, classes: Sequence[str], options: Mapping[str, int]) -> dict[str, Any]:
    """Per class of fakes, worst first: count, identities, AUCs and TPR against all reals with intervals, pairs."""
    kinds = np.asarray(classes)
    result: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(classes) - {REAL}):
        rows = np.flatnonzero((kinds == kind) | (kinds == REAL))
        part = Table([table.entries[i] for i in rows], [table.scores[i] for i in rows], table.labels[rows],
                     table.margins[rows])  # fmt: skip
        labels, ranking = part.labels, Ranking(part.labels, part.margins)
        found = Resamples(part.groups, labels.tolist(), **options).intervals(_summary(ranking))
        result[kind] = {
            "fakes": int(labels.sum()),
            "identities": len({e.identity for e, c in zip(table.entries, classes, strict=True) if c == kind}),
            "auc": found["auc"].as_dict(),
            "frame_auc": _frame_auc(part, options).as_dict(),
            "tpr@0.05": found["tpr@0.05"].as_dict(),
            "eer": found["eer"].as_dict(),
            "paired": _paired(table, kinds == kind),
        }
    return dict(sorted(result.items(), key=lambda item: item[1]["auc"]["value"]))


def _paired(table: Table, chosen: np.ndarray) -> dict[str, int]:
    by_key = {entry.key: margin for entry, margin in zip(table.entries, table.margins, strict=True)}
    pairs = [
        (table.margins[i], by_key[e.paired])
        for i, e in enumerate(table.entries)
        if chosen[i] and e.label and e.paired in by_key
    ]
    counts = metrics.paired_counts([fake for fake, _ in pairs], [real for _, real in pairs])
    return {"wins": counts.wins, "ties": counts.ties, "n": counts.n}


def _calibrated(
    table: Table, calibration: Mapping[str, Any], drawn: Resamples, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    p = calibrate(calibration, table.margins)
    for row, probability in zip(rows, p.tolist(), strict=True):
        row["score"] = probability
    index, gap = metrics.calibration_gaps(table.labels, p)
    parts = np.eye(metrics.BINS)[index] * gap[:, None]
    ece = drawn.interval(lambda weights: np.abs(weights @ parts).sum(1) / weights.sum(1))
    even = _even(table.labels)
    balanced = drawn.interval(
        lambda weights: np.abs((weights * even(weights)) @ parts).sum(1) / (weights * even(weights)).sum(1)
    )
    selective = metrics.selective_risk(table.labels, p)[0]
    area = drawn.interval(lambda weights: np.array([s.area for s in metrics.selective_risk(table.labels, p, weights)]))
    return {
        "calibration_id": calibration["id"],
        "ece": ece.value,
        "ece_interval": ece.as_dict(),
        "ece_even": balanced.as_dict(),
        "reliability": _reliability(table.labels, p, drawn),
        "thresholds": {key: rates(p, table.labels, key, value) for key, value in calibration["thresholds"].items()},
        "abstention": {
            "area": area.as_dict(),
            "risk_at_coverage": {f"{at:g}": risk_at(selective, at) for at in COVERAGES},
            "coverage": np.round(selective.coverage, 6).tolist(),
            "risk": np.round(selective.risk, 6).tolist(),
        },
    }


def _even(labels: np.ndarray) -> Any:
    """Weights [b,N] that give both classes the same weight within each weighting."""

    def weigh(weights: np.ndarray) -> np.ndarray:
        shares = np.stack([weights[:, labels == label].sum(1) for label in (0, 1)], 1)
        return 1 / shares[:, labels]

    return weigh


def risk_at(selective: metrics.Selective, coverage: float) -> float:
    """The error rate when at least this share of the videos keeps a verdict."""
    return float(selective.risk[np.argmax(selective.coverage >= coverage - 1e-9)])


def _reliability(labels: np.ndarray, p: np.ndarray, drawn: Resamples) -> list[dict[str, Any]]:
    """Per bin of the probability: how many videos, and the share of fakes at even odds, as the probability is meant."""
    bins = np.clip(np.ceil(p * _BINS).astype(int) - 1, 0, _BINS - 1)
    member, even = np.eye(_BINS)[bins], _even(labels)

    def share(weights: np.ndarray) -> np.ndarray:
        balanced = weights * even(weights)
        mass = balanced @ member
        return np.divide((balanced * labels) @ member, mass, out=np.full(mass.shape, np.nan), where=mass > 0)

    value, draws, once = share(np.ones((1, labels.size)))[0], drawn.draws(share), even(np.ones((1, labels.size)))[0]
    found = []
    for k in np.unique(bins).tolist():
        low, high = np.nanquantile(draws[:, k], [0.025, 0.975])
        inside = bins == k
        found.append(
            {
                "from": k / _BINS,
                "to": (k + 1) / _BINS,
                "real": int((inside & (labels == 0)).sum()),
                "fake": int((inside & (labels == 1)).sum()),
                "probability": float(np.average(p[inside], weights=once[inside])),
                "share": {"value": float(value[k]), "low": float(low), "high": float(high)},
            }
        )
    return found


def rates(p: np.ndarray, labels: np.ndarray, target: str, threshold: float) -> dict[str, Any]:
    """FPR and TPR at a stored threshold with exact binomial intervals, None without such videos.

    `fpr_is` says where the FPR lies against the asked one, `target`.
    """
    found: dict[str, Any] = {"threshold": threshold, "fpr_is": None}
    for label, name in enumerate(("fpr", "tpr")):  # the same binomial for both
        value, interval = check_fpr(p[labels == label], threshold) if (labels == label).any() else (None, None)
        found |= {name: value, f"{name}_interval": list(interval) if interval else None}
        if name == "fpr" and interval:
            found["fpr_is"] = against(float(target), interval)
    return found


def conditions(
    entries: Sequence[Entry],
    clean: Sequence[VideoScore | str],
    changed: Mapping[Any, Sequence[VideoScore | str]],
    calibration: Mapping[str, Any] | None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The robustness table: AUC under each condition, its change on the videos that both have a score for, coverage.

    Args:
        entries: the videos.
        clean: their scores as they are.
        changed: their scores under each condition, in the order of the table.
        calibration: adds rates at its laxest threshold.
        resamples, seed: of the bootstrap.
    """
    options = {"resamples": resamples, "seed": seed}
    found = []
    for condition, outcomes in changed.items():
        table = Table.of(entries, outcomes)
        row: dict[str, Any] = {"condition": str(condition), "kind": condition.kind, "value": condition.value}
        row |= {"coverage": len(table.entries) / len(entries), "auc": None, "change": None, "rates": None}
        if len(set(table.labels.tolist())) == 2:
            row["auc"] = auc_interval(table.labels, table.margins, table.groups, **options).as_dict()
            row["change"] = _change(entries, clean, outcomes, options)
        if calibration and table.entries:
            key, threshold = max(calibration["thresholds"].items(), key=lambda item: float(item[0]))
            row["rates"] = rates(calibrate(calibration, table.margins), table.labels, key, threshold)
        found.append(row)
    return found


def _change(
    entries: Sequence[Entry], clean: Sequence[Any], outcomes: Sequence[Any], options: Mapping[str, int]
) -> dict[str, float] | None:
    both = [
        isinstance(a, VideoScore) and isinstance(b, VideoScore) and a.margin is not None and b.margin is not None
        for a, b in zip(clean, outcomes, strict=True)
    ]
    kept = [entry for entry, keep in zip(entries, both, strict=True) if keep]
    if len({entry.label for entry in kept}) < 2:
        return None
    before, after = (Table.of(kept, [s for s, keep in zip(o, both, strict=True) if keep]) for o in (clean, outcomes))
    rankings = [Ranking(t.labels, t.margins) for t in (before, after)]
    drawn = Resamples(before.groups, before.labels.tolist(), **options)
    return drawn.interval(lambda w: rankings[1].roc(w).auc() - rankings[0].roc(w).auc()).as_dict()


def _share(scores: np.ndarray, threshold: float) -> dict[str, float] | None:
    if not scores.size:
        return None
    value, (low, high) = check_fpr(scores, threshold)
    return {"value": value, "low": low, "high": high}


def across(
    entries: Sequence[Entry],
    scores: Sequence[VideoScore | str],
    calibration: Mapping[str, Any] | None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of each data set, and of all pooled under one threshold.

    The pooled AUC ranks all sets' videos together, as one threshold for all does; it falls below the mean of the
    sets' own where scores of one set's reals lie at another's fakes.

    Returns:
        "datasets": name -> `report` (None for a set of one class), "pooled": the figures of one threshold.
    """
    options = {"resamples": resamples, "seed": seed}
    table = Table.of(entries, scores)
    named = np.array([entry.dataset for entry in table.entries])
    ranking = Ranking(table.labels, table.margins, "pooled AUC")
    threshold = metrics.threshold_at_fpr(table.labels, table.margins, 0.05)
    sets: dict[str, Any] = {}
    one_threshold: dict[str, Any] = {}
    parts: list[tuple[np.ndarray, Ranking]] = []
    for name in sorted({entry.dataset for entry in entries}):
        mine = [(e, s) for e, s in zip(entries, scores, strict=True) if e.dataset == name]
        rows = np.flatnonzero(named == name)
        labels, margins = table.labels[rows], table.margins[rows]
        one_threshold[name] = {rate: _share(margins[labels == k], threshold) for k, rate in enumerate(("fpr", "tpr"))}
        sets[name] = None
        if len(set(labels.tolist())) == 2:
            own = report([e for e, _ in mine], [s for _, s in mine], calibration, **options)
            sets[name] = {key: part for key, part in own.items() if key not in ("rows", "roc")}  # the whole has them
            parts.append((rows, Ranking(labels, margins)))
    if not parts:
        raise DataError("no data set has both reals and fakes with a score; give one that has")
    classes = [f"{name} {label}" for name, label in zip(named, table.labels, strict=True)]
    drawn = Resamples(table.groups, classes, **options)
    mean = drawn.interval(lambda w: np.mean([part.roc(w[:, rows]).auc() for rows, part in parts], axis=0))
    pooled = {
        "auc": drawn.interval(lambda weights: ranking.roc(weights).auc()).as_dict(),
        "mean_of_sets": mean.as_dict(),
        "threshold": threshold,
        "target_fpr": 0.05,
        "at_one_threshold": one_threshold,
    }
    return {"datasets": sets, "pooled": pooled}
