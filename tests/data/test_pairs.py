"""Pictures that stay on a device are those of the pack, and so are pretraining's batches of several packs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdetect.data.face_pack import FacePack
from fastdetect.data.forgery import ForgeryConfig
from fastdetect.data.pairs import Deal, PairMaker, PairSource, Pictures, Pieces, pack_side
from fastdetect.errors import MediaError
from fastdetect.reasons import Reason
from fastdetect.training.pretrain import FaceMaker, held_out_faces

CPU = torch.device("cpu")


def made_pack(count: int, offset: int) -> FacePack:
    """Pictures of one level each, the first a "val" face, the others "train"."""
    images = np.zeros((count, 256, 256, 3), np.uint8) + (offset + np.arange(count, dtype=np.uint8))[:, None, None, None]
    points = np.array([[100, 110], [156, 110], [128, 140], [108, 165], [148, 165]], np.float32)
    numbers = np.arange(count)
    return FacePack(
        images=images, landmarks=np.tile(points, (count, 1, 1)), face_px=np.full(count, 146.0, np.float32),
        identity=numbers, source=numbers * 0, clip=numbers, split=np.array(["val"] + ["train"] * (count - 1)),
        identities=[f"p{i}" for i in range(count)], sources=["made"], clips=[str(i) for i in range(count)],
    )  # fmt: skip


def test_resident_pictures_are_the_packs_own() -> None:
    pack = made_pack(6, 10)
    rows = pack.where("train")
    chosen = np.array([4, 0, 0, 2])
    kept, read = (Pictures(pack.images, rows, CPU, resident=resident)(chosen) for resident in (True, False))
    assert torch.equal(kept, read)
    assert kept.shape == (4, 3, 256, 256)
    assert (kept[:, 0, 0, 0] * 255).round().tolist() == [15, 11, 11, 13]


def test_pretraining_draws_all_training_faces_of_all_packs_evenly() -> None:
    packs = [made_pack(5, 0), made_pack(9, 100), made_pack(2, 200)]
    make = FaceMaker(packs, 64, 32, 0, CPU)
    levels: list[int] = []
    for number in range(20):
        images, points = make(number, 0)
        assert images.shape == (64, 3, 32, 32)
        assert points.shape == (64, 5, 2)
        levels += (images.float().mean((1, 2, 3)) * 255).round().int().tolist()
    found, counts = np.unique(levels, return_counts=True)
    assert found.tolist() == [*range(1, 5), *range(101, 109), 201]
    assert counts.min() > 0.6 * counts.mean()
    again, _ = make(19, 5)  # a part depends on its number, not on the step
    assert torch.equal(again, images)
    held_out, points = held_out_faces(packs[1], 32, CPU)
    assert torch.allclose(held_out, torch.full((1, 3, 32, 32), 100 / 255), atol=1e-3)
    eyes = points[0, 1] - points[0, 0]
    assert abs(eyes[0] / 32 - 56 / 256 * 1.75 / 1.3) < 0.01


def test_workers_change_nothing(tmp_path: Path) -> None:
    make = PairMaker(PairSource(made_pack(6, 50), "train", 32), 2, seed=4, config=lambda step: ForgeryConfig())
    deal = Deal(4, accumulate=2)
    one, two = (Pieces(make, deal, start=3).loader(workers) for workers in (0, 2))
    for _ in range(4):
        for a, b in zip(next(one), next(two), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_another_process_comes_as_it_is(workers: int) -> None:
    loader = Pieces(_fails_at_three, Deal(4), start=0).loader(workers)
    for _ in range(3):
        next(loader)
    with pytest.raises(MediaError) as caught:
        next(loader)
    assert str(caught.value) == "shard-3.tar ends in the middle"
    assert caught.value.reason == Reason.DECODE_ERROR


def _fails_at_three(number: int, step: int) -> tuple[torch.Tensor]:
    if number == 3:
        raise MediaError(Reason.DECODE_ERROR, "shard-3.tar ends in the middle")
    return (torch.zeros(4),)


def test_maps_say_which_cells_were_changed() -> None:
    make = PairMaker(PairSource(made_pack(6, 50), "train", 64), 4, seed=0, config=lambda step: ForgeryConfig())
    images, labels, maps = make(0, 0)
    assert images.shape == (8, 3, 64, 64)
    assert maps.shape == (8, 1, 4, 4)
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert (maps[:4] == 0).all()
    assert (maps[4:].amax((1, 2, 3)) > 0.02).all()
    assert maps.max() <= 1


def test_drawn_faces_of_the_pack_become_fakes() -> None:
    pack = made_pack(6, 50)
    drawn_of = np.array([-1, 0, 1, 2, 3, -1])
    pack = dataclasses.replace(pack, redrawn=np.full((4, 256, 256, 3), 200, np.uint8), redrawn_of=drawn_of)
    source = PairSource(pack, "train", 64, degraded=False)
    made = source.batch(24, 1, ForgeryConfig(kinds=(0.0, 0.0, 0.0, 1.0)))
    bright = (made.fake - 200 / 255).abs().amax((1, 2, 3)) < 0.02  # wholly drawn by the network
    five = (made.real * 255).round().amax((1, 2, 3)) == 55  # the face that none has drawn
    assert 4 <= bright.sum() <= 20
    assert five.any()
    assert not bright[five].any()


def test_pictures_are_shrunk_to_what_small_crops_can_show() -> None:
    assert pack_side(256, 112) == 176
    assert pack_side(256, 160) == 256  # 252 would save nothing
    assert pack_side(256, 224) == 256
    pack = made_pack(6, 50)
    stripes = np.indices((256, 256)).sum(0) % 2 * 200  # finer than a crop of 64 pixels can show
    pack.images[:] = stripes[..., None].astype(np.uint8)
    source = PairSource(pack, "train", 64, degraded=False)
    made = source.batch(8, 0, ForgeryConfig())
    assert (made.real - 100 / 255).abs().max() < 0.05  # grey, not the moire that reading single pixels gives
    big = PairSource(pack, "train", 256, degraded=False).batch(4, 0, ForgeryConfig())
    assert big.real.std() > 0.1


def test_shrunk_landmarks_stay_on_the_face() -> None:
    pack = made_pack(6, 50)
    for size in (32, 256):
        source = PairSource(pack, "train", size)
        eyes = source.landmarks[0, :2].mean(0) / source.side
        assert torch.allclose(eyes, torch.tensor([0.5, 110 / 256]), atol=1e-6)


def test_a_swap_takes_another_persons_face() -> None:
    pack = made_pack(6, 50)
    pack.images[:] = (np.arange(6) * 40)[:, None, None, None]
    swaps = ForgeryConfig(kinds=(0.0, 1.0, 0.0, 0.0), regions=(0.0, 1.0, *[0.0] * 6))
    made = PairSource(pack, "train", 64, jitter=False, degraded=False).batch(16, 2, swaps)
    assert (made.kind == 1).all()
    assert ((made.fake - made.real).abs().amax((1, 2, 3)) > 0.02).sum() >= 12
    untouched = made.changed == 0
    assert torch.equal(made.fake[untouched.expand_as(made.fake)], made.real[untouched.expand_as(made.real)])
