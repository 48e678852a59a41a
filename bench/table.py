"""A case as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.records import cases, floor_share, slowdown


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, thousands with a comma, a dash for nothing."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.{digits}g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"


def cells(case: Mapping[str, Any], name: str) -> list[str]:
    """One provider's line: time with quantiles, graph time, x ours, share of the floor, extra MB, error, note."""
    result = case["providers"][name]
    if "time_ms" not in result:
        note = " ".join(filter(None, (result["status"], result.get("note", ""))))
        return [name, "-", "-", "-", "-", "-", number(result.get("error"), 1), note]
    ms = result["ms"]
    share, graph = floor_share(case, result), result.get("graph", {}).get("time_ms")
    return [
        name,
        f"{number(result['time_ms'])} ({number(ms['q20'])}..{number(ms['q80'])})",
        number(graph),
        number(slowdown(case, name)),
        "-" if share is None else f"{100 * share:.0f} %",
        number(result.get("extra_mb")),
        number(result.get("error"), 1),
        result.get("note", ""),
    ]


def short(data: Mapping[str, Any], console: Console) -> None:
    """Print a line per case of a results file: ours, the floor, and how many times as long the others take; and rates.

    Rates are images a second or videos an hour, of every provider, and why one has none.
    """
    table = Table(
        "suite", "case", "ours ms", "graph ms", "floor share", "extra MB", "others, x ours", title=_title(data)
    )
    for suite, case in cases(data):
        if "ours" not in case["providers"]:
            continue
        _, ms, graph, _, share, extra, _, note = cells(case, "ours")
        others = {name: slowdown(case, name) for name in case["providers"] if name != "ours"}
        factors = ", ".join(f"{name} {number(factor)}" for name, factor in others.items() if factor)
        table.add_row(suite, f"{case['op']} {case['case']}", ms.split(" ")[0], graph, share, extra, factors or note)
    console.print(table)
    rates = Table("suite", "case", "rates", "of these", "not here", title="Rates")
    for suite, case in cases(data):
        if found := _rates(case):
            rates.add_row(suite, f"{case['op']} {case['case']}", *found)
    if rates.row_count:
        console.print(rates)


_UNITS = {"images_per_s": "images/s", "videos_per_hour": "videos/h", "steady_videos_per_hour": "videos/h once it runs"}


def _rates(case: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Rates of the providers, the share of the decoder's rate that ours reaches, and who was not run and why."""
    results = case["providers"]
    found = [
        f"{name} {number(result[key])} {unit}"
        for name, result in results.items()
        for key, unit in _UNITS.items()
        if result.get(key)
    ]
    if not found:
        return None
    share = case.get("decode_share")
    without = [
        f"{name}: {result.get('note', result['status'])}" for name, result in results.items() if "time_ms" not in result
    ]
    return (
        "\n".join(found),
        f"{100 * share:.0f} % of the decoder alone" if share else "",
        "\n".join(x[:70] for x in without),
    )


def _title(data: Mapping[str, Any]) -> str:
    blocks = (f"{suite} at {block['commit']}: {block['ceilings']}" for suite, block in data["suites"].items())
    return "\n".join([data["machine"]["name"], *blocks])


HEADS = ("provider", "ms (20..80 %)", "graph ms", "x ours", "floor share", "extra MB", "error", "")


def show(case: Mapping[str, Any], console: Console) -> None:
    """Print one case."""
    title = f"{case['op']}: {case['case']}"
    if case.get("regime"):
        title += f" ({case['regime']})"
    if case.get("floor"):
        title += f"; floor {number(case['floor']['ms'])} ms by {case['floor']['bound']}"
    table = Table(*HEADS, title=title, title_justify="left")
    for name in case["providers"]:
        table.add_row(*cells(case, name))
    console.print(table)
    for peer, target in case.get("targets", {}).items():
        verdict = "[green]met" if target["met"] else "[yellow]missed"
        console.print(f"  target {number(target['want'])}x {peer}: {number(target['got'])}x, {verdict}")
