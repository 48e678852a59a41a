"""Celeb-DF v1 and v2."""

import re
from collections.abc import Mapping
from pathlib import Path

from fastdetect.data.layouts.base import (
    SWAP,
    Layout,
    Options,
    Reading,
    celebdf_persons,
    child,
    clips,
)
from fastdetect.errors import DataError

_PARTS = {"celeb-real": 0, "youtube-real": 0, "celeb-synthesis": 1}
_LIST = "List_of_testing_videos.txt"
_LISTED = {100: "Celeb-DF-v1", 518: "Celeb-DF-v2"}


def read_test_list(path: Path) -> dict[str, int]:
    """`celeb-real/id0_0003` -> label 0 or 1. In the file 1 is real: the other way round than everywhere else.

    Raises:
        DataError: a line is not `1 Celeb-real/id0_0003.mp4`, or its number contradicts its folder.
    """
    table = {}
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        told, _, name = line.strip().partition(" ")
        folder, _, video = name.strip().replace("\\", "/").partition("/")
        if told not in ("0", "1") or folder.lower() not in _PARTS or not video:
            raise DataError(f"{path}, line {number}: {line!r}; wanted e.g. '1 Celeb-real/id0_0003.mp4' (1 = real)")
        label = 1 - int(told)
        if label != _PARTS[folder.lower()]:
            raise DataError(
                f"{path}, line {number}: {told} means {('real', 'fake')[label]}, but {folder} says otherwise"
            )
        table[f"{folder.lower()}/{Path(video).stem}"] = label
    return table


def _read(root: Path, options: Options, reading: Reading) -> None:
    listing = child(options.splits or root, _LIST) or child(root, _LIST)
    listed = read_test_list(listing) if listing else {}
    if not listing:
        reading.warn(f"no {_LIST} in {root}: every split is left empty")
    version = re.search(r"v[12]", root.name, re.IGNORECASE)
    dataset = f"Celeb-DF-{version[0].lower()}" if version else _LISTED.get(len(listed), "Celeb-DF")
    unseen = dict(listed)
    for part, label in _PARTS.items():
        folder = child(root, part)
        for clip in clips(folder, options.prefer) if folder else []:
            unseen.pop(f"{part}/{clip.stem}", None)
            split = "" if not listed else "test" if f"{part}/{clip.stem}" in listed else "train"
            _add(reading, dataset, part, clip.stem, label, split, clip.fields(reading))
    for name, label in unseen.items():
        part, _, stem = name.partition("/")
        folder = child(root, part) or root / part
        gone = {"path": reading.relative(folder / f"{stem}.mp4")}
        _add(reading, dataset, part, stem, label, "test", gone)
    if unseen:
        reading.warn(f"{len(unseen)} videos of {listing} are not on disk; they are in the manifest, and missing")


def _add(
    reading: Reading, dataset: str, part: str, stem: str, label: int, split: str, place: Mapping[str, object]
) -> None:
    who = celebdf_persons(stem)
    fields = {"identity": f"celebdf:{part}-{stem}"} if who is None else who.fields(label)
    # YouTube and Celeb reals are named apart, as 00001 could be in both
    video = stem if who is None or who.footage != stem or not stem.isdecimal() else f"youtube-{stem}"
    pair = f"{dataset}/{who.footage if label else video}" if who else ""
    reading.add(
        str(place["path"]), dataset=dataset, video=video, label=label, split=split, pair=pair,
        manipulation=SWAP if label else "real", method="Celeb-synthesis" if label else "", **fields, **place,
    )  # fmt: skip


def _matches(root: Path) -> bool:
    return child(root, "celeb-synthesis") is not None or (
        child(root, "celeb-real") is not None and child(root, "youtube-real", _LIST) is not None
    )


CELEBDF = Layout("celebdf", f"Celeb-real/, Celeb-synthesis/, YouTube-real/ and {_LIST}", _matches, _read)
