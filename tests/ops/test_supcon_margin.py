"""supcon_margin_loss: the reference against the published formulas, the fast paths against it, its registration."""

import itertools
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import (
    FusedNegatives,
    backend,
    fuse_hard_negatives,
    supcon_chunked,
    supcon_margin,
    supcon_margin_loss,
)

OPTIONS = list(itertools.product(["all", "real"], ["all", "negatives"], ["binary", "label"]))


def unit(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).to(device, dtype)


def with_grad(z: Tensor, labels: Tensor, synthetic: Tensor | None = None, **options) -> list[Tensor]:
    """Loss, gradient of z, gradient of the synthetic positives; another upstream gradient for each row."""
    inputs = [t.detach().clone().requires_grad_() for t in (z, synthetic) if t is not None]
    if synthetic is not None:
        options["synthetic"] = inputs[1]
    loss = supcon_margin_loss(inputs[0], labels, **options)
    upstream = torch.linspace(-1.0, 1.5, loss.numel()).reshape(loss.shape).to(loss) if loss.dim() else 1.7 + 0 * loss
    grads = torch.autograd.grad(loss, inputs, upstream.detach(), allow_unused=True)
    return [loss.detach(), *(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, grads, strict=True))]


def truth(monkeypatch: pytest.MonkeyPatch, *args: Tensor, **options) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setenv("FASTDETECT_BACKEND", "reference")
        return with_grad(*(a.double() if a.is_floating_point() else a for a in args), **options)


def extras(z: Tensor, labels: Tensor, count: int = 6) -> FusedNegatives:
    center = F.normalize(torch.randn(z.shape[1]), dim=0).to(z)
    return fuse_hard_negatives(z, labels, center, n_hard=4, n_fused=count, seed=3)


def supcontrast(features: Tensor, labels: Tensor, tau: float, base: float) -> Tensor:
    """SupContrast's SupConLoss.forward [B, V, D] with contrast_mode='all', as published."""
    views, batch = features.shape[1], features.shape[0]
    mask = torch.eq(labels[:, None], labels[None]).to(features.dtype)
    contrast = torch.cat(torch.unbind(features, dim=1), dim=0)
    logits = contrast @ contrast.T / tau
    logits = logits - logits.max(dim=1, keepdim=True)[0].detach()
    mask = mask.repeat(views, views)
    logits_mask = torch.scatter(torch.ones_like(mask), 1, torch.arange(batch * views)[:, None], 0)
    mask = mask * logits_mask
    log_prob = logits - torch.log((torch.exp(logits) * logits_mask).sum(1, keepdim=True))
    pairs = mask.sum(1)
    mean_log_prob = (mask * log_prob).sum(1) / torch.where(pairs < 1e-6, 1, pairs)
    return (-(tau / base) * mean_log_prob).mean()


