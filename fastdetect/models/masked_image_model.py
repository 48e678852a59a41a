"""Masked image model: a masked autoencoder (MAE) whose reconstruction errors are the detector's evidence."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, model_validator
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fastdetect.errors import ShapeError, UsageError
from fastdetect.models.checkpoint import read_folder, write_folder
from fastdetect.models.folder import ModelFolder
from fastdetect.ops import masked_patch_loss


class MaskedImageModelConfig(BaseModel):
    """Size of a masked image model.

    Args:
        image_size: input side in pixels, or (height, width).
        patch_size: patch side in pixels; divides both sides of the image.
        embed_dim, depth, num_heads: the encoder's ViT blocks.
        decoder_embed_dim, decoder_depth, decoder_num_heads: the decoder's ViT blocks.
        norm_pix_loss: train on patches standardised one by one; such a model cannot inpaint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int | tuple[int, int]
    patch_size: int
    in_chans: int = 3
    embed_dim: int
    depth: int
    num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    norm_pix_loss: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        height, width = self.size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image_size {self.size} is not a multiple of patch_size {self.patch_size}")
        for dim, heads in (
            (self.embed_dim, self.num_heads),
            (self.decoder_embed_dim, self.decoder_num_heads),
        ):
            if dim % heads or dim % 4:
                raise ValueError(f"width {dim} must be divisible by 4 and by its {heads} heads")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size

    @classmethod
    def preset(cls, name: str) -> MaskedImageModelConfig:
        """Return a named configuration: `mae_small_112` [ours] or `mae_base_224` [paper].

        Raises:
            UsageError: no such preset.
        """
        if name not in PRESETS:
            raise UsageError(f"unknown masked image model preset {name!r}; have: {', '.join(sorted(PRESETS))}")
        return PRESETS[name]


