"""The loss modules against the code that they stand in for, and the real-centric loss's state."""

import copy
import doctest
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as peers
from torch import Tensor

from fastdetect import losses
from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import (
    fuse_hard_negatives,
    hard_negatives,
    masked_patch_loss,
    supcon_margin,
    supcon_margin_loss,
    synthesize_positives,
    update_center,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def supcontrast(features: Tensor, labels: Tensor | None, mask: Tensor | None, mode: str, tau: float) -> Tensor:
    """SupContrast's SupConLoss.forward, as published, base temperature 0.07."""
    batch, views = features.shape[:2]
    if labels is None and mask is None:
        mask = torch.eye(batch)
    elif labels is not None:
        mask = torch.eq(labels.view(-1, 1), labels.view(-1, 1).T).float()
    contrast = torch.cat(torch.unbind(features, dim=1), dim=0)
    anchor, count = (features[:, 0], 1) if mode == "one" else (contrast, views)
    dot = torch.div(torch.matmul(anchor, contrast.T), tau)
    logits = dot - torch.max(dot, dim=1, keepdim=True)[0].detach()
    mask = mask.repeat(count, views)
    logits_mask = torch.scatter(torch.ones_like(mask), 1, torch.arange(batch * count).view(-1, 1), 0)
    mask = mask * logits_mask
    log_prob = logits - torch.log((torch.exp(logits) * logits_mask).sum(1, keepdim=True))
    pairs = mask.sum(1)
    pairs = torch.where(pairs < 1e-6, 1, pairs)
    return (-(tau / 0.07) * (mask * log_prob).sum(1) / pairs).view(count, batch).mean()


def same(ours: Tensor, theirs: Tensor, inputs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs)[0], torch.autograd.grad(theirs, inputs)[0])


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("positives", ["labels", "mask", "none"])
@pytest.mark.parametrize("views", [1, 3])
def test_supcontrast_drop_in(mode: str, positives: str, views: int) -> None:
    features = F.normalize(torch.randn(7, views, 5, dtype=torch.float64), dim=-1).requires_grad_()
    labels = torch.tensor([0, 1, 1, 2, 0, 0, 3]) if positives == "labels" else None
    mask = (torch.rand(7, 7) < 0.4).double() if positives == "mask" else None
    ours = losses.SupConLoss(temperature=0.2, contrast_mode=mode)(features, labels, mask)
    same(ours, supcontrast(features, labels, mask, mode, 0.2), features)


def test_supcon_flattens_and_refuses() -> None:
    features = F.normalize(torch.randn(4, 2, 6), dim=-1)
    loss = losses.SupConLoss()
    assert loss(features.view(4, 2, 3, 2)) == loss(features)
    assert loss(features, torch.arange(4).view(4, 1)) == loss(features)
    with pytest.raises(ShapeError, match=r"features: got shape \(4, 2\), want \[B, V, ...\]"):
        loss(features[..., 0])
    with pytest.raises(UsageError, match="labels and mask: got both"):
        loss(features, torch.arange(4), torch.eye(4))
    with pytest.raises(ShapeError, match=r"labels: got shape \(8,\), want \(4,\)"):
        loss(features, torch.arange(8))
    with pytest.raises(ShapeError, match=r"mask: got shape \(8, 8\), want \(4, 4\)"):
        loss(features, mask=torch.eye(8))
    with pytest.raises(UsageError, match="contrast_mode: got 'two'"):
        losses.SupConLoss(contrast_mode="two")