@pytest.fixture(params=["auto", "reference"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", request.param)


@pytest.mark.usefixtures("implementation")
class TestEquivalences:
    def test_is_supcon(self) -> None:
        features, labels = unit(9, 2, 6), torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 0])
        z = torch.cat(features.unbind(1)).requires_grad_()
        views = torch.stack(z.chunk(2), dim=1)
        ours = supcon_margin_loss(
            z, labels.repeat(2), margin=0, pairing="label", temperature=0.2, base_temperature=0.07, reduction="mean_all"
        )
        theirs = supcontrast(views, labels, 0.2, 0.07)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(torch.autograd.grad(ours, z)[0], torch.autograd.grad(theirs, z)[0])

    def test_negatives_is_epsilon_supinfonce(self) -> None:
        """-log[e^s / (e^(s - eps) + sum e^n)] (Barbano et al.) is ours plus the constant eps, s in units of tau."""
        z, labels, tau, m = unit(10, 5).requires_grad_(), torch.tensor([0, 1, 2] * 3 + [0]), 0.3, 0.15
        s, eps = z @ z.T / tau, m / tau
        terms = []
        for i in range(10):
            negatives = s[i, labels != labels[i]].exp().sum()
            mates = [p for p in range(10) if labels[p] == labels[i] and p != i]
            terms.append(
                sum(-torch.log(s[i, p].exp() / ((s[i, p] - eps).exp() + negatives)) for p in mates) / len(mates)
            )
        theirs = sum(terms) / 10
        ours = supcon_margin_loss(z, labels, temperature=tau, margin=m, denominator="negatives", pairing="label")
        torch.testing.assert_close(ours - eps, theirs)
        torch.testing.assert_close(torch.autograd.grad(ours, z)[0], torch.autograd.grad(theirs, z)[0])

    def test_classes_of_two_are_nt_xent(self) -> None:
        z = unit(12, 5).requires_grad_()
        logits = (z @ z.T / 0.5).masked_fill(torch.eye(12, dtype=torch.bool), -torch.inf)
        theirs = F.cross_entropy(logits, torch.arange(12).roll(6))
        for denominator in ("all", "negatives"):
            ours = supcon_margin_loss(
                z,
                torch.arange(6).repeat(2),
                temperature=0.5,
                margin=0,
                pairing="label",
                denominator=denominator,
            )
            torch.testing.assert_close(ours, theirs)
            grads = [torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (ours, theirs)]
            torch.testing.assert_close(*grads)

    def test_synthetic_positives_are_further_reals(self) -> None:
        """As columns of class 0: the same loss as a batch that holds them, for the rows that it had before."""
        z, new, labels = unit(8, 5), unit(3, 5), torch.tensor([0, 0, 0, 1, 2, 1, 0, 2])
        whole = supcon_margin_loss(
            torch.cat([z, new]), torch.cat([labels, labels[:3]]), anchors="real", reduction="none"
        )
        ours = supcon_margin_loss(z, labels, synthetic=new, anchors="real", reduction="none")
        torch.testing.assert_close(ours, whole[:8])

    def test_fused_negatives_are_further_fakes(self) -> None:
        z, labels = unit(8, 5), torch.tensor([0, 0, 0, 1, 2, 1, 0, 2])
        fused = FusedNegatives(
            torch.tensor([3, 4, -1]), torch.tensor([5, -1, 2]), torch.tensor([0.3, 0.8, 0.5]), unit(5)
        )
        rows = F.normalize(torch.stack([0.3 * z[3] + 0.7 * z[5], 0.8 * z[4] + 0.2 * fused.center]), dim=1)
        for denominator in ("all", "negatives"):
            options = {"anchors": "real", "reduction": "none", "denominator": denominator}
            whole = supcon_margin_loss(torch.cat([z, rows]), torch.cat([labels, labels[3:5]]), **options)
            torch.testing.assert_close(supcon_margin_loss(z, labels, fused_negatives=fused, **options), whole[:8])
            everyone = options | {"anchors": "all"}
            fakes = labels > 0  # do not see them
            torch.testing.assert_close(
                supcon_margin_loss(z, labels, fused_negatives=fused, **everyone)[fakes],
                supcon_margin_loss(z, labels, **everyone)[fakes],
            )

    def test_given_positives_replace_pairing(self) -> None:
        z, labels = unit(8, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        mask = labels[:, None] == labels
        expected = with_grad(z, labels, pairing="label")
        for actual, want in zip(with_grad(z, labels, positives=mask), expected, strict=True):
            torch.testing.assert_close(actual, want)

    def test_reductions(self) -> None:
        z, labels = unit(7, 4), torch.tensor([0, 0, 0, 1, 2, 2, 3])  # rows 3 and 6 have no mate
        rows = supcon_margin_loss(z, labels, pairing="label", reduction="none")
        assert (rows == 0).nonzero().flatten().tolist() == [3, 6]
        for reduction, divisor in {"mean": 5, "mean_all": 7, "sum": 1}.items():
            loss = supcon_margin_loss(z, labels, pairing="label", reduction=reduction)
            torch.testing.assert_close(loss, rows.sum() / divisor)
        real = supcon_margin_loss(z, labels, pairing="label", reduction="mean_all", anchors="real")
        torch.testing.assert_close(real, rows[:3].mean())
        scaled = supcon_margin_loss(z, labels, pairing="label", reduction="none", base_temperature=0.07)
        torch.testing.assert_close(scaled, rows * (0.1 / 0.07))

    @pytest.mark.parametrize("labels", [[1], [0], [0, 1], [1, 2, 3]])
    @pytest.mark.parametrize("denominator", ["all", "negatives"])
    def test_no_valid_anchor(self, labels: list[int], denominator: str) -> None:
        z = unit(len(labels), 4)
        for reduction in ("mean", "mean_all", "sum", "none"):
            loss, grad = with_grad(
                z, torch.tensor(labels), pairing="label", reduction=reduction, denominator=denominator
            )
            assert (loss == 0).all()
            assert (grad == 0).all()

    def test_one_class(self) -> None:
        """Nothing to push away: with denominator="negatives" no loss and no gradient, not NaN."""
        loss, grad = with_grad(unit(6, 4), torch.zeros(6, dtype=torch.long), denominator="negatives")
        assert loss == 0
        assert (grad == 0).all()
        assert supcon_margin_loss(unit(6, 4), torch.ones(6, dtype=torch.long), anchors="real") == 0

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_finite(self, value: float) -> None:
        z = unit(6, 4)
        z[2, 1] = value
        assert not supcon_margin_loss(z, torch.tensor([0, 0, 0, 1, 1, 1])).isfinite()

    def test_normalize(self) -> None:
        z, labels = 5 * torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 1])
        loss, grad = with_grad(z, labels, normalize=True)
        torch.testing.assert_close(loss, supcon_margin_loss(F.normalize(z, dim=1), labels))
        assert (grad * z).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize(("anchors", "denominator", "pairing"), OPTIONS)
