"""The contrastive kernels in Triton's interpreter; test_interpreter.py runs this file with TRITON_INTERPRET=1.

float32 and float16 only: the interpreter's bfloat16 arithmetic is wrong.
"""

import itertools
import os

import pytest
import torch
import torch.nn.functional as F
from fastdetect.kernels import supcon_launch, supcon_margin
from torch import Tensor

from fastdetect.ops import FusedNegatives, supcon_chunked
from fastdetect.ops.supcon_chunked import Problem

assert os.environ["TRITON_INTERPRET"] == "1"


@pytest.fixture(autouse=True)
def small_tiles_in_poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16, so that few rows have a diagonal, a tail and several parts; torch.empty gives NaN."""
    torch.manual_seed(0)
    empty = torch.empty

    def poisoned(*args, **kwargs) -> Tensor:
        out = empty(*args, **kwargs)
        return out.fill_(torch.nan) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", poisoned)
    small = {
        (kind, dtype, width): (16, 32 if kind == "sums" else 16, 32, 4, 1) for kind, dtype, width in supcon_margin.TUNED
    }
    monkeypatch.setattr(supcon_margin, "TUNED", small)
    monkeypatch.setattr(supcon_margin, "PROGRAMS", 4)


def problem(rows: int, width: int, dtype: torch.dtype = torch.float32, **change) -> Problem:
    z = F.normalize(torch.randn(rows, width), dim=1).to(dtype)
    p = Problem(
        z,
        torch.arange(rows) % 3,
        None,
        None,
        0,
        None,
        None,
        None,
        None,
        None,
        None,
        0.1,
        0.1,
        False,
        False,
        True,
        False,
    )
    if change.pop("extras", False):
        a, b = torch.tensor([1, 4, -1, 2, 5]), torch.tensor([2, -1, 3, 1, -1])
        fused = FusedNegatives(a, b, torch.tensor([0.3, 0.8, 0.5, 0.9, 0.6]), F.normalize(torch.randn(width), dim=0))
        p = p._replace(
            synthetic=F.normalize(torch.randn(3, width), dim=1).to(dtype), **fused._asdict(), fusion_grad=True
        )
    return p._replace(**change)


def check(p: Problem, tolerance: float = 2e-5) -> None:
    double = p._replace(
        z=p.z.double(),
        columns=None if p.columns is None else p.columns.double(),
        synthetic=None if p.synthetic is None else p.synthetic.double(),
    )
    loss, statistics = supcon_launch.forward(p, p.positives_per_row())
    want, statistics64 = supcon_chunked.forward(double)
    torch.testing.assert_close(loss.double(), want, rtol=tolerance, atol=tolerance)
    valid = statistics64[2] > 0
    torch.testing.assert_close(statistics[:, valid].double(), statistics64[:, valid], rtol=tolerance, atol=tolerance)
    all_rows = len(p.z) if p.columns is None else len(p.columns)
    coefficients = torch.randn(3, all_rows, dtype=torch.float64)
    coefficients[2] = coefficients[2].abs() + 3
    if p.columns is None:
        coefficients[2] = statistics64[0]
        coefficients[:2] *= valid & (statistics64[0] > -torch.inf)
    grads = supcon_launch.backward(p, coefficients.float(), supcon_chunked.fused_grad)
    for actual, wanted in zip(grads, supcon_chunked.backward(double, coefficients), strict=True):
        scale = wanted.abs().max().item() if wanted.numel() else 1
        assert actual.dtype == p.z.dtype
        torch.testing.assert_close(actual.double(), wanted, rtol=tolerance, atol=tolerance * max(scale, 1e-3))


@pytest.mark.parametrize(("real", "negatives", "binary"), list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_variants(real: bool, negatives: bool, binary: bool, temperature: float) -> None:
    """Constant shift and running maximum; samples, synthetic positives and fused negatives."""
    check(
        problem(37, 20, extras=True, real_anchors=real, negatives=negatives, binary=binary, temperature=temperature),
        2e-5 if temperature == 0.1 else 2e-4,
    )


@pytest.mark.parametrize("negatives", [False, True])
def test_given_positives(negatives: bool) -> None:
    check(problem(21, 16, positives=torch.rand(21, 21) < 0.3, negatives=negatives, extras=True))
    check(problem(21, 16, positives=(torch.rand(21, 42) < 0.3)[:, ::2], margin=0.0, temperature=0.01), 2e-4)


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (2, 3), (16, 32), (33, 100), (18, 64), (20, 130)])
def test_shapes(rows: int, width: int) -> None:
    """One row; D below the smallest product; whole tiles; tails of both; the widest tiled D; chunks of W."""
    check(problem(rows, width, margin=0.0, extras=rows > 6))


@pytest.mark.parametrize("extras", [False, True])
def test_chunks_of_weights(monkeypatch: pytest.MonkeyPatch, extras: bool) -> None:
    assert not supcon_margin.tiled_backward(272, torch.float16, False)
    monkeypatch.setattr(supcon_margin, "CHUNK", 16 * 50)
    check(problem(50, 272, extras=extras, real_anchors=True))


def test_float16_small_and_strided() -> None:
    p = problem(40, 24, torch.float16)
    check(p._replace(z=F.pad(p.z, (1, 3))[:, 1:-3]), 2e-3)


def test_rows_of_several_ranks() -> None:
    p = problem(30, 16, binary=False)
    for binary, temperature in ((False, 0.1), (True, 0.01)):
        own = slice(10, 20)
        check(
            p._replace(
                z=p.z[own],
                labels=p.labels[own],
                columns=p.z,
                column_labels=p.labels,
                offset=10,
                binary=binary,
                temperature=temperature,
            ),
            2e-4,
        )


def test_wrong_values_are_nan() -> None:
    p = problem(8, 16)
    assert supcon_launch.forward(p._replace(labels=p.labels - 1), p.positives_per_row())[0].isnan().all()
    q = problem(8, 16, extras=True)
    heavy = q._replace(weight=q.weight + 1)
    assert supcon_launch.forward(heavy, q.positives_per_row())[0].isnan().all()
    q.index_b[0] = 8
    assert supcon_launch.forward(q, q.positives_per_row())[0].isnan().all()
    half = p._replace(z=p.z[:4], labels=p.labels[:4], columns=p.z, column_labels=p.labels - 3 * (p.labels > 1))
    assert supcon_launch.forward(half, half.positives_per_row())[0].isnan().all()  # on another rank
