"""CenterFace: boxes, scores and five landmarks for every frame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fastdetect.errors import ShapeError, UsageError
from fastdetect.faces.network import Runtime, load_network

DETECT_SIDE = 320
SECOND_LOOK = 2  # the second pass sees this many times more pixels a side
WEAK = 0.4  # a candidate from this share of the score threshold on asks for the second pass
MULTIPLE = 32  # the network's coarsest level
_STRIDE = 4  # input pixels per heat-map cell
_UINT8 = ("uint8", "torch.uint8")


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
        runtime: what runs the network, see `fastdetect.faces.network.load_network`.

    Attributes:
        name: detector, runtime and precision, for the result row.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        detect_side: int = DETECT_SIDE,
        score_threshold: float = 0.5,
        nms_iou: float = 0.3,
        second_pass: bool = True,
        runtime: Runtime = "onnxruntime",
    ) -> None:
        if threads < 1 or detect_side < MULTIPLE or not 0 < score_threshold < 1 or not 0 < nms_iou < 1:
            raise UsageError(
                f"threads {threads}, detect_side {detect_side}, score_threshold {score_threshold}, nms_iou {nms_iou}; "
                f"wanted threads >= 1, detect_side >= {MULTIPLE}, and the others between 0 and 1"
            )
        self.detect_side = detect_side
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.second_pass = second_pass
        self.name = self._load(runtime, threads)

    def _load(self, runtime: Runtime, threads: int) -> str:
        """Load the network; returns what runs it."""
        self._network = load_network(runtime, threads)
        return self._network.name

    def detect(self, frames: Sequence[np.ndarray]) -> list[list[Face]]:
        """Returns the faces of every frame, best score first; a frame's faces do not depend on the others.

        Args:
            frames: RGB uint8 [H, W, 3] arrays; sizes may differ.

        Raises:
            ShapeError: a frame is not such an array.
        """
        for position, frame in enumerate(frames):
            if frame.ndim != 3 or frame.shape[2] != 3 or str(frame.dtype) not in _UINT8 or 0 in frame.shape:
                got = f"frame {position} is {frame.dtype} {list(frame.shape)}"
                raise ShapeError(f"{got}; wanted RGB uint8 [H, W, 3]")
        found = [self._best(faces) for faces in self._candidates(frames, self.detect_side)]
        if self.second_pass:
            doubtful = [i for i, best in enumerate(found) if not best or best[-1].score < self.score_threshold]
            more = self._candidates([frames[i] for i in doubtful], self.detect_side * SECOND_LOOK)
            for i, faces in zip(doubtful, more, strict=True):
                found[i] = self._best(found[i] + faces)
        return [[face for face in best if face.score >= self.score_threshold] for best in found]

    @property
    def candidate_score(self) -> float:
        """From here on a cell of the heat map is a candidate."""
        return WEAK * self.score_threshold

    def _candidates(self, frames: Sequence[np.ndarray], side: int) -> list[list[Face]]:
        """Every candidate of one look at each frame, overlapping ones too."""
        return [self._look(frame, side) for frame in frames]

    def _look(self, frame: np.ndarray, side: int) -> list[Face]:
        height, width = frame.shape[:2]
        scale = side / max(height, width)
        maps = self._network(_network_input(frame, max(1, round(height * scale)), max(1, round(width * scale))))
        _, rows, columns = np.nonzero(maps[0][0] > self.candidate_score)
        cells = [m[0][:, rows, columns].T for m in maps]
        table = np.concatenate([np.stack([rows, columns], 1).astype(np.float32), *cells], axis=1)
        return self._faces(table, scale, (height, width))

    def _faces(self, table: np.ndarray, scale: float, size: tuple[int, int]) -> list[Face]:
        """Faces of a frame of this size (h, w) from rows of (row, column, heat, log size, offset, landmarks)."""
        height, width = size
        boxes, scores, landmarks = _decode(table)
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
    padded = [math.ceil(n / MULTIPLE) * MULTIPLE for n in (height, width)]
    blob = np.zeros((1, 3, *padded), np.float32)
    for channel in range(3):  # plane by plane: a third of a transposed copy's time
        blob[0, channel, :height, :width] = resized[:, :, channel]
    return blob


def _decode(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [n, 4], scores [n], landmarks [n, 5, 2] in input pixels; the table holds (y, x), the results (x, y)."""
    cells, heat, log_size, offset, points = np.split(table, [2, 3, 5, 7], axis=1)
    size = np.exp(log_size)[:, ::-1] * _STRIDE
    centre = (cells[:, ::-1] + offset[:, ::-1] + 0.5) * _STRIDE
    corner = centre - size / 2
    landmarks = points.reshape(-1, 5, 2)[:, :, ::-1] * size[:, None] + corner[:, None]
    boxes = np.concatenate([corner, corner + size], axis=1)
    return boxes, heat[:, 0], np.ascontiguousarray(landmarks)
