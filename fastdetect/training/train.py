"""`fastdetect train`: the two-branch detector, on real faces and fakes made from them while it trains."""

import copy
import json
import math
import time
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastdetect import config as configuration
from fastdetect.data.face_pack import FacePack
from fastdetect.data.forgery import ForgeryConfig
from fastdetect.data.pairs import PairSource, PairStream, batch_seed
from fastdetect.errors import UsageError
from fastdetect.evaluation.metrics import roc_auc
from fastdetect.losses import RealCentricLoss, SupConLoss
from fastdetect.models.checkpoint import load_backbone_weights
from fastdetect.models.detector import DetectorConfig, TwoBranchDetector, area_resize
from fastdetect.models.inpainting import inpaint
from fastdetect.models.masked_image_model import MaskedImageModel
from fastdetect.training.cpu import depthwise, depthwise_in_float32, has_fast_bf16
from fastdetect.training.loop import Budget, cosine, ema_update, load_state, pick_device, save_state

Positive = Annotated[float, Field(gt=0)]


class TrainConfig(BaseModel):
    """Everything of a training run; the resolved one is written beside its results.

    Args:
        pack: face pack, see `fastdetect data pack`.
        output: folder for checkpoints and the log; a run that stopped goes on from there with `resume`.
        detector: architecture.
        init: detector folder to start from; its masked image model and branches are taken over.
        mim: folder of the pretrained masked image model; needed with `residual` unless `init` has it.
        image_weights: "efficientnet-lite0" starts the image branch from that package's ImageNet weights.
        residual: train both branches; without it only the image branch and its head (a first stage).
        freeze_image: leave the image branch as `init` has it and train the rest (a cheap second stage).
        hold_fused: leave the fused head as it starts, which with `init` is the image branch's: for a residual branch
            that is not good enough to have a say.
        freeze_depthwise: leave the image backbone's depthwise kernels as they are: the gradient of their weights is the
            slowest part of a step on a CPU.
        freeze_stages: stages of the image backbone, stem included, that stay as they are.
        shares: weight of each source of the pack (see `PairSource`); null: by its number of persons.
        redraw: share of fakes whose face the masked image model has drawn again.
        steps, minutes: the budget, one of them. `minutes` counts the time spent in this run.
        pairs: reals in a batch, with as many fakes.
        lr, weight_decay, warmup: AdamW's, with linear warm-up over `warmup` of the budget, then cosine.
        resynthesis: share, of the fakes that are not redrawn, whose whole picture was resynthesised; the others are
            self-blends and swaps, 55 to 45.
        loss: "ce" alone, or with it "supcon" or "real-centric" on the embeddings [METHODS 2.5].
        contrast_weight, temperature, margin: of that second term; the margin is real-centric's only.
        synthesis, fusion: whether real-centric makes hard positives and hard negatives.
        branch_weight: weight of each branch's own cross-entropy [ours: 0.5].
        label_smoothing: of all cross-entropies.
        easy_until: share of the budget over which fakes go from easy to as faint as they get.
        ema: decay of the averaged weights that are saved.
        workers, threads: processes that make pairs, and threads of the training step, on CPU.
        save_minutes: time between checkpoints.
        device, precision: "auto" takes a GPU where there is one, and bf16 where the hardware has it.
    """

    model_config = ConfigDict(extra="forbid")

    pack: Path
    output: Path
    detector: DetectorConfig = DetectorConfig()
    init: Path | None = None
    mim: Path | None = None
    image_weights: str | None = "efficientnet-lite0"
    residual: bool = True
    freeze_image: bool = False
    hold_fused: bool = False
    freeze_stages: int = Field(default=0, ge=0)
    freeze_depthwise: bool = False
    shares: dict[str, float] | None = None
    redraw: float = Field(default=0.2, ge=0, le=1)
    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    pairs: int = Field(default=32, gt=0)
    lr: Positive = 5e-4
    weight_decay: float = 0.02
    warmup: float = Field(default=0.02, ge=0, lt=1)
    resynthesis: float = Field(default=0.27, ge=0, le=1)
    loss: Literal["ce", "supcon", "real-centric"] = "ce"
    contrast_weight: float = Field(default=0.1, ge=0)
    temperature: Positive = 0.1
    margin: float = Field(default=0.1, ge=0)
    synthesis: bool = True
    fusion: bool = True
    branch_weight: float = 0.5
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    easy_until: float = Field(default=0.5, ge=0, le=1)
    ema: float = Field(default=0.998, ge=0, lt=1)
    seed: int = 0
    workers: int = Field(default=1, ge=0)
    threads: int = Field(default=1, ge=1)
    save_minutes: Positive = 3.0
    resume: bool = False
    device: str = "auto"
    precision: str = Field(default="auto", pattern="^(auto|fp32|bf16)$")


