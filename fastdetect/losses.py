"""Loss modules over the fused ops: MAE's, SupContrast's and pytorch-metric-learning's, and the real-centric loss."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import (
    fuse_hard_negatives,
    masked_patch_loss,
    supcon_margin_loss,
    synthesize_positives,
    update_center,
)
from fastdetect.ops.backend import check_constants, check_tensors, is_integer
from fastdetect.ops.ranks import gather_rows
from fastdetect.ops.reference import accumulation_dtype

_INFINITY = float("inf")
_SHORTEST = 1e-12  # normalize() divides by no less


class MaskedPatchLoss(nn.Module):
    """MAE's `forward_loss` [paper] as a module: mean squared error per removed patch.

    Args:
        patch_size: P, divides the images' height and width.
        norm_pix: standardise each target patch.

    Example:
        >>> loss = MaskedPatchLoss(patch_size=16)
        >>> loss(torch.rand(2, 3, 32, 32), torch.zeros(2, 4, 768), torch.ones(2, 4)).shape
        torch.Size([])
    """

    def __init__(self, patch_size: int, norm_pix: bool = False) -> None:
        super().__init__()
        self.patch_size, self.norm_pix = patch_size, norm_pix

    def forward(self, images: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Loss of pred [B, L, P*P*C] on images [B, C, H, W] where mask [B, L] is 1; in MAE's order of arguments."""
        return masked_patch_loss(pred, images, mask, patch_size=self.patch_size, norm_pix=self.norm_pix)


class SupConLoss(nn.Module):
    """SupContrast's SupConLoss (Khosla et al.): same arguments, same value; margin = 0 is its formula.

    Args:
        temperature: tau > 0.
        contrast_mode: "all" views are anchors, or the "one" that comes first.
        base_temperature: the loss is multiplied by temperature / base_temperature.
        margin: m >= 0, taken off the similarity of positives [ours].

    Raises:
        UsageError: an option is out of range.

    Example:
        >>> features = torch.nn.functional.normalize(torch.randn(4, 2, 16), dim=-1)
        >>> SupConLoss()(features, torch.tensor([0, 1, 0, 1])).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = 0.07,
        contrast_mode: str = "all",
        base_temperature: float = 0.07,
        margin: float = 0.0,
    ) -> None:
        super().__init__()
        _check_choice("contrast_mode", contrast_mode, "all", "one")
        _check_numbers(temperature=temperature, base_temperature=base_temperature, margin=margin)
        self.temperature, self.contrast_mode = temperature, contrast_mode
        self.base_temperature, self.margin = base_temperature, margin

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Mean loss over the anchors; one without positives counts as 0.

        Args:
            features: [B, V, ...], V views of B samples, unit length (trailing dimensions are flattened).
            labels: [B] integers of at least 0, or [B, 1]; neither labels nor mask: SimCLR, each sample its own class.
            mask: [B, B] of any dtype, 1 where the column is a positive of the row, 0 elsewhere; need not be symmetric.
                Other numbers, by which SupContrast weights, are a ShapeError on the CPU; on CUDA, where looking at
                them would stall the stream, they count as 1.

        Raises:
            ShapeError: a shape, or a value of the mask, does not fit.
            UsageError: labels and mask at once.
        """
        given = {"features": features, "labels": labels, "mask": mask}
        check_tensors(**{name: value for name, value in given.items() if value is not None})
        if features.dim() < 3:
            raise ShapeError(f"features: got shape {tuple(features.shape)}, want [B, V, ...] with views in dimension 1")
        if labels is not None and mask is not None:
            raise UsageError("labels and mask: got both, want one of them")
        batch, views = features.shape[:2]
        z = features.flatten(2).transpose(0, 1).flatten(0, 1)  # view-major
        if labels is None:
            numbers = torch.arange(batch, device=z.device)
        elif labels.numel() == batch:
            numbers = labels.reshape(batch)
        else:
            raise ShapeError(f"labels: got shape {tuple(labels.shape)}, want ({batch},), one per sample")
        if mask is not None and mask.shape != (batch, batch):
            raise ShapeError(f"mask: got shape {tuple(mask.shape)}, want ({batch}, {batch})")
        if mask is not None and _readable(mask):
            other = mask[(mask != 0) & (mask != 1)]
            if len(other):
                raise ShapeError(
                    f"mask: got {other[0].item():.4g}, want 0 or 1 (weights are not supported): pass mask > 0"
                )
        rows = supcon_margin_loss(
            z,
            numbers.repeat(views),
            temperature=self.temperature,
            margin=self.margin,
            pairing="label",
            positives=None if mask is None else (mask != 0).repeat(views, views),
            base_temperature=self.base_temperature,
            reduction="none",
        )
        return rows.mean() if self.contrast_mode == "all" else rows[:batch].mean()


