"""What the runtimes of the model and of the face detector cost on this CPU, and by how much their results differ.

    python bench/runtimes.py --data ../shared/data              # every video there, 16 frames each: some minutes
    python bench/runtimes.py --data ../shared/data --every 4
    python bench/runtimes.py --data ../shared/data --part verdict  # where screening inpaints nothing
    python bench/runtimes.py --data ../shared/data --part verdict --exports int8/verdict.onnx

Runtimes that are not installed are listed as such. Cost is processor time on `--threads` threads, the median of the
rounds; the runtimes take turns. Scores are the videos' calibrated ones, against those of torch in fp32 on the faces
that ONNX Runtime finds in fp32. The detector's boxes are compared with that one's: found again where the IoU is at
least 0.5.
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

from fastdetect.engines import Engine, load_engine
from fastdetect.engines.graph import SCORERS
from fastdetect.errors import FastdetectError
from fastdetect.evaluation.protocol import contract_margin
from fastdetect.evaluation.scoring import Cropper, VideoFaces, VideoScore, contract_crop, extract_faces, video_scores
from fastdetect.faces.centerface import CenterFaceDetector
from fastdetect.faces.network import Runtime
from fastdetect.screening.verdict import Calibration
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
BOTH_ENDS = ("torch fp32", "openvino bf16")  # what the other detector is tried with
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


def extract(runtime: str, files: Sequence[Path], args: argparse.Namespace, cropper: Cropper) -> list[VideoFaces]:
    """Faces of every file by one of the detectors."""
    detector = CenterFaceDetector(threads=args.threads, runtime=runtime)  # type: ignore[arg-type]
    policy = SamplingPolicy.parse(f"uniform:{args.frames}")
    return [extract_faces(file, detector, policy, crops={"model": cropper}, threads=args.threads) for file in files]


def scores(engine: Engine, videos: Sequence[VideoFaces]) -> list[VideoScore]:
    """Raw scores of videos."""
    crops = [person.crops["model"] for faces in videos for person in faces.tracks]
    return video_scores(videos, engine.run(np.concatenate(crops)).logits)


def compare(args: argparse.Namespace, files: Sequence[Path]) -> None:
    """Print both tables."""
    engines: dict[str, Engine] = {}
    trouble: dict[str, str] = {}
    for name, (runtime, precision) in MODELS.items():
        try:
            options = {
                "device": "cpu",
                "precision": precision,
                "threads": args.threads,
                "batch_size": BATCH,
                "part": args.part,
            }
            engines[name] = load_engine(args.model, engine=runtime, **options)
        except FastdetectError as error:
            trouble[name] = str(error)
    for file in args.exports:
        engine = load_engine(str(file), engine="onnxruntime", device="cpu", threads=args.threads, batch_size=BATCH)
        engines[f"onnxruntime {engine.precision}, {file}"] = engine
    first = engines["torch fp32"]
    cropper = contract_crop(first.image_size, contract_margin(first))
    found: dict[str, list[VideoFaces]] = {}
    for name in DETECTORS:
        try:
            found[name] = extract(name, files, args, cropper)
        except FastdetectError as error:
            trouble[name] = str(error)
    calibration = Calibration.from_config(first.info.calibration) if first.info.calibration else None
    assert calibration is not None, "scores are compared after calibration; calibrate the model first"

    def differences(name: str, detector: str) -> np.ndarray:
        pairs = zip(reference, scores(engines[name], found[detector]), strict=True)
        return np.array([
            abs(calibration.probability(a.margin) - calibration.probability(b.margin))
            for a, b in pairs if a.margin is not None and b.margin is not None
        ])  # fmt: skip

    reference = scores(first, found[DETECTORS[0]])
    crops = np.random.default_rng(0).integers(0, 256, (BATCH, first.image_size, first.image_size, 3), np.uint8)
    cost = processor_ms({name: partial(engine.run, crops) for name, engine in engines.items()}, args.rounds)
    print("| model on | faces found on | processor ms / face | largest difference of a score | videos over 0.02 |")
    print("|---|---|---:|---:|---:|")
    for detector in found:
        for name in engines if detector == DETECTORS[0] else [n for n in BOTH_ENDS if n in engines]:
            off = differences(name, detector)
            last = f"{off.max():.4f} | {(off > 0.02).sum()} of {len(off)} |"
            print(f"| {name} | {detector} | {cost[name] / BATCH:.1f} | {last}", flush=True)
    for name, why in trouble.items():
        print(f"| {name} | | not here: {why} | | |")
    compare_detectors(args, files, found)


def compare_detectors(
    args: argparse.Namespace, files: Sequence[Path], found: Mapping[str, Sequence[VideoFaces]]
) -> None:
    frames = [frame.rgb for frame in decode(files[0], SamplingPolicy.parse(f"uniform:{BATCH}")).frames]
    boxes = {name: [box for faces in videos for box in _boxes(faces)] for name, videos in found.items()}
    detectors = {name: CenterFaceDetector(threads=args.threads, runtime=name) for name in DETECTORS if name in found}
    cost = processor_ms({name: partial(d.detect, frames) for name, d in detectors.items()}, args.rounds)
    print(
        "\n| detector on | processor ms / frame | found again | box edges differ by, of the side: median, 95 %, most |"
    )
    print("|---|---:|---:|---|")
    for name in found:
        wanted = sum(len(b) for b in boxes[DETECTORS[0]])
        off = np.concatenate([_differences(a, b) for a, b in zip(boxes[DETECTORS[0]], boxes[name], strict=True)])
        far = ", ".join(f"{100 * q:.1f} %" for q in np.quantile(off, (0.5, 0.95, 1.0)))
        print(f"| {name} | {cost[name] / len(frames):.1f} | {len(off)} of {wanted} | {far} |")


def _boxes(faces: VideoFaces) -> list[torch.Tensor]:
    """Boxes [n, 4] of each frame."""
    by_frame: list[list[tuple[float, ...]]] = [[] for _ in range(faces.frames_sampled)]
    for person in faces.tracks:
        for position, face in zip(person.frames, person.faces, strict=True):
            by_frame[position].append(face.box)
    return [torch.tensor(boxes).reshape(-1, 4) for boxes in by_frame]


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
    parser.add_argument("--every", type=int, default=1, help="take every so manieth video")
    parser.add_argument("--frames", type=int, default=16, help="of a video")
    parser.add_argument("--model", default="fastdetect-small")
    parser.add_argument("--part", default="detector", choices=SCORERS, help="of the model")
    parser.add_argument("--exports", type=Path, nargs="*", default=[], help="ONNX files of `fastdetect export`, too")
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
    compare(args, files)


if __name__ == "__main__":
    main()
