"""The rows of all ranks of a process group, as one batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastdetect.errors import ShapeError


def gather_rows(rows: Tensor, group: dist.ProcessGroup, *, equal: bool = False) -> Tensor:
    """Rows [N, ...] of every rank as [ranks * N, ...], in the order of the ranks; the gradients of all come back.

    Every rank has to call it, and to take the backward, together with the others.

    Args:
        rows: [N, ...], as many on each rank.
        group: the ranks.
        equal: it is known that they have as many.

    Raises:
        ShapeError: the ranks have different numbers of rows. Looked at on the CPU only: on CUDA it would stall the
            stream, and NCCL itself wants equal sizes.
    """
    if not equal and rows.device.type == "cpu":
        sizes = _gather(torch.tensor([rows.shape[0]]), group).tolist()
        if len(set(sizes)) > 1:
            raise ShapeError(f"z: got {sizes} rows on the group's ranks, want as many on each (drop_last=True)")
    if rows.requires_grad and torch.is_grad_enabled():
        gathered: Tensor = _GatherRows.apply(rows, group)
        return gathered
    return _gather(rows, group)


def _gather(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty(dist.get_world_size(group) * rows.shape[0], *rows.shape[1:])
    dist.all_gather_into_tensor(out, rows.detach().contiguous(), group=group)
    return out


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.count = group, rows.shape[0]
        return _gather(rows, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)  # gloo has no reduce-scatter
        first = dist.get_rank(ctx.group) * ctx.count
        return total[first : first + ctx.count], None


def sum_over_ranks(tensor: Tensor, group_name: str) -> Tensor:
    """Sum of a tensor over the ranks of the group of that name (an op's schema takes no group); "": as it is."""
    if group_name:
        tensor = tensor.contiguous()
        dist.all_reduce(tensor, group=by_name(group_name))
    return tensor


def by_name(group_name: str) -> dist.ProcessGroup:
    """The process group that `group.group_name` stands for."""
    resolve: Any = dist.distributed_c10d._resolve_process_group  # newer torch types the name
    found: dist.ProcessGroup = resolve(group_name)
    return found
