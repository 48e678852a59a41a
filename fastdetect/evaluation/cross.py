"""Cross-manipulation: models that know one kind of fake each, measured on every kind."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastdetect.errors import DataError, UsageError
from fastdetect.evaluation.index import REAL, Entry
from fastdetect.evaluation.metrics import Ranking
from fastdetect.evaluation.resampling import Resamples
from fastdetect.evaluation.scoring import VideoScore

By = Literal["method", "type"]


@dataclass(frozen=True)
class Prediction:
    """One video's raw score by one model."""

    dataset: str
    file: str
    label: int
    manipulation: str
    identity: str
    margin: float

    @property
    def key(self) -> tuple[str, str]:
        return self.dataset, self.file

    def column(self, by: By) -> str:
        """The kind of fake: what follows the first comma of its manipulation, or what comes before."""
        if not self.label:
            return REAL
        kind, _, method = self.manipulation.partition(",")
        return (method if by == "method" and method.strip() else kind).strip()


def predictions(entries: Sequence[Entry], scores: Sequence[VideoScore | str]) -> list[Prediction]:
    """The scores of the videos that have one."""
    return [
        Prediction(e.dataset, e.name, e.label, e.manipulation, e.identity, s.margin)
        for e, s in zip(entries, scores, strict=True)
        if isinstance(s, VideoScore) and s.margin is not None
    ]


def read_predictions(path: Path) -> list[Prediction]:
    """Read the scores of an `evaluation.json`.

    Raises:
        DataError: it is not one.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
        names = Prediction.__dataclass_fields__
        return [Prediction(**{name: row[name] for name in names}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the evaluation.json of `fastdetect evaluate`: {error!r}") from error


def cross_manipulation(
    by_model: Mapping[str, Sequence[Prediction]], *, by: By = "method", resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """The matrix of models, each called by the kind of fake that it was trained on, against kinds of fakes.

    Every cell is the AUC of one kind of fake against all reals, over the videos that every model has a score for, with
    95 % intervals by identity; the means are drawn together, so that the gap between them has an interval of its own.

    Args:
        by_model: what each model was trained on -> its predictions. A name that is no kind of fake here (a model
            trained on other data) has unseen kinds only.
        by: columns by method (FaceSwap, GHOST, ...) or by coarse type.
        resamples, seed: of the bootstrap.
    Raises:
        DataError: no video is scored by all models, two disagree about a label, or a class is missing.
        UsageError: fewer than two models, or none that is called by a kind of fake.
    """
    if len(by_model) < 2:
        raise UsageError(f"cross-manipulation wants two models at least, got {', '.join(by_model) or 'none'}")
    tables = {name: {row.key: row for row in rows} for name, rows in by_model.items()}
    first = next(iter(tables.values()))
    keys = [key for key in first if all(key in table for table in tables.values())]
    if not keys:
        raise DataError("no video has a score by every model; measure all of them on the same index")
    rows = [first[key] for key in keys]
    for name, table in tables.items():
        wrong = next((row for row in rows if table[row.key].label != row.label), None)
        if wrong:
            raise DataError(f"{wrong.file} has another label in the predictions of {name}; measure on the same index")
    kinds = np.array([row.column(by) for row in rows])
    columns = sorted(set(kinds.tolist()) - {REAL})
    if not columns or REAL not in kinds:
        raise DataError(f"cross-manipulation needs reals and fakes, got {sorted(set(kinds.tolist()))}")
    known = {name: name for name in tables if name in columns}
    if not known:
        raise UsageError(
            f"no model is called by a kind of fake in the data; models {', '.join(tables)}, kinds {', '.join(columns)}"
        )
    drawn = Resamples([row.identity for row in rows], kinds.tolist(), resamples=resamples, seed=seed)
    kept = {column: np.flatnonzero((kinds == column) | (kinds == REAL)) for column in columns}
    rankings = {
        (name, column): (at, Ranking(kinds[at] == column, [table[rows[i].key].margin for i in at]))
        for name, table in tables.items()
        for column, at in kept.items()
    }

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        cells = {cell: ranking.roc(weights[:, at]).auc() for cell, (at, ranking) in rankings.items()}
        found = {f"cell/{name}/{column}": values for (name, column), values in cells.items()}
        for name in tables:
            unseen = [cells[name, column] for column in columns if column != name]
            if unseen:
                found[f"unseen/{name}"] = np.mean(unseen, axis=0)
        seen = np.mean([cells[name, name] for name in known], axis=0)
        unseen = [cells[name, column] for name in known for column in columns if column != name]
        found["seen"] = seen
        if unseen:
            found["unseen"] = np.mean(unseen, axis=0)
            found["gap"] = seen - found["unseen"]
        return found

    found = {name: interval.as_dict() for name, interval in drawn.intervals(statistics).items()}
    return {
        "by": by,
        "models": list(tables),
        "columns": {column: int((kinds == column).sum()) for column in columns},
        "reals": int((kinds == REAL).sum()),
        "videos": len(keys),
        "left_out": max(len(table) for table in tables.values()) - len(keys),
        "matrix": {name: {column: found[f"cell/{name}/{column}"] for column in columns} for name in tables},
        "unseen": {name: found.get(f"unseen/{name}") for name in tables},
        "mean_seen": found["seen"],
        "mean_unseen": found.get("unseen"),
        "gap": found.get("gap"),
    }