def build(config: TrainConfig) -> TwoBranchDetector:
    """Return the detector that the run starts from."""
    torch.manual_seed(config.seed)
    if config.init:
        started = TwoBranchDetector.from_pretrained(config.init)
        model = TwoBranchDetector(config.detector)
        model.image_branch.load_state_dict(started.image_branch.state_dict())
        model.image_head.load_state_dict(started.image_head.state_dict())
        with torch.no_grad():  # the fused head starts as the image branch's
            model.head.weight.zero_()[:, : model.image_branch.features] = started.image_head.weight
            model.head.bias.copy_(started.image_head.bias)
        if config.detector.mim == started.config.mim:
            model.mim.load_state_dict(started.mim.state_dict())
    else:
        model = TwoBranchDetector(config.detector)
        if config.image_weights == "efficientnet-lite0":
            load_backbone_weights(model.image_branch.net)
        elif config.image_weights:
            raise UsageError(f"image_weights is {config.image_weights!r}; wanted efficientnet-lite0 or null")
    if config.mim:
        model.mim.load_state_dict(MaskedImageModel.from_pretrained(config.mim).state_dict())
    elif config.residual and not config.init:
        raise UsageError("training the residual branch needs `mim`, the folder of a pretrained masked image model")
    return model


def frozen_stages(net: nn.Module, count: int) -> list[nn.Module]:
    """Return the stem and the first `count` stages of a backbone that has `conv_stem`, `bn1` and `blocks`."""
    if not count:
        return []
    if not all(hasattr(net, name) for name in ("conv_stem", "bn1", "blocks")):
        raise UsageError(f"freeze_stages needs a backbone with conv_stem, bn1 and blocks; {type(net).__name__} has not")
    stages = [*net.children()]
    return [m for m in stages if m in (net.conv_stem, net.bn1)] + [*net.get_submodule("blocks").children()][:count]


class Objective(nn.Module):
    """Cross-entropy of the fused head and of each branch's own [METHODS 1.5], with a contrastive term [METHODS 2.5]."""

    def __init__(self, model: TwoBranchDetector, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.contrast: RealCentricLoss | SupConLoss | None = None
        if config.loss == "real-centric":
            self.contrast = RealCentricLoss(
                model.config.embed_dim, temperature=config.temperature, margin=config.margin, seed=config.seed,
                rho=0.25 if config.synthesis else 0.0, n_fused=64 if config.fusion else 0,
            )  # fmt: skip
        elif config.loss == "supcon":
            self.contrast = SupConLoss(temperature=config.temperature, base_temperature=config.temperature)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        model, c = self.model, self.config
        smooth = c.label_smoothing
        if c.residual:
            out = model(images)
            embedding = out.embedding
            loss = F.cross_entropy(out.logits, labels, label_smoothing=smooth)
            for branch in (out.image_logits, out.residual_logits):
                loss = loss + c.branch_weight * F.cross_entropy(branch, labels, label_smoothing=smooth)
        else:
            features = model.image_branch((images - model.mean) / model.std, None).float()
            loss = F.cross_entropy(model.image_head(model.drop(features)).float(), labels, label_smoothing=smooth)
            nothing = features.new_zeros(len(features), model.residual_branch.features)
            embedding = F.normalize(model.projection(torch.cat([features, nothing], 1)).float(), dim=1)
        if isinstance(self.contrast, RealCentricLoss):
            loss = loss + c.contrast_weight * self.contrast(embedding, labels)
        elif self.contrast is not None:
            loss = loss + c.contrast_weight * self.contrast(embedding[:, None], labels)
        return loss


def margins(model: TwoBranchDetector, images: Tensor, *, residual: bool) -> Tensor:
    """Return fake-minus-real logit margins [N] of the fused head, or of the image branch's."""
    if residual:
        logits = model(images).logits
    else:
        logits = model.image_head(model.image_branch((images - model.mean) / model.std, None))
    return (logits[:, 1] - logits[:, 0]).float()


@torch.inference_mode()
def validate(model: TwoBranchDetector, source: PairSource, config: TrainConfig, *, batches: int = 8) -> float:
    """Return the AUC over fakes made from the validation persons, always the same ones."""
    model.eval()
    scores, labels = [], []
    for number in range(batches):
        made = source.batch(24, batch_seed(7, number), ForgeryConfig(kinds=(0.4, 0.35, 0.0, 0.25)))
        for images, label in ((made.real, 0), (made.fake, 1)):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision != "fp32"):
                scores.append(margins(model, images, residual=config.residual).cpu())
            labels.append(torch.full((len(images),), label))
    return roc_auc(torch.cat(labels).numpy(), torch.cat(scores).numpy())


