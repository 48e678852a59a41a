"""The five suites: ops, train, decode, engines, screening. Each yields its cases one by one."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench import ceilings as limits
from bench import harness, machine
from bench.harness import Method
from bench.records import RESULTS, SUITES, Writer
from bench.registry import OPS, Shape
from bench.table import show
from fastdetect.errors import UsageError


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Args:
        method: see `Method`.
        shapes: "full" (those of the device), "tiny" or "huge".
        names: ops or cases by substring; empty: all.
        minutes: no case begins later than this; None: no limit.
        results: where the JSON goes; None: see `results_path`.
    """

    method: Method
    shapes: str = "full"
    names: tuple[str, ...] = ()
    minutes: float | None = None
    results: Path | None = None

    @property
    def tiny(self) -> bool:
        return self.shapes == "tiny"

    def results_path(self) -> Path:
        """`results`, or the machine's file: the committed one for whole suites only, build/bench/ for parts of them."""
        whole = self.shapes == "full" and not self.names and not self.method.only
        folder = RESULTS if whole else machine.ROOT / "build" / "bench"
        return self.results or folder / f"{machine.slug(machine.describe(self.method.device))}.json"

    def wanted(self, text: str) -> bool:
        return not self.names or any(name in text for name in self.names)


def op_cases(options: Options, ceilings: Mapping[str, float]) -> Iterator[Callable[[], dict[str, Any]]]:
    """The registered ops, first shape of each first: a run that is cut short has seen every op."""
    import bench.ops  # noqa: F401, the import registers them

    chosen = options.method.device.type if options.shapes == "full" else options.shapes
    shapes = {op: [s for s in op.shapes.get(chosen, ()) if options.wanted(f"{op.name} {s}")] for op in OPS.values()}
    for number in range(max(map(len, shapes.values()), default=0)):
        for op, its in shapes.items():
            if number < len(its):
                yield partial(harness.measure, op, its[number], options.method, ceilings)


