"""The inpainting protocols: tokens and milliseconds per face on this CPU (or `--device cuda`), and what they are worth.

    python -m bench.inpainting --threads 1
    python -m bench.inpainting --pack pack --model fastdetect-small   # AUC of its residual branch under each protocol

Prints markdown tables. Processor time is of all threads together, the figure that holds on a busy machine. AUCs are on
fakes made from the pack's held-out persons, in bf16, with 95 % bootstrap intervals over persons; the differences are of
the same draws. The branch has learnt the residuals of one of them, the model's own, which favours that one. [ours]
"""

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.records import write_rows
from fastdetect.data.face_pack import FacePack
from fastdetect.data.forgery import VALIDATED
from fastdetect.data.pairs import PairSource, batch_seed
from fastdetect.evaluation.metrics import roc_auc
from fastdetect.models.detector import TwoBranchDetector, area_resize
from fastdetect.models.inpainting import inpaint, plan
from fastdetect.models.masked_image_model import MaskedImageModel


def measure(run: Callable[[], object], rounds: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (wall, processor) seconds: 20, 50 and 80 % quantiles over the rounds, after one warm-up."""
    run()
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return np.quantile(walls, (0.2, 0.5, 0.8)), np.quantile(cpus, (0.2, 0.5, 0.8))


PROTOCOLS = ("blocks16", "complementary-4", "sparse-4")


@torch.inference_mode()
def residual_margins(model: TwoBranchDetector, images: Tensor, protocol: str) -> np.ndarray:
    """Logit margins [N] of the residual branch for float crops [N,3,S,S] in [0,1]."""
    c, found = model.config, []
    for part in images.split(16):
        small = area_resize(part, c.mim.size[0])
        with torch.autocast(images.device.type, torch.bfloat16):
            made = inpaint(model.mim, small, protocol=protocol, gain=c.gain, seed=c.protocol_seed)
            logits = model.residual_head(model.residual_branch(made.residual, None)).float()
        found.append((logits[:, 1] - logits[:, 0]).cpu().numpy())
    return np.concatenate(found)


def worth(args: argparse.Namespace) -> None:
    """Print the residual branch's AUC under each protocol, and its difference from blocks16's."""
    model = TwoBranchDetector.from_pretrained(args.model).to(args.device)
    source = PairSource(FacePack.load(args.pack), "val", model.config.image_size)
    made = [source.batch(24, batch_seed(1234, first), VALIDATED) for first in range(0, args.pairs, 24)]
    real, fake = (torch.cat([getattr(part, name) for part in made]).to(args.device) for name in ("real", "fake"))
    persons = torch.cat([part.identity for part in made]).numpy()
    margins = {name: (residual_margins(model, real, name), residual_margins(model, fake, name)) for name in PROTOCOLS}
    rng = np.random.default_rng(0)
    rows_of = [np.flatnonzero(persons == p) for p in np.unique(persons)]
    draws = [np.concatenate([rows_of[i] for i in rng.integers(len(rows_of), size=len(rows_of))]) for _ in range(1000)]

    def auc(name: str, rows: np.ndarray) -> float:
        reals, fakes = (x[rows] for x in margins[name])
        return roc_auc(np.repeat([0, 1], len(rows)), np.concatenate([reals, fakes]))

    every = np.arange(len(persons))
    drawn = {name: np.array([auc(name, rows) for rows in draws]) for name in PROTOCOLS}
    print(f"\nResidual branch of {args.model}, trained under {model.config.protocol}: {len(every)} pairs, ", end="")
    print(f"{len(rows_of)} persons\n\n| protocol | AUC | against blocks16 |\n|---|---|---|")
    for name in PROTOCOLS:
        low, high = np.quantile(drawn[name], (0.025, 0.975))
        less, more = np.quantile(drawn[name] - drawn["blocks16"], (0.025, 0.975))
        off = auc(name, every) - auc("blocks16", every)
        beside = "" if name == "blocks16" else f"{off:+.3f} [{less:+.3f}, {more:+.3f}]"
        print(f"| {name} | {auc(name, every):.3f} [{low:.3f}, {high:.3f}] | {beside} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mae_small_112")
    parser.add_argument("--batch", type=int, default=16, help="faces a call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, help="JSON file for the same figures and the machine's")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--pack", type=Path, help="face pack, for the AUCs")
    parser.add_argument("--model", default="fastdetect-small", help="of the AUCs")
    parser.add_argument("--pairs", type=int, default=480, help="of the AUCs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.pack:
        worth(args)
        return
    torch.manual_seed(0)
    model = MaskedImageModel(args.preset).eval().to(args.device)
    images = torch.rand(args.batch, 3, *model.config.size, device=args.device)
    print(f"{args.preset}, {args.batch} faces a call, {args.threads} threads, {args.device}, torch {torch.__version__}")
    print(f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}\n")
    print("| protocol | passes | encoder tokens | precision | wall ms / face (20..80 %) | processor ms / face |")
    print("|---|---:|---:|---|---:|---:|")
    rows = []
    for protocol in PROTOCOLS:
        masks = plan(protocol, model.config.grid).masks
        tokens = int((~masks).sum())
        for precision in args.precision:
            model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
            with torch.inference_mode():
                wall, cpu = measure(partial(inpaint, model, images, protocol=protocol), args.rounds, args.device)
            low, mid, high = wall * 1000 / args.batch
            rows.append({
                "protocol": protocol, "passes": len(masks), "encoder_tokens": tokens, "precision": precision,
                "wall_ms_per_face": mid, "wall_ms_20_to_80": [low, high],
                "processor_ms_per_face": cpu[1] * 1000 / args.batch,
            })  # fmt: skip
            print(
                f"| {protocol} | {len(masks)} | {tokens} | {precision} | {mid:.1f} ({low:.1f}..{high:.1f}) "
                f"| {cpu[1] * 1000 / args.batch:.1f} |"
            )
    if args.results:
        settings = {"preset": args.preset, "batch": args.batch, "threads": args.threads, "rounds": args.rounds}
        write_rows(args.results, "inpainting", torch.device(args.device), settings, rows)


if __name__ == "__main__":
    main()