class MetricLearningSupConLoss(nn.Module):
    """pytorch-metric-learning's SupConLoss with its call: normalised embeddings, mean over the rows that are not 0.

    A call without any negative (one class, or a miner that found none) gives 0, as there. Its `CrossBatchMemory` and
    `SelfSupervisedLoss` know losses by the name of their class: `class SupConLoss(MetricLearningSupConLoss): ...`.

    Args:
        temperature: tau > 0.
        margin: m >= 0, taken off the similarity of positives [ours].
        denominator: "all", or "negatives" (see `supcon_margin_loss`).

    Raises:
        UsageError: an option is out of range.

    Example:
        >>> MetricLearningSupConLoss()(torch.randn(6, 16), torch.tensor([0, 0, 1, 1, 2, 2])).shape
        torch.Size([])
    """

    def __init__(self, temperature: float = 0.1, margin: float = 0.0, denominator: str = "all") -> None:
        super().__init__()
        _check_choice("denominator", denominator, "all", "negatives")
        _check_numbers(temperature=temperature, margin=margin)
        self.temperature, self.margin, self.denominator = temperature, margin, denominator

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of the embeddings [N, D] with labels [N], a scalar of float32 (float64 where an argument is).

        A miner's indices_tuple (pairs a1, p, a2, n, or triplets a, p, n) or a reference set ref_emb [R, D] with
        ref_labels [R] choose pairs one by one: those are computed in plain torch, N x R numbers.

        Args:
            embeddings: [N, D] floating point, N and D at least 1; normalised here.
            labels: [N] integers of at least 0; not read beside indices_tuple, but checked.
            indices_tuple: int64 or int32 vectors, a1 as long as p, a2 as n (a, p and n alike): a in rows of
                embeddings, p and n in rows of ref_emb (of embeddings without one).
            ref_emb: [R, D] floating point, R at least 1.
            ref_labels: [R] integers of at least 0.

        Raises:
            ShapeError: a shape, dtype, device, label or index does not fit. On CUDA, where looking at values would
                stall the stream, negative labels make the loss NaN, and indices are torch's to refuse.
            UsageError: neither labels nor indices_tuple; ref_labels without ref_emb, or the other way round without
                indices_tuple; a miner or a reference set with denominator="negatives".
        """
        _check_embeddings("embeddings", embeddings)
        if labels is None and indices_tuple is None:
            raise UsageError("labels: got None without indices_tuple, want labels [N] or a miner's indices")
        if ref_emb is None and ref_labels is not None:
            raise UsageError("ref_emb: got None with ref_labels, want the embeddings [R, D] that they belong to")
        if labels is not None and indices_tuple is None and ref_emb is None:
            rows = supcon_margin_loss(
                embeddings,
                labels,
                temperature=self.temperature,
                margin=self.margin,
                denominator=self.denominator,
                pairing="label",
                normalize=True,
                reduction="none",
            )
            rows = rows * ((labels != labels[0]) | (labels < 0)).any()
        else:
            if self.denominator != "all":
                raise UsageError("denominator: got 'negatives' with indices_tuple or ref_emb, want 'all'")
            if ref_emb is not None:
                _check_embeddings("ref_emb", ref_emb, embeddings)
            with torch.autocast(embeddings.device.type, enabled=False):
                rows = self._chosen_pairs(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return rows.sum() / (rows > 0).sum().clamp(min=1)

    def _chosen_pairs(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> Tensor:
        others, other_labels = (embeddings, labels) if ref_emb is None else (ref_emb, ref_labels)
        negative_label = torch.zeros((), dtype=torch.bool, device=embeddings.device)
        for name, numbers, rows in (("labels", labels, embeddings), ("ref_labels", ref_labels, others)):
            if numbers is not None:
                _check_labels(name, numbers, rows)
                negative_label = negative_label | (numbers < 0).any()  # on CUDA: no look, but a NaN loss
        positive = torch.zeros(len(embeddings), len(others), dtype=torch.bool, device=embeddings.device)
        negative = positive.clone()
        if indices_tuple is not None:
            if len(indices_tuple) not in (3, 4):
                raise ShapeError(f"indices_tuple: got {len(indices_tuple)} tensors, want 3 (triplets) or 4 (pairs)")
            a, p, *rest = indices_tuple
            pairs = (a, p), (rest[0] if len(rest) == 2 else a, rest[-1])
            for chosen, pair in zip((positive, negative), pairs, strict=True):
                _check_indices(pair, chosen.shape)
                chosen[pair] = True
        elif labels is None or other_labels is None:
            raise UsageError("ref_labels: got None, want the labels [R] of ref_emb")
        else:
            same = labels[:, None] == other_labels
            own = torch.eye(len(labels), dtype=torch.bool, device=labels.device) if ref_emb is None else same & False
            positive, negative = same & ~own, ~same
        dtype = accumulation_dtype(embeddings, others)
        x, y = (nn.functional.normalize(t.to(dtype), dim=1) for t in (embeddings, others))
        logits = (x @ y.T - self.margin * positive) / self.temperature
        counted = (positive | negative) | ~positive.any(dim=1, keepdim=True)  # rows without positives: any number
        log_sum = logits.masked_fill(~counted, -torch.inf).logsumexp(dim=1, keepdim=True)
        losses = torch.where(positive, log_sum - logits, 0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
        return torch.where(negative_label, torch.nan, losses * negative.any())


class RealCentricLoss(nn.Module):
    """Real-centric contrastive loss [paper's parts, formulas ours]: centre, hard positives, hard negatives, margin.

    One call in training mode moves the centre of the real faces, synthesises positives from the reals farthest from
    it, fuses the fakes nearest to it, and returns `supcon_margin_loss` over all of them. In evaluation mode centre and
    step stay as they are. Both are in `state_dict`, so that a resumed run draws the same numbers.

    Args:
        width: D of the embeddings.
        temperature, margin, anchors, denominator, pairing, reduction: of `supcon_margin_loss`; real anchors only, so
            that fakes do not attract each other.
        momentum: of the centre.
        rho, lam_max, guard: of `synthesize_positives`; rho = 0: no synthesis.
        n_hard: marginal fakes at most, 64 whatever the batch; the method's number is 8 for each group of the batch,
            which only the caller knows (`fastdetect train` gives it).
        n_fused: fused negatives made of them, 0: none.
        detach: no gradient through the synthetic positives; fusion_grad: gradient through the fused negatives.
        seed: of synthesis and fusion, 0 to 2^31 - 1.
        group: the batch is the rows of all its ranks, as many on each: centre, mining, n_hard and n_fused, draws and
            loss are those of one process that holds them all. The value is the global loss, the gradient the complete
            one of the rank's own rows (DistributedDataParallel averages: multiply the loss by the world size).

    Raises:
        UsageError: an option is out of range.

    Example:
        >>> loss = RealCentricLoss(16)
        >>> loss(torch.randn(8, 16), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])).shape
        torch.Size([])
    """

    center: Tensor
    step: Tensor

    def __init__(
        self,
        width: int,
        *,
        temperature: float = 0.1,
        margin: float = 0.1,
        anchors: str = "real",
        denominator: str = "all",
        pairing: str = "binary",
        reduction: str = "mean",
        momentum: float = 0.9,
        rho: float = 0.25,
        lam_max: float = 0.5,
        guard: bool = True,
        n_hard: int = 64,
        n_fused: int = 64,
        detach: bool = True,
        fusion_grad: bool = False,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        for name, number in (("width", width), ("n_hard", n_hard), ("n_fused", n_fused), ("seed", seed)):
            if not is_integer(number):
                raise UsageError(f"{name}: got {number!r}, want an integer")
        if not 0 <= seed < 2**31:
            raise UsageError(f"seed: got {seed}, want 0 to 2^31 - 1")
        _check_choice("anchors", anchors, "all", "real")
        _check_choice("denominator", denominator, "all", "negatives")
        _check_choice("pairing", pairing, "binary", "label")
        _check_choice("reduction", reduction, "mean", "mean_all", "sum", "none")
        _check_numbers(temperature=temperature, margin=margin, lam_max=lam_max)
        for name, part in (("momentum", momentum), ("rho", rho)):
            if not 0 <= part <= 1:
                raise UsageError(f"{name}: got {part}, want 0 to 1")
        for name, count, least in (("width", width, 1), ("n_hard", n_hard, 1), ("n_fused", n_fused, 0)):
            if count < least:
                raise UsageError(f"{name}: got {count}, want at least {least}")
        self.options: dict[str, Any] = {
            "temperature": temperature,
            "margin": margin,
            "anchors": anchors,
            "denominator": denominator,
            "pairing": pairing,
            "reduction": reduction,
            "fusion_grad": fusion_grad,
        }
        self.momentum, self.rho, self.lam_max, self.guard = momentum, rho, lam_max, guard
        self.n_hard, self.n_fused, self.detach, self.seed, self.group = n_hard, n_fused, detach, seed, group
        self.register_buffer("center", torch.zeros(width))  # all zero: no real seen yet
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of embeddings [N, D] (normalised here) with labels [N], 0 = real, > 0 = fake.

        A step that fails leaves centre and step as they were, and one whose new centre is not finite (overflow under
        mixed precision) leaves the centre: the next one goes on as if it had not been. A centre that is not finite
        when it is loaded counts as none.

        On CUDA synthesis waits for the device once, for the number of mined reals. With rho = 0 nothing waits, and
        that alone can be captured in a CUDA graph: synthetic rows of a fixed number would need a mask in the loss.

        Raises:
            ShapeError: a shape, dtype, device or label does not fit; a row of embeddings is zero or not finite. With
                rho = 0 that is looked at for the reals on the CPU alone, and only for NaN and infinity: other rows
                that are not finite make the loss NaN, and zero rows are taken as they are.
        """
        _check_embeddings("embeddings", embeddings, self.center[None])
        try:
            loss, center, step = self._loss(embeddings, labels)
        except ShapeError as error:
            _explain_rows(embeddings, error)
            raise
        if self.training:  # in place, for CUDA graphs; _loss keeps neither buffer for the backward
            self.center.copy_(center)
            self.step.copy_(step)
        return loss

    def _loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and the centre [D] and step that are to be kept."""
        dtype = accumulation_dtype(embeddings)
        z = nn.functional.normalize(embeddings.to(dtype), dim=-1).to(embeddings.dtype)
        every, every_label = z.detach() if self.detach else z, labels
        if self.group is not None:
            every, every_label = gather_rows(every, self.group), gather_rows(labels, self.group, equal=True)
        kept, step = torch.where(self.center.isfinite().all(), self.center, 0.0), self.step.clone()
        if self.training:
            moved = update_center(kept, every, every_label, momentum=self.momentum)
            kept, step = torch.where(moved.isfinite().all(), moved, kept), step + 1
        seed = step + (self.seed << 32)
        synthetic = fused = None
        # Without a centre (no real yet) there is no anchor either: the loss is 0 whatever is added.
        center = torch.where(kept.any(), kept, kept.new_ones(()) / kept.numel() ** 0.5)
        if self.rho > 0:
            synthetic, _, _ = synthesize_positives(
                every, every_label, center, rho=self.rho, lam_max=self.lam_max, seed=seed, guard=self.guard
            )
        if self.n_fused > 0:
            fused = fuse_hard_negatives(every, every_label, center, n_hard=self.n_hard, n_fused=self.n_fused, seed=seed)
        loss = supcon_margin_loss(
            z, labels, synthetic=synthetic, fused_negatives=fused, group=self.group, **self.options
        )
        return loss, kept, step


def _check_choice(name: str, value: str, *wanted: str) -> None:
    if value not in wanted:
        raise UsageError(f"{name}: got {value!r}, want {' or '.join(map(repr, wanted))}")


def _check_numbers(**numbers: float) -> None:
    """Finite, without a gradient; temperatures above 0, others from 0."""
    check_constants(**numbers)
    for name, value in numbers.items():
        if name.endswith("temperature") and not 0 < value < _INFINITY:
            raise UsageError(f"{name}: got {value}, want a finite number above 0")
        if not 0 <= value < _INFINITY:
            raise UsageError(f"{name}: got {value}, want a finite number of at least 0")


def _readable(tensor: Tensor) -> bool:
    """Whether looking at values costs no stall (CUDA) and no break (torch.compile)."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_embeddings(name: str, rows: Tensor, like: Tensor | None = None) -> None:
    """[N, D] floating point, N and D at least 1; of the width and device of `like`."""
    check_tensors(**{name: rows})
    width = "D" if like is None else like.shape[1]
    if rows.dim() != 2 or 0 in rows.shape or (like is not None and rows.shape[1] != width):
        raise ShapeError(f"{name}: got shape {tuple(rows.shape)}, want [N, {width}] with at least 1 row and column")
    if not rows.is_floating_point():
        raise ShapeError(f"{name}: got {rows.dtype}, want floating point")
    if like is not None and rows.device != like.device:
        raise ShapeError(f"{name}: got device {rows.device}, want {like.device}")


