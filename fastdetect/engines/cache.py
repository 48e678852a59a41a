"""Files that took long to make, kept under a key: whole and the right one, or not used."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fastdetect.errors import EngineError

Say = Callable[[str], None]
Key = Mapping[str, str]

_MAGIC = b"fastdetect engine cache 1\n"


def cache_folder() -> Path:
    """Where built files are kept: FASTDETECT_CACHE, else fastdetect/engines in the user's cache.

    Raises:
        EngineError: the user has neither.
    """
    if named := os.environ.get("FASTDETECT_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdetect" / "engines"
    except RuntimeError as error:
        raise EngineError(f"no folder to keep engines in: {error} Set FASTDETECT_CACHE to one") from error


def cached(
    kind: str,
    key: Key,
    build: Callable[[], bytes],
    say: Say,
    folder: Path | None = None,
    check: Callable[[bytes], object] = lambda data: None,
) -> bytes:
    """Return what is kept under a key, or build and keep it; of several processes one builds and the others wait.

    Args:
        kind: first part of the file's name.
        key: everything that the result depends on.
        build: makes the bytes.
        say: hears why a file is not used.
        check: raises EngineError for what is kept and whole, but cannot be used.
    Raises:
        EngineError: the folder cannot be written.
    """
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    path = (folder or cache_folder()) / f"{kind}-{digest[:24]}.bin"
    with _locked(path):
        if path.exists():
            try:
                data = unpack(path.read_bytes(), key)
                check(data)
                return data
            except (EngineError, OSError) as error:
                say(f"{path} is not used: {error}; it is made again")
        data = build()
        write_atomic(path, pack(data, key))
        return data


def pack(data: bytes, key: Key) -> bytes:
    """Put a header with the key, the size and the SHA-256 before the data."""
    header = {"key": dict(key), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return _MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n" + data


def unpack(packed: bytes, key: Key) -> bytes:
    """Return the data if it is whole and was packed under this key; raises EngineError with the reason."""
    if not packed.startswith(_MAGIC):
        raise EngineError("it is no file of this cache")
    line, _, data = packed[len(_MAGIC) :].partition(b"\n")
    try:
        header = json.loads(line)
        kept, size, digest = header["key"], header["bytes"], header["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError("its header is damaged") from error
    foreign = [f"{name} {kept.get(name)!r}, wanted {want!r}" for name, want in key.items() if kept.get(name) != want]
    if foreign:
        raise EngineError(f"it was made for {', '.join(foreign)}")
    if len(data) != size:
        raise EngineError(f"it has {len(data)} of {size} bytes")
    if hashlib.sha256(data).hexdigest() != digest:
        raise EngineError("its SHA-256 is not the recorded one")
    return data


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that its name is there with all of it or not at all; raises EngineError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with writing(path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is about to be written; any failure is an EngineError that says where."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{path.name}.*.partial"):  # of a process that was killed
            if Path(f"/proc/{left.name.split('.')[-2]}").exists():
                continue
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        yield
    except OSError as error:
        there = next(folder for folder in (path.parent, *path.parent.parents) if folder.exists())
        free = shutil.disk_usage(there).free / 2**20
        raise EngineError(
            f"cannot write {path}: {error.strerror or error} ({free:.0f} MiB free); make room, or choose another "
            "folder (--output; FASTDETECT_CACHE for the cache)"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with writing(path):
        file = path.with_suffix(".lock").open("w")
    with file:
        with suppress(OSError):  # a file system without locks: two processes may build the same
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
