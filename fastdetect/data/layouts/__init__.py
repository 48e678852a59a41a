"""Readers for the data sets of the field as they lie on disk, each into the one manifest."""

from pathlib import Path

from fastdetect.data.layouts.base import Layout, Options, Reading, folders
from fastdetect.data.layouts.celebdf import CELEBDF
from fastdetect.data.layouts.deepfakebench import DEEPFAKEBENCH
from fastdetect.data.layouts.df40 import DF40
from fastdetect.data.layouts.dfdc import DFDC, DFDCP
from fastdetect.data.layouts.faceforensics import FACEFORENSICS, FACEFORENSICS_FLAT
from fastdetect.data.layouts.generic import FOLDERS, MANIFEST, TABLE
from fastdetect.data.layouts.small_sets import DEEPERFORENSICS, FFIW, UADFV, WILDDEEPFAKE
from fastdetect.data.manifest import Manifest
from fastdetect.errors import DataError, UsageError

# The first that matches is taken: those that need more come before those that would take the same tree for less.
LAYOUTS: tuple[Layout, ...] = (
    MANIFEST, TABLE, FACEFORENSICS, FACEFORENSICS_FLAT, CELEBDF, DFDCP, DFDC, DEEPERFORENSICS, WILDDEEPFAKE, FFIW,
    UADFV, DEEPFAKEBENCH, DF40, FOLDERS,
)  # fmt: skip


def detect_layout(root: str | Path) -> Layout:
    """Say which layout a folder or file has.

    Raises:
        DataError: none: the message lists what was looked for, and folders just below that do match.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"no such folder or file: {root}")
    for layout in LAYOUTS:
        if layout.matches(root):
            return layout
    looked = "\n".join(f"  {layout.name}: {layout.wanted}" for layout in LAYOUTS)
    below = [f"{inner} is {layout.name}" for inner in folders(root) for layout in LAYOUTS if layout.matches(inner)]
    hint = f"\nBelow it: {'; '.join(below[:6])}: name these." if below else ""
    raise DataError(f"{root} has no layout that is known. Looked in it for\n{looked}{hint}")


def read_layout(root: str | Path, layout: str = "auto", options: Options | None = None) -> tuple[Manifest, list[str]]:
    """Read a data set into a manifest.

    Args:
        root: its folder, or the JSON, CSV or Parquet file that describes it.
        layout: a name from LAYOUTS; "auto" finds it.
        options: see `Options`.
    Returns:
        The manifest, paths relative to `root` (of a file: to its folder; of a manifest: to its own root), and
        warnings for the user.
    Raises:
        DataError: the layout is not known, or the set contradicts it.
        UsageError: no layout of that name, or no folder of those that the options name.
    """
    root, options = Path(root).absolute(), options or Options()
    for name in ("splits", "media_root", "lmdb"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            raise UsageError(f"--{name.replace('_', '-')} {folder}: no such folder")
    named = {known.name: known for known in LAYOUTS}
    if layout != "auto" and layout not in named:
        raise UsageError(f"no layout {layout!r}; known are auto, {', '.join(named)}")
    chosen = detect_layout(root) if layout == "auto" else named[layout]
    if not root.exists():
        raise DataError(f"no such folder or file: {root}")
    reading = Reading(root if root.is_dir() else root.parent)
    chosen.read(root, options, reading)
    if not reading.samples:
        told = f" ({'; '.join(reading.warnings)})" if reading.warnings else ""
        raise DataError(f"{root} as {chosen.name} has no video: wanted {chosen.wanted}{told}")
    return Manifest(tuple(reading.samples), reading.root), reading.warnings


__all__ = ["LAYOUTS", "Layout", "Options", "detect_layout", "read_layout"]
