"""Inference with PyTorch, on CPU or CUDA."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastdetect.engines.base import EngineOutput, check_crops
from fastdetect.errors import UsageError
from fastdetect.models.detector import TwoBranchDetector

Precision = Literal["auto", "fp32", "bf16"]


class TorchEngine:
    """Runs a detector in fixed batches of `batch_size`, the last one padded.

    Every batch has the same shape, so the same kernels add in the same order: a crop's scores are bit-equal
    whatever else is in the run and wherever in the batch it lies.

    Args:
        model: a detector (copied, never changed), or a name for `TwoBranchDetector.from_pretrained`.
        device: `auto` (CUDA if there is one), or what torch takes.
        precision: `bf16` converts the masked image model and the backbones, never the heads or the residual;
            `auto` is bf16 on CUDA and on CPUs with AMX, where it is faster, and fp32 elsewhere.
        batch_size: crops of one pass; default 16 on a CPU and 64 on CUDA.
    """

    def __init__(
        self,
        model: TwoBranchDetector | str,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int | None = None,
    ) -> None:
        if precision not in get_args(Precision):
            raise UsageError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        where = _device(device)
        if precision == "auto":
            precision = "bf16" if where.type == "cuda" or cpu_has_amx() else "fp32"
        loaded = TwoBranchDetector.from_pretrained(model) if isinstance(model, str) else copy.deepcopy(model)
        self._model = prepare(loaded, where, precision)
        self.info = loaded.info
        self.name = f"torch-{torch.__version__.split('+')[0]}"
        self.device = str(where)
        self.precision: str = precision
        self.batch_size = batch_size or (64 if where.type == "cuda" else 16)
        self.image_size = loaded.config.image_size
        self._grid = loaded.config.mim.grid

    def run(self, crops: np.ndarray) -> EngineOutput:
        """Score crops.

        Args:
            crops: uint8 RGB [B,S,S,3], S = image_size, B >= 0.
        Raises:
            ShapeError: another shape or dtype.
        """
        check_crops(crops, self.image_size)
        parts = [self._run(crops[i : i + self.batch_size]) for i in range(0, len(crops), self.batch_size)]
        if not parts:
            none = np.zeros((0, 2), np.float32)
            return EngineOutput(none, none.copy(), none.copy(), np.zeros((0, *self._grid), np.float32))
        logits, image, residual, patches = (np.concatenate(column) for column in zip(*parts, strict=True))
        return EngineOutput(logits, image, residual, patches.reshape(-1, *self._grid))

    def close(self) -> None:
        """Free the model."""
        del self._model

    @torch.inference_mode()
    def _run(self, crops: np.ndarray) -> tuple[np.ndarray, ...]:
        batch = np.zeros((self.batch_size, *crops.shape[1:]), np.uint8)
        batch[: len(crops)] = crops
        images = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2)
        out = self._model(images)
        wanted = (out.logits, out.image_logits, out.residual_logits, out.patch_scores)
        return tuple(t[: len(crops)].float().cpu().numpy() for t in wanted)


def cpu_has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in AMX tiles."""
    return bool(torch.cpu._is_amx_tile_supported())


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
    if precision == "bf16":
        for part in (model.mim, model.image_branch, model.residual_branch):
            part.bfloat16()
    return model.to(device)


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
