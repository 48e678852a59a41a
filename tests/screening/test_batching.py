"""Faces of many files share batches; every file gets its own answers back."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fastdetect.engines.base import Crops, EngineOutput, on_host
from fastdetect.errors import EngineError
from fastdetect.screening import batching
from fastdetect.screening.batching import FaceBatcher


class ArithmeticEngine:
    """An engine whose answer for a face can be computed by hand: margins are 1, 2, 3 times the crop's first value."""

    name, device, precision, image_size = "arithmetic", "cpu", "fp32", 2

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.batches: list[int] = []
        self.kinds: list[type] = []

    def run(self, crops: Crops) -> EngineOutput:
        self.batches.append(len(crops))
        self.kinds.append(type(crops))
        crops = on_host(crops)
        value = crops[:, 0, 0, 0].astype(np.float32)
        zero = np.zeros_like(value)
        two = [np.stack([zero, k * value], axis=1) for k in (1, 2, 3)]
        return EngineOutput(*two, patch_scores=np.broadcast_to(value[:, None, None], (len(crops), 2, 2)))

    def close(self) -> None:
        self.batches.clear()


def crops(values: Sequence[int]) -> np.ndarray:
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 2, 2, 3))


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("sizes", [[1], [3, 1, 2], [16, 16, 16], [5, 0 + 1, 9, 2]])
def test_every_file_gets_its_own_margins(batch: int, sizes: list[int]) -> None:
    engine, want, value = ArithmeticEngine(batch), [], 0
    queue: FaceBatcher[int] = FaceBatcher(engine)
    got = []
    for owner, size in enumerate(sizes):
        want.append(list(range(value, value + size)))
        queue.add(owner, crops(want[-1]))
        value += size
        got += list(queue.run())
        assert queue.waiting < batch
    got += list(queue.run(flush=True))
    assert [g.owner for g in got] == list(range(len(sizes)))
    for answer, values in zip(got, want, strict=True):
        np.testing.assert_array_equal(answer.margins, np.outer(values, [1, 2, 3]))
        np.testing.assert_array_equal(answer.patch_scores[:, 1, 1], values)
        assert answer.seconds > 0
    assert queue.waiting == 0
    assert all(n == batch for n in engine.batches[:-1])
    assert sum(engine.batches) == sum(sizes)


class PickyEngine(ArithmeticEngine):
    """Fails on every batch that has a face of a value in `refused`, at first."""

    def __init__(self, batch_size: int, refused: set[int]) -> None:
        super().__init__(batch_size)
        self.refused = refused

    def run(self, crops: Crops) -> EngineOutput:
        if self.refused & set(on_host(crops)[:, 0, 0, 0].tolist()):
            raise EngineError("no memory for it")
        return super().run(crops)


@pytest.mark.parametrize("spare", [None, ArithmeticEngine(3)])
@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_a_file_that_fails_costs_itself_alone(batch: int, spare: ArithmeticEngine | None) -> None:
    engine = PickyEngine(batch, {5, 6, 12})
    queue: FaceBatcher[str] = FaceBatcher(engine, lambda: spare)
    got = []
    for owner, values in {"a": [1, 2, 3], "b": [4, 5, 6, 7], "c": [8, 9], "d": [10, 11, 12], "e": [13]}.items():
        queue.add(owner, crops(values).copy())
        got += list(queue.run())
    got += list(queue.run(flush=True))
    assert [answer.owner for answer in got] == ["a", "b", "c", "d", "e"]
    assert queue.waiting == 0
    margins = {answer.owner: answer.margins[:, 0].tolist() for answer in got}
    assert (margins["a"], margins["c"], margins["e"]) == ([1, 2, 3], [8, 9], [13])
    for answer in got:
        if answer.owner in "bd":
            assert answer.engine is spare
            assert "no memory for it" in str(answer.error)
            assert margins[answer.owner] == ([] if spare is None else [[4, 5, 6, 7], [10, 11, 12]][answer.owner == "d"])
        else:
            assert (answer.engine, answer.error) == (engine, None)


class OverflowingEngine(ArithmeticEngine):
    """Has no number for a face whose value is odd."""

    def run(self, crops: Crops) -> EngineOutput:
        out = super().run(crops)
        out.logits[on_host(crops)[:, 0, 0, 0] % 2 == 1] = np.nan
        return out


def test_scores_that_are_no_numbers_are_a_failure() -> None:
    spare = ArithmeticEngine(4)
    queue: FaceBatcher[str] = FaceBatcher(OverflowingEngine(4), lambda: spare)
    queue.add("odd", crops([2, 3]))
    queue.add("even", crops([4, 6]))
    odd, even = queue.run(flush=True)
    assert (odd.engine, even.engine) == (spare, queue.engine)
    assert odd.margins[:, 0].tolist() == [2, 3]
    assert "no finite numbers" in str(odd.error)
    assert even.error is None


def test_a_spare_that_fails_too_is_told_of() -> None:
    queue: FaceBatcher[str] = FaceBatcher(PickyEngine(2, {1}), lambda: PickyEngine(2, {1}))
    queue.add("a", crops([1]).copy())
    (answer,) = queue.run(flush=True)
    assert answer.engine is None
    assert str(answer.error) == "no memory for it; on the CPU: no memory for it"


def test_torchs_own_errors_on_the_way_to_the_engine_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(parts: list[Crops]) -> Crops:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(batching, "_joined", full)
    queue: FaceBatcher[str] = FaceBatcher(ArithmeticEngine(2))
    queue.add("a", crops([1]).copy())
    (answer,) = queue.run(flush=True)
    assert str(answer.error) == "arithmetic got no batch of 1 faces: CUDA out of memory"


def test_crops_on_a_device_and_on_the_host_share_a_batch() -> None:
    engine = ArithmeticEngine(4)
    queue: FaceBatcher[int] = FaceBatcher(engine)
    queue.add(0, crops([1]).copy())
    queue.add(1, torch.from_numpy(crops([2, 3, 4, 5, 6, 7]).copy()))
    queue.add(2, crops([8, 9]).copy())
    got = [answer.margins[:, 0].tolist() for answer in queue.run(flush=True)]
    assert got == [[1], [2, 3, 4, 5, 6, 7], [8, 9]]
    assert engine.kinds == [torch.Tensor, torch.Tensor, np.ndarray]


def test_a_batch_waits_until_it_is_full() -> None:
    engine = ArithmeticEngine(4)
    queue: FaceBatcher[str] = FaceBatcher(engine)
    queue.add("a", crops([1, 2, 3]))
    assert list(queue.run()) == []
    assert engine.batches == []
    queue.add("b", crops([4, 5]))
    assert [s.owner for s in queue.run()] == ["a"]
    assert [s.owner for s in queue.run(flush=True)] == ["b"]
    assert engine.batches == [4, 1]
