"""What the detector minimises: cross-entropies and a contrastive term, over the batch of all processes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdetect.errors import UsageError
from fastdetect.losses import RealCentricLoss, SupConLoss
from fastdetect.models.detector import Branch, TwoBranchDetector
from fastdetect.ops import supcon_margin_loss
from fastdetect.training.distributed import Ranks
from fastdetect.training.train_settings import TrainConfig

_HARD = 8  # marginal fakes a group of the batch that the loss sees [METHODS 2.4]
_CELL = 16  # pixels: side of what a map speaks of, see `fastdetect.data.pairs.PairMaker`


class Objective(nn.Module):
    """Cross-entropy of the fused head and of each branch's own [METHODS 1.5], with a contrastive term [METHODS 2.5].

    Args:
        ranks: the contrastive term is over the pictures of all its processes; None: this process's.
    """

    def __init__(self, model: TwoBranchDetector, config: TrainConfig, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.group, self.world = (ranks.group, ranks.world) if ranks else (None, 1)
        self.map_heads = nn.ModuleDict()
        self.cells: dict[str, Tensor] = {}
        if config.map_weight:
            if not config.freeze_image:
                self._watch_cells("image", model.image_branch)
            if config.residual:
                self._watch_cells("residual", model.residual_branch)
        self.contrast: RealCentricLoss | SupConLoss | None = None
        if config.loss == "real-centric":
            self.contrast = RealCentricLoss(
                model.config.embed_dim, temperature=config.temperature, margin=config.margin, seed=config.seed,
                rho=0.25 if config.synthesis else 0.0, n_fused=64 if config.fusion else 0,
                n_hard=_HARD * config.pairs // config.accumulate, group=self.group,
            )  # fmt: skip
        elif config.loss == "supcon":
            self.contrast = SupConLoss(temperature=config.temperature, base_temperature=config.temperature)

    def _watch_cells(self, name: str, branch: Branch) -> None:
        """Add a head on a backbone's layer at a sixteenth of the resolution."""
        found = [stage for stage in getattr(branch.net, "feature_info", ()) if stage["reduction"] == _CELL]
        if branch.selects_tokens or not found:
            backbone = getattr(self.model.config, f"{name}_backbone")
            raise UsageError(
                f"map_weight needs a convolutional {name} backbone with a layer at 1/{_CELL} of the resolution; "
                f"{backbone} has none: set map_weight to 0"
            )
        self.map_heads[name] = nn.Conv2d(found[-1]["num_chs"], 1, 1)

        def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.cells[name] = output

        branch.net.get_submodule(found[-1]["module"]).register_forward_hook(keep)

    def _map_loss(self, maps: Tensor) -> Tensor:
        losses = []
        for name, head in self.map_heads.items():
            logits = head(self.cells.pop(name)).float()  # the branch has just run
            wanted = F.adaptive_avg_pool2d(maps, logits.shape[-2:])  # the residual branch sees fewer pixels
            losses.append(F.binary_cross_entropy_with_logits(logits, wanted))
        return torch.stack(losses).sum()

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        blocks: Tensor | None = None,
        maps: Tensor | None = None,
        inpainted: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Loss (scalar) of images [B,3,S,S] with labels [B], 0 = real, above = fake (its manipulation).

        `maps` [B,1,S/16,S/16] in [0,1] say how much of each cell was changed; for `map_weight`. `inpainted`: see
        `TwoBranchDetector.forward`.

        The mean of this over processes, and of its gradients, is that of the whole batch.
        """
        model, c = self.model, self.config
        smooth, fake = c.label_smoothing, (labels > 0).long()
        if c.residual:
            out = model(images, blocks, inpainted=inpainted)
            embedding = out.embedding
            loss = F.cross_entropy(out.logits, fake, label_smoothing=smooth)
            for branch in (out.image_logits, out.residual_logits):
                loss = loss + c.branch_weight * F.cross_entropy(branch, fake, label_smoothing=smooth)
        else:
            features = model.image_branch((images - model.mean) / model.std, None).float()
            loss = F.cross_entropy(model.image_head(model.drop(features)).float(), fake, label_smoothing=smooth)
            embedding = features
            if self.contrast is not None:
                nothing = features.new_zeros(len(features), model.residual_branch.features)
                embedding = F.normalize(model.projection(torch.cat([features, nothing], 1)).float(), dim=1)
        if self.map_heads and maps is not None:
            loss = loss + c.map_weight * self._map_loss(maps)
        if self.contrast is None:
            return loss
        term = self._contrast(embedding, labels, fake)
        # Each process has the whole batch's value, and of its gradient the rows of its own pictures: the mean over
        # processes has to become their sum.
        return loss + c.contrast_weight * (self.world * term - (self.world - 1) * term.detach())

    def _contrast(self, embedding: Tensor, labels: Tensor, fake: Tensor) -> Tensor:
        if isinstance(self.contrast, RealCentricLoss):
            return self.contrast(embedding, labels)
        if self.contrast is None or self.group is None:
            assert self.contrast is not None
            return self.contrast(embedding[:, None], fake)
        return supcon_margin_loss(
            embedding, fake, temperature=self.config.temperature, base_temperature=self.config.temperature, margin=0.0,
            pairing="label", reduction="mean_all", group=self.group,
        )  # fmt: skip