PRESETS = {
    "mae_small_112": MaskedImageModelConfig(
        image_size=112,
        patch_size=8,
        embed_dim=192,
        depth=8,
        num_heads=3,
        decoder_embed_dim=128,
        decoder_depth=2,
        decoder_num_heads=4,
    ),
    "mae_base_224": MaskedImageModelConfig(
        image_size=224,
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
    ),
}


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Return MAE's fixed 2-D sin-cos embedding [1, 1+rows*columns, dim], zero for [CLS].

    The first half encodes the column and the second the row, MAE's own order, so that its weights fit.
    """
    quarter = dim // 4
    omega = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    halves = []
    for axis in (columns, rows):
        angle = axis.reshape(-1, 1).double() * omega
        halves += [angle.sin(), angle.cos()]
    positions = torch.cat(halves, 1)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), positions])[None].float()


def _order(mask: Tensor) -> tuple[Tensor, int]:
    """Return patch ids with the visible first ([N,L], each part ascending) and the number of visible ones."""
    removed = mask.sum(1)
    count = int(removed[0])
    if bool((removed != count).any()):
        raise ShapeError(
            f"every row of a mask must remove the same number of patches, got {removed.min()} to "
            f"{removed.max()}; split the batch by count"
        )
    if not count:
        raise ShapeError(f"a mask must remove at least one patch, got {count} of {mask.shape[1]}")
    return torch.argsort(mask.to(torch.uint8), dim=1, stable=True), mask.shape[1] - count


class MaskedImageModel(nn.Module):
    """MAE on timm's ViT blocks: only visible tokens enter the encoder [paper].

    Parameter names are those of the official MAE, so that its (converted) weights fit.

    Args:
        config: sizes, or the name of a preset.
    """

    patch_positions: Tensor
    decoder_positions: Tensor

    def __init__(self, config: MaskedImageModelConfig | str) -> None:
        super().__init__()
        self.config = c = MaskedImageModelConfig.preset(config) if isinstance(config, str) else config
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        block = partial(Block, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm)
        self.num_patches = c.grid[0] * c.grid[1]
        project = nn.Conv2d(c.in_chans, c.embed_dim, c.patch_size, stride=c.patch_size)
        self.patch_embed = nn.ModuleDict({"proj": project})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.embed_dim))
        self.blocks = nn.Sequential(*[block(c.embed_dim, c.num_heads) for _ in range(c.depth)])
        self.norm = norm(c.embed_dim)
        self.decoder_embed = nn.Linear(c.embed_dim, c.decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.decoder_embed_dim))
        self.decoder_blocks = nn.Sequential(
            *[block(c.decoder_embed_dim, c.decoder_num_heads) for _ in range(c.decoder_depth)]
        )
        self.decoder_norm = norm(c.decoder_embed_dim)
        self.decoder_pred = nn.Linear(c.decoder_embed_dim, c.patch_size**2 * c.in_chans)
        self.register_buffer("patch_positions", sincos_positions(c.embed_dim, c.grid), persistent=False)
        self.register_buffer("decoder_positions", sincos_positions(c.decoder_embed_dim, c.grid), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        project: Any = self.patch_embed["proj"]
        nn.init.xavier_uniform_(project.weight.flatten(1))  # as the linear map that it is
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predict every patch from the visible ones.

        Args:
            images: [B,3,H,W] float in [0,1].
            mask: [B,L], or [L] shared by the batch (faster), bool or 0/1, 1 = removed; every row removes
                the same number. A mask on the CPU costs no GPU synchronisation.
        Returns:
            [B,L,P*P*C].
        Raises:
            ShapeError: sizes or counts do not fit.
        """
        order, visible = _order(self._check(images, mask))
        order = order.to(images.device, non_blocking=True)
        tokens = self._reconstruct(images, order, visible, shared=mask.dim() == 1)
        restore = torch.argsort(order, dim=1)
        if mask.dim() == 1:
            tokens = tokens.index_select(1, restore[0])
        else:
            tokens = tokens.gather(1, restore[:, :, None].expand_as(tokens))
        return self.decoder_pred(tokens)

    def loss(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the mean squared error of the removed patches (scalar, fp32); arguments as `forward`."""
        pred = self(images, mask)
        config = self.config
        rows = mask.to(images.device, non_blocking=True).expand(pred.shape[:2])
        return masked_patch_loss(pred, images, rows, patch_size=config.patch_size, norm_pix=config.norm_pix_loss)

    def predict(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the removed patches of every image under every mask; only they are decoded to pixels.

        Args:
            images: [B,3,H,W] float in [0,1].
            masks: [N,L] bool or 0/1, 1 = removed, each shared by the batch and removing the same number M.
        Returns:
            (pred [B,N,M,P*P*C], patch ids [N,M] ascending).
        """
        order, visible = _order(self._check(images, masks, shared=True))
        order = order.to(images.device, non_blocking=True)
        tokens = self._reconstruct(images, order, visible, shared=True)
        pred = self.decoder_pred(tokens[:, visible:])
        return pred.unflatten(0, (images.shape[0], masks.shape[0])), order[:, visible:]

    def random_mask(self, batch: int | None, ratio: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw MAE's random masks: `L - int(L*(1-ratio))` patches removed in each [paper: ratio 0.75].

        Args:
            batch: rows; None gives one mask [L] for the whole batch.
            ratio: fraction removed, in (0, 1).
        Returns:
            bool [batch,L] or [L], on the generator's device (CPU without one).
        """
        if not 0 < ratio < 1:
            raise UsageError(f"mask ratio must lie in (0, 1), got {ratio}")
        device = generator.device if generator is not None else "cpu"
        noise = torch.rand(batch or 1, self.num_patches, generator=generator, device=device)
        keep = int(self.num_patches * (1 - ratio))
        mask = torch.ones_like(noise, dtype=torch.bool)
        mask.scatter_(1, noise.argsort(1)[:, :keep], False)
        return mask if batch is not None else mask[0]

    def block_mask(self, batch: int | None, size: int = 3, generator: torch.Generator | None = None) -> Tensor:
        """Draw masks that remove one block of `size` x `size` patches [paper: 3]; as `random_mask`."""
        rows, columns = self.config.grid
        if not 0 < size <= min(rows, columns):
            raise UsageError(f"block size must lie in 1..{min(rows, columns)} patches, got {size}")
        device = generator.device if generator is not None else torch.device("cpu")
        count = batch or 1
        top = torch.randint(rows - size + 1, (count, 1), generator=generator, device=device)
        left = torch.randint(columns - size + 1, (count, 1), generator=generator, device=device)
        y, x = torch.arange(rows, device=device), torch.arange(columns, device=device)
        inside_y, inside_x = (y >= top) & (y < top + size), (x >= left) & (x < left + size)
        mask = (inside_y[:, :, None] & inside_x[:, None, :]).flatten(1)
        return mask if batch is not None else mask[0]

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype = torch.float32, model_id: str | None = None
    ) -> Path:
        """Write `model.safetensors` and `config.json`; `dtype=torch.float16` halves the file."""
        return write_folder(
            folder,
            self,
            ModelFolder(
                model_type="masked_image_model",
                architecture=self.config.model_dump(mode="json"),
                model_id=model_id or Path(folder).name,
            ),
            dtype=dtype,
        )

    @classmethod
    def from_pretrained(cls, name: str | Path) -> MaskedImageModel:
        """Load (fp32, eval mode) from a folder, a shipped name or a Hub id; raises CheckpointError."""
        folder, load = read_folder(name, "masked_image_model", MaskedImageModelConfig)
        model = cls(folder)
        load(model)
        return model.eval()

    def _check(self, images: Tensor, mask: Tensor, *, shared: bool = False) -> Tensor:
        c = self.config
        if images.dim() != 4 or tuple(images.shape[1:]) != (c.in_chans, *c.size) or not images.shape[0]:
            raise ShapeError(f"images must be [B>0,{c.in_chans},{c.size[0]},{c.size[1]}], got {list(images.shape)}")
        if not images.is_floating_point():
            raise ShapeError(f"images must be floating point in [0,1], got {images.dtype}; divide uint8 by 255")
        rows = mask[None] if mask.dim() == 1 else mask
        if rows.dim() != 2 or rows.shape[1] != self.num_patches or not rows.shape[0]:
            raise ShapeError(f"mask must be [{self.num_patches}] or [N,{self.num_patches}], got {list(mask.shape)}")
        if mask.dim() == 2 and not shared and mask.shape[0] != images.shape[0]:
            raise ShapeError(f"mask has {mask.shape[0]} rows for {images.shape[0]} images; give one each or [L]")
        return rows.bool()

    def _reconstruct(self, images: Tensor, order: Tensor, visible: int, *, shared: bool) -> Tensor:
        """Return decoder tokens [B*N,L,D] in `order`: attention does not care, so nothing is unshuffled."""
        for block in (*self.blocks, *self.decoder_blocks):
            # On a CPU torch's fused attention is faster forward, and slower backward in bf16.
            block.attn.fused_attn = images.is_cuda or not torch.is_grad_enabled()
        batch, patches = images.shape[0], order.shape[1]
        passes = order.shape[0] if shared else 1
        project: Any = self.patch_embed["proj"]
        tokens = project(images.to(self.cls_token.dtype)).flatten(2).transpose(1, 2)
        tokens = tokens + self.patch_positions[:, 1:].to(tokens.dtype)
        if shared:
            tokens = tokens.index_select(1, order[:, :visible].flatten())
            tokens = tokens.unflatten(1, (passes, visible)).flatten(0, 1)
        else:
            tokens = tokens.gather(1, order[:, :visible, None].expand(-1, -1, tokens.shape[2]))
        cls = self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        tokens = self.decoder_embed(self.norm(self.blocks(torch.cat([cls, tokens], 1))))

        fill = self.mask_token.to(tokens.dtype).expand(tokens.shape[0], patches - visible, -1)
        positions = self.decoder_positions[0].to(tokens.dtype)
        by_order = F.embedding(F.pad(order + 1, (1, 0)), positions)  # [CLS] is position 0
        if shared:
            by_order = by_order.repeat(batch, 1, 1)
        tokens = torch.cat([tokens, fill], 1) + by_order
        return self.decoder_norm(self.decoder_blocks(tokens))[:, 1:]
