"""masked_patch_loss: the reference against MAE's formula, the fused op against it, its registration."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import masked_patch_loss, reference

# (B, C, H, W, P): MAE's own; H != W; one channel, odd; P*P*C not a power of two; one patch; P = 1.
SHAPES = [
    (2, 3, 64, 64, 16),
    (2, 3, 16, 40, 8),
    (3, 1, 9, 15, 3),
    (1, 5, 14, 21, 7),
    (1, 3, 8, 8, 8),
    (2, 2, 3, 5, 1),
]
REDUCTIONS = ["mean", "sum", "none"]


def mae_forward_loss(pred: Tensor, images: Tensor, mask: Tensor, p: int, norm_pix: bool) -> Tensor:
    """MAE's patchify and forward_loss, for square images of three channels, as published."""
    h = w = images.shape[2] // p
    x = images.reshape(images.shape[0], 3, h, p, w, p)
    target = torch.einsum("nchpwq->nhwpqc", x).reshape(images.shape[0], h * w, p**2 * 3)
    if norm_pix:
        mean = target.mean(dim=-1, keepdim=True)
        var = target.var(dim=-1, keepdim=True)
        target = (target - mean) / (var + 1.0e-6) ** 0.5
    loss = ((pred - target) ** 2).mean(dim=-1)
    return (loss * mask).sum() / mask.sum()


