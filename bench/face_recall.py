"""Recall and cost of the face detector, with YuNet as the oracle, on the videos of the validation data.

    python bench/face_recall.py --data ../shared/data                  # what ships, and single passes at 320 and 416
    python bench/face_recall.py --data ../shared/data --sides 640 --frames 4

YuNet (OpenCV's FaceDetectorYN) sees each frame with its longer side at most 640 px; its faces that score >= 0.8 and are
over 60 px long count, and one is found where a CenterFace box overlaps it with IoU >= 0.4. `extra` are CenterFace
faces that match none of YuNet's of any size: precision-like, for YuNet is no truth. Cost is CPU time on one thread.
"""

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torchvision.ops import box_iou

from fastdetect.faces.centerface import DETECT_SIDE, CenterFaceDetector
from fastdetect.video.pyav import decode
from fastdetect.video.sampling import SamplingPolicy

ORACLE_SCORE, ORACLE_SIDE, MIN_FACE_PX, MATCH_IOU = 0.8, 640, 60, 0.4
SUFFIXES = {".mp4", ".mpg", ".webm"}


@dataclass
class Tally:
    """What one detector setting found on the frames so far."""

    name: str
    detector: CenterFaceDetector
    wanted: int = 0
    found: int = 0
    small_wanted: int = 0
    small_found: int = 0
    extra: int = 0
    frames: int = 0
    cpu_s: float = 0.0
    missed: list[str] = field(default_factory=list)

    @property
    def recall(self) -> float:
        return self.found / max(self.wanted, 1)

    def add(self, frames: Sequence[np.ndarray], oracle: Sequence[np.ndarray], label: str) -> None:
        """Runs the detector on frames of one video and compares it with the oracle's boxes [n, 4] of each."""
        start = time.process_time()
        detected = self.detector.detect(frames)
        self.cpu_s += time.process_time() - start
        self.frames += len(frames)
        for index, (faces, wanted) in enumerate(zip(detected, oracle, strict=True)):
            boxes = np.array([face.box for face in faces], np.float32).reshape(-1, 4)
            overlap = box_iou(torch.from_numpy(wanted), torch.from_numpy(boxes)).numpy()
            hit = overlap.max(axis=1, initial=0) >= MATCH_IOU
            large = (wanted[:, 2:] - wanted[:, :2]).max(axis=1, initial=0) > MIN_FACE_PX
            self.wanted += int(large.sum())
            self.found += int((large & hit).sum())
            self.small_wanted += int((~large).sum())
            self.small_found += int((~large & hit).sum())
            self.extra += int((overlap.max(axis=0, initial=0) < MATCH_IOU).sum())
            self.missed += [f"{label} sample {index}: {box.round().tolist()}" for box in wanted[large & ~hit]]


class Oracle:
    """YuNet's boxes, float32 [n, 4] (x0, y0, x1, y1), of each frame."""

    def __init__(self, weights: Path) -> None:
        self.weights = str(weights)

    def __call__(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        height, width = frames[0].shape[:2]
        scale = min(1.0, ORACLE_SIDE / max(height, width))
        size = (round(width * scale), round(height * scale))
        yunet = cv2.FaceDetectorYN.create(self.weights, "", size, ORACLE_SCORE)
        boxes = []
        for frame in frames:
            small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            rows = yunet.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
            rects = np.zeros((0, 4), np.float32) if rows is None else rows[:, :4] / np.float32(scale)
            boxes.append(np.concatenate([rects[:, :2], rects[:, :2] + rects[:, 2:]], axis=1))
        return boxes


def video_paths(data: Path) -> list[Path]:
    """The videos of videos_real and videos_fake, in the order of their names."""
    folders = (data / "videos_real", data / "videos_fake")
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES)


def compare(data: Path, paths: Sequence[Path], frames: int, tallies: Sequence[Tally]) -> Iterator[Path]:
    """Adds each video's uniformly sampled frames to every tally; yields its path when done."""
    oracle = Oracle(data / "weights" / "yunet" / "yunet_n_dynamic.onnx")
    policy = SamplingPolicy.parse(f"uniform:{frames}")
    for path in paths:
        pictures = [frame.rgb for frame in decode(path, policy).frames]
        wanted = oracle(pictures)
        for tally in tallies:
            tally.add(pictures, wanted, str(path.relative_to(data)))
        yield path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the validation data")
    parser.add_argument("--frames", type=int, default=16, help="frames per video")
    parser.add_argument("--sides", type=int, nargs="*", default=[320, 416], help="single passes to compare")
    options = parser.parse_args()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    cv2.setNumThreads(1)
    tallies = [Tally(f"{DETECT_SIDE}, twice where needed", CenterFaceDetector())]
    tallies += [Tally(str(s), CenterFaceDetector(detect_side=s, second_pass=False)) for s in options.sides]
    paths = video_paths(options.data)
    done = sum(1 for _ in compare(options.data, paths, options.frames, tallies))
    print(f"{done} videos, {tallies[0].frames} frames; {platform.processor() or platform.machine()}, 1 thread")
    print("| longer side | recall > 60 px | <= 60 px | extra | CPU ms per frame |\n|---|---|---|---|---|")
    for t in tallies:
        recall = f"{t.found}/{t.wanted} = {t.recall:.2%}"
        cost = 1000 * t.cpu_s / t.frames
        print(f"| {t.name} | {recall} | {t.small_found}/{t.small_wanted} | {t.extra} | {cost:.1f} |")
    for t in tallies:
        print("".join(f"missed at {t.name}: {text}\n" for text in t.missed), end="")


if __name__ == "__main__":
    main()
