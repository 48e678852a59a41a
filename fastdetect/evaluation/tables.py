"""An evaluation as text: Markdown tables for people, CSV for everything else."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastdetect.evaluation.metrics import TARGET_FPR

_LISTS = ("rows", "roc", "config")  # of these the JSON has all; rows have a CSV of their own


def interval_text(block: Mapping[str, float] | None) -> str:
    """`0.912 [0.880, 0.941]`; a dash for what could not be measured."""
    return f"{block['value']:.3f} [{block['low']:.3f}, {block['high']:.3f}]" if block else "–"


def _pairs(block: Mapping[str, int]) -> str:
    return f"{block['wins']}/{block['n']}" if block["n"] else "–"


def _rate(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    low, high = row[name + "_interval"]
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def to_markdown(result: Mapping[str, Any], title: str = "Evaluation") -> str:
    """The report as Markdown tables, the worst type first."""
    videos, measured = result["videos"], "types" in result
    how = (
        "AUC at video level against all reals, 95 % bootstrap intervals by identity." if measured else "One class only."
    )
    lines = [
        f"# {title}",
        "",
        f"{videos['real']} real and {videos['fake']} fake videos of {result['identities']} identities; "
        f"coverage {100 * result['coverage']:.0f} % of {videos['listed']} files. {how}",
        "",
    ]
    lines += [line for warning in result.get("warnings", ()) for line in (f"**Warning**: {warning}.", "")]
    lines += _types(result) if measured else []
    for part in (_thresholds, _datasets, _robustness, _synthetic, _cross):
        lines += part(result)
    if result["abstained"]:
        lines += ["", "Too few usable faces for a score: " + ", ".join(result["abstained"]) + "."]
    for name, why in result["failed"].items():
        lines += ["", f"Failed: {name}: {why}"]
    return "\n".join(lines) + "\n"


def _types(result: Mapping[str, Any]) -> list[str]:
    videos, overall, intervals = result["videos"], result["overall"], result["intervals"]
    lines = [
        "| manipulation | fakes | identities | AUC | fake above its own real |",
        "|---|---|---|---|---|",
    ]
    for name, block in [*result["types"].items(), *result["methods"].items()]:
        counts = f"{block['fakes']} | {block['identities']}"
        row = f"{counts} | {interval_text(block['auc'])} | {_pairs(block['paired'])} |"
        lines.append(f"| {'**' + name + '**' if name in result['types'] else name} | {row}")
    return [
        *lines,
        f"| **mean of types** | {videos['fake']} | | {interval_text(result['mean_auc'])} "
        f"| {_pairs(result['paired'])} |",
        f"| all fakes | {videos['fake']} | | {interval_text(overall['auc'])} | |",
        "",
        "| all fakes, thresholds chosen on these files | |",
        "|---|---|",
        f"| frame AUC | {interval_text(intervals['frame_auc'])} |",
        f"| AP | {interval_text(intervals['ap'])} |",
        f"| EER | {interval_text(intervals['eer'])} |",
        *(f"| TPR at {100 * fpr:g} % FPR | {interval_text(intervals[f'tpr@{fpr:g}'])} |" for fpr in TARGET_FPR[::-1]),
    ]


def _thresholds(result: Mapping[str, Any]) -> list[str]:
    if "thresholds" not in result:
        return []
    lines = [
        "",
        f"Stored calibration {result['calibration_id']}. Rates at its thresholds, exact binomial intervals:",
        "",
        "| target FPR | threshold | realised FPR | which is | TPR |",
        "|---|---|---|---|---|",
    ]
    for key, row in sorted(result["thresholds"].items(), key=lambda item: float(item[0])):
        cells = f"{_rate(row, 'fpr')} | {row['fpr_is'] or '–'} | {_rate(row, 'tpr')}"
        lines.append(f"| {100 * float(key):g} % | {row['threshold']:.4f} | {cells} |")
    if "abstention" not in result:
        return lines
    risks = result["abstention"]["risk_at_coverage"].items()
    told = ", ".join(f"{risk:.3f} for {100 * float(at):.0f} %" for at, risk in risks)
    area = interval_text(result["abstention"]["area"])
    ece = f"ECE {interval_text(result['ece_interval'])}, {interval_text(result['ece_even'])} at even odds."
    return [
        *lines,
        "",
        f"{ece} Error rate at 0.5 where the most certain videos keep a verdict: {told}; mean (AURC) {area}.",
    ]


def _datasets(result: Mapping[str, Any]) -> list[str]:
    if "datasets" not in result:
        return []
    pooled = result["pooled"]
    lines = [
        "",
        f"One threshold for all sets (margin {pooled['threshold']:.3f}, 5 % FPR of all reals):",
        "",
        "| data set | real | fake | AUC | EER | FPR at it | TPR at it |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, block in result["datasets"].items():
        at = pooled["at_one_threshold"][name]
        cells = ["–"] * 4
        if block:
            kinds = block["videos"]
            cells = [kinds["real"], kinds["fake"], interval_text(block["overall"]["auc"])]
            cells.append(interval_text(block["intervals"]["eer"]))
        told = " | ".join(map(str, [*cells, interval_text(at["fpr"]), interval_text(at["tpr"])]))
        lines.append(f"| {name or '(no name)'} | {told} |")
    lines.append(f"| **mean of sets** | | | {interval_text(pooled['mean_of_sets'])} | | | |")
    return [*lines, f"| **pooled** | | | {interval_text(pooled['auc'])} | | | |"]


def _robustness(result: Mapping[str, Any]) -> list[str]:
    if not result.get("robustness"):
        return []
    rated = any(row["rates"] for row in result["robustness"])
    clean = interval_text(result["overall"]["auc"]) if "overall" in result else "–"
    lines = [
        "",
        "Frames changed before faces are looked for; change: on the videos scored both ways.",
        "",
        "| condition | AUC | change | coverage |" + (" FPR | TPR |" if rated else ""),
        "|---|---|---|---|" + ("---|---|" if rated else ""),
        f"| none | {clean} | | {result['coverage']:.3f} |" + (" | |" if rated else ""),
    ]
    for row in result["robustness"]:
        cells = [interval_text(row["auc"]), interval_text(row["change"]), f"{row['coverage']:.3f}"]
        if rated:
            cells += [_rate(row["rates"], name) if row["rates"] else "–" for name in ("fpr", "tpr")]
        lines.append(f"| {row['condition']} | {' | '.join(cells)} |")
    return lines


def _synthetic(result: Mapping[str, Any]) -> list[str]:
    if not result.get("synthetic"):
        return []
    lines = ["", "| fakes made from the reals here | AUC | above its own real |", "|---|---|---|"]
    rows = sorted(result["synthetic"].items(), key=lambda item: item[1]["auc"]["value"])
    return lines + [f"| {kind} | {interval_text(row['auc'])} | {_pairs(row['paired'])} |" for kind, row in rows]


def _cross(result: Mapping[str, Any]) -> list[str]:
    return ["", *cross_markdown(result["cross_manipulation"])] if "cross_manipulation" in result else []


def cross_markdown(cross: Mapping[str, Any]) -> list[str]:
    """The cross-manipulation matrices, of videos and of frames, as Markdown; what a model was trained on is bold."""
    columns = [f"{column} ({n})" for column, n in cross["columns"].items()]
    lines = [f"Trained on (rows), measured on (columns, with their numbers of fakes), against {cross['reals']} reals."]
    for title, part in (("Video AUC", cross), ("Frame AUC", cross["frame"])):
        lines += [
            "",
            f"| {title}, trained on | {' | '.join(columns)} | mean of unseen |",
            "|---" * (len(columns) + 2) + "|",
        ]
        for name, row in part["matrix"].items():
            cells = [
                f"**{interval_text(cell)}**" if name == column else interval_text(cell) for column, cell in row.items()
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {interval_text(part['unseen'][name])} |")
        lines += [
            "",
            f"{title}: seen {interval_text(part['mean_seen'])}, unseen {interval_text(part['mean_unseen'])}, "
            f"gap {interval_text(part['gap'])}.",
        ]
    return lines


def write_csv(result: Mapping[str, Any], folder: Path) -> None:
    """Write scores.csv (a line a video) and figures.csv (a line a figure: its name, value, low, high)."""
    rows = [{name: value for name, value in row.items() if name != "face_margins"} for row in result.get("rows", [])]
    if rows:
        with (folder / "scores.csv").open("w", encoding="utf-8", newline="") as stream:
            out = csv.DictWriter(stream, list(rows[0]))
            out.writeheader()
            out.writerows(rows)
    with (folder / "figures.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("figure", "value", "low", "high"))
        table.writerows(_flat("", {name: part for name, part in result.items() if name not in _LISTS}))


def _flat(name: str, part: Any) -> Iterator[tuple[Any, ...]]:
    if isinstance(part, Mapping):
        if {"value", "low", "high"} == set(part):
            yield name, part["value"], part["low"], part["high"]
            return
        for key, inner in part.items():
            if key not in _LISTS:
                yield from _flat(f"{name}/{key}" if name else str(key), inner)
    elif isinstance(part, list | tuple):
        for number, inner in enumerate(part):
            label = inner.get("condition", number) if isinstance(inner, Mapping) else number
            yield from _flat(f"{name}/{label}", inner)
    elif part is not None:
        yield name, part, "", ""
