"""`fastdetect train`: the two-branch detector, on reals and fakes made from them while it trains, or a set's own."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from fastdetect import config as configuration
from fastdetect.data.face_pack import FacePack
from fastdetect.data.face_table import FaceTable
from fastdetect.data.forgery import VALIDATED, ForgeryConfig
from fastdetect.data.group_sampler import GroupMaker, held_out_faces
from fastdetect.data.pairs import Deal, PairMaker, PairSource, Pieces, batch_seed
from fastdetect.errors import DataError, UsageError
from fastdetect.evaluation.metrics import roc_auc
from fastdetect.models.checkpoint import load_backbone_weights
from fastdetect.models.detector import Branch, TwoBranchDetector, area_resize, read_masked_image_model
from fastdetect.models.inpainting import draw_blocks, inpaint
from fastdetect.models.masked_image_model import MaskedImageModel
from fastdetect.training.cpu import depthwise, depthwise_in_float32
from fastdetect.training.distributed import Ranks
from fastdetect.training.loop import Budget
from fastdetect.training.objective import Objective
from fastdetect.training.piece_store import PieceStore
from fastdetect.training.runner import Task, averaged, begin, optimizer_groups, run
from fastdetect.training.train_settings import TrainConfig

IMAGENET_BACKBONE = "tf_efficientnet_lite0"  # whose weights an installed package carries
Make = Callable[[int, int], tuple[Tensor, ...]]
Measure = Callable[[TwoBranchDetector], dict[str, float]]


def build(config: TrainConfig) -> TwoBranchDetector:
    """Return the detector that the run starts from."""
    torch.manual_seed(config.seed)
    if config.init:
        started = TwoBranchDetector.from_pretrained(config.init)
        model = TwoBranchDetector(config.detector)
        model.image_branch.load_state_dict(started.image_branch.state_dict())
        model.image_head.load_state_dict(started.image_head.state_dict())
        model.decide_by_image()
        if config.detector.mim == started.config.mim:
            model.mim.load_state_dict(started.mim.state_dict())
        if config.residual_weights == "init":
            _take_residual_branch(model, started, config)
    else:
        model = TwoBranchDetector(config.detector)
        if config.image_weights:
            _start_from_imagenet("image", model.image_branch, config)
    if config.residual and config.residual_weights == "efficientnet-lite0":
        _start_from_imagenet("residual", model.residual_branch, config)
    if config.mim:
        pretrained = read_masked_image_model(config.mim)
        if pretrained.config != config.detector.mim:
            raise UsageError(f"mim: {config.mim} has {pretrained.config}, detector.mim is {config.detector.mim}")
        model.mim.load_state_dict(pretrained.state_dict())
    elif config.residual and not config.init:
        raise UsageError("training the residual branch needs `mim`, the folder of a pretrained masked image model")
    return model


def _start_from_imagenet(name: str, branch: Branch, config: TrainConfig) -> None:
    backbone = getattr(config.detector, f"{name}_backbone")
    if backbone != IMAGENET_BACKBONE:
        raise UsageError(
            f"{name}_weights=efficientnet-lite0 are those of {IMAGENET_BACKBONE}, but detector.{name}_backbone is "
            f"{backbone}: set {name}_weights to null, which means random ones, or take that backbone"
        )
    load_backbone_weights(branch.net)


def _take_residual_branch(model: TwoBranchDetector, started: TwoBranchDetector, config: TrainConfig) -> None:
    if started.config.residual_backbone != config.detector.residual_backbone:
        raise UsageError(
            f"residual_weights=init: {config.init} has {started.config.residual_backbone}, but "
            f"detector.residual_backbone is {config.detector.residual_backbone}"
        )
    model.residual_branch.load_state_dict(started.residual_branch.state_dict())
    model.residual_head.load_state_dict(started.residual_head.state_dict())


def frozen_stages(net: nn.Module, count: int) -> list[nn.Module]:
    """Return the stem and the first `count` stages of a backbone that has `conv_stem`, `bn1` and `blocks`."""
    if not count:
        return []
    if not all(hasattr(net, name) for name in ("conv_stem", "bn1", "blocks")):
        raise UsageError(f"freeze_stages needs a backbone with conv_stem, bn1 and blocks; {type(net).__name__} has not")
    stages = [*net.children()]
    return [m for m in stages if m in (net.conv_stem, net.bn1)] + [*net.get_submodule("blocks").children()][:count]


def freeze(model: TwoBranchDetector, config: TrainConfig) -> list[nn.Module]:
    """Take the gradient from what a run leaves as it is; returns the modules that stay in eval mode."""
    model.requires_grad_(True).mim.requires_grad_(False)
    frozen = frozen_stages(model.image_branch.net, config.freeze_stages)
    if config.freeze_image:
        frozen = [model.image_branch, model.image_head]
    if config.hold_fused:
        frozen.append(model.head)
    for stage in frozen:
        stage.requires_grad_(False)
    if config.freeze_depthwise:
        for branch in (model.image_branch, *([model.residual_branch] if config.residual_weights else [])):
            for layer in depthwise(branch):
                layer.weight.requires_grad_(False)
    return frozen


def margins(model: TwoBranchDetector, images: Tensor, *, residual: bool) -> Tensor:
    """Return fake-minus-real logit margins [N] of the fused head, or of the image branch's."""
    if residual:
        logits = model(images).logits
    else:
        logits = model.image_head(model.image_branch((images - model.mean) / model.std, None))
    return (logits[:, 1] - logits[:, 0]).float()


