"""Faces on a torch device: the same maps, pictures, boxes, crops and tracks as on the CPU's own path."""

import cv2
import numpy as np
import pytest
import torch

from fastdetect.errors import ShapeError
from fastdetect.faces import CenterFaceDetector, track
from fastdetect.faces.colours import colours
from fastdetect.faces.device import CenterFaceModule, DeviceFaceDetector, resize
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


def frames_there(frames: list[np.ndarray], device: str) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(frame)).to(device) for frame in frames]


def test_the_network_is_onnx_runtimes(device: str) -> None:
    blob = np.random.default_rng(0).uniform(0, 255, (1, 3, 64, 96)).astype(np.float32)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as the detector runs it
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
        on_device.detect([torch.zeros(9, 9, 4, dtype=torch.uint8)])
    with pytest.raises(ShapeError, match=r"torch\.float32"):
        on_device.detect([torch.zeros(9, 9, 3)])


def test_host_frames_are_taken_too(on_device: DeviceFaceDetector, portrait, device):
    assert on_device.detect([portrait])[0][0].box == on_device.detect(frames_there([portrait], device))[0][0].box


def test_convolutions_are_exact_and_the_same_in_every_run(on_device: DeviceFaceDetector, portrait, monkeypatch):
    seen, forward = [], CenterFaceModule.forward

    def look(self: CenterFaceModule, images: torch.Tensor) -> list[torch.Tensor]:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic))
        return forward(self, images)

    monkeypatch.setattr(CenterFaceModule, "forward", look)
    on_device.detect([portrait])
    assert set(seen) == {(False, True)}


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
def test_of_frames_the_host_gets_boxes_measures_and_mean_colours(
    on_device: DeviceFaceDetector, portrait, device, monkeypatch, zoom
):
    """Of a clip at 1280 x 720 with one face of 55 to 160 pixels: what `Tensor.numpy` and `tolist` hand out."""
    large = np.full((720, 1280, 3), 90, np.uint8)
    small = cv2.resize(portrait, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    large[: len(small), 300 : 300 + len(small)] = small
    frames, came = frames_there([large] * 4, device), []

    for name in ("numpy", "tolist", "__array__", "item"):
        real = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, *args, real=real, **options):
            came.append(self.nbytes)
            return real(self, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    faces = on_device.detect(frames)
    assert [len(found) for found in faces] == [1] * 4
    assert sum(came) < 4 * 4000  # a table of candidates
    came.clear()
    [only] = track(faces, [0.0, 0.5, 1.0, 1.5], (1280, 720), frames=frames)
    assert len(only.faces) == 4
    boxes = [face.box for face in only.faces]
    assert crop_faces(frames, boxes, size=112).shape == (4, 112, 112, 3)
    assert len(face_qualities(frames, boxes)) == 4
    assert 0 < sum(came) <= 4 * (8 * 8 + 2 * 4 * 4) * 3 * 4 + 4 * 3 * 4  # colours of cells, three measures a face


def test_colours_are_opencvs(device: str, carphone, portrait) -> None:
    """Over pictures of several sizes, with faces at their edges; limits of the tracker are 6.5 and more."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 333, 3), np.uint8)
    cube = np.stack(np.meshgrid(*[np.arange(0, 256, 8, np.uint8)] * 3), -1).reshape(128, 256, 3)  # every kind of colour
    frames = [*carphone[:2], portrait, noise, cube, cv2.resize(portrait, (30, 30))]
    boxes = [[(40.0, 20.0, 110.5, 120.0)], [], [(180.0, 57.0, 269.0, 175.0), (-20.0, 300.0, 480.0, 900.0)]]
    boxes += [[(3.0, 5.0, 150.0, 190.0)], [(100.0, 10.0, 160.0, 90.0)], [(5.0, 5.0, 20.0, 25.0)]]
    for mine, theirs in zip(colours(frames_there(frames, device), boxes), colours(frames, boxes), strict=True):
        assert len(mine.faces) == len(theirs.faces)
        for a, b in zip([mine.picture, *mine.faces], [theirs.picture, *theirs.faces], strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype == np.float32
            assert np.abs(a - b).max() < 0.6  # OpenCV interpolates in a table of 33 x 33 x 33 colours
            assert np.abs(a - b).mean() < 0.2


def test_tracks_are_the_cpus(on_device: DeviceFaceDetector, carphone, portrait, device):
    """Through a cut, and a person who comes back after it as somebody else."""
    other = cv2.resize(portrait[:, :], (carphone[0].shape[1], carphone[0].shape[0]))
    frames = [*carphone[:4], other, other, *carphone[4:]]
    there = frames_there(frames, device)
    faces = on_device.detect(there)
    times = [i / 2 for i in range(len(frames))]
    size = carphone[0].shape[1], carphone[0].shape[0]
    ours, theirs = track(faces, times, size, frames=there), track(faces, times, size, frames=frames)
    assert [(t.id, t.frames) for t in ours] == [(t.id, t.frames) for t in theirs]
    assert len(ours) == 3
    assert len(track(faces, times, size)) < 3  # by place and size alone it would not be seen
