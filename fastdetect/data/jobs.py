"""Many files through worker processes, with a progress bar: a crash or hang costs the file, never the run."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastdetect.engines.machine import usable_cores
from fastdetect.video.worker import JobResult, WorkerLimits, WorkerPool

_PLAIN_SECONDS = 10.0  # a log wants to see that the run lives, not every file


class Counter:
    """A bar on a terminal, else a plain line every ten seconds; on standard error.

    Args:
        verb: what is done, such as "extracting".
        total, done: files of the run, and of those the ones done before.
        failed: what a file that gave nothing is called.
    """

    def __init__(
        self, verb: str, total: int, *, done: int = 0, failed: str = "failed", console: Console | None = None
    ) -> None:
        self.verb, self.total, self.done, self.failed, self._failed = verb, total, done, 0, failed
        self.console = console or Console(stderr=True)
        self._said = time.monotonic()
        self._bar: Progress | None = None
        if self.console.is_terminal:
            figures = TextColumn(f"{{task.fields[failed]}} {failed}")
            self._bar = Progress(
                TextColumn(verb),
                BarColumn(),
                MofNCompleteColumn(),
                figures,
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task(verb, total=total, completed=done, failed=0)

    def __enter__(self) -> "Counter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._say()

    def step(self, *, failed: bool) -> None:
        """Count a file."""
        self.done += 1
        self.failed += failed
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, failed=self.failed)
        elif time.monotonic() - self._said >= _PLAIN_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        self.console.print(
            f"{self.verb}: {self.done:,}/{self.total:,} files, {self.failed:,} {self._failed}", soft_wrap=True
        )


def run_jobs(
    function: str,
    jobs: Iterable[Any],
    *,
    count: int,
    init_args: Mapping[str, Any],
    workers: int | None = None,
    timeout: float = 120.0,
) -> Iterator[JobResult]:
    """Yield the results of jobs in order of completion.

    Args:
        function: 'module:callable', see `WorkerPool`.
        jobs, count: what to do, and how many that are.
        init_args: for the callable.
        workers: processes; one per core by default.
        timeout: seconds of wall time per job.
    """
    if not count:
        return
    limits = WorkerLimits(timeout_s=timeout, cpu_s=2 * timeout)
    processes = min(workers or usable_cores(), count)
    env = {"OMP_NUM_THREADS": "1"}  # the processes are the parallelism
    with WorkerPool(function, workers=processes, init_args=init_args, limits=limits, env=env) as pool:
        yield from pool.map(jobs)
