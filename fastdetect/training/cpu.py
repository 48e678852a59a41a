"""What makes training of convolutional networks fast on CPUs."""

import ctypes

import torch
from torch import Tensor, nn

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>
_CLASSES: dict[type[nn.Conv2d], type[nn.Conv2d]] = {}


class _Float32Depthwise(nn.Conv2d):
    """A depthwise convolution that runs in float32 under bf16 autocast.

    Its bf16 backward on CPU is far slower than the float32 one, above all with a stride of 2.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(input.dtype)


def _in_float32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    return _CLASSES.setdefault(kind, type(kind.__name__, (_Float32Depthwise, kind), {}))


def depthwise(module: nn.Module) -> list[nn.Conv2d]:
    """Return a network's depthwise convolutions."""
    return [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]


def depthwise_in_float32(module: nn.Module) -> None:
    """Make a network's depthwise convolutions run in float32, in place; weights and state dict stay as they are."""
    for child in depthwise(module):
        child.__class__ = _in_float32(type(child))


def keep_freed_memory() -> bool:
    """Have the C library keep the memory that tensors free, for the whole process; returns whether it can (glibc).

    By itself it gives pieces over 32 MB back at once and asks for them anew, and every fresh page costs a fault. What
    a process holds at its peak stays about the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
