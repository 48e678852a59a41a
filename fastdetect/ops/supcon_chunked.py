"""supcon_margin_loss in row chunks of plain torch: the CPU path, and any device without Triton. Memory linear in N."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastdetect.ops import reference
from fastdetect.ops.ranks import sum_over_ranks

# Values of a tile: 1 MB of float32, so that the passes over it stay in a core's cache.
TILE = 1 << 18
# Where |x| stays below this, exp(x) and a million of them summed are normal float32 numbers: no maximum is needed.
EXPONENT_LIMIT = 40.0


class Problem(NamedTuple):
    """The arguments of the op, in the order of its schema; see supcon_margin.py."""

    z: Tensor  # (N, D) this rank's rows
    labels: Tensor  # (N,)
    columns: Tensor | None  # (C, D) every rank's rows; None: z
    column_labels: Tensor | None  # (C,)
    offset: int  # of z's rows in columns
    positives: Tensor | None  # (N, N) bool
    synthetic: Tensor | None  # (M, D)
    index_a: Tensor | None  # (K,) rows of every()
    index_b: Tensor | None  # (K,)
    weight: Tensor | None  # (K,)
    center: Tensor | None  # (D,)
    temperature: float
    margin: float
    real_anchors: bool
    negatives: bool  # denominator="negatives"
    binary: bool  # pairing="binary"
    fusion_grad: bool
    group: str = ""  # name of the process group that columns come from

    def every(self) -> Tensor:
        """(C, D) the samples of all ranks."""
        return self.z if self.columns is None else self.columns

    def all_labels(self) -> Tensor:
        return self.labels if self.column_labels is None else self.column_labels

    def anchors(self) -> Tensor:
        """(N,) bool."""
        return self.labels == 0 if self.real_anchors else torch.ones_like(self.labels, dtype=torch.bool)

    def kinds(self) -> Tensor:
        """(C,) class numbers of the columns: equal ones are positives."""
        labels = self.all_labels()
        return (labels > 0).long() if self.binary else labels.long().clamp(min=0)

    def wrong(self) -> Tensor:
        """() bool: a label of any rank, an index or a weight is out of range; no host sync."""
        found = (self.all_labels() < 0).any()
        for index in (self.index_a, self.index_b):
            if index is not None:
                found = found | ((index < -1) | (index >= len(self.every()))).any()
        return found if self.weight is None else found | ~((self.weight >= 0) & (self.weight <= 1)).all()

    def positives_per_row(self) -> Tensor:
        """(N,) |P(i)|, 0 for rows that are no anchors; no host sync."""
        own = slice(self.offset, self.offset + len(self.z))
        if self.positives is not None:
            count = self.positives.sum(dim=1) - self.positives.diagonal().long()
        else:
            ordered, kinds = self.kinds().sort()[0], self.kinds()[own]
            right = torch.searchsorted(ordered, kinds, right=True)
            count = right - torch.searchsorted(ordered, kinds) - 1
        if self.synthetic is not None:
            count = count + (self.labels == 0) * len(self.synthetic)
        return count * self.anchors()


class _Tiles:
    """Rows of x = (s - margin * positive) / temperature, self at -inf.

    The columns are the samples, the synthetic positives and the fused negatives. With `mirror` the anchors are
    put first and a tile begins at its own first row: each unordered pair of anchors is computed once.
    """

    def __init__(self, p: Problem, *, all_rows: bool, mirror: bool) -> None:
        dtype, device = reference.accumulation_dtype(p.z), p.z.device
        every_row = samples = p.every().to(dtype)
        kinds = p.kinds()
        self.p, self.mirror, self.samples = p, mirror, len(samples)
        every = torch.arange(len(p.z), device=device)
        anchors = every if all_rows or not p.real_anchors else every[p.anchors()]
        # The rows of p.z that the tiles' rows are; a slice where it is all of them, since indexing costs a copy.
        self.local: Tensor | slice = slice(None) if anchors is every else anchors
        self.position = anchors + p.offset if p.offset else anchors  # where they are among the columns
        self.order: Tensor | None = None
        if mirror and len(anchors) < self.samples:
            self.order = torch.cat([anchors, every[~p.anchors()]])
            samples, kinds = samples[self.order], kinds[self.order]
            self.position = every[: len(anchors)]
        self.columns, self.kinds, self.absent = samples, kinds, every[:0]
        if p.synthetic is not None:
            self.columns = torch.cat([self.columns, p.synthetic.to(dtype)])
            self.kinds = torch.cat([self.kinds, self.kinds.new_zeros(len(p.synthetic))])
        if p.index_a is not None and p.index_b is not None and p.weight is not None and p.center is not None:
            fused = reference.fuse_rows(every_row, p.index_a, p.index_b, p.weight, p.center)
            self.columns, self.absent = torch.cat([self.columns, fused]), p.index_a < 0
            self.kinds = torch.cat([self.kinds, torch.full_like(p.index_a, -1)])
        self.rows = self.columns[: len(anchors)] if mirror else self.columns[self.position]
        self.fake = (p.labels > 0)[self.local][:, None]
        self._product()

    def _product(self) -> None:
        """The two factors whose matrix product is x."""
        p, tau = self.p, self.p.temperature
        # |s| is at most the largest squared length, 1 for unit vectors (Cauchy-Schwarz). NaN and infinity: False.
        bound = torch.linalg.vector_norm(self.columns, dim=1).max().item() ** 2
        self.constant = (bound + p.margin) / tau <= EXPONENT_LIMIT
        self.left, self.right = self.rows / tau, self.columns
        self.folded = p.binary and p.positives is None and p.margin != 0
        if self.folded:  # margin * positive = margin / 2 * (1 + sign * sign): one more dimension, no pass over tiles
            sign = torch.where(self.kinds == 0, 1.0, -1.0).to(self.columns.dtype)[:, None]
            half = self.rows.new_full((len(self.rows), 1), -p.margin / (2 * tau))
            self.left = torch.cat([self.left, half * sign[self.position], half], dim=1)
            self.right = torch.cat([self.columns, sign, torch.ones_like(sign)], dim=1)

    def __iter__(self) -> Iterator[tuple[slice, int, Tensor]]:
        """(rows, first column, tile); the tile's memory is used again for the next one."""
        total = len(self.columns)
        size = min(256, max(16, TILE // total))
        memory = self.left.new_empty(min(size, len(self.left)) * total)
        for start in range(0, len(self.left), size):
            rows = slice(start, min(start + size, len(self.left)))
            count, first = rows.stop - start, start if self.mirror else 0
            x = memory[: count * (total - first)].view(count, total - first)
            torch.mm(self.left[rows], self.right[first:].T, out=x)
            if total > self.samples:
                extra = x[:, self.samples - first :]
                if not self.p.real_anchors:
                    extra.masked_fill_(self.fake[rows], -torch.inf)
                if len(self.absent):
                    extra[:, -len(self.absent) :].masked_fill_(self.absent, -torch.inf)
            x.scatter_(1, self.position[rows, None] - first, -torch.inf)
            if self.p.margin != 0 and not self.folded:
                x.sub_(self.positive(rows, first).to(x.dtype), alpha=self.p.margin / self.p.temperature)
            yield rows, first, x

    def positive(self, rows: slice, first: int) -> Tensor:
        """The tile's positive pairs, bool."""
        position = self.position[rows, None]
        if self.p.positives is None:
            found = self.kinds[position] == self.kinds[first:]
        else:
            extra = ~self.fake[rows] & (self.kinds[self.samples :] == 0)
            found = torch.cat([self.p.positives[self.local][rows], extra], dim=1)
        return found.scatter_(1, position - first, False)

    def pad(self, per_sample: Tensor, value: float) -> Tensor:
        """A number per sample as a number per column."""
        ordered = per_sample if self.order is None else per_sample[self.order]
        extra = len(self.columns) - self.samples
        return torch.cat([ordered, ordered.new_full((extra,), value)]) if extra else ordered


def _class_sums(p: Problem, weight: Tensor | None = None) -> Tensor:
    """(N, D) for each local row: the sum of its class's columns, itself among them; (N, 2D): also weighted."""
    samples = p.every().to(reference.accumulation_dtype(p.z))
    number = p.kinds()
    classes = int(number.max()) + 1
    if classes > 2 * len(number):  # any integers
        unique, number = number.unique(return_inverse=True)
        classes = len(unique)
    values = samples if weight is None else torch.cat([samples, samples * weight[:, None]], dim=1)
    sums = _added(samples.new_zeros(classes, values.shape[1]), number, values)
    return sums[number if p.columns is None else number[p.offset : p.offset + len(p.z)]]


def forward(p: Problem) -> tuple[Tensor, Tensor]:  # (N,), (3, N)
    """Loss per row, and (log normaliser, mean sigmoid, number of positives) per row for the backward."""
    tiles = _Tiles(p, all_rows=False, mirror=p.positives is None and p.columns is None and not p.negatives)
    z, anchors = p.z.to(tiles.left.dtype), len(tiles.rows)
    count = p.positives_per_row().to(z.dtype)
    loss = z.new_zeros(len(z))
    statistics = torch.stack([torch.full_like(count, -torch.inf), torch.ones_like(count), count])
    number = count[tiles.local].clamp(min=1)
    rows_sum, rows_log, rows_q = z.new_zeros(anchors), z.new_full((anchors,), -torch.inf), z.new_ones(anchors)
    rows_loss = z.new_zeros(anchors)
    for rows, first, x in tiles:
        after = slice(rows.stop - first, anchors - first)  # the tile's columns that are later rows
        if p.negatives:
            positive = tiles.positive(rows, first)
            rows_log[rows] = x.masked_fill(positive, -torch.inf).logsumexp(dim=1)
            t = rows_log[rows, None] - x
            rows_loss[rows] = torch.where(positive, torch.nn.functional.softplus(t), 0).sum(dim=1) / number[rows]
            rows_q[rows] = torch.where(positive, t.sigmoid(), 0).sum(dim=1) / number[rows]
            continue
        if p.positives is not None:
            rows_loss[rows] = -torch.where(tiles.positive(rows, first), x, 0).sum(dim=1) / number[rows]
        if tiles.constant:
            x.exp_()
            rows_sum[rows] += x.sum(dim=1)
            if tiles.mirror and rows.stop < anchors:
                rows_sum[rows.stop :] += x[:, after].sum(dim=0)
        else:
            rows_log[rows] = torch.logaddexp(rows_log[rows], x.logsumexp(dim=1))
            if tiles.mirror:
                rows_log[rows.stop :] = torch.logaddexp(rows_log[rows.stop :], x[:, after].logsumexp(dim=0))
    if not p.negatives:
        rows_log = rows_sum.log() if tiles.constant else rows_log
        if p.positives is None:
            total = _class_sums(p).sub_(z)
            if p.synthetic is not None:
                total += (p.labels == 0)[:, None] * p.synthetic.to(z.dtype).sum(dim=0)
            similar = total.mul_(z).sum(dim=1)[tiles.local]
            rows_loss = (p.margin - similar / number) / p.temperature
        rows_loss = rows_loss + rows_log
    loss[tiles.local], statistics[0][tiles.local], statistics[1][tiles.local] = rows_loss, rows_log, rows_q
    return loss.masked_fill_(count == 0, 0).masked_fill_(p.wrong(), torch.nan), statistics


def backward(p: Problem, coefficients: Tensor) -> tuple[Tensor, Tensor]:  # (N, D), (M, D)
    """Gradients of z and the synthetic positives.

    coefficients [3, C]: per sample upstream * q, upstream / |P|, log normaliser. Three ways to the same sum: class
    pairs are symmetric, so a tile serves its rows and its columns (mirror); given positives need not be, so the
    tile's transpose carries the rows' own part to the columns; with a group only own rows are wanted.
    """
    strip, masked = p.columns is not None, p.positives is not None
    tiles = _Tiles(p, all_rows=strip, mirror=not strip and not masked)
    grad, grad_rows = torch.zeros_like(tiles.columns), torch.empty_like(tiles.rows)
    r, c, log_sum = (tiles.pad(row.to(grad.dtype), 0.0) for row in coefficients)
    log_r = log_sum.masked_fill(r == 0, torch.inf)  # exp(-inf) * 0, never inf * 0
    rho = r * (-log_r).exp()
    for rows, first, x in tiles:
        i = slice(first, first + len(x)) if tiles.mirror else tiles.position[rows]
        j = slice(first, None)
        positive = tiles.positive(rows, first) if masked or p.negatives else None
        if tiles.constant and not p.negatives:
            x.exp_()
            w = x.mul_(rho[i][:, None] if masked else rho[i][:, None] + rho[j])
        else:
            w = (x - log_r[i][:, None]).exp_().mul_(r[i][:, None])
            if not masked:
                w += (x - log_r[j]).exp_().mul_(r[j])
        if p.negatives and positive is not None:
            pull = c[i][:, None] * (log_sum[i][:, None] - x).sigmoid()
            if not masked:
                pull += c[j] * (log_sum[j] - x).sigmoid()
            w = torch.where(positive, -pull, w)
        elif positive is not None:
            w -= c[i][:, None] * positive
        torch.mm(w, tiles.columns[first:], out=grad_rows[rows])
        after = rows.stop if tiles.mirror else tiles.samples if strip else 0
        if after < len(grad):
            grad[after:].addmm_(w[:, after - first :].T, tiles.rows[rows])
    if tiles.mirror:
        grad[: len(grad_rows)] += grad_rows
    else:
        grad.index_add_(0, tiles.position, grad_rows)
    return _finish(p, tiles, grad, coefficients[1].to(grad.dtype))


def _finish(p: Problem, tiles: _Tiles, grad: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Order of the samples, positive terms from class sums, the fused negatives' share."""
    samples, extra = grad[: tiles.samples], grad[tiles.samples :]
    if tiles.order is not None:
        samples = torch.empty_like(samples).index_copy_(0, tiles.order, samples)
    own = slice(p.offset, p.offset + len(p.z))
    samples, z = samples[own], p.z.to(grad.dtype)
    synthetic = extra[: 0 if p.synthetic is None else len(p.synthetic)]
    if not p.negatives and p.positives is None:
        mine = c[own, None]
        total, pulls = _class_sums(p, c).chunk(2, dim=1)
        total = total.sub(z, alpha=2)
        if p.synthetic is not None:
            real = (p.labels == 0)[:, None]
            total += real * p.synthetic.to(z.dtype).sum(dim=0)
            synthetic = synthetic - (mine * real * z).sum(dim=0)
        samples = samples - total.mul_(mine).add_(pulls)
    if p.fusion_grad and p.index_a is not None:
        samples = samples + fused_grad(p, extra[len(synthetic) :])
    dtype = p.z.dtype if p.synthetic is None else p.synthetic.dtype
    return (samples / p.temperature).to(p.z.dtype), (synthetic / p.temperature).to(dtype)


def fused_grad(p: Problem, grad: Tensor) -> Tensor:  # (N, D)
    """Gradient of z from that of the fused rows, through their normalisation; a row that does not exist gives none."""
    assert p.index_a is not None and p.index_b is not None and p.weight is not None and p.center is not None  # noqa: PT018
    grad = sum_over_ranks(grad, p.group)  # each rank has its own anchors' part
    every, w = p.every().to(grad.dtype), p.weight.to(grad.dtype)[:, None]
    a, b = (index.clamp(0, len(every) - 1) for index in (p.index_a, p.index_b))
    raw = w * every[a] + (1 - w) * torch.where((p.index_b < 0)[:, None], p.center.to(every.dtype), every[b])
    length = raw.norm(dim=1, keepdim=True).clamp(min=1e-12)
    unit = raw / length
    flow = (grad - (grad * unit).sum(dim=1, keepdim=True) * unit) / length
    flow = torch.where((p.index_a < 0)[:, None], 0, flow)
    shares = torch.cat([w * flow, torch.where((p.index_b < 0)[:, None], 0, (1 - w) * flow)])
    out = _added(torch.zeros_like(every), torch.cat([a, b]), shares)
    return out[p.offset : p.offset + len(p.z)]


def _added(out: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """out[index] += rows, in place: sorted sums on CUDA, where index_add_ uses atomics, one thread on the CPU."""
    return out.index_put_((index,), rows, accumulate=True) if out.is_cuda else out.index_add_(0, index, rows)
