"""One table for every data set: which videos there are, what was done to them, who is in them, where they lie."""

import csv
import lzma
import os
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from fastdetect.errors import DataError

VERSION = 1
_VERSION_KEY, _ROOT_KEY = b"fastdetect_manifest", b"root"

REAL, FAKE = 0, 1
LABELS = {REAL: "real", FAKE: "fake", None: "unlabelled"}
Split = Literal["train", "val", "test", ""]
SPLITS: tuple[Split, ...] = get_args(Split)
Container = Literal["", "zip", "tar", "lmdb"]
# Of zips and tars that are damaged, encrypted (RuntimeError) or packed in a way that Python cannot read (its subclass).
ARCHIVE_ERRORS = (
    OSError, EOFError, KeyError, zipfile.BadZipFile, tarfile.TarError, RuntimeError, zlib.error, lzma.LZMAError,
)  # fmt: skip


class Sample(BaseModel):
    """One video (or single picture) of a data set; what is not known is empty or None.

    Attributes:
        dataset, split, compression, method, video: its name; together with the label they are its `key`.
            `compression` is the quality or perturbation level as the set calls it; `method` is the generator
            (Deepfakes, FSGAN, ...), empty for reals.
        label: 0 = real, 1 = fake, None = not labelled.
        manipulation: what kind of forgery: real, swap, reenactment, lip sync, talking head, synthesis, edit, or
            other words of the set's own.
        path: file, folder of frames, archive or LMDB folder; relative to the manifest's root, or absolute.
        container: what `path` is, where its content lies inside: zip, tar or lmdb.
        member: name of the video inside the container.
        frames: frame files (relative to the root), or their names or keys inside the container, in order of time.
        cropped: the frames are cut-out faces already.
        identity: the person, or where nobody is named the footage, that splits and bootstraps keep together.
        target_identity, source_identity: of a fake: whose footage it is, and whose face or motion was put there.
        pair: equal for a real and every fake made from its footage at the same compression.
        masks: files of what was changed, where the set has them.
        sha256, bytes, duration_s, width, height, frame_count: filled in by `fastdetect data verify`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    video: str
    path: str
    label: Literal[0, 1] | None
    manipulation: str = ""
    method: str = ""
    split: Split = ""
    compression: str = ""
    container: Container = ""
    member: str = ""
    frames: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    cropped: bool = False
    identity: str = ""
    source_identity: str = ""
    target_identity: str = ""
    pair: str = ""
    sha256: str = ""
    bytes: int | None = None
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    frame_count: int | None = None

    @property
    def key(self) -> str:
        """dataset/label/split/compression/method/video, never the video's name alone: FF++ names repeat per method."""
        parts = (self.dataset, LABELS[self.label], self.split, self.compression, self.method, self.video)
        return "/".join(part or "-" for part in parts)

    @property
    def identities(self) -> frozenset[str]:
        """Everybody whose face went into it."""
        return frozenset({self.identity, self.source_identity, self.target_identity} - {""})

    @property
    def place(self) -> tuple[str, ...]:
        """Where its pictures lie: equal for two rows that are one video."""
        return (self.path, self.member, *self.frames[:1])


def new_sample(where: str, **fields: Any) -> Sample:
    """Make a Sample; DataError names `where` the fields were read when they do not fit."""
    try:
        return Sample(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
        ) from error


_TYPES: dict[str, pa.DataType] = {
    "label": pa.int8(), "frames": pa.list_(pa.string()), "masks": pa.list_(pa.string()), "cropped": pa.bool_(),
    "bytes": pa.int64(), "duration_s": pa.float64(), "width": pa.int32(), "height": pa.int32(),
    "frame_count": pa.int64(),
}  # fmt: skip
_CSV_COLUMNS = (
    "file", "label", "manipulation", "identity_group", "paired_real", "suggested_split", "compression", "sha256",
    "source", "video_group",
)  # fmt: skip
_REPEATING = {"dataset", "manipulation", "method", "split", "compression", "container"}
SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in Sample.model_fields])


@dataclass(frozen=True)
class Problem:
    """Something wrong with a manifest: `kind` is stable, `grave` ones make `data verify` fail."""

    kind: str
    key: str
    message: str
    grave: bool = True


