"""Clips with a real face, a small real model and a run of the command, shared by the screening tests."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from screen_clips import write_clip


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """scikit-image's astronaut: one face of about 110 px near (225, 120) in 512 x 512."""
    from skimage.data import astronaut

    return astronaut()


@pytest.fixture(scope="session")
def face_frames(portrait: np.ndarray) -> Callable[..., list[np.ndarray]]:
    """Frames of a slowly moving portrait: `face_frames(n, side=256, zoom=1.0, light=1.0)`."""

    def make(n: int, *, side: int = 256, zoom: float = 1.0, light: float = 1.0) -> list[np.ndarray]:
        frames = []
        for i in range(n):
            shift = 12 * np.sin(i / 8)
            turn = cv2.getRotationMatrix2D((225, 130), 2 * np.sin(i / 5), zoom)
            turn[:, 2] += (side / 2 - 225 + shift, side / 2 - 130)
            frame = cv2.warpAffine(portrait, turn, (side, side), borderMode=cv2.BORDER_REPLICATE)
            frames.append((frame * light).astype(np.uint8))
        return frames

    return make


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, face_frames: Callable[..., list[np.ndarray]]) -> Path:
    """One second of one person, 256 x 256, H.264."""
    return write_clip(tmp_path_factory.mktemp("clip") / "person.mp4", face_frames(25))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model folder: a two-branch detector of the small size with random weights, calibrated by hand."""
    import torch

    from fastdetect.evaluation.scoring import AGGREGATION
    from fastdetect.models.detector import DetectorConfig, TwoBranchDetector

    torch.manual_seed(0)
    small = "mobilenetv3_small_050"
    config = DetectorConfig(image_size=112, image_backbone=small, residual_backbone=small, protocol="sparse-4")
    calibration = {
        "method": "platt",
        "a": 1.0,
        "b": 0.0,
        "thresholds": {"0.01": 0.9, "0.05": 0.7},
        "sampling": "uniform:16",
        "aggregation": AGGREGATION,
        "id": "test00000000",
    }
    folder = tmp_path_factory.mktemp("models") / "random-small"
    TwoBranchDetector(config).save_pretrained(folder, calibration=calibration, model_id="random-small")
    return folder


@pytest.fixture(scope="session")
def image_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a fused head that gives its residual branch no weight."""
    from fastdetect.models.detector import TwoBranchDetector

    model = TwoBranchDetector.from_pretrained(model_folder).decide_by_image()
    return model.save_pretrained(tmp_path_factory.mktemp("models") / "image-small", model_id="image-small")
