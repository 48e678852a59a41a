"""One screening run, whole: model, store, pipeline, final files, report."""

import platform
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import yaml
from rich.console import Console

from fastdetect import __version__
from fastdetect.engines.machine import usable_cores
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import InputFile, Inputs, path_text
from fastdetect.screening.model import Model
from fastdetect.screening.pipeline import Screener, nvdec_device
from fastdetect.screening.report import write_report
from fastdetect.screening.results import Row, RunInfo
from fastdetect.screening.store import ResultStore, fingerprint, writing
from fastdetect.screening.terminal import ScreenProgress, print_summary
from fastdetect.video import lanes

EXIT_CLEAN, EXIT_FLAGGED, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 3, 130
_PACKAGES = ("torch", "timm", "av", "onnxruntime", "numpy", "opencv-python-headless")


def run_screening(
    files: Sequence[InputFile],
    output: Path,
    config: ScreenConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> RunInfo:
    """Screen files and write everything that a run leaves behind.

    Args:
        files: what to screen, see `expand_inputs`.
        output: folder for results.jsonl, results.parquet, summary.csv, run.json, config.yaml, report.html and
            media/.
        config: the options.
        resume: keep the rows already in `output`.
        console: where progress and summary go; standard error and standard output by default.
    Returns:
        What the run used and what came of it; `exit_code` is the command's.
    Raises:
        FastdetectError: the run cannot start (model, options, output folder). A bad file is a row instead.
        OutputError: a result cannot be written (a full disk); `resume` goes on.
    """
    lanes.check_decoder(config.decoder, lanes.this_machine(nvdec_device(config.device)))
    started = _now()
    media = output / "media" if config.media else None
    order = [path_text(file.path) for file in files]
    with (
        Model.load(config) as model,
        closing(ResultStore(output, model.identity(config), resume=resume)) as store,
    ):
        resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        with writing(output):
            (output / "config.yaml").write_text(resolved, "utf-8")
        model.warnings += files.warnings if isinstance(files, Inputs) else []
        for warning in model.warnings:
            print(f"fastdetect: {warning}", file=sys.stderr)
        todo = [file for file in files if not store.has(file.path)]
        screener, tally = Screener(model, config, media=media), Tally(model.engine.device)
        with (
            _stop_on_signals() as stop,
            ScreenProgress(len(files), resumed=len(files) - len(todo), console=console) as progress,
        ):
            for row in screener.screen(todo, stop):
                store.append(row)
                tally.add(row)
                progress.update(row)
        if config.decoder in ("dali", "nvcodec") and tally.notes:
            (why, most), count = tally.notes.most_common(1)[0], tally.notes.total()
            text = f"{count} of {tally.files} files were decoded by PyAV, not {config.decoder}"
            text += f"; {most} of them because {why}"
            model.warnings.append(text)
            print(f"fastdetect: {model.warnings[-1]}", file=sys.stderr)
        if tally.spared:
            text = f"{tally.spared} of {tally.files} files were scored on the CPU, where {model.engine.device} failed"
            model.warnings.append(f"{text}; each one's message says why")
            print(f"fastdetect: {model.warnings[-1]}", file=sys.stderr)
        named = store.rows(order, others=False)  # rows of files that an earlier run named stay, and do not count
        counts = Counter(row.verdict if row.status == "ok" else "failed" for row in named)
        interrupted = tally.files < len(todo)
        run = RunInfo(
            fingerprint=fingerprint(store.identity),
            fastdetect=__version__,
            versions={"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
            machine=_machine(),
            **model.facts(),
            sampling=config.sample,
            max_seconds=config.max_seconds,
            workers=screener.workers,
            started_at=started,
            finished_at=_now(),
            interrupted=interrupted,
            warnings=model.warnings,
            files=counts.total(),
            counts=dict(counts),
            **tally.figures(),
            exit_code=_exit_code(counts, interrupted),
        )
        store.finish(run, order, media=config.media)
        report = output / "report.html"
        with writing(output):
            write_report(store.rows(order), report, run=run, media=media)
        print_summary(_without_tracks(store.rows(order, others=False)), run, report=report, console=console)
        return run


class Tally:
    """The figures of the files that this run screened itself."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.files = self.spared = 0
        self.footage_s = 0.0
        self.stages: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.begin = time.perf_counter()

    def add(self, row: Row) -> None:
        """Count a row."""
        self.files += 1
        self.spared += row.device != self.device
        self.stages.update(row.timings_s)
        self.notes.update([row.decode_note.removeprefix(f"{row.path!r} is ")] if row.decode_note else [])
        self.footage_s += (row.media.duration_s or 0.0) if row.media else 0.0

    def figures(self) -> dict[str, Any]:
        """The fields of RunInfo that are about speed."""
        wall = time.perf_counter() - self.begin
        return {
            "wall_s": wall,
            "files_this_run": self.files,
            "stage_seconds": dict(self.stages),
            "videos_per_hour": 3600 * self.files / wall if self.files else None,
            "media_s_per_s": self.footage_s / wall if self.files else None,
        }


def _exit_code(counts: Counter[str], interrupted: bool) -> int:
    if interrupted:
        return EXIT_INTERRUPTED
    if counts["failed"]:
        return EXIT_FAILED
    return EXIT_FLAGGED if counts["suspicious"] or counts["manipulated"] else EXIT_CLEAN


def _without_tracks(rows: Iterator[Row]) -> Iterator[Row]:
    # The terminal sorts all rows in memory and shows no track; the faces of tracks are 95 % of a row.
    for row in rows:
        yield row.model_copy(update={"tracks": []})


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM end the run after the row in hand; a second one ends it at once."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _machine() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": str(usable_cores()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
