"""supcon_margin_loss by the C++ core: class pairs with denominator="all" on the CPU; see docs/kernels.md."""

from typing import Any

import torch
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import reference
from fastdetect.ops.backend import by_reference, load_cpu_library, traced
from fastdetect.ops.supcon_chunked import Problem, fused_grad

MAX_WIDTH = 4096  # 12 rows of it are on a thread's stack
NO_DOUBLE_BACKWARD = (
    "supcon_margin_loss has no double backward: drop create_graph=True or set FASTDETECT_BACKEND=reference"
)
_REDUCTIONS = {"mean": 0, "mean_all": 1, "sum": 2}  # csrc/supcon.h


def takes(p: Problem) -> bool:
    """Whether the core computes this kind of problem: not given positives, "negatives" or float64."""
    if p.positives is not None or p.negatives or p.z.device.type != "cpu" or p.z.dtype == torch.float64:
        return False
    return p.z.shape[1] <= MAX_WIDTH and load_cpu_library()


def forward(p: Problem, level: int = -1) -> tuple[Tensor, Tensor] | None:  # (N,), (3, N)
    """As supcon_chunked.forward, on an instruction set (-1: the best); None where exponents need a running maximum."""
    loss, statistics = torch.ops.fastdetect_cpu.supcon(*_arguments(_existing(p)), level)
    return (loss, statistics) if len(loss) else None


def backward(p: Problem, coefficients: Tensor, level: int = -1) -> tuple[Tensor, Tensor] | None:  # (N, D), (M, D)
    """As supcon_chunked.backward; None where exponents need a running maximum."""
    p = _existing(p)
    fused_rows = len(p.index_a) if p.index_a is not None and p.fusion_grad else 0
    run, upstream = torch.ops.fastdetect_cpu.supcon_backward, coefficients.float().contiguous()
    samples, others = run(*_arguments(p), upstream, fused_rows > 0, level)
    if not len(samples):
        return None
    if fused_rows:
        others, fused = others.tensor_split([len(others) - fused_rows])
        others, samples = others.clone(), samples + fused_grad(p, fused)
    return samples.to(p.z.dtype), others.to(p.z.dtype)  # as synthetic's


def reduces(p: Problem, reduction: str) -> bool:
    """Whether `reduced` can be called: not for "none", a gradient of the fused fakes, a tracer."""
    if traced(p.z, p.labels, p.synthetic) or by_reference():
        return False
    return reduction in _REDUCTIONS and not p.fusion_grad and takes(p)


def reduced(p: Problem, reduction: str, scale: float) -> Tensor | None:  # ()
    """The loss times scale, its gradient made in the same call: around a batch of 64, calls cost more than products.

    None where exponents need a running maximum.
    """
    z, synthetic = p.z, p.synthetic
    learns = torch.is_grad_enabled() and (z.requires_grad or (synthetic is not None and synthetic.requires_grad))
    loss = _Reduced.apply(z, synthetic, p, reduction, scale, learns)
    return loss if loss.numel() else None


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:  # ctx first: apply() then inspects no signature
        z, _, p, reduction, scale, learns = args
        columns, labels, others, _, _, *options = _arguments(_existing(p))
        run = torch.ops.fastdetect_cpu.supcon_reduced.default
        lowest, loss, grad = run(columns, labels, others, *options, _REDUCTIONS[reduction], scale, learns)
        if lowest < 0:
            refuse_label(lowest)
        if learns:
            ctx.save_for_backward(grad)
            ctx.rows, ctx.dtype = len(z), z.dtype
        assert isinstance(loss, Tensor)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise UsageError(NO_DOUBLE_BACKWARD)
        grad = (ctx.saved_tensors[0] * upstream).to(ctx.dtype)
        own, others = ctx.needs_input_grad[:2]
        return grad[: ctx.rows] if own else None, grad[ctx.rows :] if others else None, *(None,) * 4


def refuse_label(lowest: int) -> None:
    """Raises ShapeError: a label is negative."""
    raise ShapeError(f"labels: got {lowest}, want at least 0 (0 = real, > 0 = fake)")


def _existing(p: Problem) -> Problem:
    """Without the fused negatives that do not exist."""
    if p.index_a is None or p.index_b is None or p.weight is None or not (p.index_a < 0).any():
        return p
    there = p.index_a >= 0
    return p._replace(index_a=p.index_a[there], index_b=p.index_b[there], weight=p.weight[there])


def _arguments(p: Problem) -> tuple[Tensor, Tensor, int, int, int, float, float, bool, bool]:
    columns, synthetic = p.every().float(), 0
    parts = [columns]
    if p.synthetic is not None:
        synthetic = len(p.synthetic)
        parts.append(p.synthetic.float())
    if p.index_a is not None and p.index_b is not None and p.weight is not None and p.center is not None:
        parts.append(reference.fuse_rows(columns, p.index_a, p.index_b, p.weight, p.center))
    if len(parts) > 1:
        columns = torch.cat(parts)
    labels = p.all_labels().to(torch.int64).contiguous()
    return (
        columns.contiguous(), labels, synthetic, p.offset, len(p.z), p.temperature, p.margin, p.real_anchors, p.binary,
    )  # fmt: skip