def train_cases(options: Options, ceilings: Mapping[str, float]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Training steps with our losses, eager ones and compiled ones, and the loss's share of each."""
    import bench.ops  # noqa: F401
    from bench.train import STEPS

    for step in STEPS:
        for shape in step.shapes["tiny" if options.tiny else options.method.device.type]:
            if options.wanted(f"{step.name} {shape}"):
                yield partial(_step, step, shape, options.method, ceilings)


def _step(step: Any, shape: Shape, method: Method, ceilings: Mapping[str, float]) -> dict[str, Any]:
    case = harness.measure(step, shape, method, ceilings)
    if not method.check_only:
        loss = harness.measure(OPS[step.loss], step.loss_shape(shape), method, ceilings)
        times = {n: r["time_ms"] for n, r in loss["providers"].items() if "time_ms" in r}
        case["loss_ms"] = times
        case["loss_share"] = {
            n: times[n] / r["time_ms"] for n, r in case["providers"].items() if n in times and "time_ms" in r
        }
    return case


def decode_cases(options: Options, ceilings: Mapping[str, float]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Every decoder on generated clips: one file on the CPU; where there is a GPU, batches of files to its memory."""
    from bench.decode import Decode
    from bench.decode_many import DecodeMany

    rounds = replace(options.method, rounds=(3, 10))
    on_cpu = replace(rounds, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        for op, method in ((Decode(Path(folder)), on_cpu), (DecodeMany(Path(folder)), rounds)):
            for shape in op.shapes.get("tiny" if options.tiny else method.device.type, ()):
                if options.wanted(f"{op.name} {shape}"):
                    yield partial(harness.measure, op, shape, method, ceilings)


def engine_cases(options: Options, ceilings: Mapping[str, float]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Images a second of every engine, by network, batch profile and precision."""
    from bench.engines import Engines

    with tempfile.TemporaryDirectory() as folder:
        op = Engines(Path(folder))
        for shape in op.shapes["tiny" if options.tiny else options.method.device.type]:
            if options.wanted(f"{op.name} {shape}"):
                yield partial(_engines, op, shape, options.method, ceilings)


def _engines(op: Any, shape: Shape, method: Method, ceilings: Mapping[str, float]) -> dict[str, Any]:
    case = harness.measure(op, shape, method, ceilings)
    for result in case["providers"].values():
        if "time_ms" in result:
            result["images_per_s"] = 1e3 * shape["batch"] / result["time_ms"]
    return case


def screening_cases(options: Options, ceilings: Mapping[str, float]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Videos per hour from files to verdicts, beside the usual pipeline and, on a GPU, beside NVDEC alone."""
    from bench.pipeline import SHAPES, pipeline_case

    clips, turns = (2, 1) if options.tiny else (96, 2)
    if options.wanted("screening"):
        yield partial(screen_case, clips, turns)
    for shape in SHAPES.get("tiny" if options.tiny else options.method.device.type, ()):
        if options.wanted(f"pipeline {shape}"):
            yield partial(pipeline_case, shape, options.method.device, turns=turns)


def screen_case(clips: int, turns: int, model: str = "fastdetect-small") -> dict[str, Any]:
    """Take bench/screening.py's measurement, after each pipeline has given a clip with a face a score."""
    from bench import screening
    from fastdetect.screening.config import ScreenConfig
    from fastdetect.screening.inputs import expand_inputs
    from fastdetect.screening.run import run_screening

    config = ScreenConfig.model_validate({"model": model, "media": False, "uncalibrated": True})
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet:
        files = screening.generate(Path(folder), clips)
        console = Console(file=quiet)
        run = run_screening(expand_inputs(files[:1]), Path(folder, "check"), config, console=console)
        right = {"ours": run.exit_code in (0, 1)}
        for name, pipeline in screening.usual_pipelines(model).items():
            right[name] = pipeline.screen(files[0]) is not None
        times: dict[str, Any] = {}
        alone = None
        if all(right.values()):
            got = screening.compare(files, model, turns=turns, config=config)
            times = {"ours": got["fastdetect"]} | got["others"]
            alone = screening.one_file(files[0], model)
    providers: dict[str, Any] = {}
    for name, fine in (dict.fromkeys(times, True) | right).items():
        providers[name] = {"status": "ok"} if fine else {"status": "wrong", "note": "no score for a clip with a face"}
        if name in times:
            one = times[name]
            samples = [(seconds * 1e3, one["cpu_s_per_file"] * 1e3) for seconds in one["by_turn"]]
            providers[name] |= harness.summary(samples, "median") | {
                "videos_per_hour": one["videos_per_hour"],
                "stages_ms": {stage: seconds * 1e3 for stage, seconds in one["stages_s"].items()},
            }
    return {
        "op": "screening",
        "title": "Files to verdicts",
        "case": "H.264 512x512, 5 s, one face, 16 frames",
        "shape": {"clips": clips, "turns": turns},
        "axis": "clips",
        "regime": f"ms per clip of {clips} generated ones in {turns} runs, start-up and report included",
        "baseline": "usual, CenterFace",
        "floor": None,
        "providers": providers,
        "target_videos_per_hour": screening.TARGET,
        "one_file_s": alone,
    }


_CASES = {
    "ops": op_cases,
    "train": train_cases,
    "decode": decode_cases,
    "engines": engine_cases,
    "screening": screening_cases,
}


def run(suite: str, options: Options, console: Console) -> list[str]:
    """Run one suite, write its block of the results file and print a table per case.

    Returns:
        What was wrong; empty: all is green.
    """
    if suite not in SUITES:
        raise UsageError(f"suite: got {suite!r}, want one of {', '.join(SUITES)}")
    begin, method = time.monotonic(), options.method
    torch.set_num_threads(method.threads)
    ceilings = limits.measure(method.device, tiny=options.tiny or method.check_only)
    path = options.results_path()
    writer = Writer(path, suite, method.device, method.threads, ceilings)
    console.print(f"[bold]{suite}[/bold] on {writer.file['machine']['name']}, {method.threads} threads: {ceilings}")
    red: list[str] = []
    skipped = done = 0
    for case in _CASES[suite](options, ceilings):
        if options.minutes is not None and time.monotonic() - begin > 60 * options.minutes:
            skipped += 1
            continue
        record = case()
        if not method.check_only:
            writer.add(record)
        show(record, console)
        red += harness.problems(record)
        done += 1
    if not done:
        raise UsageError(f"{suite}: no case matches {', '.join(options.names) or options.shapes}; see `bench list`")
    if skipped:
        console.print(f"[yellow]{skipped} cases left out: --minutes {options.minutes:g} were over")
    if not method.check_only:
        console.print(f"{done} cases in {time.monotonic() - begin:.0f} s; written to {path}")
    return red
