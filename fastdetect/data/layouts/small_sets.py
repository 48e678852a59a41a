"""DeeperForensics-1.0, UADFV, WildDeepfake and FFIW-10K."""

import re
import tarfile
from pathlib import Path, PurePosixPath

from fastdetect.data.layouts.base import (
    SWAP,
    UNKNOWN,
    Layout,
    Options,
    Reading,
    child,
    clips,
    entries,
    ffpp_persons,
    folders,
    is_image,
    natural,
    split_of,
    uadfv_persons,
)
from fastdetect.data.layouts.faceforensics import DATASET as FFPP
from fastdetect.data.manifest import ARCHIVE_ERRORS
from fastdetect.errors import DataError


def _deeper_splits(root: Path, options: Options) -> dict[str, str]:
    table: dict[str, str] = {}
    for folder in filter(None, (options.splits, root / "lists" / "splits")):
        for split in ("train", "val", "test"):
            path = folder / f"{split}.txt"
            for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
                if line.strip():
                    table[PurePosixPath(line.strip()).stem] = split
        if table:
            break
    return table


def _read_deeper(root: Path, options: Options, reading: Reading) -> None:
    """Fakes are <FF++ target>_<actor>; their reals are FF++'s c23 originals, not the actors' recordings."""
    splits = _deeper_splits(root, options)
    if not splits:
        places = " or ".join(map(str, filter(None, (options.splits, root / "lists" / "splits"))))
        reading.warn(f"no train.txt, val.txt and test.txt in {places}: the split is left empty")
    fakes = child(root, "manipulated_videos")
    for variant in folders(fakes) if fakes else []:
        for clip in clips(variant, options.prefer):
            target, _, actor = clip.stem.partition("_")
            who = ffpp_persons(target)
            if who is None or not actor:
                raise DataError(f"{clip.path}: wanted a name such as 000_M101 (FF++ target, actor)")
            reading.add(
                clip.path, dataset="DeeperForensics-1.0", video=clip.stem, label=1, manipulation=SWAP, method="DF-VAE",
                split=splits.get(clip.stem, ""), compression=variant.name, identity=who.target,
                target_identity=who.target, source_identity=f"deeperforensics:{actor}",
                pair=f"{FFPP}/c23/{who.footage}", **clip.fields(reading),
            )  # fmt: skip
    sources = child(root, "source_videos")
    found = clips(sources, options.prefer) if sources else []
    if found and not options.sources:
        reading.warn(
            f"{len(found)} actors' recordings in {sources} are left out: the set's authors say that its reals are the "
            "FaceForensics++ c23 originals; index those too, or take the recordings with --sources"
        )
    for clip in found if options.sources else []:
        actor = clip.name.split("/")[0]
        reading.add(
            clip.path, dataset="DeeperForensics-1.0", video=clip.name, label=0, manipulation="real",
            identity=f"deeperforensics:{actor}", **clip.fields(reading),
        )  # fmt: skip


DEEPERFORENSICS = Layout(
    "deeperforensics", "manipulated_videos/end_to_end*/ and lists/splits/ (DeeperForensics-1.0)",
    lambda root: child(root, "manipulated_videos") is not None, _read_deeper,
)  # fmt: skip


def _read_uadfv(root: Path, options: Options, reading: Reading) -> None:
    for part, label in (("real", 0), ("fake", 1)):
        folder = child(root, part)
        for clip in clips(folder, options.prefer) if folder else []:
            who = uadfv_persons(clip.stem)
            reading.add(
                clip.path, dataset="UADFV", video=clip.stem, label=label, manipulation=SWAP if label else "real",
                method="FakeApp" if label else "", pair=f"UADFV/{who.footage}", **who.fields(label),
                **clip.fields(reading),
            )  # fmt: skip


def _is_uadfv(root: Path) -> bool:
    fake = child(root, "fake")
    if fake is None or child(root, "real") is None:
        return False
    inner = [e for f in (fake, fake / "videos", fake / "frames") for e in entries(f)]
    stems = [e.stem for e in inner if e.name.lower() not in ("videos", "frames", "landmarks", "masks")]
    return bool(stems) and all(re.fullmatch(r"\d{4}_fake", stem) for stem in stems)


UADFV = Layout(
    "uadfv", "real/0000.mp4 and fake/0000_fake.mp4, and nothing else in fake/ (UADFV)", _is_uadfv, _read_uadfv
)

_WILD = {"real_train": (0, "train"), "real_test": (0, "test"), "fake_train": (1, "train"), "fake_test": (1, "test")}


def _wild_root(root: Path) -> Path:
    return child(root, "deepfake_in_the_wild") or root


