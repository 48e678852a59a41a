"""Which frames of a clip are looked at: policies that turn a clip's timeline into frame positions."""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fastdetect.errors import UsageError

Kind = Literal["uniform", "fps", "keyframes", "all"]
_FORMS = "uniform:N (N >= 1), fps:X (X > 0), keyframes or all"
_HIGHEST = {"uniform": 100_000, "fps": 1_000}
_TICK = 1e-6  # seconds; targets that fall on a frame's own timestamp must not slip to the frame before it


@dataclass(frozen=True)
class SamplingPolicy:
    """How frames are picked from a clip.

    Args:
        kind: 'uniform' (value = number of frames), 'fps' (value = frames per second), 'keyframes' or 'all'.
        value: number for 'uniform' and 'fps', None for the others.

    Example:
        >>> SamplingPolicy.parse("uniform:4").times(0.0, 2.0)
        [0.25, 0.75, 1.25, 1.75]
    """

    kind: Kind = "uniform"
    value: float | None = 16.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"unknown sampling policy {self.kind!r}; use {_FORMS}")
        if self.kind in ("keyframes", "all"):
            if self.value is not None:
                raise UsageError(f"sampling policy {self.kind!r} takes no number, got {self.value}; use {_FORMS}")
        elif self.value is None or not math.isfinite(self.value) or self.value <= 0:
            raise UsageError(f"sampling policy {self.kind!r} needs a number above 0, got {self.value}; use {_FORMS}")
        elif self.kind == "uniform" and self.value != int(self.value):
            raise UsageError(f"uniform:N needs a whole number of frames, got {self.value}")
        elif self.value > _HIGHEST[self.kind]:
            raise UsageError(
                f"sampling policy {self} is over {self.kind}:{_HIGHEST[self.kind]}; use 'all' for every frame"
            )

    @classmethod
    def parse(cls, text: str) -> "SamplingPolicy":
        """Read 'uniform:16', 'uniform' (16 frames), 'fps:2', 'keyframes' or 'all'.

        Raises:
            UsageError: for anything else.
        """
        if text in ("uniform", "keyframes", "all"):
            return cls(text, 16.0 if text == "uniform" else None)  # type: ignore[arg-type]
        match = re.fullmatch(r"(?:(uniform):(\d{1,9})|(fps):(\d{1,9}(?:\.\d{1,9})?))", text, re.ASCII)
        if match is None:
            raise UsageError(f"cannot read sampling policy {text!r}; use {_FORMS}")
        kind, number = (match[1], match[2]) if match[1] else (match[3], match[4])
        return cls(kind, float(number))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}:{self.value:.12g}"

    def times(self, start_s: float, duration_s: float, max_seconds: float | None = None) -> list[float] | None:
        """Give the instants at which a clip is looked at; None where the policy does not go by time.

        Args:
            start_s: time of the first frame, in seconds.
            duration_s: length from the start of the first frame to the end of the last, in seconds.
            max_seconds: look at no more than this much of the clip's beginning.
        """
        targets = self._targets(duration_s if max_seconds is None else min(duration_s, max_seconds))
        return None if targets is None else (start_s + targets).tolist()

    def _targets(self, length_s: float) -> np.ndarray | None:
        if self.value is None:
            return None
        if self.kind == "uniform":
            return (np.arange(int(self.value)) + 0.5) * (length_s / self.value)
        return np.arange(max(1, math.ceil(length_s * self.value - _TICK))) / self.value


DEFAULT_POLICY = SamplingPolicy()


def check_max_seconds(max_seconds: float | None) -> None:
    """Refuse a limit that leaves nothing to look at.

    Raises:
        UsageError: unless it is None or a finite number above 0.
    """
    if max_seconds is not None and not (math.isfinite(max_seconds) and max_seconds > 0):
        raise UsageError(f"max_seconds must be above 0 and finite, got {max_seconds}")


def pick_frames(
    policy: SamplingPolicy,
    times_s: np.ndarray,  # [N] float64, increasing, from the first frame
    keyframes: np.ndarray,  # [N] bool
    end_s: float,
    max_seconds: float | None = None,
) -> np.ndarray:
    """Choose frames from a timeline: for each target time the frame that is shown then, each frame once.

    Args:
        policy: what to pick.
        times_s: when each frame appears, float64 [N], increasing, first 0.
        keyframes: which frames are keyframes, bool [N].
        end_s: when the last frame ends.
        max_seconds: use only frames that appear before this time.

    Returns:
        int64 positions in the timeline, increasing, without duplicates.
    """
    usable = len(times_s) if max_seconds is None else int(np.searchsorted(times_s, max_seconds - _TICK, side="left"))
    targets = policy._targets(end_s if max_seconds is None else min(end_s, max_seconds))
    if targets is None:
        chosen = np.flatnonzero(keyframes[:usable]) if policy.kind == "keyframes" else np.arange(usable)
    else:
        shown = np.searchsorted(times_s[:usable], targets + _TICK, side="right") - 1
        chosen = np.unique(np.maximum(shown, 0))
    return chosen.astype(np.int64)
