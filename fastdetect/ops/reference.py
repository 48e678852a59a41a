"""The eager truth of every op, written to be read: any device, float64 too, differentiated by autograd."""

import math

import torch
from torch import Tensor

from fastdetect.errors import ShapeError


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


def fuse_rows(
    z: Tensor,  # (N, D)
    index_a: Tensor,  # (K,)
    index_b: Tensor,  # (K,)
    weight: Tensor,  # (K,)
    center: Tensor,  # (D,)
) -> Tensor:  # (K, D) unit length
    """Fused negatives: a fake mixed with another one, or with the real centre (index_b = -1) [ours, after MoCHi]."""
    w = weight.to(z.dtype)[:, None]
    first, other = (z[index.clamp(0, len(z) - 1)] for index in (index_a, index_b))
    other = torch.where((index_b < 0)[:, None], center.to(z.dtype), other)
    return torch.nn.functional.normalize(w * first + (1 - w) * other, dim=-1)


def supcon_margin_loss(
    z: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    temperature: float,
    margin: float,
    anchors: str,
    denominator: str,
    pairing: str,
    positives: Tensor | None,  # (N, N) bool
    synthetic: Tensor | None,  # (M, D)
    fused: tuple[Tensor, Tensor, Tensor, Tensor] | None,  # index_a, index_b, weight (K,), center (D,)
    fusion_grad: bool,
) -> tuple[Tensor, Tensor]:  # (N,), (N,)
    """Loss of every row (0 where it is no anchor or has no positive) and its number of positives [ours]."""
    real, rows = labels == 0, len(z)
    dtype = accumulation_dtype(z)
    z = z.to(dtype)
    kind = real if pairing == "binary" else labels
    positive = kind[:, None] == kind if positives is None else positives
    seen = ~torch.eye(rows, dtype=torch.bool, device=z.device)
    positive, columns = positive & seen, z
    if synthetic is not None:  # columns of class 0 that only real anchors see
        columns = torch.cat([columns, synthetic.to(dtype)])
        sees = real[:, None].expand(-1, len(synthetic))
        positive, seen = torch.cat([positive, sees], dim=1), torch.cat([seen, sees], dim=1)
    if fused is not None:  # columns that are negatives of real anchors
        columns = torch.cat([columns, fuse_rows(z if fusion_grad else z.detach(), *fused)])
        sees = real[:, None] & (fused[0] >= 0)
        positive, seen = torch.cat([positive, sees & False], dim=1), torch.cat([seen, sees], dim=1)
    logits = (z @ columns.T - margin * positive.to(dtype)) / temperature
    counted = seen if denominator == "all" else seen & ~positive
    # A row that counts nothing: the log of an empty sum, -inf, without logsumexp's NaN gradient.
    some = counted.any(dim=1, keepdim=True)
    log_sum = torch.where(counted | ~some, logits, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_sum = torch.where(some, log_sum, -torch.inf)
    term = log_sum - logits if denominator == "all" else torch.logaddexp(log_sum - logits, torch.zeros_like(logits))
    count = positive.sum(dim=1) * (real if anchors == "real" else torch.ones_like(real))
    loss = torch.where(positive, term, 0.0).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, loss, 0.0), count


_WORD = 0xFFFFFFFF


