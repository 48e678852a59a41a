"""synthesize_positives: the reference against its definition in loops, the fused op against it, its registration."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import backend, reference, synthesize_positives, update_center

FLOATS = [torch.float32, torch.bfloat16, torch.float16]

# (N, D): usual; D no multiple of a vector; one row; D = 1024; many rows, so that threads share the work.
SHAPES = [(64, 128), (50, 37), (1, 16), (40, 1024), (3000, 16)]


def make(
    n: int, d: int, dtype: torch.dtype = torch.float32, device: str = "cpu", spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Reals around a direction, fakes around another one not far away, and the reals' centre."""
    direction, other = torch.nn.functional.normalize(torch.randn(2, d), dim=-1)
    labels = torch.randint(0, 2, (n,)) * torch.randint(1, 4, (n,))
    labels[0] = 0
    middle = torch.where((labels == 0)[:, None], direction, direction + other)
    z = torch.nn.functional.normalize(middle + spread * torch.randn(n, d) / d**0.5, dim=-1)
    center = torch.nn.functional.normalize(z[labels == 0].mean(dim=0), dim=0)
    return z.to(dtype).to(device), labels.to(device), center.to(device)


def with_grad(function, z: Tensor, *args, upstream: Tensor | None = None, **kwargs) -> tuple[Tensor, ...]:
    z = z.detach().clone().requires_grad_()
    z_new, index, lam = function(z, *args, **kwargs)
    upstream = torch.ones_like(z_new) if upstream is None else upstream.to(z_new.dtype)
    (grad,) = torch.autograd.grad(z_new, z, upstream)
    return z_new.detach(), index, lam, grad


def truth(z: Tensor, labels: Tensor, center: Tensor, **kwargs) -> tuple[Tensor, ...]:
    options = {"rho": 0.25, "lam_max": 0.5, "seed": 0, "lam": None, "guard": True, "size": None} | kwargs
    upstream = options.pop("upstream", None)
    return with_grad(reference.synthesize_positives, z, labels, center, upstream=upstream, **options)


def by_definition(z: Tensor, labels: Tensor, center: Tensor, rho: float, lam: Tensor, guard: bool) -> tuple:
    """METHODS 2.3 in loops, the guard found by bisection on the angle instead of the closed form."""

    def made(row: int, x: float) -> Tensor:
        return torch.nn.functional.normalize(z[row] + x * (z[row] - center), dim=0)

    reals = [i for i in range(len(z)) if labels[i] == 0]
    cosine = (z @ center).tolist()
    hard = sorted(sorted(reals, key=lambda i: (cosine[i], i))[: math.ceil(rho * len(reals))])
    fakes = [cosine[i] for i in range(len(z)) if labels[i] > 0]
    applied = []
    for row in hard:
        x = lam[row].item()
        if guard and fakes and cosine[row] <= max(fakes):
            x = 0.0
        elif guard and fakes and (made(row, x) @ center).item() < max(fakes):
            low, high = 0.0, x
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if (made(row, middle) @ center).item() >= max(fakes) else (low, middle)
            x = low
        applied.append(x)
    return torch.stack([made(row, x) for row, x in zip(hard, applied, strict=True)]), hard, applied


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("spread", [0.5, 1.0])
@pytest.mark.parametrize("rho", [0.25, 1.0])
def test_reference_is_the_definition(guard: bool, spread: float, rho: float) -> None:
    z, labels, center = (x.double() if x.is_floating_point() else x for x in make(40, 24, spread=spread))
    z, center = (torch.nn.functional.normalize(x, dim=-1) for x in (z, center))
    lam = 3 * torch.rand(40, dtype=torch.float64)
    expected = by_definition(z, labels, center, rho, lam, guard)
    z_new, index, applied = synthesize_positives(z, labels, center, rho=rho, lam=lam, guard=guard)
    assert index.tolist() == expected[1]
    assert applied.tolist() == pytest.approx(expected[2], rel=1e-7, abs=1e-9)
    torch.testing.assert_close(z_new, expected[0], rtol=1e-7, atol=1e-9)