@pytest.mark.parametrize("given_positives", [False, True])
@pytest.mark.usefixtures("implementation")
def test_gradcheck(anchors: str, denominator: str, pairing: str, given_positives: bool) -> None:
    """Of the reference and of the chunked path in float64, every input that has a gradient, fusion included."""
    labels = torch.tensor([0, 2, 0, 1, 0, 1])
    mask = torch.rand(6, 6) < 0.5 if given_positives else None
    fused = extras(unit(6, 3), labels, 4)

    def loss(z: Tensor, synthetic: Tensor) -> Tensor:
        return supcon_margin_loss(
            z,
            labels,
            temperature=0.3,
            margin=0.2,
            anchors=anchors,
            denominator=denominator,
            pairing=pairing,
            positives=mask,
            synthetic=synthetic,
            fused_negatives=fused,
            fusion_grad=True,
            reduction="none",
        )

    assert torch.autograd.gradcheck(loss, (unit(6, 3).requires_grad_(), unit(2, 3).requires_grad_()))


def test_fused_negatives_are_detached_by_default() -> None:
    z, labels = unit(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    fused = extras(z, labels)
    still, flowing = (with_grad(z, labels, fused_negatives=fused, fusion_grad=g) for g in (False, True))
    torch.testing.assert_close(still[0], flowing[0])
    torch.testing.assert_close(still[1][:3], flowing[1][:3])
    assert (still[1][3:] - flowing[1][3:]).abs().max() > 1e-3


# One row; odd; several tiles of unequal height; with D of one, odd, and larger than N.
@pytest.mark.parametrize(("rows", "width"), [(1, 4), (17, 1), (130, 33), (40, 96)])
@pytest.mark.parametrize(("anchors", "denominator", "pairing"), OPTIONS)
def test_against_reference(
    monkeypatch: pytest.MonkeyPatch, device: str, rows: int, width: int, anchors: str, denominator: str, pairing: str
) -> None:
    monkeypatch.setattr(supcon_chunked, "TILE", 4096)  # so that there are many tiles
    z, labels = unit(rows, width, dtype=torch.float32, device=device), torch.randint(0, 4, (rows,), device=device)
    synthetic = unit(5, width, dtype=torch.float32, device=device)
    options = {"anchors": anchors, "denominator": denominator, "pairing": pairing}
    for temperature, margin, reduction, fusion, fused in (
        (0.1, 0.1, "mean", False, None),
        (0.005, 0.0, "none", True, extras(z, labels)),
    ):
        options |= {"temperature": temperature, "margin": margin, "reduction": reduction}
        ours = with_grad(z, labels, synthetic, fused_negatives=fused, fusion_grad=fusion, **options)
        if fused is not None:
            fused = fused._replace(center=fused.center.double())
        want = truth(monkeypatch, z, labels, synthetic, fused_negatives=fused, fusion_grad=fusion, **options)
        for a, b in zip(ours, want, strict=True):
            assert a.dtype == torch.float32
            # float32 similarities are right to 1e-7, their exponents to that over tau
            torch.testing.assert_close(
                a.double(), b, rtol=1e-4, atol=3e-6 * max(1, b.abs().max().item()) / temperature**0.5
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("denominator", ["all", "negatives"])
def test_dtypes(monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, denominator: str) -> None:
    """The loss in float32 whatever the input; the gradient in its dtype, not lost below float16's range."""
    z, labels = unit(64, 32, dtype=dtype, device=device), torch.randint(0, 3, (64,), device=device)
    options = {"denominator": denominator, "anchors": "real", "reduction": "sum"}
    ours, want = with_grad(z, labels, **options), truth(monkeypatch, z, labels, **options)
    assert [t.dtype for t in ours] == [torch.float32, dtype]
    torch.testing.assert_close(ours[0].double(), want[0], rtol=1e-5, atol=1e-5)
    eps = torch.finfo(dtype).eps if device == "cpu" else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours[1].double(), want[1], rtol=eps, atol=max(eps, 1e-6) * want[1].abs().max().item())


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=24),
    width=st.integers(1, 20),
    temperature=st.floats(1e-3, 10),
    margin=st.sampled_from([0.0, 0.1, 1.0]),
    length=st.sampled_from([0.0, 0.3, 1.0, 20.0]),
    option=st.sampled_from(OPTIONS),
)
def test_any_batch(
    labels: list[int], width: int, temperature: float, margin: float, length: float, option: tuple[str, str, str]
) -> None:
    """Rows of any length, too: the constant and the running maximum must be chosen rightly."""
    names = dict(zip(("anchors", "denominator", "pairing"), option, strict=True))
    z, numbers = length * unit(len(labels), width), torch.tensor(labels)
    options = names | {"temperature": temperature, "margin": margin, "reduction": "none"}
    ours = with_grad(z, numbers, **options)
    with pytest.MonkeyPatch.context() as patch:
        want = truth(patch, z, numbers, **options)
    rounding = 1e-15 * length**3 / temperature**2  # a logit of length^2 / tau, times its slope
    torch.testing.assert_close(ours, want, rtol=1e-7, atol=max(1e-7, rounding))


