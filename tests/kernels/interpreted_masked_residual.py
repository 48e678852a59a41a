"""The Triton kernels in Triton's interpreter; test_interpreter.py runs this file with TRITON_INTERPRET=1.

float32 and float16 only: the interpreter's bfloat16 arithmetic is wrong.
"""

import os

import pytest
import torch
from fastdetect.kernels import masked_residual as kernels

from fastdetect.ops import reference

assert os.environ["TRITON_INTERPRET"] == "1"

# (B, C, H, W, P): P*P*C not a power of two, H != W; one channel; five channels; one patch, so that L = 1.
CASES = [
    ((2, 3, 8, 12, 4), torch.float32),
    ((1, 1, 6, 3, 3), torch.float16),
    ((2, 5, 10, 5, 5), torch.uint8),
    ((1, 3, 8, 8, 8), torch.float32),
]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


def images_of(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    images = torch.rand(shape)
    return (images * 255).to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_loss(shape: tuple[int, ...], dtype: torch.dtype, norm_pix: bool, mean: bool) -> None:
    b, c, h, w, p = shape
    images = images_of((b, c, h, w), dtype)
    mask = torch.rand(b, (h // p) * (w // p)) < 0.7
    mask[0, 0] = True
    pred = torch.randn(*mask.shape, p * p * c, requires_grad=True)
    expected = reference.masked_patch_loss(pred, images, mask, patch_size=p, norm_pix=norm_pix, reduction="none")
    total = mask.sum(dtype=torch.float32) if mean else None
    (expected_grad,) = torch.autograd.grad(expected.sum() / (total if mean else 1), pred)
    loss, grad = kernels.masked_patch_loss(pred.detach(), images, mask, total, p, norm_pix, True)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-6)
    again, none = kernels.masked_patch_loss(pred.detach(), images, mask, total, p, norm_pix, False)
    assert torch.equal(again, loss)
    assert none.numel() == 0


@pytest.mark.parametrize("mean", [False, True])
def test_the_gradient_of_float16_is_written_without_its_factors(mean: bool) -> None:
    """mask * (pred - t): 2 / (K * sum(mask)) is the backward's."""
    images, mask = torch.rand(2, 3, 8, 12), torch.rand(2, 6)
    pred = torch.randn(2, 6, 48).half()
    total = mask.sum(dtype=torch.float32) if mean else None
    _, grad = kernels.masked_patch_loss(pred, images, mask, total, 4, False, True)
    want = mask[..., None] * (pred.float() - reference.patchify(images, 4))
    torch.testing.assert_close(grad, want.half(), rtol=1e-3, atol=1e-6)


def test_empty_mask_and_strides() -> None:
    images = torch.rand(2, 8, 12, 3).permute(0, 3, 1, 2)
    pred = torch.randn(2, 7, 48)[:, 1:]
    mask = torch.zeros(2, 6)
    loss, grad = kernels.masked_patch_loss(pred, images, mask, mask.sum(), 4, False, True)
    assert (loss == 0).all()
    assert grad.isnan().all()
    weights = torch.rand(2, 6)
    loss, _ = kernels.masked_patch_loss(pred, images, weights, None, 4, False, True)
    expected = reference.masked_patch_loss(pred, images, weights, patch_size=4, norm_pix=False, reduction="none")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("passes", [1, 3])
def test_residual(shape: tuple[int, ...], dtype: torch.dtype, passes: int) -> None:
    b, c, h, w, p = shape
    images = images_of((b, c, h, w), dtype)
    patches = (h // p) * (w // p)
    assignment = torch.rand(passes, patches) < 0.5
    pred = torch.rand(b, passes, patches, p * p * c).transpose(0, 1)
    pred[~assignment[:, None].expand(-1, b, -1)] = torch.nan
    actual = kernels.patch_residual(pred, images, assignment, p, 4.0, 1.0)
    expected = reference.patch_residual(pred, images, assignment, patch_size=p, gain=4.0, clamp=1.0)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=2e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-7)


def test_residual_keeps_nan() -> None:
    pred = torch.rand(1, 1, 4, 12)
    pred[0, 0, 0, 0] = torch.nan
    residual, _ = kernels.patch_residual(pred, torch.rand(1, 3, 4, 4), torch.ones(1, 4, dtype=torch.bool), 2, 4.0, 1.0)
    assert residual.isnan().sum() == 1


@pytest.mark.parametrize("rows", [1, 7])
def test_scale_rows(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(kernels, "SCALE_BLOCK", 64)
    monkeypatch.setattr(kernels, "SCALE_PROGRAMS", 3)  # so that a program loops
    data, factor = torch.randn(rows, 50), torch.rand(rows)
    factor[0] = 1
    expected = data * factor[:, None]
    kernels.scale_rows(data, factor)
    assert torch.equal(data, expected)
    for value in (1.0, -2.5):
        expected = data * value
        kernels.scale_rows(data, torch.tensor(value))
        assert torch.equal(data, expected)


def test_empty_batch() -> None:
    loss, grad = kernels.masked_patch_loss(
        torch.zeros(0, 4, 12), torch.zeros(0, 3, 4, 4), torch.zeros(0, 4), None, 2, False, True
    )
    assert loss.shape == (0, 4)
    assert grad.shape == (0, 4, 12)
    kernels.scale_rows(grad, torch.ones(()))
