"""The detector as one straight-line graph: no choice depends on the data, so exporters and compilers take it whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdetect.errors import UsageError
from fastdetect.models.detector import TwoBranchDetector, area_resize
from fastdetect.models.inpainting import Plan
from fastdetect.models.masked_image_model import MaskedImageModel
from fastdetect.ops import patch_residual, reference

SCORER_OUTPUTS = ("logits", "image_logits", "residual_logits", "patch_scores")
VERDICT_OUTPUTS = SCORER_OUTPUTS[:2]
INPAINTER_OUTPUTS = ("residual", "patch_scores", "inpainted")


class Inpainter(nn.Module):
    """`fastdetect.models.inpainting.inpaint` with its plan laid out beforehand: all passes in the batch axis.

    Each patch's predictions are gathered by their row numbers, instead of being added up where they belong, so the
    graph scatters nothing.

    Args:
        model: the masked image model, on its device.
        plan: which patches each pass predicts; all blocks are selected.
        gain: factor on the residual.
        plain: take the residual step in plain tensor operations, for export; else the fused kernel.
    """

    rows: Tensor
    assignment: Tensor

    def __init__(self, model: MaskedImageModel, plan: Plan, gain: float, *, plain: bool = True) -> None:
        super().__init__()
        self.model, self.gain, self.plain = model, gain, plain
        groups = plan.passes(torch.ones(plan.blocks, dtype=torch.bool))
        self.visible = [int((~masks[0]).sum()) for masks in groups]
        predicted = []
        for number, masks in enumerate(groups):
            order = torch.argsort(masks.to(torch.uint8), dim=1, stable=True)  # the visible first, as the model wants
            self.register_buffer(f"order_{number}", order, persistent=False)
            predicted.append(order[:, self.visible[number] :].flatten())
        rows, assignment = _rows_of_patches(torch.cat(predicted), plan.masks.shape[1])
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("assignment", assignment, persistent=False)
        self.to(next(model.parameters()).device)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inpaint images [B,3,H,W] float32 in [0,1] -> residual [B,3,H,W], patch_scores [B,L], inpainted [B,3,H,W]."""
        pred = self._predict(images)
        config = self.model.config
        residual, scores = self._residual(pred, images)
        count = self.assignment.sum(0)[:, None]
        mean = torch.where(self.assignment[:, None, :, None], pred, 0.0).sum(0) / count.clamp(min=1)
        filled = torch.where(count > 0, mean, reference.patchify(images, config.patch_size))
        return residual, scores, reference.unpatchify(filled, config.size, config.patch_size)

    def residual(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same without the inpainted images."""
        return self._residual(self._predict(images), images)

    def _predict(self, images: Tensor) -> Tensor:
        """Each patch's predictions [k,B,L,P*P*C] float32, k the most that any patch has."""
        model, parts = self.model, []
        for number, visible in enumerate(self.visible):
            order = getattr(self, f"order_{number}")
            tokens = model._reconstruct(images, order, visible, shared=True)[:, visible:]  # its checks read the data
            parts.append(model.decoder_pred(tokens).reshape(images.shape[0], -1, tokens.shape[1], self._length))
        pred = torch.cat([part.flatten(1, 2) for part in parts], 1).float()
        k, patches = self.rows.shape
        return pred.index_select(1, self.rows.flatten()).unflatten(1, (k, patches)).transpose(0, 1)

    def _residual(self, pred: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        step = reference.patch_residual if self.plain else patch_residual
        size = self.model.config.patch_size
        return step(pred, images, self.assignment, patch_size=size, gain=self.gain, clamp=1.0)

    @property
    def _length(self) -> int:
        return self.model.decoder_pred.out_features


class FaceScorer(nn.Module):
    """A two-branch detector from crops to scores, in eval mode, with every block selected.

    Args:
        model: a detector in eval mode; its modules are shared, not copied.
        plain: see `Inpainter`.
    """

    tokens: Tensor | None

    def __init__(self, model: TwoBranchDetector, *, plain: bool = True) -> None:
        super().__init__()
        self.model = model
        self.inpainter = Inpainter(model.mim, model.plan, model.config.gain, plain=plain)
        selected = model.plan.block_of >= 0
        tokens = torch.nonzero(selected).flatten() if model.config.token_selection else None
        self.register_buffer("tokens", tokens, persistent=False)
        self.to(model.mean.device)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score crops.

        Args:
            crops: [B,S,S,3] RGB, uint8, or float in [0,1].
        Returns:
            logits, image_logits, residual_logits [B,2] (0 = real, 1 = fake), patch_scores [B,gh,gw], all float32.
        """
        m = self.model
        images = _images(crops, m.mean.dtype)
        mim = m.config.mim
        residual, scores = self.inpainter.residual(area_resize(images, mim.size[0]))
        image = m.image_branch((images - m.mean) / m.std, self.tokens).to(m.mean.dtype)
        difference = m.residual_branch(residual, self.tokens).to(m.mean.dtype)
        fused = m.head(torch.cat([image, difference], 1))
        grid = scores.unflatten(1, mim.grid)
        return fused.float(), m.image_head(image).float(), m.residual_head(difference).float(), grid


class VerdictScorer(nn.Module):
    """What decides where the fused head gives the residual branch no weight: the image branch, and nothing inpainted.

    Args:
        model: such a detector in eval mode; its image branch and head are shared, not copied.
    Raises:
        UsageError: the residual branch has a say in this model.
    """

    mean: Tensor
    std: Tensor
    tokens: Tensor | None

    def __init__(self, model: TwoBranchDetector) -> None:
        super().__init__()
        count = model.image_branch.features
        if bool(model.head.weight[:, count:].any()):
            raise UsageError("the residual branch has a say in this model's verdict: take the part 'detector'")
        self.branch, self.image_head = model.image_branch, model.image_head
        self.head = nn.Linear(count, 2)
        self.head.weight = nn.Parameter(model.head.weight[:, :count].detach().clone(), requires_grad=False)
        self.head.bias = nn.Parameter(model.head.bias.detach().clone(), requires_grad=False)
        selected = model.plan.block_of >= 0
        tokens = torch.nonzero(selected).flatten() if model.config.token_selection else None
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("mean", model.mean, persistent=False)
        self.register_buffer("std", model.std, persistent=False)
        self.to(model.mean.device)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Score crops as `FaceScorer` does -> logits, image_logits [B,2] float32."""
        images = _images(crops, self.mean.dtype)
        image = self.branch((images - self.mean) / self.std, self.tokens).to(self.mean.dtype)
        return self.head(image).float(), self.image_head(image).float()


def _images(crops: Tensor, dtype: torch.dtype) -> Tensor:
    """Crops [B,S,S,3], uint8 or in [0,1] -> images [B,3,S,S] in [0,1]."""
    images = crops.to(dtype).permute(0, 3, 1, 2)
    return images / 255 if crops.dtype == torch.uint8 else images


def _rows_of_patches(predicted: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Where each patch's predictions are: row numbers [k,L] into `predicted` ([R] patch ids), and which count [k,L]."""
    found: list[list[int]] = [[] for _ in range(patches)]
    for row, patch in enumerate(predicted.tolist()):
        found[patch].append(row)
    k = max(map(len, found))
    rows = torch.tensor([mine + [0] * (k - len(mine)) for mine in found]).T.contiguous()
    return rows, torch.tensor([[j < len(mine) for mine in found] for j in range(k)])
