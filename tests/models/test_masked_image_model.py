import numpy as np
import pytest
import torch
from torch import Tensor

from fastdetect.errors import CheckpointError, ShapeError, UsageError
from fastdetect.models.checkpoint import load_state
from fastdetect.models.masked_image_model import (
    MaskedImageModel,
    MaskedImageModelConfig,
    sincos_positions,
)
from fastdetect.ops import masked_patch_loss
from fastdetect.ops.reference import patchify, unpatchify

# H != W: 3 x 5 patches of 8 px.
TINY = MaskedImageModelConfig(
    image_size=(24, 40),
    patch_size=8,
    embed_dim=32,
    depth=2,
    num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
)


@pytest.fixture(scope="module")
def model() -> MaskedImageModel:
    torch.manual_seed(0)
    return MaskedImageModel(TINY).double().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 24, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def official_forward(model: MaskedImageModel, images: Tensor, mask: Tensor) -> Tensor:
    """The official MAE's forward, step by step: drop, encode, unshuffle with mask tokens, decode all."""
    project = model.patch_embed["proj"]
    x = project(images).flatten(2).transpose(1, 2) + model.patch_positions[:, 1:]
    noise = mask.double() + torch.arange(mask.shape[1]) * 1e-6
    shuffle = noise.argsort(1)
    restore = shuffle.argsort(1)
    keep = shuffle[:, : int((~mask[0]).sum())]
    x = torch.gather(x, 1, keep[:, :, None].repeat(1, 1, x.shape[2]))
    cls = model.cls_token + model.patch_positions[:, :1]
    x = model.norm(model.blocks(torch.cat([cls.expand(len(x), -1, -1), x], 1)))
    x = model.decoder_embed(x)
    fill = model.mask_token.repeat(len(x), mask.shape[1] + 1 - x.shape[1], 1)
    y = torch.cat([x[:, 1:], fill], 1)
    y = torch.gather(y, 1, restore[:, :, None].repeat(1, 1, x.shape[2]))
    y = torch.cat([x[:, :1], y], 1) + model.decoder_positions
    return model.decoder_pred(model.decoder_norm(model.decoder_blocks(y)))[:, 1:]


def test_forward_is_the_official_mae(model: MaskedImageModel, images: Tensor) -> None:
    mask = model.random_mask(3, 0.6, torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(images, mask), official_forward(model, images, mask), rtol=0, atol=1e-12)


def test_shared_mask_is_the_same_as_one_per_sample(model: MaskedImageModel, images: Tensor) -> None:
    mask = model.random_mask(None, 0.75, torch.Generator().manual_seed(3))
    shared, each = model(images, mask), model(images, mask.expand(3, -1))
    torch.testing.assert_close(shared, each, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.loss(images, mask), model.loss(images, mask.repeat(3, 1)))


def test_the_mask_may_stay_on_the_cpu() -> None:
    """Where looking at it waits for no device; "meta" stands for a GPU."""
    model, images = MaskedImageModel(TINY).to("meta"), torch.empty(3, 3, 24, 40, device="meta")
    for batch in (3, None):
        mask = model.random_mask(batch, 0.6)
        assert model(images, mask).device.type == "meta"
        assert model.loss(images, mask).device.type == "meta"


def test_predict_decodes_the_removed_patches_of_every_mask(model: MaskedImageModel, images: Tensor) -> None:
    masks = model.random_mask(4, 0.4, torch.Generator().manual_seed(4))
    pred, ids = model.predict(images, masks)
    for n, mask in enumerate(masks):
        assert torch.equal(ids[n], mask.nonzero().flatten())
        torch.testing.assert_close(pred[:, n], model(images, mask)[:, mask], rtol=0, atol=1e-12)


def test_removed_patches_are_not_seen(model: MaskedImageModel, images: Tensor) -> None:
    mask = model.random_mask(None, 0.5, torch.Generator().manual_seed(5))
    patches = patchify(images, 8)
    changed = unpatchify(torch.where(mask[:, None], 1 - patches, patches), TINY.size, 8)
    assert torch.equal(model(images, mask), model(changed, mask))
    assert not torch.equal(model(images, ~mask), model(changed, ~mask))


@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_is_maes_forward_loss(norm_pix: bool, images: Tensor) -> None:
    generator = torch.Generator().manual_seed(6)
    pred = torch.randn(3, 15, 192, dtype=torch.float64, generator=generator)
    mask = (torch.rand(3, 15, generator=generator) < 0.6).double()
    x = images.reshape(3, 3, 3, 8, 5, 8)
    target = torch.einsum("nchpwq->nhwpqc", x).reshape(3, 15, 192)
    if norm_pix:
        mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (var + 1.0e-6) ** 0.5
    error = ((pred - target) ** 2).mean(dim=-1)
    official = (error * mask).sum() / mask.sum()
    ours = masked_patch_loss(pred, images, mask, patch_size=8, norm_pix=norm_pix)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, official, rtol=1e-13, atol=0)


