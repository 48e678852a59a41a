"""masked_patch_loss and patch_residual: argument checks, torch.library registration, choice of implementation."""

from typing import Any

import torch
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import reference
from fastdetect.ops.backend import batched, check_tensors, fused, is_integer

_INFINITY = float("inf")
_PRED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_IMAGE_DTYPES = (*_PRED_DTYPES, torch.uint8)


def masked_patch_loss(
    pred: Tensor,  # (B, L, P*P*C)
    images: Tensor,  # (B, C, H, W)
    mask: Tensor,  # (B, L)
    *,
    patch_size: int,
    norm_pix: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Mean squared error of the predicted patches over the removed ones: MAE's `forward_loss` [paper] in one pass.

    `e_bl = mean_k (pred_blk - t_blk)^2`, `loss = sum(e * mask) / sum(mask)`. The image is read in place (no
    patchified copy), only where the mask is not 0; the forward writes the gradient of `pred`. Accumulates in float32. A
    gradient of float16 is what the product of all factors rounds to: under the usual loss scaling none is lost.

    Args:
        pred: [B, L, P*P*C] float32, bfloat16, float16 or float64, L = (H/P)*(W/P), patch values in the order (row,
            column, channel). The only argument that receives a gradient (once: there is no double backward).
        images: [B, C, H, W], any strides; float in the range that pred lives in, or uint8, read as value / 255.
        mask: [B, L] bool or numeric, 1 = removed; other values are weights of the patches.
        patch_size: P, divides H and W.
        norm_pix: standardise each target patch, (t - mean) / sqrt(var + 1e-6) with the unbiased variance.
        reduction: "mean" over removed patches (NaN where none is, as MAE), "sum", or "none": e * mask, [B, L].

    Returns:
        The loss, a float32 scalar or [B, L] (float64 where an argument is).

    Raises:
        ShapeError: a shape, dtype or device does not fit.
        UsageError: an unknown reduction; a gradient is asked for images or mask.

    Example:
        >>> images, pred = torch.rand(2, 3, 32, 32), torch.zeros(2, 4, 768)
        >>> mask = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1]])
        >>> masked_patch_loss(pred, images, mask, patch_size=16).shape
        torch.Size([])
    """
    if reduction not in ("mean", "sum", "none"):
        raise UsageError(f"reduction: got {reduction!r}, want 'mean', 'sum' or 'none'")
    check_tensors(pred=pred, images=images, mask=mask)
    length, patches = _check_images(images, patch_size)
    _check("pred", pred, (images.shape[0], patches, length), _PRED_DTYPES, images)
    _check("mask", mask, (images.shape[0], patches), None, images)
    if norm_pix and length < 2:
        raise ShapeError("norm_pix: a patch of one value has no variance; use a larger patch_size or norm_pix=False")
    if torch.is_grad_enabled() and (images.requires_grad or mask.requires_grad):
        name = "images" if images.requires_grad else "mask"
        raise UsageError(
            f"masked_patch_loss has a gradient for pred only, but {name} requires one: pass {name}.detach()"
        )
    if not fused(pred, images, length):
        return reference.masked_patch_loss(
            pred, images, mask, patch_size=patch_size, norm_pix=norm_pix, reduction=reduction
        )
    need_grad = torch.is_grad_enabled() and pred.requires_grad
    return _masked_patch_loss(pred, images, mask, patch_size, norm_pix, reduction, need_grad)[0]


def patch_residual(
    pred: Tensor,  # (k, B, L, P*P*C)
    images: Tensor,  # (B, C, H, W)
    assignment: Tensor,  # (k, L)
    *,
    patch_size: int,
    gain: float = 4.0,
    clamp: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Residual image and per-patch scores of k stacked inpainting passes, in one pass over the image.

    Residual `clamp(gain * (x_hat - x))` [paper]; score `mean_k (x_hat - x)^2` [ours]; x_hat is the mean of the
    passes that predict the patch [ours]. Where no pass does, both are 0. For inference: no gradient.

    Args:
        pred: [k, B, L, P*P*C] float, patch values in the order (row, column, channel).
        images: [B, C, H, W], any strides; float in the range that pred lives in, or uint8, read as value / 255.
        assignment: [k, L] bool; [j, l]: pass j predicts patch l. The others' values are not read.
        patch_size: P, divides H and W.
        gain: factor on the difference, finite.
        clamp: bound of the residual's absolute value, > 0 (inf: unbounded).

    Returns:
        residual [B, C, H, W] of the images' dtype (float32 for uint8), scores [B, L] float32 (float64 where an
        argument is).

    Raises:
        ShapeError: a shape, dtype or device does not fit.
        UsageError: gain or clamp out of range; pred or images require a gradient.

    Example:
        >>> images, pred = torch.rand(2, 3, 32, 32), torch.zeros(1, 2, 4, 768)
        >>> residual, scores = patch_residual(pred, images, torch.ones(1, 4, dtype=torch.bool), patch_size=16)
        >>> residual.shape, scores.shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2, 4]))
    """
    if not -_INFINITY < gain < _INFINITY:
        raise UsageError(f"gain: got {gain}, want a finite number")
    if not clamp > 0:
        raise UsageError(f"clamp: got {clamp}, want more than 0")
    check_tensors(pred=pred, images=images, assignment=assignment)
    length, patches = _check_images(images, patch_size)
    if pred.dim() != 4 or pred.shape[0] == 0:
        raise ShapeError(f"pred: got shape {tuple(pred.shape)}, want [k, B, L, P*P*C] with k of at least 1")
    _check("pred", pred, (pred.shape[0], images.shape[0], patches, length), _PRED_DTYPES, images)
    _check("assignment", assignment, (pred.shape[0], patches), (torch.bool,), images)
    if torch.is_grad_enabled() and (pred.requires_grad or images.requires_grad):
        name = "pred" if pred.requires_grad else "images"
        raise UsageError(
            f"patch_residual has no gradient, but {name} requires one: call it under torch.no_grad() or pass "
            f"{name}.detach()"
        )
    if not fused(pred, images, length):
        return reference.patch_residual(pred, images, assignment, patch_size=patch_size, gain=gain, clamp=clamp)
    return _patch_residual(pred, images, assignment, patch_size, gain, clamp)