def test_the_cases_of_the_guard_occur() -> None:
    """The spreads above are of use only if lam is left, cut and set to 0."""
    lam = torch.ones(400)
    applied = torch.cat([synthesize_positives(*make(400, 24, spread=s), rho=1.0, lam=lam)[2] for s in (0.5, 1.0)])
    for case in (applied == 0, (applied > 0) & (applied < 1), applied == 1):
        assert case.sum() > 10


@pytest.mark.parametrize("guard", [True, False])
def test_gradcheck_of_reference(guard: bool) -> None:
    z, labels, center = make(12, 6, torch.float64)
    z, center = torch.nn.functional.normalize(z, dim=-1), torch.nn.functional.normalize(center.double(), dim=0)
    # The guard's limit depends on z; METHODS fixes lam, so the applied one is handed in.
    lam = synthesize_positives(z, labels, center, rho=0.5, seed=1, guard=guard)[2]

    def function(x: Tensor) -> Tensor:
        return synthesize_positives(x, labels, center, rho=0.5, lam=lam, guard=False)[0]

    assert torch.autograd.gradcheck(function, z.requires_grad_())
    ours = with_grad(synthesize_positives, z, labels, center, rho=0.5, seed=1, guard=guard)[3]
    fixed = with_grad(synthesize_positives, z, labels, center, rho=0.5, lam=lam, guard=False)[3]
    torch.testing.assert_close(ours, fixed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("guard", [True, False])
def test_against_float64(device: str, shape: tuple[int, int], dtype: torch.dtype, guard: bool) -> None:
    z, labels, center = make(*shape, dtype, device)
    assert backend.fused_synthesis(z, center)
    options = {"rho": 0.4, "lam_max": 0.8, "seed": 5, "guard": guard}
    upstream = torch.randn(math.ceil(0.4 * int((labels == 0).sum()) - 1e-9), shape[1], device=device).to(dtype)
    ours = with_grad(synthesize_positives, z, labels, center, **options, upstream=upstream)
    exact = truth(z.double(), labels, center.double(), **options, upstream=upstream)
    assert ours[0].dtype == ours[3].dtype == dtype
    assert ours[2].dtype == torch.float32
    assert torch.equal(ours[1], exact[1])
    eps = torch.finfo(dtype).eps
    # The guard's limit loses digits where real and fake are equally far: cosines have 24 bits.
    torch.testing.assert_close(ours[2].double(), exact[2], rtol=1e-4, atol=2e-5 if guard else 1e-6)
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=eps, atol=2e-6)
    torch.testing.assert_close(ours[3].double(), exact[3], rtol=eps, atol=1e-4 if guard else 5e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_error_is_that_of_plain_torch(device: str, dtype: torch.dtype) -> None:
    z, labels, center = make(64, 128, dtype, device)
    lam = torch.rand(64, device=device)
    ours = with_grad(synthesize_positives, z, labels, center, rho=1.0, lam=lam, guard=False)
    exact = truth(z.double(), labels, center.double(), rho=1.0, lam=lam.double(), guard=False)

    def plain(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        hard, c, w = x[ours[1]], center.to(dtype), lam[ours[1], None].to(dtype)
        return torch.nn.functional.normalize(hard + w * (hard - c), dim=-1), *ours[1:3]

    eager = with_grad(plain, z)
    for i in (0, 3):
        allowed = 2 * (eager[i].double() - exact[i]).abs().max() + 4e-7 * exact[i].abs().max()
        assert (ours[i].double() - exact[i]).abs().max() <= allowed


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 80),
    d=st.integers(2, 40),
    rho=st.sampled_from([0.0, 0.07, 0.25, 0.5, 1.0]),
    spread=st.floats(0.01, 3.0),
    lam_max=st.floats(0, 4),
    fakes=st.sampled_from(["some", "none", "all"]),
    seed=st.integers(0, 2**63 - 1),
)
def test_guard(n: int, d: int, rho: float, spread: float, lam_max: float, fakes: str, seed: int) -> None:
    """Wherever lam was cut, the synthetic positive is as near to the centre as the nearest fake, or is the real."""
    torch.manual_seed(seed % 1000)
    z, labels, center = make(n + 1, d, spread=spread)
    z, labels = z[1:], labels[1:]  # so that N = 0 occurs
    labels = {"some": labels, "none": labels * 0, "all": labels + 1}[fakes]
    z_new, index, lam = synthesize_positives(z, labels, center, rho=rho, lam_max=lam_max, seed=seed)
    _, free_index, free = synthesize_positives(z, labels, center, rho=rho, lam_max=lam_max, seed=seed, guard=False)
    expected = reference.synthesize_positives(
        z, labels, center, rho=rho, lam_max=lam_max, seed=seed, lam=None, guard=True, size=None
    )
    reals = int((labels == 0).sum())
    assert len(index) == len(lam) == len(z_new) == math.ceil(rho * reals - 1e-9)
    assert torch.equal(index, free_index)
    assert torch.equal(index, expected[1])
    torch.testing.assert_close(lam, expected[2], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(z_new, expected[0], rtol=1e-4, atol=1e-4)
    assert (lam <= free).all()
    if fakes == "none" or reals == len(labels):
        assert torch.equal(lam, free)
        return
    cut = lam < free
    nearest_fake = (z[labels > 0] @ center).max()
    moved = cut & (lam > 0)
    assert (z_new[moved] @ center >= nearest_fake - 1e-5).all()
    kept = cut & (lam == 0)
    assert (z[index[kept]] @ center <= nearest_fake + 1e-6).all()
    torch.testing.assert_close(z_new[kept], z[index[kept]], rtol=1e-5, atol=1e-6)


def test_philox_known_answers() -> None:
    """The vectors that Random123 publishes for philox4x32-10."""
    from fastdetect import _host

    for counter, key, answer in (
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ):
        seed = key[0] | key[1] << 32
        as_int64 = seed - 2**64 if seed >= 2**63 else seed
        assert reference.philox4x32(torch.tensor(counter), torch.tensor(as_int64)).tolist() == answer
        assert _host.philox4x32(counter, key) == answer


def test_draws_are_beta_and_keyed_by_row(device: str) -> None:
    n = 4000
    z, _, center = make(n, 4, device=device)
    labels = torch.zeros(n, dtype=torch.int64, device=device)
    lam = synthesize_positives(z, labels, center, rho=1.0, lam_max=1.0, seed=3)[2]
    assert lam.mean().item() == pytest.approx(0.5, abs=0.02)
    assert lam.var().item() == pytest.approx(0.05, abs=0.005)  # of Beta(2, 2)
    assert torch.equal(lam, reference.beta22(3, torch.arange(n), torch.float32).to(device))
    _, index, some = synthesize_positives(z, labels, center, rho=0.1, lam_max=1.0, seed=3)
    assert torch.equal(some, lam[index])
    at = synthesize_positives(z, labels, center, rho=1.0, lam_max=1.0, seed=torch.tensor(3, device=device))[2]
    assert torch.equal(at, lam)
    other = synthesize_positives(z, labels, center, rho=1.0, lam_max=1.0, seed=3 + 2**32)[2]
    assert not torch.equal(other, lam)


@pytest.mark.parametrize("fused", [True, False])
def test_ties_go_to_the_lower_row(device: str, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    z = torch.zeros(9, 4, device=device)
    z[:, 1] = 1  # all at a right angle to the centre: 0 and, in some rows, -0
    z[::2, 0] = -0.0
    z[4] = torch.tensor([1.0, 0, 0, 0])
    labels = torch.tensor([0, 1, 0, 0, 0, 0, 2, 0, 0], device=device)
    center = torch.tensor([1.0, 0, 0, 0], device=device)
    _, index, _ = synthesize_positives(z, labels, center, rho=0.5, seed=0)
    assert index.tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("labels", "rho", "index"),
    [
        ([1, 2, 3], 1.0, []),  # no reals
        ([0, 0, 0], 1.0, [0, 1, 2]),  # all reals, no fakes
        ([0, 1, 1], 0.01, [0]),  # M = 1
        ([0, 0, 0], 0.0, []),
        ([], 0.5, []),
    ],
)
def test_edges(
    device: str, monkeypatch: pytest.MonkeyPatch, fused: bool, labels: list[int], rho: float, index: list[int]
) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    z, _, center = make(3, 8, device=device)
    z = z[: len(labels)]
    z_new, got, lam, grad = with_grad(
        synthesize_positives, z, torch.tensor(labels, dtype=torch.int64, device=device), center, rho=rho, seed=1
    )
    assert got.tolist() == index
    assert z_new.shape == (len(index), 8)
    assert lam.shape == (len(index),)
    assert (grad[[i for i in range(len(labels)) if i not in index]] == 0).all()


def test_rounding_of_rho_times_reals() -> None:
    z, _, center = make(100, 4)
    labels = torch.zeros(100, dtype=torch.int64)
    assert 0.07 * 100 > 7
    assert len(synthesize_positives(z, labels, center, rho=0.07, seed=0)[1]) == 7


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", [0, 2, 5, 30, 100])
def test_static_size(device: str, monkeypatch: pytest.MonkeyPatch, fused: bool, size: int) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    z, labels, center = make(30, 8, device=device)
    full = with_grad(synthesize_positives, z, labels, center, rho=0.5, seed=4)
    mined = min(len(full[1]), size)
    z_new, index, lam, grad = with_grad(synthesize_positives, z, labels, center, rho=0.5, seed=4, size=size)
    assert z_new.shape == (size, 8)
    assert index.shape == lam.shape == (size,)
    assert (index[mined:] == -1).all()
    assert (lam[mined:] == 0).all()
    assert (z_new[mined:] == 0).all()
    if size >= len(full[1]):
        for a, b in zip((z_new[:mined], index[:mined], lam[:mined], grad), full, strict=True):
            torch.testing.assert_close(a, b)
    else:
        cosine = (z @ center)[labels == 0].sort().values[:size]
        torch.testing.assert_close((z[index] @ center).sort().values, cosine)


def test_lam_given(device: str) -> None:
    z, labels, center = make(30, 8, device=device)
    z_new, index, lam = synthesize_positives(z, labels, center, rho=0.5, seed=4)
    by_row = torch.full((30,), 9.0, device=device)
    by_row[index] = lam
    for given_lam in (lam, by_row, lam.double()):
        again = synthesize_positives(z, labels, center, rho=0.5, lam=given_lam)
        torch.testing.assert_close(again, (z_new, index, lam))
    number = synthesize_positives(z, labels, center, rho=0.5, lam=0.3, guard=False)
    assert (number[2] == torch.tensor(0.3)).all()


def test_non_contiguous(device: str) -> None:
    z, labels, center = make(40, 32, device=device)
    expected = with_grad(synthesize_positives, z, labels, center, seed=2)
    wide = torch.nn.functional.pad(z, (1, 2))
    spread = torch.stack([labels, labels + 9], dim=1)[:, 0]
    for view in (wide[:, 1:-2], z.t().contiguous().t()):
        assert not view.is_contiguous()
        leaf = view.detach().requires_grad_()
        z_new, index, lam = synthesize_positives(leaf, spread, center, seed=2)
        (grad,) = torch.autograd.grad(z_new.sum(), leaf)
        torch.testing.assert_close((z_new.detach(), index, lam, grad), expected)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        assert torch.equal(synthesize_positives(z, labels.to(dtype), center, seed=2)[0], expected[0])


@pytest.mark.parametrize("size", [None, 20])
def test_every_element_is_written(device: str, nan_filled_memory: None, size: int | None) -> None:
    z, labels, center = make(37, 24, device=device)
    made = with_grad(synthesize_positives, z, labels, center, seed=2, size=size)
    assert all(tensor.isfinite().all() for tensor in made)
    assert (made[1] < 37).all()


def test_deterministic_over_threads(device: str) -> None:
    z, labels, center = make(5000, 64, device=device)
    threads, runs = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append(with_grad(synthesize_positives, z, labels, center, seed=8))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@pytest.mark.gpu
def test_cuda_is_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for dtype in FLOATS:
        z, labels, center = make(5000, 128, dtype)
        here = with_grad(synthesize_positives, z, labels, center, seed=8)
        for _ in range(5):
            there = with_grad(synthesize_positives, z.cuda(), labels.cuda(), center.cuda(), seed=8)
            assert torch.equal(here[1], there[1].cpu())
            assert torch.equal(here[2], there[2].cpu())
            torch.testing.assert_close(here, tuple(t.cpu() for t in there))


@pytest.mark.gpu
def test_cuda_graph() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    z, labels, center = make(500, 128, device="cuda")
    seed = torch.tensor([1], device="cuda")
    synthesize_positives(z, labels, center, seed=seed, size=40)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = synthesize_positives(z, labels, center, seed=seed, size=40)
    for value in (1, 2):
        seed.fill_(value)
        graph.replay()
        torch.testing.assert_close(made, synthesize_positives(z, labels, center, seed=value, size=40))


@pytest.mark.gpu
def test_cuda_poisons_what_it_cannot_look_at() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    z, labels, center = make(50, 16, device="cuda")
    for change in ({"labels": labels - 1}, {"z": 2 * z}, {"center": 0 * center}):
        args = {"z": z, "labels": labels, "center": center} | change
        z_new, index, lam = synthesize_positives(**args, seed=1, size=20)
        assert z_new[index >= 0].isnan().all()
        assert lam[index >= 0].isnan().all()
        with pytest.raises(ShapeError):
            synthesize_positives(**args, seed=1)


@pytest.mark.parametrize("size", [None, 9])
@pytest.mark.parametrize("lam", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device: str, dtype: torch.dtype, lam: bool, size: int | None) -> None:
    z, labels, center = make(24, 16, dtype, device)
    given_lam = torch.rand(24, device=device) if lam else None
    seed = None if lam else torch.tensor([4], device=device)
    args = (z.requires_grad_(), labels, center, given_lam, seed, 0.5, 0.5, 3, True, size)
    torch.library.opcheck(torch.ops.fastdetect.synthesize_positives.default, args)


def test_opcheck_backward(device: str) -> None:
    z, labels, center = make(24, 16, device=device)
    z_new, index, lam = synthesize_positives(z, labels, center, seed=1)
    args = (torch.randn_like(z_new), z, center, index, lam)
    torch.library.opcheck(torch.ops.fastdetect.synthesize_positives_backward.default, args)


class Head(torch.nn.Module):
    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.linear = torch.nn.Linear(12, 16)

    def forward(self, x: Tensor, labels: Tensor, center: Tensor, seed: int) -> Tensor:
        z = torch.nn.functional.normalize(self.linear(x), dim=-1)
        z_new, index, lam = synthesize_positives(z, labels, center, seed=seed, size=self.size, rho=0.5)
        return torch.cat([z, z_new]).sin().sum() + lam.sum() + index.sum()


@pytest.mark.parametrize("size", [None, 20])
def test_compile_fullgraph_dynamic(device: str, size: int | None) -> None:
    head = Head(size).to(device)
    # inductor, which takes 20 s of C++ compiler, for the harder case: a size that is known only at run time
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager" if size else "inductor")
    for n, seed in ((40, 1), (33, 2)):
        args = (torch.randn(n, 12, device=device), *make(n, 16, device=device)[1:], seed)
        expected, actual = head(*args), compiled(*args)
        torch.testing.assert_close(actual, expected)
        ours, theirs = (torch.autograd.grad(loss, head.linear.weight)[0] for loss in (actual, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [None, 20])
def test_export(device: str, size: int | None) -> None:
    head = Head(size).to(device)
    args = (torch.randn(40, 12, device=device), *make(40, 16, device=device)[1:], 1)
    rows = {0: torch.export.Dim("rows", min=2)}
    program = torch.export.export(head, args, dynamic_shapes=(rows, rows, None, None))
    assert any("fastdetect.synthesize_positives" in str(node.target) for node in program.graph.nodes)
    other = (torch.randn(29, 12, device=device), *make(29, 16, device=device)[1:], 1)
    for these in (args, other):
        torch.testing.assert_close(program.module()(*these), head(*these))


def test_autocast(device: str) -> None:
    head = Head().to(device)
    args = (torch.randn(40, 12, device=device), *make(40, 16, device=device)[1:], 1)
    with torch.autocast(device, torch.bfloat16):
        head(*args).backward()
    assert head.linear.weight.grad.isfinite().all()


def test_without_the_cuda_library(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(backend, "CUDA_LIBRARY", tmp_path / "_ops_cuda.so")
    backend.load_cuda_library.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert not backend.load_cuda_library()
            assert not backend.load_cuda_library()
    finally:
        backend.load_cuda_library.cache_clear()
    (warning,) = caught
    assert "_ops_cuda.so: the file does not exist" in str(warning.message)
    assert "FASTDETECT_CUDA=ON pip install --no-build-isolation ." in str(warning.message)


def good() -> dict:
    z, labels, center = make(8, 4)
    labels[:3] = torch.tensor([0, 1, 0])
    return {"z": z, "labels": labels, "center": center, "seed": 1}


def longer(z: Tensor, row: int, value: float) -> Tensor:
    z = z.clone()
    z[row] = value
    return z


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"z": torch.rand(8)}, ShapeError, r"z: got shape \(8,\), want \[N, D\]"),
        ({"z": torch.rand(8, 0)}, ShapeError, r"with D of at least 1"),
        ({"z": torch.ones(8, 4, dtype=torch.int64)}, ShapeError, r"z: got torch.int64, want one of float32"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, ShapeError, r"labels: got shape \(7,\), want \(8,\)"),
        ({"labels": torch.zeros(8)}, ShapeError, r"labels: got torch.float32, want integers.*pass labels.long\(\)"),
        ({"labels": torch.zeros(8, dtype=torch.bool)}, ShapeError, r"labels: got torch.bool, want integers"),
        ({"labels": -torch.ones(8, dtype=torch.int64)}, ShapeError, r"labels: got -1 at row 0, want 0 = real"),
        ({"labels": torch.zeros(8, dtype=torch.int64, device="meta")}, ShapeError, r"labels: got device meta, want z"),
        ({"center": torch.ones(5)}, ShapeError, r"center: got shape \(5,\), want \(4,\)"),
        ({"center": torch.ones(4, dtype=torch.int64)}, ShapeError, r"center: got torch.int64, want one of float32"),
        ({"center": torch.zeros(4)}, ShapeError, r"center: got length 0, want unit length: call update_center first"),
        ({"center": torch.ones(4)}, ShapeError, r"center: got length 2,"),
        ({"z": lambda z: longer(z, 3, 1.0)}, ShapeError, r"z: got length 2 at row 3, want unit length: pass torch"),
        ({"z": lambda z: longer(z, 5, math.nan)}, ShapeError, r"z: got length nan at row 5"),
        ({"z": lambda z: longer(z, 6, math.inf)}, ShapeError, r"z: got length inf at row 6"),
        ({"rho": 1.5}, UsageError, r"rho: got 1.5, want 0 to 1"),
        ({"rho": math.nan}, UsageError, r"rho: got nan"),
        ({"lam_max": -0.1}, UsageError, r"lam_max: got -0.1, want a finite number from 0"),
        ({"lam_max": math.inf}, UsageError, r"lam_max: got inf"),
        ({"seed": None}, UsageError, r"want one of seed and lam: got neither"),
        ({"lam": 0.5}, UsageError, r"want one of seed and lam: got both"),
        ({"seed": -1}, UsageError, r"seed: got -1, want an integer of 0 to 2\^63 - 1"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, ShapeError, r"seed: got shape \(2,\) torch.int64 on cpu, want"),
        ({"seed": None, "lam": -1.0}, UsageError, r"lam: got -1.0, want a finite number from 0"),
        ({"seed": None, "lam": -torch.ones(8)}, ShapeError, r"lam: got -1, want finite numbers from 0"),
        ({"seed": None, "lam": torch.full((8,), math.inf), "guard": False}, ShapeError, r"lam: got inf, want finite"),
        ({"seed": 1.5}, UsageError, r"seed: got 1.5, want an integer of 0 to"),
        ({"size": 1.5}, UsageError, r"size: got 1.5, want None or an integer"),
        ({"center": None}, ShapeError, r"center: got NoneType, want a torch.Tensor"),
        ({"seed": None, "lam": torch.full((8,), math.nan)}, ShapeError, r"lam: got nan, want finite numbers from 0"),
        ({"seed": None, "lam": torch.ones(7)}, ShapeError, r"lam: got \[7\], want a number, \[N\] = \[8\] or \[M\] = "),
        ({"seed": None, "lam": torch.ones(8, 1)}, ShapeError, r"lam: got shape \(8, 1\)"),
        ({"seed": None, "lam": torch.ones(3), "size": 4}, ShapeError, r"lam: got shape \(3,\)"),
        ({"seed": None, "lam": torch.ones(8, dtype=torch.int64)}, ShapeError, r"lam: got torch.int64"),
        ({"size": -1}, UsageError, r"size: got -1, want None or an integer from 0"),
        ({"center": lambda c: c.requires_grad_()}, UsageError, r"center requires one: pass center.detach\(\)"),
        ({"seed": None, "lam": torch.ones(8, requires_grad=True)}, UsageError, r"lam requires one: pass lam.detach"),
    ],
)
def test_errors(
    monkeypatch: pytest.MonkeyPatch, fused: bool, change: dict, error: type[Exception], message: str
) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "auto" if fused else "reference")
    args = good()
    for name, value in change.items():
        args[name] = value(args[name]) if callable(value) else value
    with pytest.raises(error, match=message):
        synthesize_positives(**args)


