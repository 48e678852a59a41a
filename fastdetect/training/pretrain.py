"""`fastdetect pretrain`: the masked image model, on real faces only [METHODS 1.1]."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn

from fastdetect import config as configuration
from fastdetect.data.face_pack import PACK_MARGIN, FacePack
from fastdetect.data.forgery import Dice, crop_pack
from fastdetect.data.pairs import Deal, Pictures, Pieces, batch_seed, pack_side
from fastdetect.errors import UsageError
from fastdetect.faces.crop import MARGIN
from fastdetect.models.detector import read_masked_image_model
from fastdetect.models.masked_image_model import PRESETS, MaskedImageModel, MaskedImageModelConfig
from fastdetect.training.distributed import Ranks
from fastdetect.training.log import RunLog
from fastdetect.training.loop import Budget
from fastdetect.training.masking import facial_mask
from fastdetect.training.pictures import reconstructions
from fastdetect.training.runner import Task, averaged, begin, optimizer_groups, run
from fastdetect.training.settings import Positive, RunSettings

_SHOWN = 8  # faces in a picture of reconstructions


class PretrainConfig(RunSettings):
    """Everything of a pretraining run; the resolved one is written beside its results.

    Args:
        packs: face packs; their "train" faces are learnt, the first one's "val" faces measured.
        init: model whose weights it starts from: a folder, such as `fastdetect models convert` writes, a shipped name
            or a Hub id, of a masked image model or a detector with one; null: random weights.
        model: preset of the masked image model, or its sizes; null: that of `init`, else mae_small_112.
        masking: "random" patches [paper], one 3x3 "block" [paper's other one], or "facial": a region of the face whole
            and random patches [ours].
        mask_ratio: share of patches removed, by random and facial masking [paper: 0.75].
        blocks: share of steps that remove one 3x3 block instead.
        batch: images a step, over all processes.
        base_lr: learning rate at batch 256, scaled linearly [paper: 1.5e-4].
        weight_decay, warmup: as in the paper (0.05; none on biases and norms); warmup as a share of the budget.
        pictures: writes `pictures/*.png` at each validation: faces, with patches removed, and reconstructed.
        others: see `RunSettings`.
    """

    packs: list[Path] = Field(min_length=1)
    init: str | None = None
    model: str | MaskedImageModelConfig | None = None
    masking: Literal["random", "block", "facial"] = "random"
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    blocks: float = Field(default=0.0, ge=0, le=1)
    batch: int = Field(default=128, gt=0)
    base_lr: Positive = 1.5e-4
    weight_decay: float = 0.05
    pictures: bool = True


class FaceMaker:
    """Makes parts of batches of the packs' training faces, moved and mirrored, for `Pieces`."""

    def __init__(self, packs: list[FacePack], count: int, size: int, seed: int, device: torch.device) -> None:
        self.count, self.size, self.seed, self.device = count, size, seed, device
        rows = [pack.where("train") for pack in packs]
        sides = [pack_side(pack.images.shape[1], size) for pack in packs]
        each = list(zip(packs, rows, sides, strict=True))
        self.pictures = [Pictures(pack.images, own, device, side=side) for pack, own, side in each]
        self.landmarks = np.concatenate([_shrunk(pack, own, side) for pack, own, side in each])
        self.starts = np.cumsum([0, *map(len, rows)])

    def __call__(self, number: int, step: int) -> tuple[Tensor, Tensor]:
        """Images float16 [B,3,S,S] and landmarks [B,5,2] of part `number`."""
        seed = batch_seed(self.seed, number)
        chosen = np.sort(np.random.default_rng(seed).integers(self.starts[-1], size=self.count))  # pack by pack
        parts = np.split(chosen, np.searchsorted(chosen, self.starts[1:-1]))
        own = zip(self.pictures, parts, self.starts, strict=False)
        pictures = torch.cat([read(part - start) for read, part, start in own if len(part)])
        images, points = _crops(pictures, self.landmarks[chosen], self.size, seed, jitter=True)
        return images.half(), points


def _crops(pictures: Tensor, landmarks: np.ndarray, size: int, seed: int, *, jitter: bool) -> tuple[Tensor, Tensor]:
    dice = Dice(len(pictures), torch.Generator(pictures.device).manual_seed(seed), pictures.device)
    points = torch.from_numpy(landmarks).to(pictures.device)
    return crop_pack(pictures, points, size, MARGIN / PACK_MARGIN, dice, jitter=jitter)


def _shrunk(pack: FacePack, rows: np.ndarray, side: int) -> np.ndarray:
    """The faces' landmarks in pictures of `side` pixels."""
    return pack.landmarks[rows] * np.float32(side / pack.images.shape[1])


def held_out_faces(pack: FacePack, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return up to 256 of a pack's "val" faces as models see them, and landmarks in their pixels."""
    rows, side = pack.where("val")[:256], pack_side(pack.images.shape[1], size)
    pictures = Pictures(pack.images, rows, device, side=side)(np.arange(len(rows)))
    return _crops(pictures, _shrunk(pack, rows, side), size, 0, jitter=False)


class Reconstruction(nn.Module):
    """The model's loss as a forward pass, which is what runs in parallel."""

    def __init__(self, model: MaskedImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        return self.model.loss(images, mask)


def draw_masks(
    model: MaskedImageModel, config: PretrainConfig, points: Tensor, seed: int, kind: str | None = None
) -> Tensor:
    """Return masks [B,L] for a part of a batch, whose faces have landmarks `points` [B,5,2]."""
    generator = torch.Generator().manual_seed(seed)
    kind = kind or config.masking
    if kind == "block":
        return model.block_mask(len(points), generator=generator)
    if kind == "facial":
        c = model.config
        return facial_mask(points.cpu(), c.size, c.patch_size, config.mask_ratio, generator)
    return model.random_mask(len(points), config.mask_ratio, generator)


@torch.inference_mode()
def validate(model: MaskedImageModel, images: Tensor, ratio: float) -> float:
    """Return the loss on held-out persons' faces under always the same masks."""
    model.eval()
    mask = model.random_mask(len(images), ratio, torch.Generator().manual_seed(0))
    return float(model.loss(images, mask))


def build(config: PretrainConfig) -> MaskedImageModel:
    """Return the model that the run starts from."""
    sizes = config.model
    if isinstance(sizes, str):
        if sizes not in PRESETS:
            raise UsageError(f"unknown preset {sizes!r}; have {', '.join(PRESETS)}")
        sizes = PRESETS[sizes]
    if config.init is None:
        return MaskedImageModel(sizes or PRESETS["mae_small_112"])
    model = read_masked_image_model(config.init)
    if sizes is not None and sizes != model.config:
        raise UsageError(f"model is {sizes}, but {config.init} has {model.config}: leave `model` out, or `init`")
    return model.requires_grad_(True).train()


def pretrain(config: PretrainConfig, console: Console) -> Path:
    """Train, and return the folder of the averaged weights (`output`/model); under torchrun with all its processes.

    Raises:
        UsageError: the configuration does not fit together, or see `begin`; DataError: a pack cannot be read;
        CheckpointError: there is nothing to go on from.
    """
    budget = Budget(config.steps, config.minutes)
    with Ranks.join(config.device) as ranks:
        deal = Deal(config.batch, ranks.rank, ranks.world, config.accumulate, config.parts)
        config = begin(config, ranks)
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        model = build(config).to(ranks.device)
        packs, size = [FacePack.load(p) for p in config.packs], model.config.size[0]
        make = FaceMaker(packs, deal.each, size, config.seed, torch.device("cpu") if config.workers else ranks.device)
        held_out, points = held_out_faces(packs[0], size, ranks.device)

        def prepare(piece: tuple[Tensor, Tensor], step: int, number: int) -> tuple[Tensor, Tensor]:
            images, landmarks = piece
            dice = torch.Generator().manual_seed(batch_seed(config.seed, step))
            kind = "block" if config.blocks and torch.rand((), generator=dice) < config.blocks else None
            seeds = [batch_seed(config.seed + 1, part) for part in deal.own(step, number)]
            parts = zip(landmarks.split(deal.each), seeds, strict=True)
            mask = torch.cat([draw_masks(model, config, part, seed, kind) for part, seed in parts])
            return images.to(ranks.device, non_blocking=True).float(), mask  # on the CPU, where looking at it is free

        def show(average: MaskedImageModel, log: RunLog, step: int) -> None:
            masks = draw_masks(model, config, points[:_SHOWN], 0)
            grid = reconstructions(average, held_out[:_SHOWN], masks)
            (config.output / "pictures").mkdir(exist_ok=True)
            Image.fromarray(grid).save(config.output / "pictures" / f"step-{step:07d}.png")
            log.picture("reconstructions", grid, step)

        peak = config.base_lr * config.batch / 256
        task = Task(
            objective=Reconstruction(model),
            kept=model,
            model=model,
            average=averaged(model),
            optimizer=torch.optim.AdamW(optimizer_groups(model, config.weight_decay), lr=peak, betas=(0.9, 0.95)),
            rate=peak,
            batches=lambda start: Pieces(make, deal, start=start).loader(config.workers),
            prepare=prepare,
            measure=lambda average: {"val_loss": validate(average, held_out, config.mask_ratio)},
            rising=False,
            save=lambda average: average.save_pretrained(config.output / "model", dtype=torch.float16),
            show=show if config.pictures else None,
        )
        run(task, config, ranks, budget, console if ranks.main else Console(quiet=True))
    return config.output / "model"


def main(config: Path | None, overrides: list[str], options: Mapping[str, Any] | None = None) -> int:
    """Run `fastdetect pretrain`; returns the exit code."""
    console = Console()
    folder = pretrain(configuration.load(PretrainConfig, config, overrides, options), console)
    console.print(f"model: {folder}")
    return 0
