"""The loop of every run: pieces, ranks, averaged weights, validations, early stop, states to go on from."""

import copy
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn

from fastdetect import config as configuration
from fastdetect.data.pairs import batch_seed
from fastdetect.engines.machine import cpu_has_bf16
from fastdetect.errors import UsageError
from fastdetect.training.cpu import keep_freed_memory
from fastdetect.training.distributed import Ranks
from fastdetect.training.log import RunLog
from fastdetect.training.loop import Budget, Progress, cosine, ema_update, load_state, save_state
from fastdetect.training.settings import RunSettings, changes

CONFIG, STATE = "config.yaml", "state.pt"  # of a run's folder
Settings = TypeVar("Settings", bound=RunSettings)


@dataclass
class Task:
    """What a loop trains.

    Attributes:
        objective: module that gives a piece's loss; kept: module whose state is saved; model: whose weights are
            averaged and measured.
        optimizer, rate: and its highest learning rate.
        batches: endless pieces, see `fastdetect.data.pairs.Pieces`.
        prepare: (piece, step, number of the piece) -> the objective's arguments.
        measure: averaged model -> figures of a validation; the first one is `patience`'s and `keep`'s.
        rising: whether more of it is better.
        save: writes the averaged model's folder.
        show: called after a validation with the averaged model, the log and the step.
        held: modules that stay in eval mode; clip: largest norm of the gradient.
        warnings: what the log says first.
    """

    objective: nn.Module
    kept: nn.Module
    model: nn.Module
    average: Any
    optimizer: torch.optim.Optimizer
    rate: float
    batches: Callable[[int], Iterator[Any]]
    prepare: Callable[[Any, int, int], tuple[Any, ...]]
    measure: Callable[[Any], dict[str, float]]
    rising: bool
    save: Callable[[Any], object]
    show: Callable[[Any, RunLog, int], None] | None = None
    held: list[nn.Module] = field(default_factory=list)
    clip: float | None = None
    warnings: list[str] = field(default_factory=list)