def test_torch_func() -> None:
    """grad, also over vmap, takes the reference; what can be looked at is checked there too."""
    z, labels, center = make(12, 6)
    upstream = torch.randn(4, 6)

    def made(z: Tensor) -> Tensor:
        return (synthesize_positives(z, labels, center, rho=1, seed=1, size=4)[0] * upstream).sum()

    want = with_grad(synthesize_positives, z, labels, center, rho=1, seed=1, size=4, upstream=upstream)[3]
    torch.testing.assert_close(torch.func.grad(made)(z), want)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(made))(torch.stack([z, z])), torch.stack([want, want]))
    assert torch.func.vmap(made)(torch.stack([z, 2 * z])).isnan().tolist() == [False, True]
    with pytest.raises(ShapeError, match="z: got length 2"):
        torch.func.grad(made)(2 * z)
    centers = torch.func.vmap(lambda z: update_center(center, z, labels))(torch.stack([z, math.nan * z]))
    torch.testing.assert_close(centers[0], update_center(center, z, labels))
    assert centers[1].isnan().all()


def test_error_double_backward() -> None:
    args = good()
    args["z"].requires_grad_()
    with pytest.raises(UsageError, match="no double backward"):
        torch.autograd.grad(synthesize_positives(**args)[0].sum(), args["z"], create_graph=True)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("rows", [24576, 70000])
def test_large_gradient_is_zero_where_nothing_was_mined(rows: int) -> None:
    """12 MB: pages that the kernel zeroes, and their ends that it does not. 36 MB: a mapping of its own."""
    z = torch.nn.functional.normalize(torch.randn(rows, 128), dim=1).requires_grad_()
    labels = torch.arange(rows) % 2
    made, index, _ = synthesize_positives(z, labels, update_center(None, z, labels), seed=1, guard=False)
    upstream = torch.randn_like(made)
    first, again = (torch.autograd.grad(made, z, upstream, retain_graph=True)[0] for _ in range(2))
    mined = torch.zeros(rows, dtype=torch.bool).index_fill_(0, index, True)
    assert (first[~mined] == 0).all()
    assert (first[mined].abs().amax(dim=1) > 0).all()
    assert torch.equal(first, again)
