"""DeepfakeBench's JSON files (DF40's too), whose frames lie on disk or in its LMDB folders."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastdetect.data.layouts.base import (
    REENACTMENT,
    SWAP,
    UNKNOWN,
    Layout,
    Options,
    Persons,
    Reading,
    celebdf_persons,
    dfd_persons,
    dfdcp_persons,
    entries,
    ffpp_persons,
    folders,
    natural,
    uadfv_persons,
)
from fastdetect.data.layouts.df40 import KINDS
from fastdetect.data.lmdb_store import LmdbStore
from fastdetect.errors import DataError

_LEVELS = {"raw", "c0", "c23", "c40"}
_FFPP = {
    "ff-df": ("Deepfakes", SWAP), "ff-f2f": ("Face2Face", REENACTMENT), "ff-fs": ("FaceSwap", SWAP),
    "ff-nt": ("NeuralTextures", REENACTMENT), "ff-fh": ("FaceShifter", SWAP), "ff-sh": ("FaceShifter", SWAP),
}  # fmt: skip
_FIXED = {"df_fake": ("DF-VAE", SWAP), "dfd_fake": ("DeepFakeDetection", SWAP), "dfdcp_fakea": ("method_A", SWAP)}
_FIXED |= {"dfdcp_fakeb": ("method_B", SWAP), "celebdfv1_fake": ("Celeb-synthesis", SWAP)}
_FIXED |= {"celebdfv2_fake": ("Celeb-synthesis", SWAP), "uadfv_fake": ("FakeApp", SWAP), "dfdc_fake": ("DFDC", SWAP)}


def label_of(name: str, label_map: Mapping[str, int]) -> int:
    """0 or 1 for DeepfakeBench's label names (FF-real, CelebDFv2_fake, simswap_Fake, ...).

    Raises:
        DataError: it says neither real nor fake and the label map does not have it: nothing is guessed.
    """
    if name in label_map:
        return label_map[name]
    low = name.lower()
    if low in _FFPP or re.search(r"[_-]fake[a-z]?$", low):
        return 1
    if re.search(r"[_-]real$", low):
        return 0
    raise DataError(
        f"the label {name!r} says neither real nor fake; give --label-map with {name}: 0 (real) or 1 (fake)"
    )


def _method(label_name: str) -> tuple[str, str]:
    low = label_name.lower()
    if low in _FFPP or low in _FIXED:
        return (_FFPP | _FIXED)[low]
    method = re.sub(r"[_-](fake[a-z]?|real)$", "", label_name, flags=re.IGNORECASE)
    return method, KINDS.get(method.lower(), UNKNOWN)


def _files(root: Path) -> list[Path]:
    return [root] if root.is_file() else [e for e in entries(root) if e.suffix.lower() == ".json" and e.is_file()]


def _looks_right(path: Path) -> bool:
    """Whether the file starts like one: a name, a label, a split. Only its head is read: the files are large."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            head = stream.read(2048)
    except OSError:
        return False
    return re.match(r'\s*\{\s*"[^"]+"\s*:\s*\{\s*"[^"]+"\s*:\s*\{\s*"(train|val|test)"\s*:\s*\{', head) is not None


def _videos(where: str, split: Any, reading: Reading) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(compression, video, its record); what is no record of a video is left out with a warning.

    DeepfakeBench's own script writes DFDC's `val` as one record instead of a table of records.
    """
    if not isinstance(split, dict) or "frames" in split:
        reading.warn(f"{where} is left out: it is not a table of videos (DeepfakeBench's script writes it so)")
        return
    for name, record in split.items():
        if name in _LEVELS and isinstance(record, dict) and "frames" not in record:
            for _, video, inner in _videos(f"{where}/{name}", record, reading):
                yield name, video, inner
        elif not _has_frames(record):
            reading.warn(f"{where}/{name} is left out: it has no list of frames")
        elif not record["frames"]:
            reading.warn(f"{where}/{name} is left out: its list of frames is empty")
        else:
            yield "", name, record


def _has_frames(record: Any) -> bool:
    frames = record.get("frames") if isinstance(record, dict) else None
    return isinstance(frames, list) and all(isinstance(frame, str) for frame in frames)


def clean(path: str) -> str:
    """A path of the JSON with slashes, without what is in front of the data set's folder."""
    text = re.sub(r"/+", "/", path.replace("\\", "/"))
    return re.sub(r"^(\./)?(datasets/)?", "", text)


