"""What the user names on the command line, as a list of files without duplicates, in a stable order."""

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastdetect.errors import UsageError

_VIDEO = """
    3g2 3gp 3gpp apng asf avi divx dv f4v flv gif h264 h265 hevc insv ivf lrv m1v m2p m2t m2ts m2v m4v mjpeg mjpg
    mk3d mkv mov mp4 mpe mpeg mpg mts mxf nut ogv qt rm rmvb ts vob webm wmv wtv y4m
"""
_IMAGE = "avif bmp heic heif jfif jp2 jpeg jpg jxl png ppm qoi tif tiff webp"
_OWN_PICTURE = r"[0-9a-f]{16}/track\d+\.jpg"  # as save_media names them
MEDIA_EXTENSIONS = frozenset(f".{name}" for name in f"{_VIDEO} {_IMAGE}".split())


@dataclass(frozen=True)
class InputFile:
    """One file to screen: its absolute path, and the name that the user knows it by."""

    path: Path
    name: str


class Inputs(list[InputFile]):
    """Files to screen, and in `warnings` what was found beside them and is left out."""

    def __init__(self, files: Iterable[InputFile], warnings: Iterable[str]) -> None:
        super().__init__(files)
        self.warnings = list(warnings)


@dataclass
class _Beside:
    """What folders hold beside media, and which of those that were named hold none."""

    others: set[Path] = field(default_factory=set)
    empty: list[str] = field(default_factory=list)


def expand_inputs(
    inputs: Sequence[str | Path], *, shard: str | None = None, output: str | Path | None = None
) -> Inputs:
    """Turn files, folders, globs and list files into the files to screen.

    A folder gives every file below it, sorted, whose extension is in MEDIA_EXTENSIONS (any case); the others are
    counted in a warning; hidden files and linked folders are left out. A file that is named itself, by a glob or in a
    list is taken whatever its extension, and also if it does not exist: its row then says so. `@list.txt` names one
    input a line, relative to the list's folder; empty lines and lines that start with `#` are skipped.

    Args:
        inputs: as on the command line.
        shard: "i/n", 1 <= i <= n: every n-th file from the i-th on.
        output: folder that the run writes to; pictures of faces that an earlier run left there are no inputs.
    Raises:
        UsageError: an address instead of a path, a glob or list without files, nothing at all, a bad shard.
    """
    files: dict[Path, InputFile] = {}
    beside = _Beside()
    for text in inputs:
        for entry in _expand(str(text), beside):
            files.setdefault(entry.path, entry)
    if output is not None:
        own = re.compile(re.escape(os.path.join(os.path.abspath(output), "media", "")) + _OWN_PICTURE)
        files = {path: entry for path, entry in files.items() if not own.fullmatch(os.fspath(path))}
    if not files:
        beside.empty = list(map(str, inputs)) or ["an empty list of inputs"]
        raise UsageError("; ".join(_told(beside, files)))
    return Inputs(list(files.values())[_shard_slice(shard) if shard else slice(None)], _told(beside, files))


def path_text(path: Path) -> str:
    """The path as valid Unicode: bytes that are not UTF-8 become escapes such as \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_key(path: Path) -> tuple[int | None, int | None]:
    """Size in bytes and modification time in nanoseconds; (None, None) where there is no such file."""
    try:
        facts = path.stat()
    except OSError:
        return None, None
    return facts.st_size, facts.st_mtime_ns


def _shard_slice(text: str) -> slice:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard {text}: wanted i/n with 1 <= i <= n, for example 1/4")
    return slice(int(index) - 1, None, int(count))


def _told(beside: _Beside, files: Collection[Path]) -> list[str]:
    told = [f"no media file in {', '.join(beside.empty)}"] if beside.empty else []
    kinds = Counter(path.suffix.lower() or "no extension" for path in beside.others.difference(files))
    if kinds:
        counts = ", ".join(f"{kind} ({n})" for kind, n in sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0])))
        told.append(f"{kinds.total()} other file(s) left out: {counts}; name a file to screen it all the same")
    return told


def _expand(text: str, beside: _Beside, base: Path | None = None) -> Iterator[InputFile]:
    if text in ("", "-"):  # an unset shell variable must not be the whole working folder
        raise UsageError(f"{text!r} names no file; wanted files, folders, globs or @list.txt (a file called -: ./-)")
    if "://" in text:
        raise UsageError(f"{text}: only local files can be screened; download it first")
    if "\0" in text:
        raise UsageError(f"{text!r} has a zero byte, and no file's name does; is the list a text?")
    if text.startswith("@") and base is None and not os.path.lexists(text):
        yield from _expand_list(Path(text[1:]), beside)
        return
    path = Path(os.path.abspath(os.path.join(base or "", text)))
    if path.is_dir():
        found = list(_walk(path, text, beside))
        beside.empty += [] if found else [text]
        yield from found
    elif not os.path.lexists(path) and glob.has_magic(text):
        names = sorted(glob.glob(text, root_dir=base, recursive=True))
        if not names:
            raise UsageError(f"{text}: no file matches")
        for name in names:
            path = Path(os.path.abspath(os.path.join(base or "", name)))
            yield from _walk(path, name, beside) if path.is_dir() else [InputFile(path, name)]
    else:
        yield InputFile(path, text)


def _expand_list(path: Path, beside: _Beside) -> Iterator[InputFile]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").split("\n")]  # a name may hold other line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"@{path}: not a readable list of files (UTF-8, one a line): {error}") from error
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise UsageError(f"@{path}: the list names no file")
    for entry in entries:
        yield from _expand(entry, beside, path.parent)


def _walk(folder: Path, name: str, beside: _Beside) -> Iterator[InputFile]:
    # A folder that cannot be listed becomes an input itself: its row says NOT_PERMITTED instead of silence.
    denied: list[str] = []
    for root, folders, names in os.walk(folder, onerror=lambda error: denied.append(str(error.filename))):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        for entry in sorted(names):
            path = Path(root, entry)
            if entry.startswith("."):
                continue
            if path.suffix.lower() in MEDIA_EXTENSIONS:
                yield InputFile(path, os.path.join(name, path.relative_to(folder)))
            else:
                beside.others.add(path)
    for entry in denied:
        yield InputFile(Path(entry), entry)
