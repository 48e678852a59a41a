"""Batches of a data set's own faces in groups whose members differ by the forgery alone [METHODS 2.1]."""

import warnings
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdetect.data import filters
from fastdetect.data.augment import degrade, recompress
from fastdetect.data.face_table import FaceTable
from fastdetect.data.forgery import Dice
from fastdetect.data.manifest import REAL
from fastdetect.data.pairs import batch_seed
from fastdetect.errors import ShapeError
from fastdetect.faces.crop import MARGIN, crop_face, crop_square

REALS = 3  # of a group: the target, its source (or somebody else), another frame of the target
_OVERLAP = 0.3  # of a fake's box with the real's: with several persons in a frame, which one it is


@dataclass(frozen=True)
class Group:
    """Rows of one group: three reals and the fakes; `own` says which fakes are of the first real's very frame."""

    reals: list[int]
    fakes: list[int]
    own: list[bool]

    @property
    def rows(self) -> list[int]:
        """Reals, then fakes."""
        return [*self.reals, *self.fakes]

    @property
    def like_first(self) -> list[bool]:
        """Of each row, whether its picture is cut by the first real's square."""
        return [True, False, False, *self.own]


class GroupSampler:
    """Draws groups: every real that has fakes of its frame, and every fake that has no such real, once an epoch.

    A group is a real; up to `fakes` fakes of its frame by different methods; a real of the person whose face one of
    them wears, where that is a swap; and another frame of the real's own footage. What is missing is filled with
    others: fakes of any method, evenly, and reals of any other person, evenly. A fake without a real of its frame is
    grouped with such others alone, which makes a class-balanced batch of data without pairs; a warning says so.

    Args:
        table, split: the faces.
        fakes: fakes in a group.
        seed: of everything drawn.
        warn: whether to warn of fakes without a real of their frame.
    """

    def __init__(self, table: FaceTable, split: str, *, fakes: int, seed: int, warn: bool = True) -> None:
        self.table, self.fakes, self.seed = table, fakes, seed
        rows = table.rows(split)
        self.reals = rows[table.label[rows] == REAL]
        forged = rows[table.label[rows] != REAL]
        self.footage = self._by(self.reals, "pair")
        self.persons = self._by(self.reals, "identity")
        self.names = sorted(self.persons)
        self.methods = [np.asarray(found) for _, found in sorted(self._by(forged, "method").items())]
        self.paired = self._pairs(forged)
        known = {row for found in self.paired.values() for row in found}
        alone = [row for row in forged.tolist() if row not in known]
        self.units = np.asarray([*self.paired, *alone])
        self._epoch: tuple[int, np.ndarray] = (-1, self.units)
        if alone and warn:
            warnings.warn(
                f"{len(alone)} of {len(forged)} fakes in {split!r} have no real of the same footage and frame number: "
                "they are drawn in class-balanced groups, unpaired (`fastdetect data extract --sample fps:X` gives a "
                "real and its fakes the same frames)",
                stacklevel=3,
            )

    def __len__(self) -> int:
        """Groups of an epoch."""
        return len(self.units)

    def group(self, number: int) -> Group:
        """Return group `number`, counted over the whole run; it depends on the number and the seed alone."""
        epoch, place = divmod(number, len(self.units))
        if epoch != self._epoch[0]:
            order = np.random.default_rng(batch_seed(self.seed, epoch)).permutation(self.units)
            self._epoch = (epoch, order)
        unit = int(self._epoch[1][place])
        rng = np.random.default_rng(batch_seed(self.seed + 1, number))
        if unit not in self.paired:
            reals = [self._anybody(rng) for _ in range(REALS)]
            return self._filled(reals, [unit], [False], rng)
        chosen = rng.permutation(self.paired[unit])[: self.fakes].tolist()
        reals = [unit, self._source(unit, chosen, rng), self._another_frame(unit, rng)]
        return self._filled(reals, chosen, [True] * len(chosen), rng)

    def _filled(self, reals: list[int], fakes: list[int], own: list[bool], rng: np.random.Generator) -> Group:
        more = self.fakes - len(fakes)
        others = [int(rng.choice(self.methods[rng.integers(len(self.methods))])) for _ in range(more)]
        return Group(reals, fakes + others, own + [False] * more)

    def _anybody(self, rng: np.random.Generator, but: str | None = None) -> int:
        name = self.names[rng.integers(len(self.names))]
        if name == but and len(self.names) > 1:
            name = self.names[(self.names.index(name) + 1 + rng.integers(len(self.names) - 1)) % len(self.names)]
        return int(rng.choice(self.persons[name]))

    def _source(self, real: int, fakes: list[int], rng: np.random.Generator) -> int:
        text = self.table.text
        for fake in fakes:
            found = self.persons.get(text["source_identity"][fake]) if text["manipulation"][fake] == "swap" else None
            if found:
                return int(rng.choice(found))
        return self._anybody(rng, but=text["identity"][real])

    def _another_frame(self, real: int, rng: np.random.Generator) -> int:
        frames = [row for row in self.footage[self.table.text["pair"][real]] if row != real]
        return int(rng.choice(frames)) if frames else self._anybody(rng, but=self.table.text["identity"][real])

    def _by(self, rows: np.ndarray, name: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for row in rows.tolist():
            found[self.table.text[name][row]].append(row)
        return dict(found)

    def _pairs(self, forged: np.ndarray) -> dict[int, list[int]]:
        """Real -> fakes of its footage, frame and person."""
        pair, frame = self.table.text["pair"], self.table.frame
        at: dict[tuple[str, int], list[int]] = defaultdict(list)
        for row in self.reals.tolist():
            if pair[row]:
                at[pair[row], int(frame[row])].append(row)
        found: dict[int, list[int]] = defaultdict(list)
        for row in forged.tolist():
            reals = at.get((pair[row], int(frame[row])), [])
            best = max(reals, key=lambda real: self._overlap(real, row), default=None)
            if best is not None and self._overlap(best, row) >= _OVERLAP:
                found[best].append(row)
        return dict(found)

    def _overlap(self, one: int, other: int) -> float:
        """Intersection over union of two boxes, 0 where the frames are not of one size."""
        if (self.table.frame_size[one] != self.table.frame_size[other]).any():
            return 0.0
        a, b = self.table.box[one], self.table.box[other]
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        shared = float(np.prod(sides.clip(min=0)))
        return shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)


