"""A command's signals and its standard streams: how it ends where somebody stops it, or nobody reads it."""

import io
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

import typer


class _Stop(KeyboardInterrupt):
    """No plain KeyboardInterrupt: once that passed through exec() of a string, Python dies of SIGINT, not with 130."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


@contextmanager
def stoppable(advice: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a command with 130 also before its run watches for them, or a second time.

    Args:
        advice: how to go on, for the one line that is said.
    """
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"fastdetect: stopped; {advice}", err=True)
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stream(io.FileIO):
    """Standard output or error: what a reader that left or a full disk does not take is lost, the work goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def hold_standard_streams() -> None:
    """Put /dev/null in the place of standard streams that are closed, so that no file of ours gets their numbers.

    What a library prints would else be written into results.jsonl.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        os.set_inheritable(number, True)
    os.close(number)


def patient(stream: Any) -> TextIO:
    """Standard output or error (None: it was closed) as a stream to which writing never fails.

    Characters that its encoding lacks become escapes such as \\u2013.
    """
    if stream is None:
        return open(os.devnull, "w")
    try:
        raw = io.BufferedWriter(_Stream(stream.fileno(), "w", closefd=False))
    except OSError:  # a stream of Python's own, such as a test's, is no file
        return stream
    return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)
