"""One rank of test_ranks_are_one_batch: python supcon_ranks.py STORE RANK."""

import itertools
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import supcon_margin_loss


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
    with pytest.raises(UsageError, match="works with labels"):
        supcon_margin_loss(z, labels, group=group, positives=torch.ones(14, 14) > 0)
    # the rank's own synthetic positives: both ranks' are not seen by the other
    extra = F.normalize(torch.randn(2, 6, dtype=torch.float64), dim=1)
    loss = supcon_margin_loss(z[own], labels[own], synthetic=extra * (1 if rank else -1), group=group)
    assert loss.isfinite()
    dist.destroy_process_group()
    print("equal to one process")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
