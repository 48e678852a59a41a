"""Faces of many files through the model in full batches, and back to their files."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from fastdetect.engines.base import Crops, Engine

Owner = TypeVar("Owner")


@dataclass
class Scored(Generic[Owner]):
    """The model's answer for one file: margins [N,3] float32 (fused, image, residual), patches [N,gh,gw].

    What was not inpainted has NaN for its residual margin.
    """

    owner: Owner
    margins: np.ndarray
    patch_scores: np.ndarray
    seconds: float  # of model time, shared by the faces of a batch


@dataclass
class _Waiting(Generic[Owner]):
    owner: Owner
    crops: Crops
    sent: int = 0
    margins: list[np.ndarray] = field(default_factory=list)
    patches: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0


class FaceBatcher(Generic[Owner]):
    """A queue of faces in front of an engine; files come out in the order in which they went in.

    A file's scores do not depend on the files beside it: the engine computes every face of a batch by itself.

    Args:
        engine: what scores the faces, `engine.batch_size` at a time.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.batch = engine, engine.batch_size
        self._queue: deque[_Waiting[Owner]] = deque()
        self.waiting = 0  # faces not yet scored

    def add(self, owner: Owner, crops: Crops) -> None:
        """Queue a file's crops, RGB uint8 [N,S,S,3], N >= 1."""
        self._queue.append(_Waiting(owner, crops))
        self.waiting += len(crops)

    def run(self, *, flush: bool = False) -> Iterator[Scored[Owner]]:
        """Score full batches, and with `flush` what is left; yields the files that are complete."""
        while self.waiting >= self.batch or (flush and self.waiting):
            self._run_batch()
            while self._queue and self._queue[0].sent == len(self._queue[0].crops):
                done = self._queue.popleft()
                margins, patches = np.concatenate(done.margins), np.concatenate(done.patches)
                yield Scored(done.owner, margins, patches, done.seconds)

    def _run_batch(self) -> None:
        parts: list[tuple[_Waiting[Owner], int]] = []
        room = self.batch
        for entry in self._queue:
            count = min(room, len(entry.crops) - entry.sent)
            if count:
                parts.append((entry, count))
                room -= count
            if not room:
                break
        start = time.perf_counter()
        out = self.engine.run(_joined([entry.crops[entry.sent : entry.sent + n] for entry, n in parts]))
        share = (time.perf_counter() - start) / (self.batch - room)
        margins = np.stack([x[:, 1] - x[:, 0] for x in (out.logits, out.image_logits, out.residual_logits)], axis=1)
        first = 0
        for entry, count in parts:
            entry.margins.append(margins[first : first + count])
            entry.patches.append(out.patch_scores[first : first + count])
            entry.sent += count
            entry.seconds += share * count
            first += count
        self.waiting -= first


def _joined(parts: list[Crops]) -> Crops:
    """Crops of several files one after the other; on the device, if any of them are there."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    import torch

    device = next(part.device for part in parts if not isinstance(part, np.ndarray))
    return torch.cat([torch.as_tensor(part, device=device) for part in parts])
