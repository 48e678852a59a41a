"""What the readers of data sets share: options, walking trees as people really have them, names that tell persons."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastdetect.data.manifest import Sample, new_sample
from fastdetect.errors import DataError

VIDEO_SUFFIXES = frozenset(
    f".{s}"
    for s in ["mp4", "avi", "mov", "mkv", "webm", "m4v", "mpg", "mpeg", "wmv", "flv", "mts", "ts", "3gp", "ogv", "gif"]
)
IMAGE_SUFFIXES = frozenset(f".{s}" for s in ["png", "jpg", "jpeg", "bmp", "webp", "tif", "tiff"])
# Made beside the frames by preprocessing; none of them is footage.
NOT_FOOTAGE = frozenset(["masks", "mask", "landmarks", "models", "__macosx"])


@dataclass(frozen=True)
class Options:
    """What a reader may be told.

    Args:
        prefer: which of a video and its frames to take where a tree has both.
        splits: folder with the set's split files, where it is not in the tree.
        media_root: what the paths in a JSON or CSV are relative to, where that is not its own folder.
        lmdb: folder that holds the `<data set>_lmdb` folders.
        label_map: the set's own label names -> 0 (real) or 1 (fake).
        frame_folders: in a plain folder tree, a folder of pictures is one video's frames.
        sources: DeeperForensics: take the actors' recordings in as reals.
    """

    prefer: Literal["videos", "frames"] = "videos"
    splits: Path | None = None
    media_root: Path | None = None
    lmdb: Path | None = None
    label_map: Mapping[str, int] = field(default_factory=dict)
    frame_folders: bool = False
    sources: bool = False


class Reading:
    """What a reader found: samples with paths below `root`, and warnings for the user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.samples: list[Sample] = []
        self.warnings: list[str] = []

    def add(self, where: str | Path, **fields: Any) -> None:
        """Add a sample that was found at, or named by, `where`."""
        self.samples.append(new_sample(str(where), **fields))

    def warn(self, text: str) -> None:
        """Say something once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def relative(self, path: Path) -> str:
        """The path as the manifest has it: relative to the root where it lies below it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies on disk.

    Args:
        name: for `--layout`.
        wanted: what its root must hold, for a person.
        matches: whether a folder or file is such a root.
        read: fills a Reading.
    """

    name: str
    wanted: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Options, Reading], None]


@dataclass(frozen=True)
class Clip:
    """A video file, or a folder of frames; `name` is its path below where it was looked for, without the suffix."""

    name: str
    path: Path
    frames: tuple[Path, ...] = ()

    @property
    def stem(self) -> str:
        """The last part of the name."""
        return self.name.rsplit("/", 1)[-1]

    def fields(self, reading: Reading) -> dict[str, Any]:
        """Where it lies, as fields of a Sample."""
        return {"path": reading.relative(self.path), "frames": tuple(reading.relative(f) for f in self.frames)}


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key by which frame 2 comes before frame 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def entries(folder: Path) -> list[Path]:
    """A folder's content in natural order, without hidden files and macOS' `._` doubles; empty if there is none."""
    try:
        found = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from error
    return sorted(found, key=lambda entry: natural(entry.name))


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, links to folders too."""
    return [entry for entry in entries(folder) if entry.is_dir()]


def child(folder: Path, *names: str) -> Path | None:
    """The entry that has one of the names, whatever its case: Youtube-real is YouTube-real."""
    wanted = [name.lower() for name in names]
    found = {entry.name.lower(): entry for entry in reversed(entries(folder))}
    return next((found[name] for name in wanted if name in found), None)


def is_video(path: Path) -> bool:
    """Whether the suffix, in any case, is a video's."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_image(path: Path) -> bool:
    """Whether the suffix, in any case, is a picture's."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def walk(root: Path) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """Like os.walk in natural order, through linked folders but into no folder twice, past what is not footage."""
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        below = entries(here)
        inner = [e for e in below if e.is_dir() and e.name.lower() not in NOT_FOOTAGE]
        waiting += reversed(inner)
        yield here, inner, [e for e in below if not e.is_dir()]


