"""Cross-manipulation: models that know one kind of fake each, measured on every kind."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    """One video's raw score by one model, and those of the faces that it rests on."""

    dataset: str
    file: str
    label: int
    manipulation: str
    identity: str
    margin: float
    face_margins: tuple[float, ...]

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
        Prediction(e.dataset, e.name, e.label, e.manipulation, e.identity, s.margin, tuple(s.face_margins.tolist()))
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
        found = [Prediction(**{name: row[name] for name in names}) for row in rows]
        return [replace(row, face_margins=tuple(row.face_margins)) for row in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not the evaluation.json of this version's `fastdetect evaluate` ({error!r}); measure again"
        ) from error


def cross_manipulation(
    by_model: Mapping[str, Sequence[Prediction]], *, by: By = "method", resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """The matrix of models, each called by the kind of fake that it was trained on, against kinds of fakes.

    Every cell is the AUC of one kind of fake against all reals, over the videos that every model has a score for, with
    95 % intervals by identity; the means are drawn together, so that the gap between them has an interval of its own.
    All of it once for videos' scores and, under "frame", once for those of single faces.

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
    if not set(tables) & set(columns):
        raise UsageError(
            f"no model is called by a kind of fake in the data; models {', '.join(tables)}, kinds {', '.join(columns)}"
        )
    videos = {name: [[table[key].margin] for key in keys] for name, table in tables.items()}
    faces = {name: [table[key].face_margins for key in keys] for name, table in tables.items()}
    width = max(sum(map(len, margins)) for margins in faces.values())
    drawn = Resamples([row.identity for row in rows], kinds.tolist(), resamples=resamples, seed=seed, width=width)
    return {
        "by": by,
        "models": list(tables),
        "columns": {column: int((kinds == column).sum()) for column in columns},
        "reals": int((kinds == REAL).sum()),
        "videos": len(keys),
        "left_out": max(len(table) for table in tables.values()) - len(keys),
        **_matrix(videos, kinds, columns, drawn),
        "frame": _matrix(faces, kinds, columns, drawn),
    }


def _matrix(
    margins: Mapping[str, Sequence[Sequence[float]]], kinds: np.ndarray, columns: Sequence[str], drawn: Resamples
) -> dict[str, Any]:
    """AUCs of every model on every kind of fake, and their means.

    Args:
        margins: of each model, the scores of each of N videos: one, or one a face.
        kinds: [N], what kind each video is.
        columns: the kinds of fakes.
        drawn: resamples of the N videos.
    """
    known = [name for name in margins if name in columns]
    rankings: dict[tuple[str, str], tuple[np.ndarray, Ranking]] = {}
    for name, lists in margins.items():
        row_of, values = np.repeat(np.arange(len(lists)), list(map(len, lists))), np.concatenate(lists)
        for column in columns:
            at = np.flatnonzero(np.isin(kinds[row_of], (column, REAL)))
            rankings[name, column] = (row_of[at], Ranking(kinds[row_of[at]] == column, values[at]))

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        cells = {cell: ranking.roc(weights[:, rows]).auc() for cell, (rows, ranking) in rankings.items()}
        found = {f"cell/{name}/{column}": values for (name, column), values in cells.items()}
        for name in margins:
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
        "matrix": {name: {column: found[f"cell/{name}/{column}"] for column in columns} for name in margins},
        "unseen": {name: found.get(f"unseen/{name}") for name in margins},
        "mean_seen": found["seen"],
        "mean_unseen": found.get("unseen"),
        "gap": found.get("gap"),
    }
