"""What each part of the method adds: arms that differ by one thing, trained alike, measured on the same pictures.

    python -m bench study --pack PACK --mim runs/mim/model --data DATA --steps 4000 -o runs/study
    python -m bench study --tables                # docs/study.md again from bench/results/study.json

Every arm is `fastdetect.training.train` with another TrainConfig. Runs and scores are kept in the output folder: the
same command again goes on where it was stopped. docs/study.md says what the figures mean.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from bench import machine
from bench.study_figures import Draws, Scores, aucs_of, intervals
from bench.study_page import FILE, NOT_RUN, PAGE, tables, write_page
from fastdetect import config as configuration
from fastdetect.data.face_pack import FacePack
from fastdetect.data.forgery import VALIDATED
from fastdetect.data.jobs import Counter
from fastdetect.data.pairs import PairSource, batch_seed
from fastdetect.engines.torch_engine import TorchEngine, best_precision, prepare
from fastdetect.errors import DataError, ShapeError, UsageError
from fastdetect.evaluation.index import REAL, Entry, read_index
from fastdetect.evaluation.scoring import AGGREGATION, VideoFaces, aggregate, contract_crop, video_scores
from fastdetect.faces.crop import MARGIN
from fastdetect.models.detector import TwoBranchDetector, area_resize, read_masked_image_model
from fastdetect.models.folder import find_folder, read_config
from fastdetect.models.inpainting import inpaint, plan
from fastdetect.training.loop import pick_device
from fastdetect.training.runner import runs_bf16
from fastdetect.training.settings import changes
from fastdetect.training.train import IMAGENET_BACKBONE, train
from fastdetect.training.train_settings import TrainConfig
from fastdetect.video.sampling import SamplingPolicy

REAL_CENTRIC = {"residual": True, "loss": "real-centric", "synthesis": False, "fusion": False}
ARMS: dict[str, dict[str, Any]] = {  # in this order: each adds one thing to the one before
    "ce": REAL_CENTRIC | {"residual": False, "loss": "ce"},
    "residual": REAL_CENTRIC | {"loss": "ce"},
    "supcon": REAL_CENTRIC | {"loss": "supcon"},
    "margin-0": REAL_CENTRIC | {"margin": 0.0},
    "margin": REAL_CENTRIC,
    "synthesis": REAL_CENTRIC | {"synthesis": True},
    "fusion": REAL_CENTRIC | {"synthesis": True, "fusion": True},
}
TITLES = {
    "ce": "image branch alone, cross-entropy", "residual": "+ residual branch", "supcon": "+ SupCon",
    "margin-0": "real-centric loss without a margin in its place", "margin": "real-centric margin loss in its place",
    "synthesis": "+ synthetic positives", "fusion": "+ fused negatives",
}  # fmt: skip
ASKED = tuple(arm for arm in ARMS if arm != "margin-0")
PROTOCOL_ARM, PROTOCOLS = "residual", ("blocks16", "complementary-4", "sparse-4")
# No fake is drawn by the masked image model: the residual branch would know its own hand.
BASE = ("redraw=0", "val_faces=48", "tensorboard=false")
# A run may go on though these have changed: what it learns does not depend on them.
MAY_CHANGE = {
    "resume",
    "stop_at",
    "save_minutes",
    "save_steps",
    "val_faces",
    "tensorboard",
    "output",
    "pieces",
    "threads",
}
BATCH = 16  # faces of a timed call


@dataclass(frozen=True)
class Run:
    """One model of the study; `done` is a file that it has once it is finished, `state` what training goes on from."""

    arm: str
    seed: int
    config: TrainConfig

    @property
    def folder(self) -> Path:
        return self.config.output

    @property
    def state(self) -> Path:
        return self.folder / "state.pt"

    @property
    def done(self) -> Path:
        return self.folder / "done"


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """Every run with its settings, seed by seed, so that a study that is cut has whole seeds.

    Raises:
        UsageError: settings do not fit together, or differ from those that a run in the folder began with.
    """
    mim = find_folder(args.mim).resolve()
    nets = {"image": args.image_backbone, "residual": args.residual_backbone}
    weights = [f"{name}_weights=null" for name, net in nets.items() if net != IMAGENET_BACKBONE]
    common = {
        "pack": args.pack.resolve(), "mim": mim, "steps": args.steps, "pairs": args.pairs, "threads": args.threads,
        "device": args.device, "detector.image_size": args.size, "detector.image_backbone": args.image_backbone,
        "detector.residual_backbone": args.residual_backbone, "detector.protocol": args.protocol,
        "detector.mim": read_masked_image_model(mim).config.model_dump(),
    }  # fmt: skip
    runs = []
    for seed in args.seeds:
        for arm in (name for name in ARMS if name in args.arms):
            own = {
                "seed": seed, "output": args.output / "runs" / f"{arm}-{seed}",
                "pieces": args.output / "pieces" / str(seed), **ARMS[arm],
            }  # fmt: skip
            config = configuration.load(TrainConfig, None, [*BASE, *weights, *args.set], common | own)
            precision = "bf16" if runs_bf16(config, pick_device(config.device)) else "fp32"
            runs.append(Run(arm, seed, config.model_copy(update={"precision": precision})))
            _refuse_other_settings(runs[-1])
    return runs


def _refuse_other_settings(run: Run) -> None:
    if not run.state.is_file():
        return
    changed = changes(configuration.load(TrainConfig, run.folder / "config.yaml"), run.config, MAY_CHANGE)
    if changed:
        raise UsageError(
            f"{run.folder} began with other settings: {'; '.join(changed)}; give them again, or another folder with -o"
        )


def train_runs(runs: Sequence[Run], console: Console) -> int:
    """Train what is not finished; returns how many runs still are not (`stop_at`)."""
    for count, run in enumerate(runs, 1):
        if run.done.is_file():
            continue
        console.print(f"run {count} of {len(runs)}: {run.arm}, seed {run.seed}", highlight=False)
        train(run.config.model_copy(update={"resume": run.state.is_file()}), console)
        state = torch.load(run.state, map_location="cpu", mmap=True, weights_only=True)
        if state["step"] == run.config.steps:
            run.done.touch()
        if run.config.pieces and all(other.done.is_file() for other in runs if other.seed == run.seed):
            shutil.rmtree(run.config.pieces)  # gigabytes that no run of this seed needs any more
    return sum(not run.done.is_file() for run in runs)


@dataclass(frozen=True)
class Board:
    """What every model is measured on.

    Attributes:
        entries, faces: the videos in which somebody has enough usable faces, whatever the model; left_out: the others.
        crops: uint8 [N,S,S,3], their faces one after the other.
        pairs: uint8 [2M,S,S,3], faces of held-out persons, then a fake of each; persons: [M].
        sha256: of all these pictures.
    """

    entries: list[Entry]
    faces: list[VideoFaces]
    left_out: int
    crops: np.ndarray
    pairs: np.ndarray
    persons: list[str]
    sha256: str


def load_board(args: argparse.Namespace, console: Console) -> Board:
    """Find the faces of the validation videos, once for all models, and forge the held-out pairs."""
    from bench import mesonet

    sys.modules.setdefault("mesonet", mesonet)  # validation.py is a script, too: its neighbours have bare names
    from bench.validation import CropCache

    indices = [args.data / folder / "index.csv" for folder in ("videos_real", "videos_fake")]
    entries = read_index(indices, "validation")
    if len({entry.label for entry in entries}) < 2:
        raise DataError(f"{args.data}: the split 'validation' of its two indices lacks reals or fakes")
    cache = CropCache(args.cache, SamplingPolicy.parse(args.sample), args.threads)
    name = f"model {args.size} {MARGIN}"
    found = []
    with Counter("finding faces", len(entries), console=console) as counter:
        for entry in entries:
            found.append((entry, cache.get(entry, {name: contract_crop(args.size)})))
            counter.step(failed=False)
    nothing = [[np.zeros(len(person.frames)) for person in faces.tracks] for _, faces in found]
    kept = [pair for pair, zeros in zip(found, nothing, strict=True) if aggregate(pair[1], zeros).margin is not None]
    crops = np.concatenate([person.crops[name] for _, faces in kept for person in faces.tracks])
    pairs, persons = held_out_pairs(FacePack.load(args.pack), args.size, args.val_pairs)
    digest = hashlib.sha256(crops.tobytes() + pairs.tobytes()).hexdigest()
    return Board([e for e, _ in kept], [f for _, f in kept], len(found) - len(kept), crops, pairs, persons, digest)


def held_out_pairs(pack: FacePack, size: int, count: int) -> tuple[np.ndarray, list[str]]:
    """Faces of validation persons, then a fake of each, as `train` validates on: uint8 [2M,S,S,3]; and who they are."""
    source = PairSource(pack, "val", size)
    reals: list[np.ndarray] = []
    fakes: list[np.ndarray] = []
    persons: list[str] = []
    for turn, first in enumerate(range(0, count, 24)):
        made = source.batch(min(24, count - first), batch_seed(7, turn), VALIDATED)
        persons += [pack.identities[i] for i in made.identity.tolist()]
        for images, parts in ((made.real, reals), (made.fake, fakes)):
            parts.append((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(reals + fakes), persons


def with_protocol(model: TwoBranchDetector, protocol: str) -> TwoBranchDetector:
    """The same weights under another inpainting protocol; ShapeError where its grid does not suit it."""
    other = TwoBranchDetector(model.config.model_copy(update={"protocol": protocol}))
    other.load_state_dict(model.state_dict())
    return other.eval()


def scores_of(run: Run, protocol: str, board: Board, args: argparse.Namespace) -> Scores:
    """Margins of a finished run on the board, from its folder where they have been worked out before.

    Heads: "score" is the fused one, or the image branch's where there is no other; "image"; "residual".
    """
    weights = read_config(run.folder / "model").weights_sha256
    key = hashlib.sha256(f"{weights} {protocol} {board.sha256}".encode()).hexdigest()
    path = run.folder / f"scores-{protocol}.json"
    if path.is_file() and (kept := json.loads(path.read_text()))["key"] == key:
        return kept["scores"]
    model = with_protocol(TwoBranchDetector.from_pretrained(run.folder / "model"), protocol)
    engine = TorchEngine(model, device=args.device, precision="fp32")  # the same figures on every machine
    heads = {"score": "image_logits", "image": "image_logits"}
    if run.config.residual:
        heads = {"score": "logits", "image": "image_logits", "residual": "residual_logits"}
    outputs = {"video": engine.run(board.crops), "pairs": engine.run(board.pairs)}
    engine.close()
    scores: Scores = {"video": {}, "pairs": {}}
    for head, attribute in heads.items():
        logits = {what: getattr(output, attribute).astype(np.float64) for what, output in outputs.items()}
        scores["pairs"][head] = (logits["pairs"][:, 1] - logits["pairs"][:, 0]).tolist()
        told = [score.margin for score in video_scores(board.faces, logits["video"])]
        scores["video"][head] = [margin for margin in told if margin is not None]  # the board has no other
    half = path.with_suffix(".partial")
    half.write_text(json.dumps({"key": key, "scores": scores}))
    half.replace(path)
    return scores


def crops_per_s(models: Mapping[str, TwoBranchDetector], rounds: int, device: torch.device) -> dict[str, Any]:
    """Faces a second of each model's inpainting and of all of it, in turns in this process: the best of the rounds."""
    size = next(iter(models.values())).config.image_size
    images = torch.rand(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for name, model in models.items():
        small = area_resize(images, model.config.mim.size[0])
        calls[name, "inpainting"] = partial(inpaint, model.mim, small, protocol=name, gain=model.config.gain)
        calls[name, "model"] = partial(model, images)
    best = dict.fromkeys(calls, float("inf"))
    order = list(calls)
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for key in order:
                start = time.perf_counter()
                calls[key]()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                best[key] = min(best[key], time.perf_counter() - start) if turn else best[key]  # the first warms up
            order = order[1:] + order[:1]
    return {name: {part: BATCH / best[name, part] for part in ("inpainting", "model")} for name in models}


def protocols(
    args: argparse.Namespace, runs: Sequence[Run], board: Board, draws: Mapping[str, Draws], console: Console
) -> dict[str, Any]:
    """Inpainting protocols on the very models of one arm, which were trained with one of them: AUC, tokens, speed."""
    device, trained = pick_device(args.device), args.protocol
    model = TwoBranchDetector.from_pretrained(runs[0].folder / "model")
    precision, grid = best_precision(device), model.config.mim.grid
    models: dict[str, TwoBranchDetector] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys((trained, *PROTOCOLS)):
        try:
            models[name] = prepare(with_protocol(model, name), device, precision)
        except ShapeError as error:
            left_out[name] = str(error)
    aucs = {}
    for name in models:
        console.print(f"scoring under {name}", highlight=False)
        aucs[name] = aucs_of(draws, [scores_of(run, name, board, args) for run in runs])
    speed = crops_per_s(models, args.rounds, device)
    found = {}
    for name in models:
        masks = plan(name, grid).masks
        found[name] = {
            "passes": len(masks), "encoder_tokens": int((~masks).sum()), "crops_per_s": speed[name],
            **intervals(draws, aucs[name]), "against_trained": intervals(draws, aucs[name], aucs[trained]),
        }  # fmt: skip
    return {"arm": PROTOCOL_ARM, "trained": trained, "precision": precision, "batch": BATCH, "left_out": left_out,
            "protocols": found}  # fmt: skip


def conditions(args: argparse.Namespace, runs: Sequence[Run], board: Board) -> dict[str, Any]:
    """Where, with what and on what: no path."""
    pack, config = FacePack.load(args.pack), runs[0].config
    splits = {s: (pack.where(s), len(set(pack.identity[pack.where(s)].tolist()))) for s in ("train", "val")}
    arms_own = {"output", "pieces", "seed", "pack", "mim", "init", "resume", *REAL_CENTRIC}
    types = sorted({entry.type for entry in board.entries})
    return {
        "study": 1,
        "commit": machine.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(pick_device(args.device)),
        "versions": machine.versions(),
        "threads": args.threads,
        "load": round(os.getloadavg()[0], 2),
        "settings": config.model_dump(mode="json", exclude=arms_own),
        "weights": {
            name: {"model_id": stored.model_id, "sha256": stored.weights_sha256}
            for name, path in (("mim", config.mim), ("init", config.init))
            if path and (stored := read_config(find_folder(path)))
        },
        "pack": {
            "sha256": hashlib.sha256((args.pack / "faces.npz").read_bytes()).hexdigest(),
            **{split: {"faces": len(rows), "persons": persons} for split, (rows, persons) in splits.items()},
        },
        "videos": {
            "sampling": args.sample, "aggregation": AGGREGATION, "left_out": board.left_out,
            "types": {
                kind: {"videos": len(its), "identities": len({entry.identity for entry in its})}
                for kind in types
                if (its := [entry for entry in board.entries if entry.type == kind])
            },
        },
        "pairs": {"pairs": len(board.persons), "persons": len(set(board.persons))},
        "pictures_sha256": board.sha256,
        "resamples": args.resamples,
        "seeds": args.seeds,
    }  # fmt: skip


def study(args: argparse.Namespace, console: Console) -> dict[str, Any] | None:
    """Train, score and work out every figure, JSON-ready; None where a run is not finished."""
    runs = plan_runs(args)
    board = load_board(args, console)  # whatever is wrong with the data shows before hours of training
    result = conditions(args, runs, board)
    unfinished = train_runs(runs, console)
    if unfinished:
        console.print(f"{unfinished} of {len(runs)} runs are not finished; the same command goes on")
        return None
    torch.set_num_threads(args.threads)
    types, options = [entry.type for entry in board.entries], {"resamples": args.resamples}
    kinds = [REAL] * len(board.persons) + ["fake"] * len(board.persons)
    draws = {
        "video": Draws([entry.identity for entry in board.entries], types, len(args.seeds), **options),
        "pairs": Draws(board.persons * 2, kinds, len(args.seeds), **options),
    }
    by_arm = {arm: [run for run in runs if run.arm == arm] for arm in ARMS if arm in args.arms}
    aucs = {}
    for arm, its in by_arm.items():
        console.print(f"scoring {arm}", highlight=False)
        aucs[arm] = aucs_of(draws, [scores_of(run, args.protocol, board, args) for run in its])
    result["arms"] = {
        arm: {
            "title": TITLES[arm],
            "switches": ARMS[arm],
            **intervals(draws, aucs[arm]),
        }
        for arm, its in by_arm.items()
    }
    names = list(by_arm)
    result["differences"] = [
        {"from": before, "to": after, **intervals(draws, aucs[after], aucs[before])}
        for before, after in itertools.pairwise(names)
    ]
    if PROTOCOL_ARM in by_arm:
        result["protocols"] = protocols(args, by_arm[PROTOCOL_ARM], board, draws, console)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench study", description="Train what the method consists of, part by part")
    data = os.environ.get("FASTDETECT_DATA", machine.ROOT.parent / "shared" / "data")
    parser.add_argument("--pack", type=Path, help="face pack to train on, see fastdetect data pack")
    parser.add_argument("-o", "--output", type=Path, help="folder of runs and scores; an earlier one goes on")
    parser.add_argument("--mim", type=Path, default=Path("fastdetect-small"), help="pretrained masked image model")
    parser.add_argument("--data", type=Path, default=Path(data), help="with videos_real/ and videos_fake/")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ASKED, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--pairs", type=int, default=16, help="reals of a step, with as many fakes")
    parser.add_argument("--size", type=int, default=128, help="side of the crops")
    parser.add_argument("--image-backbone", default="tf_efficientnet_lite0", help="this one from ImageNet weights")
    parser.add_argument("--residual-backbone", default="tf_efficientnet_lite0", help="the same")
    parser.add_argument("--protocol", default="sparse-4", help="inpainting protocol of all arms")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every arm's TrainConfig")
    parser.add_argument("--val-pairs", type=int, default=768, help="pairs of held-out persons to measure on")
    parser.add_argument("--sample", default="uniform:16", help="frames of a video")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fastdetect-validation")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of the timing of protocols")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--results", type=Path, help=f"JSON file [{FILE.name} in bench/results/; parts: in the output]")
    parser.add_argument("--page", type=Path, help="page with marks [docs/study.md; parts of the study: in the output]")
    parser.add_argument("--tables", action="store_true", help="train nothing: the page again from the results")
    return parser


def main(argv: Sequence[str], console: Console) -> int:
    """Run `python -m bench study`; returns the exit code: 0, 1 where runs are not finished, 130 after Ctrl-C.

    Raises:
        UsageError: options do not fit together; DataError: faces or videos cannot be read.
    """
    args = _parser().parse_args(argv)
    args.seeds = list(dict.fromkeys(args.seeds))
    if args.tables:
        file, page = args.results or FILE, args.page or PAGE
        write_page(page, tables(json.loads(file.read_text("utf-8"))) if file.is_file() else NOT_RUN)
        return 0
    if not (args.pack and args.output):
        raise UsageError("study: wanted --pack, the faces to train on, and -o, a folder for the runs")
    whole = set(args.arms) >= set(ASKED) and len(args.seeds) >= 3  # a part does not replace the committed whole
    file = args.results or (FILE if whole else args.output / FILE.name)
    page = args.page or (PAGE if whole else args.output / PAGE.name)
    try:
        result = study(args, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        return 130
    if result is None:
        return 1
    file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", "utf-8")
    write_page(page, tables(result))
    console.print(f"written: {file}, {page}", highlight=False)
    return 0
