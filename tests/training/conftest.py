"""Faces to train on: one portrait in six lights."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastdetect.data.face_pack import build_pack, read_index


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face pack of one portrait in six lights, each taken as a person of its own."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("faces")
    portrait = data.astronaut()[:300, 100:400]
    with (folder / "index.csv").open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["file", "label", "person", "source", "suggested_split"])
        for number in range(6):
            light = np.clip(portrait * (0.7 + 0.1 * number), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"{number}.png"), light[..., ::-1])
            table.writerow([f"{number}.png", "real", f"p{number}", "made", "val" if number == 5 else "train"])
        table.writerow(["fake.png", "fake", "x", "made", "train"])
    build_pack(read_index(folder / "index.csv"), folder / "pack")
    return folder / "pack"
