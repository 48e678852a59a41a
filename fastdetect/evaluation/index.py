"""Index files of an evaluation: which videos, what was done to them, who is in them, and their own reals."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastdetect.errors import DataError

REAL = "real"
COLUMNS = ("file", "label", "manipulation", "identity_group", "paired_real", "suggested_split")


@dataclass(frozen=True)
class Entry:
    """One row: `name` as written there, label 0 = real or 1 = fake, `paired` the real it was made from."""

    path: Path
    name: str
    label: int
    manipulation: str
    identity: str
    paired: Path | None = None
    split: str = ""
    sha256: str = ""

    @property
    def type(self) -> str:
        """The coarse type: the text of `manipulation` before its first comma, "real" for reals."""
        return self.manipulation.split(",")[0].strip() if self.label else REAL


def read_index(paths: Iterable[str | Path], split: str | None = None) -> list[Entry]:
    """Read index files.

    Identities that a fake and its own real name differently are made one, so that a bootstrap never
    separates them.

    Args:
        paths: CSV files with the columns of `COLUMNS` (sha256 too where there is one).
        split: keep rows whose `suggested_split` is this; None keeps all.
    Raises:
        DataError: no such file, a column or file is missing, a label is unknown, a file is listed twice.
    """
    entries: dict[Path, Entry] = {}
    for index in map(Path, paths):
        if not index.is_file():
            raise DataError(f"{index}: no such index; wanted a CSV file with the columns {', '.join(COLUMNS)}")
        with index.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = sorted(set(COLUMNS) - set(reader.fieldnames or []))
            if missing:
                raise DataError(f"{index}: no column {', '.join(missing)}; wanted {', '.join(COLUMNS)}")
            for row in reader:
                entry = _entry(index, row)
                if entry.path in entries:
                    raise DataError(f"{index}, line {reader.line_num}: {row['file']} is listed twice")
                entries[entry.path] = entry
    merged = _merge_pairs(list(entries.values()))
    return [entry for entry in merged if split is None or entry.split == split]


def _entry(index: Path, row: Mapping[str, str]) -> Entry:
    if row["label"] not in ("real", "fake"):
        raise DataError(f"{index}: {row['file']} has label {row['label']!r}; wanted real or fake")
    label = int(row["label"] == "fake")
    if label and (not row["manipulation"] or row["manipulation"] == REAL):
        raise DataError(f"{index}: {row['file']} is fake but its manipulation is {row['manipulation']!r}")
    return Entry(
        path=_resolve(index, row["file"]),
        name=row["file"],
        label=label,
        manipulation=row["manipulation"] if label else REAL,
        identity=row["identity_group"] or row["file"],
        paired=_resolve(index, row["paired_real"]) if row["paired_real"] else None,
        split=row["suggested_split"],
        sha256=row.get("sha256", ""),
    )


def _resolve(index: Path, name: str) -> Path:
    for base in (index.parent, index.parent.parent):
        if (base / name).is_file():
            return (base / name).resolve()
    raise DataError(f"{index}: {name} is neither in {index.parent} nor in {index.parent.parent}")


def _merge_pairs(entries: Sequence[Entry]) -> list[Entry]:
    """The same entries, where a fake and its own real share one identity."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.get(name, name) != name:
            name = leader[name]
        return name

    by_path = {entry.path: entry for entry in entries}
    for entry in entries:
        if entry.paired in by_path:
            leader[find(entry.identity)] = find(by_path[entry.paired].identity)
    return [replace(entry, identity=find(entry.identity)) for entry in entries]