def train(config: TrainConfig, console: Console) -> Path:
    """Train, and return the folder of the averaged weights (`output`/model).

    Raises:
        UsageError: the configuration does not fit together; DataError: the pack cannot be read.
    """
    budget = Budget(config.steps, config.minutes)
    device = pick_device(config.device)
    if config.precision == "auto":
        config = config.model_copy(update={"precision": "bf16" if device.type == "cuda" or has_fast_bf16() else "fp32"})
    torch.set_num_threads(config.threads)
    config.output.mkdir(parents=True, exist_ok=True)
    configuration.save(config, config.output / "config.yaml")
    model = build(config).to(device)
    if device.type == "cpu" and config.precision == "bf16":
        depthwise_in_float32(model)
    model.requires_grad_(True).mim.requires_grad_(False)
    frozen = frozen_stages(model.image_branch.net, config.freeze_stages)
    if config.freeze_image:
        frozen = [model.image_branch, model.image_head]
    if config.hold_fused:
        frozen.append(model.head)
    for stage in frozen:
        stage.requires_grad_(False)
    if config.freeze_depthwise:
        for layer in depthwise(model.image_branch):
            layer.weight.requires_grad_(False)
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    average = copy.deepcopy(model).requires_grad_(False)
    objective = Objective(model, config).to(device)
    state_file = config.output / "state.pt"
    step = load_state(state_file, objective, average, optimizer, budget) if config.resume else 0
    pack = FacePack.load(config.pack)
    size = config.detector.image_size
    redraw = Redrawer(copy.deepcopy(model.mim).cpu()) if config.redraw and (config.mim or config.init) else None
    source = PairSource(
        pack, "train", size, device=device if not config.workers else "cpu", redraw=redraw, shares=config.shares
    )
    held_out = PairSource(pack, "val", size, device=device)

    def fakes(number: int) -> ForgeryConfig:
        share = budget.share(number)
        easy = min(1.0, share / config.easy_until) if config.easy_until else 1.0
        redrawn = config.redraw if redraw else 0.0
        whole = (1 - redrawn) * config.resynthesis
        pasted = 1 - redrawn - whole
        return ForgeryConfig(kinds=(0.55 * pasted, 0.45 * pasted, redrawn, whole), difficulty=0.2 + 0.8 * easy)

    stream = PairStream(source, config.pairs, seed=config.seed, start=step, config=fakes)
    loader = iter(
        DataLoader(stream, batch_size=None, num_workers=config.workers, prefetch_factor=4 if config.workers else None)
    )
    log = (config.output / "log.jsonl").open("a")
    started = saved = time.monotonic()
    images_seen, running = 0, 0.0
    while not budget.spent(step):
        model.train()
        for stage in frozen:
            stage.eval()
        images, labels = next(loader)
        images, labels = images.to(device, non_blocking=True).float(), labels.to(device)
        rate = config.lr * cosine(budget.share(step), config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = objective(images, labels)
        if not math.isfinite(value := loss.item()):
            raise UsageError(f"the loss is {value} at step {step}; lower lr (now {config.lr}) or use precision=fp32")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 2.0)
        optimizer.step()
        ema_update(average, model, min(config.ema, (1 + step) / (10 + step)))
        step += 1
        images_seen += len(images)
        running = value if not running else 0.98 * running + 0.02 * value
        if time.monotonic() - saved >= 60 * config.save_minutes or budget.spent(step):
            auc = validate(average, held_out, config)
            saved = time.monotonic()
            row = {
                "step": step, "share": round(budget.share(step), 4), "loss": round(running, 4),
                "val_auc": round(auc, 4), "lr": rate, "images_per_s": round(images_seen / (saved - started), 1),
                "minutes": round(budget.minutes(), 2),
            }  # fmt: skip
            log.write(json.dumps(row) + "\n")
            log.flush()
            console.print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
            average.save_pretrained(config.output / "model", dtype=torch.float16, license="research-use only")
            save_state(state_file, step, objective, average, optimizer, budget)
    return config.output / "model"


class Redrawer:
    """Draws faces again with the masked image model, every patch predicted from a random quarter of the others."""

    def __init__(self, mim: MaskedImageModel) -> None:
        self.mim = mim.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        side = self.mim.config.size[0]
        drawn = inpaint(self.mim, area_resize(images, side), protocol="sparse-4").images
        return F.interpolate(drawn, images.shape[-2:], mode="bicubic", align_corners=False).clone()


def main(config: Path | None, overrides: list[str]) -> int:
    """Run `fastdetect train`; returns the exit code."""
    console = Console()
    folder = train(configuration.load(TrainConfig, config, overrides), console)
    console.print(f"model: {folder}")
    return 0
