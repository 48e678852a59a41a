"""Pairs of a real and a fresh fake a second, made as `fastdetect train` makes them, beside what a training step takes.

The pictures are random: what forging costs does not depend on them. Prints a markdown table; every rate is the best of
the rounds, which take turns.
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch

from bench.records import write_rows
from fastdetect.data.face_pack import PACK_SIZE, FacePack
from fastdetect.data.face_shape import MEAN_FIVE
from fastdetect.data.forgery import ForgeryConfig
from fastdetect.data.pairs import Deal, PairMaker, PairSource, Pieces
from fastdetect.training.loop import pick_device


def made_pack(faces: int, seed: int = 0) -> FacePack:
    """A pack of noise with faces' landmarks, eight pictures a person."""
    rng = np.random.default_rng(seed)
    points = MEAN_FIVE.numpy() * 42 + np.array([PACK_SIZE / 2, PACK_SIZE / 2 - 20], np.float32)
    numbers = np.arange(faces)
    return FacePack(
        images=rng.integers(0, 256, (faces, PACK_SIZE, PACK_SIZE, 3), np.uint8),
        landmarks=(points + rng.normal(0, 2, (faces, 5, 2))).astype(np.float32),
        face_px=np.full(faces, 146.0, np.float32), identity=numbers // 8, source=numbers * 0, clip=numbers,
        split=np.full(faces, "train"), identities=[f"p{i}" for i in range(faces // 8 + 1)], sources=["made"],
        clips=[str(i) for i in numbers],
    )  # fmt: skip


def rate(source: PairSource, pairs: int, workers: int, seconds: float) -> float:
    """Pairs a second that reach a training loop from `workers` processes (0: its own), which have begun already."""
    make = PairMaker(source, pairs, seed=0, config=lambda step: ForgeryConfig())
    batches = Pieces(make, Deal(pairs), start=0).loader(workers)
    for _ in range(6 * max(1, workers)):  # what the workers have made in advance is used up, caches are warm
        next(batches)
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        next(batches)
        done += pairs
    if source.device.type == "cuda":
        torch.cuda.synchronize()
        took = time.perf_counter() - began
    return done / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 160])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes; on a GPU 0 makes them there")
    parser.add_argument("--pairs", type=int, default=32, help="a batch")
    parser.add_argument("--faces", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, help="JSON file for the same figures and the machine's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = pick_device(args.device)
    pack = made_pack(args.faces)
    sources = {size: PairSource(pack, "train", size, device=device) for size in args.sizes}
    best = {(size, workers): 0.0 for size in args.sizes for workers in args.workers}
    for _ in range(args.rounds):
        for size, workers in best:
            best[size, workers] = max(best[size, workers], rate(sources[size], args.pairs, workers, args.seconds))
    print(f"{args.pairs} pairs a batch, {device}, torch {torch.__version__}, one thread a process")
    print(f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}\n")
    print("| crop, px | processes | pairs/s |\n|---:|---:|---:|")
    for (size, workers), pairs in best.items():
        print(f"| {size} | {workers} | {pairs:.0f} |")
    if args.results:
        rows = [{"size": size, "workers": n, "pairs_per_s": pairs} for (size, n), pairs in best.items()]
        write_rows(args.results, "forging", device, {"pairs": args.pairs, "faces": args.faces}, rows)


if __name__ == "__main__":
    main()
