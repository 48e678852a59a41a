"""The Deepfake Detection Challenge (metadata.json per part, zipped or not; labels.csv) and its preview."""

import csv
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fastdetect.data.layouts.base import (
    SWAP,
    Clip,
    Layout,
    Options,
    Reading,
    clip_or_none,
    clips,
    entries,
    folders,
    is_video,
    split_of,
    walk,
)
from fastdetect.data.manifest import ARCHIVE_ERRORS
from fastdetect.errors import DataError

DATASET, PREVIEW = "DFDC", "DFDCP"


def _json(path: Path, text: bytes | None = None) -> dict[str, dict[str, Any]]:
    try:
        table = json.loads(path.read_bytes() if text is None else text)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
        raise DataError(f'{path}: wanted {{"name.mp4": {{"label": ..., ...}}, ...}}')
    return table


def _label(where: Path, name: str, facts: Mapping[str, Any]) -> int | None:
    """REAL/FAKE of the training parts, is_fake of the test set; None where there is none (Kaggle's test videos)."""
    told = facts.get("label", facts.get("is_fake"))
    if told is None or told == "":
        return None
    try:
        return {"real": 0, "fake": 1, "0": 0, "1": 1}[str(told).strip().lower()]
    except KeyError as error:
        raise DataError(f"{where}: {name} has label {told!r}; wanted REAL or FAKE") from error


