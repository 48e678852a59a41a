"""Inference with PyTorch, on CPU or CUDA."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastdetect.engines.base import Crops, FixedBatchEngine, Mode, Precision
from fastdetect.engines.graph import SCORERS, Scoring
from fastdetect.engines.machine import cpu_has_bf16
from fastdetect.engines.rounding import balanced_bf16
from fastdetect.engines.scorer import FaceScorer, VerdictScorer
from fastdetect.errors import EngineError, UsageError
from fastdetect.models.detector import TwoBranchDetector

Scorer = Callable[[Tensor], tuple[Tensor, ...]]


class TorchEngine(FixedBatchEngine):
    """Runs a detector in fixed batches of `batch_size`, the last one padded.

    Every batch has the same shape, so the same kernels add in the same order: a crop's scores are bit-equal
    whatever else is in the run and wherever in the batch it lies.

    Args:
        model: a detector (copied, never changed), or a name for `TwoBranchDetector.from_pretrained`.
        device: `auto` (CUDA if there is one), or what torch takes.
        precision: `bf16`, `fp16` convert the masked image model and the backbones, never the heads or the residual;
            `auto` is bf16 on GPUs and CPUs that multiply it (Ampere on; AMX, AVX-512 BF16), fp16 on older GPUs, fp32
            elsewhere. `fp32` is that: no TF32 on a GPU.
        batch_size: crops of one pass; default 16 on a CPU and 64 on CUDA.
        mode: `compile` takes torch.compile (a minute at the first run); `cuda-graph` records the kernels of one
            batch and replays them, CUDA only.
        part: `detector`, or the `verdict` alone of a model whose residual branch has no say in it.
    Raises:
        UsageError: an option cannot be used.
        EngineError: the device has no memory for the model, or its run cannot be recorded.
    """

    def __init__(
        self,
        model: TwoBranchDetector | str,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int | None = None,
        mode: Mode = "eager",
        part: Scoring = "detector",
    ) -> None:
        if part not in SCORERS:
            raise UsageError(f"part must be one of {', '.join(SCORERS)}, got {part!r}")
        if mode not in get_args(Mode):
            raise UsageError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        if precision not in get_args(Precision):
            raise UsageError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        where = _device(device)
        if precision == "auto":
            precision = best_precision(where)
        if mode == "cuda-graph" and where.type != "cuda":
            raise UsageError(f"mode 'cuda-graph' needs a CUDA device, got {where}; use 'eager' or 'compile'")
        loaded = TwoBranchDetector.from_pretrained(model) if isinstance(model, str) else copy.deepcopy(model)
        self.name = f"torch-{torch.__version__.split('+')[0]}" + ("" if mode == "eager" else f"-{mode}")
        if mode != "eager":
            self._turn = threading.Lock()  # a recorded run has fixed buffers, and one thread compiles at a time
        try:
            prepare(loaded, where, precision)
        except RuntimeError as error:
            raise EngineError(f"{self.name} cannot load the model on {where}: {_first(error)}") from error
        self.info = loaded.info
        self.device = str(where)
        self.precision = precision
        self.batch_size = batch_size or (64 if where.type == "cuda" else 16)
        self.image_size = loaded.config.image_size
        self.grid = loaded.config.mim.grid if part == "detector" else None

        def scorer(*, plain: bool) -> nn.Module:
            return (FaceScorer(loaded, plain=plain) if part == "detector" else VerdictScorer(loaded)).eval()

        self._run: Scorer | None
        if mode == "compile":
            self._run = torch.compile(scorer(plain=True), dynamic=False, fullgraph=True)
        elif mode == "cuda-graph":
            try:
                with torch.cuda.device(where):
                    self._run = _recorded(scorer(plain=False), self.batch_size, self.image_size)
            except RuntimeError as error:
                raise EngineError(f"{self.name} cannot record its run on {where}: {_first(error)}") from error
        else:
            self._run = _eager(loaded) if part == "detector" else scorer(plain=True)

    def close(self) -> None:
        """Free the model."""
        self._run = None

    @torch.inference_mode()
    def _scores(self, batch: Crops) -> list[np.ndarray]:
        if self._run is None:
            raise EngineError("this engine is closed; load it again")
        try:
            with _exact():
                found = self._run(torch.as_tensor(batch, device=self.device))
            return [scores.float().cpu().numpy() for scores in found]
        except Exception as error:  # of CUDA, or of a compiler: no type is common to them
            raise EngineError(f"{self.name} failed on {self.device}, batch {len(batch)}: {_first(error)}") from error


@contextmanager
def _exact() -> Iterator[None]:
    """cuDNN rounds what it convolves in float32 to 10 bits otherwise, and may take algorithms that add in any order."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def _first(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _eager(model: TwoBranchDetector) -> Scorer:
    def run(crops: Tensor) -> tuple[Tensor, ...]:
        out = model(crops.permute(0, 3, 1, 2))
        return out.logits, out.image_logits, out.residual_logits, out.patch_scores.unflatten(1, model.config.mim.grid)

    return run