@dataclass(frozen=True)
class Manifest:
    """Samples and the folder that their paths are relative to.

    Example:
        >>> one = Sample(dataset="demo", video="a", path="real/a.mp4", label=0)
        >>> Manifest((one,), Path("/data")).locate(one.path).as_posix()
        '/data/real/a.mp4'
    """

    samples: tuple[Sample, ...]
    root: Path

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @cached_property
    def by_key(self) -> dict[str, Sample]:
        """The samples by key; DataError where two share one."""
        table = {sample.key: sample for sample in self.samples}
        if len(table) < len(self.samples):
            twice = next(key for key, n in Counter(s.key for s in self.samples).items() if n > 1)
            raise DataError(f"two samples are called {twice}; `fastdetect data verify` lists all such")
        return table

    def locate(self, path: str) -> Path:
        """The absolute place of a path of the manifest."""
        return self.root / path

    def where(self, keep: Callable[[Sample], bool] | None = None, **fields: Any) -> "Manifest":
        """The samples that `keep` accepts and whose fields equal, or are among, the given values.

        Example:
            >>> Manifest((), Path(".")).where(split="train", method=("Deepfakes", "")).samples
            ()
        """
        unknown = sorted(set(fields) - set(Sample.model_fields))
        if unknown:
            raise DataError(f"a manifest has no field {', '.join(unknown)}; it has {', '.join(Sample.model_fields)}")
        wanted = {name: value if isinstance(value, tuple | list | set) else (value,) for name, value in fields.items()}
        kept = (s for s in self.samples if all(getattr(s, name) in values for name, values in wanted.items()))
        return Manifest(tuple(s for s in kept if keep is None or keep(s)), self.root)

    def counts(self, *fields: str) -> Counter[tuple[Any, ...]]:
        """How many samples there are of each combination of the fields' values."""
        return Counter(tuple(getattr(sample, field) for field in fields) for sample in self.samples)

    def write(self, path: str | Path) -> None:
        """Write a Parquet file, or (name ends in .csv) the index that `data pack` and `evaluate` read.

        Raises:
            DataError: it cannot be written; or the CSV form was asked for samples that are no plain labelled files.
        """
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix.lower() == ".csv":
                self._write_csv(partial)
            else:
                self._write_parquet(partial)
            os.replace(partial, path)
        except (OSError, UnicodeEncodeError) as error:
            raise DataError(f"cannot write the manifest {path}: {error}") from error

    def _write_parquet(self, path: Path) -> None:
        columns = {name: [getattr(s, name) for s in self.samples] for name in Sample.model_fields}
        schema = SCHEMA.with_metadata(
            {_VERSION_KEY: str(VERSION).encode(), _ROOT_KEY: os.fsencode(self.root.resolve())}
        )
        table = pa.Table.from_pydict(columns, schema)
        pq.write_table(table, path, compression="zstd", use_dictionary=sorted(_REPEATING))

    def _write_csv(self, path: Path) -> None:
        unfit = [s.key for s in self.samples if s.container or s.frames or s.label is None]
        if unfit:
            raise DataError(
                f"{len(unfit)} samples, such as {unfit[0]}, are frames, inside archives or unlabelled, which an "
                "index.csv cannot say; write a .parquet manifest"
            )
        reals = {s.pair: s for s in self.samples if s.label == REAL and s.pair}
        with path.open("w", encoding="utf-8", newline="") as stream:
            out = csv.writer(stream)
            out.writerow(_CSV_COLUMNS)
            for s in self.samples:
                kind = ", ".join(part for part in (s.manipulation or "unknown", s.method) if part)
                real = reals.get(s.pair) if s.label == FAKE else None
                out.writerow(
                    [
                        self.locate(s.path).resolve(), LABELS[s.label], kind if s.label == FAKE else "", s.identity,
                        self.locate(real.path).resolve() if real else "", s.split, s.compression, s.sha256, s.dataset,
                        "/".join(filter(None, (s.compression, s.video))),
                    ]
                )  # fmt: skip


