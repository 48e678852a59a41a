"""`fastdetect data index`: data sets on disk -> one manifest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from fastdetect.data.hold_out import hold_out
from fastdetect.data.layouts import Options, read_layout
from fastdetect.data.manifest import LABELS, concat
from fastdetect.errors import UsageError


def read_label_map(path: Path) -> dict[str, int]:
    """Label name -> 0 or 1, from YAML or JSON; a DeepfakeBench configuration's `label_dict` will do.

    Raises:
        UsageError: it is something else.
    """
    try:
        table = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--label-map {path} cannot be read: {error}") from error
    table = table.get("label_dict", table) if isinstance(table, dict) else table
    if not isinstance(table, dict) or not all(value in (0, 1) for value in table.values()):
        raise UsageError(f"--label-map {path}: wanted lines such as `FF-real: 0` and `FF-DF: 1`")
    return {str(name): int(value) for name, value in table.items()}


def main(
    roots: Sequence[Path],
    output: Path,
    *,
    layout: str,
    prefer: str,
    label_map: Path | None,
    held_out: float | None,
    **options: Any,
) -> int:
    """Run `fastdetect data index`; returns the exit code."""
    if output.suffix.lower() not in (".parquet", ".csv"):
        raise UsageError(f"--output {output}; wanted a name that ends in .parquet (a manifest) or .csv (an index)")
    if prefer not in ("videos", "frames"):
        raise UsageError(f"--prefer {prefer}; wanted videos or frames")
    labels = read_label_map(label_map) if label_map else {}
    chosen = Options(prefer=prefer, label_map=labels, **options)  # type: ignore[arg-type]
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    manifests = []
    for root in roots:
        manifest, warnings = read_layout(root, layout, chosen)
        manifests.append(manifest)
        for text in warnings:
            errors.print(f"fastdetect: {root}: {text}")
    whole = concat(manifests) if len(manifests) > 1 else manifests[0]
    if held_out is not None:
        whole, told = hold_out(whole, held_out)
        for text in told:
            errors.print(f"fastdetect: {text}")
    whole.write(output)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{output}: {len(whole):,} videos")
    for (dataset, split, label), number in sorted(whole.counts("dataset", "split", "label").items(), key=str):
        console.print(f"  {dataset} {split or 'no split'} {LABELS[label]}: {number:,}")
    return 0
