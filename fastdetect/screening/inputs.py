"""What the user names on the command line, as a list of files without duplicates, in a stable order."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdetect.errors import UsageError

_VIDEO = """
    3g2 3gp asf avi dv f4v flv gif h264 h265 hevc ivf m2ts m2v m4v mjpeg mjpg mkv mov mp4 mpeg mpg mts mxf
    nut ogv ts vob webm wmv y4m
"""
_IMAGE = "avif bmp heic heif jfif jp2 jpeg jpg jxl png ppm qoi tif tiff webp"
MEDIA_EXTENSIONS = frozenset(f".{name}" for name in f"{_VIDEO} {_IMAGE}".split())


@dataclass(frozen=True)
class InputFile:
    """One file to screen: its absolute path, and the name that the user knows it by."""

    path: Path
    name: str


def expand_inputs(inputs: Sequence[str | Path], *, shard: str | None = None) -> list[InputFile]:
    """Turn files, folders, globs and list files into the files to screen.

    A folder gives every file below it, sorted, whose extension is in MEDIA_EXTENSIONS (any case); hidden
    files and linked folders are left out. A file that is named itself, by a glob or in a list is taken
    whatever its extension, and also if it does not exist: its row then says so. `@list.txt` names one input a
    line, relative to the list's folder; empty lines and lines that start with `#` are skipped.

    Args:
        inputs: as on the command line.
        shard: "i/n", 1 <= i <= n: every n-th file from the i-th on.
    Raises:
        UsageError: an address instead of a path, a glob or list without files, nothing at all, a bad shard.
    """
    files: dict[Path, InputFile] = {}
    for text in inputs:
        for entry in _expand(str(text)):
            files.setdefault(entry.path, entry)
    if not files:
        raise UsageError(f"no media file in {', '.join(map(str, inputs)) or 'an empty list of inputs'}")
    return list(files.values())[_shard_slice(shard) if shard else slice(None)]


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


def _expand(text: str, base: Path | None = None) -> Iterator[InputFile]:
    if "://" in text:
        raise UsageError(f"{text}: only local files can be screened; download it first")
    if text.startswith("@") and base is None and not os.path.lexists(text):
        yield from _expand_list(Path(text[1:]))
        return
    path = Path(os.path.abspath(os.path.join(base or "", text)))
    if path.is_dir():
        yield from _walk(path, text)
    elif not os.path.lexists(path) and glob.has_magic(text):
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise UsageError(f"{text}: no file matches")
        for match in found:
            yield from _walk(Path(match), match) if os.path.isdir(match) else [InputFile(Path(match), match)]
    else:
        yield InputFile(path, text)


def _expand_list(path: Path) -> Iterator[InputFile]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"@{path}: not a readable list of files (UTF-8, one a line): {error}") from error
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise UsageError(f"@{path}: the list names no file")
    for entry in entries:
        yield from _expand(entry, path.parent)


def _walk(folder: Path, name: str) -> Iterator[InputFile]:
    # A folder that cannot be listed becomes an input itself: its row says NOT_PERMITTED instead of silence.
    denied: list[str] = []
    for root, folders, names in os.walk(folder, onerror=lambda error: denied.append(str(error.filename))):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        for entry in sorted(names):
            path = Path(root, entry)
            if not entry.startswith(".") and path.suffix.lower() in MEDIA_EXTENSIONS:
                yield InputFile(path, os.path.join(name, path.relative_to(folder)))
    for entry in denied:
        yield InputFile(Path(entry), entry)
