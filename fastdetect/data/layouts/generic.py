"""What everybody makes: folders real/ and fake/, and tables in CSV or Parquet."""

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastdetect.data.layouts.base import (
    UNKNOWN,
    Layout,
    Options,
    Reading,
    folders,
    is_image,
    is_video,
    split_of,
    walk,
)
from fastdetect.data.manifest import is_manifest, read_manifest
from fastdetect.errors import DataError

_REAL = [
    "real",
    "reals",
    "0_real",
    "real_faces",
    "real_videos",
    "original",
    "originals",
    "authentic",
    "genuine",
    "pristine",
    "bonafide",
]
_FAKE = [
    "fake",
    "fakes",
    "1_fake",
    "fake_faces",
    "fake_videos",
    "manipulated",
    "deepfake",
    "deepfakes",
    "forged",
    "synthetic",
    "spoof",
]
_CLASSES = dict.fromkeys(_REAL, 0) | dict.fromkeys(_FAKE, 1)


def _class_and_split(name: str) -> tuple[int | None, str | None]:
    """What a folder's name says: real or fake, a split, or (training_fake, Fake-Test) both."""
    low = name.lower()
    if low in _CLASSES or split_of(low):
        return _CLASSES.get(low), split_of(low)
    words = re.split(r"[_\- ]", low)
    if len(words) != 2:
        return None, None
    labels = [_CLASSES[word] for word in words if word in _CLASSES]
    splits = [split for word in words if (split := split_of(word))]
    return (labels[0], splits[0]) if labels and splits else (None, None)


def _read_folders(root: Path, options: Options, reading: Reading) -> None:
    outside = 0
    for here, _, files in walk(root):
        media = [file for file in files if is_video(file) or is_image(file)]
        if not media:
            continue
        parts = here.relative_to(root).parts
        told = [_class_and_split(part) for part in parts]
        at = next((n for n, (label, _) in enumerate(told) if label is not None), None)
        if at is None:
            outside += len(media)
            continue
        label, below = told[at][0], parts[at + 1 :]
        split = next((split for _, split in told if split), "")
        method = next((part for part in below if not split_of(part) and part.lower() not in ("videos", "frames")), "")
        common = {"dataset": root.name, "label": label, "split": split}
        if options.frame_folders and all(map(is_image, media)) and below:
            # the folder is the video, so what is above it is the method
            method = method if method != here.name else ""
            place = {"path": reading.relative(here), "frames": tuple(map(reading.relative, media))}
            _add(reading, "/".join(below), method, common, place)
            continue
        for file in media:
            name = "/".join((*below, file.stem if is_video(file) else file.name))
            _add(reading, name, method, common, {"path": reading.relative(file)})
    if outside:
        reading.warn(f"{outside} files in {root} are in no folder that says real or fake; they are left out")
    if not options.frame_folders and any(is_image(Path(s.path)) for s in reading.samples):
        reading.warn("every picture is a sample of its own; with --frame-folders a folder of pictures is one video")


def _add(reading: Reading, video: str, method: str, common: Mapping[str, Any], place: Mapping[str, Any]) -> None:
    fake = common["label"] == 1
    reading.add(
        place["path"], video=video, method=method if fake else "", manipulation=UNKNOWN if fake else "real",
        **common, **place,
    )  # fmt: skip


def _has_classes(root: Path) -> bool:
    seen: set[int | None] = set()
    for folder in folders(root):
        inner = folders(folder) if _class_and_split(folder.name) == (None, split_of(folder.name)) else []
        seen |= {_class_and_split(f.name)[0] for f in (folder, *inner)}
    return {0, 1} <= seen


FOLDERS = Layout(
    "folders", "folders that say real and fake, in it or in train/, val/, test/", _has_classes, _read_folders
)