def clips(folder: Path, prefer: str = "videos") -> list[Clip]:
    """The videos below a folder, or its folders of frames.

    Names are relative to the folder, less a leading `videos`, `frames` or `images`. Of a name that has both, the
    preferred kind is given; of a folder that holds both, too.
    """
    videos, frames = [], []
    for here, _, files in walk(folder):
        films = [Clip(_name(folder, file.with_suffix("")), file) for file in files if is_video(file)]
        pictures = tuple(file for file in files if is_image(file) and here != folder)
        if films and not (pictures and prefer == "frames"):
            videos += films
        elif pictures:
            frames.append(Clip(_name(folder, here), here, pictures))
    first, second = (frames, videos) if prefer == "frames" else (videos, frames)
    names = {clip.name for clip in first}
    return first + [clip for clip in second if clip.name not in names]


def _name(folder: Path, path: Path) -> str:
    parts = path.relative_to(folder).parts
    return "/".join(parts[1:] if len(parts) > 1 and parts[0].lower() in ("videos", "frames", "images") else parts)


def split_of(name: str) -> str | None:
    """train, val or test for the names that folders and tables use; None for other words."""
    words = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
    return (words | {"test": "test", "testing": "test"}).get(name.strip().lower())


def clip_or_none(root: Path, name: str, prefer: str = "videos") -> Clip | None:
    """The clip that a list calls `a/b.mp4`: there, in a/videos/, or as frames in a/frames/b/ or a/b/."""
    path = root / name
    videos = [path, path.parent / "videos" / path.name, path.parent / "Videos" / path.name]
    pictures = [path.parent / "frames" / path.stem, path.with_suffix("")]
    for kind in ("frames", "videos") if prefer == "frames" else ("videos", "frames"):
        for place in videos if kind == "videos" else pictures:
            if kind == "videos" and place.is_file():
                return Clip(path.stem, place)
            found = tuple(e for e in entries(place) if is_image(e)) if kind == "frames" else ()
            if found:
                return Clip(path.stem, place, found)
    return None


SWAP, REENACTMENT, LIP_SYNC, TALKING_HEAD = "swap", "reenactment", "lip sync", "talking head"
SYNTHESIS, EDIT, UNKNOWN = "synthesis", "edit", "unknown"


@dataclass(frozen=True)
class Persons:
    """Who is in a video, by its name; `footage` is the name of the real that a fake was made from."""

    target: str
    source: str = ""
    footage: str = ""

    def fields(self, label: int) -> dict[str, str]:
        """As fields of a Sample."""
        if label:
            return {"identity": self.target, "target_identity": self.target, "source_identity": self.source}
        return {"identity": self.target}


def ffpp_persons(stem: str) -> Persons | None:
    """FF++: 000 is a real; 000_003 is footage 000 (target) with the face or the expressions of 003 (source)."""
    match = re.fullmatch(r"(\d{1,3})(?:_(\d{1,3}))?", stem)
    if match is None:
        return None
    target, source = match[1].zfill(3), match[2].zfill(3) if match[2] else ""
    return Persons(f"ffpp:{target}", f"ffpp:{source}" if source else "", target)


def dfd_persons(stem: str) -> Persons | None:
    """DeepFakeDetection: 01__kitchen is a real; 01_02__kitchen__ABCD1234 is actor 01's footage with 02's face."""
    match = re.fullmatch(r"(\d+)(?:_(\d+))?__(.+?)(?:__([A-Z0-9]{8}))?", stem)
    if match is None:
        return None
    return Persons(f"dfd:{match[1]}", f"dfd:{match[2]}" if match[2] else "", f"{match[1]}__{match[3]}")


def uadfv_persons(stem: str) -> Persons:
    """UADFV: 0000 is a real; 0000_fake is that footage with another face, nobody says whose."""
    number = stem.removesuffix("_fake")
    return Persons(f"uadfv:{number}", "", number)


def dfdcp_persons(stem: str) -> Persons | None:
    """DFDC's preview: 1003254_A_001 is a real; 1255229_1003254_A_001 is that footage with the face of 1255229."""
    match = re.fullmatch(r"(?:(\d+)_)?((\d+)_[A-Za-z]+_\d+)", stem)
    if match is None:
        return None
    return Persons(f"dfdcp:{match[3]}", f"dfdcp:{match[1]}" if match[1] else "", match[2])


def celebdf_persons(stem: str) -> Persons | None:
    """Celeb-DF: id0_0003 is a real; id0_id16_0003 is that footage with the face of id16; 00042 is from YouTube."""
    match = re.fullmatch(r"(id\d+)_(?:(id\d+)_)?(\d+)", stem)
    if match:
        source = f"celebdf:{match[2]}" if match[2] else ""
        return Persons(f"celebdf:{match[1]}", source, f"{match[1]}_{match[3]}")
    return Persons(f"celebdf:youtube-{stem}", "", stem) if stem.isdecimal() else None
