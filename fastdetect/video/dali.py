"""Decode many clips at once with NVIDIA DALI, on the GPU (NVDEC) or the CPU, to the frames that PyAV would give.

The timeline and the choice of frames are PyAV's; DALI gets the file's bytes and a list of frame numbers. Each batch
has a time limit, and every clip brings a proof: a keyframe that PyAV decoded too. DALI has been seen to put frames of
one clip into another's sequence and to hang on variable frame rates; neither may cost more than a second try.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from fastdetect.errors import MediaError, MissingDependencyError
from fastdetect.reasons import Reason
from fastdetect.video.colours import BT709, FROM_601_TO_709
from fastdetect.video.planned import BATCH_FILES, TIMEOUT_S, Plan, PlannedDecoder

PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
SINCE = (2, 4)  # the operators below are used as this version has them
INSTALL = "pip install 'fastdetect[gpu]'"


def installed() -> str | None:
    """The version of DALI that is installed and new enough, without importing it."""
    for package in PACKAGES:
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if tuple(map(int, found.split(".")[:2])) >= SINCE:
            return found
    return None


def lack() -> str:
    """What to say where `installed` gives None."""
    return f"{PACKAGES[0]} {'.'.join(map(str, SINCE))} or newer is not installed; {INSTALL}"


class DaliDecoder(PlannedDecoder):
    """Decodes clips in batches; build it once and reuse it, also after errors. Not for several threads at once.

    Args:
        device: CUDA device number for NVDEC; None decodes on the CPU (VP8, VP9 and MJPEG only).
        threads: of the CPU decoder, or those that feed NVDEC.
        batch: files per batch.
        timeout_s: wall-clock seconds for one batch.
        keep: leave the frames on the device: `Frame.rgb` is a torch tensor there, and not a numpy array.

    Raises:
        MissingDependencyError: DALI is not installed, or older than SINCE.
    """

    title = "DALI"

    def __init__(
        self,
        device: int | None = None,
        *,
        threads: int = 1,
        batch: int = BATCH_FILES,
        timeout_s: float = TIMEOUT_S,
        keep: bool = False,
    ) -> None:
        found = installed()
        if found is None:
            raise MissingDependencyError(f"DALI cannot be used: {lack()}")
        self.name = f"dali-{found}/{'cpu' if device is None else 'nvdec'}"
        self.device, self.threads, self.batch, self.timeout_s, self.keep = device, threads, batch, timeout_s, keep
        self._pipelines: dict[bool, Any] = {}

    def close(self) -> None:
        """Free the pipelines; the decoder can be used again."""
        self._pipelines.clear()

    def _stacks(self, plans: Sequence[Plan]) -> list[Any]:
        pipeline = self._pipeline(plans[0].info.colour_matrix == BT709)
        pipeline.feed_input("encoded", [np.fromfile(plan.info.path, dtype=np.uint8) for plan in plans])
        pipeline.feed_input("frames", [plan.asked.astype(np.int32) for plan in plans])
        pipeline.feed_input("number", [np.array([i], dtype=np.int32) for i in range(len(plans))])
        videos, numbers = pipeline.run()
        if [int(numbers.at(i)[0]) for i in range(len(numbers))] != list(range(len(plans))):
            raise MediaError(Reason.DECODE_ERROR, "it gave another batch than was asked for")
        return self._copies(videos, len(plans))

    def _copies(self, videos: Any, count: int) -> list[Any]:
        """Each clip's frames [F, H, W, 3]; copied, because DALI uses its buffer again."""
        if self.keep:
            import torch

            return [torch.from_dlpack(videos[i]).clone() for i in range(count)]
        videos = videos if self.device is None else videos.as_cpu()
        return [np.array(videos.at(i)) for i in range(count)]

    def _pipeline(self, convert: bool) -> Any:
        if convert not in self._pipelines:
            self._pipelines[convert] = _build(self.device, self.threads, self.batch, convert)
        return self._pipelines[convert]


def _build(device: int | None, threads: int, batch: int, convert: bool) -> Any:
    """A pipeline from bytes and frame numbers to RGB [F, H, W, 3]; convert: from BT.601's matrix to BT.709's."""
    from nvidia.dali import Pipeline, fn
    from nvidia.dali.types import DALIDataType

    pipeline = Pipeline(
        batch_size=batch, num_threads=threads, device_id=device, prefetch_queue_depth=1, exec_dynamic=True
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=DALIDataType.UINT8, ndim=1)
        frames = fn.external_source(name="frames", dtype=DALIDataType.INT32, ndim=1)
        number = fn.external_source(name="number", dtype=DALIDataType.INT32, ndim=1)
        # 'none': a frame past the end is an error, where the default pads with black
        # not affine: every process would tie its thread to the same core
        kind = "cpu" if device is None else "mixed"
        video = fn.decoders.video(encoded, frames=frames, pad_mode="none", device=kind, affine=False)
        if convert:  # DALI knows the matrix of BT.601 alone
            video = fn.coord_transform(video, M=FROM_601_TO_709.ravel().tolist(), dtype=DALIDataType.UINT8)
        pipeline.set_outputs(video, number)
    pipeline.build()
    return pipeline
