"""patch_vit_mae: the patched model against itself unpatched, for a small MAE in the manner of its code and for
transformers' own."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from fastdetect import integrations
from fastdetect.errors import UsageError
from fastdetect.integrations import patch_vit_mae


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int | tuple[int, int], dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class SmallMAE(nn.Module):
    """The parts of MAE's MaskedAutoencoderViT that its loss touches, named as there."""

    def __init__(self, norm_pix_loss: bool = False, patch_size: int | tuple[int, int] = 8) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, 16)
        self.mask_token = nn.Parameter(torch.randn(16))
        self.decoder_pred = nn.Linear(16, 3 * self.patch_embed.patch_size[0] * self.patch_embed.patch_size[1])
        self.norm_pix_loss = norm_pix_loss

    def patchify(self, imgs: Tensor) -> Tensor:
        p = self.patch_embed.patch_size[0]
        assert imgs.shape[2] == imgs.shape[3]
        h = w = imgs.shape[2] // p
        x = imgs.reshape(shape=(imgs.shape[0], 3, h, p, w, p))
        x = torch.einsum("nchpwq->nhwpqc", x)
        return x.reshape(shape=(imgs.shape[0], h * w, p**2 * 3))

    def forward_loss(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        target = self.patchify(imgs)
        if self.norm_pix_loss:
            mean = target.mean(dim=-1, keepdim=True)
            var = target.var(dim=-1, keepdim=True)
            target = (target - mean) / (var + 1.0e-6) ** 0.5
        loss = (pred - target) ** 2
        loss = loss.mean(dim=-1)
        return (loss * mask).sum() / mask.sum()

    def forward(self, imgs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.patch_embed(imgs)
        pred = self.decoder_pred(torch.where(mask[..., None] > 0, self.mask_token, tokens))
        return self.forward_loss(imgs, pred, mask), pred, mask


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The calls of the fused loss: without it, equal losses would prove nothing."""
    seen, fused = [], integrations.masked_patch_loss

    def counted(*args, **kwargs) -> Tensor:
        seen.append(kwargs)
        return fused(*args, **kwargs)

    monkeypatch.setattr(integrations, "masked_patch_loss", counted)
    return seen


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(2, 3, 32, 32), (torch.rand(2, 16) < 0.75).float()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_mae(calls: list[dict], norm_pix_loss: bool) -> None:
    model, (imgs, mask) = SmallMAE(norm_pix_loss), batch()
    expected = model(imgs, mask)
    expected_gradients = gradients(model, expected[0])
    patched = patch_vit_mae(model)
    actual = model(imgs, mask)
    assert calls == [{"patch_size": 8, "norm_pix": norm_pix_loss}]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(model, actual[0]), expected_gradients, rtol=1e-4, atol=1e-6)
    patched.unpatch()
    patched.unpatch()
    torch.testing.assert_close(model(imgs, mask)[0], expected[0], rtol=0, atol=0)
    assert len(calls) == 1
    assert "forward_loss" not in model.__dict__


def test_only_this_instance_and_its_weights_stay(calls: list[dict]) -> None:
    model, other = SmallMAE(), SmallMAE()
    keys = list(model.state_dict())
    with patch_vit_mae(model):
        other(*batch())
        assert not calls
        assert list(model.state_dict()) == keys
        model.norm_pix_loss = True  # as a user may, later
        model(*batch())
        assert calls[-1]["norm_pix"] is True
    model(*batch())
    assert len(calls) == 1


def test_images_that_need_a_gradient_go_the_old_way(calls: list[dict]) -> None:
    model, (imgs, mask) = SmallMAE(), batch()
    pred = torch.rand(2, 16, 192)
    (expected,) = torch.autograd.grad(model.forward_loss(imgs.requires_grad_(), pred, mask), imgs)
    with patch_vit_mae(model):
        (actual,) = torch.autograd.grad(model.forward_loss(imgs, pred, mask), imgs)
    assert torch.equal(actual, expected)
    assert not calls


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("how", [copy.deepcopy, pickled, saved])
def test_a_copy_is_its_own(calls: list[dict], how) -> None:
    """An EMA of a patched model, say: its options are its own, and it stays patched where the original does not."""
    model, (imgs, mask) = SmallMAE(), batch()
    expected = SmallMAE(norm_pix_loss=True)
    expected.load_state_dict(model.state_dict())
    with patch_vit_mae(model):
        twin = how(model)
    twin.norm_pix_loss = True
    torch.testing.assert_close(twin(imgs, mask)[0], expected(imgs, mask)[0])
    assert calls == [{"patch_size": 8, "norm_pix": True}]
    pred = torch.rand(2, 16, 192)
    imgs.requires_grad_()
    assert torch.equal(twin.forward_loss(imgs, pred, mask), expected.forward_loss(imgs, pred, mask))
    with pytest.raises(UsageError, match="patched already"):
        patch_vit_mae(twin)
    del twin.forward_loss
    twin(imgs.detach(), mask)
    assert len(calls) == 1


def test_compiled_wrapper(calls: list[dict]) -> None:
    model, inputs = SmallMAE(), batch()
    wrapper = torch.compile(model, backend="eager")
    expected = wrapper(*inputs)[0]
    patched = patch_vit_mae(wrapper)
    assert patched.model is model
    for again in (wrapper, model):
        with pytest.raises(UsageError, match="SmallMAE is patched already"):
            patch_vit_mae(again)
    torch.testing.assert_close(wrapper(*inputs)[0], expected)
    assert len(calls) == 1
    patched.unpatch()
    assert "forward_loss" not in model.__dict__
    assert wrapper(*inputs)[0] == expected
    assert len(calls) == 1


def test_old_unpatch_leaves_a_newer_patch() -> None:
    model = SmallMAE()
    old = patch_vit_mae(model)
    old.unpatch()
    patch_vit_mae(model)
    old.unpatch()
    assert "forward_loss" in model.__dict__


def test_errors() -> None:
    with pytest.raises(UsageError, match=r"Linear: got a model without forward_loss\(imgs, pred, mask\)"):
        patch_vit_mae(nn.Linear(2, 2))
    model = SmallMAE()
    with patch_vit_mae(model), pytest.raises(UsageError, match=r"SmallMAE is patched already"):
        patch_vit_mae(model)
    with pytest.raises(UsageError, match=r"got patches of \(8, 4\), want square ones"):
        patch_vit_mae(SmallMAE(patch_size=(8, 4)))
    del model.patch_embed.patch_size
    with pytest.raises(UsageError, match=r"no patch size found"):
        patch_vit_mae(model)

    class ChannelsFirst(SmallMAE):
        def patchify(self, imgs: Tensor) -> Tensor:
            return nn.functional.unfold(imgs, 8, stride=8).transpose(1, 2)

    with pytest.raises(UsageError, match=r"ChannelsFirst: patchify does not order a patch's values"):
        patch_vit_mae(ChannelsFirst())

    class Picky(SmallMAE):
        def patchify(self, imgs: Tensor) -> Tensor:
            raise ValueError("224 only")

    with pytest.raises(UsageError, match=r"patchify refuses images of \(1, 3, 16, 16\) \(224 only\)"):
        patch_vit_mae(Picky())


def small_vit_mae(norm_pix_loss: bool = False) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=16, norm_pix_loss=norm_pix_loss, attn_implementation="eager",
    )  # fmt: skip
    return transformers.ViTMAEForPreTraining(config).train()


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("return_dict", [True, False])
def test_transformers(calls: list[dict], norm_pix_loss: bool, return_dict: bool) -> None:
    model = small_vit_mae(norm_pix_loss)
    twin, (images, _) = copy.deepcopy(model), batch()
    noise = torch.rand(2, 16)
    with patch_vit_mae(model) as patched:
        actual = model(images, noise=noise, return_dict=return_dict)
        assert calls == [{"patch_size": 8, "norm_pix": norm_pix_loss}]
        expected = twin(images, noise=noise, return_dict=return_dict)
        assert type(actual) is type(expected)
        keys = expected if return_dict else range(len(expected))
        torch.testing.assert_close([actual[key] for key in keys], [expected[key] for key in keys])
        ours, theirs = (gradients(m, out[0]) for m, out in ((model, actual), (twin, expected)))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert patched.model is model
    torch.testing.assert_close(model(images, noise=noise).loss, twin(images, noise=noise).loss, rtol=0, atol=0)
    assert len(calls) == 1


@pytest.mark.parametrize("how", [copy.deepcopy, pickled, saved])
def test_transformers_copy_is_its_own(calls: list[dict], how) -> None:
    model, (images, _), noise = small_vit_mae(), batch(), torch.rand(2, 16)
    plain = copy.deepcopy(model)
    patch_vit_mae(model)
    twin = how(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    expected = plain(images, noise=noise)
    torch.testing.assert_close(twin(images, noise=noise).loss, expected.loss)
    assert len(calls) == 1
    images.requires_grad_()
    torch.testing.assert_close(twin(images, noise=noise).logits, expected.logits)
    assert isinstance(twin(images, noise=noise, return_dict=False), tuple)
    assert len(calls) == 1


def test_transformers_compiled_wrapper(calls: list[dict]) -> None:
    model, (images, _), noise = small_vit_mae(), batch(), torch.rand(2, 16)
    wrapper = torch.compile(model, backend="eager")
    expected = wrapper(images, noise=noise).loss
    patched = patch_vit_mae(wrapper)
    assert patched.model is model
    with pytest.raises(UsageError, match="ViTMAEForPreTraining is patched already"):
        patch_vit_mae(wrapper)
    torch.testing.assert_close(wrapper(images, noise=noise).loss, expected)
    assert len(calls) == 1
    patched.unpatch()
    assert wrapper(images, noise=noise).loss == expected
    assert len(calls) == 1
