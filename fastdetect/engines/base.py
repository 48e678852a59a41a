"""What every inference engine takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fastdetect.errors import ShapeError, UsageError
from fastdetect.models.folder import ModelFolder

if TYPE_CHECKING:
    from torch import Tensor

    Crops = np.ndarray | Tensor
else:
    Crops = Any  # torch is not loaded for this

EngineName = Literal[
    "auto", "torch", "torch-compile", "torch-cuda-graph", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"
]
Mode = Literal["eager", "compile", "cuda-graph"]  # of torch
Precision = Literal["auto", "fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class EngineOutput:
    """Scores of B face crops, float32.

    Attributes:
        logits: [B,2], column 0 = real, 1 = fake; image_logits, residual_logits: the same of each branch.
        patch_scores: [B,gh,gw] reconstruction error of each patch, for heat maps.

    An engine of the part `verdict` inpaints nothing: its residual_logits are NaN, its patch_scores [B,0,0].
    """

    logits: np.ndarray
    image_logits: np.ndarray
    residual_logits: np.ndarray
    patch_scores: np.ndarray


class Engine(Protocol):
    """A model on one runtime, device and precision; threads may share it.

    Attributes:
        name: runtime and version; device; precision: for the result row.
        image_size: side S of the crops in pixels.
        batch_size: crops of one pass of the model; fewer cost as much, because they are padded to it.
        info: the model folder's config: preprocess contract, calibration, id, licence.
        grid: (rows, columns) of the patch scores; None: an engine of the part `verdict`, which gives none.
    """

    name: str
    device: str
    precision: str
    image_size: int
    batch_size: int
    info: ModelFolder
    grid: tuple[int, int] | None

    def run(self, crops: Crops) -> EngineOutput:
        """Score crops, uint8 RGB [B,S,S,3], B >= 0; a crop's scores do not depend on its batch.

        Crops may be a torch tensor on any device; engines on that device read them there.
        """

    def warm_up(self) -> None:
        """Run one batch of zeros, so that what a runtime does at its first run is done."""

    def close(self) -> None:
        """Free the runtime; the engine cannot run afterwards."""


class FixedBatchEngine(ABC):
    """Runs crops in batches of one size, the last one padded, so that every batch takes the same kernels."""

    name: str
    device: str
    precision: str
    image_size: int
    batch_size: int
    info: ModelFolder
    grid: tuple[int, int] | None
    _turn: AbstractContextManager[Any] = nullcontext()  # a lock, where the runtime's buffers hold one batch at a time

    def run(self, crops: Crops) -> EngineOutput:
        """Score crops.

        Args:
            crops: uint8 RGB [B,S,S,3], S = image_size, B >= 0; numpy, or torch on any device.
        Raises:
            ShapeError: another shape or dtype.
        """
        check_crops(crops, self.image_size)
        parts: list[list[np.ndarray]] = [self._nothing()]
        for start in range(0, len(crops), self.batch_size):
            some = crops[start : start + self.batch_size]
            shape = self.batch_size, *some.shape[1:]
            batch: Any = np.zeros(shape, np.uint8) if isinstance(some, np.ndarray) else some.new_zeros(shape)
            batch[: len(some)] = some
            with self._turn:
                found = self._scores(batch)
            parts.append([scores[: len(some)] for scores in found])
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        if self.grid is None:
            columns += [np.full_like(columns[0], np.nan), np.zeros((len(crops), 0, 0), np.float32)]
        return EngineOutput(*columns)

    def _nothing(self) -> list[np.ndarray]:
        """What `_scores` gives for no crop."""
        sizes = ((2,), (2,)) if self.grid is None else ((2,), (2,), (2,), self.grid)
        return [np.zeros((0, *size), np.float32) for size in sizes]

    def warm_up(self) -> None:
        """Run one batch of zeros, so that what a runtime does at its first run is done."""
        self.run(np.zeros((1, self.image_size, self.image_size, 3), np.uint8))

    @abstractmethod
    def _scores(self, batch: Crops) -> Sequence[np.ndarray]:
        """The fields of EngineOutput that the part has, in order, float32, of one full batch."""

    @abstractmethod
    def close(self) -> None:
        """Free the runtime; the engine cannot run afterwards."""


@dataclass(frozen=True)
class Profile:
    """Batch sizes that an engine is built for: it runs `best` crops a pass, and is valid from `least` to `most`."""

    name: str
    least: int
    best: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read a name of PROFILES, one batch size, or `least,best,most`; raises UsageError."""
        if text in PROFILES:
            return PROFILES[text]
        try:
            sizes = [int(part) for part in text.split(",")]
        except ValueError:
            sizes = []
        if len(sizes) == 1:
            sizes *= 3
        if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise UsageError(
                f"batch profile {text!r}: use {', '.join(PROFILES)}, a batch size, or least,best,most such as 1,16,64"
            )
        return cls(f"{sizes[0]},{sizes[1]},{sizes[2]}", *sizes)


PROFILES = {
    profile.name: profile
    for profile in (Profile("latency", 1, 1, 8), Profile("balanced", 1, 16, 64), Profile("throughput", 1, 64, 256))
}


def on_host(crops: Crops) -> np.ndarray:
    """Crops as an array; waits for the device that has them."""
    return crops if isinstance(crops, np.ndarray) else crops.cpu().numpy()


def check_crops(crops: Crops, size: int) -> None:
    """Raise ShapeError unless crops are uint8 [B,size,size,3]."""
    if not hasattr(crops, "dtype"):
        raise ShapeError(f"crops must be an array or tensor, uint8 [B,{size},{size},3], got {type(crops).__name__}")
    if str(crops.dtype).split(".")[-1] != "uint8" or crops.ndim != 4 or tuple(crops.shape[1:]) != (size, size, 3):
        raise ShapeError(
            f"crops must be uint8 [B,{size},{size},3] (RGB), got {crops.dtype} {list(crops.shape)}; "
            "cut them with fastdetect.faces.crop.crop_face"
        )