def test_supcon_mask_is_zeros_and_ones() -> None:
    features, mask = F.normalize(torch.randn(4, 2, 6), dim=-1), torch.eye(4)
    loss = losses.SupConLoss()
    assert loss(features, mask=mask.bool()) == loss(features, mask=mask.int()) == loss(features, mask=mask)
    for value in (0.5, 2.0, torch.nan):
        mask[1, 2] = value
        with pytest.raises(ShapeError, match=rf"mask: got {value:g}, want 0 or 1"):
            loss(features, mask=mask)


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        (losses.SupConLoss, "temperature", [-1, 0, torch.nan, torch.inf]),
        (losses.SupConLoss, "base_temperature", [-1]),
        (losses.SupConLoss, "margin", [-0.1]),
        (losses.MetricLearningSupConLoss, "temperature", [-1]),
        (losses.MetricLearningSupConLoss, "margin", [torch.inf]),
        (losses.MetricLearningSupConLoss, "denominator", ["some"]),
        (losses.RealCentricLoss, "anchors", ["foo"]),
        (losses.RealCentricLoss, "denominator", ["foo"]),
        (losses.RealCentricLoss, "pairing", ["foo"]),
        (losses.RealCentricLoss, "reduction", ["foo"]),
        (losses.RealCentricLoss, "temperature", [-3]),
        (losses.RealCentricLoss, "margin", [-1]),
        (losses.RealCentricLoss, "momentum", [7, torch.nan]),
        (losses.RealCentricLoss, "rho", [5, -0.1]),
        (losses.RealCentricLoss, "lam_max", [-1, torch.inf]),
        (losses.RealCentricLoss, "width", [0, 8.0]),
        (losses.RealCentricLoss, "n_hard", [0, 2.5]),
        (losses.RealCentricLoss, "n_fused", [-1, 2.5]),
        (losses.RealCentricLoss, "seed", [-1, 2**31, 0.5]),
    ],
)
def test_options_are_refused_at_once(make: Callable[..., object], name: str, values: list[object]) -> None:
    width = {"width": 8} if make is losses.RealCentricLoss else {}
    for value in values:
        with pytest.raises(UsageError, match=rf"^{name}: got {value!r}, want "):
            make(**{**width, name: value})


@pytest.mark.parametrize("name", ["temperature", "base_temperature", "margin"])
def test_numbers_are_not_learnt_in_silence(name: str) -> None:
    learnt = {name: torch.nn.Parameter(torch.tensor(0.1))}
    with pytest.raises(UsageError, match=f"^{name} requires a gradient, which the loss does not have"):
        losses.SupConLoss(**learnt)
    with pytest.raises(UsageError, match=f"^{name} requires a gradient, which the loss does not have"):
        supcon_margin_loss(torch.eye(4), torch.tensor([0, 0, 1, 1]), **learnt)


def test_what_is_no_tensor_is_refused() -> None:
    z, y = F.normalize(torch.randn(4, 8), dim=-1), torch.tensor([0, 0, 1, 1])
    supcon, metric, real = losses.SupConLoss(), losses.MetricLearningSupConLoss(), losses.RealCentricLoss(8)
    for name, call in (
        ("features", lambda: supcon(z[:, None].numpy(), y)),
        ("labels", lambda: supcon(z[:, None], y.tolist())),
        ("mask", lambda: supcon(z[:, None], mask=np.eye(4))),
        ("embeddings", lambda: metric(z.numpy(), y)),
        ("labels", lambda: metric(z, y.tolist(), ref_emb=z, ref_labels=y)),
        ("ref_emb", lambda: metric(z, y, ref_emb=z.numpy(), ref_labels=y)),
        ("ref_labels", lambda: metric(z, y, ref_emb=z, ref_labels=y.tolist())),
        ("indices_tuple", lambda: metric(z, y, ([0], [1], [2]))),
        ("embeddings", lambda: real(z.numpy(), y)),
        ("labels", lambda: real(z, y.tolist())),
    ):
        with pytest.raises(ShapeError, match=f"^{name}: got .*, want a torch.Tensor"):
            call()


