"""Launches of the supcon_margin_loss kernels: which sets of rows meet which columns, second stages, scaling."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from fastdetect.kernels import supcon_margin as kernels
from fastdetect.kernels.supcon_margin import LOG2E, config
from torch import Tensor


class Rows(NamedTuple):
    """A set of rows: the samples, the synthetic positives, or the fused negatives by their recipe."""

    z: Tensor  # (X, D), last stride 1; for fused negatives the rows that they are made of
    kinds: Tensor  # (X,) int32
    fuse: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # index_a, index_b (X,), weights (2, X), centre (D,)

    def count(self) -> int:
        return self.kinds.shape[0]


class _Sets:
    def __init__(self, p: Any) -> None:
        self.p = p
        z = _last_stride_one(p.z)
        every = _last_stride_one(p.every())
        kinds, own = _kinds(p), slice(p.offset, p.offset + z.shape[0])
        self.samples, self.columns = Rows(z, kinds[own].contiguous()), Rows(every, kinds)
        self.extras: list[Rows] = []
        if p.synthetic is not None and p.synthetic.shape[0]:
            synthetic = _last_stride_one(p.synthetic)
            self.extras.append(Rows(synthetic, kinds.new_zeros(synthetic.shape[0])))
        if p.index_a is not None and p.index_a.shape[0]:
            last = every.shape[0] - 1
            fuse = (p.index_a.clamp(-1, last), p.index_b.clamp(-1, last), *_fuse_weights(p, every))
            self.extras.append(Rows(every, torch.full_like(p.index_a, -1, dtype=torch.int32), fuse))
        lengths = [
            r.kinds.new_ones((), dtype=torch.float32)  # fused rows are of unit length, whatever they are made of
            if r.fuse
            else torch.linalg.vector_norm(r.z, dim=1, dtype=torch.float32).max()
            for r in (self.columns, *self.extras)
        ]
        bound = torch.stack(lengths).max().square()  # of |s|; not below the limit where it is NaN
        self.online = (~((bound + p.margin) / p.temperature <= kernels.EXPONENT_LIMIT)).to(torch.int32)
        self.class_sums = p.binary and not p.negatives and p.positives is None
        self.scale = LOG2E / p.temperature
        exact = torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
        self.flags = {
            "NEGATIVES": p.negatives,
            "MARGIN": p.margin != 0,
            "PRECISION": "tf32x3" if exact else "tf32",
            "UPCAST": not z.is_cuda and z.dtype == torch.bfloat16,
            "D": z.shape[1],
        }

    def pointers(self, x: Rows, y: Rows) -> tuple[Tensor, ...]:
        fuse = x.fuse or y.fuse or (x.kinds,) * 4
        mask = self.p.positives if self.masked(x, y) else x.kinds
        return (x.z, y.z, x.kinds, y.kinds, *fuse, mask, self.online)

    def sizes(self, x: Rows, y: Rows) -> tuple[int, ...]:
        mask = self.p.positives.stride() if self.masked(x, y) else (0, 0)
        return (x.z.stride(0), y.z.stride(0), *mask, x.count(), y.count(), self.p.offset)

    def masked(self, x: Rows, y: Rows) -> bool:
        return self.p.positives is not None and x is self.samples and y is self.columns


def _last_stride_one(z: Tensor) -> Tensor:
    return z if z.stride(-1) == 1 else z.contiguous()


def _kinds(p: Any) -> Tensor:
    """Class numbers as int32, 0 = real; labels of any size by their rank."""
    labels = p.labels if p.column_labels is None else p.column_labels
    if p.binary:
        return (labels > 0).to(torch.int32)
    rank = torch.searchsorted(labels.sort()[0], labels) + 1
    return torch.where(labels == 0, 0, rank).to(torch.int32)


def _fuse_weights(p: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """(2, K) weights that make the mixed rows unit length, and the centre; blocks, so that no rows are kept."""
    center = p.center.to(z.dtype).contiguous()
    lengths = []
    for a, b, w in zip(p.index_a.split(4096), p.index_b.split(4096), p.weight.split(4096), strict=True):
        first, other = z[a.clamp(0, z.shape[0] - 1)].float(), z[b.clamp(0, z.shape[0] - 1)]
        other = torch.where((b < 0)[:, None], center, other).float()
        w = w.float()[:, None]
        lengths.append((w * first + (1 - w) * other).norm(dim=1).clamp(min=1e-12))
    w = p.weight.float()
    return torch.stack([w, 1 - w]) / torch.cat(lengths), center


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _split(rows: int, columns: int, bm: int, bn: int) -> tuple[int, int, int]:
    """Row tiles, parts that the columns are cut into so that a small batch fills the GPU, columns of a part."""
    tiles = triton.cdiv(rows, bm)
    parts = max(1, min(triton.cdiv(kernels.PROGRAMS, tiles), triton.cdiv(columns, bn)))
    width = triton.cdiv(triton.cdiv(columns, parts), bn) * bn
    return tiles, triton.cdiv(columns, width), width


def _depth(width: int, depth: int) -> int:
    return min(depth, max(16, triton.next_power_of_2(width)))


def _sums(sets: _Sets, y: Rows, log_sum: Tensor | None) -> Tensor:  # (3, parts, N)
    x = sets.samples
    bm, bn, bk, warps, stages = config("sums", sets.flags["D"], x.z.dtype, y.fuse is not None or sets.masked(x, y))
    tiles, parts, width = _split(x.count(), y.count(), bm, bn)
    out = torch.empty(3, parts, x.count(), dtype=torch.float32, device=x.z.device)
    bk = _depth(sets.flags["D"], bk)
    for online in (0, 1):
        kernels.sums_kernel[(tiles, parts)](
            *sets.pointers(x, y),
            out if log_sum is None else log_sum,
            out,
            *sets.sizes(x, y),
            width,
            sets.scale,
            sets.scale * sets.p.margin,
            SELF=y is sets.columns,
            FUSED=y.fuse is not None,
            REAL_ROWS=y is not sets.columns,
            MASK=sets.masked(x, y),
            STAGE=1 if log_sum is None else 2,
            ONLINE=online,
            POSITIVE_SUM=not sets.class_sums and not sets.p.negatives,
            SINGLE=sets.flags["D"] <= bk,
            BM=bm,
            BN=bn,
            BK=bk,
            num_warps=warps,
            num_stages=stages,
            **sets.flags,
        )
    return out


def _class_sums(rows: Rows, weight: Tensor | None = None) -> Tensor:  # (2, D) float32
    """Sums of reals and of fakes, by a matrix product of their indicators; deterministic.

    A weight is split into three numbers of z's dtype, since rounded once it would be off by a constant factor.
    """
    chosen = torch.stack([rows.kinds == 0, rows.kinds == 1]).float()
    if weight is None:
        pieces = [chosen.to(rows.z.dtype)]
    else:
        rest, pieces = chosen * weight, []
        for _ in range(3):
            pieces.append(rest.to(rows.z.dtype))
            rest = rest - pieces[-1].float()
    z = rows.z.contiguous()  # cuBLAS may add in another order where rows lie farther apart
    return _matmul(torch.cat(pieces), z).view(len(pieces), 2, -1).sum(dim=0)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def forward(p: Any, count: Tensor) -> tuple[Tensor, Tensor]:  # (N,), (3, N)
    """Loss per row; (log normaliser, mean sigmoid, number of positives) per row for the backward."""
    sets, number = _Sets(p), count.clamp(min=1).float()
    x, sides = sets.samples, [sets.columns, *sets.extras]
    with _on(x.z):
        top, total, pulled = torch.cat([_sums(sets, y, None) for y in sides], dim=1)
        highest = top.amax(dim=0)
        base = torch.where(highest > -torch.inf, highest, 0.0)  # NaN goes on in the sums
        log_sum = base + (total * (top - base).exp2()).sum(dim=0).log2()
        q = torch.ones_like(log_sum)
        if p.negatives:
            _, soft, pulled = torch.cat([_sums(sets, y, log_sum) for y in sides], dim=1)
            loss, q = soft.sum(dim=0) / (number * LOG2E), pulled.sum(dim=0) / number
        elif sets.class_sums:
            sums = _class_sums(sets.columns)
            if p.synthetic is not None:
                sums[0] += p.synthetic.sum(dim=0, dtype=torch.float32)
            similar = torch.empty_like(log_sum)
            bk = _depth(sets.flags["D"], 128)
            kernels.positive_kernel[(triton.cdiv(x.count(), 32),)](
                x.z, x.kinds, sums, similar, x.z.stride(0), x.count(), sets.flags["D"], sets.flags["UPCAST"], 32, bk
            )
            loss = log_sum / LOG2E - (similar / number - p.margin) / p.temperature
        else:
            loss = (log_sum - pulled.sum(dim=0) / number) / LOG2E
    # An error would cost a stall.
    loss = torch.where(p.wrong(), torch.nan, torch.where(count > 0, loss, 0.0))
    return loss, torch.stack([log_sum / LOG2E, q, count.float()])


def _coefficients(coefficients: Tensor, unit: Tensor) -> Tensor:  # (5, C)
    """rho, r, log_r, c, level of the kernels (see _weights), in units that no dtype of W loses."""
    r, c, log_sum = coefficients.float().unbind()
    r, c, level = r / unit, c / unit, log_sum * LOG2E
    log_r = torch.where(r == 0, torch.inf, level)  # exp(-inf) * 0, never inf * 0
    return torch.stack([r * (-log_r).exp2(), r, log_r, c, level])


def _nothing(count: int, like: Tensor) -> Tensor:
    none = like.new_zeros(5, count)  # filled on the device: a CUDA graph would copy from host memory that is gone
    none[2].fill_(math.inf)
    return none


def _product(sets: _Sets, x: Rows, y: Rows, cx: Tensor, cy: Tensor) -> Tensor:  # (parts, X, D) float32
    """sum_j W_ij y_j of two sets."""
    width = sets.flags["D"]
    options = sets.flags | {
        "SELF": x is sets.samples and y is sets.columns,
        "X_FUSED": x.fuse is not None,
        "Y_FUSED": y.fuse is not None,
        "MASK": sets.masked(x, y),
        "IN_TILE": not sets.class_sums and not sets.p.negatives,
    }
    scale, margin = sets.scale, sets.scale * sets.p.margin
    heavy = x.fuse is not None or y.fuse is not None or sets.masked(x, y)
    if kernels.tiled_backward(width, x.z.dtype, heavy):
        bm, bn, _, warps, stages = config("gradient", width, x.z.dtype, heavy)
        tiles, parts, columns = _split(x.count(), y.count(), bm, bn)
        out = torch.empty(parts, x.count(), width, dtype=torch.float32, device=x.z.device)
        shape = {"BM": bm, "BN": bn, "BK": _depth(width, 256), "num_warps": warps, "num_stages": stages}
        for online in (0, 1):
            kernels.gradient_kernel[(tiles, parts)](
                *sets.pointers(x, y), cx, cy, out, *sets.sizes(x, y), columns, scale, margin,
                ONLINE=online, **options, **shape,
            )  # fmt: skip
        return out
    bm, bn, bk, warps, stages = config("weights", width, x.z.dtype, heavy)
    shape = {"BM": bm, "BN": bn, "BK": bk, "GROUP": 8, "num_warps": warps, "num_stages": stages}
    out = torch.empty(1, x.count(), width, dtype=torch.float32, device=x.z.device)
    right = _materialise(y)
    size = min(x.count(), max(bm, kernels.CHUNK // y.count() // bm * bm))
    memory = torch.empty(size, y.count(), dtype=x.z.dtype, device=x.z.device)
    for begin in range(0, x.count(), size):
        end = min(begin + size, x.count())
        grid = (triton.cdiv(end - begin, bm) * triton.cdiv(y.count(), bn),)
        for online in (0, 1):
            kernels.weights_kernel[grid](
                *sets.pointers(x, y), cx, cy, memory, *sets.sizes(x, y), begin, end, scale, margin,
                ONLINE=online, **options, **shape,
            )  # fmt: skip
        out[0, begin:end] = _matmul(memory[: end - begin], right)
    return out


def _materialise(rows: Rows) -> Tensor:
    """Where the gradient is not one kernel, cuBLAS needs the fused rows in memory, K * D values."""
    if rows.fuse is None:
        return rows.z
    a, b, weights, center = rows.fuse
    other = torch.where((b < 0)[:, None], center, rows.z[b.clamp(min=0)])
    return (weights[0][:, None] * rows.z[a.clamp(min=0)] + weights[1][:, None] * other).to(rows.z.dtype)


def backward(
    p: Any,
    coefficients: Tensor,  # (3, C): upstream * q, upstream / |P|, log normaliser
    fused_grad: Callable[[Any, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:  # (N, D), (M, D)
    """Gradients of z and of the synthetic positives."""
    sets = _Sets(p)
    x, own = sets.samples, slice(p.offset, p.offset + p.z.shape[0])
    with _on(x.z):
        unit = coefficients[:2].abs().max().clamp(min=1e-30) / kernels.HALF_SCALE
        every = _coefficients(coefficients, unit)
        mine = every[:, own].contiguous()
        real = _coefficients(coefficients[:, own] * (p.labels == 0), unit)  # who sees the extras
        factor = unit / p.temperature
        parts = [_product(sets, x, sets.columns, mine, every)]
        synthetic = p.z.new_empty((0, p.z.shape[1])) if p.synthetic is None else torch.zeros_like(p.synthetic)
        pulls = _class_sums(sets.columns, every[3]) if sets.class_sums else factor
        sums = _class_sums(sets.columns) if sets.class_sums else factor
        if sets.class_sums and p.synthetic is not None:
            sums[0] += p.synthetic.sum(dim=0, dtype=torch.float32)
        for y in sets.extras:
            none = _nothing(y.count(), every)
            parts.append(_product(sets, x, y, real, none))
            if y.fuse is None:
                back = _product(sets, y, x, none, real)
                own_pulls = _class_sums(x, real[3]) if sets.class_sums else factor
                synthetic = _finish(sets, y, back, none[3], sums, own_pulls, factor)
            elif p.fusion_grad:
                parts.append(fused_grad(p, _product(sets, y, x, none, real).sum(dim=0))[None])
        grad = _finish(sets, x, parts[0] if len(parts) == 1 else torch.cat(parts), mine[3], sums, pulls, factor)
    return grad, synthetic


def _finish(sets: _Sets, x: Rows, parts: Tensor, c: Tensor, sums: Tensor, pulls: Tensor, factor: Tensor) -> Tensor:
    width = sets.flags["D"]
    out = torch.empty(x.count(), width, dtype=x.z.dtype, device=x.z.device)
    bk = _depth(width, 128)
    kernels.finish_kernel[(triton.cdiv(x.count(), 16), triton.cdiv(width, bk))](
        parts, x.z, x.kinds, c, sums, pulls, factor, out, x.z.stride(0), parts.shape[0], x.count(),
        D=width, CLASS_SUMS=sets.class_sums, UPCAST=sets.flags["UPCAST"], BM=16, BK=bk,
    )  # fmt: skip
    return out
