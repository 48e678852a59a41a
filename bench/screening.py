"""Videos per hour of `fastdetect screen`, beside the usual pipeline on the same files in the same run.

    python bench/screening.py                      # generated clips: 512 x 512, 5 s, one face
    python bench/screening.py --data ../shared/data # and the real videos there
    python bench/screening.py --json out.json

The usual pipeline: OpenCV decodes every frame; 16 of them, evenly spaced, go one by one through a face detector
(facenet-pytorch's MTCNN if it is installed, else CenterFace as here); each face goes by itself through the same
model in eager fp32. Both get all cores. They take turns, file group by file group, and the ratio is of medians.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from rich.console import Console

from fastdetect.faces.centerface import CenterFaceDetector
from fastdetect.faces.crop import crop_face
from fastdetect.models.detector import TwoBranchDetector
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.results import STAGES
from fastdetect.screening.run import run_screening

TARGET = 2500  # five-second 512p clips per hour on two cores
FRAMES = 16


def moving_face(seed: int, *, side: int = 512, frames: int = 125) -> Iterator[np.ndarray]:
    """A portrait that drifts and nods over a noisy background, RGB uint8 [side, side, 3]."""
    from skimage.data import astronaut

    rng = np.random.default_rng(seed)
    portrait, phase = astronaut(), rng.uniform(0, 6.28, 3)
    grain = rng.normal(0, 3, (8, side, side, 1)).astype(np.float32)
    for i in range(frames):
        t = i / 25
        turn = cv2.getRotationMatrix2D((225, 130), 4 * np.sin(2 * t + phase[0]), 1.15 + 0.1 * np.sin(t + phase[1]))
        turn[:, 2] += (side / 2 - 225 + 40 * np.sin(1.3 * t + phase[2]), side / 2 - 130 + 20 * np.cos(t))
        frame = cv2.warpAffine(portrait, turn, (side, side), borderMode=cv2.BORDER_REPLICATE)
        yield np.clip(frame + grain[i % 8], 0, 255).astype(np.uint8)


def generate(folder: Path, count: int) -> list[Path]:
    """Encode `count` five-second clips with H.264 at CRF 23 and a keyframe every two seconds."""
    paths = []
    for seed in range(count):
        path = folder / f"clip{seed:03d}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, width=512, height=512, pix_fmt="yuv420p")
            stream.options = {"crf": "23", "g": "50"}
            for rgb in moving_face(seed):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode())
        paths.append(path)
    return paths


def usual_detector() -> tuple[str, Callable[[np.ndarray], list[tuple[float, ...]]]]:
    """A face detector as people use it: one frame in, boxes out."""
    try:
        from facenet_pytorch import MTCNN
    except ImportError:
        own = CenterFaceDetector(threads=len(os.sched_getaffinity(0)))
        return "CenterFace", lambda frame: [face.box for face in own.detect([frame])[0]]
    mtcnn = MTCNN(keep_all=True, device="cpu")

    def detect(frame: np.ndarray) -> list[tuple[float, ...]]:
        boxes, _ = mtcnn.detect(frame)
        height, width = frame.shape[:2]
        return [] if boxes is None else [tuple(np.clip(b, 0, (width, height, width, height))) for b in boxes]

    return "facenet-pytorch MTCNN", detect


class UsualPipeline:
    """Decode everything, then frame by frame and face by face."""

    def __init__(self, model: str) -> None:
        self.model = TwoBranchDetector.from_pretrained(model)
        self.size = self.model.config.image_size
        self.name, self.detect = usual_detector()
        self.seconds = dict.fromkeys(("decode", "detect", "model"), 0.0)

    def screen(self, path: Path) -> float | None:
        """The mean probability of "fake" over the faces of a video; None without faces."""
        start = time.perf_counter()
        capture, frames = cv2.VideoCapture(str(path)), []
        while (got := capture.read())[0]:
            frames.append(cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB))
        capture.release()
        decoded = time.perf_counter()
        crops = []
        for i in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).astype(int) if frames else ():
            crops += [crop_face(frames[i], box, size=self.size) for box in self.detect(frames[i]) if _is_box(box)]
        detected = time.perf_counter()
        scores = []
        with torch.no_grad():
            for crop in crops:
                logits = self.model(torch.from_numpy(crop).permute(2, 0, 1)[None]).logits
                scores.append(float(logits.softmax(1)[0, 1]))
        ended = time.perf_counter()
        for stage, seconds in zip(self.seconds, (decoded - start, detected - decoded, ended - detected), strict=True):
            self.seconds[stage] += seconds
        return float(np.mean(scores)) if scores else None


def _is_box(box: tuple[float, ...]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def compare(files: list[Path], model: str, *, groups: int, config: ScreenConfig) -> dict[str, Any]:
    """Take turns on groups of files; seconds per file of both, by group, and the stage times of both."""
    usual = UsualPipeline(model)
    usual.screen(files[0])  # warm-up: lazy initialisation is not what is measured
    ours: list[float] = []
    theirs: list[float] = []
    stages = dict.fromkeys(STAGES, 0.0)
    for group in (files[i::groups] for i in range(groups)):
        with tempfile.TemporaryDirectory() as out, open(os.devnull, "w") as quiet:
            run = run_screening(expand_inputs(group), Path(out) / "out", config, console=Console(file=quiet))
        ours.append(run.wall_s / len(group))
        for stage, seconds in run.stage_seconds.items():
            stages[stage] += seconds / len(files)
        sample = group[: max(1, len(group) // 4)]  # it is the slow one: a quarter is enough for its median
        start = time.perf_counter()
        for path in sample:
            usual.screen(path)
        theirs.append((time.perf_counter() - start) / len(sample))
    own, other = statistics.median(ours), statistics.median(theirs)
    screened = groups * max(1, len(files) // groups // 4) + 1
    return {
        "files": len(files),
        "groups": groups,
        "ours": {"s_per_file": own, "videos_per_hour": 3600 / own, "by_group": ours, "stage_core_s": stages},
        "usual": {
            "detector": usual.name,
            "s_per_file": other,
            "videos_per_hour": 3600 / other,
            "by_group": theirs,
            "stage_s": {stage: seconds / screened for stage, seconds in usual.seconds.items()},
        },
        "ratio": other / own,
    }


def print_result(name: str, result: dict[str, Any]) -> None:
    ours, usual = result["ours"], result["usual"]
    print(f"\n{name}: {result['files']} files in {result['groups']} turns")
    print(
        f"  fastdetect     {ours['s_per_file']:6.2f} s/file  {ours['videos_per_hour']:8,.0f} videos/h  stages, core-s:",
        end="",
    )
    print("", *(f"{stage} {seconds:.3f}" for stage, seconds in ours["stage_core_s"].items()))
    print(
        f"  usual pipeline {usual['s_per_file']:6.2f} s/file  {usual['videos_per_hour']:8,.0f} videos/h  stages, s:",
        end="",
    )
    print("", *(f"{stage} {seconds:.3f}" for stage, seconds in usual["stage_s"].items()), f"({usual['detector']})")
    print(f"  ratio {result['ratio']:.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with videos_real/ and videos_fake/")
    parser.add_argument("--clips", type=int, default=12, help="generated clips")
    parser.add_argument("--turns", type=int, default=3, help="turns of the two pipelines")
    parser.add_argument("--model", default="fastdetect-small")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    config = ScreenConfig(
        model=args.model, workers=args.workers, precision=args.precision, media=False, uncalibrated=True
    )
    cores = len(os.sched_getaffinity(0))
    print(
        f"{cores} cores, {platform.processor() or platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        clips = generate(Path(folder), args.clips)
        results["generated 512p 5 s"] = compare(clips, args.model, groups=args.turns, config=config)
        if args.data:
            names = [args.data / "videos_real", args.data / "videos_fake"]
            real = [file.path for file in expand_inputs(names)]
            results["real videos"] = compare(real, args.model, groups=args.turns, config=config)
    for name, result in results.items():
        print_result(name, result)
    rate = results["generated 512p 5 s"]["ours"]["videos_per_hour"]
    print(
        f"\ntarget {TARGET:,} five-second 512p clips per hour: {'met' if rate >= TARGET else 'not met'} ({rate:,.0f})"
    )
    if args.json:
        args.json.write_text(json.dumps({"cores": cores, "torch": torch.__version__, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
