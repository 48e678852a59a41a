"""One rank of test_supcon_margin.py's test_ranks_are_one_batch: python supcon_ranks.py STORE RANK."""

import itertools
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from fastdetect.errors import ShapeError, UsageError
from fastdetect.losses import RealCentricLoss
from fastdetect.ops import supcon_margin_loss


def real_centric(rank: int, group: dist.ProcessGroup) -> None:
    """Centre, mining, fused negatives and loss of the global batch: values, gradients and state of one process."""
    own = slice(12 * rank, 12 * rank + 12)
    for detach, fusion, denominator, reduction in (
        (True, False, "all", "mean"),
        (False, True, "negatives", "mean"),
        (False, True, "all", "none"),
    ):
        options = {"detach": detach, "fusion_grad": fusion, "denominator": denominator, "reduction": reduction}
        single = RealCentricLoss(6, n_hard=5, n_fused=7, seed=3, **options)
        ranked = RealCentricLoss(6, n_hard=5, n_fused=7, seed=3, group=group, **options)
        for labels in (torch.arange(24) % 3, (torch.arange(24) < 12).long(), torch.ones(24, dtype=torch.long)):
            full = torch.randn(24, 6, dtype=torch.float64, requires_grad=True)
            mine = full.detach()[own].clone().requires_grad_()
            one, two = single(full, labels), ranked(mine, labels[own])
            torch.testing.assert_close(two, one[own] if one.dim() else one)
            one.sum().backward()
            two.sum().backward()
            torch.testing.assert_close(mine.grad, full.grad[own])
        for name, value in single.state_dict().items():
            assert torch.equal(value, ranked.state_dict()[name]), name


def main(store: str, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    group = dist.group.WORLD
    torch.manual_seed(0)
    z, labels = F.normalize(torch.randn(14, 6, dtype=torch.float64), dim=1), torch.randint(0, 3, (14,))
    own = slice(7 * rank, 7 * rank + 7)
    names = ("anchors", "denominator", "pairing", "temperature", "reduction")
    choices = (("all", "real"), ("all", "negatives"), ("binary", "label"))
    for choice in itertools.product(*choices, (0.1, 0.01), ("mean", "none")):
        options = dict(zip(names, choice, strict=True))
        full, mine = z.clone().requires_grad_(), z[own].clone().requires_grad_()
        one = supcon_margin_loss(full, labels, **options)
        two = supcon_margin_loss(mine, labels[own], group=group, **options)
        upstream = torch.linspace(-1, 2, 14, dtype=torch.float64) if one.dim() else torch.tensor(3.0)
        torch.testing.assert_close(two, one[own] if one.dim() else one)
        (one * upstream).sum().backward()
        (two * (upstream[own] if one.dim() else upstream)).sum().backward()
        torch.testing.assert_close(mine.grad, full.grad[own])
    with pytest.raises(ShapeError, match=r"got \[3, 4\] rows on the group's ranks"):
        supcon_margin_loss(z[: 3 + rank], labels[: 3 + rank], group=group)
    wrong = labels[own].clone()
    wrong[3 * rank] = -rank  # on rank 1 alone; both raise and neither waits
    for reduction in ("mean", "none"):
        with pytest.raises(ShapeError, match="labels: got -1, want at least 0"):
            supcon_margin_loss(z[own], wrong, group=group, reduction=reduction)
    with pytest.raises(UsageError, match=r"group: .* not under torch.func or forward-mode AD; got the reference"):
        torch.func.grad(lambda x: supcon_margin_loss(x, labels[own], group=group))(z[own])
    with pytest.raises(UsageError, match="works with labels"):
        supcon_margin_loss(z, labels, group=group, positives=torch.ones(14, 14) > 0)
    real_centric(rank, group)
    dist.destroy_process_group()
    print("equal to one process")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
