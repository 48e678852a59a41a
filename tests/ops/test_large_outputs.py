"""CPU outputs of 32 MB and more, whose pages are kept for the next call (csrc/torch_pages.h)."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdetect.ops import backend, masked_patch_loss, patch_residual, release_memory, synthesize_positives

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the allocator of torch gives the memory"),
    pytest.mark.skipif(not backend.fused_synthesis(torch.empty(1, 1), None), reason="the CPU library is not built"),
]
ROWS, WIDTH = 70_000, 128  # 36 MB


def synthesis_gradient(rows: int = ROWS) -> Tensor:
    torch.manual_seed(rows)
    z = torch.nn.functional.normalize(torch.randn(rows, WIDTH), dim=1).requires_grad_()
    labels = torch.arange(rows) % 3
    made, _, _ = synthesize_positives(z, labels, z.detach()[0], rho=0.5, seed=1)
    return torch.autograd.grad(made, z, torch.ones_like(made))[0]


def loss_gradient() -> Tensor:
    torch.manual_seed(0)
    pred = torch.randn(64, 196, 768, requires_grad=True)
    mask = torch.rand(64, 196) < 0.75
    loss = masked_patch_loss(pred, torch.rand(64, 3, 224, 224), mask, patch_size=16)
    return torch.autograd.grad(loss, pred)[0]


def residual() -> Tensor:
    torch.manual_seed(0)
    assignment = torch.rand(2, 196) < 0.4
    return patch_residual(torch.randn(2, 64, 196, 768), torch.rand(64, 3, 224, 224), assignment, patch_size=16)[0]


@pytest.mark.parametrize("make", [synthesis_gradient, loss_gradient, residual])
def test_reused_pages_show_nothing_of_what_was_there(make: Callable[[], Tensor]) -> None:
    first = make()
    assert first.nbytes >= 2**25
    assert first.is_contiguous()
    want, place = first.clone(), first.data_ptr()
    first.fill_(torch.nan)
    del first
    again = make()
    assert again.data_ptr() == place  # what makes it fast
    assert torch.equal(again, want)


def test_pages_in_use_are_not_given_out() -> None:
    held = [synthesis_gradient() for _ in range(4)]
    assert len({one.data_ptr() for one in held}) == 4
    assert all(torch.equal(one, held[0]) for one in held)


def test_threads_do_not_share_pages() -> None:
    core = torch.ops.fastdetect_cpu

    def gradient_of(rows: int) -> Callable[[], Tensor]:
        rng = torch.Generator().manual_seed(rows)
        z = torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=rng), dim=1)
        index = torch.arange(0, rows, 7)
        grad, lam = torch.randn(len(index), WIDTH, generator=rng), torch.full((len(index),), 0.3)
        return lambda: core.synthesize_backward(grad, z, z[0].contiguous(), index, lam)

    def same_each_time(rows: int) -> bool:
        make = gradient_of(rows)
        want = make().clone()
        return all(torch.equal(make(), want) for _ in range(8))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same_each_time, [ROWS, ROWS, ROWS + 1000, ROWS + 2000]))


def test_two_are_kept_and_no_more() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    core = torch.ops.fastdetect_cpu
    rows = 400_000  # 205 MB
    z = torch.zeros(rows, WIDTH)
    z[:, 0] = 1
    index, grad, lam = torch.tensor([5]), torch.ones(1, WIDTH), torch.ones(1)
    before = resident()
    for more in range(6):  # another size each time: nothing kept fits
        core.synthesize_backward(grad, z[: rows - 9000 * more], z[0].contiguous(), index, lam)
    grown = resident() - before
    assert grown < 2.3 * z.nbytes
    assert release_memory() > 1.5 * z.nbytes
    assert resident() - before < 0.1 * z.nbytes
    assert release_memory() == 0
