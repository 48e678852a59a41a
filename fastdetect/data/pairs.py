"""Endless batches of real faces, each beside a fresh fake made from it [METHODS 2.1's paired groups of two]."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from fastdetect.data.augment import degrade
from fastdetect.data.face_pack import PACK_MARGIN, FacePack
from fastdetect.data.forgery import Dice, ForgeryConfig, choose_donors, crop_pack, forge
from fastdetect.errors import UsageError
from fastdetect.faces.crop import MARGIN


@dataclass
class PairBatch:
    """A batch of pairs: `real` and `fake` [B,3,S,S] in [0,1] with equal degradation, `kind` and `region` int64 [B]."""

    real: Tensor
    fake: Tensor
    kind: Tensor
    region: Tensor


class PairSource:
    """Makes pairs from a face pack.

    A source is drawn first, by `shares`, then a person of it, evenly, then a face, so that neither sources with many
    persons nor persons with many frames dominate.

    Args:
        pack, split: the faces.
        size: side of the crops in pixels, a multiple of 16.
        device: where crops and fakes are made.
        redraw: see `forge`.
        jitter, degraded: whether crops move and both pictures are degraded (training) or not.
        shares: weight of each of the pack's sources, 0 where it is not named; None: by their numbers of persons.

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
    ) -> None:
        self.pack, self.size, self.device = pack, size, torch.device(device)
        self.redraw, self.jitter, self.degraded = redraw, jitter, degraded
        self.rows = pack.where(split)
        self.landmarks = torch.from_numpy(pack.landmarks[self.rows])
        self.identity = torch.from_numpy(pack.identity[self.rows])
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

    def _pictures(self, chosen: np.ndarray) -> Tensor:
        pictures = torch.from_numpy(np.stack([self.pack.images[i] for i in self.rows[chosen]]))
        return pictures.to(self.device).permute(0, 3, 1, 2).float() / 255

    def batch(self, count: int, seed: int, config: ForgeryConfig) -> PairBatch:
        """Return `count` pairs; the same seed gives the same batch on the same kind of device."""
        rng = np.random.default_rng(seed)
        persons = rng.choice(len(self.persons), size=count, p=self.weights)
        chosen = np.asarray([rng.choice(self.persons[p]) for p in persons])
        pool = np.concatenate([chosen, rng.choice(len(self.rows), size=min(len(self.rows), 8 * count), replace=False)])
        generator = torch.Generator(self.device).manual_seed(seed)
        donor = choose_donors(self.landmarks[pool], self.identity[pool], torch.Generator().manual_seed(seed), among=16)[
            :count
        ]
        donors = pool[donor.numpy()]
        dice = Dice(count, generator, self.device)
        faces, points = crop_pack(
            self._pictures(chosen), self.landmarks[chosen].to(self.device), self.size, MARGIN / PACK_MARGIN, dice,
            jitter=self.jitter,
        )  # fmt: skip
        forged = forge(
            faces, points, self._pictures(donors), self.landmarks[donors].to(self.device),
            config=config, generator=generator, redraw=self.redraw,
        )  # fmt: skip
        both = torch.stack([faces, forged.images])
        if self.degraded:
            both = degrade(both, dice)
        return PairBatch(both[0], both[1], forged.kind, forged.region)


class PairStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless (images [2B,3,S,S] float16 reals then fakes, labels [2B]) for a DataLoader with `batch_size=None`.

    Args:
        source: makes the pairs.
        pairs: B.
        seed: of the stream; batch i of a run has seed (seed, i), whatever the number of workers.
        start: first batch, to go on with a run.
        config: batch number -> what its fakes are made of.
    """

    def __init__(
        self, source: PairSource, pairs: int, *, seed: int, start: int, config: Callable[[int], ForgeryConfig]
    ) -> None:
        self.source, self.pairs, self.seed, self.start, self.config = source, pairs, seed, start, config

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = get_worker_info()
        first, stride = (info.id, info.num_workers) if info else (0, 1)
        labels = torch.arange(2).repeat_interleave(self.pairs)
        number = self.start + first
        while True:
            made = self.source.batch(self.pairs, batch_seed(self.seed, number), self.config(number))
            yield torch.cat([made.real, made.fake]).half(), labels
            number += stride


def batch_seed(seed: int, number: int) -> int:
    """Return a well-mixed 63-bit seed for batch `number` of a run."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
