"""Pictures a second that training's loaders make, beside those that a step learns from, on one core.

Each row is a run that docs/training.md describes, with its own source of pictures, network, loss and precision, in
small batches. Pictures and weights are random, those of the extraction as smooth as faces. Prints a markdown table;
every rate is the best of the rounds, which take turns. Seconds are those of the process's own CPU time: what else runs
on the machine counts little. A loader that is faster than its step keeps ahead of it from one process of its own.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from bench import machine
from bench.forging import made_pack
from fastdetect import config as configuration
from fastdetect.data.extract import Extracted, ExtractSettings, FaceRecord, FaceStore
from fastdetect.data.face_pack import FacePack
from fastdetect.data.face_table import FaceTable
from fastdetect.data.forgery import ForgeryConfig
from fastdetect.data.group_sampler import GroupMaker
from fastdetect.data.manifest import Sample
from fastdetect.data.pairs import Deal, PairMaker, PairSource, Pieces
from fastdetect.faces.crop import crop_square
from fastdetect.models.detector import TwoBranchDetector
from fastdetect.training.cpu import depthwise_in_float32, keep_freed_memory
from fastdetect.training.objective import Objective
from fastdetect.training.pretrain import FaceMaker, PretrainConfig, Reconstruction, build
from fastdetect.training.runner import optimizer_groups, runs_bf16
from fastdetect.training.train import freeze
from fastdetect.training.train_settings import TrainConfig

CPU = torch.device("cpu")
CONFIGS = machine.ROOT / "configs"
BATCHES = 2  # that are measured at least
Batches = Iterator[tuple[torch.Tensor, ...]]


def made_extraction(folder: Path, videos: int = 8, frames: int = 4, methods: int = 3) -> FaceTable:
    """What `fastdetect data extract --margin 1.75` writes: reals, and fakes of the same frames, in shards of PNGs."""
    dice = np.random.default_rng(0)

    def face(frame: int) -> tuple[FaceRecord, bytes]:
        noise = cv2.GaussianBlur(dice.normal(0, 400, (256, 256, 3)), (0, 0), 6) + dice.normal(128, 2, (256, 256, 3))
        data = cv2.imencode(".png", noise.clip(0, 255).astype(np.uint8))[1].tobytes()
        x, y = dice.uniform(200, 204, 2)
        box = (x, y, x + 100, y + 130)
        return FaceRecord(
            track=0, frame=frame, time_s=frame / 2, box=box, frame_size=(640, 480), square=crop_square(box, 1.75),
            landmarks=[[100.0, 100.0]] * 5, detection=0.9, face_px=114.0, sharpness=0.1, brightness=0.5,
        ), data  # fmt: skip

    with closing(FaceStore(folder, ExtractSettings(margin=1.75), resume=False)) as store:
        for video, method in itertools.product(range(videos), range(methods + 1)):
            about: dict[str, Any] = {"method": f"m{method}", "manipulation": "reenactment"} if method else {}
            sample = Sample(
                dataset="made", video=str(video), path=str(video), label=1 if method else 0, split="train",
                identity=str(video), pair=str(video), **about,
            )  # fmt: skip
            store.add(sample, Extracted([face(frame) for frame in range(frames)], frames, []), None)
        store.finish()
    return FaceTable.load(folder)


def detector_run(config: TrainConfig, pack: FacePack, table: FaceTable) -> tuple[Batches, Callable[..., object]]:
    """A run's batches, made in this process, and its step."""
    size = config.detector.image_size
    make: Any = GroupMaker(table, "train", config.pairs, size, fakes=config.group_fakes, seed=0, h264=config.h264)
    if config.pack:
        source = PairSource(pack, "train", size, h264=config.h264)
        make = PairMaker(source, config.pairs, seed=0, config=lambda step: ForgeryConfig())
    model = TwoBranchDetector(config.detector)
    bf16 = runs_bf16(config, CPU)
    if bf16:
        depthwise_in_float32(model)
    held = freeze(model, config)
    objective = Objective(model, config).train()
    for module in held:
        module.eval()
    step = _step(objective, bf16)
    return Pieces(make, Deal(config.pairs), start=0).loader(0), lambda images, labels, *maps: step(
        images.float(), labels, None, *maps
    )


def pretraining_run(config: PretrainConfig, pack: FacePack) -> tuple[Batches, Callable[..., object]]:
    """The same of the masked image model."""
    model = build(config)
    make = FaceMaker([pack], config.batch, model.config.size[0], 0, CPU)
    step = _step(Reconstruction(model).train(), runs_bf16(config, CPU))
    mask = model.random_mask(config.batch, config.mask_ratio)
    return Pieces(make, Deal(config.batch), start=0).loader(0), lambda images, _: step(images.float(), mask)


def _step(objective: nn.Module, bf16: bool) -> Callable[..., None]:
    optimizer = torch.optim.AdamW(optimizer_groups(objective, 0.05), lr=1e-5)

    def step(*inputs: torch.Tensor | None) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = objective(*inputs)
        loss.backward()
        optimizer.step()

    return step


def rate(call: Callable[[], object], pictures: int, seconds: float) -> float:
    """Pictures a second of a call that handles `pictures`; the first call warms up."""
    call()
    count, began = 0, time.process_time()
    while (took := time.process_time() - began) < seconds or count < BATCHES:
        call()
        count += 1
    return count * pictures / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--pairs", type=int, default=8, help="or groups of a batch; pretraining: four pictures for each"
    )
    parser.add_argument("--h264", type=float, default=0.5, help="share of the rows that have it")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a rate in a round")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    pack = made_pack(128)
    few = [f"pairs={args.pairs}", "output=."]
    manifest, h264 = ["manifest=.", "loss=real-centric"], f"h264={args.h264:g}"
    with tempfile.TemporaryDirectory() as folder:
        table = made_extraction(Path(folder))

        def run(path: Path | None, *more: str) -> tuple[Batches, Callable[..., object]]:
            return detector_run(configuration.load(TrainConfig, path, [*few, *more]), pack, table)

        pretraining = [f"batch={4 * args.pairs}"]
        runs = {
            "`pretrain-small.yaml`": pretraining_run(
                configuration.load(PretrainConfig, CONFIGS / "pretrain-small.yaml", pretraining), pack
            ),
            "`train-small-image.yaml`": run(CONFIGS / "train-small-image.yaml"),
            "`train-small-image-160.yaml`": run(CONFIGS / "train-small-image-160.yaml"),
            f"`train-small-image-160.yaml`, `{h264}`": run(CONFIGS / "train-small-image-160.yaml", h264),
            "`train-small.yaml`": run(CONFIGS / "train-small.yaml"),
            "`train --manifest faces --loss real-centric`": run(None, *manifest),
            f"`train --manifest ...`, `{h264}`": run(None, *manifest, h264),
        }
        best = {name: [0.0, 0.0] for name in runs}
        for _, (name, (batches, step)) in itertools.product(range(args.rounds), runs.items()):
            batch = next(batches)
            made = rate(partial(next, batches), len(batch[0]), args.seconds)
            learnt = rate(partial(step, *batch), len(batch[0]), args.seconds)
            best[name] = [max(best[name][0], made), max(best[name][1], learnt)]
    about = machine.describe(CPU)
    print(f"{about['name']}, {about['cpu_capability']}; one thread; torch {torch.__version__}\n")
    print("| run | pictures/s made | pictures/s learnt from | made : learnt |\n|---|---:|---:|---:|")
    for name, (made, learnt) in best.items():
        print(f"| {name} | {made:.0f} | {learnt:.0f} | {made / learnt:.1f} |")


if __name__ == "__main__":
    main()
