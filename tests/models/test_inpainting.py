import pytest
import torch
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.models import inpainting
from fastdetect.models.inpainting import draw_blocks, inpaint, plan
from fastdetect.models.masked_image_model import MaskedImageModel, MaskedImageModelConfig
from fastdetect.ops import patch_residual
from fastdetect.ops.reference import patchify, unpatchify


def tiny(size: int | tuple[int, int], **changes: object) -> MaskedImageModelConfig:
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    decoder = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    return MaskedImageModelConfig.model_validate({"image_size": size, "patch_size": 4} | sizes | decoder | changes)


@pytest.fixture(scope="module")
def model() -> MaskedImageModel:
    torch.manual_seed(0)
    return MaskedImageModel(tiny(56)).double().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 56, 56, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (7, 16)])
@pytest.mark.parametrize("k", [2, 3, 4, 5, 9])
def test_complementary_sets_cover_every_patch_once_and_spread(grid: tuple[int, int], k: int) -> None:
    layout = plan(f"complementary-{k}", grid)
    assert (layout.masks.sum(0) == 1).all()
    sizes = layout.masks.sum(1)
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(plan(f"sparse-{k}", grid).masks, ~layout.masks)


def test_complementary_4_takes_one_patch_of_every_2x2_cell() -> None:
    block_of = plan("complementary-4", (14, 14)).block_of.view(7, 2, 7, 2).permute(0, 2, 1, 3).reshape(49, 4)
    assert (block_of.sort(1).values == torch.arange(4)).all()
    assert len({tuple(row) for row in block_of.tolist()}) > 10  # dealt, not a regular lattice


def test_sets_do_not_depend_on_the_torch_version_and_change_with_the_seed() -> None:
    assert plan("complementary-4", (14, 14)).block_of[:14].tolist() == [3, 2, 3, 1, 0, 3, 3, 0, 2, 3, 0, 3, 1, 2]
    first, second = (plan("complementary-4", (14, 14), seed).block_of for seed in (0, 1))
    assert not torch.equal(first, second)


def test_blocks16_is_a_4x4_grid_of_3x3_blocks_inside_a_border() -> None:
    layout = plan("blocks16", (14, 14))
    assert layout.masks.shape == (16, 196)
    assert (layout.masks.sum(1) == 9).all()
    grid = layout.masks.any(0).view(14, 14)
    assert grid[1:13, 1:13].all()
    assert grid.sum() == 144
    assert layout.masks[6].view(14, 14)[4:7, 7:10].all()


