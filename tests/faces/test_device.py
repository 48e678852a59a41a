"""Faces on a torch device: the same maps, pictures, boxes, crops and tracks as on the CPU's own path."""

import cv2
import numpy as np
import pytest
import torch

from fastdetect.errors import ShapeError
from fastdetect.faces import CenterFaceDetector, crop_face, face_quality, track
from fastdetect.faces.device import CenterFaceModule, DeviceFaceDetector, DeviceFrame, resize
from fastdetect.faces.device_crop import crop_faces, face_qualities
from fastdetect.faces.network import load_network

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def on_device(device: str) -> DeviceFaceDetector:
    return DeviceFaceDetector(device)


def frames_there(frames: list[np.ndarray], device: str) -> list[DeviceFrame]:
    return [DeviceFrame(torch.from_numpy(np.array(frame)).to(device)) for frame in frames]


def test_the_network_is_onnx_runtimes(device: str) -> None:
    blob = np.random.default_rng(0).uniform(0, 255, (1, 3, 64, 96)).astype(np.float32)
    with torch.no_grad():
        ours = CenterFaceModule().to(device)(torch.from_numpy(blob).to(device))
    for mine, theirs in zip(ours, load_network("onnxruntime")(blob), strict=True):
        assert mine.shape == theirs.shape
        assert np.abs(mine.cpu().numpy() - theirs).max() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(320, 320), (180, 320), (113, 77), (600, 800)])
def test_pictures_are_scaled_as_opencv_does(device: str, height: int, width: int) -> None:
    picture = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (431, 577, 3), np.uint8), (5, 5), 1)
    method = cv2.INTER_AREA if height < 431 or width < 577 else cv2.INTER_LINEAR
    want = cv2.resize(picture, (width, height), interpolation=method)
    got = resize(torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float(), height, width)[0]
    off = np.abs(got.round().permute(1, 2, 0).cpu().numpy() - want)
    assert off.max() <= 1
    assert (off > 0).mean() < (0.02 if method == cv2.INTER_AREA else 0.2)  # OpenCV interpolates in fixed point


def test_boxes_are_the_cpus(on_device: DeviceFaceDetector, detector: CenterFaceDetector, portrait, carphone, device):
    small = cv2.resize(portrait, (200, 200), interpolation=cv2.INTER_AREA)
    far = np.full((720, 1280, 3), 90, np.uint8)  # a face of 35 px: only the second pass sees it
    far[100:300, 900:1100] = small
    frames = [portrait, *carphone[:2], far, np.zeros((90, 160, 3), np.uint8)]
    want = detector.detect(frames)
    assert [len(faces) for faces in want] == [1, 1, 1, 1, 0]
    got = on_device.detect(frames_there(frames, device))
    assert [len(faces) for faces in got] == [1, 1, 1, 1, 0]
    for mine, theirs in zip(got[:4], want[:4], strict=True):
        assert np.abs(np.subtract(mine[0].box, theirs[0].box)).max() < 0.02 * theirs[0].side
        assert abs(mine[0].score - theirs[0].score) < 0.01
        assert np.abs(mine[0].landmarks - theirs[0].landmarks).max() < 0.02 * theirs[0].side
    assert on_device.detect([]) == []
    with pytest.raises(ShapeError, match="frame 0"):
        on_device.detect([DeviceFrame(torch.zeros(9, 9, 4, dtype=torch.uint8))])


def test_host_frames_are_taken_too(on_device: DeviceFaceDetector, portrait, device):
    assert on_device.detect([portrait])[0][0].box == on_device.detect(frames_there([portrait], device))[0][0].box


def test_many_large_frames_go_through_in_parts(on_device: DeviceFaceDetector, portrait, device, monkeypatch):
    frames = frames_there([portrait] * 5, device)
    at_once, runs, run = on_device.detect(frames), [], DeviceFaceDetector._run

    def counted(self: DeviceFaceDetector, pictures: torch.Tensor, scale: float) -> list:
        runs.append(len(pictures))
        return run(self, pictures, scale)

    monkeypatch.setattr(DeviceFaceDetector, "_run", counted)
    monkeypatch.setattr("fastdetect.faces.device.CHUNK_BYTES", 2 * 12 * portrait.shape[0] * portrait.shape[1])
    for mine, theirs in zip(on_device.detect(frames), at_once, strict=True):
        assert np.abs(np.subtract(mine[0].box, theirs[0].box)).max() < 0.01
    assert runs[:3] == [2, 2, 1]


@pytest.mark.parametrize("zoom", [0.5, 1.0, 1.4])
def test_no_frame_comes_to_the_host_but_what_the_tracker_samples(
    on_device: DeviceFaceDetector, portrait, device, monkeypatch, zoom
):
    """Of a clip at 1280 x 720 with one face of 55 to 160 pixels."""
    large = np.full((720, 1280, 3), 90, np.uint8)
    small = cv2.resize(portrait, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    large[: len(small), 300 : 300 + len(small)] = small
    frames, came = frames_there([large] * 4, device), []

    def counted(pixels: torch.Tensor) -> np.ndarray:
        came.append(pixels.numel())
        return pixels.cpu().numpy()

    monkeypatch.setattr("fastdetect.faces.device.on_host", counted)
    faces = on_device.detect(frames)
    assert came == []  # found without a pixel
    track(faces, [0.0, 0.5, 1.0, 1.5], (1280, 720), frames=frames)
    sampled = sum(came)
    there, boxes = [frame.pixels for frame in frames], [face.box for (face,) in faces]
    assert crop_faces(there, boxes, size=112).shape == (4, 112, 112, 3)
    assert len(face_qualities(there, boxes)) == 4
    assert sum(came) == sampled < 0.1 * len(frames) * large.size


def test_crops_measures_and_tracks_are_the_cpus_to_the_bit(on_device: DeviceFaceDetector, carphone, device):
    there = frames_there(carphone, device)
    faces = on_device.detect(there)
    times = [i / 2 for i in range(len(carphone))]
    size = carphone[0].shape[1], carphone[0].shape[0]
    ours, theirs = track(faces, times, size, frames=there), track(faces, times, size, frames=carphone)
    assert [(t.id, t.frames) for t in ours] == [(t.id, t.frames) for t in theirs]
    for frame, picture, found in zip(there, carphone, faces, strict=True):
        for face in found:
            assert np.array_equal(crop_face(frame, face.box, size=112), crop_face(picture, face.box, size=112))
            assert face_quality(frame, face.box) == face_quality(picture, face.box)
