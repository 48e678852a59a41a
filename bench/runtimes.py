"""What the runtimes of the model and of the face detector cost on this CPU, and by how much their results differ.

    python bench/runtimes.py --data ../shared/data                 # every fourth video there, four frames each
    python bench/runtimes.py --data ../shared/data --every 1 --frames 8

Runtimes that are not installed are listed as such. Cost is processor time on `--threads` threads, the median of the
rounds; the runtimes take turns. The model's scores are those of `fastdetect screen` on the same files, against torch
in fp32; the detector's boxes are compared with ONNX Runtime's in fp32: found again where the IoU is at least 0.5.
"""

import argparse
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torchvision.ops import box_iou

from fastdetect.engines import load_engine
from fastdetect.errors import FastdetectError
from fastdetect.faces.centerface import CenterFaceDetector
from fastdetect.faces.network import Runtime
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.model import Model
from fastdetect.screening.pipeline import Screener
from fastdetect.video.pyav import decode
from fastdetect.video.sampling import SamplingPolicy

MODELS = {
    f"{engine} {precision}": (engine, precision)
    for engine, precision in (
        ("torch", "fp32"),
        ("torch", "bf16"),
        ("onnxruntime", "fp32"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
    )
}
DETECTORS = get_args(Runtime)  # the first is the reference
FOUND_IOU = 0.5
BATCH = 16


def processor_ms(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor milliseconds of each, which take turns; one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn:
                times[name].append((time.process_time() - start) * 1000)
    return {name: float(np.median(values)) for name, values in times.items()}


def scores(model: str, engine: str, precision: str, files: Sequence[Path], frames: int) -> dict[str, float]:
    """Score by path of the files that have one."""
    options = {"engine": engine, "precision": precision, "sample": f"uniform:{frames}", "workers": 1}
    config = ScreenConfig.model_validate({"model": model, **options})
    with Model.load(config) as loaded:
        rows = Screener(loaded, config, media=None).screen(expand_inputs(files))
        return {row.path: row.score for row in rows if row.score is not None}


def compare_models(args: argparse.Namespace, files: Sequence[Path]) -> None:
    engines, trouble = {}, {}
    for name, (engine, precision) in MODELS.items():
        try:
            options = {"device": "cpu", "precision": precision, "threads": args.threads, "batch_size": BATCH}
            engines[name] = load_engine(args.model, engine=engine, **options)
        except FastdetectError as error:
            trouble[name] = str(error)
    side = next(iter(engines.values())).image_size
    crops = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)
    cost = processor_ms({name: partial(e.run, crops) for name, e in engines.items()}, args.rounds)
    found = {name: scores(args.model, *MODELS[name], files, args.frames) for name in engines}
    reference = found["torch fp32"]
    print("| model on | processor ms / face | largest difference of a score | videos over 0.02 |")
    print("|---|---:|---:|---:|")
    for name in MODELS:
        if name in trouble:
            print(f"| {name} | not here: {trouble[name]} | | |")
            continue
        off = np.array([abs(found[name][path] - reference[path]) for path in reference])
        print(f"| {name} | {cost[name] / BATCH:.1f} | {off.max():.4f} | {(off > 0.02).sum()} of {len(off)} |")


def compare_detectors(args: argparse.Namespace, files: Sequence[Path]) -> None:
    detectors, trouble = {}, {}
    for name in DETECTORS:
        try:
            detectors[name] = CenterFaceDetector(threads=args.threads, runtime=name)
        except FastdetectError as error:
            trouble[name] = str(error)
    policy = SamplingPolicy.parse(f"uniform:{args.frames}")
    frames = [frame.rgb for file in files for frame in decode(file, policy).frames]
    boxes = {name: [_boxes(faces) for faces in d.detect(frames)] for name, d in detectors.items()}
    cost = processor_ms({name: partial(d.detect, frames[:BATCH]) for name, d in detectors.items()}, args.rounds)
    print("\n| detector on | processor ms / frame | found again | box sides differ by, median, 95 %, most |")
    print("|---|---:|---:|---|")
    for name in DETECTORS:
        if name in trouble:
            print(f"| {name} | not here: {trouble[name]} | | |")
            continue
        wanted = sum(len(b) for b in boxes[DETECTORS[0]])
        off = np.concatenate([_differences(a, b) for a, b in zip(boxes[DETECTORS[0]], boxes[name], strict=True)])
        far = ", ".join(f"{100 * q:.1f} %" for q in np.quantile(off, (0.5, 0.95, 1.0)))
        print(f"| {name} | {cost[name] / BATCH:.1f} | {len(off)} of {wanted} | {far} |")


def _boxes(faces: Sequence[object]) -> torch.Tensor:
    return torch.tensor([face.box for face in faces]).reshape(-1, 4)  # type: ignore[attr-defined]


def _differences(wanted: torch.Tensor, got: torch.Tensor) -> np.ndarray:
    """Largest change of an edge over the longer side, of each wanted box [n, 4] that `got` has again."""
    if not len(wanted) or not len(got):
        return np.empty(0)
    overlap, match = box_iou(wanted, got).max(1)
    again = overlap >= FOUND_IOU
    side = (wanted[:, 2:] - wanted[:, :2]).amax(1)
    return ((wanted - got[match]).abs().amax(1) / side)[again].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with videos_real/ and videos_fake/")
    parser.add_argument("--every", type=int, default=4, help="take every so manieth video")
    parser.add_argument("--frames", type=int, default=4, help="of a video")
    parser.add_argument("--model", default="fastdetect-small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folders = (args.data / "videos_real", args.data / "videos_fake")
    suffixes = {".mp4", ".mpg", ".webm"}
    files = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in suffixes)[:: args.every]
    if not files:
        parser.error(f"no videos below {args.data}/videos_real or videos_fake")
    print(f"{len(files)} videos, {args.frames} frames each; {args.threads} threads; {platform.machine()}, ", end="")
    print(f"{torch.backends.cpu.get_cpu_capability()}; torch {torch.__version__}\n")
    compare_models(args, files)
    compare_detectors(args, files)


if __name__ == "__main__":
    main()
