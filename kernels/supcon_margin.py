"""Triton kernels of supcon_margin_loss: tiles of s = x y^T that are summed, or multiplied with y again, and forgotten.

Columns are the samples, the synthetic positives, or the fused negatives, which are built in the tile: a launch each.
Exponents are in units of log2. Every kernel that needs exp comes in two variants, with and without the running
maximum; a flag on the device says which one works, the other ends at once: no host sync. See docs/kernels.md.
"""

import math

import torch
import triton
import triton.language as tl

LOG2E = math.log2(math.e)
EXPONENT_LIMIT = 40.0  # as supcon_chunked's
PROGRAMS = 264  # two a multiprocessor of an H200: fewer row tiles than that are split over the columns
CHUNK = 1 << 27  # values of W at a time where it is written: 256 MB of bfloat16
HALF_SCALE = 2.0**13  # W is at most 4: in range, and 1/N is no subnormal float16
# (rows, columns, depth, warps, stages) by (kind, dtype, widest D), found by compiling for sm_80 and sm_90: no spill.
TUNED = {
    ("sums", "low", 64): (128, 128, 64, 8, 3),
    ("sums", "low", 128): (128, 128, 128, 8, 2),
    ("sums", "low", 256): (128, 64, 256, 8, 2),
    ("sums", "low", 0): (128, 64, 64, 8, 3),
    ("sums", "fp32", 0): (64, 64, 32, 8, 2),
    ("heavy sums", "low", 128): (128, 64, 128, 8, 2),
    ("heavy sums", "low", 0): (128, 64, 64, 8, 2),
    ("heavy sums", "fp32", 0): (64, 32, 32, 8, 1),
    ("gradient", "low", 64): (128, 64, 64, 8, 2),
    ("gradient", "low", 128): (128, 64, 128, 8, 2),
    ("gradient", "low", 256): (64, 64, 256, 8, 1),
    ("gradient", "fp32", 64): (32, 32, 64, 8, 1),
    ("heavy gradient", "low", 64): (64, 32, 64, 8, 1),
    ("heavy gradient", "low", 128): (64, 32, 128, 8, 1),
    ("heavy gradient", "fp32", 64): (32, 32, 64, 8, 1),
    ("weights", "low", 0): (128, 128, 64, 8, 3),
    ("weights", "fp32", 0): (64, 64, 32, 8, 2),
    ("heavy weights", "low", 0): (64, 64, 64, 8, 2),
    ("heavy weights", "fp32", 0): (64, 32, 32, 8, 1),
}


def config(kind: str, width: int, dtype: torch.dtype, heavy: bool) -> tuple[int, int, int, int, int]:
    """Tile rows, columns, depth, warps and stages; `heavy`: fused rows or given positives take registers too."""
    kind = f"heavy {kind}" if heavy else kind
    precision = "fp32" if dtype == torch.float32 else "low"
    for limit in (64, 128, 256):
        if width <= limit and (kind, precision, limit) in TUNED:
            return TUNED[kind, precision, limit]
    return TUNED[kind, precision, 0]


def tiled_backward(width: int, dtype: torch.dtype, heavy: bool) -> bool:
    """Whether the gradient is one kernel (W never leaves the registers) or chunks of W times cuBLAS.

    Above D = 256 (128 with fused rows or given positives, 64 in float32) the accumulator of a row tile alone needs all
    registers; recomputing s for slices of D costs more than writing W once in the input's dtype (break-even near 400).
    """
    return width <= (64 if dtype == torch.float32 else 128 if heavy else 256)


