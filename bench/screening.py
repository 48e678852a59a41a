"""Videos per hour of `fastdetect screen`, beside the usual pipeline on the same files in the same run.

    python bench/screening.py                      # generated clips: 512 x 512, 5 s, one face
    python bench/screening.py --data ../shared/data # and the real videos there
    python bench/screening.py --json out.json
    python bench/screening.py --memory 2000         # resident memory over as many small files, and nothing else

The usual pipeline: OpenCV decodes every frame; 16 of them, evenly spaced, go one by one through a face detector;
each face goes by itself through the same model in eager fp32. It runs with CenterFace as here, and with
facenet-pytorch's MTCNN where that is installed (the `bench` extra); and, where the residual branch has no say in the
model's verdict, once more with each as one who knows that would write it: the image branch alone, nothing inpainted.
All get all cores. They take turns, file group by
file group, and ratios are of medians; our time contains all set-up (processes, model), theirs none.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import psutil
import torch
from rich.console import Console

from fastdetect.engines.scorer import VerdictScorer
from fastdetect.faces.centerface import CenterFaceDetector
from fastdetect.faces.crop import crop_face
from fastdetect.models.detector import TwoBranchDetector
from fastdetect.models.folder import residual_decides
from fastdetect.screening.config import DetectionConfig, ScreenConfig
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.model import Model
from fastdetect.screening.pipeline import Screener
from fastdetect.screening.run import run_screening
from fastdetect.screening.store import ResultStore

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


def generate(folder: Path, count: int, *, side: int = 512, frames: int = 125) -> list[Path]:
    """Encode `count` clips, five seconds long, with H.264 at CRF 23 and a keyframe every two seconds."""
    paths = []
    for seed in range(count):
        path = folder / f"clip{seed:03d}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, width=side, height=side, pix_fmt="yuv420p")
            stream.options = {"crf": "23", "g": "50"}
            for rgb in moving_face(seed, side=side, frames=frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode())
        paths.append(path)
    return paths


Detect = Callable[[np.ndarray], list[tuple[float, ...]]]


def usual_detectors() -> dict[str, Detect]:
    """Face detectors as people use them: one frame in, boxes out."""
    own = CenterFaceDetector(threads=len(os.sched_getaffinity(0)))
    found: dict[str, Detect] = {"CenterFace": lambda frame: [face.box for face in own.detect([frame])[0]]}
    try:
        from facenet_pytorch import MTCNN
    except ImportError:
        return found
    mtcnn = MTCNN(keep_all=True, device="cpu")

    def detect(frame: np.ndarray) -> list[tuple[float, ...]]:
        boxes, _ = mtcnn.detect(frame)
        height, width = frame.shape[:2]
        return [] if boxes is None else [tuple(np.clip(b, 0, (width, height, width, height))) for b in boxes]

    return found | {"MTCNN": detect}


class UsualPipeline:
    """Decode everything, then frame by frame and face by face.

    Args:
        model: gives logits [1,2] of a crop [1,S,S,3]; size: S.
        detect: finds faces.
    """

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], size: int, detect: Detect) -> None:
        self.model, self.size, self.detect = model, size, detect
        self.seconds = dict.fromkeys(("decode", "detect", "model"), 0.0)

    def screen(self, path: Path) -> float | None:
        """The mean probability of "fake" over the faces of a video; None without faces."""
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # our engine on torch sets its own share
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
                logits = self.model(torch.from_numpy(crop)[None])
                scores.append(float(logits.softmax(1)[0, 1]))
        ended = time.perf_counter()
        for stage, seconds in zip(self.seconds, (decoded - start, detected - decoded, ended - detected), strict=True):
            self.seconds[stage] += seconds
        return float(np.mean(scores)) if scores else None


def usual_pipelines(model: str) -> dict[str, UsualPipeline]:
    """The usual pipeline with each face detector, and with less of the model where its verdict needs less."""
    detector = TwoBranchDetector.from_pretrained(model)
    models: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "": lambda crops: detector(crops.permute(0, 3, 1, 2)).logits
    }
    if not residual_decides(model):
        alone = VerdictScorer(detector).eval()
        models[", nothing inpainted"] = lambda crops: alone(crops)[0]
    return {
        f"usual, {name}{how}": UsualPipeline(run, detector.config.image_size, detect)
        for name, detect in usual_detectors().items()
        for how, run in models.items()
    }


def _is_box(box: tuple[float, ...]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


class Timed:
    """Wall and CPU seconds per file of one pipeline, turn by turn."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.files = 0

    def turn(self, files: int, work: Callable[[], object]) -> Any:
        wall, cpu = time.perf_counter(), cpu_seconds()
        result = work()
        self.wall.append((time.perf_counter() - wall) / files)
        self.cpu.append((cpu_seconds() - cpu) / files)
        self.files += files
        return result

    def figures(self, stages: Mapping[str, float]) -> dict[str, Any]:
        wall = statistics.median(self.wall)
        return {
            "s_per_file": wall,
            "videos_per_hour": 3600 / wall,
            "cpu_s_per_file": statistics.median(self.cpu),
            "by_turn": self.wall,
            "stages_s": {stage: seconds / self.files for stage, seconds in stages.items()},
        }