@torch.inference_mode()
def validate(model: TwoBranchDetector, source: PairSource, config: TrainConfig) -> float:
    """Return the AUC over fakes made from the validation persons, always the same ones."""
    model.eval()
    scores, labels = [], []
    pairs = config.val_faces // 2
    for number, first in enumerate(range(0, pairs, 24)):
        made = source.batch(min(24, pairs - first), batch_seed(7, number), VALIDATED)
        for images, label in ((made.real, 0), (made.fake, 1)):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision != "fp32"):
                scores.append(margins(model, images, residual=config.residual).cpu())
            labels.append(torch.full((len(images),), label))
    return roc_auc(torch.cat(labels).numpy(), torch.cat(scores).numpy())


def _from_pack(
    folder: Path, config: TrainConfig, model: TwoBranchDetector, deal: Deal, budget: Budget, ranks: Ranks
) -> tuple[Make, Measure]:
    pack, size = FacePack.load(folder), config.detector.image_size
    device = torch.device("cpu") if config.workers or config.pieces else ranks.device
    redraw = Redrawer(copy.deepcopy(model.mim).to(device)) if config.redraw and (config.mim or config.init) else None
    source = PairSource(
        pack, "train", size, device=device, redraw=redraw, shares=config.shares, h264=config.h264
    )  # fmt: skip
    held_out = PairSource(pack, "val", size, device=ranks.device)

    def fakes(step: int) -> ForgeryConfig:
        share = budget.share(step)
        easy = min(1.0, share / config.easy_until) if config.easy_until else 1.0
        redrawn = config.redraw if redraw else 0.0
        whole = (1 - redrawn) * config.resynthesis
        pasted = 1 - redrawn - whole
        return ForgeryConfig(
            kinds=(0.55 * pasted, 0.45 * pasted, redrawn, whole), difficulty=0.2 + 0.8 * easy, matched=config.matched
        )

    make: Make = PairMaker(source, deal.each, seed=config.seed, config=fakes)
    if config.pieces:
        table = hashlib.sha256((folder / "faces.npz").read_bytes()).hexdigest()
        keys = ("seed", "steps", "shares", "redraw", "resynthesis", "matched", "h264", "easy_until")
        told = {"pack": table, "each": deal.each, "draws": deal.draws} | {key: getattr(config, key) for key in keys}
        mim = copy.deepcopy(model.mim).cpu().requires_grad_(False)
        make = PieceStore(make, config.pieces, mim, config.detector, bf16=config.precision == "bf16", told=told)
    return make, lambda average: {"val_auc": validate(average, held_out, config)}


def check_splits(table: FaceTable) -> list[str]:
    """Say what makes validations too good: a warning for persons who are in train and in val, also as a fake's source.

    Raises:
        DataError: a video's footage is in both.
    """
    if shared := table.shared_videos("train", "val"):
        raise DataError(
            f"{table.folder}: the footage of {len(shared)} videos of val is in train, too, such as {shared[0]}; give "
            "each video one split in the manifest (`fastdetect data verify` finds such) and extract again"
        )
    learnt, held_out = table.persons("train"), table.persons("val")
    if not (both := sorted(learnt & held_out)):
        return []
    return [
        f"{len(both)} of {len(held_out)} persons of val are in train, too, such as {', '.join(both[:3])}: val_auc is "
        "too good; `fastdetect data index --hold-out 0.1` holds persons out of a set without a val split"
    ]


