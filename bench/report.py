"""docs/performance.md and its plots from the results files: no figure there is typed by hand."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import plots, records
from bench.machine import ROOT
from bench.table import cells, number

PAGE = ROOT / "docs" / "performance.md"
PLOTS = "performance"  # folder of the plots, beside the page

INTRODUCTION = """\
# Performance

<!-- Written by `python -m bench report` from bench/results/*.json: measure again, do not edit. -->

Every figure here is a ratio or a time of one run in which the answer was checked first.

```sh
make bench                        # all suites on this machine, this page and its plots (two cores: under 10 minutes)
python -m bench ops               # one suite: ops, train, decode, engines or screening; fastdetect bench is the same
python -m bench ops masked --device cuda
python -m bench list              # every op, shape and regime
python -m pytest bench            # ops and stages on tiny shapes, as pytest-benchmark suites
python -m bench compare A.json B.json   # exit code 1 where ours became over 5 % worse, beyond the spread
bash bench/gpu_suite.sh part1     # on a GPU machine without a network: build, test, measure; then part2 and part3
bash bench/gpu_suite.sh --rehearse      # the same steps without a GPU
```

How it is measured:

- **Right first.** Each provider's outputs (for losses: value and gradient) are compared with float64 before it is timed
  and after; what is wrong gets no time and makes the run red. Ours also runs in memory that is filled with NaN.
- **In turns.** Providers take turns in one process, each round begins with another one. Random data.
- **CPU:** the minimum of the wall times, since other work only ever adds to them. Two runs are compared by the ratio
  to the baseline of each. **GPU:** medians of CUDA events around one call from an idle stream, launches included;
  calls under 2 ms also as replays of a CUDA graph over input sets that together exceed the L2 twice ("graph ms").
- **Floor:** the bytes and operations that the job cannot avoid, over a large copy and a large matrix product measured
  in the same run. "Floor share" is the floor over the time; a GPU time under the floor makes the run red.
- **Extra MB:** the peak above what was there before the call, results included.
- **x ours:** the provider's time over ours.
"""


def page(folder: Path = records.RESULTS) -> str:
    """The whole page as markdown."""
    files = records.load_all(folder)
    parts = [INTRODUCTION]
    if not files:
        parts.append("Nothing has been measured yet.\n")
    for path, data in files:
        parts.append("\n".join(_machine(path, data)))
    if files and not any(data["machine"]["device"] == "cuda" for _, data in files):
        parts.append("## GPU\n\nNo GPU has been measured yet.\n")
    return "\n".join(parts)


def _machine(path: Path, data: Mapping[str, Any]) -> Iterator[str]:
    about = data["machine"]
    yield f"## {about['name']}\n"
    facts = [f"{about['cores']} cores of {about['cpu']} ({about['cpu_capability']}), {about['memory_gb']} GB"]
    if "gpu" in about:
        facts.append(f"{about['gpu']} with {about['gpu_memory_gb']} GB, driver {about['driver']}")
    yield f"{'; '.join(facts)}. Source: `bench/results/{path.name}`.\n"
    for suite, block in data["suites"].items():
        yield f"### {suite}\n"
        yield _provenance(block) + "\n"
        yield from _SECTIONS.get(suite, _ops)(path, block["cases"])


def _provenance(block: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in block["versions"].items())
    text = f"Commit {block['commit']}, {block['date'][:10]}, {block['threads']} threads, "
    text += f"load before {number(block['load'])}; {versions}."
    if block["ceilings"]:
        found = (f"{key.replace('_', ' ')} {number(value)}" for key, value in block["ceilings"].items())
        text += f" Ceilings: {', '.join(found)}."
    return text


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _ops(path: Path, cases: list[dict[str, Any]]) -> Iterator[str]:
    for op in dict.fromkeys(case["op"] for case in cases):
        its = [case for case in cases if case["op"] == op]
        yield f"#### {op}\n"
        if its[0].get("title"):
            yield f"{its[0]['title']}.\n"
        if its[0]["floor"]:
            yield f"Floor: {its[0]['floor']['formula']}.\n"
        yield _rows(its)
        targets = [line for case in its for line in _targets(case)]
        if targets:
            yield "Targets of ours:\n\n" + _table(["case", "against", "wanted", "got", "at the floor", ""], targets)
        for name in plots.groups(its):
            yield f"![{name}]({PLOTS}/{plots.file_name(path.stem, name)})\n"


def _rows(cases: list[dict[str, Any]]) -> str:
    heads = [
        "case",
        "floor ms",
        "provider",
        "ms (20..80 %)",
        "graph ms",
        "x ours",
        "floor share",
        "extra MB",
        "error",
        "",
    ]
    rows = []
    for case in cases:
        for i, name in enumerate(case["providers"]):
            first = f"{case['case']} ({case['regime']})" if i == 0 else ""
            floor = number(case["floor"]["ms"]) if i == 0 and case["floor"] else ""
            rows.append([first, floor, *cells(case, name)])
    empty = [i for i in range(len(heads)) if all(row[i] in ("", "-") for row in rows)]  # no graphs on a CPU
    rows = [[cell for i, cell in enumerate(row) if i not in empty] for row in rows]
    return _table([head for i, head in enumerate(heads) if i not in empty], rows)


def _targets(case: Mapping[str, Any]) -> Iterator[list[str]]:
    for peer, target in case.get("targets", {}).items():
        verdict = "met" if target["met"] else "**missed**"
        at_floor = "-"
        if case["floor"]:  # what no implementation could beat
            most = case["providers"][peer]["time_ms"] / case["floor"]["ms"]
            at_floor = f"{number(most)}x"
            verdict += ", the floor is above it" if most < target["want"] and not target["met"] else ""
        yield [case["case"], peer, f"{number(target['want'])}x", f"{number(target['got'])}x", at_floor, verdict]


def _train(path: Path, cases: list[dict[str, Any]]) -> Iterator[str]:
    yield from _ops(path, cases)
    rows = []
    for case in cases:
        for name, share in case.get("loss_share", {}).items():
            rate = 1e3 / case["providers"][name]["time_ms"]
            rows.append(
                [case["op"], case["case"], name, number(rate), number(case["loss_ms"][name]), f"{100 * share:.1f} %"]
            )
    if rows:
        yield "The loss (forward and backward, by itself) in each step:\n"
        yield _table(["step", "case", "loss", "steps/s", "loss ms", "share of the step"], rows)


def _screening(path: Path, cases: list[dict[str, Any]]) -> Iterator[str]:
    for case in cases:
        yield f"{case['case']}; {case['regime']}.\n"
        rows = []
        for name, result in case["providers"].items():
            if "time_ms" in result:
                stages = result.get("stages_ms", {})
                total = sum(stages.values())
                shares = ", ".join(
                    f"{stage} {100 * ms / total:.0f} %" for stage, ms in stages.items() if ms > 0.005 * total
                )
                ratio = records.slowdown(case, name)
                cpu = number(result["cpu_ms"]["q50"])
                rows.append(
                    [name, number(result["videos_per_hour"]), number(result["time_ms"]), cpu, number(ratio), shares]
                )
        yield _table(["", "videos/h", "ms a clip", "processor ms", "x ours", "shares of the stages"], rows)
        got, want = case["providers"]["ours"].get("videos_per_hour"), case["target_videos_per_hour"]
        if got and want:
            yield f"Target {number(want)} videos/h: {'met' if got >= want else '**missed**'}.\n"
        if case.get("decode_share"):
            share, least = (100 * case[key] for key in ("decode_share", "decode_share_target"))
            verdict = "met" if share >= least else "**missed**"
            yield f"{share:.0f} % of the decoder's own rate; target {least:.0f} %: {verdict}.\n"
        if case.get("one_file_s"):
            yield f"`fastdetect screen` over one such clip, from the command's start: {number(case['one_file_s'])} s.\n"


_SECTIONS = {"train": _train, "screening": _screening}


def write(folder: Path = records.RESULTS, target: Path = PAGE) -> Path:
    """Write the page and its plots; returns the page's path."""
    for path, data in records.load_all(folder):
        for block in data["suites"].values():
            for name, cases in plots.groups(block["cases"]).items():
                plots.draw(name, cases, target.parent / PLOTS / plots.file_name(path.stem, name))
    target.write_text(page(folder), "utf-8")
    return target


def is_current(folder: Path = records.RESULTS, target: Path = PAGE) -> bool:
    """Whether the page is what the results files give, and every plot that it shows is there."""
    text = page(folder)
    shown = [part.split(")")[0] for part in text.split("](")[1:]]
    plots_there = all((target.parent / name).is_file() for name in shown if name.endswith(".svg"))
    return target.is_file() and target.read_text("utf-8") == text and plots_there
