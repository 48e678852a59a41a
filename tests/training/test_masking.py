"""Facial masks lie on the face's parts, and pictures of reconstructions show what was masked."""

import numpy as np
import pytest
import torch
from tiny import MIM

from fastdetect.data.face_shape import MEAN_FIVE
from fastdetect.errors import ShapeError
from fastdetect.models.masked_image_model import MaskedImageModel, MaskedImageModelConfig
from fastdetect.training.masking import facial_mask
from fastdetect.training.pictures import reconstructions


def test_facial_masks_remove_a_region_whole_and_as_many_patches_as_random_ones() -> None:
    """A face in the upper left quarter: what is removed beyond chance is there, and each mask removes the same."""
    points = (MEAN_FIVE * 16 + torch.tensor([32.0, 24.0])).expand(600, -1, -1)
    masks = facial_mask(points, (112, 112), 8, 0.3, torch.Generator().manual_seed(0))
    assert masks.shape == (600, 196)
    assert set(masks.sum(1).tolist()) == {196 - int(196 * 0.7)}
    often = masks.float().mean(0).reshape(14, 14)
    eyes, mouth, nose = often[3, 3], often[5, 4], often[3, 4]
    elsewhere = often[9:, 9:].mean()
    assert min(eyes, mouth, nose) > 1.5 * elsewhere
    # where the whole face is removed, everything inside its jaw and brows is
    inner = masks.reshape(600, 14, 14)[:, 3:6, 3:5].flatten(1).all(1)
    assert 0.1 < inner.float().mean() < 0.6


def test_facial_masks_are_seeded_and_for_square_images() -> None:
    points = MEAN_FIVE.expand(4, -1, -1) * 10 + 16
    one, again, other = (facial_mask(points, (32, 32), 8, 0.5, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # a region larger than the ratio asks for: some of it stays
    assert set(facial_mask(points, (32, 32), 8, 0.1, torch.Generator()).sum(1).tolist()) == {2}
    with pytest.raises(ShapeError, match="32 x 48"):
        facial_mask(points, (32, 48), 8, 0.5, torch.Generator())


@pytest.mark.parametrize("norm_pix", [False, True])
def test_reconstructions_show_picture_mask_and_prediction(norm_pix: bool) -> None:
    model = MaskedImageModel(MaskedImageModelConfig(**MIM, norm_pix_loss=norm_pix)).eval()
    images, mask = torch.rand(2, 3, 32, 32), torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 5] = True  # row 1, column 1
    shown = reconstructions(model, images, mask)
    assert shown.shape == (64, 96, 3)
    original, masked, drawn = (shown[:32, i * 32 : i * 32 + 32].astype(int) for i in range(3))
    np.testing.assert_allclose(original / 255, images[0].permute(1, 2, 0), atol=0.003)
    patch = (slice(8, 16), slice(8, 16))
    assert (abs(masked[patch] - 127.5) < 1).all()
    assert (drawn[patch] != original[patch]).any()
    for picture in (masked, drawn):
        picture[patch] = original[patch]
        np.testing.assert_array_equal(picture, original)