def _labels_csv(path: Path) -> dict[str, dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if rows and not {"filename", "label"} <= set(rows[0]):
        raise DataError(f"{path}: columns {list(rows[0])}; wanted filename,label (1 = fake)")
    return {row["filename"]: {"label": row["label"]} for row in rows}


def _facts_of(folder: Path) -> tuple[Path, dict[str, dict[str, Any]]] | None:
    """The label file of a folder; where a test set has both, labels.csv decides, metadata.json adds to it."""
    table: dict[str, dict[str, Any]] = {}
    files = [folder / "metadata.json", folder / "labels.csv"]
    for path in files:
        if path.is_file():
            for name, facts in (_json(path) if path.suffix == ".json" else _labels_csv(path)).items():
                table[name] = table.get(name, {}) | facts
    found = [path for path in files if path.is_file()]
    return (found[-1], table) if found else None


def _split(folder: str, facts: Mapping[str, Any]) -> str:
    named = next((s for part in re.split(r"[/_ ]", folder) if (s := split_of(part))), "")
    return split_of(str(facts.get("split", ""))) or named


def _add(
    reading: Reading, where: Path, folder: str, name: str, facts: Mapping[str, Any], place: Mapping[str, Any]
) -> None:
    label = _label(where, name, facts)
    stem = PurePosixPath(name).stem
    original = PurePosixPath(str(facts.get("original") or "")).stem if label == 1 else stem
    reading.add(
        where, dataset=DATASET, video=stem, label=label, split=_split(folder, facts),
        manipulation="" if label is None else ("real", SWAP)[label], method="DFDC" if label else "",
        identity=f"dfdc:{original or stem}", target_identity=f"dfdc:{original}" if label and original else "",
        pair=f"{DATASET}/{original}" if original else "", **place,
    )  # fmt: skip


def _read_folder(folder: Path, options: Options, reading: Reading) -> set[str]:
    """One part: a folder with a label file; returns the names of its videos."""
    facts_of = _facts_of(folder)
    if facts_of is None:
        return set()
    where, facts = facts_of
    absent = 0
    on_disk = {clip.stem: clip for clip in clips(folder, options.prefer)}
    for name, told in facts.items():
        clip: Clip | None = on_disk.pop(PurePosixPath(name).stem, None)
        absent += clip is None
        place = clip.fields(reading) if clip else {"path": reading.relative(folder / name)}
        _add(reading, where, folder.name, name, told, place)
    if absent:
        reading.warn(f"{absent} videos of {where} are not on disk; they are in the manifest, and missing")
    for clip in on_disk.values():
        _add(reading, where, folder.name, clip.path.name, {}, clip.fields(reading))
    if on_disk:
        reading.warn(f"{len(on_disk)} videos in {folder} are not in {where.name}; they are unlabelled")
    return {PurePosixPath(name).stem for name in facts}


def _read_zip(path: Path, reading: Reading, extracted: set[str]) -> None:
    """dfdc_train_part_00.zip: read in place, unless its videos were unpacked beside it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if not PurePosixPath(n).name.startswith(".")]
            table = next((n for n in names if PurePosixPath(n).name == "metadata.json"), None)
            if table is None:
                reading.warn(f"{path} is left out: it has no metadata.json")
                return
            facts = _json(path, archive.read(table))
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{path} is not a readable zip: {error}; download it again") from error
    members = {PurePosixPath(n).name: n for n in names if is_video(Path(n))}
    missing = 0
    for name, told in facts.items():
        if PurePosixPath(name).stem in extracted:
            continue
        missing += name not in members
        place = {"path": reading.relative(path), "container": "zip", "member": members.get(name, name)}
        _add(reading, path, path.stem, name, told, place)
    if missing:
        reading.warn(f"{missing} videos of the metadata.json in {path} are not in the zip")


def _parts(root: Path) -> list[Path]:
    """The root, its folders and theirs, where they have a label file."""
    below = [inner for folder in folders(root) for inner in (folder, *folders(folder))]
    return [f for f in (root, *below) if (f / "metadata.json").is_file() or (f / "labels.csv").is_file()]


def _zips(root: Path) -> list[Path]:
    return [e for f in (root, *folders(root)) for e in entries(f) if re.match(r"dfdc_train_part_?\d+\.zip$", e.name)]


def _read(root: Path, options: Options, reading: Reading) -> None:
    extracted: set[str] = set()
    parts = _parts(root)
    for part in parts:
        extracted |= _read_folder(part, options, reading)
    for folder, _, files in walk(root):
        videos = sum(map(is_video, files))
        if videos and not any(folder.is_relative_to(part) for part in parts):
            reading.warn(f"{videos} videos in {folder} are left out: it has no metadata.json and no labels.csv")
    for path in _zips(root):
        _read_zip(path, reading, extracted)


def _matches(root: Path) -> bool:
    for part in _parts(root)[:1]:
        with (part / ("metadata.json" if (part / "metadata.json").is_file() else "labels.csv")).open("rb") as stream:
            head = stream.read(4096)
        return b".mp4" in head
    return bool(_zips(root))


DFDC = Layout(
    "dfdc",
    "metadata.json or labels.csv (filename,label) in it or in its parts, or dfdc_train_part_*.zip",
    _matches,
    _read,
)


def _read_preview(root: Path, options: Options, reading: Reading) -> None:
    """Keys such as method_A/1003254/1003254_A/1255229_1003254_A_001.mp4: 1255229's face on 1003254_A_001."""
    listing = root / "dataset.json"
    absent = 0
    for name, facts in _json(listing).items():
        top, _, rest = name.partition("/")
        label = _label(listing, name, facts)
        clip = clip_or_none(root, name, options.prefer) or clip_or_none(root / top / "videos", rest, options.prefer)
        clip = clip or clip_or_none(
            root / top, Path(rest).name, options.prefer
        )  # DeepfakeBench: method_A/frames/<video>/
        absent += clip is None
        stem = PurePosixPath(name).stem
        footage = stem.split("_", 1)[-1] if label else stem
        target, source = (str(facts[k]) if facts.get(k) else "" for k in ("target_id", "swapped_id"))
        reading.add(
            f"{listing}: {name}", dataset=PREVIEW, video=str(PurePosixPath(name).with_suffix("")), label=label,
            split=split_of(str(facts.get("set", ""))) or "", method=top if label else "",
            manipulation="" if label is None else ("real", SWAP)[label], pair=f"{PREVIEW}/{footage}",
            identity=f"dfdcp:{target or footage}", target_identity=f"dfdcp:{target}" if label and target else "",
            source_identity=f"dfdcp:{source}" if label and source else "",
            **(clip.fields(reading) if clip else {"path": name}),
        )  # fmt: skip
    if absent:
        reading.warn(f"{absent} videos of {listing} are not on disk; they are in the manifest, and missing")


def _is_preview(root: Path) -> bool:
    return (root / "dataset.json").is_file() and any(
        f.name in ("method_A", "method_B", "original_videos") for f in folders(root)
    )


DFDCP = Layout("dfdcp", "dataset.json beside original_videos/, method_A/ or method_B/", _is_preview, _read_preview)