def test_large_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = unit(6, 4), torch.tensor([0, 2**40, 2**40, 7, 7, 0])
    torch.testing.assert_close(with_grad(z, labels, pairing="label"), truth(monkeypatch, z, labels, pairing="label"))
    assert torch.equal(with_grad(z, labels.int() * 0)[1], with_grad(z, (labels * 0).byte())[1])


@pytest.mark.usefixtures("nan_filled_memory")
def test_every_element_is_written(device: str) -> None:
    z, labels = unit(70, 24, dtype=torch.float32, device=device), torch.randint(0, 3, (70,), device=device)
    for (anchors, denominator, _), positives in itertools.product(OPTIONS[::2], (None, torch.rand(70, 70) < 0.2)):
        mask = None if positives is None else positives.to(device)
        options = {"anchors": anchors, "denominator": denominator, "positives": mask, "reduction": "none"}
        for tensor in with_grad(z, labels, unit(3, 24, dtype=torch.float32, device=device), **options):
            assert tensor.isfinite().all()


def test_deterministic_and_strided(device: str) -> None:
    z, labels = unit(300, 40, dtype=torch.float32, device=device), torch.randint(0, 3, (300,), device=device)
    fused = extras(z, labels, 40)
    first = with_grad(z, labels, fused_negatives=fused, fusion_grad=True)
    view = F.pad(z, (1, 2))[:, 1:-2]
    assert not view.is_contiguous()
    for again in (z, z, view, z.T.contiguous().T):
        options = {"fused_negatives": fused, "fusion_grad": True}
        assert all(torch.equal(a, b) for a, b in zip(first, with_grad(again, labels, **options), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"denominator": "negatives", "anchors": "real", "fusion_grad": True},
        {"positives": torch.rand(10, 10) < 0.5},
    ],
)
def test_opcheck(device: str, options: dict) -> None:
    z, labels = unit(10, 16, dtype=torch.float32, device=device), torch.randint(0, 3, (10,), device=device)
    fused = extras(z, labels) if options.get("fusion_grad") else (None,) * 4
    positives, synthetic = options.get("positives"), unit(2, 16, dtype=torch.float32, device=device)
    p = supcon_chunked.Problem(
        z.requires_grad_(),
        labels,
        None,
        None,
        0,
        None if positives is None else positives.to(device),
        synthetic.requires_grad_(),
        *fused,
        0.1,
        0.1,
        "anchors" in options,
        "denominator" in options,
        True,
        "fusion_grad" in options,
    )
    torch.library.opcheck(torch.ops.fastdetect.supcon_margin.default, tuple(p))
    still = p._replace(z=z.detach(), synthetic=synthetic.detach())
    coefficients = torch.rand(3, 10, device=device)
    torch.library.opcheck(torch.ops.fastdetect.supcon_margin_backward.default, (*still, coefficients))


class Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 16)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return 2 * supcon_margin_loss(self.linear(x), labels, normalize=True, anchors="real")


def test_compile_fullgraph_dynamic(device: str) -> None:
    head = Head().to(device)
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (6, 11):
        x, labels = torch.randn(rows, 12, device=device), torch.arange(rows, device=device) % 3
        expected = torch.autograd.grad(head(x, labels), head.linear.weight)
        torch.testing.assert_close(torch.autograd.grad(compiled(x, labels), head.linear.weight), expected)


def test_export(device: str) -> None:
    head, args = Head().to(device), (torch.randn(6, 12, device=device), torch.arange(6, device=device) % 3)
    rows = {0: torch.export.Dim("rows", min=2)}
    program = torch.export.export(head, args, dynamic_shapes=(rows, rows))
    assert any("fastdetect.supcon_margin" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*args), head(*args))


def test_autocast_does_not_change_the_sums(device: str) -> None:
    z, labels = unit(40, 16, dtype=torch.float32, device=device), torch.arange(40, device=device) % 3
    expected = with_grad(z, labels)
    with torch.autocast(device, torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(with_grad(z, labels), expected, strict=True))
        low = Head().to(device)(torch.randn(6, 12, device=device), labels[:6])  # the linear layer gives bfloat16
    assert low.dtype == torch.float32
    low.backward()


def test_ranks_are_one_batch(tmp_path: Path) -> None:
    """Two gloo processes against one: same loss, same gradients, no reduce-scatter; unequal rows are refused."""
    script = Path(__file__).parent / "supcon_ranks.py"
    command = [sys.executable, str(script), str(tmp_path / "store")]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all("equal to one process" in output for output in outputs)


def good() -> dict:
    return {"z": torch.rand(4, 3), "labels": torch.tensor([0, 0, 1, 2])}


