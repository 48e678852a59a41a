"""Peak extra memory of a call: the allocator's on CUDA, resident memory as the kernel counts it on a CPU."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from fastdetect.ops import release_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _trim() -> None:
    """Hand freed heap memory back, so that a call cannot use it unseen; what fastdetect's ops keep, too."""
    gc.collect()
    release_memory()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def extra_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes at the peak of a call beyond those before it, results included; None where the system does not say."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _trim()
    try:
        _CLEAR.write_text("5")  # resets the peak, VmHWM
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, StopIteration):
        return None
