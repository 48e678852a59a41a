"""Cost of the inpainting protocols: tokens and milliseconds per face on this CPU (or `--device cuda`).

Prints a markdown table. Processor time is of all threads together, the figure that holds on a busy machine.
"""

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.records import write_rows
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="mae_small_112")
    parser.add_argument("--batch", type=int, default=16, help="faces a call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, help="JSON file for the same figures and the machine's")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = MaskedImageModel(args.preset).eval().to(args.device)
    images = torch.rand(args.batch, 3, *model.config.size, device=args.device)
    print(f"{args.preset}, {args.batch} faces a call, {args.threads} threads, {args.device}, torch {torch.__version__}")
    print(f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}\n")
    print("| protocol | passes | encoder tokens | precision | wall ms / face (20..80 %) | processor ms / face |")
    print("|---|---:|---:|---|---:|---:|")
    rows = []
    for protocol in ("blocks16", "complementary-4", "sparse-4"):
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
