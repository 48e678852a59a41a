"""csrc/synthesis.cu on the CPU (cuda_on_cpu.h plays the GPU) against the CPU ops, which tests/ops ties to the truth."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdetect.ops import backend

HERE = Path(__file__).parent
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# (N, D): a warp's rows; D below a vector, odd; several blocks and chunks; more columns than a block of sums has.
SIZES = [(5, 16), (37, 7), (300, 40), (70, 264), (1, 1)]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    library = tmp_path_factory.mktemp("cuda_on_cpu") / "synthesis.so"
    include = [f"-I{HERE / 'cuda_on_cpu'}", f"-I{HERE.parents[1] / 'csrc'}"]
    source = str(HERE / "cuda_on_cpu" / "synthesis.cpp")
    flags = ["-std=c++20", "-O1", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-w"]
    subprocess.run([compiler, *flags, *include, source, "-o", str(library)], check=True)
    assert backend.load_cpu_library()
    return ctypes.CDLL(str(library))


def p(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def rows(z: Tensor) -> tuple:
    return p(z), CODES[z.dtype], *map(ctypes.c_int64, (z.shape[0], z.shape[1], z.stride(0)))


def mine(kernels: ctypes.CDLL, z: Tensor, labels: Tensor, center: Tensor, rho: float, capacity: int) -> tuple:
    index, similarity = torch.full((capacity,), -7), torch.full((len(z),), torch.nan)
    state = torch.full((4,), -7)
    arguments = (p(labels), p(center), ctypes.c_double(rho), ctypes.c_int64(capacity), p(similarity), p(index))
    kernels.mine.restype = ctypes.c_bool
    assert kernels.mine(*rows(z), *arguments, p(state))
    return index, similarity, state


def batch(n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(n * d)
    z = torch.nn.functional.normalize(torch.randn(d) + 1.2 * torch.randn(n, d), dim=-1).to(dtype)
    labels = torch.randint(0, 3, (n,)) * torch.randint(0, 2, (n,))
    labels[0] = 0
    return z, labels, torch.nn.functional.normalize(z[labels == 0].float().mean(dim=0), dim=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", CODES)
def test_all(kernels: ctypes.CDLL, size: tuple[int, int], dtype: torch.dtype) -> None:
    z, labels, center = batch(*size, dtype)
    core = torch.ops.fastdetect_cpu
    for rho, capacity in ((0.25, size[0]), (1.0, size[0]), (0.6, 3)):
        got, expected = mine(kernels, z, labels, center, rho, capacity), core.mine(z, labels, center, rho, capacity)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)
        index, similarity, state = expected
        none, seed = torch.empty(0), torch.tensor([11])
        for lam, seed_at in (
            (none, none.long()),
            (none, seed),
            (torch.rand(size[0]), seed),
            (torch.rand(capacity), seed),
        ):
            out, applied = torch.full((capacity, size[1]), torch.nan, dtype=dtype), torch.full((capacity,), torch.nan)
            kernels.synthesize(
                *rows(z), p(center), p(similarity), p(state), p(index), ctypes.c_int64(capacity),
                p(lam if len(lam) else None), len(lam) == size[0], ctypes.c_float(0.5), ctypes.c_uint64(5),
                p(seed_at if len(seed_at) else None), True, p(out), p(applied),
            )  # fmt: skip
            made = core.synthesize(z, center, index, similarity, state, lam, 0.5, 5, seed_at, True)
            assert torch.equal(applied, made[1])
            torch.testing.assert_close(out, made[0], rtol=torch.finfo(dtype).eps, atol=1e-6)
        grad, back = torch.randn(capacity, size[1]).to(dtype), torch.full(size, torch.nan, dtype=dtype)
        kernels.synthesize_backward(
            *rows(z), p(center), p(index), ctypes.c_int64(capacity), p(applied), p(grad), p(back)
        )
        expected = core.synthesize_backward(grad, z, center, index, applied)
        torch.testing.assert_close(back, expected, rtol=torch.finfo(dtype).eps, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", CODES)
def test_center(kernels: ctypes.CDLL, size: tuple[int, int], dtype: torch.dtype) -> None:
    z, labels, center = batch(*size, dtype)
    for these in (labels, labels + 1, labels - 1):  # some, no reals, a negative label
        sums = torch.full((size[1] + 1,), 5.0)
        kernels.real_sums(*rows(z), p(these), p(sums))
        expected = torch.ops.fastdetect_cpu.real_sums(z, these)
        torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        for old in (center, torch.zeros_like(center)):
            out = torch.full((size[1],), torch.nan)
            kernels.mix_center(p(old), p(sums), ctypes.c_int64(size[1]), ctypes.c_double(0.9), p(out))
            expected = torch.ops.fastdetect_cpu.mix_center(old, sums, 0.9)
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("n", "reals", "distinct", "rho"),
    [
        (4200, 0.5, 100_000, 0.3),  # three chunks of keys
        (4200, 0.5, 3, 0.6),  # equal keys over their borders
        (2100, 1.0, 1, 0.99),  # all equal, all real
        (100, 1.0, 50, 1.0),
        (100, 0.0, 50, 1.0),  # no reals
    ],
)
def test_selection(kernels: ctypes.CDLL, n: int, reals: float, distinct: int, rho: float) -> None:
    torch.manual_seed(distinct)
    cosine = torch.randint(0, distinct, (n,)) / distinct * 1.9 - 0.95
    z = torch.stack([cosine, (1 - cosine.square()).sqrt()], dim=1)
    labels, center = (torch.rand(n) >= reals).long(), torch.tensor([1.0, 0.0])
    got = mine(kernels, z, labels, center, rho, n)
    for a, b in zip(got, torch.ops.fastdetect_cpu.mine(z, labels, center, rho, n), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("n", "rho", "capacity"), [(40, 0.0, 0), (40, 1.0, 0), (0, 1.0, 0), (0, 1.0, 3)])
def test_no_rows_or_no_room(kernels: ctypes.CDLL, n: int, rho: float, capacity: int) -> None:
    """Memory of no bytes is not cleared: a CUDA graph refuses such a node."""
    z, labels, center = batch(40, 16)
    got = mine(kernels, z[:n], labels[:n], center, rho, capacity)
    for a, b in zip(got, torch.ops.fastdetect_cpu.mine(z[:n], labels[:n], center, rho, capacity), strict=True):
        assert torch.equal(a, b)


def test_strides_and_alignment(kernels: ctypes.CDLL) -> None:
    z, labels, center = batch(50, 32)
    wide = torch.full((50, 37), torch.nan)
    expected = mine(kernels, z, labels, center, 0.5, 50)
    for offset in (0, 1):  # 37 floats a row: no 16-byte reads
        view = wide[:, offset : offset + 32]
        view.copy_(z)
        for a, b in zip(mine(kernels, view, labels, center, 0.5, 50), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_bad_values_are_flagged(kernels: ctypes.CDLL) -> None:
    z, labels, center = batch(40, 16)
    flags = []
    for change in ("none", "nan", "length", "label", "center"):
        rows_, labels_, center_ = z.clone(), labels.clone(), center.clone()
        if change == "nan":
            rows_[7, 3] = torch.nan
        elif change == "length":
            rows_[9] *= 1.02
        elif change == "label":
            labels_[0] = -1
        elif change == "center":
            center_ *= 0
        flags.append(bool(mine(kernels, rows_, labels_, center_, 0.5, 40)[2][1]))
    assert flags == [False, True, True, True, True]