class _Places:
    """Finds frames: on disk below a root, however much of the writer's own path is in front; else in an LMDB."""

    def __init__(self, reading: Reading, options: Options) -> None:
        self.reading, self.options = reading, options
        beside = [reading.root, *reading.root.parents[:3]]
        self.roots = [options.media_root] if options.media_root else beside
        self.stores = [e for f in [options.lmdb, *beside] if f for e in folders(f) if (e / "data.mdb").is_file()]
        self.open: dict[Path, LmdbStore] = {}

    def find(self, dataset: str, frames: list[str]) -> dict[str, Any]:
        """The place of a video's frames, in order of time; that of the first root where they are nowhere."""
        names = sorted((clean(frame) for frame in frames), key=natural)
        paths = self._on_disk(names)
        if paths:
            files = [self.reading.relative(path) for path in paths]
            return {"path": os.path.dirname(files[0]), "frames": tuple(files)}
        stored = self._in_lmdb(dataset, sorted(frames, key=lambda f: natural(clean(f))))
        if stored is not None:
            return stored
        files = [self.reading.relative(self.roots[0] / name) for name in names]
        return {"path": os.path.dirname(files[0]), "frames": tuple(files)}

    def masks(self, paths: list[str]) -> tuple[str, ...]:
        """The masks that are on disk, in order of time."""
        names = sorted((clean(path) for path in paths), key=natural)
        return tuple(self.reading.relative(path) for path in self._on_disk(names) if path.is_file())

    def _on_disk(self, names: list[str]) -> list[Path]:
        """Where a video's pictures lie: below the first root, and at the first cut, that has any; empty if none has."""
        parts = [name.split("/") for name in names]
        for root in self.roots:
            for cut in range(len(parts[0]) - 1 if parts else 0):
                paths = [root.joinpath(*some[cut:]) for some in parts]
                if paths[0].parent.is_dir() and any(path.is_file() for path in paths):
                    return paths
        return []

    def _in_lmdb(self, dataset: str, frames: list[str]) -> dict[str, Any] | None:
        for folder in self.stores:
            if folder.name.removesuffix("_lmdb") not in (dataset, frames[0].replace("\\", "/").split("/")[0]) and (
                len(self.stores) > 1
            ):
                continue
            if folder not in self.open:
                self.open[folder] = LmdbStore(folder)
            keys = [self.open[folder].key_of(clean(frame)) for frame in frames]
            lost = sum(key is None for key in keys)
            if lost < len(keys):
                if lost:
                    self.reading.warn(f"{folder} lacks {lost} of the frames of {clean(frames[0])}'s video")
                found = tuple(key for key in keys if key is not None)
                return {"path": self.reading.relative(folder), "container": "lmdb", "frames": found}
        return None


def _persons(video: str, label: int, label_name: str, dataset: str, level: str) -> dict[str, str]:
    """Who is in a video of a set whose names are known; elsewhere a name says nothing, and each is its own."""
    low = label_name.lower()
    who: Persons | None = None
    pair = dataset
    if low.startswith("celebdf") or "_cdf" in dataset.lower():
        who = celebdf_persons(video)
    elif low.startswith("dfd_"):
        who, pair = dfd_persons(video), f"{dataset}/{level}"
    elif low.startswith("df_"):  # DeeperForensics: 000_M101
        who, pair = ffpp_persons(video.split("_")[0]), "FaceForensics++/c23"
    elif low.startswith("uadfv"):
        who = uadfv_persons(video)
    elif low.startswith("dfdcp"):
        who = dfdcp_persons(video)
    elif low.startswith("ff-") or dataset.lower().endswith("_ff"):
        who, pair = ffpp_persons(video), f"{dataset}/{level}"
    if who is None:
        return {"identity": f"{dataset.lower()}:{video}"}
    return who.fields(label) | {"pair": f"{pair}/{who.footage}"}


def _read(root: Path, options: Options, reading: Reading) -> None:
    places = _Places(reading, options)
    for path in _files(root):
        if not _looks_right(path):
            reading.warn(f"{path.name} is left out: it does not start like a DeepfakeBench file")
            continue
        try:
            table = json.loads(path.read_text("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}); download it again") from error
        for dataset, labels in table.items():
            _read_set(path, dataset, labels, options, reading, places)
    for store in places.open.values():
        store.close()
    # FF-real is in every one of FF-DF.json, FF-F2F.json, ...: equal rows are one
    reading.samples = list({(s.key, s.place): s for s in reading.samples}.values())


def _table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f'{where} is {value!r:.40}; wanted a table {{"LABEL": {{"train": {{...}}}}}}; make it again')
    return value


def _read_set(
    path: Path,
    name: str,
    labels: Any,
    options: Options,
    reading: Reading,
    places: _Places,
) -> None:
    ffpp = name == "FaceForensics++" or name.lower() in _FFPP
    dataset = "FaceForensics++" if ffpp or name == "FaceShifter" else name
    for group, splits in _table(f"{path}: {name}", labels).items():
        for split, videos in _table(f"{path}: {name}/{group}", splits).items():
            for level, video, record in _videos(f"{path.name}: {group}/{split}", videos, reading):
                label_name = str(record.get("label", group))
                label = label_of(label_name, options.label_map)
                method, kind = _method(label_name) if label else ("", "real")
                place = places.find(dataset, record["frames"])
                reading.add(
                    f"{path.name}: {group}/{split}/{video}", dataset=dataset, video=video, label=label, method=method,
                    manipulation=kind, split=split, compression=level, cropped=True,
                    masks=places.masks(record.get("masks") or []), **place,
                    **_persons(video, label, label_name, dataset, level),
                )  # fmt: skip


def _matches(root: Path) -> bool:
    return any(_looks_right(path) for path in _files(root)[:50]) if root.exists() else False


DEEPFAKEBENCH = Layout(
    "deepfakebench",
    '.json files that start {"NAME": {"LABEL": {"train": {...}}}} (DeepfakeBench, DF40)',
    _matches,
    _read,
)
