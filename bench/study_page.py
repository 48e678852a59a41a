"""The tables of docs/study.md from bench/results/study.json: no figure there is typed by hand."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import ROOT
from bench.records import RESULTS
from bench.table import number
from fastdetect.errors import UsageError
from fastdetect.evaluation.index import REAL

BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
PAGE, FILE = ROOT / "docs" / "study.md", RESULTS / "study.json"
NOT_RUN = "The study has not been run yet.\n"


def tables(data: Mapping[str, Any]) -> str:
    """The figures as markdown."""
    return "\n".join(_sections(data))


def _sections(data: Mapping[str, Any]) -> Iterator[str]:
    arms, seeds, about, config = data["arms"], data["seeds"], data["machine"], data["settings"]
    pack, videos, detector = data["pack"], data["videos"], data["settings"]["detector"]
    counts = videos["types"]
    types = [kind for kind in counts if kind != REAL]
    fakes = {kind: f"{kind}: {counts[kind]['videos']} ({counts[kind]['identities']})" for kind in types}
    versions = ", ".join(f"{name} {data['versions'][name]}" for name in ("python", "torch", "timm"))
    mim, init = data["weights"]["mim"]["model_id"], data["weights"].get("init")
    first = f"of {init['model_id']}" if init else "of ImageNet" if config["image_weights"] else "random"
    second = {None: "random", "init": first}.get(config.get("residual_weights"), "of ImageNet")
    held = f", its first {config['freeze_stages']} stages held" if config["freeze_stages"] else ""
    held += ", its depthwise kernels held" if config["freeze_depthwise"] else ""
    yield (
        f"{config['steps']:,} steps of {config['pairs']} pairs, seeds {', '.join(map(str, seeds))}; "
        f"{detector['image_backbone']} at {detector['image_size']} px, {detector['residual_backbone']} at "
        f"{detector['mim']['image_size']} px under {detector['protocol']}; {config['precision']}, {data['threads']} "
        f"threads.\nFirst weights: image branch {first}{held}; masked image model of {mim}; residual branch {second}.\n"
        f"Training: {pack['train']['faces']:,} faces of {pack['train']['persons']:,} persons. Videos: "
        f"{counts[REAL]['videos']} real and {sum(counts[kind]['videos'] for kind in types)} fake "
        f"({videos['left_out']} without a usable face left out), {videos['sampling']}. Held-out pairs: "
        f"{data['pairs']['pairs']:,} of {data['pairs']['persons']} persons.\n{about['name']}, {about['memory_gb']} GB; "
        f"{versions}; commit {data['commit']}, {data['date'][:10]}; `bench/results/study.json`.\n"
    )
    yield "### Arms\n"
    yield "AUC, mean over the seeds. Videos: mean over the types of manipulation.\n"
    branches = ("score", "image", "residual")
    heads = [
        "arm",
        "",
        "videos",
        "image branch",
        "residual branch",
        "held-out pairs",
        "image branch",
        "residual branch",
    ]
    yield _table(
        heads,
        [
            [name, arm["title"], *(_mean(arm, what, head) for what in ("video", "pairs") for head in branches)]
            for name, arm in arms.items()
        ],
    )  # fmt: skip
    if data["differences"]:
        yield "### What each adds\n"
        yield "AUC after minus AUC before, on the same draws. Bold: the interval does not hold 0.\n"
        heads = ["from → to", "videos", "image branch", "held-out pairs", "image branch", *types]
        rows = []
        for step in data["differences"]:
            own = [_mean(step, what, head, signed=True) for what in ("video", "pairs") for head in ("score", "image")]
            by_type = [_cell(step["video"]["score"][kind], signed=True) for kind in types]
            rows.append([f"{step['from']} → {step['to']}", *own, *by_type])
        yield _table(heads, rows)
    for head, title in (("score", "Videos by type"), ("image", "Videos by type, image branch alone")):
        yield f"### {title}\n"
        yield "Type: fakes (identities).\n"
        cells = {name: [_cell(arm["video"][head][kind]) for kind in types] for name, arm in arms.items()}
        yield _table(["arm", *fakes.values()], [[name, *row] for name, row in cells.items()])
    yield "### Seeds\n"
    yield "Video AUC, mean over types, of each seed.\n"
    per_seed = {name: arm["video"]["score"]["mean"]["per_seed"] for name, arm in arms.items()}
    own_rows = [[name, *(f"{value:.3f}" for value in row)] for name, row in per_seed.items()]
    yield _table(["arm", *(f"seed {seed}" for seed in seeds)], own_rows)
    if "protocols" in data:
        yield from _protocols(data["protocols"])


def _protocols(data: Mapping[str, Any]) -> Iterator[str]:
    yield "### Inpainting protocols\n"
    yield (
        f"The models of the arm `{data['arm']}`, trained under {data['trained']}. Video AUC, mean over types; crops a "
        f"second in {data['precision']}, {data['batch']} a call, in turns in one process, best of the rounds.\n"
    )
    against = f"against {data['trained']}"
    heads = ["protocol", "passes", "encoder tokens", "videos", against, "residual branch", against]
    heads += ["pairs, residual branch", "inpainting, crops/s", "model, crops/s"]
    rows = []
    for name, block in data["protocols"].items():
        row = [name, str(block["passes"]), f"{block['encoder_tokens']:,}"]
        for head in ("score", "residual"):
            change = _mean(block["against_trained"], "video", head, signed=True)
            row += [_mean(block, "video", head), "–" if name == data["trained"] else change]
        speeds = [number(block["crops_per_s"][part]) for part in ("inpainting", "model")]
        rows.append([*row, _mean(block, "pairs", "residual"), *speeds])
    yield _table(heads, rows)
    for name, why in data["left_out"].items():
        yield f"Not measured: {name}. {why}.\n"


def _mean(block: Mapping[str, Any], what: str, head: str, *, signed: bool = False) -> str:
    return _cell(block[what][head]["mean"], signed=signed) if head in block[what] else "–"


def _cell(interval: Mapping[str, float], *, signed: bool = False) -> str:
    value, low, high = (f"{interval[key]:{'+' if signed else ''}.3f}" for key in ("value", "low", "high"))
    text = f"{value} [{low}, {high}]"
    return f"**{text}**" if signed and (interval["low"] > 0 or interval["high"] < 0) else text


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *rows)) + "\n"


def _split(page: Path) -> tuple[str, str, str]:
    """A page up to its first mark, what stands between the marks, and the rest; UsageError where it has none."""
    before, begin, rest = page.read_text("utf-8").partition(f"{BEGIN}\n")
    text, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(f"{page}: no {BEGIN} ... {END}; add the marks where the tables belong, on lines of their own")
    return before + begin, text, end + after


def write_page(page: Path, text: str) -> None:
    """Put the tables between the marks of a page, or make a page of them alone."""
    if not page.is_file():
        page.write_text(f"{BEGIN}\n{END}\n", "utf-8")
    before, _, after = _split(page)
    page.write_text(before + text + after, "utf-8")


def is_current(file: Path = FILE, page: Path = PAGE) -> bool:
    """Whether a page's tables are what the results give."""
    return _split(page)[1] == (tables(json.loads(file.read_text("utf-8"))) if file.is_file() else NOT_RUN)