# Column names as people write them; the first that a table has is taken.
_COLUMNS = {
    "path": [
        "path",
        "file",
        "filepath",
        "file_path",
        "filename",
        "file_name",
        "video",
        "video_path",
        "image",
        "image_path",
    ],
    "label": ["label", "class", "target", "is_fake"],
    "split": ["split", "suggested_split", "set", "subset", "partition"],
    "manipulation": ["manipulation", "manipulation_type", "type", "category"],
    "method": ["method", "generator"],
    "identity": ["identity", "identity_group", "person", "person_id", "subject", "subject_id", "actor"],
    "source_identity": ["source_identity", "source_id"],
    "target_identity": ["target_identity", "target_id"],
    "pair": ["pair", "paired_real", "original", "real_path"],
    "dataset": ["dataset", "source"],
    "compression": ["compression", "quality"],
    "sha256": ["sha256"],
}
_LABELS = {"real": 0, "fake": 1, "0": 0, "1": 1, "original": 0, "authentic": 0, "manipulated": 1, "deepfake": 1}
_TABLES = {".csv", ".tsv", ".parquet"}


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) with column names in lower case, blanks as underscores."""

    def tidy(row: Mapping[Any, Any]) -> dict[str, str]:
        named = ((str(k).strip().lower().replace(" ", "_"), v) for k, v in row.items() if k)
        return {k: "" if v is None else str(v).strip() for k, v in named}

    if path.suffix.lower() == ".parquet":
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}") from error
        yield from enumerate(map(tidy, rows), 1)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            mark = max("\t;,", key=head.count)
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=mark)
            for row in reader:
                yield reader.line_num, tidy(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable table (UTF-8): {error}") from error


def _read_table(path: Path, options: Options, reading: Reading) -> None:
    absent = 0
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        values = {field: next((row[n] for n in names if row.get(n)), "") for field, names in _COLUMNS.items()}
        if not values["path"]:
            raise DataError(f"{where}: no path; the columns are {list(row)}, wanted {' or '.join(_COLUMNS['path'])}")
        label = _label(where, values["label"], options.label_map)
        fake = label == 1
        split = split_of(values["split"])
        if split is None and values["split"]:
            reading.warn(f"{path}: the split {values['split']!r} is none of train, val and test; it is left empty")
        name = values["path"].replace("\\", "/")
        kind = values["manipulation"] if values["manipulation"].lower() != "real" else ""
        kind, _, generator = kind.partition(", ")
        place = _locate(path, name, options)
        absent += not place.exists()
        # the real's own path, so that a table of reals and one of fakes agree; else the table's own word
        pair = values["pair"].replace("\\", "/")
        told = _locate(path, pair, options) if pair else place
        pair = str(told) if told.is_file() and (pair or label == 0) else pair
        reading.add(
            where, dataset=values["dataset"] or path.parent.name, video=re.sub(r"\.\w{1,5}$", "", name), label=label,
            path=reading.relative(place), split=split or "", compression=values["compression"],
            manipulation=(kind or UNKNOWN) if fake else "" if label is None else "real",
            method=(values["method"] or generator) if fake else "", identity=values["identity"],
            source_identity=values["source_identity"], target_identity=values["target_identity"] if fake else "",
            pair=pair, sha256=values["sha256"],
        )  # fmt: skip
    if absent:
        start = options.media_root or f"{path.parent} or {path.parent.parent}"
        reading.warn(
            f"{absent} of the {len(reading.samples)} files that {path} names are not on disk; they are in the "
            f"manifest, and missing (paths start at {start}; --media-root names another folder)"
        )


def _label(where: str, text: str, label_map: Mapping[str, int]) -> int | None:
    if text in label_map:
        return label_map[text]
    if not text:
        return None
    try:
        return _LABELS[text.lower()]
    except KeyError as error:
        known = ", ".join(_LABELS)
        raise DataError(
            f"{where}: label {text!r}; wanted one of {known} (1 = fake), or say with --label-map"
        ) from error


def _locate(table: Path, name: str, options: Options) -> Path:
    """A path is meant from the media root, or the table's folder, or that folder's parent."""
    bases = [options.media_root] if options.media_root else [table.parent, table.parent.parent]
    return next((base / name for base in bases if (base / name).is_file()), bases[0] / name)


def _is_table(root: Path) -> bool:
    if root.is_dir():
        return (root / "index.csv").is_file()
    return root.suffix.lower() in _TABLES and root.is_file()


def _read_named_table(root: Path, options: Options, reading: Reading) -> None:
    _read_table(root / "index.csv" if root.is_dir() else root, options, reading)


def _read_own(path: Path, options: Options, reading: Reading) -> None:
    manifest = read_manifest(path, options.media_root)
    reading.root, reading.samples = manifest.root, list(manifest.samples)


MANIFEST = Layout("manifest", "a .parquet file that `fastdetect data index` wrote", is_manifest, _read_own)
TABLE = Layout(
    "table", "a .csv, .tsv or .parquet file with the columns path and label, or a folder with such an index.csv",
    _is_table, _read_named_table,
)  # fmt: skip
