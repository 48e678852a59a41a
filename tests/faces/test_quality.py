"""face_quality: what blurs, dims or shrinks a face shows in the figure that is meant for it, and in no other."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from fastdetect.errors import ShapeError
from fastdetect.faces import face_quality

FACE = (180, 57, 269, 175)


def test_blur_lowers_sharpness_step_by_step(portrait):
    figures = [face_quality(portrait, FACE).sharpness]
    figures += [face_quality(cv2.GaussianBlur(portrait, (0, 0), s), FACE).sharpness for s in (1, 2, 4, 8)]
    assert all(blurred < 0.75 * before for before, blurred in pairwise(figures))


def test_upscaling_adds_no_sharpness(portrait):
    small = cv2.resize(portrait, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    quarter = tuple(v / 4 for v in FACE)
    assert face_quality(small, quarter).sharpness < 0.5 * face_quality(portrait, FACE).sharpness


def test_exposure_and_contrast_do_not_pass_for_blur(portrait):
    sharp = face_quality(portrait, FACE)
    dim = face_quality((portrait // 2).astype(np.uint8), FACE)
    assert dim.sharpness == pytest.approx(sharp.sharpness, rel=0.1)
    assert dim.brightness == pytest.approx(sharp.brightness / 2, abs=0.01)


def test_brightness_is_mean_luma_of_the_box():
    frame = np.zeros((100, 100, 3), np.uint8)
    frame[20:60, 30:70] = (0, 255, 0)
    assert face_quality(frame, (30, 20, 70, 60)).brightness == pytest.approx(150 / 255, abs=1e-6)
    assert face_quality(frame, (75, 70, 95, 90)).brightness == 0


def test_a_flat_face_is_not_sharp():
    rng = np.random.default_rng(0)
    flat = np.full((80, 80, 3), 60, np.uint8)
    assert face_quality(flat, (10, 10, 70, 70)).sharpness == 0
    noisy = flat + rng.integers(0, 2, (80, 80, 1), dtype=np.uint8)
    assert face_quality(noisy, (10, 10, 70, 70)).sharpness == 0


def test_face_px_is_the_longer_side_in_the_source(portrait):
    assert face_quality(portrait, (180.5, 57, 269, 175.25)).face_px == 118.25


def test_face_outside_the_frame(portrait):
    with pytest.raises(ShapeError, match="outside"):
        face_quality(portrait, (600, 600, 700, 700))
