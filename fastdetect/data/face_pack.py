"""Faces of a data set in one folder of arrays: what training reads, found with screening's own detector."""

import csv
import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fastdetect.data.jobs import Counter
from fastdetect.errors import DataError, UsageError
from fastdetect.faces import CenterFaceDetector, Face
from fastdetect.faces.crop import crop_square
from fastdetect.video import SamplingPolicy, decode

PACK_MARGIN = 1.75  # wider than the model's 1.3, so that training can shift and scale its crops inside
PACK_SIZE = 256
_REDRAWN, _REDRAWN_ROWS = "redrawn.npy", "redrawn_rows.npy"
_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True)
class Entry:
    """One file of a data set: its path, identity group, split, source's name, and the clip that it is (a frame) of."""

    path: Path
    identity: str
    split: str
    source: str
    clip: str


@dataclass
class FacePack:
    """Packed faces.

    Attributes:
        images: uint8 [N,256,256,3] RGB, a memory map; the face box's longer side is 256/1.75 pixels.
        landmarks: float32 [N,5,2] in pixels of the packed image, in the face detector's order.
        face_px: float32 [N], longer box side in the source's pixels.
        identity, source, clip: int64 [N], indices into `identities`, `sources` and `clips`.
        split: [N] of "train", "val", "test".
        redrawn: uint8 [M,256,256,3], faces that networks drew again, see `neural_redraw`; None without them.
        redrawn_of: int64 [N], the index in `redrawn` of each face, -1 where it was not drawn again.
    """

    images: np.ndarray
    landmarks: np.ndarray
    face_px: np.ndarray
    identity: np.ndarray
    source: np.ndarray
    clip: np.ndarray
    split: np.ndarray
    identities: list[str]
    sources: list[str]
    clips: list[str]
    redrawn: np.ndarray | None = None
    redrawn_of: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def where(self, split: str) -> np.ndarray:
        """Return the indices of a split's faces; DataError where it has none."""
        found = np.flatnonzero(self.split == split)
        if not len(found):
            raise DataError(f"the face pack has no {split!r} faces; it has {sorted(set(self.split.tolist()))}")
        return found

    @classmethod
    def load(cls, folder: str | Path) -> "FacePack":
        """Open a folder that `build_pack` wrote; DataError where it is none, or a file of it is cut short."""
        folder = Path(folder)
        try:
            names = json.loads((folder / "names.json").read_text())
            with np.load(folder / "faces.npz") as table:
                columns = {key: table[key] for key in table.files}
            images = np.load(folder / "images.npy", mmap_mode="r")
            redrawn = redrawn_of = None
            if (folder / _REDRAWN_ROWS).exists():
                redrawn = np.load(folder / _REDRAWN, mmap_mode="r")
                rows, redrawn_of = np.load(folder / _REDRAWN_ROWS), np.full(len(images), -1)
                redrawn_of[rows] = np.arange(len(rows))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{folder} is not a face pack ({error}); make it with `fastdetect data pack`") from error
        return cls(images=images, redrawn=redrawn, redrawn_of=redrawn_of, **columns, **names)


def write_redrawn(folder: Path, images: np.ndarray, rows: np.ndarray) -> None:
    """Add pictures uint8 [M,256,256,3], drawn again from the faces `rows` [M], to a pack; earlier ones are replaced."""
    (folder / _REDRAWN_ROWS).unlink(missing_ok=True)
    np.save(folder / _REDRAWN, images)
    np.save(folder / _REDRAWN_ROWS, rows)


def read_index(
    index: Path, *, splits: tuple[str, ...] = ("train", "val", "test"), compressions: tuple[str, ...] = ()
) -> list[Entry]:
    """Read the reals of an index.csv with columns file, label, suggested_split, person or identity_group, video_group.

    Args:
        index: the CSV file; its `file` column is relative to the CSV's folder or to that folder's parent.
        splits: rows of other splits are left out.
        compressions: rows of others in the column `compression` are left out; none: every row is taken.
    Raises:
        DataError: the index cannot be read, has no such column, or names a file that is not there.
    """
    try:
        with index.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{index} is not a readable index (CSV in UTF-8): {error}") from error
    entries = []
    for line, row in enumerate(rows, start=2):
        try:
            split = row["suggested_split"]
            if row["label"] != "real" or split not in splits:
                continue
            if compressions and row["compression"] not in compressions:
                continue
            path = index.parent / row["file"]
            if not path.is_file():
                path = index.parent.parent / row["file"]
            if not path.is_file():
                raise DataError(f"{index}:{line}: no file {row['file']}")
            source = row.get("source") or Path(row["file"]).parent.name
            person = row.get("person") or row.get("identity_group") or ""
            # files whose person is not known are one person each
            identity = f"{source}:{person}" if person else f"{source}:{path.stem}"
        except KeyError as error:
            raise DataError(f"{index}: no column {error}; it has {list(row)}") from error
        clip = f"{source}:{row.get('video_group') or path.stem}"
        entries.append(Entry(path, identity, split, source, clip))
    return entries


