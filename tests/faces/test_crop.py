"""crop_face: the preprocess contract, against a plain reading of it, to the bit."""

import cv2
import numpy as np
import pytest

from fastdetect.errors import ShapeError
from fastdetect.faces.crop import crop_face, crop_square


def by_the_contract(frame: np.ndarray, box: tuple[float, ...], size: int, margin: float) -> np.ndarray:
    x0, y0, x1, y1 = box
    side = int(np.floor(margin * max(x1 - x0, y1 - y0) + 0.5))
    x, y = (int(np.floor((low + high - side) / 2 + 0.5)) for low, high in ((x0, x1), (y0, y1)))
    pad = 2 * side + 2 * max(abs(x), abs(y)) + 4
    padded = np.pad(frame, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    square = np.ascontiguousarray(padded[pad + y : pad + y + side, pad + x : pad + x + side])
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 121, 3), dtype=np.uint8)


def test_random_boxes_inside_and_over_every_edge(frame):
    rng = np.random.default_rng(1)
    overran = 0
    for _ in range(200):
        x0, y0 = rng.uniform(-5, 110), rng.uniform(-5, 80)
        box = (x0, y0, min(x0 + rng.uniform(6, 80), 121), min(y0 + rng.uniform(6, 80), 90))
        if box[2] - box[0] < 3 or box[3] - box[1] < 3:
            continue
        size, margin = int(rng.choice([16, 33, 112])), float(rng.choice([1.0, 1.3, 2.0]))
        x, y, side = crop_square(box, margin)
        overran += x < 0 or y < 0 or x + side > 121 or y + side > 90
        crop = crop_face(frame, box, size=size, margin=margin)
        np.testing.assert_array_equal(crop, by_the_contract(frame, box, size, margin))
    assert overran > 50


def test_square_as_large_as_the_crop_is_copied_unchanged(frame):
    crop = crop_face(frame, (40, 30, 60, 50), size=26)
    np.testing.assert_array_equal(crop, frame[27:53, 37:63])
    assert crop.flags.c_contiguous
    assert not np.shares_memory(crop, frame)


def test_edges_are_repeated_not_reflected_or_black(frame):
    crop = crop_face(frame, (0, 0, 20, 20), size=40, margin=2.0)
    assert crop_square((0, 0, 20, 20), 2.0) == (-10, -10, 40)
    np.testing.assert_array_equal(crop[:10, 10:], np.broadcast_to(frame[0, :30], (10, 30, 3)))
    np.testing.assert_array_equal(crop[:11, :11], np.broadcast_to(frame[0, 0], (11, 11, 3)))
    np.testing.assert_array_equal(crop[10:, 10:], frame[:30, :30])


def test_whole_frame_and_more(frame):
    crop = crop_face(frame, (0, 0, 121, 90), size=64, margin=3.0)
    np.testing.assert_array_equal(crop, by_the_contract(frame, (0, 0, 121, 90), 64, 3.0))


def test_crop_keeps_the_aspect_of_the_picture():
    frame = np.zeros((200, 200, 3), np.uint8)
    cv2.circle(frame, (100, 100), 30, (255, 255, 255), -1)
    crop = crop_face(frame, (80, 60, 120, 140), size=104)  # a tall box: the square takes its longer side
    assert abs(int((crop[52, :, 0] > 127).sum()) - int((crop[:, 52, 0] > 127).sum())) <= 1


def test_shift_of_frame_and_box_is_no_shift_of_the_crop():
    rng = np.random.default_rng(2)
    frame = rng.integers(0, 256, (150, 150, 3), dtype=np.uint8)
    box = (40.3, 50.7, 81.9, 99.2)
    moved = (box[0] - 17, box[1] - 9, box[2] - 17, box[3] - 9)
    np.testing.assert_array_equal(
        crop_face(frame, box, size=50), crop_face(np.ascontiguousarray(frame[9:, 17:]), moved, size=50)
    )


def test_centre_stays_within_half_a_pixel():
    rng = np.random.default_rng(3)
    for _ in range(100):
        x0, y0 = rng.uniform(0, 500, 2)
        x1, y1 = x0 + rng.uniform(1, 300), y0 + rng.uniform(1, 300)
        x, y, side = crop_square((x0, y0, x1, y1))
        assert abs(x + side / 2 - (x0 + x1) / 2) <= 0.5
        assert abs(y + side / 2 - (y0 + y1) / 2) <= 0.5
        assert abs(side - 1.3 * max(x1 - x0, y1 - y0)) <= 0.5


def test_a_view_gives_what_its_copy_gives(frame):
    view = frame[::2, ::-1]
    np.testing.assert_array_equal(
        crop_face(view, (5, 5, 50, 40), size=24), crop_face(view.copy(), (5, 5, 50, 40), size=24)
    )


def test_face_smaller_than_a_pixel(frame):
    np.testing.assert_array_equal(
        crop_face(frame, (10.2, 10.2, 10.4, 10.4), size=4), np.broadcast_to(frame[10, 10], (4, 4, 3))
    )


@pytest.mark.parametrize(
    ("box", "size", "margin", "says"),
    [
        ((10, 10, 10, 20), 8, 1.3, "x0 < x1"),
        ((10, 20, 15, 10), 8, 1.3, "y0 < y1"),
        ((float("nan"), 0, 5, 5), 8, 1.3, "finite"),
        ((0, 0, 5, 5), 8, 0.0, "margin"),
        ((0, 0, 5, 5), 0, 1.3, "crop size is 0"),
        ((300, 10, 320, 30), 8, 1.3, "outside the frame of 121x90"),
        ((121, 10, 131, 20), 8, 1.0, "outside the frame of 121x90"),  # begins where the frame ends
        ((10, -10, 20, 0), 8, 1.0, "outside the frame of 121x90"),
    ],
)
def test_what_cannot_be_cropped(frame, box, size, margin, says):
    with pytest.raises(ShapeError, match=says):
        crop_face(frame, box, size=size, margin=margin)


def test_a_crop_of_the_whole_frame_is_a_copy():
    frame = np.zeros((20, 20, 3), np.uint8)
    crop = crop_face(frame, (0, 0, 20, 20), size=20, margin=1.0)
    assert not np.shares_memory(crop, frame)


def test_what_is_no_frame():
    with pytest.raises(ShapeError, match=r"float32 \[9, 9, 3\]"):
        crop_face(np.zeros((9, 9, 3), np.float32), (1, 1, 5, 5), size=4)
