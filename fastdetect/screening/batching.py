"""Faces of many files through the model in full batches, and back to their files."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from fastdetect.engines.base import Crops, Engine, on_host
from fastdetect.errors import EngineError

Owner = TypeVar("Owner")


@dataclass
class Scored(Generic[Owner]):
    """The model's answer for one file: margins [N,3] float32 (fused, image, residual), patches [N,gh,gw].

    What was not inpainted has NaN for its residual margin. `error` says why the engine that was meant to gave none;
    the scores are `engine`'s, or where that is None there are none.
    """

    owner: Owner
    margins: np.ndarray
    patch_scores: np.ndarray
    seconds: float  # of model time, shared by the faces of a batch
    engine: Engine | None
    error: EngineError | None = None


@dataclass
class _Waiting(Generic[Owner]):
    owner: Owner
    crops: Crops
    sent: int = 0
    margins: list[np.ndarray] = field(default_factory=list)
    patches: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0
    engine: Engine | None = None
    error: EngineError | None = None

    def done(self) -> Scored[Owner]:
        none = np.zeros((0, 3), np.float32), np.zeros((0, 0, 0), np.float32)
        margins, patches = (np.concatenate(self.margins), np.concatenate(self.patches)) if self.engine else none
        return Scored(self.owner, margins, patches, self.seconds, self.engine, self.error)


class FaceBatcher(Generic[Owner]):
    """A queue of faces in front of an engine; files come out in the order in which they went in.

    A file's scores do not depend on the files beside it: the engine computes every face of a batch by itself. Where it
    fails on a batch, each file is tried alone, and one that fails again goes to the spare engine.

    Args:
        engine: what scores the faces, `engine.batch_size` at a time.
        spare: gives the engine for what that one fails on; None: there is none.
    """

    def __init__(self, engine: Engine, spare: Callable[[], Engine | None] = lambda: None) -> None:
        self.engine, self.spare, self.batch = engine, spare, engine.batch_size
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
                yield self._queue.popleft().done()

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
        try:
            self._score(self.engine, parts)
        except EngineError as error:
            if len(parts) == 1:
                self._give_up(parts[0][0], error)
                return
            for part in parts:  # one file's trouble is not another's
                try:
                    self._score(self.engine, [part])
                except EngineError as again:
                    self._give_up(part[0], again)

    def _score(self, engine: Engine, parts: list[tuple[_Waiting[Owner], int]]) -> None:
        start, total = time.perf_counter(), sum(count for _, count in parts)
        try:
            out = engine.run(_joined([entry.crops[entry.sent : entry.sent + n] for entry, n in parts]))
        except RuntimeError as error:  # of torch, which may have no memory for the batch itself
            raise EngineError(f"{engine.name} got no batch of {total} faces: {_first(error)}") from error
        share = (time.perf_counter() - start) / total
        margins = np.stack([x[:, 1] - x[:, 0] for x in (out.logits, out.image_logits, out.residual_logits)], axis=1)
        if not np.isfinite(margins[:, : 3 if out.patch_scores.size else 2]).all():  # fp16 overflows
            raise EngineError(f"{engine.name} in {engine.precision} gave scores that are no finite numbers")
        first = 0
        for entry, count in parts:
            entry.engine = engine
            entry.margins.append(margins[first : first + count])
            entry.patches.append(out.patch_scores[first : first + count])
            entry.sent += count
            entry.seconds += share * count
            first += count
        self.waiting -= total

    def _give_up(self, entry: _Waiting[Owner], error: EngineError) -> None:
        """Score a whole file on the spare engine, or leave it without scores."""
        self.waiting += entry.sent
        entry.error, entry.engine, entry.sent = error, None, 0
        entry.margins.clear()
        entry.patches.clear()
        try:
            if spare := self.spare():
                entry.crops = on_host(entry.crops)
                self._score(spare, [(entry, len(entry.crops))])
                return
        except (EngineError, RuntimeError) as again:  # the latter where the crops cannot be had from a broken device
            entry.error = EngineError(f"{error}; on the CPU: {_first(again)}")
        self.waiting -= len(entry.crops)
        entry.sent = len(entry.crops)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _joined(parts: list[Crops]) -> Crops:
    """Crops of several files one after the other; on the device, if any of them are there."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    import torch

    device = next(part.device for part in parts if not isinstance(part, np.ndarray))
    return torch.cat([torch.as_tensor(part, device=device) for part in parts])
