"""`python -m bench` (and `fastdetect bench`): run suites, compare two results files, write the page and its plots."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.records import RESULTS, SUITES
from fastdetect.errors import FastdetectError, UsageError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description="Time what is right: every op against its floor and its peers, in one run."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for suite in (*SUITES, "all"):
        text = "all suites, then the page and its plots" if suite == "all" else f"the {suite} suite"
        verb = verbs.add_parser(suite, help=text)
        verb.add_argument("names", nargs="*", help="only ops or cases whose name holds one of these")
        verb.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
        verb.add_argument("--threads", type=int, help="of torch on the CPU [all cores]")
        verb.add_argument("--shapes", default="full", choices=["full", "tiny", "huge"])
        verb.add_argument("--seconds", type=float, default=3.0, help="of samples per case [3]")
        verb.add_argument("--rounds", type=int, nargs=2, default=(5, 50), metavar=("FEWEST", "MOST"))
        verb.add_argument("--minutes", type=float, help="begin no case of a suite later than this")
        verb.add_argument("--only", nargs="+", default=(), metavar="PROVIDER", help="only these providers")
        verb.add_argument("--check-only", action="store_true", help="check against float64, time nothing")
        verb.add_argument(
            "--results", type=Path, help="JSON file [bench/results/<machine>.json; parts of a suite: build/bench/]"
        )
    verbs.add_parser("list", help="ops, shapes and what each shape covers")
    verb = verbs.add_parser("compare", help="exit code 1 where the second file is over 5 %% beyond the spread worse")
    verb.add_argument("before", type=Path)
    verb.add_argument("after", type=Path)
    verb = verbs.add_parser("table", help="a line per case of a results file")
    verb.add_argument("file", type=Path)
    verb = verbs.add_parser("report", help="write docs/performance.md and its plots from bench/results/")
    verb.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the page is old")
    verbs.add_parser("study", add_help=False, help="train what the method consists of, part by part: study --help")
    return parser


def _run(args: argparse.Namespace, console: Console) -> int:
    import torch

    from bench import machine, suites
    from bench.harness import Method
    from bench.report import write
    from fastdetect.training.loop import pick_device

    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads: got {args.threads}, want at least 1")
    low, high = args.rounds
    if not 1 <= low <= high:
        raise UsageError(f"--rounds: got {low} {high}, want 1 <= FEWEST <= MOST")
    method = Method(
        device=torch.device(pick_device(args.device)),
        threads=args.threads or machine.cores(),
        seconds=args.seconds,
        rounds=(low, high),
        check_only=args.check_only,
        only=frozenset(args.only),
    )
    options = suites.Options(method, args.shapes, tuple(args.names), args.minutes, args.results)
    red: list[str] = []
    for suite in SUITES if args.verb == "all" else (args.verb,):
        red += suites.run(suite, options, console)
    if args.verb == "all" and options.results_path().parent == RESULTS and not args.check_only:
        console.print(f"written: {write()}")
    for line in red:
        console.print(f"[red]{line}")
    return 1 if red else 0


def _list(console: Console) -> int:
    import bench.ops  # noqa: F401
    from bench.registry import OPS

    for op in OPS.values():
        console.print(f"[bold]{op.name}[/bold]: {op.title}\n  floor: {op.floor}")
        for group, shapes in op.shapes.items():
            for shape in shapes:
                console.print(f"  {group:5} {shape}: {shape.regime}", highlight=False)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 green, 1 red, 2 not understood, 3 another error of the package."""
    args, more = _parser().parse_known_args(argv)
    if more and args.verb != "study":  # which knows its own options
        _parser().error(f"unrecognized arguments: {' '.join(more)}")
    console = Console(width=None if sys.stdout.isatty() else 160)  # a log has room for the tables
    try:
        if args.verb == "study":
            from bench import study

            return study.main(more, console)
        if args.verb == "list":
            return _list(console)
        if args.verb == "compare":
            from bench import compare, records

            changes, lost = compare.compare(records.load(args.before), records.load(args.after))
            return compare.show(changes, lost, console)
        if args.verb == "table":
            from bench import records, table

            table.short(records.load(args.file), Console(width=200))
            return 0
        if args.verb == "report":
            from bench.report import is_current, write

            if args.check:
                current = is_current()
                console.print("up to date" if current else "docs/performance.md is not what bench/results/ gives")
                return 0 if current else 1
            console.print(f"written: {write()}")
            return 0
        return _run(args, console)
    except FastdetectError as error:
        console.print(f"bench: {error}", markup=False)
        return 2 if isinstance(error, UsageError) else 3


if __name__ == "__main__":
    sys.exit(main())
