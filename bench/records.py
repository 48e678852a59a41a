"""Result files: one JSON per machine, a block per suite, each with its own commit, date, versions and ceilings."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench import machine
from fastdetect.errors import DataError

SCHEMA = 1
SUITES = ("ops", "train", "decode", "engines", "screening")
RESULTS = machine.ROOT / "bench" / "results"


class Writer:
    """Collects the cases of one suite and writes the file after each: a run that is cut off loses nothing."""

    def __init__(
        self, path: Path, suite: str, device: torch.device, threads: int, ceilings: Mapping[str, float], **more: Any
    ) -> None:
        self.path, self.suite = path, suite
        about = machine.describe(device)
        before = load(path) if path.is_file() else None
        # Another machine's blocks do not belong under this one's name.
        same = before is not None and before["machine"]["name"] == about["name"]
        self.file: dict[str, Any] = {
            "schema": SCHEMA,
            "machine": about,
            "suites": before["suites"] if before and same else {},
        }
        self.block: dict[str, Any] = {
            "commit": machine.commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": machine.versions(),
            "threads": threads,
            "load": round(os.getloadavg()[0], 2),
            "ceilings": dict(ceilings),
            "cases": [],
        } | more

    def add(self, case: dict[str, Any]) -> None:
        """Append a case and write."""
        self.block["cases"].append(case)
        self.file["suites"] = {s: b for s in SUITES if (b := self._blocks().get(s))}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.file, indent=1, allow_nan=False, default=_plain) + "\n", "utf-8")
        partial.replace(self.path)

    def _blocks(self) -> dict[str, Any]:
        return self.file["suites"] | {self.suite: self.block}


def write_rows(
    path: Path, name: str, device: torch.device, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the figures of a benchmark that is no suite, with what they were measured on, beside others of the file."""
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    kept[name] = {
        "commit": machine.commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(device), "versions": machine.versions(), "load": round(os.getloadavg()[0], 2),
        "settings": dict(settings), "rows": [dict(row) for row in rows],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, allow_nan=False, default=_plain) + "\n", "utf-8")


def _plain(value: object) -> object:
    raise DataError(f"results hold {type(value).__name__} {value!r}; want numbers, text, lists and mappings")


def load(path: Path) -> dict[str, Any]:
    """Read a results file; DataError where it is none of this schema."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a readable results file: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise DataError(f"{path}: not results of schema {SCHEMA}; write them again with `python -m bench`")
    return data


def load_all(folder: Path = RESULTS) -> list[tuple[Path, dict[str, Any]]]:
    """Every results file of this schema in a folder, by name; other JSON files there are none of ours."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append((path, load(path)))
        except DataError:
            continue
    return found


def cases(data: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(suite, case) of a file."""
    for suite, block in data["suites"].items():
        for case in block["cases"]:
            yield suite, case


def floor_share(case: Mapping[str, Any], result: Mapping[str, Any]) -> float | None:
    """The floor over the measured time: 1 is perfect. From graph replays where there are any."""
    time_ms = result.get("graph", result).get("time_ms")
    return case["floor"]["ms"] / time_ms if time_ms and case.get("floor") else None


def slowdown(case: Mapping[str, Any], name: str) -> float | None:
    """A provider's time over ours."""
    ours, theirs = (case["providers"].get(n, {}).get("time_ms") for n in ("ours", name))
    return theirs / ours if ours and theirs else None