def compare(files: list[Path], model: str, *, turns: int, config: ScreenConfig) -> dict[str, Any]:
    """Take turns on groups of files: all of a group for us, an eighth of it for the slow ones."""
    usual, own = usual_pipelines(model), {"fastdetect": config}
    if not config.media:
        own["fastdetect, faces kept for the report"] = config.model_copy(update={"media": True})
    ours, theirs = {name: Timed() for name in own}, {name: Timed() for name in usual}
    for pipeline in usual.values():
        pipeline.screen(files[0])  # warm-up: lazy initialisation is not what is measured
        pipeline.seconds = dict.fromkeys(pipeline.seconds, 0.0)
    stages: dict[str, Counter[str]] = {name: Counter() for name in own}
    for group in (files[i::turns] for i in range(turns)):
        for name, options in own.items():
            with tempfile.TemporaryDirectory() as out, open(os.devnull, "w") as quiet:
                screen = partial(run_screening, expand_inputs(group), Path(out, "out"), options)
                stages[name].update(
                    ours[name].turn(len(group), partial(screen, console=Console(file=quiet))).stage_seconds
                )
        sample = group[: max(1, len(group) // 8)]
        for name, pipeline in usual.items():
            theirs[name].turn(len(sample), partial(list, map(pipeline.screen, sample)))
    figures = {name: ours[name].figures(stages[name]) for name in own}
    figures |= {name: theirs[name].figures(usual[name].seconds) for name in usual}
    first = figures.pop("fastdetect")
    return {
        "files": len(files),
        "turns": turns,
        "fastdetect": first,
        "others": {name: one | {"ratio": one["s_per_file"] / first["s_per_file"]} for name, one in figures.items()},
    }


def one_file(file: Path, model: str, turns: int = 3) -> float:
    """Median wall seconds of the whole command over one file, once what a machine converts once is converted."""
    command = [sys.executable, "-m", "fastdetect", "screen", str(file), "--no-media", "--set", f"model={model}"]
    seconds = []
    for _ in range(turns + 1):
        with tempfile.TemporaryDirectory() as out:
            start = time.perf_counter()
            run = subprocess.run([*command, "-o", out], capture_output=True, text=True)
            seconds.append(time.perf_counter() - start)
            if run.returncode > 1:  # 1: flagged
                raise RuntimeError(f"screening {file} failed: {run.stderr}")
    return statistics.median(seconds[1:])


def memory(folder: Path, count: int, config: ScreenConfig) -> list[tuple[int, float, float]]:
    """Screen `count` small clips (eight clips under as many names) and look at the memory on the way.

    Returns:
        (files done, MiB of this process, MiB of its workers), all resident, at twenty points.
    """
    originals = generate(folder, 8, side=128, frames=6)
    for i in range(count):
        os.link(originals[i % len(originals)], folder / f"copy{i:06d}.mp4")
    files = expand_inputs([folder / f"copy{i:06d}.mp4" for i in range(count)])
    me, seen = psutil.Process(), []
    with (
        Model.load(config) as model,
        closing(ResultStore(folder / "out", model.identity(config), resume=False)) as store,
    ):
        for done, row in enumerate(Screener(model, config, media=folder / "media").screen(files), 1):
            store.append(row)
            if done % max(1, count // 20) == 0:
                workers = sum(child.memory_info().rss for child in me.children())
                seen.append((done, me.memory_info().rss / 2**20, workers / 2**20))
                print("  {:6d} files: {:7.1f} MiB, workers {:7.1f} MiB".format(*seen[-1]), flush=True)
    return seen


def print_memory(seen: list[tuple[int, float, float]]) -> None:
    """The growth from the second point to the last (before it, batches and caches still fill)."""
    (first, *before), (last, *after) = seen[1], seen[-1]
    parts = (f"{name} {b / a - 1:+.1%}" for name, a, b in zip(("own", "workers"), before, after, strict=True))
    print(f"growth from {first} to {last} files: {', '.join(parts)}, all {sum(after) / sum(before) - 1:+.1%}")


def print_result(name: str, result: dict[str, Any]) -> None:
    """Every pipeline, a line each: wall time with set-up and report, CPU time, stages."""
    print(f"\n{name}: {result['files']} files in {result['turns']} turns")
    rows = {"fastdetect": result["fastdetect"]} | result["others"]
    for title, one in rows.items():
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in one["stages_s"].items())
        ratio = f", {one['ratio']:.1f} times our time" if "ratio" in one else ""
        print(
            f"  {title:40} {one['s_per_file']:6.2f} s/file {one['videos_per_hour']:7,.0f} videos/h, "
            f"CPU {one['cpu_s_per_file']:5.2f} s/file{ratio}; {stages}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with videos_real/ and videos_fake/")
    parser.add_argument("--clips", type=int, default=64, help="generated clips")
    parser.add_argument("--turns", type=int, default=2, help="turns of the two pipelines")
    parser.add_argument("--model", default="fastdetect-small")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--detector", default="auto", help="runtime of the face detector")
    parser.add_argument("--memory", type=int, metavar="FILES", help="watch the memory over so many files instead")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    config = ScreenConfig(
        model=args.model,
        engine=args.engine,
        workers=args.workers,
        precision=args.precision,
        media=False,
        uncalibrated=True,
        detection=DetectionConfig(runtime=args.detector),
    )
    if args.memory:
        with tempfile.TemporaryDirectory() as folder:
            update = {"sample": "uniform:3", "media": True}
            print_memory(memory(Path(folder), args.memory, config.model_copy(update=update)))
        return
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    print(f"{cores} cores, {platform.machine()}, torch {torch.__version__}, load before the start {load:.1f}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        clips = generate(Path(folder), args.clips)
        results["generated 512p 5 s"] = compare(clips, args.model, turns=args.turns, config=config)
        alone = one_file(clips[0], args.model)
        if args.data:
            names = [args.data / "videos_real", args.data / "videos_fake"]
            real = [file.path for file in expand_inputs(names)]
            results["real videos"] = compare(real, args.model, turns=args.turns, config=config)
    for name, result in results.items():
        print_result(name, result)
    print(f"\nfastdetect screen over one generated clip, from start to end: {alone:.1f} s")
    rate = results["generated 512p 5 s"]["fastdetect"]["videos_per_hour"]
    print(
        f"\ntarget {TARGET:,} five-second 512p clips per hour: {'met' if rate >= TARGET else 'not met'} ({rate:,.0f})"
    )
    if args.json:
        about = {"cores": cores, "torch": torch.__version__, "one_file_s": alone}
        args.json.write_text(json.dumps(about | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
