"""Endless batches of real faces, each beside a fresh fake made from it [METHODS 2.1's paired groups of two]."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fastdetect.data import filters
from fastdetect.data.augment import degrade, recompress
from fastdetect.data.face_pack import PACK_MARGIN, FacePack
from fastdetect.data.forgery import KINDS, Dice, ForgeryConfig, choose_donors, crop_maps, forge
from fastdetect.errors import FastdetectError, UsageError
from fastdetect.faces.crop import MARGIN


@dataclass
class PairBatch:
    """A batch of pairs: `real` and `fake` [B,3,S,S] in [0,1] with equal degradation, `kind` and `region` int64 [B];
    `changed` [B,1,S,S] in [0,1], where the fake is not the real, see `forge`; `identity` int64 [B], whose faces, as in
    the pack."""

    real: Tensor
    fake: Tensor
    changed: Tensor
    kind: Tensor
    region: Tensor
    identity: Tensor


class Pictures:
    """Pictures of a face pack as batches on a device; on a GPU that has room they are all kept there.

    Args:
        images: uint8 [N,T,T,3]; rows: those that are asked for.
        device: of the batches.
        side: pixels that they are shrunk to (area), in memory; None or T: as they are.
        resident: whether they are kept on the device; None: on a GPU, where they take at most 40 % of what is free.
    """

    def __init__(
        self,
        images: np.ndarray,
        rows: np.ndarray,
        device: torch.device,
        *,
        side: int | None = None,
        resident: bool | None = None,
    ) -> None:
        if side is not None and side != images.shape[1]:
            shrunk = np.empty((len(rows), side, side, 3), np.uint8)
            for i, row in enumerate(rows):
                cv2.resize(images[row], (side, side), dst=shrunk[i], interpolation=cv2.INTER_AREA)
            images, rows = shrunk, np.arange(len(rows))
        self.images, self.rows, self.device = images, rows, device
        if resident is None:
            size = len(rows) * int(np.prod(images.shape[1:]))
            resident = device.type == "cuda" and size < 0.4 * torch.cuda.mem_get_info(device)[0]
        self.kept = torch.from_numpy(images[rows]).to(device) if resident else None

    def __call__(self, chosen: np.ndarray) -> Tensor:
        """Return float [B,3,T,T] in [0,1] of `chosen` [B], indices into the rows."""
        if self.kept is not None:
            pictures = self.kept[torch.from_numpy(chosen).to(self.device)]
        else:
            pictures = torch.from_numpy(self.images[self.rows[chosen]]).to(self.device)
        return pictures.permute(0, 3, 1, 2).float().mul_(1 / 255)


def pack_side(side: int, size: int) -> int:
    """Return the side to which packed pictures of `side` pixels are shrunk for crops of `size`.

    They keep a sixth more pixels than the crops have: reading between them neither aliases nor costs what is not seen.
    """
    enough = math.ceil(size * PACK_MARGIN / MARGIN * 7 / 6)
    return enough if enough < 0.9 * side else side


class PairSource:
    """Makes pairs from a face pack.

    A source is drawn first, by `shares`, then a person of it, evenly, then a face, so that neither sources with many
    persons nor persons with many frames dominate. A pair with a picture in it that is grey, the real or the fake's
    donor, is grey as a whole.

    Args:
        pack, split: the faces.
        size: side of the crops in pixels, a multiple of 16.
        device: where crops and fakes are made; see `Pictures`.
        redraw: see `forge`.
        jitter, degraded: whether crops move and both pictures are degraded (training) or not.
        shares: weight of each of the pack's sources, 0 where it is not named; None: by their numbers of persons.
        h264: share of the degraded pairs that go through libx264, too, see `recompress`.

    Raises:
        UsageError: `shares` names a source without faces in the split, or has no positive weight.
    """

    def __init__(
        self,
        pack: FacePack,
        split: str,
        size: int,
        *,
        device: torch.device | str = "cpu",
        redraw: Callable[[Tensor], Tensor] | None = None,
        jitter: bool = True,
        degraded: bool = True,
        shares: dict[str, float] | None = None,
        h264: float = 0.0,
    ) -> None:
        self.pack, self.size, self.device, self.h264 = pack, size, torch.device(device), h264
        self.redraw, self.jitter, self.degraded = redraw, jitter, degraded
        self.rows = pack.where(split)
        self.side = pack_side(pack.images.shape[1], size)
        self.pictures = Pictures(pack.images, self.rows, self.device, side=self.side)
        self.drawn, self.drawn_of = None, None
        if pack.redrawn is not None and pack.redrawn_of is not None:
            of = pack.redrawn_of[self.rows]
            own = np.flatnonzero(of >= 0)
            self.drawn = Pictures(pack.redrawn, of[own], self.device, side=self.side)
            self.drawn_of = np.full(len(of), -1)
            self.drawn_of[own] = np.arange(len(own))
        self.landmarks = torch.from_numpy(pack.landmarks[self.rows]) * (self.side / pack.images.shape[1])
        self.identity = torch.from_numpy(pack.identity[self.rows])
        middle = pack.images[self.rows, pack.images.shape[1] // 2]  # one line of pixels tells
        self.grey = (middle == middle[..., :1]).all(axis=(1, 2))
        order = np.argsort(pack.identity[self.rows], kind="stable")
        _, starts = np.unique(pack.identity[self.rows][order], return_index=True)
        self.persons = np.split(order, starts[1:])
        self.weights = np.full(len(self.persons), 1 / len(self.persons))
        if shares is not None:
            self.weights = self._weights(shares)

    def _weights(self, shares: dict[str, float]) -> np.ndarray:
        """Return the probability of each person."""
        source = self.pack.source[self.rows[[faces[0] for faces in self.persons]]]
        weights = np.zeros(len(self.persons))
        for name, share in shares.items():
            index = self.pack.sources.index(name) if name in self.pack.sources else -1
            if share < 0 or not (source == index).any():
                have = ", ".join(self.pack.sources[i] for i in np.unique(source))
                raise UsageError(f"shares: got {name}: {share}; wanted weights of at least 0 for sources among {have}")
            weights[source == index] = share / (source == index).sum()
        if not weights.sum():
            raise UsageError(f"shares: got {shares}; wanted one weight above 0 at least")
        return weights / weights.sum()

    def _drawn(self, chosen: np.ndarray, maps: Tensor) -> Tensor | None:
        """Crops [R,3,S,S] of the chosen faces [R] as networks drew them, NaN where there is none."""
        if self.drawn is None or self.drawn_of is None:
            return None
        of = self.drawn_of[chosen]
        have = np.flatnonzero(of >= 0)
        crops = torch.full((len(chosen), 3, self.size, self.size), torch.nan, device=self.device)
        if len(have):
            rows = torch.from_numpy(have).to(self.device)
            crops.index_copy_(0, rows, filters.sample(self.drawn(of[have]), maps[rows], self.size))
        return crops

    def batch(self, count: int, seed: int, config: ForgeryConfig) -> PairBatch:
        """Return `count` pairs; the same seed gives the same batch on the same kind of device."""
        rng = np.random.default_rng(seed)
        persons = rng.choice(len(self.persons), size=count, p=self.weights)
        chosen = np.asarray([rng.choice(self.persons[p]) for p in persons])
        dice = Dice(count, torch.Generator(self.device).manual_seed(seed), self.device)
        kind = config.draw(dice, redraws=self.redraw is not None)
        swaps, whole = (np.flatnonzero(kind.cpu() == KINDS.index(name)) for name in ("swap", "resynthesis"))
        pool = np.concatenate(
            [chosen[swaps], rng.choice(len(self.rows), size=min(len(self.rows), 8 * count), replace=False)]
        )
        donor = choose_donors(
            self.landmarks[pool], self.identity[pool], torch.Generator().manual_seed(seed), of=len(swaps), among=16
        )
        donors = pool[donor.numpy()]
        maps, points = crop_maps(
            self.landmarks[chosen].to(self.device), self.side, self.size, MARGIN / PACK_MARGIN, dice, jitter=self.jitter
        )
        faces = filters.sample(self.pictures(chosen), maps, self.size)
        forged = forge(
            faces, points, self.pictures(donors), self.landmarks[donors].to(self.device),
            config=config, generator=dice.generator, redraw=self.redraw, kind=kind,
            drawn=self._drawn(chosen[whole], maps[whole]),
        )  # fmt: skip
        both = torch.stack([forged.reals, forged.images])
        grey = self.grey[chosen]
        grey[swaps] |= self.grey[donors]
        if grey.any():
            rows = torch.from_numpy(np.flatnonzero(grey)).to(self.device)
            both[:, rows] = filters.luma(both[:, rows])
        if self.degraded:
            both = degrade(both, dice)
            if self.h264:
                both = recompress(both, dice, self.h264)
        return PairBatch(both[0], both[1], forged.changed, forged.kind, forged.region, self.identity[chosen])


@dataclass(frozen=True)
class Deal:
    """Who makes what of a step's batch: independent draws, dealt to processes and, there, to pieces.

    Args:
        size: of the whole batch.
        rank, world: this process's number and how many there are.
        accumulate: pieces that each process computes one after the other.
        parts: draws that the batch consists of; None: one a process and piece.
    Raises:
        UsageError: the numbers do not divide.
    """

    size: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    parts: int | None = None

    def __post_init__(self) -> None:
        pieces = self.world * self.accumulate
        if self.draws % pieces or self.size % self.draws:
            raise UsageError(
                f"a batch of {self.size} in {self.draws} parts does not divide over {self.world} processes with "
                f"accumulate={self.accumulate}; wanted parts a multiple of {pieces} and the batch one of the parts"
            )

    @property
    def draws(self) -> int:
        """Parts of a batch."""
        return self.parts or self.world * self.accumulate

    @property
    def each(self) -> int:
        """Size of a part."""
        return self.size // self.draws

    def own(self, step: int, piece: int) -> range:
        """Numbers, counted over the whole run, of the parts that this process's piece of a step consists of."""
        count = self.draws // (self.world * self.accumulate)
        first = step * self.draws + (piece * self.world + self.rank) * count
        return range(first, first + count)