def _recorded(scorer: nn.Module, batch_size: int, size: int) -> Scorer:
    """The scorer as one CUDA graph over fixed buffers; its device is the current one."""
    crops = torch.zeros(batch_size, size, size, 3, dtype=torch.uint8, device=next(scorer.parameters()).device)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(crops.device)
    with torch.inference_mode(), _exact():  # also the first runs: other kernels would be loaded while it records
        side.wait_stream(torch.cuda.current_stream(crops.device))
        with torch.cuda.stream(side):  # libraries choose and allocate in the first runs, which must not be recorded
            for _ in range(3):
                scorer(crops)
        torch.cuda.current_stream(crops.device).wait_stream(side)
        with torch.cuda.graph(graph):
            scores = scorer(crops)

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        crops.copy_(batch)
        graph.replay()
        return scores

    return run


def best_precision(device: torch.device) -> Literal["fp32", "fp16", "bf16"]:
    """The fastest type that a device multiplies by itself; a T4 would emulate bf16."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_has_bf16() else "fp32"


def prepare(model: TwoBranchDetector, device: torch.device, precision: str) -> TwoBranchDetector:
    """Change a detector in place for inference: eval mode, batch norm folded, moved, converted."""
    model.eval().requires_grad_(False)
    for branch, size in (
        (model.image_branch, model.config.image_size),
        (model.residual_branch, model.config.mim.size[0]),
    ):
        if not branch.selects_tokens:
            fold_batch_norm(branch.net, torch.zeros(1, 3, size, size))
            branch.net.to(memory_format=torch.channels_last)
    if precision != "fp32":
        for part in (model.mim, model.image_branch, model.residual_branch):
            if precision == "bf16":
                _balance(part)
            part.to(torch.bfloat16 if precision == "bf16" else torch.float16)
    return model.to(device)


def _balance(net: nn.Module) -> None:
    """Round the weights of a network's depthwise convolutions, which bf16 would round anyway, see `balanced_bf16`."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            rows = module.weight.detach().float().flatten(1).cpu().numpy()
            module.weight.copy_(torch.from_numpy(balanced_bf16(rows)).view_as(module.weight))


def fold_batch_norm(net: nn.Module, example: Tensor) -> int:
    """Fold every batch norm that reads a convolution's output into that convolution, in place.

    Which reads which is seen by running the example, so it holds for any network without tracing it.

    Args:
        net: in eval mode.
        example: [1,C,H,W] input.
    Returns:
        how many were folded.
    """
    made: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no id is given twice
    readers: dict[str, list[str]] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args and id(args[0]) in made:
                readers.setdefault(made[id(args[0])][0], []).append(name)

        def after(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                made[id(out)] = (name, out)

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))

    modules = dict(net.named_modules())
    for name, module in modules.items():
        if not any(module.children()) or isinstance(module, nn.BatchNorm2d):
            watch(name, module)
    with torch.no_grad():
        net(example)
    for handle in handles:
        handle.remove()
    folded = 0
    for conv_name, names in readers.items():
        conv, norm = modules[conv_name], modules[names[0]]
        if len(names) != 1 or not isinstance(norm, nn.BatchNorm2d) or not isinstance(conv, nn.Conv2d):
            continue
        _replace(net, conv_name, fuse_conv_bn_eval(conv, norm))
        # timm's norm carries its activation
        _replace(net, names[0], getattr(norm, "act", nn.Identity()))
        folded += 1
    return folded


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def _device(text: str) -> torch.device:
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {text!r} cannot be used: {str(error).splitlines()[0]}; use 'cpu'") from error
    return device
