"""What happens to videos on their way to a screener: JPEG, blur, scaling, noise, H.264, done to whole frames.

All but H.264 change the sampled frames; H.264 transcodes the whole clip first, so that its frames have the neighbours
that they are predicted from. Faces are found in the changed frames and cropped from them, as on a platform's copy: a
face that is no longer found counts against the coverage, not silently as the clean one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fastdetect.errors import MediaError, UsageError
from fastdetect.reasons import Reason


@dataclass(frozen=True)
class Kind:
    """A way to change frames: its default strengths from mild to strong, their range, and what they are."""

    values: tuple[float, ...]
    low: float
    high: float
    unit: str
    whole: bool = False


KINDS = {
    "jpeg": Kind((100, 90, 70, 50, 30), 1, 100, "quality", True),
    "blur": Kind((1, 2, 3, 4), 0.1, 50, "sigma, pixels"),
    "resize": Kind((0.75, 0.5, 0.33, 0.25), 0.02, 1, "share of the side"),
    "noise": Kind((2, 5, 10, 15), 0.1, 128, "deviation, of 255 levels"),
    "h264": Kind((23, 28, 32, 36, 40), 0, 51, "CRF", True),
}
H264_PRESET = "veryfast"


@dataclass(frozen=True)
class Condition:
    """One cell of the grid.

    Example:
        >>> str(Condition("jpeg", 50))
        'jpeg:50'
    """

    kind: str
    value: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:g}"

    def change(self, frames: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
        """Change frames, RGB uint8 [H,W,3]; `resize` makes them smaller; not for h264, which changes files.

        Args:
            frames: in order of time.
            seed: of the noise.
        """
        if self.kind == "noise":
            rng = np.random.default_rng(seed)
            return [_noisy(frame, self.value, rng) for frame in frames]
        return [_CHANGES[self.kind](frame, self.value) for frame in frames]


def parse_conditions(texts: Iterable[str]) -> list[Condition]:
    """Read `all`, a kind such as `jpeg`, or a kind with strengths such as `h264:23,40`; several may be given.

    Raises:
        UsageError: an unknown kind, or a strength outside its range.
    """
    found: dict[Condition, None] = {}
    for text in texts:
        kind, colon, numbers = text.partition(":")
        kinds = list(KINDS) if text == "all" else [kind]
        if kinds[0] not in KINDS:
            raise UsageError(f"no robustness test {kind!r}; there are all, {', '.join(KINDS)}, such as h264:23,40")
        for name in kinds:
            values = _numbers(text, numbers, KINDS[name]) if colon else KINDS[name].values
            found |= dict.fromkeys(Condition(name, value) for value in values)
    return list(found)


def _numbers(text: str, numbers: str, kind: Kind) -> list[float]:
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    fit = all(kind.low <= value <= kind.high and (not kind.whole or value == int(value)) for value in values)
    if not values or not fit:
        numbers = "whole numbers" if kind.whole else "numbers"
        raise UsageError(f"robustness test {text!r}: wanted {kind.unit}, {numbers} {kind.low:g} to {kind.high:g}")
    return values


def _jpeg(frame: np.ndarray, quality: float) -> np.ndarray:
    done, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    back = cv2.imdecode(data, cv2.IMREAD_COLOR) if done else None
    if back is None:
        raise MediaError(Reason.CRASH, f"a frame of {frame.shape[1]}x{frame.shape[0]} cannot be encoded as JPEG")
    return np.ascontiguousarray(back[..., ::-1])


def _blur(frame: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(frame, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _resize(frame: np.ndarray, factor: float) -> np.ndarray:
    size = tuple(max(1, round(side * factor)) for side in frame.shape[1::-1])
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _noisy(frame: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(frame.shape, np.float32) * deviation
    return np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)


_CHANGES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {"jpeg": _jpeg, "blur": _blur, "resize": _resize}
