"""Faces that `fastdetect data extract` wrote: their facts as columns, their pictures on demand."""

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastdetect.data.manifest import REAL
from fastdetect.errors import DataError, UsageError

_TEXTS = (
    "name", "shard", "image", "split", "method", "manipulation", "identity", "source_identity", "target_identity",
    "pair", "key",
)  # fmt: skip
_PERSONS = ("identity", "source_identity", "target_identity")


@dataclass
class FaceTable:
    """Faces in the order of `faces.parquet`.

    Attributes:
        folder: of the extraction.
        label: int8 [N], 0 = real, 1 = fake.
        text: names of the columns of words -> object arrays [N]; see `fastdetect.data.manifest.Sample`.
        frame: int64 [N], number of the frame in its video.
        box: float64 [N,4] (x0, y0, x1, y1) in pixels of the frame, which is `frame_size` [N,2] (width, height).
        square: int64 [N,3] (x, y, side) of the frame that the picture shows.
        quality: float32 [N,2] (sharpness, brightness) of the face.
    """

    folder: Path
    label: np.ndarray
    text: dict[str, np.ndarray]
    frame: np.ndarray
    box: np.ndarray
    frame_size: np.ndarray
    square: np.ndarray
    quality: np.ndarray
    _places: dict[str, tuple[str, int, int]] = field(default_factory=dict, repr=False)
    _files: dict[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        methods: Sequence[str] | None = None,
        compressions: Sequence[str] | None = None,
    ) -> "FaceTable":
        """Open a folder that `fastdetect data extract` wrote, or its faces.parquet.

        Args:
            folder: see above.
            methods: of the fakes, only these; compressions: only these.
        Raises:
            DataError: it is not such a folder, a shard of it is missing or damaged, or nothing is left.
            UsageError: it has no face of a method or compression that is asked for.
        """
        folder = Path(folder)
        folder = folder.parent if folder.suffix == ".parquet" else folder
        try:
            table = pq.read_table(folder / "faces.parquet")
            keep = np.ones(len(table), bool)
            if methods is not None:
                keep &= (_numbers(table, "label") == REAL) | _among(table, "method", methods)
            if compressions is not None:
                keep &= _among(table, "compression", compressions)
            table = table.filter(pa.array(keep))
            found = cls(
                folder=folder,
                label=_numbers(table, "label"),
                text={name: _words(table, name) for name in _TEXTS},
                frame=_numbers(table, "frame"),
                box=_lists(table, "box"),
                frame_size=_lists(table, "frame_size"),
                square=_lists(table, "square"),
                quality=np.stack([_numbers(table, "sharpness"), _numbers(table, "brightness")], 1),
            )
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{folder / 'faces.parquet'} cannot be read ({error}); give the folder that `fastdetect data extract` "
                "wrote to"
            ) from error
        if not len(found):
            raise DataError(f"{folder}: no face of the methods {methods} and compressions {compressions}")
        for shard in np.unique(found.text["shard"]):
            if shard:
                found._places |= _members(folder / shard)
        packed = found.text["shard"] != ""
        wanted = found.text["name"][packed] + "." + found.text["image"][packed]
        if lost := set(wanted.tolist()) - found._places.keys():
            raise DataError(f"{folder}: its shards lack {len(lost)} pictures, such as {min(lost)}; extract again")
        return found

    def rows(self, split: str) -> np.ndarray:
        """Return the indices of a split's faces, reals and fakes; DataError where it lacks one of the two."""
        chosen = np.flatnonzero(self.text["split"] == split)
        reals = int((self.label[chosen] == REAL).sum())
        if not 0 < reals < len(chosen):
            raise DataError(
                f"{self.folder}: the split {split!r} has {reals} real and {len(chosen) - reals} fake faces, and needs "
                f"both; the splits are {sorted(set(self.text['split'].tolist()))}: give `data index` the set's split "
                "files, `--hold-out 0.1`, or a table with a split column"
            )
        return chosen

    def persons(self, split: str) -> set[str]:
        """Return everybody whose face went into a split's faces, as a fake's source, too."""
        rows = self.text["split"] == split
        return {person for name in _PERSONS for person in self.text[name][rows].tolist()} - {""}

    def shared_videos(self, one: str, other: str) -> list[str]:
        """Return the keys of the second split's videos whose footage is in the first, sorted.

        Footage is shared where the `pair` is, or where the same place of the same frame has the very same sharpness
        and brightness: one content under two names.
        """
        pictures = list(zip(self.frame.tolist(), *self.box.T.tolist(), *self.quality.T.tolist(), strict=True))
        first, second = (np.flatnonzero(self.text["split"] == split).tolist() for split in (one, other))
        pairs = {self.text["pair"][row] for row in first} - {""}
        seen = {pictures[row] for row in first}
        shared = (row for row in second if self.text["pair"][row] in pairs or pictures[row] in seen)
        return sorted({self.text["key"][row] for row in shared})

    def picture(self, row: int) -> np.ndarray:
        """Return a face's picture, RGB uint8 [T,T,3].

        Raises:
            DataError: it is gone or damaged.
        """
        name = f"{self.text['name'][row]}.{self.text['image'][row]}"
        try:
            if self.text["shard"][row]:
                shard, offset, size = self._places[name]
                if shard not in self._files:
                    self._files[shard] = os.open(shard, os.O_RDONLY)
                data = os.pread(self._files[shard], size, offset)
            else:
                data = (self.folder / name).read_bytes()
        except (OSError, KeyError) as error:
            raise DataError(f"{self.folder}: no picture {name} ({error}); extract again") from error
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if picture is None:
            raise DataError(f"{self.folder}: picture {name} is damaged; extract again")
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def _words(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray([word or "" for word in table[name].to_pylist()], dtype=object)


def _among(table: pa.Table, name: str, wanted: Sequence[str]) -> np.ndarray:
    """Bool [N], whose column `name` is one of the wanted words; UsageError where the table lacks one of them."""
    words = _words(table, name)
    have = sorted(set(words.tolist()) - {""})
    if unknown := sorted(set(wanted) - {*have, ""}):
        raise UsageError(f"{name}s: got {', '.join(unknown)}; the extraction has {', '.join(have) or 'none'}")
    return np.isin(words, wanted)


def _lists(table: pa.Table, name: str) -> np.ndarray:
    width = table.schema.field(name).type.list_size
    return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def _members(shard: Path) -> dict[str, tuple[str, int, int]]:
    """Where each file of a tar lies: (tar, offset, size)."""
    try:
        with tarfile.open(shard, "r:") as tar:
            return {member.name: (str(shard), member.offset_data, member.size) for member in tar if member.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"shard {shard} cannot be read ({error}); copy it again, or extract again") from error
