"""The C++ core of supcon_margin_loss, on every instruction set, against the row chunks in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastdetect import _host
from fastdetect.ops import FusedNegatives, supcon_chunked, supcon_cpu, supcon_margin_loss
from fastdetect.ops.backend import load_cpu_library
from fastdetect.ops.supcon_chunked import Problem

pytestmark = pytest.mark.skipif(not load_cpu_library(), reason="the C++ ops are not built")
NAMES = ["baseline", "avx2", "avx512"]
LEVELS = list(range(NAMES.index(_host.build_info()["cpu_level"]) + 1))


def problem(rows: int, width: int, **change: object) -> Problem:
    z = F.normalize(torch.randn(rows, width), dim=1)
    tensors = (z, torch.randint(0, 4, (rows,)), None, None, 0, None, None, None, None, None, None)
    return Problem(*tensors, 0.1, 0.1, False, False, True, False)._replace(**change)


def with_extras(p: Problem) -> Problem:
    """Synthetic positives, and fused negatives of which one does not exist."""
    rows, width = p.z.shape
    a, b = torch.randint(0, rows, (7,)), torch.randint(-1, rows, (7,))
    a[2] = -1
    fused = FusedNegatives(a, b, torch.rand(7), F.normalize(torch.randn(width), dim=0))
    synthetic = F.normalize(torch.randn(5, width), dim=1)
    return p._replace(synthetic=synthetic, **fused._asdict(), fusion_grad=True)


def doubled(p: Problem) -> Problem:
    return Problem(*(v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in p))


def check(p: Problem, level: int) -> None:
    made, want = supcon_cpu.forward(p, level), supcon_chunked.forward(doubled(p))
    assert made is not None
    for actual, wanted in zip(made, want, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-5, atol=2e-6)
    coefficients = torch.randn(3, len(p.every()), dtype=torch.float64)
    coefficients[2] = coefficients[2].abs() + 3
    if p.real_anchors:
        coefficients[:2] *= p.all_labels() == 0
    grads, truth = supcon_cpu.backward(p, coefficients, level), supcon_chunked.backward(doubled(p), coefficients)
    assert grads is not None
    for actual, wanted in zip(grads, truth, strict=True):
        scale = wanted.abs().max().item() if wanted.numel() else 1.0
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-4, atol=1e-5 * max(scale, 1e-3))


# One row; less than a vector, a block, a panel; several chunks of columns and odd tails; D of several panels.
@pytest.mark.parametrize(("rows", "width"), [(1, 4), (7, 3), (13, 64), (300, 33), (530, 16), (40, 130)])
@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_against_chunks(level: int, rows: int, width: int, real: bool) -> None:
    p = problem(rows, width, real_anchors=real)
    for variant in (p, p._replace(binary=False, margin=0.0), with_extras(p), with_extras(p)._replace(binary=False)):
        check(variant, level)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("labels", [[0] * 20, [3] * 20, [0] + [1] * 19, [2**40, 5] * 10])
def test_one_sided_batches(labels: list[int], real: bool) -> None:
    for binary in (False, True):
        check(with_extras(problem(20, 8, labels=torch.tensor(labels), real_anchors=real, binary=binary)), -1)


@pytest.mark.parametrize("real", [False, True])
def test_rows_of_one_rank(real: bool) -> None:
    """Own rows among those of all ranks: the same strip of loss and gradient."""
    every, labels = F.normalize(torch.randn(60, 12), dim=1), torch.randint(0, 3, (60,))
    p = problem(20, 12, z=every[20:40], labels=labels[20:40], columns=every, column_labels=labels, offset=20)
    check(p._replace(real_anchors=real), -1)
    check(p._replace(real_anchors=real, synthetic=F.normalize(torch.randn(4, 12), dim=1)), -1)


def test_threads_do_not_matter() -> None:
    p, coefficients, results = with_extras(problem(700, 40)), torch.randn(3, 700), []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([*supcon_cpu.forward(p), *supcon_cpu.backward(p, coefficients)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("change", [{"temperature": 0.02}, {"z": torch.full((9, 4), torch.nan)}, {"margin": 5.0}])
def test_exponents_that_need_a_maximum_are_left_to_the_chunks(change: dict) -> None:
    p = problem(9, 4, **change)
    assert supcon_cpu.forward(p) is None
    assert supcon_cpu.backward(p, torch.rand(3, 9)) is None


def gradients(
    reduction: str, anchors: str, extras: bool, dtype: torch.dtype, scaled: float | None
) -> list[torch.Tensor]:
    torch.manual_seed(3)
    z = F.normalize(torch.randn(40, 24), dim=1).to(dtype).requires_grad_()
    made = F.normalize(torch.randn(6, 24), dim=1).to(dtype).requires_grad_()
    fused = FusedNegatives(
        torch.tensor([3, -1, 5]), torch.tensor([4, 2, -1]), torch.rand(3), F.normalize(torch.ones(24), dim=0)
    )
    loss = supcon_margin_loss(
        z, torch.arange(40) % 3, anchors=anchors, reduction=reduction, synthetic=made if extras else None,
        fused_negatives=fused if extras else None, base_temperature=scaled,
    )  # fmt: skip
    return [loss, *torch.autograd.grad(loss, [z, made] if extras else [z], torch.tensor(2.5))]


@pytest.mark.parametrize("reduction", ["mean", "mean_all", "sum"])
@pytest.mark.parametrize("anchors", ["all", "real"])
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_in_the_forward(
    monkeypatch: pytest.MonkeyPatch, reduction: str, anchors: str, extras: bool, dtype: torch.dtype
) -> None:
    """Loss and gradients by one call are those by two, which every rank and tracer takes."""
    made = gradients(reduction, anchors, extras, dtype, 0.07)
    monkeypatch.setattr(supcon_cpu, "reduces", lambda *_: False)
    for actual, wanted in zip(made, gradients(reduction, anchors, extras, dtype, 0.07), strict=True):
        assert actual.dtype == wanted.dtype
        error = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(actual, wanted, rtol=error, atol=error * wanted.abs().max().item())


def test_gradient_in_the_forward_only_where_one_is_wanted() -> None:
    z, labels = F.normalize(torch.randn(8, 4), dim=1), torch.arange(8) % 2
    assert not supcon_margin_loss(z, labels).requires_grad
    z.requires_grad_()
    with torch.no_grad():
        assert not supcon_margin_loss(z, labels).requires_grad
    loss = supcon_margin_loss(z[:2], labels[:2])  # nobody has a positive
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, z)[0] == 0).all()
    loss = supcon_margin_loss(z, labels)
    first, again = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_it_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the chunks were taken")

    monkeypatch.setattr(supcon_chunked, "forward", refuse)
    monkeypatch.setattr(supcon_chunked, "backward", refuse)
    z = F.normalize(torch.randn(30, 8), dim=1).requires_grad_()
    supcon_margin_loss(z, torch.arange(30) % 3).backward()
    with pytest.raises(AssertionError, match="chunks"):
        supcon_margin_loss(z, torch.arange(30) % 3, denominator="negatives")
