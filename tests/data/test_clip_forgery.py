"""Fakes of clips: one forgery over time, masks that follow the face, H.264 on the replaced part, seeds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdetect.data.clip_forgery import (
    ClipForgeryConfig,
    _bounce,
    forge_clips,
    recompress,
    steady,
    wandering,
)
from fastdetect.data.face_shape import MEAN_FIVE, REGIONS
from fastdetect.data.forgery import KINDS, ForgeryConfig, forge
from fastdetect.data.h264 import H264, reencode
from fastdetect.errors import ShapeError, UsageError

SIZE, FRAMES = 64, 8
Clips = tuple[Tensor, Tensor]


def only(names: tuple[str, ...], name: str) -> tuple[float, ...]:
    return tuple(float(n == name) for n in names)


def settings(kind: str, region: str = "mouth", **more: float) -> ClipForgeryConfig:
    forgery = ForgeryConfig(only(KINDS, kind), only(REGIONS, region), 0.5)
    return ClipForgeryConfig(forgery, **{"wander": 0.0, "recompressed": 0.0, **more})


@pytest.fixture
def still() -> Clips:
    """([3,8,3,64,64], [3,8,5,2]): three clips that stand still."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.nn.functional.avg_pool2d(torch.rand(3, 3, SIZE, SIZE, generator=generator), 5, 1, 2)
    landmarks = MEAN_FIVE * 16 + torch.tensor([SIZE / 2, SIZE / 2 - 10])
    return pictures[:, None].repeat(1, FRAMES, 1, 1, 1), landmarks.expand(3, FRAMES, -1, -1).clone()


def make(clips: Clips, config: ClipForgeryConfig, seed: int = 0):
    images, landmarks = clips
    return forge_clips(images, landmarks, images.roll(1, 0), landmarks.roll(1, 0), config=config, seed=seed)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "regenerated"])
def test_a_clip_that_stands_still_has_a_fake_that_stands_still(still: Clips, kind: str) -> None:
    made = make(still, settings(kind, "face"))
    assert made.images.shape == still[0].shape
    assert made.masks.shape == (3, FRAMES, 1, SIZE, SIZE)
    assert (made.kind == KINDS.index(kind)).all()
    torch.testing.assert_close(made.images, made.images[:, :1].expand_as(made.images))
    torch.testing.assert_close(made.masks, made.masks[:, :1].expand_as(made.masks))
    assert (made.images - still[0]).abs().amax((1, 2, 3, 4)).min() > 0.01


def test_frames_are_those_of_forge_with_the_clip_s_draws(still: Clips) -> None:
    images, landmarks = still
    made = make(still, settings("swap"), seed=5)
    one = forge(
        images[:, 3], landmarks[:, 3], images.roll(1, 0)[:, 3], landmarks[:, 3],
        config=settings("swap").forgery, generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    torch.testing.assert_close(made.images[:, 3], one.images)


def test_masks_follow_the_face(still: Clips) -> None:
    images, landmarks = still
    drift = torch.arange(FRAMES) * 2.0 - FRAMES
    moved = landmarks + torch.stack([drift, torch.zeros(FRAMES)], 1)[None, :, None]
    masks = make((images, moved), settings("swap")).masks[:, :, 0]
    columns = torch.arange(SIZE) + 0.5
    centre = (masks.sum(2) * columns).sum(2) / masks.sum((2, 3))
    travelled = centre[:, -3] - centre[:, 2]  # the smoothing holds the ends back
    torch.testing.assert_close(travelled, torch.full((3,), 2.0 * (FRAMES - 5)), atol=0.8, rtol=0)


def test_trembling_landmarks_do_not_shake_the_mask(still: Clips) -> None:
    images, landmarks = still
    noise = torch.randn(landmarks.shape, generator=torch.Generator().manual_seed(2))
    shaken, calm = landmarks + noise, steady(landmarks + noise)
    assert (calm - landmarks).square().mean() < 0.4 * noise.square().mean()
    torch.testing.assert_close(steady(landmarks), landmarks)
    assert (make((images, shaken), settings("swap")).masks - make(still, settings("swap")).masks).abs().mean() < 0.05


def test_wandering_is_smooth_and_has_unit_size() -> None:
    paths = wandering(400, 40, torch.Generator().manual_seed(0))
    assert paths.shape == (400, 40, 2)
    assert 0.7 < paths.std() < 1.1
    steps = (paths[:, 1:] - paths[:, :-1]).norm(dim=2)
    assert steps.max() < 4
    assert steps.mean() < 0.5 * (paths[:, 8:] - paths[:, :-8]).norm(dim=2).mean()  # near frames are alike
    assert wandering(1, 1, torch.Generator()).shape == (1, 1, 2)


def test_wander_moves_the_mask_smoothly(still: Clips) -> None:
    masks = make(still, settings("swap", wander=0.1)).masks
    assert (masks[:, 0] - masks[:, -1]).abs().mean() > 1e-3
    near, far = (masks[:, 1:] - masks[:, :-1]).abs().mean(), (masks[:, 6:] - masks[:, :-6]).abs().mean()
    assert near < far


def test_seeds_decide(still: Clips) -> None:
    config = ClipForgeryConfig(recompressed=1.0)
    first, again, other = (make(still, config, seed) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.images, other.images)


def test_recompression_touches_what_was_replaced_only(still: Clips) -> None:
    plain = make(still, settings("swap"))
    coded = make(still, replace(settings("swap"), recompressed=1.0, crf=(40, 40)))
    assert torch.equal(plain.masks, coded.masks)
    change = (plain.images - coded.images).abs().amax(2, keepdim=True)
    assert change[plain.masks == 0].max() == 0
    assert change[plain.masks > 0.5].mean() > 1e-3


def test_recompress_is_reencode_on_tensors(still: Clips) -> None:
    clip = still[0][0]
    frames = (clip * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    back = recompress(clip, H264(30)).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(back, reencode(frames, H264(30)))


def test_short_donors_are_read_forwards_and_backwards(still: Clips) -> None:
    assert [_bounce(t, 3) for t in range(7)] == [0, 1, 2, 1, 0, 1, 2]
    assert [_bounce(t, 1) for t in range(3)] == [0, 0, 0]
    images, landmarks = still
    donors = torch.linspace(0, 1, 3)[None, :, None, None, None].expand(3, 3, 3, SIZE, SIZE).contiguous()
    made = forge_clips(images, landmarks, donors, landmarks[:, :3], config=settings("swap", "face"), seed=0)
    torch.testing.assert_close(made.images[:, 0], made.images[:, 4])
    assert not torch.equal(made.images[:, 0], made.images[:, 2])


def test_wrong_input_is_refused(still: Clips) -> None:
    images, landmarks = still
    with pytest.raises(ShapeError, match=r"\[N,T,5,2\]"):
        make((images, landmarks[:, :4]), ClipForgeryConfig())
    with pytest.raises(ShapeError, match="donors"):
        forge_clips(images, landmarks, images[:2], landmarks[:2], seed=0)
    with pytest.raises(UsageError, match="wander"):
        ClipForgeryConfig(wander=-1)
    with pytest.raises(UsageError, match="crf"):
        ClipForgeryConfig(crf=(40, 23))