def _check_labels(name: str, labels: Tensor, rows: Tensor) -> None:
    check_tensors(**{name: labels})
    if labels.shape != rows.shape[:1]:
        raise ShapeError(f"{name}: got shape {tuple(labels.shape)}, want ({len(rows)},), one per row")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ShapeError(f"{name}: got {labels.dtype}, want integers of at least 0: {name}.long()")
    if labels.device != rows.device:
        raise ShapeError(f"{name}: got device {labels.device}, want that of the embeddings, {rows.device}")
    if _readable(labels) and int(labels.min()) < 0:
        raise ShapeError(f"{name}: got {int(labels.min())}, want at least 0")


def _check_indices(pair: tuple[Tensor, Tensor], rows: torch.Size) -> None:
    """A miner's (anchors, others): vectors of one length, below `rows`."""
    for index, count in zip(pair, rows, strict=True):
        check_tensors(indices_tuple=index)
        if index.dim() != 1 or index.shape != pair[0].shape or index.dtype not in (torch.int64, torch.int32):
            got = ", ".join(f"{i.dtype} of shape {tuple(i.shape)}" for i in pair)
            raise ShapeError(f"indices_tuple: got {got}, want int64 or int32 vectors, anchors and others as many")
        if _readable(index) and len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
            raise ShapeError(f"indices_tuple: got {int(index.min())} to {int(index.max())}, want 0 to {count - 1}")


def _explain_rows(embeddings: Tensor, error: ShapeError) -> None:
    """Raise an error of the normalised rows in the caller's terms, where a row cannot be normalised."""
    length = embeddings.detach().to(accumulation_dtype(embeddings)).norm(dim=1)
    bad = ~((length >= _SHORTEST) & (length < _INFINITY))
    if bad.any():
        row = int(bad.int().argmax())
        raise ShapeError(
            f"embeddings: got length {length[row].item():.4g} at row {row}, want finite rows that are not zero: the "
            "network has overflowed or died; centre and step are as before, so that this step can be skipped"
        ) from error
