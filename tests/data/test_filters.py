"""Batched picture operations against OpenCV, Pillow's JPEG and plain definitions."""

import cv2
import numpy as np
import pytest
import torch

from fastdetect.data import filters


@pytest.fixture
def images() -> torch.Tensor:
    """[4,3,64,64] smooth random pictures in [0,1]."""
    generator = torch.Generator().manual_seed(0)
    return filters.smooth_field((4, 3, 64, 64), 8, generator, torch.device("cpu")).mul(0.2).add(0.5).clamp(0, 1)


def test_resample_matrix_of_one_changes_nothing(images: torch.Tensor) -> None:
    matrix = filters.resample_matrix(torch.ones(4), 64)
    torch.testing.assert_close(filters.separable(images, matrix), images)


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_resample_is_area_down_and_linear_up(images: torch.Tensor, factor: float) -> None:
    ours = filters.separable(images, filters.resample_matrix(torch.full((4,), factor), 64))
    for ours_one, image in zip(ours, images, strict=True):
        picture = image.permute(1, 2, 0).numpy()
        side = int(64 / factor)
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        expected = cv2.resize(small, (64, 64), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(ours_one.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_matrices_keep_constants_at_every_strength() -> None:
    factors = torch.tensor([1.0, 1.37, 2.9, 7.3])
    flat = torch.full((4, 3, 48, 48), 0.3)
    for matrix in (filters.resample_matrix(factors, 48), filters.blur_matrix(factors - 1, 48)):
        torch.testing.assert_close(filters.separable(flat, matrix), flat)


def test_blur_is_gaussian_away_from_the_border() -> None:
    spike = torch.zeros(1, 1, 65, 65)
    spike[..., 32, 32] = 1
    ours = filters.separable(spike, filters.blur_matrix(torch.tensor([2.0]), 65))[0, 0].numpy()
    expected = cv2.GaussianBlur(spike[0, 0].numpy(), (31, 31), 2.0)
    np.testing.assert_allclose(ours, expected, atol=2e-4)


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpeg_loses_what_a_real_encoder_loses(images: torch.Tensor, quality: int) -> None:
    ours = filters.jpeg(images, torch.full((4,), float(quality)))
    for ours_one, image in zip(ours, images, strict=True):
        picture = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        subsampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, *subsampling]
        real = cv2.imdecode(cv2.imencode(".jpg", picture[..., ::-1], options)[1], cv2.IMREAD_COLOR)[..., ::-1]
        between = np.abs(ours_one.permute(1, 2, 0).numpy() * 255 - real).mean()
        lost = np.abs(real.astype(float) - picture).mean()
        assert between < max(1.5, 0.4 * lost)


def test_jpeg_quality_is_per_sample(images: torch.Tensor) -> None:
    low, high = torch.tensor([10.0]), torch.tensor([98.0])
    both = filters.jpeg(images[:2], torch.cat([low, high]))
    torch.testing.assert_close(both[:1], filters.jpeg(images[:1], low))
    torch.testing.assert_close(both[1:], filters.jpeg(images[1:2], high))
    assert (both[1] - images[1]).abs().mean() < (both[0] - images[0]).abs().mean()


def test_apply_to_touches_the_chosen_samples_only(images: torch.Tensor) -> None:
    chosen = torch.tensor([True, False, True, False])
    changed = filters.apply_to_(images.clone(), chosen, filters.sharpen, torch.full((4,), 1.0), torch.full((4,), 1.0))
    assert torch.equal(changed[1], images[1])
    assert torch.equal(changed[3], images[3])
    assert not torch.equal(changed[0], images[0])
    assert filters.apply_to_(images, ~torch.ones(4, dtype=torch.bool), filters.jpeg, torch.ones(4)) is images


def test_sample_identity_and_shift(images: torch.Tensor) -> None:
    identity = torch.eye(2, 3).expand(4, -1, -1)
    torch.testing.assert_close(filters.sample(images, identity, 64), images)
    shifted = identity.clone()
    shifted[:, 0, 2] = 3  # reads three pixels to the right
    torch.testing.assert_close(filters.sample(images, shifted, 64)[..., :-3], images[..., 3:])