@triton.jit
def _load(z, stride, rows, inside, d, D: tl.constexpr, UPCAST: tl.constexpr):
    tile = tl.load(
        z + rows.to(tl.int64)[:, None] * stride + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0
    )
    if UPCAST:  # the interpreter's bfloat16 arithmetic is wrong
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _load_set(
    z, stride, fuse_a, fuse_b, fuse_w, center, rows, inside, d, count,
    D: tl.constexpr, FUSED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Rows of a plain set, or fused ones: w_a z[a] + w_b (z[b] or the centre), unit length by its weights."""
    if FUSED:
        a = tl.load(fuse_a + rows, mask=inside, other=0)
        b = tl.load(fuse_b + rows, mask=inside, other=0)
        w_a = tl.load(fuse_w + rows, mask=inside, other=0.0)
        w_b = tl.load(fuse_w + count + rows, mask=inside, other=0.0)
        first = _load(z, stride, tl.maximum(a, 0), inside, d, D, UPCAST)
        middle = tl.load(center + d, mask=d < D, other=0.0)
        second = _load(z, stride, tl.maximum(b, 0), inside & (b >= 0), d, D, UPCAST)
        mixed = w_a[:, None] * first.to(tl.float32) + w_b[:, None] * tl.where(
            (b < 0)[:, None], middle[None, :].to(tl.float32), second.to(tl.float32)
        )
        return mixed.to(first.dtype)
    else:
        return _load(z, stride, rows, inside, d, D, UPCAST)


@triton.jit
def _tile(
    x_tile, x, x_stride, rows, rows_inside, x_set, y, y_stride, columns, columns_inside, y_set, x_count, y_count,
    D: tl.constexpr, X_FUSED: tl.constexpr, Y_FUSED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    SINGLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """s of a tile, and the column tile where D fits into one."""
    if SINGLE:
        d = tl.arange(0, BK)
        y_tile = _load_set(
            y, y_stride, y_set[0], y_set[1], y_set[2], y_set[3], columns, columns_inside, d, y_count, D, Y_FUSED, UPCAST
        )
        s = tl.dot(x_tile, tl.trans(y_tile), input_precision=PRECISION)
    else:
        s = tl.zeros([BM, BN], tl.float32)
        y_tile = x_tile
        for k in range(0, D, BK):
            d = k + tl.arange(0, BK)
            a = _load_set(
                x, x_stride, x_set[0], x_set[1], x_set[2], x_set[3], rows, rows_inside, d, x_count, D, X_FUSED, UPCAST
            )
            b = _load_set(
                y, y_stride, y_set[0], y_set[1], y_set[2], y_set[3], columns, columns_inside, d, y_count, D, Y_FUSED,
                UPCAST,
            )  # fmt: skip
            s = tl.dot(a, tl.trans(b), s, input_precision=PRECISION)
    return s, y_tile


@triton.jit
def _positive(
    t, kind_x, kind_y, positives, p_row, p_column, rows, columns, inside, MASK: tl.constexpr, CHECK: tl.constexpr
):
    """Positive pairs, by a mask or by equal kinds; CHECK: not those that do not count (t = -inf)."""
    if MASK:
        found = tl.load(positives + rows.to(tl.int64)[:, None] * p_row + columns.to(tl.int64)[None, :] * p_column,
                        mask=inside, other=0) != 0  # fmt: skip
    else:
        found = kind_x[:, None] == kind_y[None, :]
    if CHECK:
        found = found & (t > float("-inf"))
    return found


@triton.jit
def _exclude(
    t, rows, columns, first_row, start, x_count, y_count, offset, fuse_a,
    SELF: tl.constexpr, FUSED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """-inf for self, for columns past the end and for fused rows that do not exist; most tiles have none of them."""
    own = first_row + offset
    touched = start + BN > y_count
    if SELF:
        touched = touched | ((start < own + BM) & (start + BN > own))
    if FUSED:
        exists = tl.load(fuse_a + columns, mask=columns < y_count, other=-1) >= 0
        t = tl.where(exists[None, :], t, float("-inf"))
    else:
        if touched:
            keep = (columns < y_count)[None, :] & (rows < x_count)[:, None]
            if SELF:
                keep = keep & (columns[None, :] != rows[:, None] + offset)
            t = tl.where(keep, t, float("-inf"))
    return t


@triton.jit
def sums_kernel(
    x, y,  # (X, D) and (Y, D), last stride 1; y is z where FUSED
    kinds_x, kinds_y,  # (X,), (Y,) int32
    fuse_a, fuse_b, fuse_w, center,  # (Y,), (Y,), (2, Y), (D,): read where FUSED
    positives,  # (X, Y) bool, read where MASK
    online,  # () int32
    log_sum,  # (X,) log2, read in STAGE 2
    out,  # (3, splits, X) float32: maximum, sum, sum over positives
    x_stride, y_stride, p_row, p_column, x_count, y_count, offset, split,
    scale, margin,
    D: tl.constexpr, SELF: tl.constexpr, FUSED: tl.constexpr, REAL_ROWS: tl.constexpr, MASK: tl.constexpr,
    NEGATIVES: tl.constexpr, STAGE: tl.constexpr, ONLINE: tl.constexpr, MARGIN: tl.constexpr,
    POSITIVE_SUM: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, SINGLE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """STAGE 1: sum of exponentials and of positive exponents. STAGE 2 ("negatives"): softplus and sigmoid sums."""
    if tl.load(online) == ONLINE:
        first_row = tl.program_id(0) * BM
        part = tl.program_id(1)
        rows = first_row + tl.arange(0, BM)
        inside = rows < x_count
        kind_x = tl.load(kinds_x + rows, mask=inside, other=-3)
        x_tile = _load(x, x_stride, rows, inside, tl.arange(0, BK), D, UPCAST)
        top = tl.full([BM], float("-inf"), tl.float32)
        total = tl.zeros([BM], tl.float32)
        pulled = tl.zeros([BM], tl.float32)
        if STAGE == 2:
            level = tl.load(log_sum + rows, mask=inside, other=0.0)
        for start in range(part * split, tl.minimum(part * split + split, y_count), BN):
            columns = start + tl.arange(0, BN)
            columns_inside = columns < y_count
            y_set = (fuse_a, fuse_b, fuse_w, center)
            s, _ = _tile(x_tile, x, x_stride, rows, inside, y_set, y, y_stride, columns, columns_inside, y_set,
                         x_count, y_count, D, False, FUSED, UPCAST, PRECISION, SINGLE, BM, BN, BK)  # fmt: skip
            t = _exclude(s * scale, rows, columns, first_row, start, x_count, y_count, offset, fuse_a,
                         SELF, FUSED, BM, BN)  # fmt: skip
            if MARGIN or NEGATIVES or POSITIVE_SUM:
                kind_y = tl.load(kinds_y + columns, mask=columns_inside, other=-2)
                both = inside[:, None] & columns_inside[None, :]
                positive = _positive(t, kind_x, kind_y, positives, p_row, p_column, rows, columns, both, MASK,
                                     NEGATIVES or POSITIVE_SUM)  # fmt: skip
                t = tl.where(positive, t - margin, t)
            if STAGE == 2:
                u = level[:, None] - t
                soft = tl.maximum(u, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(u)))
                total += tl.sum(tl.where(positive, soft, 0.0), axis=1)
                pulled += tl.sum(tl.where(positive, 1.0 / (1.0 + tl.exp2(-u)), 0.0), axis=1)
            else:
                if POSITIVE_SUM:
                    pulled += tl.sum(tl.where(positive, t, 0.0), axis=1)
                if NEGATIVES:
                    t = tl.where(positive, float("-inf"), t)
                if ONLINE:
                    higher = tl.maximum(top, tl.max(t, axis=1))
                    base = tl.where(higher > float("-inf"), higher, 0.0)
                    total = total * tl.exp2(top - base) + tl.sum(tl.exp2(t - base[:, None]), axis=1)
                    top = higher
                else:
                    total += tl.sum(tl.exp2(t), axis=1)
        if REAL_ROWS:
            top = tl.where(kind_x == 0, top, float("-inf"))
            total = tl.where(kind_x == 0, total, 0.0)
            pulled = tl.where(kind_x == 0, pulled, 0.0)
        place = out + part.to(tl.int64) * x_count + rows
        plane = tl.num_programs(1).to(tl.int64) * x_count
        if not ONLINE:
            top = tl.zeros([BM], tl.float32)
        tl.store(place, top, mask=inside)
        tl.store(place + plane, total, mask=inside)
        tl.store(place + 2 * plane, pulled, mask=inside)


@triton.jit
def _half(
    t, positive, margin, r, rho, log_r, c, level,
    ONLINE: tl.constexpr, NEGATIVES: tl.constexpr, IN_TILE: tl.constexpr,
):  # fmt: skip
    """One side's part of W; the coefficients come broadcast, along rows or along columns."""
    t = tl.where(positive, t - margin, t)
    w = tl.exp2(t - log_r) * r if ONLINE else tl.exp2(t) * rho
    if NEGATIVES:
        w = tl.where(positive, -c / (1.0 + tl.exp2(t - level)), w)
    elif IN_TILE:
        w = tl.where(positive, w - c, w)
    return w


@triton.jit
def _weights(
    t, rows, columns, rows_inside, columns_inside, kind_x, kinds_y, positives, p_row, p_column,
    cx, cy, x_count, y_count, margin,
    MASK: tl.constexpr, NEGATIVES: tl.constexpr, ONLINE: tl.constexpr, MARGIN: tl.constexpr, IN_TILE: tl.constexpr,
):  # fmt: skip
    """W of a tile from t = s * log2(e) / tau; cx, cy (5, X) and (5, Y): rho, r, log_r, c, level."""
    kind_y = tl.load(kinds_y + columns, mask=columns_inside, other=-2)
    both = rows_inside[:, None] & columns_inside[None, :]
    rho_x = tl.load(cx + rows, mask=rows_inside, other=0.0)[:, None]
    rho_y = tl.load(cy + columns, mask=columns_inside, other=0.0)[None, :]
    if MASK or NEGATIVES or ONLINE:
        r_x = tl.load(cx + x_count + rows, mask=rows_inside, other=0.0)[:, None]
        r_y = tl.load(cy + y_count + columns, mask=columns_inside, other=0.0)[None, :]
        log_x = tl.load(cx + 2 * x_count + rows, mask=rows_inside, other=float("inf"))[:, None]
        log_y = tl.load(cy + 2 * y_count + columns, mask=columns_inside, other=float("inf"))[None, :]
        c_x = tl.load(cx + 3 * x_count + rows, mask=rows_inside, other=0.0)[:, None]
        c_y = tl.load(cy + 3 * y_count + columns, mask=columns_inside, other=0.0)[None, :]
        level_x = tl.load(cx + 4 * x_count + rows, mask=rows_inside, other=0.0)[:, None]
        level_y = tl.load(cy + 4 * y_count + columns, mask=columns_inside, other=0.0)[None, :]
        forth = _positive(t, kind_x, kind_y, positives, p_row, p_column, rows, columns, both, MASK, True)
        back = forth
        if MASK:  # need not be symmetric
            back = _positive(t, kind_x, kind_y, positives, p_column, p_row, rows, columns, both, MASK, True)
        w = _half(t, forth, margin, r_x, rho_x, log_x, c_x, level_x, ONLINE, NEGATIVES, IN_TILE)
        w += _half(t, back, margin, r_y, rho_y, log_y, c_y, level_y, ONLINE, NEGATIVES, IN_TILE)
    else:
        if MARGIN or IN_TILE:
            positive = _positive(t, kind_x, kind_y, positives, p_row, p_column, rows, columns, both, False, IN_TILE)
            t = tl.where(positive, t - margin, t)
        w = tl.exp2(t) * (rho_x + rho_y)
        if IN_TILE:
            c_x = tl.load(cx + 3 * x_count + rows, mask=rows_inside, other=0.0)[:, None]
            c_y = tl.load(cy + 3 * y_count + columns, mask=columns_inside, other=0.0)[None, :]
            w = tl.where(positive, w - (c_x + c_y), w)
    return w


@triton.jit
def gradient_kernel(
    x, y, kinds_x, kinds_y,
    fuse_a, fuse_b, fuse_w, center,  # of x where X_FUSED, of y where Y_FUSED
    positives, online,
    cx, cy,  # (5, X), (5, Y) float32
    out,  # (splits, X, D) float32
    x_stride, y_stride, p_row, p_column, x_count, y_count, offset, split,
    scale, margin,
    D: tl.constexpr, SELF: tl.constexpr, X_FUSED: tl.constexpr, Y_FUSED: tl.constexpr, MASK: tl.constexpr,
    NEGATIVES: tl.constexpr, ONLINE: tl.constexpr, MARGIN: tl.constexpr, IN_TILE: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """sum_j W_ij y_j for D <= BK: one exponential and two products a tile."""
    if tl.load(online) == ONLINE:
        first_row = tl.program_id(0) * BM
        part = tl.program_id(1)
        rows = first_row + tl.arange(0, BM)
        inside = rows < x_count
        d = tl.arange(0, BK)
        kind_x = tl.load(kinds_x + rows, mask=inside, other=-3)
        x_tile = _load_set(x, x_stride, fuse_a, fuse_b, fuse_w, center, rows, inside, d, x_count, D, X_FUSED, UPCAST)
        total = tl.zeros([BM, BK], tl.float32)
        for start in range(part * split, tl.minimum(part * split + split, y_count), BN):
            columns = start + tl.arange(0, BN)
            columns_inside = columns < y_count
            y_set = (fuse_a, fuse_b, fuse_w, center)
            s, y_tile = _tile(x_tile, x, x_stride, rows, inside, y_set, y, y_stride, columns, columns_inside, y_set,
                              x_count, y_count, D, X_FUSED, Y_FUSED, UPCAST, PRECISION, True, BM, BN, BK)  # fmt: skip
            t = _exclude(s * scale, rows, columns, first_row, start, x_count, y_count, offset, fuse_a,
                         SELF, Y_FUSED, BM, BN)  # fmt: skip
            w = _weights(t, rows, columns, inside, columns_inside, kind_x, kinds_y, positives, p_row, p_column,
                         cx, cy, x_count, y_count, margin, MASK, NEGATIVES, ONLINE, MARGIN, IN_TILE)  # fmt: skip
            total = tl.dot(w.to(y_tile.dtype), y_tile, total, input_precision=PRECISION)
        place = out + (part.to(tl.int64) * x_count + rows)[:, None] * D + d[None, :]
        tl.store(place, total, mask=inside[:, None] & (d < D)[None, :])


@triton.jit
def weights_kernel(
    x, y, kinds_x, kinds_y, fuse_a, fuse_b, fuse_w, center, positives, online, cx, cy,
    out,  # (chunk, Y) of the input's dtype
    x_stride, y_stride, p_row, p_column, x_count, y_count, offset, begin, end,
    scale, margin,
    D: tl.constexpr, SELF: tl.constexpr, X_FUSED: tl.constexpr, Y_FUSED: tl.constexpr, MASK: tl.constexpr,
    NEGATIVES: tl.constexpr, ONLINE: tl.constexpr, MARGIN: tl.constexpr, IN_TILE: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """W of the rows [begin, end), for the matrix product that follows."""
    if tl.load(online) == ONLINE:
        tiles_m, tiles_n = tl.cdiv(end - begin, BM), tl.cdiv(y_count, BN)
        program = tl.program_id(0)
        group = program // (GROUP * tiles_n)  # a group of row tiles shares its columns in L2
        height = tl.minimum(tiles_m - group * GROUP, GROUP)
        inner = program % (GROUP * tiles_n)
        first_row = begin + (group * GROUP + inner % height) * BM
        start = (inner // height) * BN
        rows, columns = first_row + tl.arange(0, BM), start + tl.arange(0, BN)
        inside, columns_inside = rows < end, columns < y_count
        kind_x = tl.load(kinds_x + rows, mask=inside, other=-3)
        sets = (fuse_a, fuse_b, fuse_w, center)
        s, _ = _tile(0, x, x_stride, rows, inside, sets, y, y_stride, columns, columns_inside, sets, x_count, y_count,
                     D, X_FUSED, Y_FUSED, UPCAST, PRECISION, False, BM, BN, BK)  # fmt: skip
        t = _exclude(s * scale, rows, columns, first_row, start, x_count, y_count, offset, fuse_a,
                     SELF, Y_FUSED, BM, BN)  # fmt: skip
        w = _weights(t, rows, columns, inside, columns_inside, kind_x, kinds_y, positives, p_row, p_column,
                     cx, cy, x_count, y_count, margin, MASK, NEGATIVES, ONLINE, MARGIN, IN_TILE)  # fmt: skip
        place = out + (rows - begin).to(tl.int64)[:, None] * y_count + columns[None, :]
        tl.store(place, w.to(out.dtype.element_ty), mask=inside[:, None] & columns_inside[None, :])


@triton.jit
def positive_kernel(
    x, kinds, sums, out, x_stride, count,
    D: tl.constexpr, UPCAST: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[i] = x_i . (sums[kind_i] - x_i), sums (2, D) float32: the similarity to all mates without N x N work."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rows < count
    kind = tl.load(kinds + rows, mask=inside, other=0)
    total = tl.zeros([BM], tl.float32)
    for k in range(0, D, BK):
        d = k + tl.arange(0, BK)
        z = _load(x, x_stride, rows, inside, d, D, UPCAST).to(tl.float32)
        mates = tl.load(sums + kind[:, None] * D + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0)
        total += tl.sum(z * (mates - z), axis=1)
    tl.store(out + rows, total, mask=inside)


@triton.jit
def finish_kernel(
    parts,  # (P, X, D) float32
    x, kinds, c,  # (X, D), (X,) int32, (X,) float32
    sums, pulls,  # (2, D) float32: class sums of the columns, plain and weighted by c
    factor,  # () float32
    out,  # (X, D)
    x_stride, P, count,
    D: tl.constexpr, CLASS_SUMS: tl.constexpr, UPCAST: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """(sum of the parts - c (S - 2 x) - C) * factor, rounded once."""
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    d = tl.program_id(1) * BK + tl.arange(0, BK)
    inside = (rows < count)[:, None] & (d < D)[None, :]
    total = tl.zeros([BM, BK], tl.float32)
    for part in range(P):
        place = (tl.cast(part, tl.int64) * count + rows)[:, None] * D + d[None, :]
        total += tl.load(parts + place, mask=inside, other=0.0)
    if CLASS_SUMS:
        kind = tl.load(kinds + rows, mask=rows < count, other=0)
        z = _load(x, x_stride, rows, rows < count, d, D, UPCAST).to(tl.float32)
        place = kind[:, None] * D + d[None, :]
        mates = tl.load(sums + place, mask=inside, other=0.0)
        own = tl.load(c + rows, mask=rows < count, other=0.0)
        total -= own[:, None] * (mates - 2.0 * z) + tl.load(pulls + place, mask=inside, other=0.0)
    tl.store(out + rows[:, None] * D + d[None, :], (total * tl.load(factor)).to(out.dtype.element_ty), mask=inside)
