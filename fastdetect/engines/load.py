"""Choose and build an engine by name."""

from __future__ import annotations

import torch

from fastdetect.engines.base import Engine
from fastdetect.engines.torch_engine import Precision, TorchEngine
from fastdetect.errors import UsageError


def load_engine(
    model: str,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
) -> Engine:
    """Load a model into the engine that suits this machine.

    Args:
        model: folder, shipped name or Hub id, see `TwoBranchDetector.from_pretrained`.
        engine: `auto` or `torch`.
        device, precision, batch_size: see `TorchEngine`.
        threads: of the model on a CPU, set for the whole process; None leaves torch's own choice.
    Raises:
        UsageError: an option cannot be used.
        CheckpointError: the model cannot be loaded.
    """
    if engine not in ("auto", "torch"):
        raise UsageError(f"unknown engine {engine!r}; have: auto, torch")
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    return TorchEngine(model, device=device, precision=precision, batch_size=batch_size)