@pytest.mark.parametrize("denominator", ["all", "negatives"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_given_positives_in_float32(monkeypatch: pytest.MonkeyPatch, denominator: str, reduction: str) -> None:
    """Asymmetric ones, of another sense than the labels: not for the C++ core, which knows classes alone."""
    z, labels = unit(40, 8, dtype=torch.float32), torch.arange(40) % 3
    options = {"positives": torch.rand(40, 40) < 0.2, "denominator": denominator, "reduction": reduction}
    for actual, want in zip(with_grad(z, labels, **options), truth(monkeypatch, z, labels, **options), strict=True):
        torch.testing.assert_close(actual.double(), want, rtol=1e-4, atol=1e-5)


def test_rows_wider_than_the_c_core_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = unit(12, 5000, dtype=torch.float32), torch.arange(12) % 3
    for actual, want in zip(with_grad(z, labels), truth(monkeypatch, z, labels), strict=True):
        torch.testing.assert_close(actual.double(), want, rtol=1e-4, atol=1e-5)


FUSED = FusedNegatives(torch.tensor([2]), torch.tensor([-1]), torch.tensor([0.5]), torch.rand(3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": [0, 0, 1, 1]}, ShapeError, r"labels: got list, want a torch.Tensor"),
        ({"positives": [[True]]}, ShapeError, r"positives: got list, want a torch.Tensor"),
        ({"z": torch.rand(4)}, ShapeError, r"z: got shape \(4,\), want \[N, D\]"),
        ({"z": torch.rand(0, 3)}, ShapeError, r"N and D of at least 1"),
        ({"z": torch.ones(4, 3, dtype=torch.long)}, ShapeError, r"z: got torch.int64, want float32"),
        ({"labels": torch.tensor([0, 1])}, ShapeError, r"labels: got shape \(2,\), want \(4,\)"),
        ({"labels": torch.zeros(4)}, ShapeError, r"labels: got torch.float32, want integers .*labels.long\(\)"),
        ({"labels": torch.zeros(4, dtype=torch.bool)}, ShapeError, r"labels: got torch.bool"),
        ({"labels": torch.tensor([0, -1, 1, 1])}, ShapeError, r"labels: got -1, want at least 0"),
        ({"labels": torch.zeros(4, dtype=torch.long, device="meta")}, ShapeError, r"labels: got device meta"),
        ({"positives": torch.ones(4, 4)}, ShapeError, r"positives: got torch.float32 of shape \(4, 4\), want bool"),
        ({"positives": torch.ones(4, 3) > 0}, ShapeError, r"want bool of \(4, 4\)"),
        ({"synthetic": torch.rand(2, 4)}, ShapeError, r"synthetic: got shape \(2, 4\), want \[M, 3\]"),
        ({"synthetic": torch.rand(2, 3).half()}, ShapeError, r"synthetic: got torch.float16, want the dtype of z"),
        ({"temperature": 0.0}, UsageError, r"temperature: got 0.0, want a finite number above 0"),
        ({"temperature": math.nan}, UsageError, r"temperature: got nan"),
        ({"margin": -0.1}, UsageError, r"margin: got -0.1, want a finite number of at least 0"),
        ({"base_temperature": -1}, UsageError, r"base_temperature: got -1"),
        ({"anchors": "fake"}, UsageError, r"anchors: got 'fake', want 'all' or 'real'"),
        ({"denominator": "none"}, UsageError, r"denominator: got 'none', want 'all' or 'negatives'"),
        ({"pairing": "pairs"}, UsageError, r"pairing: got 'pairs', want 'binary' or 'label'"),
        ({"reduction": "avg"}, UsageError, r"reduction: got 'avg', want 'mean' or 'mean_all' or 'sum' or 'none'"),
        (
            {"fused_negatives": FUSED._replace(weight=torch.rand(2))},
            ShapeError,
            r"fused_negatives.weight: got shape \(2,\), want \(1,\)",
        ),
        (
            {"fused_negatives": FUSED._replace(center=torch.rand(4))},
            ShapeError,
            r"fused_negatives.center: got shape \(4,\), want \(3,\)",
        ),
        (
            {"fused_negatives": FUSED._replace(index_b=torch.zeros(1))},
            ShapeError,
            r"fused_negatives.index_b: got torch.float32, want int64",
        ),
        (
            {"fused_negatives": FUSED._replace(index_a=torch.tensor([4]))},
            ShapeError,
            r"fused_negatives.index_a: got 4 to 4, want rows of z, -1 to 3",
        ),
        (
            {"fused_negatives": FUSED._replace(weight=torch.tensor([7.0]))},
            ShapeError,
            r"fused_negatives.weight: got 7 to 7, want 0 to 1",
        ),
        (
            {"fused_negatives": FUSED._replace(weight=torch.tensor([math.nan])), "reduction": "none"},
            ShapeError,
            r"fused_negatives.weight: got nan to nan",
        ),
        (
            {"fused_negatives": FUSED._replace(center=torch.rand(3, requires_grad=True))},
            UsageError,
            r"fused_negatives.center requires a gradient",
        ),
    ],
)
@pytest.mark.usefixtures("implementation")
def test_errors(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        supcon_margin_loss(**(good() | change))


def test_wrong_values_are_nan_where_nobody_looks() -> None:
    """The chunks, which run on CUDA in float64 or without Triton; torch.vmap; no index reads past the rows."""
    p = supcon_chunked.Problem(
        unit(4, 3), good()["labels"], None, None, 0, None, None, *FUSED, 0.1, 0.1, False, False, False, True
    )
    assert supcon_chunked.forward(p)[0].isfinite().all()
    fused = {"index_a": torch.tensor([4]), "index_b": torch.tensor([-2]), "weight": torch.tensor([7.0])}
    for change in ({"labels": p.labels - 1}, *({name: value} for name, value in fused.items())):
        assert supcon_chunked.forward(p._replace(**change))[0].isnan().all()
    labels = torch.stack([p.labels, p.labels - 1])
    losses = torch.func.vmap(lambda row: supcon_margin_loss(p.z, row))(labels)
    assert losses.isnan().tolist() == [False, True]


@pytest.mark.usefixtures("implementation")
def test_torch_func() -> None:
    """grad, also of a batch of problems by vmap, takes the reference; what can be looked at is checked there too."""
    z, labels = unit(2, 8, 4), torch.arange(8) % 3
    fused = extras(z[0], labels)

    def loss(z: Tensor) -> Tensor:
        return supcon_margin_loss(z, labels, anchors="real", fused_negatives=fused)

    want = torch.stack([with_grad(one, labels, anchors="real", fused_negatives=fused)[1] / 1.7 for one in z])
    torch.testing.assert_close(torch.func.grad(loss)(z[0]), want[0])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(z), want)
    with pytest.raises(ShapeError, match="labels: got -1"):
        torch.func.grad(lambda x: supcon_margin_loss(x, labels - 1))(z[0])


def test_meta() -> None:
    z, labels = torch.rand(4, 3, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")
    fused = fuse_hard_negatives(z, labels, z[0], n_hard=2, n_fused=3, seed=0)
    assert supcon_margin_loss(z, labels, fused_negatives=fused, reduction="none").shape == (4,)


def test_error_double_backward() -> None:
    args = good()
    args["z"].requires_grad_()
    with pytest.raises(UsageError, match="no double backward"):
        torch.autograd.grad(supcon_margin_loss(**args), args["z"], create_graph=True)


def test_gpus_before_ampere_take_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles of 16-bit numbers want 128 KB of shared memory when compiled for Turing, which has 64."""
    backend.tiles_fit.cache_clear()
    monkeypatch.setattr(supcon_margin, "_triton", lambda device_type: device_type == "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device.index else (8, 0))

    def taken(dtype: torch.dtype, index: int) -> bool:
        return supcon_margin._by_triton(SimpleNamespace(dtype=dtype, device=torch.device("cuda", index)))

    assert taken(torch.float32, 1)
    assert taken(torch.bfloat16, 0)
    with pytest.warns(RuntimeWarning, match="cuda:1 is older: plain torch"):
        assert not taken(torch.float16, 1)
    assert not taken(torch.bfloat16, 1)
    backend.tiles_fit.cache_clear()


@pytest.mark.gpu
def test_negative_labels_on_cuda_are_nan() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    labels = torch.tensor([0, 0, 1, -1], device="cuda")
    assert supcon_margin_loss(unit(4, 16, dtype=torch.float32, device="cuda"), labels).isnan()