class GroupMaker:
    """Makes parts of batches for `fastdetect.data.pairs.Pieces`: groups in the same place, mirrored and degraded alike.

    Args:
        table, split: the faces.
        count: groups in a part.
        size: side of the crops, a multiple of 16.
        fakes, seed, warn: see `GroupSampler`.
        h264: share of the groups that go through libx264, see `recompress`.
    Raises:
        ShapeError: the size is no multiple of 16.
    """

    def __init__(
        self,
        table: FaceTable,
        split: str,
        count: int,
        size: int,
        *,
        fakes: int,
        seed: int,
        h264: float = 0.0,
        warn: bool = True,
    ) -> None:
        if size % 16:
            raise ShapeError(f"crops of {size} px; wanted a multiple of 16")
        self.sampler = GroupSampler(table, split, fakes=fakes, seed=seed, warn=warn)
        self.table, self.count, self.size, self.seed, self.h264 = table, count, size, seed, h264
        methods = sorted(set(table.text["method"][table.label != REAL].tolist()))
        self.labels = np.asarray(
            [0 if label == REAL else methods.index(method) + 1
             for label, method in zip(table.label, table.text["method"], strict=True)]
        )  # fmt: skip

    def __call__(self, number: int, step: int) -> tuple[Tensor, Tensor]:
        """Images [M*count,3,S,S] float16 of part `number` and labels [M*count], 0 = real, above: the method.

        M members a group; all groups' first members come first, then all second ones.
        """
        groups = [self.sampler.group(number * self.count + i) for i in range(self.count)]
        rows = np.asarray([group.rows for group in groups]).T.reshape(-1)  # member by member
        dice = Dice(len(groups), torch.Generator().manual_seed(batch_seed(self.seed + 2, number)), torch.device("cpu"))
        first = np.asarray([group.reals[0] for group in groups])
        like = np.asarray([group.like_first for group in groups]).T
        shown = np.where(like, first, rows.reshape(like.shape)).reshape(-1)  # whose square
        images = self._crops(rows, shown, dice).unflatten(0, like.shape)
        images = degrade(images, dice)
        if self.h264:
            images = recompress(images, dice, self.h264)
        return images.flatten(0, 1).half(), torch.from_numpy(self.labels[rows])

    def _crops(self, rows: np.ndarray, shown: np.ndarray, dice: Dice) -> Tensor:
        """Model crops of rows' pictures, each in the square of the row `shown`; shifts and turns are a group's own."""
        pictures = np.stack([self.table.picture(row) for row in rows])
        repeat = len(rows) // dice.batch
        wanted = torch.tensor([crop_square(self.table.box[row].tolist()) for row in shown], dtype=torch.float32)
        lies = torch.from_numpy(self.table.square[rows]).float()
        scale = pictures.shape[1] / lies[:, 2]  # pixels of the picture in one of the frame
        zoom = torch.exp(dice.uniform(-0.12, 0.12)).repeat(repeat) * wanted[:, 2] / self.size
        angle, shift = dice.normal(0.07).repeat(repeat), dice.normal(0.034, 2).repeat(repeat, 1)
        flip = torch.where(dice.chance(0.5), -1.0, 1.0).repeat(repeat)
        cos, sin = torch.cos(angle), torch.sin(angle)
        turn = torch.stack([torch.stack([cos * flip, -sin], 1), torch.stack([sin * flip, cos], 1)], 1)
        linear = turn * (zoom * scale)[:, None, None]  # from pixels of the crop to pixels of the picture
        middle = (wanted[:, :2] + wanted[:, 2:] * (0.5 + shift) - lies[:, :2]) * scale[:, None]
        offset = middle[..., None] - linear @ torch.full((len(rows), 2, 1), self.size / 2)
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        return filters.sample(images, torch.cat([linear, offset], 2), self.size)


def held_out_faces(table: FaceTable, split: str, size: int, *, each: int) -> tuple[Tensor, Tensor]:
    """Return faces of a split, cut as screening cuts them, to validate on.

    Args:
        table, split: the faces.
        size: side of the crops.
        each: reals, and fakes, at most; evenly over the table.
    Returns:
        uint8 [N,3,S,S] and labels [N], 0 = real, 1 = fake.
    Raises:
        DataError: the split lacks reals or fakes.
    """
    rows = table.rows(split)
    found = []
    for part in (rows[table.label[rows] == REAL], rows[table.label[rows] != REAL]):
        found += part[np.linspace(0, len(part) - 1, min(each, len(part))).round().astype(int)].tolist()
    crops = []
    for row in found:
        picture, (x, y, side) = table.picture(row), crop_square(table.box[row].tolist(), MARGIN)
        px, py, pside = table.square[row]
        scale = picture.shape[0] / pside
        box = ((x - px) * scale, (y - py) * scale, (x + side - px) * scale, (y + side - py) * scale)
        crops.append(crop_face(picture, box, size=size, margin=1.0))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), torch.from_numpy(table.label[found].astype(np.int64))