def philox4x32(
    counter: Tensor,  # (..., 4) int64 in [0, 2^32)
    seed: int | Tensor,
) -> Tensor:  # (..., 4) int64 in [0, 2^32)
    """Philox4x32-10 (Salmon et al., SC'11), keyed by the low and high word of the seed."""
    c0, c1, c2, c3 = counter.unbind(-1)
    key0, key1 = seed & _WORD, seed >> 32 & _WORD
    for _ in range(10):
        (high0, low0), (high2, low2) = _multiply(0xD2511F53, c0), _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high2 ^ c1 ^ key0, low2, high0 ^ c3 ^ key1, low0
        key0, key1 = key0 + 0x9E3779B9 & _WORD, key1 + 0xBB67AE85 & _WORD
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product: in two halves, since int64 has 63 bits."""
    upper, lower = a * (b >> 16), a * (b & 0xFFFF)
    return upper + (lower >> 16) >> 16, lower + ((upper & 0xFFFF) << 16) & _WORD


def beta22(
    seed: int | Tensor,
    row: Tensor,  # (M,) int64
    dtype: torch.dtype,
) -> Tensor:  # (M,)
    """Beta(2, 2), as the median of three uniforms of 24 bits, for each row of z."""
    counter = torch.stack([row & _WORD, row >> 32, row * 0, row * 0], dim=-1)
    return (philox4x32(counter, seed)[..., :3] >> 8).median(dim=-1).values.to(dtype) * 2.0**-24


def guard_limit(real: Tensor, fake: Tensor) -> Tensor:
    """lam at which a real of cosine z.c = `real` is turned as far from the centre as a fake of cosine `fake` [ours]."""
    theta_h, theta_g = real.double().clamp(-1, 1).acos(), fake.double().clamp(-1, 1).acos()
    between = (theta_g - theta_h).sin()
    denominator = theta_g.sin() - between
    limit = torch.where(denominator > 0, between / denominator, torch.inf)
    limit = torch.where(theta_h >= theta_g, 0.0, limit)
    return torch.where(fake == -torch.inf, torch.inf, limit)  # no fakes, no limit


def synthesize_positives(
    z: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    center: Tensor,  # (D,)
    *,
    rho: float,
    lam_max: float,
    seed: int | Tensor,
    lam: Tensor | None,  # (N,) or (M,)
    guard: bool,
    size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # (M, D), (M,), (M,)
    """Mining, extrapolation and guard [ours]; see fastdetect.ops.synthesize_positives."""
    dtype, rows, real = accumulation_dtype(z, center), len(z), labels == 0
    similarity = (z.detach().double() @ center.double()).to(dtype)
    capacity = math.ceil(rho * rows) if size is None else size
    mined = (rho * real.sum().double() - 1e-9).ceil().clamp(0, capacity)  # 0.07 * 100 is 7.000000000000001
    key = torch.where(similarity.isnan(), -torch.inf, similarity)
    order = torch.where(real, key, torch.inf).argsort(stable=True)[:capacity]
    order = torch.nn.functional.pad(order, (0, capacity - len(order)))
    index = torch.where(torch.arange(capacity, device=z.device) < mined, order, rows).sort().values
    index = torch.where(index == rows, -1, index)
    if size is None:
        index = index[: int(mined)]
    row, there = index.clamp(min=0), index >= 0
    if lam is None:
        lam = lam_max * beta22(seed, row, dtype)
    elif len(lam) == rows:
        lam = lam[row]
    elif len(lam) != len(index):
        raise ShapeError(f"lam: got [{len(lam)}], want a number, [N] = [{rows}] or [M] = [{len(index)}]")
    if guard:
        fakes = torch.nn.functional.pad(torch.where(real, -torch.inf, similarity), (0, 1), value=-torch.inf)
        lam = torch.minimum(lam.to(dtype), guard_limit(similarity[row], fakes.amax()).to(dtype))
    square = torch.cat([z.detach(), center[None].to(z.dtype)]).to(dtype).square().sum(dim=1)
    bad = (labels < 0).any() | ~((square - 1).abs() <= 0.02).all()  # where nobody could look before
    lam = torch.where(there, torch.where(bad, torch.nan, lam.to(dtype)), 0.0)
    hard = z[row].to(dtype)
    made = torch.nn.functional.normalize(hard + lam[:, None] * (hard - center.to(dtype)), dim=-1)
    return torch.where(there[:, None], made, 0.0).to(z.dtype), index, lam


def real_sums(
    z: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    dtype: torch.dtype,
) -> Tensor:  # (D + 1,)
    """Sum of the reals, and how many they are; the count is NaN where a label is negative."""
    real = labels == 0
    count = torch.where((labels < 0).any(), torch.nan, real.sum().to(dtype))
    return torch.cat([torch.where(real[:, None], z.to(dtype), 0.0).sum(dim=0), count[None]])


def mix_center(
    center: Tensor,  # (D,)
    sums: Tensor,  # (D + 1,)
    momentum: float,
) -> Tensor:  # (D,)
    """normalize(momentum * center + (1 - momentum) * mean of the reals) [ours]; see fastdetect.ops.update_center."""
    keep = torch.where(center.norm() == 0, 0.0, momentum)
    mixed = keep * center + (1 - keep) * (sums[:-1] / sums[-1])
    length = mixed.norm()
    return torch.where((sums[-1] == 0) | (length == 0), center, mixed / length)
