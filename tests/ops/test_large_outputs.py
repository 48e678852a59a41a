"""CPU outputs of 32 MB and more: pages kept for the next call (torch_pages.h), stores past the caches (streaming.h)."""

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
LARGE = 2**25
LEVELS = ("baseline", "avx2", "avx512")
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
    assert first.nbytes >= LARGE
    assert first.is_contiguous()
    want, place = first.clone(), first.data_ptr()
    first.fill_(torch.nan)
    del first
    again = make()
    assert again.data_ptr() == place  # what makes it fast
    assert torch.equal(again, want)


# Rows of whole cache lines, and rows that share lines with their neighbours, also with another thread's.
@pytest.mark.parametrize("width", [128, 131, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_streamed_gradient_is_that_of_small_outputs(width: int, dtype: torch.dtype) -> None:
    core = torch.ops.fastdetect_cpu
    rows = LARGE // (width * dtype.itemsize) + 1001
    rng = torch.Generator().manual_seed(width)
    z = torch.nn.functional.normalize(torch.randn(rows, width, generator=rng), dim=1).to(dtype)
    index = torch.nonzero(torch.rand(rows, generator=rng) < 0.2).flatten()
    grad, lam = torch.randn(len(index), width, generator=rng).to(dtype), torch.rand(len(index), generator=rng)
    center = torch.nn.functional.normalize(torch.randn(width, generator=rng), dim=0)
    got = core.synthesize_backward(grad, z, center, index, lam)
    assert got.nbytes >= LARGE
    for first in range(0, rows, rows // 3 + 1):
        last = min(first + rows // 3 + 1, rows)
        here = (index >= first) & (index < last)
        want = core.synthesize_backward(grad[here], z[first:last], center, index[here] - first, lam[here])
        assert want.nbytes < LARGE
        assert torch.equal(got[first:last], want)


@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("patch", [16, 5])
def test_streamed_loss_gradient_is_that_of_small_outputs(patch: int, dtype: torch.dtype, norm_pix: bool) -> None:
    length, patches = patch * patch * 3, (80 // patch) ** 2
    batch = LARGE // (length * patches * dtype.itemsize) + 5
    rng = torch.Generator().manual_seed(patch)
    pred = torch.randn(batch, patches, length, generator=rng).to(dtype).requires_grad_()
    images = torch.rand(batch, 3, 80, 80, generator=rng)
    mask = torch.rand(batch, patches, generator=rng) < 0.75

    def gradient(part: slice) -> Tensor:
        loss = masked_patch_loss(
            pred[part], images[part], mask[part], patch_size=patch, norm_pix=norm_pix, reduction="sum"
        )
        return torch.autograd.grad(loss, pred)[0][part]

    got = gradient(slice(None))
    assert got.nbytes >= LARGE
    for part in (slice(0, batch // 2), slice(batch // 2, batch)):
        assert torch.equal(got[part], gradient(part))


def test_streamed_loss_gradient_on_every_instruction_set() -> None:
    _host = pytest.importorskip("fastdetect._host")
    rng = torch.Generator().manual_seed(0)
    pred, images = torch.randn(300, 196, 147, generator=rng), torch.rand(300, 3, 98, 98, generator=rng)
    mask = (torch.rand(300, 196, generator=rng) < 0.75).float()
    pred.requires_grad_()
    loss = masked_patch_loss(pred, images, mask, patch_size=7)
    [want] = torch.autograd.grad(loss, pred)
    assert want.nbytes >= LARGE
    for level in LEVELS[: LEVELS.index(_host.build_info()["cpu_level"]) + 1]:
        arrays = (pred.detach().numpy(), images.numpy(), mask.numpy())
        _, got = _host.masked_patch_loss(*arrays, patch_size=7, threads=2, level=level)
        torch.testing.assert_close(torch.from_numpy(got), want)


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
