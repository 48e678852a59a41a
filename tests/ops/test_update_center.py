"""update_center: the definition, the fused op against it, groups of processes, registration, errors."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import backend, update_center

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def make(n: int, d: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    z = torch.nn.functional.normalize(torch.randn(d) + torch.randn(n, d), dim=-1).to(dtype).to(device)
    labels = (torch.randint(0, 2, (n,)) * torch.randint(1, 4, (n,))).to(device)
    return torch.nn.functional.normalize(torch.randn(d), dim=0).to(device), z, labels


def by_definition(center: Tensor | None, z: Tensor, labels: Tensor, momentum: float) -> Tensor:
    """METHODS 2.2 in float64."""
    reals = z[labels == 0].double()
    old = z.new_zeros(z.shape[1], dtype=torch.float64) if center is None else center.double()
    if len(reals) == 0:
        return old
    mean = reals.mean(dim=0)
    mixed = mean if not old.any() else momentum * old + (1 - momentum) * mean
    return mixed / mixed.norm()


@pytest.mark.parametrize("shape", [(64, 128), (50, 37), (1, 16), (40, 1024), (3000, 16), (70, 1)])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
@pytest.mark.parametrize("start", ["center", "none", "zero"])
def test_definition(device: str, shape: tuple[int, int], dtype: torch.dtype, start: str) -> None:
    center, z, labels = make(*shape, dtype, device)
    labels[0] = 0
    old = {"center": center, "none": None, "zero": 0 * center}[start]
    assert backend.fused_synthesis(z, old) == (dtype != torch.float64)
    new = update_center(old, z, labels, momentum=0.8)
    assert new.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = 1e-12 if start == "none" and dtype == torch.float64 else 2e-6
    torch.testing.assert_close(new.double(), by_definition(old, z, labels, 0.8), rtol=exact, atol=exact)


@pytest.mark.parametrize("fused", [True, False])
def test_no_reals_leave_it_unchanged(device: str, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    center, z, labels = make(20, 8, device=device)
    for rows in (20, 0):
        assert torch.equal(update_center(3 * center, z[:rows], labels[:rows] * 0 + 1), 3 * center)
        assert (update_center(None, z[:rows], labels[:rows] * 0 + 1) == 0).all()


@pytest.mark.parametrize("fused", [True, False])
def test_opposite_reals_leave_it_unchanged(device: str, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], device=device)
    center, labels = torch.tensor([0.6, 0.8], device=device), torch.zeros(2, dtype=torch.int64, device=device)
    assert torch.equal(update_center(center, z, labels, momentum=0.0), center)


def test_momentum_ends(device: str) -> None:
    center, z, labels = make(20, 8, device=device)
    torch.testing.assert_close(update_center(center, z, labels, momentum=1.0), center)
    torch.testing.assert_close(update_center(center, z, labels, momentum=0.0), update_center(None, z, labels))


@pytest.mark.parametrize("fused", [True, False])
def test_fakes_are_not_read(device: str, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    center, z, labels = make(200, 24, device=device)
    expected = update_center(center, z, labels)
    z[labels > 0] = torch.nan
    assert torch.equal(update_center(center, z, labels), expected)


def test_no_gradient_and_no_change_in_place(device: str) -> None:
    center, z, labels = make(20, 8, device=device)
    kept = center.clone()
    new = update_center(center.requires_grad_(), z.requires_grad_(), labels)
    assert not new.requires_grad
    assert torch.equal(center, kept)


def test_non_contiguous(device: str) -> None:
    center, z, labels = make(200, 24, device=device)
    expected = update_center(center, z, labels)
    for view in (torch.nn.functional.pad(z, (1, 2))[:, 1:-2], z.t().contiguous().t()):
        assert not view.is_contiguous()
        torch.testing.assert_close(update_center(center, view, labels.to(torch.int32)), expected)
    torch.testing.assert_close(update_center(torch.stack([center, center], dim=1)[:, 0], z, labels), expected)


def test_deterministic_over_threads(device: str, nan_filled_memory: None) -> None:
    center, z, labels = make(5000, 64, device=device)
    threads, centers = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        centers.append(update_center(center, z, labels))
    torch.set_num_threads(threads)
    assert all(torch.equal(c, centers[0]) for c in centers)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 200), d=st.integers(1, 50), momentum=st.floats(0, 1), first=st.booleans(), reals=st.floats(0, 1)
)
def test_any_shape(n: int, d: int, momentum: float, first: bool, reals: float) -> None:
    center, z, _ = make(n, d)
    labels = (torch.rand(n) >= reals).long()
    old = None if first else center
    expected = by_definition(old, z, labels, momentum)
    if expected.isfinite().all():  # D = 1 can cancel
        torch.testing.assert_close(
            update_center(old, z, labels, momentum=momentum).double(), expected, rtol=1e-4, atol=1e-5
        )


def test_opcheck(device: str) -> None:
    center, z, labels = make(20, 8, device=device)
    torch.library.opcheck(torch.ops.fastdetect.real_sums.default, (z, labels))
    sums = torch.cat([z[labels == 0].sum(dim=0), (labels == 0).sum()[None]])
    torch.library.opcheck(torch.ops.fastdetect.mix_center.default, (center, sums, 0.9))


def test_compile_and_export(device: str) -> None:
    class Center(torch.nn.Module):
        def forward(self, center: Tensor, z: Tensor, labels: Tensor) -> Tensor:
            return update_center(center, z.sin(), labels) * 2

    module, compiled = Center(), torch.compile(Center(), fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (20, 33):
        args = make(n, 8, device=device)
        torch.testing.assert_close(compiled(*args), module(*args))
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(module, args, dynamic_shapes=(None, {0: rows}, {0: rows}))
    other = make(9, 8, device=device)
    torch.testing.assert_close(program.module()(*other), module(*other))


def _one_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    center, z, labels = make(31, 12)
    labels[20:] = 1  # rank 1 has no real
    labels[0] = 0
    mine = slice(0, 20) if rank == 0 else slice(20, 31)
    world = torch.distributed.group.WORLD
    together = update_center(center, z[mine], labels[mine], group=world)
    torch.testing.assert_close(together, update_center(center, z, labels), rtol=1e-5, atol=1e-6)
    alone = update_center(center, z[mine], labels[mine])
    assert torch.equal(alone, center) == (rank == 1)
    exact = update_center(center.double(), z[mine], labels[mine], group=world)
    torch.testing.assert_close(exact, update_center(center.double(), z, labels))
    for kind in (torch.float32, torch.float64):  # fused, reference
        wrong, broken = labels[mine] - 2 * rank, z[mine].to(kind)
        with pytest.raises(ShapeError, match="got -1 at row 0" if rank else "negative one on another rank"):
            update_center(center, broken, wrong, group=world)
        if rank == 0:
            broken = broken.clone()
            broken[labels[mine] == 0] = math.nan
        with pytest.raises(ShapeError, match="another rank of the group has such a row" if rank else "infinity at row"):
            update_center(center, broken, labels[mine], group=world)
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)


@pytest.mark.gpu
def test_cuda_is_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for dtype in FLOATS:
        center, z, labels = make(5000, 200, dtype)
        expected = update_center(center, z, labels)
        runs = [update_center(center.cuda(), z.cuda(), labels.cuda()).cpu() for _ in range(5)]
        assert all(torch.equal(run, runs[0]) for run in runs)
        torch.testing.assert_close(runs[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_cuda_poisons_what_it_cannot_look_at() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    center, z, labels = make(50, 16, device="cuda")
    assert update_center(center, z, labels - 1).isnan().all()
    assert update_center(center, z * torch.nan, labels).isnan().all()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"momentum": 1.1}, UsageError, r"momentum: got 1.1, want 0 to 1"),
        ({"momentum": math.nan}, UsageError, r"momentum: got nan"),
        ({"z": [[1.0]]}, ShapeError, r"z: got list, want a torch.Tensor"),
        ({"center": 0.0}, ShapeError, r"center: got float, want a torch.Tensor"),
        ({"z": torch.rand(4)}, ShapeError, r"z: got shape \(4,\), want \[N, D\]"),
        ({"z": torch.ones(4, 3, dtype=torch.int32)}, ShapeError, r"z: got torch.int32, want one of float32"),
        ({"labels": torch.zeros(4)}, ShapeError, r"labels: got torch.float32, want integers"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ShapeError, r"labels: got shape \(5,\), want \(4,\)"),
        ({"labels": torch.tensor([0, 0, -3, 1])}, ShapeError, r"labels: got -3 at row 2, want 0 = real"),
        ({"center": torch.ones(4)}, ShapeError, r"center: got shape \(4,\), want \(3,\)"),
        ({"center": torch.ones(3, dtype=torch.int64)}, ShapeError, r"center: got torch.int64"),
        ({"center": torch.ones(3, device="meta")}, ShapeError, r"center: got device meta, want z's cpu"),
        (
            {"z": torch.tensor([[1.0], [1], [math.nan], [1]]).expand(4, 3)},
            ShapeError,
            r"z: got NaN or infinity at row 2",
        ),
        ({"z": torch.full((4, 3), 3e38)}, ShapeError, r"z: got NaN or infinity: the sum of the reals overflows"),
    ],
)
def test_errors(
    monkeypatch: pytest.MonkeyPatch, fused: bool, change: dict, error: type[Exception], message: str
) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    args = {"center": None, "z": torch.rand(4, 3), "labels": torch.zeros(4, dtype=torch.int64)} | change
    with pytest.raises(error, match=message):
        update_center(**args)