class TestMetricLearning:
    labels = torch.tensor([0, 1, 1, 2, 0, 0, 3, 2])

    def both(self, *args: object, **kwargs: object) -> None:
        z = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
        ours = losses.MetricLearningSupConLoss(temperature=0.3)(z, *args, **kwargs)
        theirs = peers.SupConLoss(temperature=0.3)(z, *args, **kwargs)
        same(ours, theirs, z)  # in float64

    def test_labels(self) -> None:
        self.both(self.labels)

    def test_reference_set(self) -> None:
        self.both(
            self.labels, ref_emb=torch.randn(6, 5, dtype=torch.float64), ref_labels=torch.tensor([0, 1, 2, 2, 4, 0])
        )

    def test_pairs(self) -> None:
        self.both(self.labels, tuple(torch.tensor(i) for i in ([0, 1, 3], [4, 2, 7], [0, 1, 1, 3], [1, 3, 5, 6])))

    def test_triplets(self) -> None:
        self.both(self.labels, tuple(torch.tensor(i) for i in ([0, 1, 0], [4, 2, 5], [1, 3, 2])))

    def test_no_negative_at_all(self) -> None:
        ones = torch.ones(8, dtype=torch.int64)
        none = torch.zeros(0, dtype=torch.int64)
        self.both(ones)
        self.both(self.labels, (torch.tensor([0, 1]), torch.tensor([4, 2]), none, none))
        self.both(ones, ref_emb=torch.randn(6, 5, dtype=torch.float64), ref_labels=ones[:6])

    def test_cross_batch_memory(self) -> None:
        from pytorch_metric_learning import miners

        class SupConLoss(losses.MetricLearningSupConLoss):
            pass

        found = []
        for loss in (SupConLoss(), peers.SupConLoss()):
            memory = peers.CrossBatchMemory(loss, 5, memory_size=24, miner=miners.MultiSimilarityMiner())
            torch.manual_seed(0)
            found.append([memory(torch.randn(8, 5), self.labels).item() for _ in range(5)])
        assert found[0] == pytest.approx(found[1])

    def test_no_pairs_at_all(self) -> None:
        z = torch.randn(3, 5, requires_grad=True)
        loss = losses.MetricLearningSupConLoss()(z, torch.arange(3))
        loss.backward()
        assert loss == 0
        assert (z.grad == 0).all()

    def test_errors(self) -> None:
        loss, z = losses.MetricLearningSupConLoss(denominator="negatives"), torch.randn(8, 5)
        with pytest.raises(UsageError, match="labels: got None without indices_tuple"):
            loss(z)
        with pytest.raises(UsageError, match="got 'negatives' with indices_tuple or ref_emb"):
            loss(z, self.labels, ref_emb=z, ref_labels=self.labels)
        with pytest.raises(UsageError, match="ref_labels: got None"):
            losses.MetricLearningSupConLoss()(z, self.labels, ref_emb=z)
        with pytest.raises(ShapeError, match="indices_tuple: got 2 tensors, want 3"):
            losses.MetricLearningSupConLoss()(z, self.labels, (self.labels, self.labels))
        with pytest.raises(UsageError, match="ref_emb: got None with ref_labels"):
            losses.MetricLearningSupConLoss()(z, self.labels, ref_labels=self.labels)

    def test_error_embeddings(self) -> None:
        loss, z = losses.MetricLearningSupConLoss(), torch.randn(8, 5)
        pairs = (torch.tensor([0]),) * 4
        for bad in (z[0], z[:0], z[:, :0], z.long()):
            for chosen in (None, pairs):
                with pytest.raises(ShapeError, match=r"^embeddings: got "):
                    loss(bad, self.labels[: len(bad)], chosen)
        for bad in (z[:, :4], z[0], z[:0], z.long()):
            with pytest.raises(ShapeError, match=r"^ref_emb: got "):
                loss(z, self.labels, ref_emb=bad, ref_labels=self.labels)

    def test_error_labels(self) -> None:
        loss, z, good = losses.MetricLearningSupConLoss(), torch.randn(8, 5), self.labels
        pairs = (torch.tensor([0]),) * 4
        for bad, text in (
            (good - 1, "got -1, want at least 0"),
            (good.float(), "got torch.float32, want integers"),
            (good > 0, "got torch.bool, want integers"),
            (good[:7], r"got shape \(7,\), want \(8,\)"),
        ):
            with pytest.raises(ShapeError, match=f"^labels: {text}"):
                loss(z, bad, ref_emb=z, ref_labels=good)
            with pytest.raises(ShapeError, match=f"^labels: {text}"):
                loss(z, bad, pairs)
            with pytest.raises(ShapeError, match=f"^ref_labels: {text}"):
                loss(z, good, ref_emb=z, ref_labels=bad)

    def test_error_indices(self) -> None:
        loss, z = losses.MetricLearningSupConLoss(), torch.randn(8, 5)
        one = torch.tensor([0])
        for bad, text in (
            (torch.tensor([8]), "got 8 to 8, want 0 to 7"),
            (torch.tensor([-1]), "got -1 to -1, want 0 to 7"),
            (torch.tensor([0.0]), "got .*want int64 or int32 vectors"),
            (one.byte(), "got .*want int64 or int32 vectors"),
            (torch.tensor([0, 1]), "got .*anchors and others as many"),
            (torch.tensor([[0]]), "got .*want int64 or int32 vectors"),
        ):
            for place in range(4):
                chosen = [one] * 4
                chosen[place] = bad
                with pytest.raises(ShapeError, match=f"^indices_tuple: {text}"):
                    loss(z, self.labels, tuple(chosen))
            with pytest.raises(ShapeError, match=f"^indices_tuple: {text}"):
                loss(z, self.labels, (one, one, bad))
        with pytest.raises(ShapeError, match=r"^indices_tuple: got 7 to 7, want 0 to 2"):  # rows of ref_emb
            loss(z, self.labels, (one, torch.tensor([7]), one, one), ref_emb=z[:3])

    def test_autocast_changes_nothing(self) -> None:
        loss, z, other = losses.MetricLearningSupConLoss(), torch.randn(8, 5), torch.randn(8, 5)
        expected = loss(z, self.labels, ref_emb=other, ref_labels=self.labels)
        with torch.autocast("cpu"):
            assert loss(z, self.labels, ref_emb=other, ref_labels=self.labels) == expected


