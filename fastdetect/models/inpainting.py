"""Inpainting protocols: which patches a masked image model predicts from which, and what is left over."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.models.masked_image_model import MaskedImageModel
from fastdetect.ops import patch_residual
from fastdetect.ops.reference import patchify, unpatchify

# Rows of one pass of the model: under 64 small matrices dominate, over it activations leave the CPU's caches.
ROWS = {"cpu": 64, "cuda": 2048}
ATOMIC = ("cuda",)  # where index_add_ adds in any order: several values for one patch would differ from run to run

PROTOCOLS = "'blocks16', 'complementary-K' or 'sparse-K' with K >= 2, such as 'complementary-4'"


@dataclass(frozen=True)
class Plan:
    """One protocol on one grid.

    Attributes:
        name: the protocol.
        block_of: [L] int64, the block that each patch belongs to; -1 = never inpainted.
        masks: [N,L] bool, one row per pass of the masked image model, True = removed.
        blocks: number of blocks, the units of token selection.
    """

    name: str
    block_of: Tensor
    masks: Tensor
    blocks: int

    def passes(self, selected: Tensor) -> list[Tensor]:
        """Return the masks [n,L] that the selected blocks ([blocks] bool) need, grouped by patches removed."""
        rows = self.masks if self.name.startswith("sparse") else self.masks[selected]
        counts = rows.sum(1)
        return [rows[counts == n] for n in counts.unique().tolist()]


@lru_cache(maxsize=64)
def plan(protocol: str, grid: tuple[int, int], seed: int = 0) -> Plan:
    """Lay a protocol out on a (rows, columns) patch grid.

    `blocks16` [paper]: 16 blocks of 3x3 patches in rows and columns 1..12 of 14, each removed alone.
    `complementary-K` [ours]: K disjoint sets, spread over the image, each removed alone.
    `sparse-K` [ours]: the same sets, each kept alone; each patch has K-1 predictions, averaged.

    Raises:
        UsageError: no such protocol.
        ShapeError: the grid does not suit it.
    """
    kind, _, number = protocol.partition("-")
    if protocol == "blocks16":
        if grid != (14, 14):
            raise ShapeError(f"blocks16 is laid out for 14x14 patches, got {grid[0]}x{grid[1]}; use 'complementary-4'")
        inner = torch.arange(4).repeat_interleave(3)
        block_of = torch.full(grid, -1)
        block_of[1:13, 1:13] = inner[:, None] * 4 + inner
        block_of = block_of.flatten()
        return Plan(protocol, block_of, block_of == torch.arange(16)[:, None], 16)
    if kind not in ("complementary", "sparse") or not number.isdecimal() or int(number) < 2:
        raise UsageError(f"unknown inpainting protocol {protocol!r}; use {PROTOCOLS}")
    k = int(number)
    if k > grid[0] * grid[1]:
        raise ShapeError(f"{protocol} needs at least {k} patches, got a {grid[0]}x{grid[1]} grid")
    block_of = _deal(grid, k, seed)
    sets = block_of == torch.arange(k)[:, None]
    return Plan(protocol, block_of, sets if kind == "complementary" else ~sets, k)


def _deal(grid: tuple[int, int], k: int, seed: int) -> Tensor:
    """Deal the patches into k sets: cells of k neighbours, each cell's patches to k different sets."""
    high = max(d for d in range(1, math.isqrt(k) + 1) if k % d == 0)
    cell = (high, k // high)
    order = sorted(
        ((y, x) for y in range(grid[0]) for x in range(grid[1])),
        key=lambda p: (p[0] // cell[0], p[1] // cell[1], p),
    )
    rng = random.Random(seed)  # random() is the one stream that Python promises to keep across versions
    block_of = torch.empty(grid, dtype=torch.int64)
    for start in range(0, len(order), k):
        keys = [rng.random() for _ in range(k)]
        for position, block in zip(order[start : start + k], sorted(range(k), key=keys.__getitem__), strict=False):
            block_of[position] = block
    return block_of.flatten()


@dataclass
class Inpainted:
    """What inpainting gives.

    Attributes:
        images: [B,3,H,W] the input with the inpainted patches in place.
        covered: [L] bool, which patches were predicted.
        residual: [B,3,H,W] clamp(gain*(predicted - input), -1, 1); zero where nothing was inpainted [paper].
        patch_scores: [B,L] mean squared error of each patch [ours]; zero where nothing was inpainted.
    """

    images: Tensor
    covered: Tensor
    residual: Tensor
    patch_scores: Tensor


@torch.no_grad()
def inpaint(
    model: MaskedImageModel,
    images: Tensor,
    *,
    protocol: str = "complementary-4",
    gain: float = 4.0,
    blocks: Tensor | None = None,
    seed: int = 0,
) -> Inpainted:
    """Predict patches of each image from the rest of it, and take the difference; no gradient flows.

    Args:
        model: a masked image model trained on plain pixels.
        images: [B,3,H,W] float in [0,1].
        protocol: see `plan`.
        gain: factor on the signed difference, > 0 [paper: 4].
        blocks: [number of blocks] bool, on the CPU: only these are inpainted (token selection); None = all.
        seed: deals the sets of `complementary-K` and `sparse-K`.
    Raises:
        UsageError: unknown protocol, or a model of standardised patches.
        ShapeError: sizes do not fit.
    """
    config = model.config
    if config.norm_pix_loss:
        raise UsageError("a model with norm_pix_loss=True predicts standardised patches, not pixels; train without")
    layout = plan(protocol, config.grid, seed)
    selected = check_blocks(layout, blocks)
    patches = patchify(images.to(torch.promote_types(images.dtype, torch.float32)), config.patch_size)
    total = torch.zeros_like(patches)
    folded = max(1, ROWS.get(images.device.type, 64) // images.shape[0])
    for masks in layout.passes(selected):
        for chunk in masks.split(folded):
            pred, ids = model.predict(images, chunk)
            _add(total, ids, pred.to(total.dtype))
    if protocol.startswith("sparse"):
        total /= layout.blocks - 1
    covered = ((layout.block_of >= 0) & selected[layout.block_of]).to(images.device)
    residual, scores = patch_residual(total[None], images, covered[None], patch_size=config.patch_size, gain=gain)
    filled = torch.where(covered[:, None], total, patches)
    return Inpainted(unpatchify(filled, config.size, config.patch_size), covered, residual, scores)


def _add(
    total: Tensor,  # (B, L, K)
    ids: Tensor,  # (N, M) patches, different ones in a pass
    pred: Tensor,  # (B, N, M, K)
) -> None:
    if total.device.type not in ATOMIC:
        total.index_add_(1, ids.flatten(), pred.flatten(1, 2))
        return
    for own, values in zip(ids, pred.unbind(1), strict=True):
        total.index_add_(1, own, values)


def check_blocks(layout: Plan, blocks: Tensor | None) -> Tensor:
    """Return a selection as [blocks] bool on the CPU: None is all, an empty one is an error."""
    if blocks is None:
        return torch.ones(layout.blocks, dtype=torch.bool)
    if blocks.shape != (layout.blocks,) or blocks.dtype != torch.bool:
        raise ShapeError(
            f"blocks must be [{layout.blocks}] bool for {layout.name}, got {list(blocks.shape)} {blocks.dtype}"
        )
    if not bool(blocks.any()):
        raise ShapeError("blocks selects nothing; give None for all")
    return blocks.cpu()


def draw_blocks(layout: Plan, keep: float = 0.25, generator: torch.Generator | None = None) -> Tensor:
    """Draw the blocks of one training step: each with probability `keep`, all if none is drawn [paper]."""
    drawn = torch.rand(layout.blocks, generator=generator) < keep
    return drawn if bool(drawn.any()) else torch.ones_like(drawn)
