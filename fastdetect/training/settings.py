"""Settings that `fastdetect pretrain` and `fastdetect train` share."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
# `--resume` takes other values of these: how long a run goes on, where, and what it tells, not what it learns.
MAY_CHANGE = frozenset(
    {
        "output", "resume", "steps", "minutes", "stop_at", "patience", "keep", "save_minutes", "save_steps", "workers",
        "threads", "device", "pieces", "val_faces", "tensorboard", "pictures",
    }
)  # fmt: skip


class RunSettings(BaseModel):
    """Budget, pieces, checkpoints and machine of a run.

    Args:
        output: folder for `config.yaml`, `log.jsonl`, `state.pt`, `tensorboard/` and `model/`.
        steps, minutes: the budget, one of them; minutes count the time spent in this run.
        stop_at: step at which this command stops though the budget is not spent: for a job that is cut in pieces.
        accumulate: pieces that a step's batch is computed in, one after the other, on each process; the contrastive
            losses see a piece at a time.
        parts: independent draws that a step's batch is made of; by default one a process and piece. A run on 1 process
            with parts=8 learns from the same pictures as one on 8 processes.
        warmup: share of the budget over which the learning rate rises.
        ema: decay of the averaged weights that are saved.
        seed: of weights, batches, masks and dropout; a step's numbers depend on the seed and its number alone.
        workers, threads: processes that make batches, and threads of the step on a CPU; of each process.
        save_minutes, save_steps: time and steps between validations, each of which writes `state.pt` and `model/`.
        patience: validations without a better one after which the run stops; null: none.
        keep: what `model/` holds: the averaged weights of the last validation or of the best one.
        resume: go on from `state.pt`; all settings but those of `MAY_CHANGE` must be what they were.
        device, precision: "auto" takes a GPU where there is one, and bf16 where the hardware has it.
        tensorboard: null writes TensorBoard's files where the package is installed.
    """

    model_config = ConfigDict(extra="forbid")

    output: Path
    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    stop_at: int | None = Field(default=None, gt=0)
    accumulate: int = Field(default=1, ge=1)
    parts: int | None = Field(default=None, ge=1)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    ema: float = Field(default=0.998, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    workers: int = Field(default=1, ge=0)
    threads: int = Field(default=1, ge=1)
    save_minutes: Positive = 3.0
    save_steps: int | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, ge=1)
    keep: Literal["last", "best"] = "last"
    resume: bool = False
    device: str = "auto"
    precision: str = Field(default="auto", pattern="^(auto|fp32|bf16)$")
    tensorboard: bool | None = None


def changes(before: BaseModel, now: BaseModel, may_change: Collection[str] = MAY_CHANGE) -> list[str]:
    """Say which settings, but those that may change, differ: "seed was 0, is 1"."""
    was, own = (dict(_flat(config.model_dump(exclude=set(may_change)))) for config in (before, now))
    return [f"{key} was {was.get(key)}, is {own.get(key)}" for key in was | own if was.get(key) != own.get(key)]


def _flat(values: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{group}{key}.")
        else:
            yield f"{group}{key}", value