@pytest.mark.parametrize("norm_pix", [False, True])
def test_masked_patch_loss(norm_pix: bool) -> None:
    images, pred, mask = torch.rand(2, 3, 16, 24), torch.randn(2, 6, 192), torch.rand(2, 6) < 0.7
    expected = masked_patch_loss(pred, images, mask, patch_size=8, norm_pix=norm_pix)
    assert losses.MaskedPatchLoss(8, norm_pix)(images, pred, mask) == expected


class TestRealCentric:
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 3, 0])

    def batch(self) -> Tensor:
        return torch.randn(10, 8, dtype=torch.float32)

    def test_is_its_parts(self) -> None:
        loss, x = losses.RealCentricLoss(8, seed=5, n_hard=3, n_fused=6), self.batch()
        z = F.normalize(x, dim=1)
        center = update_center(None, z, self.labels)
        seed = (5 << 32) + 1
        synthetic, _, _ = synthesize_positives(z, self.labels, center, seed=seed)
        fused = fuse_hard_negatives(z, self.labels, center, n_hard=3, n_fused=6, seed=seed)
        expected = supcon_margin_loss(z, self.labels, anchors="real", synthetic=synthetic, fused_negatives=fused)
        torch.testing.assert_close(loss(x, self.labels), expected)
        torch.testing.assert_close(loss.center, center)
        bare = losses.RealCentricLoss(8, rho=0, n_fused=0)
        torch.testing.assert_close(bare(x, self.labels), supcon_margin_loss(z, self.labels, anchors="real"))
        assert (synthetic.shape[0], loss.step.item()) == (2, 1)

    def test_state_resumes(self) -> None:
        first, batches = losses.RealCentricLoss(8), [self.batch() for _ in range(4)]
        for x in batches[:2]:
            first(x, self.labels)
        second = losses.RealCentricLoss(8)
        second.load_state_dict(first.state_dict())
        assert set(first.state_dict()) == {"center", "step"}
        for x in batches[2:]:
            assert first(x, self.labels) == second(x, self.labels)
        assert torch.equal(first.center, second.center)

    def test_evaluation_changes_nothing(self) -> None:
        loss, x = losses.RealCentricLoss(8), self.batch()
        loss(x, self.labels)
        before = {name: value.clone() for name, value in loss.state_dict().items()}
        loss.eval()
        assert loss(x, self.labels) == loss(x, self.labels)
        assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())

    @pytest.mark.parametrize("labels", [[1, 2, 1, 3], [0, 0, 0, 0], [0, 1, 1, 1]])
    def test_one_sided_batches(self, labels: list[int]) -> None:
        """Fakes only, reals only, one real: finite, and 0 where there is no anchor."""
        x = torch.randn(4, 8, requires_grad=True)
        loss = losses.RealCentricLoss(8)(x, torch.tensor(labels))
        loss.backward()
        assert loss.isfinite()
        assert x.grad.isfinite().all()
        assert (loss == 0) == (0 not in labels)

    def test_gradients_through_synthesis_and_fusion(self) -> None:
        def grad(**options: bool) -> Tensor:
            torch.manual_seed(0)
            x = torch.randn(10, 8, requires_grad=True)
            losses.RealCentricLoss(8, **options)(x, self.labels).backward()
            return x.grad

        plain = grad()
        assert (grad(detach=False) - plain)[self.labels == 0].abs().max() > 1e-6
        assert (grad(fusion_grad=True) - plain)[self.labels > 0].abs().max() > 1e-6

    def test_training_separates(self) -> None:
        x = torch.randn(20, 8, requires_grad=True)
        labels = torch.arange(20) % 2
        loss, optimizer = losses.RealCentricLoss(8), torch.optim.SGD([x], lr=2.0)
        history = []
        for _ in range(60):
            optimizer.zero_grad()
            value = loss(x, labels)
            value.backward()
            optimizer.step()
            history.append(value.item())
        similarity = F.normalize(x.detach(), dim=1) @ loss.center
        assert history[-1] < 0.8 * history[0]
        assert similarity[labels == 0].min() > similarity[labels == 1].max()

    @pytest.mark.parametrize("row", [0, 5])  # a real, a fake
    @pytest.mark.parametrize(("value", "length"), [(torch.nan, "nan"), (torch.inf, "inf"), (0.0, "0")])
    def test_step_that_fails_changes_nothing(self, row: int, value: float, length: str) -> None:
        loss, x = losses.RealCentricLoss(8), self.batch()
        loss(x, self.labels)
        twin, bad = copy.deepcopy(loss), x.clone()
        bad[row] = value
        with pytest.raises(ShapeError, match=f"^embeddings: got length {length} at row {row}, want finite rows"):
            loss(bad, self.labels)
        assert all(torch.equal(kept, twin.state_dict()[name]) for name, kept in loss.state_dict().items())
        assert loss(x, self.labels) == twin(x, self.labels)

    def test_center_that_is_not_finite_is_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on CUDA, where a NaN among the reals is not looked at."""
        loss, x = losses.RealCentricLoss(8), self.batch()
        loss(x, self.labels)
        before = loss.center.clone()
        with monkeypatch.context() as patch:
            patch.setattr(losses, "update_center", lambda center, *_, **__: center * torch.nan)
            loss(x, self.labels)
        assert torch.equal(loss.center, before)
        assert loss(x, self.labels).isfinite()

    @pytest.mark.parametrize("rho", [0.0, 0.25])
    def test_loaded_center_that_is_not_finite_counts_as_none(self, rho: float) -> None:
        loss, x = losses.RealCentricLoss(8, rho=rho), self.batch()
        loss.load_state_dict({"center": torch.full((8,), torch.nan), "step": torch.tensor(0)})
        assert loss.eval()(x, self.labels).isfinite()
        assert loss.train()(x, self.labels) == losses.RealCentricLoss(8, rho=rho)(x, self.labels)
        assert loss.center.isfinite().all()

    def test_state_is_written_in_place(self) -> None:
        """CUDA graphs and optimisers over buffers know them by their memory."""
        loss = losses.RealCentricLoss(8)
        center, step = loss.center, loss.step
        loss(self.batch(), self.labels)
        assert loss.center is center
        assert loss.step is step
        assert center.any()
        assert step == 1

    @pytest.mark.parametrize("detach", [True, False])
    def test_two_forwards_before_one_backward(self, detach: bool) -> None:
        def gradient(at_once: bool) -> Tensor:
            loss = losses.RealCentricLoss(8, detach=detach, fusion_grad=True)
            first, second = loss(x, self.labels), None
            if not at_once:
                second = torch.autograd.grad(first, x)[0]
            third = loss(2 * x, self.labels)
            if at_once:
                return torch.autograd.grad(first + third, x)[0]
            return second + torch.autograd.grad(third, x)[0]

        x = self.batch().requires_grad_()
        torch.testing.assert_close(gradient(True), gradient(False))

    def test_float64_is_kept(self) -> None:
        x = self.batch().double()
        z = F.normalize(x, dim=1)
        expected = supcon_margin_loss(z, self.labels, anchors="real")
        actual = losses.RealCentricLoss(8, rho=0, n_fused=0)(x, self.labels)
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=0)

    def test_error_embeddings(self) -> None:
        for bad in (torch.randn(8), torch.randn(10, 7), torch.randn(0, 8), torch.ones(10, 8, dtype=torch.int64)):
            with pytest.raises(ShapeError, match=r"^embeddings: got "):
                losses.RealCentricLoss(8)(bad, self.labels)

    @pytest.mark.gpu
    def test_cuda_graph(self) -> None:
        """Without synthesis the whole step can be captured; the replay moves centre and step."""
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        loss, labels = losses.RealCentricLoss(8, rho=0, n_hard=3, n_fused=6).cuda(), self.labels.cuda()
        twin, x, other = copy.deepcopy(loss), self.batch().cuda(), self.batch().cuda()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            loss(x, labels)  # compiles
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value = loss(x, labels)
        loss.load_state_dict(twin.state_dict())
        for batch in (x.clone(), other):
            x.copy_(batch)
            graph.replay()
            torch.testing.assert_close(value, twin(batch, labels))
            torch.testing.assert_close(loss.state_dict(), twin.state_dict())

    @pytest.mark.gpu
    def test_cuda_overflow_leaves_the_center(self) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        loss, x, labels = losses.RealCentricLoss(8, rho=0).cuda(), self.batch().cuda(), self.labels.cuda()
        loss(x, labels)
        before = loss.center.clone()
        assert loss(torch.where(labels[:, None] == 0, torch.inf, x), labels).isnan()
        assert torch.equal(loss.center, before)
        assert loss(x, labels).isfinite()


@pytest.mark.parametrize("module", [losses, hard_negatives, supcon_margin])
def test_examples(module: object) -> None:
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
