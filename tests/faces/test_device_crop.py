"""Crops and measures made where the frames are: the CPU's, to one level of a pixel."""

import numpy as np
import pytest
import torch

from fastdetect.errors import ShapeError
from fastdetect.faces import crop_face, face_quality
from fastdetect.faces.device_crop import crop_faces, face_qualities

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
INSIDE, SMALL, OVER = (150.0, 60.0, 310.4, 260.7), (180.2, 90.0, 230.0, 141.5), (-40.0, -30.5, 190.0, 210.0)
CORNER = (470.0, 480.0, 560.0, 570.0)  # most of its square is outside the frame


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [64, 160, 400])
def test_crops_are_opencvs(portrait: np.ndarray, device: str, size: int) -> None:
    boxes = [INSIDE, SMALL, OVER, CORNER]
    there = torch.from_numpy(portrait.copy()).to(device)
    crops = crop_faces([there] * len(boxes), boxes, size=size)
    assert crops.device.type == device
    assert crops.is_contiguous()
    for crop, box in zip(crops.cpu().numpy(), boxes, strict=True):
        off = np.abs(crop.astype(int) - crop_face(portrait, box, size=size))
        assert off.max() <= 1
        assert (off > 0).mean() < 0.25  # OpenCV interpolates in fixed point


@pytest.mark.parametrize("device", DEVICES)
def test_a_square_of_the_very_size_is_copied(portrait: np.ndarray, device: str) -> None:
    box = (100.0, 100.0, 200.0, 200.0)
    crop = crop_faces([torch.from_numpy(portrait.copy()).to(device)], [box], size=130)[0].cpu().numpy()
    np.testing.assert_array_equal(crop, crop_face(portrait, box, size=130))


@pytest.mark.parametrize("device", DEVICES)
def test_measures_are_the_cpus(portrait: np.ndarray, device: str) -> None:
    flat = np.full_like(portrait, 77)
    frames = [portrait, portrait, portrait, flat]
    boxes = [INSIDE, SMALL, OVER, INSIDE]
    there = [torch.from_numpy(frame.copy()).to(device) for frame in frames]
    for mine, frame, box in zip(face_qualities(there, boxes), frames, boxes, strict=True):
        theirs = face_quality(frame, box)
        assert mine.face_px == theirs.face_px
        assert mine.brightness == pytest.approx(theirs.brightness, abs=0.002)
        assert mine.sharpness == pytest.approx(theirs.sharpness, rel=0.03)


def test_a_box_outside_the_frame_is_an_error(portrait: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="outside the frame"):
        crop_faces([torch.from_numpy(portrait.copy())], [(9000.0, 9000.0, 9100.0, 9100.0)], size=64)