def _read_wild(root: Path, options: Options, reading: Reading) -> None:
    """Face sequences, one archive per source video: <n>.tar.gz with <n>/<real|fake>/<sequence>/<frame>.png.

    The label is the outer folder's: `deepfake_in_the_wild` itself has "fake" in its name, and sequence numbers
    start again in every archive.
    """
    for part, (label, split) in _WILD.items():
        folder = child(_wild_root(root), part)
        unpacked: set[str] = set()
        for clip in clips(folder, "frames") if folder else []:
            unpacked.add(clip.name.split("/")[0])
            _add_wild(reading, clip.name, label, split, **clip.fields(reading))
        for archive in entries(folder) if folder else []:
            number = archive.name.split(".")[0]
            if re.search(r"\.(tar|tar\.gz|tgz)$", archive.name, re.IGNORECASE) and number not in unpacked:
                for name, members in _sequences(archive).items():
                    place = {"path": reading.relative(archive), "container": "tar", "frames": members}
                    _add_wild(reading, name, label, split, **place)


def _sequences(archive: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isfile() and is_image(Path(path.name)) and not path.name.startswith("."):
                    found.setdefault(str(path.parent), []).append(member.name)
            if tar.fileobj is not None:  # tarfile takes a damaged header for the end
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"a damaged header at byte {tar.offset}")
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{archive} is not a readable tar: {error}; download it again") from error
    return {name: tuple(sorted(frames, key=natural)) for name, frames in found.items()}


def _add_wild(reading: Reading, name: str, label: int, split: str, **place: object) -> None:
    parts = [part for part in name.split("/") if part not in (".", "")]
    other = ("fake", "real")[label]
    if other in parts:
        raise DataError(
            f"{place['path']}: the sequence {name} says {other}, its folder the opposite; see which is right"
        )
    video = "/".join(part for part in parts if part not in ("real", "fake"))
    source = f"wilddeepfake:{('real', 'fake')[label]}-{split}-{video.split('/')[0]}"
    reading.add(
        str(place["path"]), dataset="WildDeepfake", video=video, label=label, split=split, cropped=True,
        manipulation=UNKNOWN if label else "real", method="in the wild" if label else "", identity=source, **place,
    )  # fmt: skip


WILDDEEPFAKE = Layout(
    "wilddeepfake", "real_train/, real_test/, fake_train/ or fake_test/ (WildDeepfake), unpacked or as tar.gz",
    lambda root: sum(child(_wild_root(root), part) is not None for part in _WILD) >= 2
    and child(root, "training_real") is None, _read_wild,
)  # fmt: skip


def _ffiw_root(root: Path) -> Path:
    inner = [f for f in folders(root) if f.name.lower().startswith("ffiw10k")]
    return inner[0] if len(inner) == 1 else root


def _read_ffiw(root: Path, options: Options, reading: Reading) -> None:
    """source/ holds the reals and target/ the fakes: "target" means the opposite of FF++'s."""
    top = _ffiw_root(root)
    default = "test" if top.name.lower().endswith("test") else ""
    mask_root = child(top, "mask", "masks")
    masks = {}
    for entry in entries(mask_root) if mask_root else []:
        inner = entries(entry) if entry.is_dir() else [entry]
        masks.update({(entry.name if entry.is_dir() else "", e.stem): reading.relative(e) for e in inner})
    names: dict[str, set[str]] = {}
    for part, label in (("source", 0), ("target", 1)):
        folder = child(top, part)
        for clip in clips(folder, options.prefer) if folder else []:
            head = clip.name.split("/")[0]
            split = split_of(head) or default
            if not label:
                names.setdefault(split, set()).add(clip.stem)
            shared = clip.stem if clip.stem in names.get(split, ()) else clip.stem.rsplit("_", 1)[0]
            paired = shared in names.get(split, ())
            mask = masks.get((head, clip.stem)) or masks.get(("", clip.stem)) if label else None
            reading.add(
                clip.path, dataset="FFIW10K", video=clip.stem, label=label, split=split,
                manipulation=SWAP if label else "real", method="FFIW" if label else "",
                identity=f"ffiw:{split}-{shared if paired else clip.stem}",
                pair=f"FFIW10K/{split}/{shared}" if paired else "", masks=(mask,) if mask else (),
                **clip.fields(reading),
            )  # fmt: skip


FFIW = Layout(
    "ffiw", "source/ and target/ with train/, val/ or test/ in them, or videos (FFIW-10K)",
    lambda root: child(_ffiw_root(root), "source") is not None and child(_ffiw_root(root), "target") is not None,
    _read_ffiw,
)  # fmt: skip