@dataclass
class _Failed:
    """What went wrong in another process, in its own words: torch would put its traceback into the message."""

    error: FastdetectError


class Pieces(IterableDataset[tuple[Tensor, ...] | _Failed]):
    """Endless pieces of batches for a DataLoader with `batch_size=None`, the same whatever the number of its workers.

    Args:
        make: (number of a part, step) -> its tensors, all of one length; must depend on nothing else.
        deal: see `Deal`.
        start: first step, to go on with a run.
    """

    def __init__(self, make: Callable[[int, int], tuple[Tensor, ...]], deal: Deal, *, start: int) -> None:
        self.make, self.deal, self.start = make, deal, start

    def __iter__(self) -> Iterator[tuple[Tensor, ...] | _Failed]:
        info = get_worker_info()
        first, stride = (info.id, info.num_workers) if info else (0, 1)
        number = self.start * self.deal.accumulate + first
        while True:
            step, piece = divmod(number, self.deal.accumulate)
            try:
                parts = [self.make(part, step) for part in self.deal.own(step, piece)]
            except FastdetectError as error:
                if not info:
                    raise
                yield _Failed(error)
                return
            yield tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
            number += stride

    def loader(self, workers: int) -> Iterator[tuple[Tensor, ...]]:
        """Iterate, in `workers` other processes where that is not 0."""
        # made now, not at the first step: a DataLoader draws from torch's random numbers
        made = iter(DataLoader(self, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))
        return map(_unless_failed, made)


def _unless_failed(piece: tuple[Tensor, ...] | _Failed) -> tuple[Tensor, ...]:
    if isinstance(piece, _Failed):
        raise piece.error
    return piece


class PairMaker:
    """Makes part `number` of a run for `Pieces`: images [2B,3,S,S] float16, reals then fakes; labels [2B]; and maps
    [2B,1,S/16,S/16] in [0,1], how much of each cell was changed.

    Args:
        source: makes the pairs.
        pairs: B.
        seed: of the run; part i has seed (seed, i).
        config: step -> what its fakes are made of.
    """

    def __init__(self, source: PairSource, pairs: int, *, seed: int, config: Callable[[int], ForgeryConfig]) -> None:
        self.source, self.pairs, self.seed, self.config = source, pairs, seed, config

    def __call__(self, number: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        made = self.source.batch(self.pairs, batch_seed(self.seed, number), self.config(step))
        cells = F.avg_pool2d(made.changed, 16)
        labels = torch.arange(2).repeat_interleave(self.pairs)
        return torch.cat([made.real, made.fake]).half(), labels, torch.cat([torch.zeros_like(cells), cells])


def batch_seed(seed: int, number: int) -> int:
    """Return a well-mixed 63-bit seed for batch `number` of a run."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
