"""FaceForensics++ with its DeepFakeDetection part: the official tree, and the flat one that is passed around."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from fastdetect.data.layouts.base import (
    REENACTMENT,
    SWAP,
    Clip,
    Layout,
    Options,
    Persons,
    Reading,
    child,
    clips,
    dfd_persons,
    entries,
    ffpp_persons,
    folders,
)
from fastdetect.errors import DataError

DATASET, DFD = "FaceForensics++", "DeepFakeDetection"
METHODS = {
    "deepfakes": ("Deepfakes", SWAP),
    "face2face": ("Face2Face", REENACTMENT),
    "faceswap": ("FaceSwap", SWAP),
    "neuraltextures": ("NeuralTextures", REENACTMENT),
    "faceshifter": ("FaceShifter", SWAP),
    "deepfakedetection": (DFD, SWAP),
}
_LEVEL = re.compile(r"raw|c\d+", re.IGNORECASE)


def read_splits(root: Path, options: Options, reading: Reading) -> dict[str, str]:
    """Video name (000, 000_003 and 003_000) -> split, from the train/val/test.json found first; empty without.

    They are looked for in `--splits`, which is warned about where it has none, then in and beside the tree.

    Raises:
        DataError: a file is not a list of pairs, or a video is in two of them.
    """
    places = (root, root / "splits", root / "dataset" / "splits", root.parent, root.parent / "splits")
    for place in filter(None, (options.splits, *places)):
        found = {name: place / f"{name}.json" for name in ("train", "val", "test")}
        if all(path.is_file() for path in found.values()):
            break
        if place == options.splits:
            reading.warn(f"--splits {place} has no train.json, val.json and test.json; they are looked for elsewhere")
    else:
        return {}
    table: dict[str, str] = {}
    for split, path in found.items():
        try:
            pairs = [(str(a).zfill(3), str(b).zfill(3)) for a, b in json.loads(path.read_text("utf-8"))]
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f'{path}: {error}; wanted pairs of video names such as [["071", "054"], ...]') from error
        for a, b in pairs:
            for name in (a, b, f"{a}_{b}", f"{b}_{a}"):
                if table.setdefault(name, split) != split:
                    raise DataError(f"{path}: video {name} is also in {table[name]}.json")
    return table


def ffpp_fields(clip_name: str, label: int, method: str, compression: str, splits: Mapping[str, str]) -> dict[str, str]:
    """Dataset, persons, pair and split of an FF++ or DeepFakeDetection video by its name."""
    who: Persons | None = dfd_persons(clip_name)
    if who is not None:
        dataset, split = DFD, ""  # the set has none
    else:
        who, dataset = ffpp_persons(clip_name), DATASET
        split = splits.get(clip_name, "")
    fields = {"dataset": dataset, "video": clip_name, "method": method, "compression": compression, "split": split}
    if who is None:
        return fields | {"identity": f"{dataset.lower()}:{clip_name}"}
    return fields | who.fields(label) | {"pair": f"{dataset}/{compression}/{who.footage}"}


def _levels(folder: Path) -> list[tuple[str, Path]]:
    """(compression, folder) of c23/videos/..., or of a method's folder whose videos lie right in it."""
    found = [(entry.name.lower(), entry) for entry in folders(folder) if _LEVEL.fullmatch(entry.name)]
    return found or [("", folder)]


def _add(
    reading: Reading,
    clip: Clip,
    label: int,
    method: str,
    kind: str,
    level: str,
    splits: Mapping[str, str],
    mask: str = "",
) -> None:
    fields = ffpp_fields(clip.stem, label, method, level, splits)
    if label and fields["dataset"] == DATASET and fields.get("source_identity", "") == "":
        reading.warn(f"{clip.path} is among the fakes, but its name is not target_source (000_003): no pair is known")
        fields.pop("pair", None)
    where = clip.path
    reading.add(where, label=label, manipulation=kind, **fields, **clip.fields(reading), masks=(mask,) if mask else ())


def _read_tree(root: Path, options: Options, reading: Reading) -> None:
    splits = read_splits(root, options, reading)
    if not splits:
        reading.warn(
            f"no train.json, val.json and test.json in {root}, its splits/ or its parent: the split is left empty; "
            "take them from the FaceForensics repository (dataset/splits) and name their folder with --splits"
        )
    originals, fakes = child(root, "original_sequences"), child(root, "manipulated_sequences")
    for name in ("youtube", "actors"):
        part = child(originals, name) if originals else None
        for level, folder in _levels(part) if part else []:
            for clip in clips(folder, options.prefer):
                _add(reading, clip, 0, "", "real", level, splits)
    for part in folders(fakes) if fakes else []:
        if part.name.lower() not in METHODS:
            reading.warn(f"{part} is left out: {part.name} is none of FF++'s methods")
            continue
        method, kind = METHODS[part.name.lower()]
        masks = {c.stem: reading.relative(c.path) for c in clips(part / "masks")}
        for level, folder in _levels(part):
            for clip in clips(folder, options.prefer):
                _add(reading, clip, 1, method, kind, level, splits, masks.get(clip.stem, ""))
    known = sum(1 for s in reading.samples if s.dataset == DATASET and s.split == "")
    if splits and known:
        reading.warn(f"{known} FF++ videos are in none of the split files; their split is left empty")


def _read_flat(root: Path, options: Options, reading: Reading) -> None:
    """<root>_C23/{original,Deepfakes,...}/000.mp4, as one finds it on data-sharing sites."""
    level = re.search(r"[_-](raw|c\d+)$", root.name, re.IGNORECASE)
    compression = level[1].lower() if level else ""
    if not level:
        reading.warn(f"{root.name} does not end in _c23, _c40 or _raw: the compression is left empty")
    splits = read_splits(root, options, reading)
    if not splits:
        reading.warn(f"no train.json, val.json and test.json beside {root}: the split is left empty; see --splits")
    for part in folders(root):
        name = part.name.lower()
        if name in METHODS or name.startswith("dfd_manipulated"):
            method, kind = METHODS.get(name, (DFD, SWAP))
            for clip in clips(part, options.prefer):
                _add(reading, clip, 1, method, kind, compression, splits)
        elif name in ("original", "originals") or name.startswith("dfd_original"):
            for clip in clips(part, options.prefer):
                _add(reading, clip, 0, "", "real", compression, splits)


def _is_tree(root: Path) -> bool:
    return child(root, "manipulated_sequences") is not None or child(root, "original_sequences") is not None


def _is_flat(root: Path) -> bool:
    names = {entry.name.lower() for entry in entries(root) if entry.is_dir()}
    dfd = any(n.startswith("dfd_original") for n in names) and any(n.startswith("dfd_manipulated") for n in names)
    return dfd or (bool(names & {"original", "originals"}) and bool(names & set(METHODS)))


FACEFORENSICS = Layout(
    "faceforensics",
    "original_sequences/ or manipulated_sequences/ (FaceForensics++, DeepFakeDetection)",
    _is_tree,
    _read_tree,
)
FACEFORENSICS_FLAT = Layout(
    "faceforensics-flat", "original/ beside Deepfakes/, Face2Face/, ..., or DFD_original*/ beside DFD_manipulated*/",
    _is_flat, _read_flat,
)  # fmt: skip