def _from_manifest(folder: Path, config: TrainConfig, deal: Deal, ranks: Ranks) -> tuple[Make, Measure, list[str]]:
    table = FaceTable.load(folder, methods=config.methods, compressions=config.compressions)
    size = config.detector.image_size
    make = GroupMaker(
        table, "train", deal.each, size, fakes=config.group_fakes, seed=config.seed, h264=config.h264, warn=ranks.main
    )
    warnings = check_splits(table)
    images, labels = (
        held_out_faces(table, "val", size, each=config.val_faces // 2)
        if ranks.main
        else (torch.empty(0), torch.empty(0))
    )

    @torch.inference_mode()
    def measure(average: TwoBranchDetector) -> dict[str, float]:
        average.eval()
        scores = []
        for part in images.split(64):
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.precision != "fp32"):
                scores.append(margins(average, part.to(ranks.device).float() / 255, residual=config.residual).cpu())
        return {"val_auc": roc_auc((labels > 0).long().numpy(), torch.cat(scores).numpy())}

    return make, measure, warnings


def train(config: TrainConfig, console: Console) -> Path:
    """Train, and return the folder of the averaged weights (`output`/model); under torchrun with all its processes.

    Raises:
        UsageError: the configuration does not fit together, or see `begin`; DataError: the faces cannot be read;
        CheckpointError: there is nothing to go on from.
    """
    budget = Budget(config.steps, config.minutes)
    with Ranks.join(config.device) as ranks:
        deal = Deal(config.pairs, ranks.rank, ranks.world, config.accumulate, config.parts)
        config = begin(config, ranks)
        torch.set_num_threads(config.threads)
        model = ranks.synced(build(config).to(ranks.device))
        if ranks.device.type == "cpu" and config.precision == "bf16":
            depthwise_in_float32(model)
        held = freeze(model, config)
        objective = Objective(model, config, ranks).to(ranks.device)
        warnings: list[str] = []
        if config.pack:
            make, measure = _from_pack(config.pack, config, model, deal, budget, ranks)
        else:
            assert config.manifest is not None  # one of the two is there, which the configuration has checked
            make, measure, warnings = _from_manifest(config.manifest, config, deal, ranks)

        def prepare(piece: tuple[Tensor, ...], step: int, number: int) -> tuple[Any, ...]:
            images, labels, *more = (x.to(ranks.device, non_blocking=True) for x in piece)
            images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
            blocks = None
            if config.residual and config.detector.token_selection:  # one draw a step for the whole batch [paper]
                dice = torch.Generator().manual_seed(batch_seed(config.seed + 1, step))
                blocks = draw_blocks(model.plan, config.detector.block_keep, dice)
            maps = more[0] if more else None
            if not config.residual or len(more) < 3:
                return images, labels, blocks, maps
            return images, labels, blocks, maps, (more[1].float(), more[2].float())

        def save(average: TwoBranchDetector) -> None:
            if not config.residual:  # the fused head has learnt nothing
                average.decide_by_image()
            average.save_pretrained(config.output / "model", dtype=torch.float16, license="research-use only")

        task = Task(
            objective=objective,
            kept=objective,
            model=model,
            average=averaged(model),
            optimizer=torch.optim.AdamW(optimizer_groups(objective, config.weight_decay), lr=config.lr),
            rate=config.lr,
            batches=lambda start: Pieces(make, deal, start=start).loader(config.workers),
            prepare=prepare,
            measure=measure,
            rising=True,
            save=save,
            held=held,
            clip=2.0,
            warnings=warnings,
        )
        run(task, config, ranks, budget, console if ranks.main else Console(quiet=True))
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


def main(config: Path | None, overrides: list[str], options: Mapping[str, Any] | None = None) -> int:
    """Run `fastdetect train`; returns the exit code."""
    console = Console()
    folder = train(configuration.load(TrainConfig, config, overrides, options), console)
    console.print(f"model: {folder}")
    return 0
