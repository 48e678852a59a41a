"""`fastdetect pretrain`: the masked image model, on real faces only [METHODS 1.1]."""

import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fastdetect import config as configuration
from fastdetect.data.face_pack import PACK_MARGIN, FacePack
from fastdetect.data.forgery import Dice, crop_pack
from fastdetect.data.pairs import batch_seed
from fastdetect.errors import UsageError
from fastdetect.faces.crop import MARGIN
from fastdetect.models.masked_image_model import PRESETS, MaskedImageModel
from fastdetect.training.cpu import has_fast_bf16
from fastdetect.training.loop import Budget, cosine, ema_update, load_state, pick_device, save_state

Positive = Annotated[float, Field(gt=0)]


class PretrainConfig(BaseModel):
    """Everything of a pretraining run; the resolved one is written beside its results.

    Args:
        packs: face packs; their "train" faces are learnt, the first one's "val" faces measured.
        output: folder for checkpoints and the log.
        model: preset of the masked image model.
        mask_ratio: share of patches removed [paper: 0.75]; blocks: share of steps that remove one 3x3 block instead.
        steps, minutes: the budget, one of them.
        batch: images a step.
        base_lr: learning rate at batch 256, scaled linearly [paper: 1.5e-4].
        weight_decay, warmup: as in the paper (0.05; none on biases and norms); warmup as a share of the budget.
        ema: decay of the averaged weights that are saved.
        threads, workers, save_minutes, device, precision, resume, seed: as for `fastdetect train`.
    """

    model_config = ConfigDict(extra="forbid")

    packs: list[Path] = Field(min_length=1)
    output: Path
    model: str = "mae_small_112"
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    blocks: float = Field(default=0.0, ge=0, le=1)
    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    batch: int = Field(default=128, gt=0)
    base_lr: Positive = 1.5e-4
    weight_decay: float = 0.05
    warmup: float = Field(default=0.05, ge=0, lt=1)
    ema: float = Field(default=0.998, ge=0, lt=1)
    seed: int = 0
    workers: int = Field(default=1, ge=0)
    threads: int = Field(default=1, ge=1)
    save_minutes: Positive = 3.0
    resume: bool = False
    device: str = "auto"
    precision: str = Field(default="auto", pattern="^(auto|fp32|bf16)$")


class FaceStream(IterableDataset[Tensor]):
    """Endless float16 batches [B,3,S,S] of the packs' training faces, moved and mirrored, for a DataLoader."""

    def __init__(self, packs: list[FacePack], batch: int, size: int, *, seed: int, start: int) -> None:
        self.packs, self.count, self.size, self.seed, self.start = packs, batch, size, seed, start
        self.rows = [(number, row) for number, pack in enumerate(packs) for row in pack.where("train")]

    def batch(self, number: int, rows: list[tuple[int, int]] | None = None) -> Tensor:
        rng = np.random.default_rng(batch_seed(self.seed, number))
        chosen = rows or [self.rows[i] for i in rng.integers(len(self.rows), size=self.count)]
        pictures = np.stack([self.packs[pack].images[row] for pack, row in chosen])
        dice = Dice(len(chosen), torch.Generator().manual_seed(batch_seed(self.seed, number)), torch.device("cpu"))
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        points = torch.zeros(len(chosen), 5, 2)
        return crop_pack(images, points, self.size, MARGIN / PACK_MARGIN, dice, jitter=rows is None)[0]

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        number, stride = (self.start + info.id, info.num_workers) if info else (self.start, 1)
        while True:
            yield self.batch(number).half()
            number += stride


@torch.inference_mode()
def validate(model: MaskedImageModel, images: Tensor, ratio: float) -> float:
    """Return the loss on held-out persons' faces under always the same masks."""
    model.eval()
    mask = model.random_mask(len(images), ratio, torch.Generator().manual_seed(0)).to(images.device)
    return float(model.loss(images, mask))


def pretrain(config: PretrainConfig, console: Console) -> Path:
    """Train, and return the folder of the averaged weights (`output`/model)."""
    budget = Budget(config.steps, config.minutes)
    device = pick_device(config.device)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and (device.type == "cuda" or has_fast_bf16()))
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    config.output.mkdir(parents=True, exist_ok=True)
    configuration.save(config, config.output / "config.yaml")
    if config.model not in PRESETS:
        raise UsageError(f"unknown preset {config.model!r}; have {', '.join(PRESETS)}")
    model = MaskedImageModel(config.model).to(device)
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    peak = config.base_lr * config.batch / 256
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    average = copy.deepcopy(model).requires_grad_(False)
    state_file = config.output / "state.pt"
    step = load_state(state_file, model, average, optimizer, budget) if config.resume else 0
    packs = [FacePack.load(p) for p in config.packs]
    stream = FaceStream(packs, config.batch, model.config.size[0], seed=config.seed, start=step)
    held_out = stream.batch(0, [(0, int(row)) for row in packs[0].where("val")[:256]]).to(device)
    loader = iter(DataLoader(stream, batch_size=None, num_workers=config.workers))
    log = (config.output / "log.jsonl").open("a")
    masks = torch.Generator().manual_seed(batch_seed(config.seed, step))
    saved = started = time.monotonic()
    running, seen = 0.0, 0
    while not budget.spent(step):
        model.train()
        images = next(loader).to(device, non_blocking=True).float()
        if config.blocks and torch.rand((), generator=masks) < config.blocks:
            mask = model.block_mask(len(images), generator=masks)
        else:
            mask = model.random_mask(len(images), config.mask_ratio, masks)
        for group in optimizer.param_groups:
            group["lr"] = peak * cosine(budget.share(step), config.warmup)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model.loss(images, mask.to(device))
        if not math.isfinite(value := loss.item()):
            raise UsageError(f"the loss is {value} at step {step}; lower base_lr or use precision=fp32")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema_update(average, model, min(config.ema, (1 + step) / (10 + step)))
        step, seen = step + 1, seen + len(images)
        running = value if not running else 0.98 * running + 0.02 * value
        if time.monotonic() - saved >= 60 * config.save_minutes or budget.spent(step):
            saved = time.monotonic()
            row = {
                "step": step, "share": round(budget.share(step), 4), "loss": round(running, 5),
                "val_loss": round(validate(average, held_out, config.mask_ratio), 5),
                "images_per_s": round(seen / (saved - started), 1), "minutes": round(budget.minutes(), 2),
            }  # fmt: skip
            log.write(json.dumps(row) + "\n")
            log.flush()
            console.print("  ".join(f"{k} {v}" for k, v in row.items()))
            average.save_pretrained(config.output / "model", dtype=torch.float16)
            save_state(state_file, step, model, average, optimizer, budget)
    return config.output / "model"


def main(config: Path | None, overrides: list[str]) -> int:
    """Run `fastdetect pretrain`; returns the exit code."""
    console = Console()
    console.print(f"model: {pretrain(configuration.load(PretrainConfig, config, overrides), console)}")
    return 0
