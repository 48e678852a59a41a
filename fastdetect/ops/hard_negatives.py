"""Hard-negative fusion: which fakes are marginal, and which of them are mixed with what."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops.backend import check_tensors, is_integer, no_autocast, readable
from fastdetect.ops.reference import accumulation_dtype

_LOW = 0xFFFFFFFF
_CHUNK = 1 << 21  # values of z that are held in float64 at a time: 16 MB


class FusedNegatives(NamedTuple):
    """Recipe of K fused negatives: `normalize(weight * z[index_a] + (1 - weight) * (z[index_b] or center))`.

    Args:
        index_a: [K] int64, rows of z; -1: this negative does not exist.
        index_b: [K] int64, rows of z; -1: the centre.
        weight: [K] float32 in [0, 1].
        center: [D], the centre of the real faces.
    """

    index_a: Tensor
    index_b: Tensor
    weight: Tensor
    center: Tensor


def fuse_hard_negatives(
    z: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    center: Tensor,  # (D,)
    *,
    n_hard: int,
    n_fused: int,
    seed: int | Tensor,
) -> FusedNegatives:
    """Choose marginal fakes (nearest to the real centre) and draw how they are fused [ours, after MoCHi].

    Even negatives mix two marginal fakes, gamma ~ U(0, 1); odd ones, and all where only one fake is there, mix the
    centre into a marginal fake, beta ~ U(0, 0.5). Nothing is materialised: pass the result to `supcon_margin_loss`.
    No gradient, no host sync.

    Args:
        z: [N, D] float embeddings, unit length.
        labels: [N] integers, 0 = real, > 0 = fake. Negative ones: ShapeError on the CPU; on CUDA (where a look at them
            would stall the stream) and under torch.vmap NaN weights.
        center: [D], unit length, same device.
        n_hard: how many marginal fakes at most, >= 1. Cosines are summed in float64 and rounded to float32 (but where
            z or center is float64), so that every device takes the same rows; ties go to the lower index.
        n_fused: K, how many fused negatives, >= 0.
        seed: of the Philox generator; the same numbers on every device. A scalar int64 tensor under CUDA graphs.

    Returns:
        FusedNegatives of K rows; without any fake every index_a is -1.

    Raises:
        ShapeError: a shape, dtype, device or label does not fit.
        UsageError: n_hard or n_fused out of range.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(6, 16), dim=-1)
        >>> fused = fuse_hard_negatives(z, torch.tensor([0, 0, 1, 1, 2, 2]), z[0], n_hard=3, n_fused=4, seed=0)
        >>> fused.index_a.shape, fused.index_b[1::2].tolist()
        (torch.Size([4]), [-1, -1])
    """
    if not (is_integer(n_hard) and is_integer(n_fused) and n_hard >= 1 and n_fused >= 0):
        raise UsageError(f"n_hard, n_fused: got {n_hard}, {n_fused}, want integers of at least 1 and at least 0")
    if not isinstance(seed, Tensor) and not is_integer(seed):
        raise UsageError(f"seed: got {seed!r}, want an integer, or a scalar int64 tensor")
    check_tensors(z=z, labels=labels, center=center)
    if z.dim() != 2 or z.shape[0] == 0 or not z.is_floating_point():
        raise ShapeError(f"z: got {z.dtype} of shape {tuple(z.shape)}, want floating point [N, D] with N of at least 1")
    if labels.shape != z.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ShapeError(
            f"labels: got {labels.dtype} of shape {tuple(labels.shape)}, want integers of shape ({z.shape[0]},)"
        )
    if center.shape != z.shape[1:] or not center.is_floating_point():
        raise ShapeError(
            f"center: got {center.dtype} of shape {tuple(center.shape)}, want floating point ({z.shape[1]},)"
        )
    for name, tensor in (("labels", labels), ("center", center)):
        if tensor.device != z.device:
            raise ShapeError(f"{name}: got device {tensor.device}, want that of z, {z.device}")
    if readable(labels) and int(labels.min()) < 0:
        raise ShapeError(f"labels: got {int(labels.min())}, want at least 0 (0 = real, > 0 = fake)")
    with torch.no_grad(), no_autocast(z.device.type):
        fake = labels > 0
        order = _similarity(z, center).masked_fill(~fake, -torch.inf).argsort(descending=True, stable=True)
        hard = fake.sum().clamp(max=n_hard)  # stays on the device
        first, second, mix = uniform(seed, n_fused, z.device)
        a = _draw(first, hard)
        b = _draw(second, hard - 1)
        b = b + (b >= a).long()  # uniform over the others
        even = torch.arange(n_fused, device=z.device) % 2 == 0
        pair = even & (hard > 1)
        index_a = torch.where(hard > 0, order[a.clamp(max=z.shape[0] - 1)], -1)
        index_b = torch.where(pair, order[b.clamp(max=z.shape[0] - 1)], -1)
        weight = torch.where(pair, mix, 1 - 0.5 * mix)
        weight = torch.where((labels < 0).any(), torch.nan, weight)  # where nobody could look before
    return FusedNegatives(index_a, index_b, weight, center.detach())


def _similarity(
    z: Tensor,  # (N, D)
    center: Tensor,  # (D,)
) -> Tensor:  # (N,)
    """z.c of every row, as mining takes it: summed in float64, rounded to float32 (float64 where an argument is)."""
    exact, rows = center.double(), max(1, _CHUNK // max(1, z.shape[1]))
    chunks = (z,) if torch.compiler.is_compiling() else z.split(rows)  # a compiler keeps no copy, and N may be unknown
    return torch.cat([chunk.double() @ exact for chunk in chunks]).to(accumulation_dtype(z, center))


def _draw(uniforms: Tensor, count: Tensor) -> Tensor:
    """Integers of [0, count); 0 where count is less than 1."""
    return (uniforms.double() * count).long().minimum(count - 1).clamp(min=0)


def uniform(seed: int | Tensor, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Three rows of `count` uniforms in (0, 1), float32: Philox 4x32-10 with key = seed, counter = position."""
    key = [seed & _LOW, (seed >> 32) & _LOW]
    counter = torch.arange(count, device=device)
    x0, x1, x2, x3 = counter & _LOW, counter >> 32, torch.zeros_like(counter), torch.zeros_like(counter)
    for _ in range(10):
        p, q = x0 * 0xD2511F53, x2 * 0xCD9E8D57  # 64 bits, the wrapped sign is masked off
        x0, x1, x2, x3 = (q >> 32 & _LOW) ^ x1 ^ key[0], q & _LOW, (p >> 32 & _LOW) ^ x3 ^ key[1], p & _LOW
        key = [key[0] + 0x9E3779B9 & _LOW, key[1] + 0xBB67AE85 & _LOW]
    first, second, third = (((x >> 9).float() + 0.5) * 2.0**-23 for x in (x0, x1, x2))
    return first, second, third
