"""Miniature data sets with the real ones' exact names, and small media for them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np


def touch(root: Path, *names: str) -> None:
    """Files with their own names as content: enough where nothing is decoded."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def picture(seed: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def png(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()


def write_video(path: Path, frames: Iterable[np.ndarray], *, fps: int = 25) -> Path:
    """Encode RGB frames of one size (even sides) as H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12", "g": "10", "preset": "ultrafast"})
        stream.pix_fmt = "yuv420p"
        for number, rgb in enumerate(frames):
            if number == 0:
                stream.height, stream.width = rgb.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")))
        container.mux(stream.encode())
    return path


def faceforensics(root: Path, levels: tuple[str, ...] = ("c23", "c40")) -> Path:
    """FF++ with DeepFakeDetection: names repeat in every method, masks and models lie between the videos."""
    fakes = root / "manipulated_sequences"
    for level in levels:
        touch(root / f"original_sequences/youtube/{level}/videos", "000.mp4", "003.MP4", "._000.mp4", "071.mp4")
        touch(root / f"original_sequences/actors/{level}/videos", "01__kitchen_pan.mp4")
        for method in ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter"):
            touch(fakes / f"{method}/{level}/videos", "000_003.mp4", "003_000.mp4")
        touch(fakes / f"DeepFakeDetection/{level}/videos", "01_02__kitchen_pan__YVGY8LOK.mp4")
    touch(fakes, "Deepfakes/masks/videos/000_003.mp4", "Deepfakes/models/000_003/decoder_A.h5", "FaceSwap/.DS_Store")
    write_json(root / "splits/train.json", [["000", "003"]])
    write_json(root / "splits/val.json", [["720", "672"]])
    write_json(root / "splits/test.json", [["071", "054"]])
    return root


def celebdf(root: Path) -> Path:
    """Celeb-DF v2, with the folder name's other spelling and a listed video that is not there."""
    touch(
        root, "Celeb-real/id0_0000.mp4", "Celeb-real/id16_0000.mp4", "Youtube-real/00000.mp4", "Youtube-real/00001.mp4"
    )
    touch(root, "Celeb-synthesis/id0_id16_0000.mp4", "Celeb-synthesis/id16_id0_0000.mp4")
    (root / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00000.mp4\r\n1 Celeb-real/id0_0000.mp4\n0 Celeb-synthesis/id0_id16_0000.mp4\n"
        "0 Celeb-synthesis/id3_id9_0005.mp4\n\n"
    )
    return root


def deepfakebench_record(label: str, names: Iterable[str], **more: Any) -> dict[str, Any]:
    return {"label": label, "frames": list(names), **more}
