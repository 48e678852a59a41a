"""Pictures that stay on a device are those of the pack, and so are pretraining's batches of several packs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastdetect.data.face_pack import FacePack
from fastdetect.data.face_shape import REGIONS
from fastdetect.data.forgery import ForgeryConfig
from fastdetect.data.pairs import Deal, PairMaker, PairSource, Pictures, Pieces, pack_side
from fastdetect.errors import MediaError, UsageError
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


def test_a_run_gone_on_with_takes_up_at_its_step() -> None:
    make = PairMaker(PairSource(made_pack(6, 50), "train", 32), 2, seed=4, config=lambda step: ForgeryConfig())
    whole, rest = (Pieces(make, Deal(4, accumulate=2), start=start).loader(0) for start in (0, 1))
    pieces = [next(whole)[0] for _ in range(4)]
    for piece in pieces[2:]:
        assert torch.equal(piece, next(rest)[0])
    assert len({piece.float().sum().item() for piece in pieces}) == 4  # no part of a step is another
    other = PairMaker(make.source, 2, seed=5, config=make.config)
    assert not torch.equal(other(0, 0)[0], make(0, 0)[0])


@pytest.mark.parametrize(("world", "accumulate", "parts"), [(1, 1, 8), (2, 1, 8), (2, 2, 8), (1, 4, 8), (4, 2, None)])
def test_processes_and_pieces_share_a_steps_parts(world: int, accumulate: int, parts: int | None) -> None:
    deals = [Deal(16, rank, world, accumulate, parts) for rank in range(world)]
    dealt = [number for deal in deals for piece in range(accumulate) for number in deal.own(3, piece)]
    assert sorted(dealt) == list(range(24, 32))
    assert all(deal.each == 2 for deal in deals)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    for deal in ({"size": 16, "world": 3, "parts": 8}, {"size": 10, "parts": 4}):
        with pytest.raises(UsageError, match="does not divide"):
            Deal(**deal)


def test_a_pair_is_degraded_alike_also_in_its_noise() -> None:
    pack = made_pack(9, 100)
    pack.images[:] = np.random.default_rng(0).integers(60, 200, (9, 8, 8, 3)).repeat(32, 1).repeat(32, 2)
    blends = ForgeryConfig(kinds=(1.0, 0, 0, 0), regions=tuple(float(name == "mouth") for name in REGIONS))
    made = PairSource(pack, "train", 112).batch(64, 1, blends)
    far = F.max_pool2d(made.changed, 49, 1, 24) == 0  # 24 pixels from every changed one, past a block of JPEG's
    assert far.any(1).flatten(1).any(1).sum() > 20
    assert ((made.real - made.fake).abs() * far).max() < 0.02


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
    drawn = np.zeros((4, 256, 256, 3), np.uint8) + np.array([160, 180, 200, 220], np.uint8)[:, None, None, None]
    pack = dataclasses.replace(pack, redrawn=drawn, redrawn_of=np.array([-1, 0, 1, 2, 3, -1]))
    source = PairSource(pack, "train", 64, degraded=False)
    made = source.batch(24, 1, ForgeryConfig(kinds=(0.0, 0.0, 0.0, 1.0)))
    face = (made.real * 255).round().amax((1, 2, 3)) - 50  # its row in the pack
    fake = (made.fake * 255).round().flatten(1)
    wholly = (fake.amin(1) == fake.amax(1)) & (fake.amax(1) > 100)
    assert 4 <= wholly.sum() <= 20
    assert torch.equal(fake[wholly, 0], 140 + 20 * face[wholly])  # as the network drew that very face
    assert (face == 5).any()
    assert not wholly[face == 5].any()  # which none has drawn


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


def test_crops_show_as_much_of_a_face_as_screenings() -> None:
    pack = made_pack(3, 0)
    pack.images[:] = np.arange(256, dtype=np.uint8)[None, None, :, None]  # levels grow to the right, one a pixel
    made = PairSource(pack, "train", 64, jitter=False, degraded=False).batch(2, 0, ForgeryConfig())
    levels = made.real[:, :, 32] * 255
    assert levels.amax() - levels.amin() == pytest.approx(256 * 1.3 / 1.75, abs=4)


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
