"""patch_residual: the reference against its definition in loops, the fused op against it, registration."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import patch_residual, reference

# (k, B, C, H, W, P): four passes; one pass; H != W and odd; one channel; 16 passes, P*P*C no power of 2.
SHAPES = [
    (4, 2, 3, 32, 32, 16),
    (1, 2, 3, 16, 24, 8),
    (3, 1, 3, 9, 15, 3),
    (2, 3, 1, 8, 4, 4),
    (16, 1, 5, 14, 21, 7),
]


def make(
    shape: tuple[int, ...], pred_dtype: torch.dtype, image_dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    k, b, c, h, w, p = shape
    patches = (h // p) * (w // p)
    images = torch.rand(b, c, h, w, device=device)
    images = (images * 255).to(torch.uint8) if image_dtype == torch.uint8 else images.to(image_dtype)
    assignment = torch.rand(k, patches, device=device) < 0.5
    assignment[:, 0] = True  # every pass
    assignment[:, -1] = False  # none
    pred = torch.rand(k, b, patches, p * p * c, device=device) + 0.1 * torch.randn(
        k, b, patches, p * p * c, device=device
    )
    return pred.to(pred_dtype), images, assignment


def by_definition(pred: Tensor, images: Tensor, assignment: Tensor, p: int, gain: float, clamp: float) -> tuple:
    k, b, _, _ = pred.shape
    _, c, h, w = images.shape
    residual, scores = torch.zeros_like(images), torch.zeros(b, (h // p) * (w // p), dtype=images.dtype)
    for n in range(b):
        for patch in range(scores.shape[1]):
            passes = [j for j in range(k) if assignment[j, patch]]
            if not passes:
                continue
            y, x = patch // (w // p) * p, patch % (w // p) * p
            block = torch.stack([pred[j, n, patch] for j in passes]).mean(0).reshape(p, p, c).permute(2, 0, 1)
            difference = block - images[n, :, y : y + p, x : x + p]
            residual[n, :, y : y + p, x : x + p] = (gain * difference).clamp(-clamp, clamp)
            scores[n, patch] = difference.square().mean()
    return residual, scores


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_the_definition(shape: tuple[int, ...]) -> None:
    args = make(shape, torch.float64, torch.float64)
    torch.testing.assert_close(
        patch_residual(*args, patch_size=shape[-1], gain=3.0, clamp=0.7),
        by_definition(*args, shape[-1], 3.0, 0.7),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clamp", [1.0, float("inf")])
def test_against_float64(device: str, shape: tuple[int, ...], clamp: float) -> None:
    pred, images, assignment = make(shape, torch.float32, torch.float32, device)
    options = {"patch_size": shape[-1], "gain": 4.0, "clamp": clamp}
    residual, scores = patch_residual(pred, images, assignment, **options)
    truth = reference.patch_residual(pred.double(), images.double(), assignment, **options)
    assert residual.dtype == scores.dtype == torch.float32
    assert (residual.double() - truth[0]).abs().max().item() < 3e-6  # gain 4, a few roundings of values below 2
    torch.testing.assert_close(scores.double(), truth[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("pred_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("image_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_dtypes(device: str, pred_dtype: torch.dtype, image_dtype: torch.dtype) -> None:
    pred, images, assignment = make((3, 2, 3, 16, 24, 8), pred_dtype, image_dtype, device)
    options = {"patch_size": 8, "gain": 4.0, "clamp": 1.0}
    residual, scores = patch_residual(pred, images, assignment, **options)
    truth = reference.patch_residual(pred.double(), reference.to_real(images, torch.float64), assignment, **options)
    assert residual.dtype == (torch.float32 if image_dtype == torch.uint8 else image_dtype)
    rounding = torch.finfo(residual.dtype).eps
    torch.testing.assert_close(residual.double(), truth[0], rtol=rounding, atol=2e-6)
    torch.testing.assert_close(scores.double(), truth[1], rtol=1e-5, atol=1e-8)


def test_all_patches_masked_once_is_gain_times_difference(device: str) -> None:
    images, image_hat = torch.rand(2, 2, 3, 16, 24, device=device).unbind()
    pred = reference.patchify(image_hat, 8)[None]
    residual, scores = patch_residual(pred, images, torch.ones(1, 6, dtype=torch.bool, device=device), patch_size=8)
    torch.testing.assert_close(residual, (4 * (image_hat - images)).clamp(-1, 1))
    torch.testing.assert_close(scores, reference.patchify(image_hat - images, 8).square().mean(-1))


def test_unpredicted_patches_are_zero_and_unread(device: str, nan_filled_memory: None) -> None:
    pred, images, assignment = make((4, 2, 3, 16, 24, 8), torch.float32, torch.float32, device)
    expected = reference.patch_residual(pred, images, assignment, patch_size=8, gain=4.0, clamp=1.0)
    pred[~assignment[:, None].expand(-1, 2, -1)] = torch.nan
    images[:, :, 8:, 16:] = torch.nan  # the last patch, which no pass predicts
    residual, scores = patch_residual(pred, images, assignment, patch_size=8)
    torch.testing.assert_close((residual, scores), expected)
    assert (residual[:, :, 8:, 16:] == 0).all()
    assert (scores[:, -1] == 0).all()


@pytest.mark.parametrize("fused", [True, False])
def test_non_finite_predictions_stay_visible(device: str, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    pred, images, _ = make((1, 1, 3, 16, 16, 8), torch.float32, torch.float32, device)
    pred[0, 0, 1, 7], pred[0, 0, 2, 0] = torch.nan, torch.inf
    residual, scores = patch_residual(pred, images, torch.ones(1, 4, dtype=torch.bool, device=device), patch_size=8)
    assert residual.isnan().sum() == 1
    assert residual[0, 0, 8, 0] == 1
    assert scores[0, 1].isnan()
    assert scores[0, 2] == torch.inf


def test_non_contiguous(device: str) -> None:
    pred, images, assignment = make((4, 2, 3, 16, 24, 8), torch.float32, torch.float32, device)
    expected = patch_residual(pred, images, assignment, patch_size=8)
    folded = pred.transpose(0, 1).contiguous().transpose(0, 1)  # passes folded behind the batch
    inner = pred.transpose(2, 3).contiguous().transpose(2, 3)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    spread = assignment.t().contiguous().t()
    for p in (folded, inner):
        assert not p.is_contiguous()
        actual = patch_residual(p, channels_last, spread, patch_size=8)
        torch.testing.assert_close(actual, expected)
        assert actual[0].is_contiguous()


@settings(max_examples=50, deadline=None)
@given(
    k=st.integers(1, 5),
    batch=st.integers(0, 2),
    channels=st.integers(1, 4),
    rows=st.integers(1, 4),
    cols=st.integers(1, 4),
    patch=st.integers(1, 9),
    gain=st.floats(-8, 8, width=32),
    clamp=st.sampled_from([0.5, 1.0, float("inf")]),
)
def test_any_shape(
    k: int, batch: int, channels: int, rows: int, cols: int, patch: int, gain: float, clamp: float
) -> None:
    images = torch.rand(batch, channels, rows * patch, cols * patch)
    pred = torch.randn(k, batch, rows * cols, patch * patch * channels)
    assignment = torch.rand(k, rows * cols) < 0.5
    options = {"patch_size": patch, "gain": gain, "clamp": clamp}
    torch.testing.assert_close(
        patch_residual(pred, images, assignment, **options),
        reference.patch_residual(pred, images, assignment, **options),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("image_dtype", [torch.float32, torch.uint8])
def test_opcheck(device: str, image_dtype: torch.dtype) -> None:
    pred, images, assignment = make((3, 2, 3, 16, 24, 8), torch.float32, image_dtype, device)
    torch.library.opcheck(torch.ops.fastdetect.patch_residual.default, (pred, images, assignment, 8, 4.0, 1.0))


class Residual(torch.nn.Module):
    def forward(self, pred: Tensor, images: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
        residual, scores = patch_residual(pred.sigmoid(), images, assignment, patch_size=8)
        return residual * 2, scores


def test_compile_and_export(device: str) -> None:
    module, compiled = Residual(), torch.compile(Residual(), fullgraph=True, dynamic=True)
    for k, batch, width in ((4, 2, 24), (3, 3, 40)):
        args = make((k, batch, 3, 16, width, 8), torch.float32, torch.float32, device)
        torch.testing.assert_close(compiled(*args), module(*args))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, args, dynamic_shapes=({1: batch}, {0: batch}, None))
    torch.testing.assert_close(program.module()(*args), module(*args))


def good() -> dict:
    pred, images, assignment = make((4, 2, 3, 16, 24, 8), torch.float32, torch.float32)
    return {"pred": pred, "images": images, "assignment": assignment, "patch_size": 8}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gain": float("nan")}, UsageError, r"gain: got nan, want a finite number"),
        ({"gain": float("inf")}, UsageError, r"gain: got inf, want a finite number"),
        ({"clamp": 0.0}, UsageError, r"clamp: got 0.0, want more than 0"),
        ({"clamp": float("nan")}, UsageError, r"clamp: got nan"),
        ({"images": torch.rand(3, 16, 24)}, ShapeError, r"images: got shape \(3, 16, 24\)"),
        ({"images": None}, ShapeError, r"images: got NoneType, want a torch.Tensor"),
        ({"patch_size": 7}, ShapeError, r"patch_size: got 7 for images of 16x24"),
        (
            {"pred": torch.rand(2, 6, 192)},
            ShapeError,
            r"pred: got shape \(2, 6, 192\), want \[k, B, L, P\*P\*C\]",
        ),
        ({"pred": torch.rand(0, 2, 6, 192)}, ShapeError, r"with k of at least 1"),
        (
            {"pred": torch.rand(4, 2, 6, 100)},
            ShapeError,
            r"want \(4, 2, 6, 192\) for images of \(2, 3, 16, 24\)",
        ),
        (
            {"assignment": torch.ones(4, 5, dtype=torch.bool)},
            ShapeError,
            r"assignment: got shape \(4, 5\), want \(4, 6\)",
        ),
        ({"assignment": torch.ones(4, 6)}, ShapeError, r"assignment: got torch.float32, want one of bool"),
        ({"assignment": torch.ones(4, 6, dtype=torch.bool, device="meta")}, ShapeError, r"got device meta"),
        (
            {"pred": torch.rand(4, 2, 6, 192, requires_grad=True)},
            UsageError,
            r"no gradient, but pred requires one",
        ),
        (
            {"images": torch.rand(2, 3, 16, 24, requires_grad=True)},
            UsageError,
            r"no gradient, but images requires one",
        ),
    ],
)
def test_errors(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        patch_residual(**(good() | change))


def test_no_grad_lifts_the_gradient_error() -> None:
    args = good()
    args["pred"].requires_grad_()
    with torch.no_grad():
        residual, _ = patch_residual(**args)
    assert not residual.requires_grad
