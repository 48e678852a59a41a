"""What a run tells: lines or a progress bar, `log.jsonl`, TensorBoard."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastdetect.errors import MissingDependencyError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """The log of one run; a context manager.

    Args:
        folder: gets `log.jsonl` (a row per validation and per warning, appended to) and `tensorboard/`.
        console: shows a progress bar where it is a terminal, else the rows alone.
        step: of a run that goes on: later entries of TensorBoard are dropped.
        tensorboard: None: where the package is installed.
    Raises:
        MissingDependencyError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, console: Console, *, step: int, tensorboard: bool | None) -> None:
        self.board = _board(folder / "tensorboard", step, tensorboard)
        self.file = (folder / "log.jsonl").open("a")
        self.bar = Progress(
            TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.4f}"), BarColumn(), TaskProgressColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=1.0, step=step, loss=float("nan"))

    def step(self, step: int, share: float, **values: float) -> None:
        """Tell of the last step; `values` go to TensorBoard, its `loss` to the bar, too."""
        self.bar.update(self.task, completed=share, step=step, loss=values["loss"])
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"train/{name}", value, step)

    def row(self, row: dict[str, Any]) -> None:
        """Write a validation's row."""
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        self.bar.console.print(text, highlight=False, soft_wrap=True)
        if self.board:
            for name, value in row.items():
                if name not in ("step", "loss", "lr"):
                    self.board.add_scalar(f"validation/{name}", value, row["step"])
            self.board.flush()

    def warn(self, step: int, texts: Sequence[str]) -> None:
        """Write and show warnings, a row each."""
        for text in texts:
            self.file.write(json.dumps({"step": step, "warning": text}) + "\n")
            self.bar.console.print(f"warning: {text}", highlight=False, markup=False, soft_wrap=True)
        self.file.flush()

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Put a picture [H,W,3] uint8 into TensorBoard."""
        if self.board:
            self.board.add_image(name, image, step, dataformats="HWC")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        self.file.close()
        if self.board:
            self.board.close()


def _board(folder: Path, step: int, wanted: bool | None) -> "SummaryWriter | None":
    if wanted is False:
        return None
    if importlib.util.find_spec("tensorboard") is None:
        if wanted:
            raise MissingDependencyError("tensorboard=true needs `pip install tensorboard` (extra: fastdetect[train])")
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
