"""PyNvVideoCodec: NVDEC without DALI, one file after the other, behind the same interface.

Its module does not import without NVIDIA's driver, so what is here beside `PlannedDecoder` is kept to the calls that
only a GPU can run.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastdetect.errors import MissingDependencyError
from fastdetect.video.colours import nv12_to_rgb
from fastdetect.video.planned import BATCH_FILES, TIMEOUT_S, Plan, PlannedDecoder

PACKAGE = "PyNvVideoCodec"
INSTALL = f"pip install {PACKAGE}"


def installed() -> str | None:
    """The version of PyNvVideoCodec that is installed, without importing it."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


class NvCodecDecoder(PlannedDecoder):
    """Decodes on NVDEC with `SimpleDecoder`, which is kept and given one file after the other.

    Args:
        device: CUDA device number.
        batch: files per batch: one time limit and one retry for all of them.
        timeout_s: wall-clock seconds for one batch.
        keep: see `PlannedDecoder`.

    Raises:
        MissingDependencyError: it is not installed, or finds no driver.
    """

    title = PACKAGE

    def __init__(
        self, device: int = 0, *, batch: int = BATCH_FILES, timeout_s: float = TIMEOUT_S, keep: bool = False
    ) -> None:
        self._module = load()
        self.name = f"nvcodec-{installed()}/nvdec"
        self.device, self.batch, self.timeout_s, self.keep = device, batch, timeout_s, keep
        self._decoder: Any = None

    def close(self) -> None:
        """Free the decoder; it is made anew when it is needed."""
        self._decoder = None

    def _stacks(self, plans: Sequence[Plan]) -> list[Any]:
        import torch

        stacks = []
        for plan in plans:
            if self._decoder is None:
                self._decoder = self._module.SimpleDecoder(
                    plan.info.path,
                    gpu_id=self.device,
                    use_device_memory=True,
                    output_color_type=self._module.OutputColorType.NATIVE,  # its RGB is by a matrix of its own choice
                )
            else:
                self._decoder.reconfigure_decoder(plan.info.path)
            frames = self._decoder.get_batch_frames_by_index(plan.asked.tolist())
            stack = torch.stack([torch.from_dlpack(frame) for frame in frames])  # a copy: its surfaces are used again
            if stack.dim() != 3:
                raise ValueError(f"it gave frames of shape {list(stack.shape[1:])}, not NV12's [H * 3 / 2, W]")
            stack = nv12_to_rgb(stack, plan.info.colour_matrix, plan.info.full_range)
            if stack.is_cuda:  # the next file's frames may be decoded into the same surfaces, on another stream
                torch.cuda.current_stream(stack.device).synchronize()
            stacks.append(stack if self.keep else stack.cpu().numpy())
        return stacks


def load() -> Any:
    """Import PyNvVideoCodec; MissingDependencyError where it or NVIDIA's driver is missing."""
    try:
        import PyNvVideoCodec
    except (ImportError, OSError, RuntimeError) as error:  # the last two without NVIDIA's driver
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingDependencyError(
            f"decoding with {PACKAGE} needs it and NVIDIA's driver ({why}); {INSTALL}, or use --decoder auto"
        ) from error
    return PyNvVideoCodec
