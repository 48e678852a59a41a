"""Where rows go: results.jsonl as they come (a fsync'd line a file), at the end Parquet, CSV and run.json."""

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import IO, Any, Literal, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from fastdetect.errors import OutputError, UsageError
from fastdetect.models.folder import first_problem
from fastdetect.screening.inputs import file_key, path_text
from fastdetect.screening.results import Row, RunInfo

_ROWS_PER_GROUP = 256
_MEDIA_FOLDER = "[0-9a-f]" * 16  # as save_media names them


def fingerprint(identity: Mapping[str, Any]) -> str:
    """A short hash of everything that can change a score."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise OutputError where the system refuses a write; it names `folder` where the system names no file."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {error.filename2 or error.filename or folder}: {error.strerror or error}; make room or mend "
            "it, then --resume goes on with the rows that are there"
        ) from error


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that its name has all of it, on the disk, or what it had before."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class ResultStore:
    """The output folder of one run, or of one that is taken up again.

    Args:
        folder: created where missing.
        identity: everything that can change a score (JSON values); a resumed run must have the same.
        resume: keep the rows that are there. A line that a kill tore is dropped; the row of a file that has
            changed since is replaced.
    Raises:
        UsageError: there are rows and `resume` is off, they were made differently, a line is no row, or another run
            writes.
        OutputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        self.folder, self.identity = folder, dict(identity)
        self.path = folder / "results.jsonl"
        self._offsets: dict[str, int] = {}  # path -> where its line starts; rows stay on disk
        self._keys: dict[str, tuple[int | None, int | None]] = {}
        self._lines = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("a+b")
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}; give another --output") from error
        try:
            self._open(resume)
        except BaseException:
            self._file.close()
            raise

    def _open(self, resume: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another run is writing to {self.folder}; give another --output") from error
        except OSError as error:
            raise UsageError(
                f"{self.folder} is on a file system without locks ({error.strerror}), where two runs could write "
                "to one folder unseen; give an --output on another"
            ) from error
        known = self.folder / "identity.json"
        if self.path.stat().st_size:
            if not resume:
                raise UsageError(f"{self.path} already has rows; --resume goes on with them, or give another --output")
            self._check_identity(known)
            self._index()
        else:
            with writing(self.folder):
                _write_whole(known, json.dumps(self.identity, indent=2) + "\n")

    def _check_identity(self, known: Path) -> None:
        try:
            before: dict[str, Any] = json.loads(known.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{known} cannot be read ({error}): give another --output") from error
        keys = [key for key in {**before, **self.identity} if before.get(key) != self.identity.get(key)]
        if keys:
            told = "; ".join(f"{key} was {before.get(key)}, is {self.identity.get(key)}" for key in keys)
            raise UsageError(f"--resume: the rows in {self.folder} were made differently: {told}")

    def _index(self) -> None:
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            self._remember(self._parse(line, number), offset)
            offset += len(line)
        self._file.truncate(offset)

    def _parse(self, line: bytes, number: int) -> Row:
        try:
            return Row.model_validate_json(line)
        except ValidationError as error:
            raise UsageError(
                f"{self.path}, line {number}: not a row of schema 1 ({first_problem(error)}); remove the line, so that "
                "its file is screened again, or give another --output"
            ) from error

    def _remember(self, row: Row, offset: int) -> None:
        self._offsets[row.path] = offset
        self._keys[row.path] = (row.bytes, row.mtime_ns)
        self._lines += 1

    def __len__(self) -> int:
        return len(self._offsets)

    def has(self, path: Path) -> bool:
        """Whether the file has a row and is still as it was then (size and modification time)."""
        key = self._keys.get(path_text(path))
        return key is not None and key == file_key(path)

    def append(self, row: Row) -> None:
        """Write a row; it is on the disk when this returns, whole, or OutputError is raised and nothing of it is."""
        offset, descriptor = self._file.seek(0, os.SEEK_END), self._file.fileno()
        line = row.model_dump_json().encode() + b"\n"
        with writing(self.path):
            try:
                while line:
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, offset)
                raise
        self._remember(row, offset)

    def rows(self, order: Sequence[str] = (), *, others: bool = True) -> Iterator[Row]:
        """The newest row of every file: those in `order` (absolute paths) first, then the others if wanted."""
        with self.path.open("rb") as file:
            for path in dict.fromkeys((*order, *(self._offsets if others else ()))):
                if path in self._offsets:
                    file.seek(self._offsets[path])
                    yield Row.model_validate_json(file.readline())

    def finish(self, run: RunInfo, order: Sequence[str], *, media: bool = True) -> None:
        """Write results.parquet, summary.csv and run.json; drop replaced rows and pictures that no row names.

        Args:
            run: what goes into run.json.
            order: absolute paths of the run's inputs; their rows come first.
            media: False: no row keeps a picture, also none of an earlier run.
        """
        with writing(self.folder):
            if self._lines > len(self) or not media:
                self._compact(media)
            self._drop_pictures()
            self._write_tables(order)
            _write_whole(self.folder / "run.json", run.model_dump_json(indent=2) + "\n")

    def _compact(self, media: bool) -> None:
        partial = self.folder / "results.jsonl.partial"
        offsets, offset = {}, 0
        with partial.open("wb") as file:
            for row in self.rows():
                for track in () if media else row.tracks:
                    track.media = None
                offsets[row.path] = offset
                offset += file.write(row.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)
        self._offsets, self._lines = offsets, len(offsets)

    def _drop_pictures(self) -> None:
        folder = self.folder / "media"
        kept = [track.media for row in self.rows() for track in row.tracks if track.media] if folder.is_dir() else []
        named = {name for media in kept for name in (media.crops, media.patches)}
        for path in folder.glob(f"{_MEDIA_FOLDER}/track*.j*"):
            if path.relative_to(folder).as_posix() not in named:
                path.unlink()
        for empty in (*folder.glob(f"{_MEDIA_FOLDER}/"), folder):
            with suppress(OSError):  # not empty
                empty.rmdir()

    def _write_tables(self, order: Sequence[str]) -> None:
        schema = arrow_schema(Row)
        parquet, table = self.folder / "results.parquet", self.folder / "summary.csv"
        with (
            pq.ParquetWriter(f"{parquet}.partial", schema, compression="zstd") as writer,
            open(f"{table}.partial", "w", newline="", encoding="utf-8") as file,
        ):
            lines = csv.writer(file)
            lines.writerow(_SUMMARY)
            group: list[dict[str, Any]] = []
            for row in self.rows(order):
                lines.writerow(_summary(row))
                group.append(row.model_dump(mode="json"))
                if len(group) == _ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    group.clear()
            writer.write_table(pa.Table.from_pylist(group, schema))
        for path in (parquet, table):
            os.replace(f"{path}.partial", path)

    def close(self) -> None:
        """Let go of the folder."""
        self._file.close()


_SUMMARY = (
    "path", "status", "verdict", "score", "reasons", "message", "duration_s", "faces", "tracks", "sha256"
)  # fmt: skip


def _summary(row: Row) -> list[Any]:
    duration = row.media.duration_s if row.media else None
    score = None if row.score is None else round(row.score, 6)
    reasons = " ".join(row.reasons)
    counts = (row.faces_scored, len(row.tracks))
    return [row.path, row.status, row.verdict, score, reasons, row.message, duration, *counts, row.sha256]


_SCALARS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def arrow_schema(model: type[BaseModel]) -> pa.Schema:
    """The Arrow schema of a pydantic model made of scalars, lists, maps and other such models."""
    return pa.schema([(name, _arrow(info.annotation)) for name, info in model.model_fields.items()])


def _arrow(kind: Any) -> pa.DataType:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        (kind,) = (arg for arg in args if arg is not NoneType)
        return _arrow(kind)
    if origin is Literal:
        return _arrow(type(args[0]))
    if origin in (list, tuple):
        return pa.list_(_arrow(args[0]))
    if origin is dict:
        return pa.map_(_arrow(args[0]), _arrow(args[1]))
    if issubclass(kind, BaseModel):
        return pa.struct(arrow_schema(kind))
    return pa.string() if issubclass(kind, StrEnum) else _SCALARS[kind]
