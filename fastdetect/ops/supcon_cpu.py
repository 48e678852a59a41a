"""supcon_margin_loss by the C++ core: class pairs with denominator="all" on the CPU; see docs/kernels.md."""

import torch
from torch import Tensor

from fastdetect.ops import reference
from fastdetect.ops.backend import load_cpu_library
from fastdetect.ops.supcon_chunked import Problem, fused_grad

MAX_WIDTH = 4096  # 12 rows of it are on a thread's stack


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