def optimizer_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups: no weight decay on biases, norms and other vectors."""
    weights = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]


def averaged(model: nn.Module) -> nn.Module:
    """Return a copy for the averaged weights."""
    return copy.deepcopy(model).requires_grad_(False)


def runs_bf16(settings: RunSettings, device: torch.device) -> bool:
    """Whether a run computes in bfloat16."""
    if settings.precision != "auto":
        return settings.precision == "bf16"
    if device.type == "cuda":  # GPUs before Ampere would emulate it
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_has_bf16()


def begin(settings: Settings, ranks: Ranks) -> Settings:
    """Make a run's folder with its `config.yaml`, and return the settings with `precision` decided.

    Raises:
        UsageError: the folder cannot be written to; it has a run and `resume` is off; or `resume`, and there is no
            state, or that run began with other settings.
    """
    settings = _decided(settings, ranks)
    if not ranks.main:
        return settings
    try:
        settings.output.mkdir(parents=True, exist_ok=True)
        _check_earlier_run(settings, ranks)
        configuration.save(settings, settings.output / CONFIG)
    except OSError as error:
        raise UsageError(f"cannot write to {settings.output}: {error.strerror}; give another --output") from error
    return settings


def _check_earlier_run(settings: Settings, ranks: Ranks) -> None:
    file = settings.output / STATE
    if not settings.resume:
        if file.is_file():
            raise UsageError(f"{file} is there already; --resume goes on with it, or give another --output")
        return
    if not file.is_file():
        raise UsageError(f"--resume: cannot go on from {file}, which is not there; leave --resume out to begin")
    before = _decided(configuration.load(type(settings), settings.output / CONFIG), ranks)
    if changed := changes(before, settings):
        raise UsageError(
            f"--resume: the run in {settings.output} began with other settings: {'; '.join(changed)}; give them as "
            "they were, or another --output without --resume"
        )


def _decided(settings: Settings, ranks: Ranks) -> Settings:
    return settings.model_copy(update={"precision": "bf16" if runs_bf16(settings, ranks.device) else "fp32"})


def run(task: Task, settings: RunSettings, ranks: Ranks, budget: Budget, console: Console) -> Progress:
    """Train until the budget is spent, `stop_at` is reached or validations get no better; returns how far it came.

    Raises:
        UsageError: the loss is not finite; CheckpointError: there is nothing to go on from.
    """
    if ranks.device.type == "cpu":
        keep_freed_memory()
    file = settings.output / STATE
    done = Progress()
    if settings.resume:
        done = load_state(file, task.kept, task.average, task.optimizer, budget)
    options: dict[str, Any] = {"step": done.step, "tensorboard": settings.tensorboard}
    with RunLog(settings.output, console, **options) if ranks.main else nullcontext() as log:
        if log:
            log.warn(done.step, task.warnings)
        try:
            _train(_Loop(task, settings, ranks, budget, done, log))
        except KeyboardInterrupt:
            if ranks.main:
                saved = f"--resume goes on from {file}" if file.is_file() else "no state had been saved yet"
                console.print(f"stopped at step {done.step}; {saved}", soft_wrap=True, highlight=False)
            raise
    return done


@dataclass
class _Loop:
    task: Task
    settings: RunSettings
    ranks: Ranks
    budget: Budget
    done: Progress
    log: RunLog | None

    def __post_init__(self) -> None:
        self.bf16 = runs_bf16(self.settings, self.ranks.device)
        self.module = self.ranks.parallel(self.task.objective)
        self.alone: Callable[[], Any] = getattr(self.module, "no_sync", nullcontext)  # gradients of its own only
        self.weights = [p for p in self.task.kept.parameters() if p.requires_grad]
        self.started = self.saved = time.monotonic()
        self.images = 0  # of this process and run
        self.starved = 0.0  # seconds that steps waited for their pictures
        self.waiting: list[Tensor] = []  # losses of steps that nobody has looked at

    def step(self, batches: Iterator[Any], rate: float) -> None:
        """One step of the optimiser."""
        task, settings, device = self.task, self.settings, self.ranks.device
        # whatever is drawn in a step depends on its number alone: a run that goes on draws what it would have drawn
        torch.manual_seed((batch_seed(settings.seed, self.done.step) + self.ranks.rank) % 2**63)
        for group in task.optimizer.param_groups:
            group["lr"] = rate
        task.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for piece in range(settings.accumulate):
            asked = time.monotonic()
            made = next(batches)
            self.starved += time.monotonic() - asked
            inputs = task.prepare(made, self.done.step, piece)
            last = piece == settings.accumulate - 1
            with nullcontext() if last else self.alone():
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    loss = self.module(*inputs) / settings.accumulate
                loss.backward()
            total += loss.detach()
            self.images += len(inputs[0])
        if task.clip:
            torch.nn.utils.clip_grad_norm_(self.weights, task.clip)
        task.optimizer.step()
        ema_update(task.average, task.model, min(settings.ema, (1 + self.done.step) / (10 + self.done.step)))
        self.done.step += 1
        self.waiting.append(total)

    def look(self, rate: float) -> None:
        """Read the losses that are waiting, and tell of the last one."""
        values = self.ranks.mean(torch.stack(self.waiting)).tolist()
        for number, value in enumerate(values, self.done.step - len(values)):
            if not math.isfinite(value):
                raise UsageError(
                    f"the loss is {value} at step {number}; lower the learning rate (now {rate:g}) or use "
                    "precision=fp32"
                )
            before = self.done.loss
            self.done.loss = value if before is None else 0.98 * before + 0.02 * value
        self.waiting.clear()
        if self.log and self.done.loss is not None:
            self.log.step(self.done.step, self.budget.share(self.done.step), loss=values[-1], lr=rate)

    def validate(self, rate: float) -> None:
        """Measure, tell, and save; process 0's part."""
        task, settings, done = self.task, self.settings, self.done
        figures = task.measure(task.average)
        value = next(iter(figures.values()))
        better = done.best is None or (value > done.best if task.rising else value < done.best)
        done.best, done.stale = (value, 0) if better else (done.best, done.stale + 1)
        self.saved = time.monotonic()
        seconds = self.saved - self.started
        row = {
            "step": done.step, "share": round(self.budget.share(done.step), 4), "loss": round(done.loss or 0.0, 5),
            **{name: round(figure, 5) for name, figure in figures.items()}, "lr": rate,
            "images_per_s": round(self.images * self.ranks.world / seconds, 1),
            "data_wait": round(self.starved / seconds, 4), "minutes": round(self.budget.minutes(), 2),
            "peak_gb": round(_peak_gb(self.ranks.device), 2),
        }  # fmt: skip
        if self.log:
            self.log.row(row)
            if task.show:
                task.show(task.average, self.log, done.step)
        if better or settings.keep == "last":
            task.save(task.average)
        save_state(settings.output / STATE, done, task.kept, task.average, task.optimizer, self.budget)


def _peak_gb(device: torch.device) -> float:
    """Most memory so far, in GB: what torch has allocated on a GPU, what this process has had resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _train(loop: _Loop) -> None:
    settings, ranks, done = loop.settings, loop.ranks, loop.done
    loop.task.objective.train()
    for module in loop.task.held:
        module.eval()
    batches = loop.task.batches(done.step)
    every = 1 if ranks.device.type == "cpu" else 16  # on a GPU reading a number waits for the device
    (share,) = ranks.agree(loop.budget.share(done.step))
    while share < 1 and done.step != settings.stop_at and done.stale < (settings.patience or math.inf):
        rate = loop.task.rate * cosine(share, settings.warmup)
        loop.step(batches, rate)
        if settings.steps:
            share = loop.budget.share(done.step)
        due = share >= 1 or done.step == settings.stop_at
        due = due or bool(settings.save_steps and done.step % settings.save_steps == 0)
        if due or done.step % every == 0:
            loop.look(rate)
            late = time.monotonic() - loop.saved >= 60 * settings.save_minutes
            share, told = ranks.agree(loop.budget.share(done.step), late)  # clocks differ
            due = due or bool(told) or share >= 1
        if due:
            if ranks.main:
                loop.validate(rate)
            best, stale = ranks.agree(-math.inf if done.best is None else done.best, done.stale)
            done.best, done.stale = best, int(stale)
