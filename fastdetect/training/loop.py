"""What every training loop needs: a budget, a schedule, averaged weights, states that a run goes on from."""

import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdetect.errors import CheckpointError, UsageError


class Budget:
    """How far a run is, by steps or by minutes of its own time.

    Args:
        steps, minutes: the budget; exactly one of them.
    """

    def __init__(self, steps: int | None, minutes: float | None) -> None:
        if (steps is None) == (minutes is None):
            raise UsageError(f"give steps or minutes, one of them; got steps={steps}, minutes={minutes}")
        self.steps, self.limit = steps, minutes
        self.before = 0.0  # minutes of the runs that this one goes on from
        self.started = time.monotonic()

    def minutes(self) -> float:
        """Minutes spent so far, earlier runs included."""
        return self.before + (time.monotonic() - self.started) / 60

    def share(self, step: int) -> float:
        """Share of the budget that is spent, in [0, 1]; a budget in minutes does not look at `step`."""
        done = step / self.steps if self.steps else self.minutes() / (self.limit or 1)
        return min(1.0, done)

    def spent(self, step: int) -> bool:
        return self.share(step) >= 1


def cosine(share: float, warmup: float) -> float:
    """Factor on the learning rate: linear from 0 over `warmup`, then half a cosine down to 0.01."""
    if share < warmup:
        return share / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move averaged weights and buffers towards a model's: average = decay * average + (1 - decay) * model."""
    for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs.detach(), 1 - decay)
        else:
            mine.copy_(theirs)


def pick_device(name: str) -> torch.device:
    """Return the device of "auto", "cpu" or "cuda"; UsageError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("device=cuda, but torch sees no GPU; use device=auto or install a CUDA build and driver")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device={name!r}: {error}") from error


@dataclass
class Progress:
    """How far a run is: what `state.pt` holds beside weights and optimiser.

    Attributes:
        step: steps done.
        loss: running mean of the loss, None before the first step.
        best: best validation so far; stale: validations since.
    """

    step: int = 0
    loss: float | None = None
    best: float | None = None
    stale: int = 0


def save_state(
    path: Path,
    progress: Progress,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    budget: Budget,
) -> None:
    """Write what `load_state` goes on from; the old file is replaced at once, never half-written."""
    state: dict[str, Any] = asdict(progress) | {
        "model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
        "minutes": budget.minutes(),
    }  # fmt: skip
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, budget: Budget
) -> Progress:
    """Put a run's state back and return how far it was.

    Raises:
        CheckpointError: no state, a damaged one, or one of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        budget.before = state["minutes"]
        return Progress(**{field.name: state[field.name] for field in fields(Progress) if field.name in state})
    except Exception as error:  # a damaged pickle raises anything
        what = str(error).partition("\n")[0] or "it ends too early"
        raise CheckpointError(
            f"cannot go on from {path}: {what}; it is damaged or of another model: delete it to begin anew"
        ) from error