def _frames(path: Path, per_video: int) -> Iterator[tuple[np.ndarray, bool]]:
    if path.suffix.lower() in _IMAGES:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise DataError(f"{path}: not a readable image")
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB), True
        return
    for frame in decode(path, SamplingPolicy.parse(f"uniform:{per_video}")).frames:
        yield frame.rgb, False


def _find(detector: CenterFaceDetector, image: np.ndarray, is_portrait: bool) -> Face | None:
    """The largest face; portraits are padded by a third, since the detector misses faces that fill the image."""
    pad = max(image.shape[:2]) // 3 if is_portrait else 0
    padded = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REPLICATE) if pad else image
    found = detector.detect([padded])[0]
    if not found:
        return None
    face = max(found, key=lambda f: f.side)
    x0, y0, x1, y1 = face.box
    return Face((x0 - pad, y0 - pad, x1 - pad, y1 - pad), face.score, face.landmarks - pad)


def _cut(image: np.ndarray, face: Face) -> tuple[np.ndarray, np.ndarray]:
    """The packed picture and its landmarks."""
    x, y, side = crop_square(face.box, PACK_MARGIN)
    pad = side  # portraits' squares overrun their image
    wide = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    patch = wide[y + pad : y + pad + side, x + pad : x + pad + side]
    how = cv2.INTER_AREA if side > PACK_SIZE else cv2.INTER_CUBIC
    scale = PACK_SIZE / side
    return cv2.resize(patch, (PACK_SIZE, PACK_SIZE), interpolation=how), (face.landmarks - [x, y]) * scale


def build_pack(entries: Sequence[Entry], folder: str | Path, *, per_video: int = 24) -> FacePack:
    """Detect, cut and store the largest face of every image and of `per_video` frames of every video.

    Pictures without a face are listed in the folder's `skipped.txt`, one path a line.

    Args:
        entries: what to pack.
        folder: where to; written at the end, so that a broken run leaves no pack.
        per_video: frames a video, evenly over its length.
    Raises:
        UsageError: the folder has a pack already, or cannot be written to.
        DataError: a file cannot be read, or there is no face in any.
    """
    folder = Path(folder)
    _begin(folder)
    detector = CenterFaceDetector(threads=1)
    images, landmarks, face_px, skipped = [], [], [], []
    rows: list[Entry] = []
    with Counter("packing", len(entries), failed="without a face") as counter:
        for entry in entries:
            before = len(rows)
            for image, is_portrait in _frames(entry.path, per_video):
                face = _find(detector, image, is_portrait)
                if face is None:
                    skipped.append(str(entry.path))
                    continue
                picture, points = _cut(image, face)
                images.append(picture)
                landmarks.append(points)
                face_px.append(face.side)
                rows.append(entry)
            counter.step(failed=len(rows) == before)
    if not images:
        raise DataError("no face was found in any entry")
    identities = sorted({e.identity for e in rows})
    sources = sorted({e.source for e in rows})
    clips = sorted({e.clip for e in rows})
    np.savez(
        folder / "faces.npz",
        landmarks=np.asarray(landmarks, np.float32),
        face_px=np.asarray(face_px, np.float32),
        identity=np.asarray([identities.index(e.identity) for e in rows]),
        source=np.asarray([sources.index(e.source) for e in rows]),
        clip=np.asarray([clips.index(e.clip) for e in rows]),
        split=np.asarray([e.split for e in rows]),
    )
    (folder / "names.json").write_text(json.dumps({"identities": identities, "sources": sources, "clips": clips}))
    (folder / "skipped.txt").write_text("\n".join(skipped))
    np.save(folder / "images.npy", np.asarray(images))
    return FacePack.load(folder)


def _begin(folder: Path) -> None:
    """Make the folder before hours of work; refuse one with a pack, whose redrawn faces would be other faces' then."""
    if (folder / "images.npy").exists():
        raise UsageError(f"{folder} has a face pack already; give another --output, or delete that folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; give another --output") from error


def main(
    indices: list[Path],
    output: Path,
    *,
    splits: str = "train,val,test",
    compressions: tuple[str, ...] = (),
    per_video: int = 24,
) -> int:
    """Run `fastdetect data pack`; returns the exit code."""
    wanted = tuple(splits.split(","))
    entries = [entry for index in indices for entry in read_index(index, splits=wanted, compressions=compressions)]
    if not entries:
        levels = f" and the compressions {', '.join(compressions)}" if compressions else ""
        raise DataError(f"no real of the splits {splits}{levels} in {', '.join(map(str, indices))}")
    pack = build_pack(entries, output, per_video=per_video)
    skipped = (output / "skipped.txt").read_text().splitlines()
    print(f"{output}: {len(pack)} faces of {len(pack.identities)} persons from {len(entries)} files")
    print(f"{len(skipped)} pictures without a face, listed in {output / 'skipped.txt'}" if skipped else "none skipped")
    return 0
