"""Two-branch detector: one branch sees the face, the other what a model of real faces cannot reconstruct."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import timm
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fastdetect.errors import FastdetectError, ShapeError, UsageError
from fastdetect.models.checkpoint import read_folder, write_folder
from fastdetect.models.folder import ModelFolder, Preprocess, find_folder, read_config
from fastdetect.models.inpainting import check_blocks, draw_blocks, inpaint, plan
from fastdetect.models.masked_image_model import PRESETS as MIM_PRESETS
from fastdetect.models.masked_image_model import MaskedImageModel, MaskedImageModelConfig

Triple = tuple[float, float, float]


class DetectorConfig(BaseModel):
    """Architecture of a two-branch detector.

    Args:
        image_size: side of the square input in pixels, at least the masked image model's.
        image_backbone, residual_backbone: timm names. ViTs are built on the masked image model's patch grid.
        image_backbone_args, residual_backbone_args: arguments of `timm.create_model` for them, such as channels.
        mim: the frozen masked image model.
        protocol: inpainting protocol, see `fastdetect.models.inpainting.plan`.
        gain: factor on the residual [paper: 4].
        pool: feature of a ViT branch: `cls` (default [ours]), `first` selected patch [paper's code], `avg`.
        token_selection: train on random subsets of blocks. ViT branches see only their tokens [paper]; other
            backbones see the whole image, and a residual that is zero outside the subset [ours].
        block_keep: probability of each block in a training step.
        mean, std: normalisation of the image branch; the residual enters as it is.
        embed_dim: width of the projection head.
        drop_rate: dropout before the heads; drop_path_rate: stochastic depth inside the backbones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = 224
    image_backbone: str = "tf_efficientnet_lite0"
    residual_backbone: str = "tf_efficientnet_lite0"
    image_backbone_args: dict[str, Any] = Field(default_factory=dict)
    residual_backbone_args: dict[str, Any] = Field(default_factory=dict)
    mim: MaskedImageModelConfig = MIM_PRESETS["mae_small_112"]
    protocol: str = "complementary-4"
    protocol_seed: int = 0
    gain: float = 4.0
    pool: Literal["cls", "first", "avg"] = "cls"
    token_selection: bool = False
    block_keep: float = 0.25
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    embed_dim: int = 128
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        height, width = self.mim.size
        if height != width or self.image_size < height:
            raise ValueError(
                f"image_size {self.image_size} must be at least the masked image model's ({height}x{width}), "
                "which must be square"
            )
        if self.gain <= 0 or not 0 < self.block_keep <= 1 or min(self.std) <= 0:
            raise ValueError("gain and std must be positive and block_keep in (0, 1]")
        try:
            plan(self.protocol, self.mim.grid, self.protocol_seed)
        except FastdetectError as error:
            raise ValueError(str(error)) from error
        return self

    @classmethod
    def preset(cls, name: str) -> DetectorConfig:
        """Return a named configuration: `small` [ours] or `paper-vit-b16` [paper]; UsageError otherwise."""
        if name not in DETECTOR_PRESETS:
            raise UsageError(f"unknown detector preset {name!r}; have: {', '.join(sorted(DETECTOR_PRESETS))}")
        return DETECTOR_PRESETS[name]


DETECTOR_PRESETS = {
    "small": DetectorConfig(),
    "paper-vit-b16": DetectorConfig(
        image_backbone="vit_base_patch16_224",
        residual_backbone="vit_base_patch16_224",
        mim=MIM_PRESETS["mae_base_224"],
        protocol="blocks16",
        token_selection=True,
    ),
}


@dataclass
class DetectorOutput:
    """Result for a batch; logits are [B,2] with 0 = real, 1 = fake.

    Attributes:
        logits: from both branches; image_logits, residual_logits: of each branch's own head [ours].
        embedding: [B,D] unit length, for the contrastive loss.
        patch_scores: [B,L] reconstruction error of each patch of the masked image model's grid.
    """

    logits: Tensor
    image_logits: Tensor
    residual_logits: Tensor
    embedding: Tensor
    patch_scores: Tensor


class Branch(nn.Module):
    """A timm backbone that gives one feature per image; ViTs may see a subset of their tokens."""

    def __init__(
        self, name: str, arguments: dict[str, Any], size: int, grid: tuple[int, int], config: DetectorConfig
    ) -> None:
        super().__init__()
        options = ({"drop_path_rate": config.drop_path_rate} if config.drop_path_rate else {}) | arguments
        self.pool = config.pool
        try:
            if name.startswith(("vit_", "deit_")):
                if size % grid[0]:
                    raise UsageError(f"a ViT branch needs image_size {size} to be a multiple of {grid[0]} patches")
                options |= {"img_size": size, "patch_size": size // grid[0], "global_pool": "token"}
            self.net = timm.create_model(name, pretrained=False, num_classes=0, **options)
        except (RuntimeError, TypeError, AssertionError) as error:
            given = f" with {arguments}" if arguments else ""
            raise UsageError(f"timm cannot build backbone {name!r}{given} for {size} px: {error}") from error
        self.selects_tokens = isinstance(self.net, VisionTransformer)
        if self.selects_tokens and self.pool == "cls" and not self.net.has_class_token:
            raise UsageError(f"{name} has no [CLS] token; use pool='avg' or 'first'")
        self.eval()  # the dry run must not move batch-norm statistics
        with torch.no_grad():
            self.features = self(torch.zeros(1, 3, size, size), None).shape[1]
        self.train()

    def forward(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """Return features [B,F]; tokens: [n] ids of the patches that a ViT may see, None = all."""
        x = x.to(next(self.net.parameters()).dtype)
        net: Any = self.net
        if not self.selects_tokens:
            return net(x.contiguous(memory_format=torch.channels_last))
        prefix = net.num_prefix_tokens
        x = net._pos_embed(net.patch_embed(x))
        if tokens is not None:
            x = torch.cat([x[:, :prefix], x.index_select(1, tokens + prefix)], 1)
        x = net.norm(net.blocks(net.norm_pre(x)))
        if self.pool == "cls":
            return x[:, 0]
        return x[:, prefix] if self.pool == "first" else x[:, prefix:].mean(1)


class TwoBranchDetector(nn.Module):
    """Image branch + residual branch over a frozen masked image model [paper], each with its own head [ours].

    Args:
        config: architecture, or the name of a preset. Weights are random until loaded.

    Attributes:
        mim_dtype: autocast type of the inpainting alone (`torch.bfloat16`); None = as the rest.
        info: preprocess contract, calibration, id and licence, as `config.json` holds them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DetectorConfig | str = "small") -> None:
        super().__init__()
        self.config = c = DetectorConfig.preset(config) if isinstance(config, str) else config
        self.info = ModelFolder(
            model_type="two_branch_detector", architecture={}, preprocess=Preprocess(size=c.image_size)
        )
        self.plan = plan(c.protocol, c.mim.grid, c.protocol_seed)
        self.mim = MaskedImageModel(c.mim).requires_grad_(False)
        # bf16 here and fp32 in the branches trains fastest with AMX: depthwise backward is slow in bf16.
        self.mim_dtype: torch.dtype | None = None
        self.image_branch = Branch(c.image_backbone, c.image_backbone_args, c.image_size, c.mim.grid, c)
        self.residual_branch = Branch(c.residual_backbone, c.residual_backbone_args, c.mim.size[0], c.mim.grid, c)
        image, residual = self.image_branch.features, self.residual_branch.features
        self.drop = nn.Dropout(c.drop_rate)
        self.head = nn.Linear(image + residual, 2)
        self.image_head = nn.Linear(image, 2)
        self.residual_head = nn.Linear(residual, 2)
        self.projection = nn.Sequential(
            nn.Linear(image + residual, 512), nn.ReLU(inplace=True), nn.Linear(512, c.embed_dim)
        )
        self.register_buffer("mean", torch.tensor(c.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(c.std).view(1, 3, 1, 1), persistent=False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything but the masked image model, which stays in eval mode."""
        super().train(mode)
        self.mim.eval()
        return self

    @torch.no_grad()
    def decide_by_image(self) -> Self:
        """Make the fused head the image branch's own, so that the residual branch has no say; returns this detector."""
        self.head.weight.zero_()[:, : self.image_branch.features] = self.image_head.weight
        self.head.bias.copy_(self.image_head.bias)
        return self

    def forward(
        self,
        images: Tensor,
        blocks: Tensor | None = None,
        generator: torch.Generator | None = None,
        inpainted: tuple[Tensor, Tensor] | None = None,
    ) -> DetectorOutput:
        """Score face crops.

        Args:
            images: [B,3,S,S] RGB, uint8 or float in [0,1], S = config.image_size.
            blocks: [number of blocks] bool, CPU: the blocks of this step. None: all of them, or in training
                with `token_selection` one draw for the batch.
            generator: CPU generator of that draw.
            inpainted: residual [B,3,P,P] and patch_scores [B,L] that `inpaint` gave for all blocks of these images,
                P = config.mim's side: not to do it again.
        Raises:
            ShapeError: shape, dtype or selection does not fit.
        """
        c = self.config
        x = self._as_float(images)
        if blocks is None and self.training and c.token_selection:
            blocks = draw_blocks(self.plan, c.block_keep, generator)
        selected = check_blocks(self.plan, blocks)
        if inpainted is None:
            with torch.autocast(x.device.type, self.mim_dtype) if self.mim_dtype else nullcontext():
                made = inpaint(
                    self.mim,
                    area_resize(x, c.mim.size[0]),
                    protocol=c.protocol,
                    gain=c.gain,
                    blocks=selected,
                    seed=c.protocol_seed,
                )
            differences, patch_scores = made.residual, made.patch_scores
        else:
            differences, patch_scores = inpainted
            want = [len(x), 3, *c.mim.size]
            if list(differences.shape) != want or not bool(selected.all()):
                raise ShapeError(f"inpainted: residual {list(differences.shape)}; wanted {want}, of all blocks")
        tokens = None
        if c.token_selection:
            block_of = self.plan.block_of
            tokens = torch.nonzero((block_of >= 0) & selected[block_of]).flatten().to(x.device)
        image = self.image_branch((x - self.mean) / self.std, tokens)
        residual = self.residual_branch(differences, tokens)
        image, residual = image.to(self.mean.dtype), residual.to(self.mean.dtype)
        both = self.drop(torch.cat([image, residual], 1))
        return DetectorOutput(
            logits=self.head(both).float(),
            image_logits=self.image_head(self.drop(image)).float(),
            residual_logits=self.residual_head(self.drop(residual)).float(),
            embedding=F.normalize(self.projection(both).float(), dim=1),
            patch_scores=patch_scores,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        calibration: dict[str, Any] | None = None,
        model_id: str | None = None,
        license: str | None = None,
    ) -> Path:
        """Write `model.safetensors` and `config.json` (what is not given is kept from `self.info`).

        Args:
            dtype: storage type; float16 halves the file. Loads as fp32.
            calibration: the block that `fastdetect.evaluation.calibration` fits.
        """
        self.info = self.info.model_copy(
            update={
                "architecture": self.config.model_dump(mode="json"),
                "calibration": calibration if calibration is not None else self.info.calibration,
                "model_id": model_id or self.info.model_id or Path(folder).name,
                "license": license or self.info.license,
            }
        )
        return write_folder(folder, self, self.info, dtype=dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> TwoBranchDetector:
        """Load (fp32, eval mode) from a folder, a shipped name such as `fastdetect-small`, or a Hub id.

        Raises:
            CheckpointError: not found, not valid, or its hash is wrong.
        """
        config, load = read_folder(name, "two_branch_detector", DetectorConfig)
        model = cls(config)
        model.info = load(model)
        return model.eval()

    def _as_float(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size) or not images.shape[0]:
            raise ShapeError(f"images must be [B>0,3,{size},{size}], got {list(images.shape)}")
        if images.dtype == torch.uint8:
            return images.to(self.mean.dtype) / 255
        if not images.is_floating_point():
            raise ShapeError(f"images must be uint8, or floating point in [0,1]; got {images.dtype}")
        return images.to(self.mean.dtype)


def read_masked_image_model(name: str | Path) -> MaskedImageModel:
    """Return the masked image model of a folder, shipped name or Hub id: itself, or the one in a detector.

    Raises:
        CheckpointError: there is no such model.
    """
    if read_config(find_folder(name)).model_type == "two_branch_detector":
        return TwoBranchDetector.from_pretrained(name).mim
    return MaskedImageModel.from_pretrained(name)


def area_resize(images: Tensor, size: int) -> Tensor:
    """Shrink square images [B,C,S,S] to [B,C,size,size], each output the mean of the area that it covers."""
    side = images.shape[-1]
    if side == size:
        return images
    if side % size == 0:
        return F.avg_pool2d(images, side // size)
    step = side / size
    edges = torch.arange(size + 1, dtype=torch.float64, device=images.device) * step
    pixels = torch.arange(side, dtype=torch.float64, device=images.device)
    low, high = edges[:-1, None].maximum(pixels), edges[1:, None].minimum(pixels + 1)
    weights = ((high - low).clamp(min=0) / step).to(images.dtype)  # [size, side], rows sum to 1
    return weights @ images @ weights.T
