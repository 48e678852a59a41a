"""The eager truth of every op, written to be read: any device, float64 too, differentiated by autograd."""

import torch
from torch import Tensor


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where an argument is float64, float32 else: what the ops compute and return losses in."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def to_real(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images as real numbers; uint8 stands for value / 255."""
    return images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)


def patchify(
    images: Tensor,  # (B, C, H, W)
    patch_size: int,
) -> Tensor:  # (B, L, P*P*C)
    """Patches in row-major order, each flattened channel-last (row, column, channel), as MAE does [paper]."""
    b, c, h, w = images.shape
    p = patch_size
    x = images.reshape(b, c, h // p, p, w // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(
    patches: Tensor,  # (B, L, P*P*C)
    size: tuple[int, int],  # (H, W)
    patch_size: int,
) -> Tensor:  # (B, C, H, W)
    """The inverse of patchify."""
    (b, _, k), (h, w), p = patches.shape, size, patch_size
    c = k // (p * p)
    x = patches.reshape(b, h // p, w // p, p, p, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def masked_patch_loss(
    pred: Tensor,  # (B, L, P*P*C)
    images: Tensor,  # (B, C, H, W)
    mask: Tensor,  # (B, L)
    *,
    patch_size: int,
    norm_pix: bool,
    reduction: str,
) -> Tensor:
    """MAE's forward_loss [paper]; see fastdetect.ops.masked_patch_loss."""
    dtype = accumulation_dtype(pred, images)
    target = patchify(to_real(images, dtype), patch_size)
    if norm_pix:
        mean = target.mean(dim=-1, keepdim=True)
        target = (target - mean) / (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    weight = mask.to(dtype)
    total = weight.sum()
    # Patches that are not removed are not looked at, finite or not. An empty mask is 0 / 0, the gradient too.
    seen = (weight != 0) | (total == 0) if reduction == "mean" else weight != 0
    difference = torch.where(seen[..., None], pred.to(dtype) - target, 0.0)
    loss = difference.square().mean(dim=-1) * weight
    if reduction == "none":
        return loss
    return loss.sum() / total if reduction == "mean" else loss.sum()


def patch_residual(
    pred: Tensor,  # (k, B, L, P*P*C)
    images: Tensor,  # (B, C, H, W)
    assignment: Tensor,  # (k, L) bool
    *,
    patch_size: int,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor]:  # (B, C, H, W), (B, L)
    """Residual [paper] and per-patch scores [ours]; see fastdetect.ops.patch_residual."""
    dtype = accumulation_dtype(pred, images)
    chosen = assignment[:, None, :, None]
    count = assignment.sum(dim=0)[None, :, None]
    mean = torch.where(chosen, pred.to(dtype), 0.0).sum(dim=0) / count.clamp(min=1)
    difference = torch.where(count > 0, mean - patchify(to_real(images, dtype), patch_size), 0.0)
    residual = unpatchify((gain * difference).clamp(-clamp, clamp), (images.shape[2], images.shape[3]), patch_size)
    residual_dtype = images.dtype if images.is_floating_point() else dtype
    return residual.to(residual_dtype), difference.square().mean(dim=-1)