def is_manifest(path: str | Path) -> bool:
    """Whether a file is one that `Manifest.write` wrote as Parquet, of whatever version."""
    try:
        return _VERSION_KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowInvalid):
        return False


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """Read a manifest that `Manifest.write` wrote as Parquet.

    Args:
        path: the file.
        root: where the data lies now; by default where it lay when the manifest was written.
    Raises:
        DataError: not such a file, or of another version.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is not a readable manifest: {error}; make one with `fastdetect data index`") from error
    told = table.schema.metadata or {}
    version = told.get(_VERSION_KEY, b"none").decode()
    if version != str(VERSION):
        raise DataError(
            f"{path}: manifest version {version}; this fastdetect reads version {VERSION}: index the data again"
        )
    if table.schema.names != SCHEMA.names:
        raise DataError(f"{path}: columns {table.schema.names}; wanted {SCHEMA.names}")
    samples = tuple(new_sample(f"{path}, row {n}", **row) for n, row in enumerate(table.to_pylist(), 1))
    return Manifest(samples, Path(root) if root is not None else Path(os.fsdecode(told[_ROOT_KEY])))


def concat(manifests: Sequence[Manifest]) -> Manifest:
    """Join manifests; paths become relative to the folder that all of them lie in.

    Raises:
        DataError: two samples have one key, or there is nothing to join.
    """
    if not manifests:
        raise DataError("no manifest to join")
    roots = {m.root.resolve() for m in manifests}
    common = Path(os.path.commonpath(roots))
    samples: list[Sample] = []
    for manifest in manifests:
        below = manifest.root.resolve().relative_to(common)
        samples += manifest.samples if below == Path(".") else (_moved(s, below) for s in manifest.samples)
    joined = Manifest(tuple(samples), common)
    _ = joined.by_key
    return joined


def _moved(sample: Sample, below: Path) -> Sample:
    update: dict[str, Any] = {"path": str(below / sample.path), "masks": tuple(str(below / m) for m in sample.masks)}
    if not sample.container:
        update["frames"] = tuple(str(below / frame) for frame in sample.frames)
    return sample.model_copy(update=update)


def check(manifest: Manifest) -> list[Problem]:
    """What can be found wrong without opening a video: names, labels, missing files, leaks between splits.

    A file or person that is both in a split that is trained on and in one that is measured makes every figure too
    good. Hashes count where `verify` has filled them in.
    """
    problems: list[Problem] = []
    samples = manifest.samples
    for key, n in Counter(s.key for s in samples).items():
        if n > 1:
            problems.append(Problem("DUPLICATE_KEY", key, f"{n} samples have this key"))
    problems += [Problem("UNLABELLED", s.key, "neither real nor fake") for s in samples if s.label is None]
    problems += _missing(manifest)
    by_place, by_hash, by_person = defaultdict(list), defaultdict(list), defaultdict(list)
    for sample in samples:
        by_place[sample.place].append(sample)
        if sample.sha256:
            by_hash[sample.sha256].append(sample)
        for person in sample.identities:
            by_person[person].append(sample)
    seen: set[tuple[str, str]] = set()
    for group in (*by_place.values(), *by_hash.values()):
        problems += [p for p in _one_video(group) if (p.kind, p.key) not in seen]
        seen.update((p.kind, p.key) for p in problems)
    for person, group in sorted(by_person.items()):
        splits = _splits(group)
        if len(splits) > 1:
            told = ", ".join(f"{n} in {split}" for split, n in splits.items())
            problems.append(Problem("IDENTITY_IN_TWO_SPLITS", person, f"videos with this person: {told}", grave=False))
    return problems


def _splits(group: Iterable[Sample]) -> dict[str, int]:
    found: Counter[str] = Counter(s.split for s in group if s.split)
    return {split: found[split] for split in SPLITS if found[split]}


def _one_video(group: list[Sample]) -> list[Problem]:
    """Contradictions between rows that are one and the same video."""
    if len(group) == 1:
        return []
    first, others = group[0].key, ", ".join(s.key for s in group[1:4])
    problems = []
    if len({s.label for s in group if s.label is not None}) > 1:
        problems.append(Problem("LABEL_CONFLICT", first, f"the same content is real and fake: also {others}"))
    if len(_splits(group)) > 1:
        problems.append(Problem("VIDEO_IN_TWO_SPLITS", first, f"the same content is also {others}"))
    if not problems:
        problems.append(Problem("DUPLICATE_CONTENT", first, f"the same content is also {others}", grave=False))
    return problems


def _missing(manifest: Manifest) -> list[Problem]:
    listings: dict[Path, frozenset[str]] = {}

    def exists(path: str) -> bool:
        place = manifest.locate(path)
        folder = place.parent
        if folder not in listings:  # one listing a folder: a million frames would be a million calls
            try:
                listings[folder] = frozenset(os.listdir(folder))
            except OSError:
                listings[folder] = frozenset()
        return place.name in listings[folder]

    problems = []
    for sample in manifest.samples:
        files = sample.frames if sample.frames and not sample.container else (sample.path,)
        gone = [file for file in files if not exists(file)]
        if gone:
            more = f" and {len(gone) - 1} more of its {len(files)} frames" if len(gone) > 1 else ""
            problems.append(Problem("MISSING_FILE", sample.key, f"no file {manifest.locate(gone[0])}{more}"))
    return problems
