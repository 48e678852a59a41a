from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fastdetect.engines import TorchEngine
from fastdetect.errors import CheckpointError, ShapeError, UsageError
from fastdetect.models import DetectorConfig, MaskedImageModelConfig, TwoBranchDetector, inpaint
from fastdetect.models.detector import area_resize
from fastdetect.models.folder import residual_decides

MIM = MaskedImageModelConfig(
    image_size=56,
    patch_size=4,
    embed_dim=32,
    depth=1,
    num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
)


def build(image: str = "mobilenetv3_small_050", residual: str = "resnet10t", **changes: object) -> TwoBranchDetector:
    torch.manual_seed(0)
    names = {"image_backbone": image, "residual_backbone": residual, "mim": MIM, "image_size": 80}
    return TwoBranchDetector(DetectorConfig.model_validate(names | changes))


@pytest.fixture(scope="module")
def crops() -> Tensor:
    return torch.randint(0, 256, (4, 3, 80, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def total(out) -> Tensor:
    return (
        sum(t.square().sum() for t in (out.logits, out.image_logits, out.residual_logits)) + out.embedding[:, 0].sum()
    )


def test_output_shapes_and_uint8_is_float(crops: Tensor) -> None:
    model = build().eval()
    with torch.no_grad():
        out, same = model(crops), model(crops.float() / 255)
    assert out.logits.shape == out.image_logits.shape == out.residual_logits.shape == (4, 2)
    assert out.patch_scores.shape == (4, 196)
    torch.testing.assert_close(out.embedding.norm(dim=1), torch.ones(4))
    assert torch.equal(out.logits, same.logits)


def test_training_under_bf16_autocast_reaches_all_but_the_masked_image_model(crops: Tensor) -> None:
    model = build(token_selection=True, drop_rate=0.1, drop_path_rate=0.1).to(memory_format=torch.channels_last)
    before = {k: v.clone() for k, v in model.mim.state_dict().items()}
    assert model.train() is model
    assert not any(m.training for m in model.mim.modules())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(crops, generator=torch.Generator().manual_seed(0))
    assert {t.dtype for t in vars(out).values()} == {torch.float32}
    total(out).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("mim."):
            assert parameter.grad is None
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert all(torch.equal(v, before[k]) for k, v in model.mim.state_dict().items())


def test_mim_dtype_puts_only_the_inpainting_in_bf16(crops: Tensor) -> None:
    model = build().eval()
    with torch.no_grad():
        full = model(crops)
        model.mim_dtype = torch.bfloat16
        mixed = model(crops)
    assert torch.equal(full.image_logits, mixed.image_logits)
    assert not torch.equal(full.patch_scores, mixed.patch_scores)
    torch.testing.assert_close(full.patch_scores, mixed.patch_scores, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("pool", ["cls", "first", "avg"])
def test_vit_branches_see_only_the_tokens_of_the_selected_blocks(pool: str) -> None:
    vit = "vit_tiny_patch16_224"
    model = build(vit, vit, pool=pool, token_selection=True, image_size=56, protocol="blocks16").eval()
    blocks = torch.zeros(16, dtype=torch.bool)
    blocks[[0, 5]] = True
    images = torch.rand(2, 3, 56, 56)
    outside = torch.ones(56, 56, dtype=torch.bool)
    for index in (0, 5):
        top, left = 4 + 12 * (index // 4), 4 + 12 * (index % 4)
        outside[top : top + 12, left : left + 12] = False
    noise = torch.where(outside, torch.rand_like(images), images)
    with torch.no_grad():
        first, second, whole = model(images, blocks), model(noise, blocks), model(images)
    assert torch.equal(first.image_logits, second.image_logits)
    assert not torch.equal(first.residual_logits, second.residual_logits)  # the inpainting sees the surroundings
    assert not torch.equal(first.image_logits, whole.image_logits)


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_a_vit_s_feature_of_all_tokens_is_timms(pool: str) -> None:
    branch = build("vit_tiny_patch16_224", pool=pool, image_size=56).eval().image_branch
    x = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        tokens = branch.net.forward_features(x)
        torch.testing.assert_close(branch(x, None), tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1))


def test_first_token_is_the_first_selected_patch_not_its_neighbour() -> None:
    vit = "vit_tiny_patch16_224"
    model = build(vit, vit, pool="first", image_size=56).eval()
    x = torch.rand(1, 3, 56, 56)
    net = model.image_branch.net
    with torch.no_grad():
        net.blocks = torch.nn.Sequential()  # no mixing: a token is its own patch
        tokens = torch.tensor([17, 40])
        got = model.image_branch(x, tokens)
        want = net.norm(net._pos_embed(net.patch_embed(x)))[:, 1 + 17]
    torch.testing.assert_close(got, want)


def test_unselected_blocks_of_a_convolutional_residual_branch_are_zero(crops: Tensor) -> None:
    model = build(token_selection=True).eval()
    blocks = torch.tensor([True, False, False, True])
    with torch.no_grad():
        out = model(crops, blocks)
        small = area_resize(crops.float() / 255, 56)
        residual = inpaint(model.mim, small, protocol="complementary-4", blocks=blocks).residual
        want = model.residual_head(model.residual_branch(residual, None))
    torch.testing.assert_close(out.residual_logits, want)


def test_the_image_is_normalised_by_the_models_mean_and_deviation(crops: Tensor) -> None:
    plain, other = build(mean=(0, 0, 0), std=(1, 1, 1)).eval(), build(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).eval()
    images = crops.float() / 255
    shifted = (images - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(other(images).image_logits, plain(shifted).image_logits)


def test_gain_and_seed_of_the_protocol_are_the_models_own(crops: Tensor) -> None:
    images = area_resize(crops.float() / 255, 56)
    model = build(gain=0.25, protocol_seed=7).eval()
    with torch.no_grad():
        made = inpaint(model.mim, images, protocol="complementary-4", gain=0.25, seed=7)
        out, given = model(crops), model(crops, inpainted=(made.residual, made.patch_scores))
    torch.testing.assert_close(out.patch_scores, made.patch_scores)
    torch.testing.assert_close(out.residual_logits, given.residual_logits)
    with torch.no_grad(), pytest.raises(ShapeError, match="of all blocks"):
        model(crops, torch.tensor([True, False, True, True]), inpainted=(made.residual, made.patch_scores))


def test_without_token_selection_training_inpaints_everything(crops: Tensor) -> None:
    model = build()
    for seed in range(5):
        assert model(crops, generator=torch.Generator().manual_seed(seed)).patch_scores.ne(0).all()


def test_building_a_branch_leaves_its_statistics_as_they_were() -> None:
    means = [v for k, v in build().image_branch.state_dict().items() if k.endswith("running_mean")]
    assert means
    assert not any(v.any() for v in means)


def test_saving_keeps_the_calibration_unless_another_is_given(tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path / "first", calibration={"id": "a"})
    model.save_pretrained(tmp_path / "second")
    assert TwoBranchDetector.from_pretrained(tmp_path / "second").info.calibration == {"id": "a"}
    model.save_pretrained(tmp_path / "third", calibration={"id": "b"})
    assert TwoBranchDetector.from_pretrained(tmp_path / "third").info.calibration == {"id": "b"}


def test_stochastic_depth_reaches_the_backbones() -> None:
    torch.manual_seed(0)
    branch = build("resnet10t", drop_path_rate=0.5).train().image_branch
    assert any(type(module).__name__ == "DropPath" for module in branch.modules())


def test_training_draws_blocks_from_the_generator_and_evaluation_uses_all(crops: Tensor) -> None:
    model = build(token_selection=True)
    draws = [model(crops, generator=torch.Generator().manual_seed(s)).patch_scores.ne(0).any(0) for s in (0, 0, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert len({tuple(d.tolist()) for d in draws}) > 1
    with torch.no_grad():
        assert model.eval()(crops).patch_scores.ne(0).all()


@pytest.mark.parametrize(("side", "size"), [(224, 112), (160, 112), (113, 112), (112, 112), (200, 56)])
def test_area_resize_is_opencvs(side: int, size: int) -> None:
    image = np.random.default_rng(side).random((side, side, 3), dtype=np.float32)
    want = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    got = area_resize(torch.from_numpy(image).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0)
    np.testing.assert_allclose(got.numpy(), want, atol=2e-5)


def test_bad_input_is_named(crops: Tensor) -> None:
    model = build()
    with pytest.raises(ShapeError, match=r"\[B>0,3,80,80\]"):
        model(crops[:, :, :40, :40])
    with pytest.raises(ShapeError, match="int32"):
        model(crops.int())
    with pytest.raises(UsageError, match="no_such_net"):
        build("no_such_net")
    with pytest.raises(UsageError, match="multiple of 14"):
        build("vit_tiny_patch16_224")
    with pytest.raises(UsageError, match="paper-vit-b16"):
        DetectorConfig.preset("paper")
    for wrong in ({"protocol": "blocks9"}, {"image_size": 32}, {"gain": 0}, {"std": (0, 1, 1)}):
        with pytest.raises(ValidationError):
            build(**wrong)


@pytest.mark.slow
def test_backbones_take_timms_arguments(tmp_path: Path) -> None:
    slim = {"channels": [16, 32, 64, 64], "stem_type": "", "stem_width": 16}
    model = build("resnet10t", "resnet10t", image_backbone_args=slim)
    assert model.image_branch.features == 64
    assert model.residual_branch.features == 512
    model.save_pretrained(tmp_path)
    again = TwoBranchDetector.from_pretrained(tmp_path)
    assert again.config.image_backbone_args == slim
    with pytest.raises(UsageError, match=r"cannot build backbone 'resnet10t' with \{'chanels': 3\}"):
        build("resnet10t", image_backbone_args={"chanels": 3})


def test_the_papers_preset_runs() -> None:
    torch.manual_seed(0)
    model = TwoBranchDetector("paper-vit-b16")
    assert sum(p.numel() for p in model.parameters()) > 280e6
    engine = TorchEngine(model, batch_size=1)
    crop = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    out = engine.run(crop)
    assert np.isfinite(out.logits).all()
    inside = np.zeros((14, 14), bool)
    inside[1:13, 1:13] = True
    assert (out.patch_scores[0] > 0).tolist() == inside.tolist()


def test_whether_the_residual_branch_decides_is_in_the_fused_head(tmp_path: Path) -> None:
    model = build()
    for number, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16)):
        assert residual_decides(model.save_pretrained(tmp_path / f"both{number}", dtype=dtype))
    assert not residual_decides(model.decide_by_image().save_pretrained(tmp_path / "image"))
    out = TwoBranchDetector.from_pretrained(tmp_path / "image")(torch.rand(2, 3, 80, 80))
    torch.testing.assert_close(out.logits, out.image_logits)
    model.mim.save_pretrained(tmp_path / "mim")
    for folder in ("mim", "nothing"):
        with pytest.raises(CheckpointError):
            residual_decides(tmp_path / folder)
    assert not residual_decides("fastdetect-small")
