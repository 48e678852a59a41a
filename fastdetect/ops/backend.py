"""Which implementation an op takes: fused (C++ on CPU, Triton on CUDA) or the eager truth of reference.py."""

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastdetect.errors import ShapeError, UsageError

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
LIBRARY = Path(__file__).parents[1] / "_ops_cpu.so"
CUDA_LIBRARY = Path(__file__).parents[1] / "_ops_cuda.so"


def constant(decides: FunctionT) -> FunctionT:
    """What torch.compiler.assume_constant_result does, without importing the compiler: that took 0.8 s of every import
    of fastdetect.ops, and put TORCHINDUCTOR_CACHE_DIR into the environment.
    """
    decides._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return decides


def backend() -> str:
    """FASTDETECT_BACKEND: `auto` (default: fused where there is a kernel) or `reference` (eager torch).

    Raises:
        UsageError: any other value.
    """
    value = os.environ.get("FASTDETECT_BACKEND", "auto")
    if value not in ("auto", "reference"):
        raise UsageError(f"FASTDETECT_BACKEND: got {value!r}, want 'auto' or 'reference'")
    return value


def by_reference() -> bool:
    """Whether the reference is forced, or wanted by torch.func or forward-mode AD, which cannot see through our ops."""
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return transformed or backend() == "reference"


def no_autocast(device_type: str) -> contextlib.AbstractContextManager[None]:
    """Switches autocast off; nothing is entered (10 us) where none is on or the device knows none (meta)."""
    on = device_type != "meta" and torch.is_autocast_enabled(device_type)  # torch 2.11 traces no is_autocast_available
    return torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext()


def check_tensors(**given: Tensor) -> None:
    """Refuse arguments that are no tensors; raises ShapeError."""
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise ShapeError(f"{name}: got {type(value).__name__}, want a torch.Tensor")


def is_integer(value: object) -> bool:
    """Whether an argument is an integer: of Python, NumPy or symbolic."""
    return torch.compiler.is_compiling() or hasattr(value, "__index__")  # torch 2.11 traces no hasattr of a symbol


def check_constants(**given: float | None) -> None:
    """Refuse numbers that are to be learnt, for whose gradient there is no formula here; raises UsageError."""
    for name, value in given.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise UsageError(f"{name} requires a gradient, which the loss does not have: pass a number")


@functools.cache
def load_cpu_library() -> bool:
    """Load the C++ ops; where they are missing or do not load, warn once and say no."""
    try:
        if not LIBRARY.is_file():
            raise OSError("the file does not exist")
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        warnings.warn(
            f"fastdetect's C++ ops are not available ({LIBRARY.name}: {error}), so CPU tensors take plain torch, "
            "many times slower; build them with `pip install --no-build-isolation .` (editable: `-e .`) once torch "
            "is installed",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def release_memory() -> int:
    """Give back the memory that the CPU ops keep of their last two freed results of 32 MB and more.

    They keep it since a training step wants the same sizes again, and the kernel may take it where memory gets short;
    so nothing needs this but to see what a program really uses.

    Returns:
        bytes given back.
    """
    return int(torch.ops.fastdetect_cpu.release_pages()) if load_cpu_library() else 0


@functools.cache
def load_cuda_library() -> bool:
    """Load the C++/CUDA ops of positive synthesis; where they are missing or not for this GPU, warn once and say no."""
    try:
        if not CUDA_LIBRARY.is_file():
            raise OSError("the file does not exist")
        torch.ops.load_library(str(CUDA_LIBRARY))
        if not torch.ops.fastdetect_cuda.runs_here():
            raise OSError("it has no code for this GPU")
    except OSError as error:
        warnings.warn(
            f"fastdetect's CUDA ops are not available ({CUDA_LIBRARY.name}: {error}), so positive synthesis on CUDA "
            "tensors takes plain torch, several times slower; build them where nvcc is installed with "
            "`FASTDETECT_CUDA=ON pip install --no-build-isolation .`",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


@functools.cache
def triton_available() -> bool:
    """Whether Triton can be imported; warns once where it cannot, since that is a slow path on CUDA."""
    if importlib.util.find_spec("triton") is None:
        warnings.warn(
            "triton is not installed, so fastdetect's ops on CUDA tensors take plain torch, many times slower: "
            "install the triton that your torch names (torch's CUDA builds bring it)",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


@functools.cache
def tiles_fit(device: torch.device) -> bool:
    """Whether a GPU holds the contrastive kernels' tiles of bfloat16 and float16; warns once where it does not."""
    if torch.cuda.get_device_capability(device) >= (8, 0):
        return True
    warnings.warn(
        f"the contrastive kernels want GPUs from Ampere on for bfloat16 and float16, and {device} is older: plain "
        "torch is used in row chunks, several times slower; pass float32 features",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


@functools.cache
def _warn_row_too_long(length: int, limit: int) -> None:
    warnings.warn(
        f"a patch of {length} values is longer than the CUDA kernels hold ({limit}); plain torch is used, many "
        "times slower: use a smaller patch_size",
        RuntimeWarning,
        stacklevel=2,
    )


# Longest patch (P * P * C) that a Triton program holds in registers: 32 values a thread at 8 warps; at twice that the
# residual kernel spills.
MAX_CUDA_PATCH = 8192


@constant
def _available(device_type: str) -> bool:
    return load_cpu_library() if device_type == "cpu" else triton_available()


def fused(pred: Tensor, images: Tensor, length: int) -> bool:
    """Whether the fused kernels take these tensors: CPU or CUDA, not float64, patch rows that fit."""
    if by_reference() or torch.float64 in (pred.dtype, images.dtype):
        return False
    if pred.device.type == "cuda" and length > MAX_CUDA_PATCH:
        _warn_row_too_long(length, MAX_CUDA_PATCH)
        return False
    return pred.device.type in ("cpu", "cuda") and _available(pred.device.type)


@constant
def _synthesis_library(device_type: str) -> bool:
    return load_cpu_library() if device_type == "cpu" else load_cuda_library()


def traced(*tensors: Tensor | None) -> bool:
    """Whether an op must go through the dispatcher: a tracer, a mode or a tensor subclass has to see it.

    Otherwise it is called directly: the Python layers around a registered op cost as much as a batch of 256.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors if tensor is not None)


def readable(*tensors: Tensor | None) -> bool:
    """Whether the host may look at the values: on the CPU, seen by no tracer, not batched by torch.vmap."""
    given = [tensor for tensor in tensors if tensor is not None]
    return all(t.device.type == "cpu" for t in given) and not traced(*given) and not any(map(batched, given))


def batched(tensor: Tensor) -> bool:
    """Whether torch.vmap, or `is_grads_batched` of torch.autograd.grad, stands behind a tensor."""
    functorch = torch._C._functorch
    if functorch.is_legacy_batchedtensor(tensor):  # is_grads_batched makes these
        return True
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def fused_synthesis(z: Tensor, center: Tensor | None) -> bool:
    """Whether the C++ core of positive synthesis takes these tensors: CPU or CUDA, not float64."""
    if by_reference() or torch.float64 in (z.dtype, z.dtype if center is None else center.dtype):
        return False
    return z.device.type in ("cpu", "cuda") and _synthesis_library(z.device.type)