def _check_images(images: Tensor, patch_size: int) -> tuple[int, int]:
    """Values per patch P*P*C and patches per image L."""
    if images.dim() != 4 or images.shape[1] == 0:
        raise ShapeError(f"images: got shape {tuple(images.shape)}, want [B, C, H, W] with C of at least 1")
    if images.dtype not in _IMAGE_DTYPES:
        raise ShapeError(f"images: got {images.dtype}, want one of {_names(_IMAGE_DTYPES)}")
    _, channels, height, width = images.shape
    if not is_integer(patch_size):
        raise ShapeError(f"patch_size: got {patch_size!r}, want an integer")
    if patch_size < 1 or height % patch_size or width % patch_size or not height or not width:
        raise ShapeError(
            f"patch_size: got {patch_size} for images of {height}x{width}, want a positive divisor of both"
        )
    return patch_size * patch_size * channels, (height // patch_size) * (width // patch_size)


def _check(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] | None, images: Tensor
) -> None:
    if tuple(tensor.shape) != shape:
        raise ShapeError(
            f"{name}: got shape {tuple(tensor.shape)}, want {shape} for images of {tuple(images.shape)} "
            "(L = H/P * W/P patches of P*P*C values)"
        )
    if dtypes is not None and tensor.dtype not in dtypes:
        raise ShapeError(f"{name}: got {tensor.dtype}, want one of {_names(dtypes)}")
    if dtypes is None and tensor.is_complex():
        raise ShapeError(f"{name}: got {tensor.dtype}, want a boolean or real tensor")
    if tensor.device != images.device:
        raise ShapeError(f"{name}: got device {tensor.device}, want the images' {images.device}")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _rows(tensor: Tensor) -> Tensor:
    """The kernels take any strides but want stride 1 in the last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _reduce(loss: Tensor, mask: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.sum() / mask.sum(dtype=torch.float32) if reduction == "mean" else loss.sum()


@torch.library.custom_op("fastdetect::masked_patch_loss", mutates_args=(), device_types="cpu")
def _masked_patch_loss(
    pred: Tensor,
    images: Tensor,
    mask: Tensor,
    patch_size: int,
    norm_pix: bool,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    weight = mask.to(torch.float32).contiguous()
    loss, grad = torch.ops.fastdetect_cpu.masked_patch_loss(
        _rows(pred), images, weight, patch_size, norm_pix, reduction == "mean", need_grad
    )
    return _reduce(loss, weight, reduction), grad


@_masked_patch_loss.register_kernel("cuda")
def _(
    pred: Tensor,
    images: Tensor,
    mask: Tensor,
    patch_size: int,
    norm_pix: bool,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    from fastdetect.kernels.masked_residual import masked_patch_loss as launch

    total = mask.sum(dtype=torch.float32) if reduction == "mean" else None
    loss, grad = launch(_rows(pred), images, mask.contiguous(), total, patch_size, norm_pix, need_grad)
    return _reduce(loss, mask, reduction), grad


@_masked_patch_loss.register_fake
def _(
    pred: Tensor,
    images: Tensor,
    mask: Tensor,
    patch_size: int,
    norm_pix: bool,
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    shape = mask.shape if reduction == "none" else ()
    return mask.new_empty(shape, dtype=torch.float32), pred.new_empty(pred.shape if need_grad else (0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.reduction = inputs[5]
    ctx.save_for_backward(output[1], *inputs[2:3] * (output[1].dtype == torch.float16))


def _backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 7
    if torch.is_grad_enabled():
        raise UsageError(
            "masked_patch_loss has no double backward: drop create_graph=True or set FASTDETECT_BACKEND=reference"
        )
    grad, *mask = ctx.saved_tensors
    if mask:  # float16 holds mask * (pred - t), for 2 / (K * sum(mask)) is under its smallest numbers
        upstream = upstream * (2 / grad.shape[-1])
        upstream = upstream / mask[0].sum(dtype=torch.float32) if ctx.reduction == "mean" else upstream
    # In place where nobody sees the saved gradient again: not under retain_graph, not while a compiler traces, not for
    # many upstream gradients at once.
    once = type(grad) is Tensor and not torch._C._autograd._get_current_graph_task_keep_graph()
    if once and not batched(upstream):
        _scale_rows(grad, upstream.contiguous())
    else:
        grad = (grad * upstream[..., None]).to(grad.dtype)
    return grad, None, None, None, None, None, None


_masked_patch_loss.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("fastdetect::scale_rows", mutates_args=("data",), device_types="cpu")
def _scale_rows(data: Tensor, factor: Tensor) -> None:
    """Rows of data times factor (one, or one a row), in place; a factor of 1 costs no pass over the data."""
    torch.ops.fastdetect_cpu.scale_rows(data, factor)


@_scale_rows.register_kernel("cuda")
def _(data: Tensor, factor: Tensor) -> None:
    from fastdetect.kernels.masked_residual import scale_rows as launch

    launch(data, factor)


@_scale_rows.register_fake
def _(data: Tensor, factor: Tensor) -> None:
    return None


@torch.library.custom_op("fastdetect::patch_residual", mutates_args=(), device_types="cpu")
def _patch_residual(
    pred: Tensor, images: Tensor, assignment: Tensor, patch_size: int, gain: float, clamp: float
) -> tuple[Tensor, Tensor]:
    residual, scores = torch.ops.fastdetect_cpu.patch_residual(
        _rows(pred), images, assignment.contiguous(), patch_size, gain, clamp
    )
    return residual, scores


@_patch_residual.register_kernel("cuda")
def _(
    pred: Tensor, images: Tensor, assignment: Tensor, patch_size: int, gain: float, clamp: float
) -> tuple[Tensor, Tensor]:
    from fastdetect.kernels.masked_residual import patch_residual as launch

    return launch(_rows(pred), images, assignment.contiguous(), patch_size, gain, clamp)


@_patch_residual.register_fake
def _(
    pred: Tensor, images: Tensor, assignment: Tensor, patch_size: int, gain: float, clamp: float
) -> tuple[Tensor, Tensor]:
    dtype = images.dtype if images.is_floating_point() else torch.float32
    residual = images.new_empty(images.shape, dtype=dtype)
    return residual, images.new_empty((images.shape[0], pred.shape[2]), dtype=torch.float32)