def make(
    shape: tuple[int, ...], pred_dtype: torch.dtype, image_dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    b, c, h, w, p = shape
    patches, length = (h // p) * (w // p), p * p * c
    images = torch.rand(b, c, h, w, device=device)
    images = (images * 255).to(torch.uint8) if image_dtype == torch.uint8 else images.to(image_dtype)
    mask = torch.rand(b, patches, device=device) < 0.75
    mask[0, 0] = True
    return torch.randn(b, patches, length, device=device).to(pred_dtype), images, mask


def with_grad(function, pred: Tensor, *args, upstream: Tensor | None = None, **kwargs) -> tuple[Tensor, Tensor]:
    pred = pred.detach().clone().requires_grad_()
    loss = function(pred, *args, **kwargs)
    (grad,) = torch.autograd.grad(loss, pred, torch.ones_like(loss) if upstream is None else upstream)
    return loss.detach(), grad


def eager(pred: Tensor, images: Tensor, mask: Tensor, **kwargs) -> Tensor:
    """Plain torch in the prediction's own dtype: what a user would write, whose rounding is the yardstick."""
    images = reference.to_real(images, pred.dtype)
    target = reference.patchify(images, kwargs["patch_size"])
    if kwargs["norm_pix"]:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (pred - target).square().mean(-1) * mask
    return {"none": error, "sum": error.sum(), "mean": error.sum() / mask.sum()}[kwargs["reduction"]]


def assert_as_good_as_eager(ours: Tensor, plain: Tensor, truth: Tensor) -> None:
    """Error at most three times that of plain torch in the same dtype, plus one rounding."""
    scale = truth.abs().max().item()
    allowed = 3 * (plain.double() - truth).abs().max().item() + 4e-7 * scale
    assert (ours.double() - truth).abs().max().item() <= allowed


@pytest.mark.parametrize("norm_pix", [False, True])
def test_reference_is_mae(norm_pix: bool) -> None:
    pred, images, mask = make((2, 3, 64, 64, 16), torch.float64, torch.float64)
    ours = with_grad(
        reference.masked_patch_loss, pred, images, mask, patch_size=16, norm_pix=norm_pix, reduction="mean"
    )
    theirs = with_grad(mae_forward_loss, pred, images, mask, 16, norm_pix)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("norm_pix", [False, True])
def test_gradcheck_of_reference(norm_pix: bool, reduction: str) -> None:
    pred, images, mask = make((2, 2, 6, 9, 3), torch.float64, torch.float64)
    assert torch.autograd.gradcheck(
        lambda p: masked_patch_loss(p, images, mask, patch_size=3, norm_pix=norm_pix, reduction=reduction),
        pred.requires_grad_(),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_against_float64(device: str, shape: tuple[int, ...], norm_pix: bool, reduction: str) -> None:
    pred, images, mask = make(shape, torch.float32, torch.float32, device)
    options = {"patch_size": shape[-1], "norm_pix": norm_pix, "reduction": reduction}
    upstream = torch.randn(mask.shape if reduction == "none" else (), device=device)
    ours = with_grad(masked_patch_loss, pred, images, mask, upstream=upstream, **options)
    plain = with_grad(eager, pred, images, mask, upstream=upstream, **options)
    truth = with_grad(
        reference.masked_patch_loss,
        pred.double(),
        images.double(),
        mask,
        upstream=upstream.double(),
        **options,
    )
    assert ours[0].dtype == torch.float32
    for a, b, c in zip(ours, plain, truth, strict=True):
        assert_as_good_as_eager(a, b, c)


@pytest.mark.parametrize("pred_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("image_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("norm_pix", [False, True])
def test_dtypes(device: str, pred_dtype: torch.dtype, image_dtype: torch.dtype, norm_pix: bool) -> None:
    pred, images, mask = make((2, 3, 16, 24, 8), pred_dtype, image_dtype, device)
    options = {"patch_size": 8, "norm_pix": norm_pix, "reduction": "mean"}
    loss, grad = with_grad(masked_patch_loss, pred, images, mask, **options)
    real = reference.to_real(images, torch.float64)
    true_loss, true_grad = with_grad(reference.masked_patch_loss, pred.double(), real, mask, **options)
    assert loss.dtype == torch.float32
    assert grad.dtype == pred_dtype
    torch.testing.assert_close(loss.double(), true_loss, rtol=2e-6, atol=0)
    info = torch.finfo(pred_dtype)  # the gradient is computed in float32 and rounded once, to a subnormal too
    atol = 1e-6 * true_grad.abs().max().item() + info.tiny * info.eps
    torch.testing.assert_close(grad.double(), true_grad, rtol=info.eps, atol=atol)


def test_float16_range(device: str) -> None:
    """Small float16 gradients are subnormal, not zero; large ones are infinite, as a cast makes them."""
    pred = torch.full((1, 1, 4), 1.0, dtype=torch.float16, device=device)
    images, mask = torch.zeros(1, 1, 2, 2, device=device), torch.ones(1, 1, device=device)
    for factor in (1e-6, 1e6):
        upstream = torch.tensor(factor, device=device)
        _, grad = with_grad(masked_patch_loss, pred, images, mask, upstream=upstream, patch_size=2)
        assert grad.flatten()[0].item() == pytest.approx(float(torch.tensor(0.5 * factor).half()), rel=1e-3)


@pytest.mark.parametrize("near", [1.0, 0.02])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("keep_graph", [False, True])
def test_float16_gradients_survive_under_loss_scaling(
    device: str, reduction: str, near: float, keep_graph: bool
) -> None:
    """2 / (K * sum(mask)) alone is a subnormal number of float16 at this size: the product with the scale is not."""
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(16, 3, 224, 224, generator=rng).to(device)
    mask = (torch.rand(16, 196, generator=rng) < 0.75).to(device)
    target = reference.patchify(images, 16)
    pred = (target + near * torch.randn(target.shape, generator=rng).to(device)).half().requires_grad_()
    scale = 65536.0 if reduction == "mean" else 8.0
    exact = pred.detach().double().requires_grad_()
    grads = []
    for some, function in ((pred, masked_patch_loss), (exact, reference.masked_patch_loss)):
        loss = function(some, images, mask, patch_size=16, norm_pix=False, reduction=reduction)
        upstream = torch.full_like(loss, scale)
        grads.append(torch.autograd.grad(loss, some, upstream, retain_graph=keep_graph)[0].double())
    got, want = grads
    assert ((got - want).norm() / want.norm()).item() < 2e-3
    assert torch.equal(got == 0, want == 0) or (got == 0).float().mean() < (want == 0).float().mean() + 1e-3


def test_a_patch_size_that_is_no_integer_is_refused(device: str) -> None:
    with pytest.raises(ShapeError, match=r"patch_size: got 2\.0, want an integer"):
        masked_patch_loss(
            torch.zeros(1, 1, 4, device=device), torch.zeros(1, 1, 2, 2, device=device),
            torch.ones(1, 1, device=device), patch_size=2.0,
        )  # fmt: skip


def test_constant_patches_with_norm_pix(device: str) -> None:
    """No variance: the target is 0 (0 / sqrt(1e-6)), not NaN."""
    pred, _, mask = make((2, 3, 16, 16, 8), torch.float32, torch.float32, device)
    images = torch.full((2, 3, 16, 16), 0.25, device=device)
    loss = masked_patch_loss(pred, images, mask, patch_size=8, norm_pix=True, reduction="none")
    torch.testing.assert_close(loss, pred.square().mean(-1) * mask)


def test_unbiased_variance(device: str) -> None:
    images = torch.tensor([[[[0.0, 1.0]]]], device=device).repeat(1, 1, 2, 1)  # one patch: 0 1 0 1
    pred, mask = torch.zeros(1, 1, 4, device=device), torch.ones(1, 1, device=device)
    loss = masked_patch_loss(pred, images, mask, patch_size=2, norm_pix=True)
    assert loss.item() == pytest.approx(0.25 / (1 / 3), rel=1e-4)  # the biased variance would give 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("fused", [True, False])
def test_empty_mask(device: str, monkeypatch: pytest.MonkeyPatch, reduction: str, fused: bool) -> None:
    """The mean over no patch is NaN, and so is its gradient, as in MAE; a sum over none is 0."""
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    pred, images, mask = make((2, 3, 16, 16, 8), torch.float32, torch.float32, device)
    loss, grad = with_grad(masked_patch_loss, pred, images, mask & False, patch_size=8, reduction=reduction)
    assert loss.isnan().all() if reduction == "mean" else (loss == 0).all()
    assert grad.isnan().all() if reduction == "mean" else (grad == 0).all()


@pytest.mark.parametrize("fused", [True, False])
def test_only_removed_patches_are_looked_at(device: str, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    pred, images, _ = make((1, 3, 16, 16, 8), torch.float32, torch.float32, device)
    mask = torch.tensor([[1, 0, 1, 0]], device=device)
    expected = with_grad(masked_patch_loss, pred, images, mask, patch_size=8)
    pred[:, 1] = torch.nan
    images[:, :, 8:, 8:] = torch.inf
    torch.testing.assert_close(with_grad(masked_patch_loss, pred, images, mask, patch_size=8), expected)
    pred[:, 0, 5] = torch.nan
    loss, grad = with_grad(masked_patch_loss, pred, images, mask, patch_size=8)
    assert loss.isnan()
    assert grad.isnan().nonzero().tolist() == [[0, 0, 5]]


def test_mask_dtypes_and_weights(device: str) -> None:
    pred, images, mask = make((2, 3, 16, 24, 8), torch.float32, torch.float32, device)
    expected = masked_patch_loss(pred, images, mask, patch_size=8)
    for dtype in (torch.int64, torch.uint8, torch.float32, torch.float16, torch.float64):
        torch.testing.assert_close(masked_patch_loss(pred, images, mask.to(dtype), patch_size=8), expected)
    weights = torch.rand(mask.shape, device=device)
    torch.testing.assert_close(
        with_grad(masked_patch_loss, pred, images, weights, patch_size=8),
        with_grad(reference.masked_patch_loss, pred, images, weights, patch_size=8, norm_pix=False, reduction="mean"),
    )


def test_non_contiguous(device: str) -> None:
    pred, images, mask = make((4, 3, 16, 24, 8), torch.float32, torch.float32, device)
    expected = with_grad(masked_patch_loss, pred, images, mask, patch_size=8)
    layouts = {
        "channels_last": images.contiguous(memory_format=torch.channels_last),
        "transposed": images.transpose(2, 3).contiguous().transpose(2, 3),
        "window": torch.nn.functional.pad(images, (3, 2, 1, 4))[:, :, 1:-4, 3:-2],
    }
    strided = torch.nn.functional.pad(pred, (0, 1))[..., :-1]  # as a view that drops the class token has
    expanded = mask[:1].expand(4, -1)
    for name, view in layouts.items():
        assert not view.is_contiguous(), name
        assert not strided.is_contiguous()
        torch.testing.assert_close(with_grad(masked_patch_loss, strided, view, mask, patch_size=8), expected)
    inner = pred.transpose(1, 2).contiguous().transpose(1, 2)
    assert inner.stride(-1) != 1
    torch.testing.assert_close(masked_patch_loss(inner, images, mask, patch_size=8), expected[0])
    torch.testing.assert_close(
        masked_patch_loss(pred, images, expanded, patch_size=8),
        masked_patch_loss(pred, images, expanded.contiguous(), patch_size=8),
    )


def test_class_token_dropped(device: str) -> None:
    """pred as MAE makes it: a view of [B, 1 + L, K]; the gradient must reach the parent."""
    parent = torch.randn(2, 7, 192, device=device, requires_grad=True)
    _, images, mask = make((2, 3, 16, 24, 8), torch.float32, torch.float32, device)
    (ours,) = torch.autograd.grad(masked_patch_loss(parent[:, 1:], images, mask, patch_size=8), parent)
    loss = reference.masked_patch_loss(parent[:, 1:], images, mask, patch_size=8, norm_pix=False, reduction="mean")
    torch.testing.assert_close(ours, torch.autograd.grad(loss, parent)[0])


@pytest.mark.parametrize("need_grad", [True, False])
def test_every_element_is_written(device: str, nan_filled_memory: None, need_grad: bool) -> None:
    pred, images, mask = make((3, 3, 24, 16, 8), torch.float32, torch.float32, device)
    pred.requires_grad_(need_grad)
    loss = masked_patch_loss(pred, images, mask, patch_size=8, reduction="none")
    assert loss.isfinite().all()
    if need_grad:
        loss.sum().backward()
        assert pred.grad.isfinite().all()
        assert (pred.grad[~mask] == 0).all()


def test_empty_batch(device: str) -> None:
    pred = torch.zeros(0, 4, 192, device=device, requires_grad=True)
    images, mask = torch.zeros(0, 3, 16, 16, device=device), torch.zeros(0, 4, device=device)
    assert masked_patch_loss(pred, images, mask, patch_size=8, reduction="none").shape == (0, 4)
    assert masked_patch_loss(pred, images, mask, patch_size=8).isnan()


def test_backward_twice(device: str) -> None:
    """A retained graph gives fresh gradients; the first one handed out does not change under the second."""
    pred, images, mask = make((2, 3, 16, 16, 8), torch.float32, torch.float32, device)
    pred.requires_grad_()
    loss = masked_patch_loss(pred, images, mask, patch_size=8)
    (once,) = torch.autograd.grad(loss, pred, retain_graph=True)
    kept = once.clone()
    (tripled,) = torch.autograd.grad(loss, pred, torch.tensor(3.0, device=device))
    assert torch.equal(once, kept)
    torch.testing.assert_close(tripled, 3 * kept)


def test_many_upstream_gradients_at_once(device: str) -> None:
    """As torch.autograd.functional.jacobian(vectorize=True) asks for, without a graph that is retained."""
    pred, images, mask = make((2, 3, 16, 16, 8), torch.float32, torch.float32, device)
    pred.requires_grad_()
    options = {"patch_size": 8, "reduction": "none"}
    basis = torch.eye(8, device=device).view(8, 2, 4)
    loss = masked_patch_loss(pred, images, mask, **options)
    want = [torch.autograd.grad(loss, pred, one, retain_graph=True)[0] for one in basis]
    (got,) = torch.autograd.grad(loss, pred, basis, is_grads_batched=True)
    torch.testing.assert_close(got, torch.stack(want))


def test_gradients_of_two_losses_add(device: str) -> None:
    pred, images, mask = make((2, 3, 16, 16, 8), torch.float32, torch.float32, device)
    pred.requires_grad_()
    (
        masked_patch_loss(pred, images, mask, patch_size=8) + 2 * masked_patch_loss(pred, images, ~mask, patch_size=8)
    ).backward()
    single = [with_grad(masked_patch_loss, pred, images, m, patch_size=8)[1] for m in (mask, ~mask)]
    torch.testing.assert_close(pred.grad, single[0] + 2 * single[1])


def test_deterministic(device: str) -> None:
    args = make((8, 3, 64, 64, 16), torch.float32, torch.float32, device)
    first = with_grad(masked_patch_loss, *args, patch_size=16)
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        again = with_grad(masked_patch_loss, *args, patch_size=16)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.set_num_threads(threads)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    channels=st.integers(1, 5),
    rows=st.integers(1, 4),
    cols=st.integers(1, 4),
    patch=st.integers(2, 9),
    norm_pix=st.booleans(),
    reduction=st.sampled_from(REDUCTIONS),
    image_dtype=st.sampled_from([torch.float32, torch.uint8, torch.bfloat16]),
)
def test_any_shape(
    batch: int,
    channels: int,
    rows: int,
    cols: int,
    patch: int,
    norm_pix: bool,
    reduction: str,
    image_dtype: torch.dtype,
) -> None:
    images = (torch.rand(batch, channels, rows * patch, cols * patch) * 255).to(image_dtype)
    pred = torch.randn(batch, rows * cols, patch * patch * channels)
    mask = torch.rand(batch, rows * cols) < 0.6
    options = {"patch_size": patch, "norm_pix": norm_pix, "reduction": reduction}
    ours = with_grad(masked_patch_loss, pred, images, mask, **options)
    truth = with_grad(reference.masked_patch_loss, pred, images, mask, **options)
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device: str, dtype: torch.dtype, reduction: str, need_grad: bool) -> None:
    pred, images, mask = make((2, 3, 16, 24, 8), dtype, torch.float32, device)
    op = torch.ops.fastdetect.masked_patch_loss.default
    torch.library.opcheck(op, (pred.requires_grad_(need_grad), images, mask, 8, True, reduction, need_grad))


@pytest.mark.parametrize("factor_shape", [(), (2, 6)])
def test_opcheck_scale_rows(device: str, factor_shape: tuple[int, ...]) -> None:
    data, factor = torch.randn(2, 6, 10, device=device), torch.randn(factor_shape, device=device)
    torch.library.opcheck(torch.ops.fastdetect.scale_rows.default, (data, factor))


class Head(torch.nn.Module):
    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.linear = torch.nn.Linear(12, 3 * patch_size**2)

    def forward(self, tokens: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        pred = self.linear(tokens)
        return 2 * masked_patch_loss(pred, images, mask, patch_size=self.patch_size, norm_pix=True)


def test_compile_fullgraph_dynamic(device: str) -> None:
    head = Head(8).to(device)
    compiled = torch.compile(head, fullgraph=True, dynamic=True)
    for batch, width in ((2, 24), (3, 40)):
        images, mask = (
            torch.rand(batch, 3, 16, width, device=device),
            torch.ones(batch, width // 4, device=device),
        )
        tokens = torch.randn(batch, width // 4, 12, device=device)
        expected = torch.autograd.grad(head(tokens, images, mask), head.linear.weight)
        torch.testing.assert_close(torch.autograd.grad(compiled(tokens, images, mask), head.linear.weight), expected)


def test_export(device: str) -> None:
    head = Head(8).to(device)
    args = (
        torch.randn(2, 6, 12, device=device),
        torch.rand(2, 3, 16, 24, device=device),
        torch.ones(2, 6, device=device),
    )
    batch = {0: torch.export.Dim("batch", min=2)}
    program = torch.export.export(head, args, dynamic_shapes=(batch, batch, batch))
    assert any("fastdetect.masked_patch_loss" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*args), head(*args))


def test_autocast(device: str) -> None:
    head = Head(8).to(device)
    images, mask = torch.rand(2, 3, 16, 24, device=device), torch.ones(2, 6, device=device)
    with torch.autocast(device, torch.bfloat16):
        loss = head(torch.randn(2, 6, 12, device=device), images, mask)
    assert loss.dtype == torch.float32
    loss.backward()
    assert head.linear.weight.grad.isfinite().all()


def good() -> dict:
    pred, images, mask = make((2, 3, 16, 24, 8), torch.float32, torch.float32)
    return {"pred": pred, "images": images, "mask": mask, "patch_size": 8}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reduction": "avg"}, UsageError, r"reduction: got 'avg', want 'mean', 'sum' or 'none'"),
        (
            {"images": torch.rand(3, 16, 24)},
            ShapeError,
            r"images: got shape \(3, 16, 24\), want \[B, C, H, W\]",
        ),
        ({"images": torch.rand(2, 0, 16, 24)}, ShapeError, r"with C of at least 1"),
        (
            {"images": torch.zeros(2, 3, 16, 24, dtype=torch.int32)},
            ShapeError,
            r"images: got torch.int32, want one of",
        ),
        ({"mask": None}, ShapeError, r"mask: got NoneType, want a torch.Tensor"),
        ({"images": [[0.0]]}, ShapeError, r"images: got list, want a torch.Tensor"),
        ({"patch_size": 5}, ShapeError, r"patch_size: got 5 for images of 16x24, want a positive divisor"),
        ({"patch_size": 0}, ShapeError, r"patch_size: got 0"),
        ({"images": torch.rand(2, 3, 0, 24)}, ShapeError, r"images of 0x24"),
        ({"pred": torch.rand(2, 6, 191)}, ShapeError, r"pred: got shape \(2, 6, 191\), want \(2, 6, 192\)"),
        (
            {"pred": torch.zeros(2, 6, 192, dtype=torch.int64)},
            ShapeError,
            r"pred: got torch.int64, want one of float32",
        ),
        (
            {"pred": torch.rand(2, 6, 192, device="meta")},
            ShapeError,
            r"pred: got device meta, want the images' cpu",
        ),
        ({"mask": torch.rand(6)}, ShapeError, r"mask: got shape \(6,\), want \(2, 6\)"),
        (
            {"mask": torch.zeros(2, 6, dtype=torch.complex64)},
            ShapeError,
            r"mask: got torch.complex64, want a boolean",
        ),
        (
            {"images": torch.rand(2, 3, 16, 24, requires_grad=True)},
            UsageError,
            r"images requires one: pass images.detach",
        ),
        ({"mask": torch.rand(2, 6, requires_grad=True)}, UsageError, r"mask requires one: pass mask.detach"),
    ],
)
def test_errors(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        masked_patch_loss(**(good() | change))


def test_error_norm_pix_of_one_value() -> None:
    with pytest.raises(ShapeError, match="a patch of one value has no variance"):
        masked_patch_loss(torch.rand(1, 4, 1), torch.rand(1, 1, 2, 2), torch.ones(1, 4), patch_size=1, norm_pix=True)


def test_error_double_backward() -> None:
    args = good()
    args["pred"].requires_grad_()
    with pytest.raises(UsageError, match="no double backward"):
        torch.autograd.grad(masked_patch_loss(**args), args["pred"], create_graph=True)
