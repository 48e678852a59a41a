"""Triton kernels of masked_patch_loss and patch_residual: one program per patch, the image read in place.

A program holds one patch (K = P*P*C values, BLOCK = next power of two) in registers: norm_pix needs no second
read. Bytes per value at fp32 image, bf16 prediction: 4 + 2 read, 2 written; a patch that is not removed
costs only the zeros of its gradient. See docs/kernels.md.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

SCALE_BLOCK = 4096
SCALE_PROGRAMS = 1024  # about 8 a multiprocessor: enough to fill it, few enough that a factor of 1 costs one launch


def num_warps(block: int) -> int:
    """8 values a thread (one 16-byte load of bf16) up to 8 warps, 32 at most (BLOCK 8192)."""
    return max(1, min(8, block // 256))


@triton.jit
def _image_offsets(k, patch, grid_cols, sc, sh, sw, P: tl.constexpr, C: tl.constexpr):
    """Element offsets, within one image, of the channel-last values k of a patch."""
    pixel = k // C
    y = (patch // grid_cols) * P + pixel // P
    x = (patch % grid_cols) * P + pixel % P
    return (k % C).to(tl.int64) * sc + y.to(tl.int64) * sh + x.to(tl.int64) * sw


@triton.jit
def masked_patch_loss_kernel(
    pred,  # (B, L, K), strides (pred_sb, pred_sl, 1)
    images,  # (B, C, H, W), any strides
    mask,  # (B, L) contiguous, bool or numeric
    total,  # () float32: sum of the mask; read only for MEAN
    loss,  # (B, L) float32: mask * e
    grad,  # (B, L, K) contiguous; written only for GRAD
    pred_sb,
    pred_sl,
    image_sb,
    image_sc,
    image_sh,
    image_sw,
    patches,
    grid_cols,
    P: tl.constexpr,
    C: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / 255 for uint8 images
    NORM: tl.constexpr,
    MEAN: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    K: tl.constexpr = P * P * C
    row = tl.program_id(0).to(tl.int64)
    b = row // patches
    patch = (row % patches).to(tl.int32)
    k = tl.arange(0, BLOCK)
    inside = k < K
    weight = tl.load(mask + row).to(tl.float32)
    scale = 1.0
    if grad.dtype.element_ty == tl.float16:
        scale = K / 2.0  # mask * (pred - t): the backward has the rest, which float16 would round to 0
    elif MEAN:
        scale = 1.0 / tl.load(total)  # inf where no patch is removed: the gradient is NaN, as the loss
    if weight == 0.0:
        tl.store(loss + row, 0.0)
        if GRAD:
            zero = tl.zeros([BLOCK], tl.float32) * scale
            tl.store(grad + row * K + k, zero.to(grad.dtype.element_ty), mask=inside)
    else:
        offsets = _image_offsets(k, patch, grid_cols, image_sc, image_sh, image_sw, P, C)
        target = tl.load(images + b * image_sb + offsets, mask=inside, other=0).to(tl.float32) * SCALE
        if NORM:
            mean = tl.sum(target, axis=0) / K
            target = tl.where(inside, target - mean, 0.0)
            target = target / tl.sqrt(tl.sum(target * target, axis=0) / (K - 1) + 1e-6)
        value = tl.load(pred + b * pred_sb + patch.to(tl.int64) * pred_sl + k, mask=inside, other=0).to(tl.float32)
        difference = value - target  # 0 outside
        tl.store(loss + row, weight * (tl.sum(difference * difference, axis=0) / K))
        if GRAD:
            d = difference * (2.0 / K * weight * scale)
            tl.store(grad + row * K + k, d.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def patch_residual_kernel(
    pred,  # (k, B, L, K), strides (pred_sk, pred_sb, pred_sl, 1)
    images,  # (B, C, H, W), any strides
    assignment,  # (k, L) contiguous bool
    residual,  # (B, C, H, W) contiguous
    scores,  # (B, L) float32
    pred_sk,
    pred_sb,
    pred_sl,
    image_sb,
    image_sc,
    image_sh,
    image_sw,
    residual_sb,
    residual_sc,
    residual_sh,
    patches,
    grid_cols,
    passes,
    gain,
    clamp,
    P: tl.constexpr,
    C: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    K: tl.constexpr = P * P * C
    row = tl.program_id(0).to(tl.int64)
    b = row // patches
    patch = (row % patches).to(tl.int32)
    k = tl.arange(0, BLOCK)
    inside = k < K
    base = pred + b * pred_sb + patch.to(tl.int64) * pred_sl + k
    total = tl.zeros([BLOCK], tl.float32)
    count = 0
    for j in range(passes):
        chosen = tl.load(assignment + j * patches + patch).to(tl.int32)
        # A masked load moves no bytes: passes that do not predict this patch cost nothing.
        total += tl.load(base + tl.cast(j, tl.int64) * pred_sk, mask=k < chosen * K, other=0).to(tl.float32)
        count += chosen
    offsets = _image_offsets(k, patch, grid_cols, image_sc, image_sh, image_sw, P, C)
    seen = k < tl.minimum(count, 1) * K
    target = tl.load(images + b * image_sb + offsets, mask=seen, other=0).to(tl.float32) * SCALE
    difference = total / tl.maximum(count, 1).to(tl.float32) - target  # 0 outside, 0 where nothing was predicted
    tl.store(scores + row, tl.sum(difference * difference, axis=0) / K)
    r = gain * difference  # NaN passes through both comparisons
    r = tl.where(r > clamp, clamp, tl.where(r < -clamp, -clamp, r))
    out = _image_offsets(k, patch, grid_cols, residual_sc, residual_sh, 1, P, C)
    tl.store(residual + b * residual_sb + out, r.to(residual.dtype.element_ty), mask=inside)


@triton.jit
def scale_rows_kernel(
    data,  # (rows, K) contiguous
    factor,  # (rows,) or () float32
    numel,
    K,
    PER_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64)
    step = tl.num_programs(0).to(tl.int64)
    if PER_ROW:
        for row in range(start, numel // K, step):
            f = tl.load(factor + row)
            length = tl.where(f != 1.0, K, 0)  # a factor of 1: the row is left alone
            for first in range(0, length, BLOCK):
                i = first + tl.arange(0, BLOCK)
                x = tl.load(data + row * K + i, mask=i < K, other=0).to(tl.float32)
                tl.store(data + row * K + i, (x * f).to(data.dtype.element_ty), mask=i < K)
    else:
        f = tl.load(factor)
        if f != 1.0:  # loss.backward() with nothing after the loss: no pass over the gradient
            for first in range(start * BLOCK, numel, step * BLOCK):
                i = first + tl.arange(0, BLOCK)
                x = tl.load(data + i, mask=i < numel, other=0).to(tl.float32)
                tl.store(data + i, (x * f).to(data.dtype.element_ty), mask=i < numel)


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _pixel_scale(images: Tensor) -> float:
    return 1.0 / 255.0 if images.dtype == torch.uint8 else 1.0


def masked_patch_loss(
    pred: Tensor,  # (B, L, K), last stride 1
    images: Tensor,  # (B, C, H, W)
    mask: Tensor,  # (B, L) contiguous
    total: Tensor | None,  # () float32: sum of the mask, for the gradient of the mean
    patch_size: int,
    norm_pix: bool,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:  # (B, L) float32, (B, L, K) or (0,)
    batch, patches, length = pred.shape
    loss = torch.empty(batch, patches, dtype=torch.float32, device=pred.device)
    grad = torch.empty(pred.shape if need_grad else (0,), dtype=pred.dtype, device=pred.device)
    if loss.numel() == 0:
        return loss, grad
    block = triton.next_power_of_2(length)
    with _on(pred):
        masked_patch_loss_kernel[(batch * patches,)](
            pred,
            images,
            mask,
            loss if total is None else total,
            loss,
            grad,
            *pred.stride()[:2],
            *images.stride(),
            patches,
            images.shape[3] // patch_size,
            P=patch_size,
            C=images.shape[1],
            SCALE=_pixel_scale(images),
            NORM=norm_pix,
            MEAN=total is not None,
            GRAD=need_grad,
            BLOCK=block,
            num_warps=num_warps(block),
        )
    return loss, grad


def patch_residual(
    pred: Tensor,  # (k, B, L, K), last stride 1
    images: Tensor,  # (B, C, H, W)
    assignment: Tensor,  # (k, L) contiguous bool
    patch_size: int,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor]:  # (B, C, H, W), (B, L) float32
    passes, batch, patches, length = pred.shape
    dtype = images.dtype if images.is_floating_point() else torch.float32
    residual = torch.empty(images.shape, dtype=dtype, device=images.device)
    scores = torch.empty(batch, patches, dtype=torch.float32, device=images.device)
    if scores.numel() == 0:
        return residual, scores
    block = triton.next_power_of_2(length)
    with _on(pred):
        patch_residual_kernel[(batch * patches,)](
            pred,
            images,
            assignment,
            residual,
            scores,
            *pred.stride()[:3],
            *images.stride(),
            *residual.stride()[:3],
            patches,
            images.shape[3] // patch_size,
            passes,
            float(gain),
            float(clamp),
            P=patch_size,
            C=images.shape[1],
            SCALE=_pixel_scale(images),
            BLOCK=block,
            num_warps=num_warps(block),
        )
    return residual, scores


def scale_rows(
    data: Tensor,  # (..., K) contiguous, changed in place
    factor: Tensor,  # one element, or one a row
) -> None:
    numel, length = data.numel(), data.shape[-1]
    if numel == 0:
        return
    per_row = factor.numel() > 1
    block = min(SCALE_BLOCK, triton.next_power_of_2(length)) if per_row else SCALE_BLOCK
    programs = min(SCALE_PROGRAMS, numel // length if per_row else triton.cdiv(numel, block))
    with _on(data):
        scale_rows_kernel[(programs,)](
            data, factor, numel, length, PER_ROW=per_row, BLOCK=block, num_warps=num_warps(block)
        )
