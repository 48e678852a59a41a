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
from fastdetect.ops.ranks import gather_rows


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
        if contrast_mode not in ("all", "one"):
            raise UsageError(f"contrast_mode: got {contrast_mode!r}, want 'all' or 'one'")
        self.temperature, self.contrast_mode = temperature, contrast_mode
        self.base_temperature, self.margin = base_temperature, margin

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Mean loss over the anchors; one without positives counts as 0.

        Args:
            features: [B, V, ...], V views of B samples, unit length (trailing dimensions are flattened).
            labels: [B] integers of at least 0, or [B, 1]; neither labels nor mask: SimCLR, each sample its own class.
            mask: [B, B], not 0 where the column is a positive of the row; need not be symmetric.

        Raises:
            ShapeError: a shape does not fit.
            UsageError: labels and mask at once.
        """
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

    Args:
        temperature: tau > 0.
        margin: m >= 0, taken off the similarity of positives [ours].
        denominator: "all", or "negatives" (see `supcon_margin_loss`).

    Example:
        >>> MetricLearningSupConLoss()(torch.randn(6, 16), torch.tensor([0, 0, 1, 1, 2, 2])).shape
        torch.Size([])
    """

    def __init__(self, temperature: float = 0.1, margin: float = 0.0, denominator: str = "all") -> None:
        super().__init__()
        self.temperature, self.margin, self.denominator = temperature, margin, denominator

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of the embeddings [N, D] with labels [N].

        A miner's indices_tuple (pairs a1, p, a2, n, or triplets a, p, n) or a reference set ref_emb [R, D] with
        ref_labels [R] choose pairs one by one: those are computed in plain torch, N x R numbers.

        Raises:
            ShapeError: a shape, dtype or label does not fit.
            UsageError: neither labels nor indices_tuple; a miner or a reference set with denominator="negatives".
        """
        if labels is None and indices_tuple is None:
            raise UsageError("labels: got None without indices_tuple, want labels [N] or a miner's indices")
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
        else:
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
        if self.denominator != "all":
            raise UsageError("denominator: got 'negatives' with indices_tuple or ref_emb, want 'all'")
        others, other_labels = (embeddings, labels) if ref_emb is None else (ref_emb, ref_labels)
        positive = torch.zeros(len(embeddings), len(others), dtype=torch.bool, device=embeddings.device)
        negative = positive.clone()
        if indices_tuple is not None:
            if len(indices_tuple) not in (3, 4):
                raise ShapeError(f"indices_tuple: got {len(indices_tuple)} tensors, want 3 (triplets) or 4 (pairs)")
            a, p, *rest = indices_tuple
            positive[a, p] = True
            negative[rest[0] if len(rest) == 2 else a, rest[-1]] = True
        elif labels is None or other_labels is None:
            raise UsageError("ref_labels: got None, want the labels [R] of ref_emb")
        else:
            same = labels[:, None] == other_labels
            own = torch.eye(len(labels), dtype=torch.bool, device=labels.device) if ref_emb is None else same & False
            positive, negative = same & ~own, ~same
        x, y = (nn.functional.normalize(t.float(), dim=1) for t in (embeddings, others))
        logits = (x @ y.T - self.margin * positive) / self.temperature
        counted = (positive | negative) | ~positive.any(dim=1, keepdim=True)  # rows without positives: any number
        log_sum = logits.masked_fill(~counted, -torch.inf).logsumexp(dim=1, keepdim=True)
        return torch.where(positive, log_sum - logits, 0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)


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
        n_hard: marginal fakes at most; the method's 8 a group of the batch, 64 for 8 groups, are the caller's to give;
            n_fused: fused negatives made of them, 0: none.
        detach: no gradient through the synthetic positives; fusion_grad: gradient through the fused negatives.
        seed: of synthesis and fusion, 0 to 2^31 - 1.
        group: the batch is the rows of all its ranks, as many on each: centre, mining, n_hard and n_fused, draws and
            loss are those of one process that holds them all. The value is the global loss, the gradient the complete
            one of the rank's own rows (DistributedDataParallel averages: multiply the loss by the world size).

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
        if not 0 <= seed < 2**31:
            raise UsageError(f"seed: got {seed}, want 0 to 2^31 - 1")
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

        On CUDA it waits for the device once, for the number of mined reals (rho = 0: never).
        """
        z = nn.functional.normalize(embeddings.float(), dim=-1).to(embeddings.dtype)
        every, every_label = z.detach() if self.detach else z, labels
        if self.group is not None:
            every, every_label = gather_rows(every, self.group), gather_rows(labels, self.group, equal=True)
        if self.training:
            self.center = update_center(self.center, every, every_label, momentum=self.momentum)
            self.step += 1
        seed = self.step + (self.seed << 32)
        synthetic = fused = None
        # Without a centre (no real yet) there is no anchor either: the loss is 0 whatever is added.
        center = torch.where(self.center.any(), self.center, self.center.new_ones(()) / self.center.numel() ** 0.5)
        if self.rho > 0:
            synthetic, _, _ = synthesize_positives(
                every, every_label, center, rho=self.rho, lam_max=self.lam_max, seed=seed, guard=self.guard
            )
        if self.n_fused > 0:
            fused = fuse_hard_negatives(every, every_label, center, n_hard=self.n_hard, n_fused=self.n_fused, seed=seed)
        return supcon_margin_loss(
            z, labels, synthetic=synthetic, fused_negatives=fused, group=self.group, **self.options
        )
