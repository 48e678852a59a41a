"""What an evaluation runs on: which videos, what was done to them, who is in them, and their own reals."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastdetect.data.layouts import Options, read_layout
from fastdetect.data.manifest import LABELS, Manifest, Sample
from fastdetect.errors import DataError, UsageError

REAL = "real"
COLUMNS = ("file", "label", "manipulation", "identity_group", "paired_real", "suggested_split")
AUTO = "auto"
_MEASURED = ("test", "val", "validation")  # splits that are meant for it, the first that a data set has


@dataclass(frozen=True)
class Entry:
    """One video.

    Attributes:
        path: the file, or the folder, archive or LMDB that holds it.
        name: what it is called in its index or manifest: all of the path or key, never its last part alone.
        label: 0 = real, 1 = fake.
        manipulation: "type, method" of a fake, "real" of a real.
        identity: who is in it; videos of one identity are never separated.
        paired: `key` of the real that it was made from.
        split, compression, sha256, dataset: empty where unknown.
        sample, root: its row of a manifest and the folder that row's paths start at.
    """

    path: Path
    name: str
    label: int
    manipulation: str
    identity: str
    paired: str | None = None
    split: str = ""
    compression: str = ""
    sha256: str = ""
    dataset: str = ""
    sample: Sample | None = None
    root: Path = Path()

    @property
    def type(self) -> str:
        """The coarse type: the text of `manipulation` before its first comma, "real" for reals."""
        return self.manipulation.split(",")[0].strip() if self.label else REAL

    @property
    def key(self) -> str:
        """What tells it from every other video."""
        return self.name if self.sample else str(self.path)

    @property
    def place(self) -> tuple[str, ...]:
        """Where its pictures lie: equal for two rows that are one video."""
        inside = (self.sample.member, *self.sample.frames[:1]) if self.sample else ()
        return (str(self.path.resolve()), *inside)


@dataclass(frozen=True)
class Videos:
    """The videos to measure, those of the same sets that belong to training, and what a reader must be told."""

    entries: list[Entry]
    others: list[Entry]
    warnings: list[str]


def read_videos(
    sources: Iterable[str],
    split: str | None = AUTO,
    *,
    compressions: Sequence[str] = (),
    root: Path | None = None,
) -> Videos:
    """Read everything that is to be measured.

    Args:
        sources: index.csv files (columns `COLUMNS`), manifests (.parquet), or data sets as they lie on disk;
            NAME=PATH gives what PATH holds the name of one data set.
        split: rows of this split; "auto" takes of each data set the test split, else the validation split, else all
            rows, with a warning; None takes all.
        compressions: rows of these levels; none: of every level.
        root: what the paths in manifests, indices and lists start at, where the data was moved since.
    Raises:
        DataError: a source cannot be read, or a video is in it twice, or is both measured and trained on.
        UsageError: no source, no such root, or no row of the split or of one of the compressions.
    """
    if root is not None and not root.is_dir():
        raise UsageError(f"--root {root}: no such folder")
    rows: list[Entry] = []
    warnings: list[str] = []
    for source in sources:
        name, path = _named(source)
        if _is_index(path):
            found = read_index([path], root=root)
        else:
            manifest, told = read_layout(path, options=Options(media_root=root))
            found = from_manifest(manifest)
            warnings += [f"{path}: {text}" for text in told]
        rows += [replace(entry, dataset=name) for entry in found] if name else found
    if not rows:
        raise UsageError("nothing to measure: name index.csv files, manifests or data sets")
    rows = _merge_pairs(rows)
    _unique(rows)
    levels = _of_levels(rows, compressions)
    wanted = {name: _split_of(name, levels, split) for name in {row.dataset for row in levels}}
    entries = [row for row in levels if wanted[row.dataset] in (None, row.split)]
    if not entries:
        have = ", ".join(sorted({row.split or "no split" for row in levels}))
        raise UsageError(f"no video of the split {split!r}; there are {have}; --split all takes every row")
    for name in sorted({row.dataset for row in rows} - set(wanted)):
        warnings.append(f"{name} has no video of the compression {', '.join(compressions)}: nothing of it is measured")
    for name in sorted(name for name, of in wanted.items() if split == AUTO and of is None):
        number = sum(row.dataset == name for row in entries)
        warnings.append(
            f"{name or 'what was named'} has no test and no validation split: all its {number} videos are measured, "
            "those too that the model may have been trained on (--split all says that this is meant)"
        )
    for name in sorted(wanted):
        mixed = sorted({row.compression for row in entries if row.dataset == name})
        if len(mixed) > 1 and not compressions:
            warnings.append(
                f"{name} is measured at {len(mixed)} compressions mixed ({', '.join(mixed)}): --compression"
            )
    chosen = set(map(id, entries))
    others = [row for row in rows if id(row) not in chosen]
    warnings += overlap(entries, [row for row in others if row.split == "train"])
    return Videos(entries, others, warnings)


def _of_levels(rows: list[Entry], compressions: Sequence[str]) -> list[Entry]:
    """The rows of the asked compressions; each must be there, so that a slip of the pen measures nothing else."""
    have = sorted({row.compression for row in rows})
    absent = [level for level in compressions if level not in have]
    if absent:
        raise UsageError(
            f"no video of the compression {', '.join(absent)}; there are {', '.join(level or 'none' for level in have)}"
        )
    return [row for row in rows if not compressions or row.compression in compressions]


def _named(source: str) -> tuple[str, Path]:
    name, equals, path = source.partition("=")
    return (name, Path(path)) if equals and "/" not in name and not Path(source).exists() else ("", Path(source))


def _is_index(path: Path) -> bool:
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:  # reading it all says what is wrong
        return "suggested_split" in next(csv.reader(stream), [])


def _split_of(dataset: str, rows: Sequence[Entry], split: str | None) -> str | None:
    if split != AUTO:
        return split
    have = {row.split for row in rows if row.dataset == dataset}
    return next((name for name in _MEASURED if name in have), None)


def overlap(entries: Sequence[Entry], trained: Sequence[Entry]) -> list[str]:
    """Look for what a model was trained on among what it is measured on.

    Returns:
        A warning for persons that are in both: they make every figure too good.
    Raises:
        DataError: a video is in both, by its place or by its content's hash.
    """
    places, hashes = {row.place for row in trained}, {row.sha256 for row in trained if row.sha256}
    same = [entry.name for entry in entries if entry.place in places or entry.sha256 in hashes]
    if same:
        raise DataError(
            f"{len(same)} of {len(entries)} videos to measure are also in the training split, such as {same[0]}; "
            "measure on others (`fastdetect data verify` lists all such)"
        )
    persons = sorted(_persons(entries) & _persons(trained))
    if not persons:
        return []
    who = f"{persons[0]} is" if len(persons) == 1 else f"{len(persons)} persons, such as {persons[0]}, are"
    return [f"{who} also in the training split: figures on them are too good"]


def _persons(entries: Iterable[Entry]) -> set[str]:
    found: set[str] = set()
    for entry in entries:
        found |= {entry.identity} | (entry.sample.identities if entry.sample else set())
    return found


def from_manifest(manifest: Manifest) -> list[Entry]:
    """The labelled samples of a manifest.

    A video is called by its key (dataset/label/split/compression/method/video): FaceForensics++ has a 000_003 in every
    method, and whoever groups frames by that name averages four fakes, and a real of the same name, into one.
    """
    _ = manifest.by_key  # refuses two samples of one name
    reals = {sample.pair: sample.key for sample in manifest if sample.label == 0 and sample.pair}
    return [
        Entry(
            path=manifest.locate(sample.path),
            name=sample.key,
            label=sample.label,
            manipulation=_manipulation(sample),
            identity=sample.identity or sample.key,
            paired=reals.get(sample.pair) if sample.label else None,
            split=sample.split,
            compression=sample.compression,
            sha256=sample.sha256,
            dataset=sample.dataset,
            sample=sample,
            root=manifest.root,
        )
        for sample in manifest
        if sample.label is not None
    ]


def _manipulation(sample: Sample) -> str:
    if not sample.label:
        return REAL
    kind = "fake" if sample.manipulation in ("", REAL) else sample.manipulation.replace(",", ";")
    return f"{kind}, {sample.method}" if sample.method else kind


def read_index(paths: Iterable[str | Path], split: str | None = None, *, root: Path | None = None) -> list[Entry]:
    """Read index files.

    Identities that a fake and its own real name differently are made one, so that a bootstrap never
    separates them.

    Args:
        paths: CSV files with the columns of `COLUMNS` (compression, sha256 and dataset too where there are any).
        split: keep rows whose `suggested_split` is this; None keeps all.
        root: what the paths in them start at; by default their own folder or that folder's parent.
    Raises:
        DataError: no such file or it is not UTF-8, a column or file is missing, a label is unknown, a file is listed
            twice.
    """
    entries: list[Entry] = []
    for index in map(Path, paths):
        if not index.is_file():
            raise DataError(f"{index}: no such index; wanted a CSV file with the columns {', '.join(COLUMNS)}")
        try:
            with index.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream)
                rows, columns = list(reader), reader.fieldnames or []
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{index} is not a readable index (CSV in UTF-8): {error}") from error
        missing = sorted(set(COLUMNS) - set(columns))
        if missing:
            raise DataError(f"{index}: no column {', '.join(missing)}; wanted {', '.join(COLUMNS)}")
        bases = [root] if root else [index.parent, index.parent.parent]
        entries += [_entry(index, row, bases) for row in rows]
    _unique(entries)
    return [entry for entry in _merge_pairs(entries) if split is None or entry.split == split]


def _entry(index: Path, row: Mapping[str, str], bases: Sequence[Path]) -> Entry:
    if row["label"] not in ("real", "fake"):
        raise DataError(f"{index}: {row['file']} has label {row['label']!r}; wanted real or fake")
    label = int(row["label"] == "fake")
    if label and (not row["manipulation"] or row["manipulation"] == REAL):
        raise DataError(f"{index}: {row['file']} is fake but its manipulation is {row['manipulation']!r}")
    return Entry(
        path=_resolve(index, row["file"], bases),
        name=row["file"],
        label=label,
        manipulation=row["manipulation"] if label else REAL,
        identity=row["identity_group"] or row["file"],
        paired=str(_resolve(index, row["paired_real"], bases)) if row["paired_real"] else None,
        split=row["suggested_split"],
        compression=row.get("compression") or "",
        sha256=row.get("sha256", ""),
        dataset=row.get("dataset", ""),
    )


def _resolve(index: Path, name: str, bases: Sequence[Path]) -> Path:
    for base in bases:
        if (base / name).is_file():
            return (base / name).resolve()
    raise DataError(f"{index}: {name} is not in {' nor in '.join(map(str, bases))}; --root says where the data lies")


def _unique(entries: Sequence[Entry]) -> None:
    by_place: dict[tuple[str, ...], Entry] = {}
    for entry in entries:
        first = by_place.setdefault(entry.place, entry)
        if first is not entry:
            raise DataError(
                f"{entry.name} is listed twice, as {LABELS[first.label]} and as {LABELS[entry.label]}; a video counts "
                "once"
            )


def _merge_pairs(entries: Sequence[Entry]) -> list[Entry]:
    """The same entries, where a fake and its own real share one identity."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.get(name, name) != name:
            name = leader[name]
        return name

    by_key = {entry.key: entry for entry in entries}
    for entry in entries:
        if entry.paired in by_key:
            leader[find(entry.identity)] = find(by_key[entry.paired].identity)
    return [replace(entry, identity=find(entry.identity)) for entry in entries]
