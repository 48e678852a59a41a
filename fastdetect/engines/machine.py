"""What this machine can run a model on, found without loading torch where there is no need to."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path

_CPUS = Path("/proc/cpuinfo")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, or "max PERIOD"


def usable_cores() -> int:
    """Cores that this process may use: of its affinity, and no more than a container's share of time allows."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = map(int, _QUOTA.read_text().split())
        return max(1, min(cores, math.ceil(quota / period)))
    except (OSError, ValueError, ZeroDivisionError):  # no control group, or no quota
        return cores


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware: AMX or AVX-512 BF16."""
    if not _CPUS.is_file():
        import torch

        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(_CPUS.read_text().split())


def torch_has_gpu() -> bool:
    """Whether torch can use a GPU here; it is not asked where no driver knows of one."""
    if not (_cuda_devices() or Path("/dev/kfd").exists()):  # the latter: AMD's
        return False
    import torch

    return torch.cuda.is_available()


def _cuda_devices() -> int:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return 0 if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) else count.value
