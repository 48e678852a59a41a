"""Pictures inside report pages, read back."""

import base64

import cv2
import numpy as np
import pytest

from fastdetect.errors import ShapeError
from fastdetect.inline_images import crop_image, heat_image, heat_stops


def read(address: str) -> np.ndarray:
    """RGB picture of a data address."""
    return cv2.imdecode(np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8), 1)[..., ::-1]


def test_heat_maps_share_their_scale() -> None:
    assert heat_image(np.full((2, 2), 1.0), 1.0) == heat_image(np.full((2, 2), 9.0), 1.0)
    assert heat_image(np.full((2, 2), 0.1), 1.0) != heat_image(np.full((2, 2), 1.0), 1.0)
    assert heat_image(np.full((2, 2), np.nan), 1.0) == heat_image(np.zeros((2, 2)), 1.0)


def test_the_legend_has_the_maps_colours() -> None:
    ends = read(heat_image(np.array([[0.0, 1.0]]), 1.0))[0]
    colours = ["#" + "".join(f"{channel:02x}" for channel in pixel) for pixel in ends]
    stops = heat_stops()
    assert [stops[0], stops[-1]] == [("0.000", colours[0]), ("1.000", colours[1])]


@pytest.mark.parametrize(("scores", "top"), [(np.zeros(3), 1.0), (np.zeros((2, 2)), 0.0)])
def test_what_is_no_map_is_refused(scores: np.ndarray, top: float) -> None:
    with pytest.raises(ShapeError, match=r"want \[gh, gw\] and top > 0"):
        heat_image(scores, top)


def test_crops_keep_their_colours_and_are_no_larger_than_asked() -> None:
    crop = np.broadcast_to(np.uint8([200, 120, 40]), (90, 90, 3)).copy()
    for side, expected in ((30, 30), (200, 90)):
        picture = read(crop_image(crop, side))
        assert picture.shape == (expected, expected, 3)
        assert np.abs(picture.astype(int) - crop[0, 0]).max() <= 3