def test_loss_is_fp32_and_trains_under_bf16_autocast() -> None:
    torch.manual_seed(0)
    model = MaskedImageModel(TINY)
    images = torch.rand(8, 3, 24, 40)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(25):
        mask = model.random_mask(8, 0.75, torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(images, mask)
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_patches_are_flattened_row_column_channel(images: Tensor) -> None:
    patches = patchify(images, 8)
    assert torch.equal(patches[1, 7], images[1, :, 8:16, 16:24].permute(1, 2, 0).flatten())
    assert torch.equal(unpatchify(patches, (24, 40), 8), images)


def test_positions_are_maes() -> None:
    dim, (rows, columns) = 16, (3, 5)
    got = sincos_positions(dim, (rows, columns))[0].numpy()
    omega = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4.0))
    for y in range(rows):
        for x in range(columns):
            want = np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])
            np.testing.assert_allclose(got[1 + y * columns + x], want, atol=1e-6)
    assert not got[0].any()


def test_random_masks_remove_the_same_number_and_repeat_with_the_seed(model: MaskedImageModel) -> None:
    masks = model.random_mask(50, 0.75, torch.Generator().manual_seed(7))
    assert masks.shape == (50, 15)
    assert (masks.sum(1) == 15 - int(15 * 0.25)).all()
    assert torch.equal(masks, model.random_mask(50, 0.75, torch.Generator().manual_seed(7)))
    assert masks.any(0).all()  # every patch is drawn
    assert (~masks).any(0).all()


def test_block_masks_are_full_blocks_that_reach_every_corner(model: MaskedImageModel) -> None:
    masks = model.block_mask(200, 2, torch.Generator().manual_seed(8)).view(200, 3, 5)
    for mask in masks:
        y, x = mask.nonzero(as_tuple=True)
        assert len(y) == 4
        assert y.max() - y.min() == 1 == x.max() - x.min()
    assert masks[:, 0, 0].any()
    assert masks[:, 2, 4].any()
    with pytest.raises(UsageError, match=r"1\.\.3"):
        model.block_mask(1, 4)


def test_bad_input_is_named(model: MaskedImageModel, images: Tensor) -> None:
    mask = model.random_mask(3, 0.5)
    uneven = mask.clone()
    uneven[0] = True
    with pytest.raises(ShapeError, match="same number"):
        model(images, uneven)
    with pytest.raises(ShapeError, match="at least one"):
        model(images, torch.zeros(15))
    with pytest.raises(ShapeError, match="3 rows for 2 images"):
        model(images[:2], mask)
    with pytest.raises(ShapeError, match=r"\[B>0,3,24,40\]"):
        model(images.transpose(2, 3), mask)
    with pytest.raises(ShapeError, match="uint8"):
        model((images * 255).byte(), mask)
    with pytest.raises(UsageError, match="ratio"):
        model.random_mask(1, 1.0)
    with pytest.raises(UsageError, match="mae_small_112"):
        MaskedImageModel("mae_tiny")
    with pytest.raises(ValueError, match="multiple of patch_size"):
        MaskedImageModelConfig.model_validate(TINY.model_dump() | {"image_size": 25})


def test_presets_have_the_stated_size() -> None:
    with torch.device("meta"):
        base = MaskedImageModel("mae_base_224")
        small = MaskedImageModel("mae_small_112")
    # 111.9 M is the official mae_vit_base_patch16 with its two position tables, which are buffers here
    official = 111_907_840 - 197 * (768 + 512)
    assert sum(p.numel() for p in base.parameters()) == official
    assert small.config.grid == base.config.grid == (14, 14)


def test_save_and_load(tmp_path, model: MaskedImageModel, images: Tensor) -> None:
    single = MaskedImageModel(TINY)
    single.save_pretrained(tmp_path / "m")
    loaded = MaskedImageModel.from_pretrained(tmp_path / "m")
    assert not loaded.training
    mask = loaded.random_mask(None, 0.5)
    with torch.no_grad():
        assert torch.equal(loaded(images.float(), mask), single.eval()(images.float(), mask))
    wrong = MaskedImageModelConfig.model_validate(TINY.model_dump() | {"depth": 3})
    with pytest.raises(CheckpointError, match="missing: blocks"):
        load_state(MaskedImageModel(wrong), single.state_dict(), "here")


def test_a_model_of_standardised_patches_learns_them(images: Tensor) -> None:
    torch.manual_seed(0)
    model = MaskedImageModel(TINY.model_copy(update={"norm_pix_loss": True})).double()
    mask = torch.zeros(15, dtype=torch.bool)
    mask[3:9] = True
    patches = patchify(images, 8)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    with torch.no_grad():
        want = (model(images, mask) - target)[:, mask].square().mean()
        torch.testing.assert_close(model.loss(images, mask), want)