def test_blocks16_residual_is_the_blocks_alone_and_zero_at_the_border(model, images) -> None:
    out = inpaint(model, images, protocol="blocks16")
    border = torch.ones(56, 56, dtype=torch.bool)
    border[4:52, 4:52] = False
    assert not out.residual[:, :, border].any()
    assert torch.equal(out.images[:, :, border], images[:, :, border])
    layout = plan("blocks16", (14, 14))
    assert torch.equal(out.covered, layout.masks.any(0))
    mask = layout.masks[9]
    want = model(images, mask)[:, mask]
    torch.testing.assert_close(patchify(out.images, 4)[:, mask], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("protocol", ["complementary-4", "complementary-5", "sparse-4", "sparse-3"])
def test_inpaint_is_the_passes_one_by_one(model, images, protocol: str) -> None:
    out = inpaint(model, images, protocol=protocol, gain=4.0)
    masks = plan(protocol, (14, 14)).masks
    total = sum(model(images, mask) * mask[:, None] for mask in masks)
    predicted = unpatchify(total / masks.sum(0)[:, None], (56, 56), 4)
    assert out.covered.all()
    torch.testing.assert_close(out.images, predicted, rtol=0, atol=1e-12)
    torch.testing.assert_close(out.residual, (4 * (predicted - images)).clamp(-1, 1), rtol=0, atol=1e-11)
    scores = patchify(predicted - images, 4).square().mean(-1)
    torch.testing.assert_close(out.patch_scores, scores, rtol=0, atol=1e-12)
    assert out.residual.abs().max() == 1  # the clamp is reached
    mild = inpaint(model, images, protocol=protocol, gain=0.5)
    torch.testing.assert_close(mild.residual, (0.5 * (predicted - images)).clamp(-1, 1), rtol=0, atol=1e-11)


@pytest.mark.parametrize("protocol", ["complementary-4", "sparse-4"])
def test_no_call_adds_two_values_to_a_patch_where_their_order_is_any(
    model, images, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, add = inpaint(model, images, protocol=protocol), Tensor.index_add_

    def checked(total: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
        assert len(index.unique()) == len(index)
        return add(total, dim, index, source)

    monkeypatch.setattr(inpainting, "ATOMIC", ("cpu",))
    monkeypatch.setattr(Tensor, "index_add_", checked)
    made = inpaint(model, images, protocol=protocol)
    assert torch.equal(made.residual, want.residual)
    assert torch.equal(made.patch_scores, want.patch_scores)


def test_residual_with_every_patch_masked_is_the_clamped_difference(model, images) -> None:
    everything = torch.ones(196, dtype=torch.bool)
    pred = model(images, everything).detach()
    residual, scores = patch_residual(pred[None], images, everything[None], patch_size=4, gain=4.0)
    difference = unpatchify(pred, (56, 56), 4) - images
    torch.testing.assert_close(residual, (4 * difference).clamp(-1, 1), rtol=0, atol=0)
    torch.testing.assert_close(scores, patchify(difference, 4).square().mean(-1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("protocol", ["blocks16", "complementary-4", "sparse-4"])
def test_selected_blocks_are_as_in_the_full_run_and_the_rest_is_zero(model, images, protocol: str) -> None:
    full = inpaint(model, images, protocol=protocol)
    layout = plan(protocol, (14, 14))
    blocks = torch.zeros(layout.blocks, dtype=torch.bool)
    blocks[[1, 3]] = True
    part = inpaint(model, images, protocol=protocol, blocks=blocks)
    chosen = (layout.block_of == 1) | (layout.block_of == 3)
    assert torch.equal(part.covered, chosen)
    residual = patchify(part.residual, 4)
    torch.testing.assert_close(residual[:, chosen], patchify(full.residual, 4)[:, chosen], rtol=0, atol=1e-11)
    assert not residual[:, ~chosen].any()
    assert not part.patch_scores[:, ~chosen].any()


def test_large_batches_are_split_without_changing_anything(model) -> None:
    images = torch.rand(33, 3, 56, 56, dtype=torch.float64)  # 33 x 4 rows: one pass at a time
    whole = inpaint(model, images).residual
    for i in (0, 32):
        torch.testing.assert_close(whole[i : i + 1], inpaint(model, images[i : i + 1]).residual)


def test_rectangular_images() -> None:
    model = MaskedImageModel(tiny((24, 40))).eval()
    out = inpaint(model, torch.rand(1, 3, 24, 40))
    assert out.residual.shape == (1, 3, 24, 40)
    assert out.patch_scores.shape == (1, 60)


def test_no_gradient_flows(model, images) -> None:
    assert not inpaint(model, images.clone().requires_grad_(True)).residual.requires_grad


def test_drawn_blocks_are_never_none() -> None:
    layout = plan("blocks16", (14, 14))
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([draw_blocks(layout, 0.25, generator) for _ in range(500)])
    assert draws.any(1).all()
    assert 0.22 < draws[~draws.all(1)].float().mean() < 0.28
    assert draw_blocks(layout, 0.0, generator).all()


def test_bad_input_is_named(model, images) -> None:
    with pytest.raises(ShapeError, match="complementary-4"):
        plan("blocks16", (3, 5))
    for name in ("complementary", "complementary-1", "sparse-x", "blocks", "complementary--4"):
        with pytest.raises(UsageError, match="blocks16"):
            plan(name, (14, 14))
    assert plan("complementary-15", (3, 5)).masks.sum(1).tolist() == [1] * 15  # as many sets as patches
    with pytest.raises(ShapeError, match="at least 20"):
        plan("complementary-20", (3, 5))
    with pytest.raises(ShapeError, match=r"\[4\] bool"):
        inpaint(model, images, blocks=torch.ones(16, dtype=torch.bool))
    with pytest.raises(ShapeError, match="nothing"):
        inpaint(model, images, blocks=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(UsageError, match="norm_pix"):
        inpaint(MaskedImageModel(tiny(56, norm_pix_loss=True)), images.float())
