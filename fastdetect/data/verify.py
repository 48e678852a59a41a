"""`fastdetect data verify` and `stats`: opens every file once, and says what is wrong and how much there is."""

import hashlib
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.table import Table

from fastdetect.data.footage import copy_member, frame_bytes, read_footage
from fastdetect.data.jobs import Counter, run_jobs
from fastdetect.data.manifest import LABELS, Manifest, Problem, Sample, check, read_manifest
from fastdetect.errors import MediaError, UsageError
from fastdetect.reasons import Reason
from fastdetect.video.sampling import SamplingPolicy

_LOOK = SamplingPolicy("uniform", 4.0)  # reads every packet and decodes at four places: finds files cut short
SHOWN = 5


@dataclass(frozen=True)
class Facts:
    """What opening a sample told."""

    sha256: str
    bytes: int
    width: int
    height: int
    frame_count: int | None
    duration_s: float | None
    reasons: tuple[Reason, ...]


class Opener:
    """Opens and hashes samples; lives in a worker process."""

    def __init__(self, root: Path) -> None:
        cv2.setNumThreads(1)
        self.root = root

    def __call__(self, sample: Sample) -> Facts:
        """Decode a few frames and hash the content; MediaError where nothing can be read."""
        footage = read_footage(sample, self.root, _LOOK)
        digest, size = self._hash(sample)
        width, height = footage.size
        return Facts(
            digest, size, width, height, footage.total, footage.duration_s, tuple(dict.fromkeys(footage.reasons))
        )

    def _hash(self, sample: Sample) -> tuple[str, int]:
        """SHA-256 and size of the file's content, or of all its frames' one after the other."""
        sha, size = hashlib.sha256(), 0
        if sample.frames:
            for name, data in zip(sample.frames, frame_bytes(sample, self.root, sample.frames), strict=True):
                if data is None:
                    raise MediaError(Reason.NOT_FOUND, f"the frame {name} is not in {self.root / sample.path}")
                sha.update(data)
                size += len(data)
        elif sample.container:
            sink = _HashSink(sha)
            copy_member(sample, self.root, sink)  # type: ignore[arg-type]
            size = sink.size
        else:
            path = self.root / sample.path
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
        return sha.hexdigest(), size


class _HashSink:
    """A file to write to that only hashes."""

    def __init__(self, sha: Any) -> None:
        self.sha, self.size = sha, 0

    def write(self, data: bytes) -> int:
        self.sha.update(data)
        self.size += len(data)
        return len(data)


def verify(
    manifest: Manifest, *, workers: int | None = None, timeout: float = 120.0, again: bool = False
) -> tuple[Manifest, list[Problem]]:
    """Open every sample that was not opened before, then check the whole.

    Args:
        manifest: what to verify.
        workers: processes; one per core by default.
        timeout: seconds of wall time per file.
        again: also open those whose size is already known.
    Returns:
        The manifest with hashes, sizes and lengths filled in, and the problems, grave ones first. After Ctrl-C: with
        what was opened until then.
    """
    lost = {p.key for p in check(manifest) if p.kind == "MISSING_FILE"}
    todo = {n: s for n, s in enumerate(manifest.samples) if (again or s.bytes is None) and s.key not in lost}
    samples, problems = list(manifest.samples), []
    order = list(todo)
    with Counter("verifying", len(manifest), done=len(manifest) - len(todo)) as counter:
        try:
            jobs = run_jobs(
                "fastdetect.data.verify:Opener", todo.values(), count=len(todo), init_args={"root": manifest.root},
                workers=workers, timeout=timeout,
            )  # fmt: skip
            for result in jobs:
                number = order[result.id]
                samples[number], found = _settle(samples[number], result.value, result.error)
                problems += found
                counter.step(failed=result.error is not None)
        except KeyboardInterrupt:
            problems.append(Problem("INTERRUPTED", "", f"stopped after {counter.done} of {len(manifest)} files"))
    done = Manifest(tuple(samples), manifest.root)
    return done, sorted([*check(done), *problems], key=lambda p: (not p.grave, p.kind))


def _settle(sample: Sample, facts: Facts | None, error: Exception | None) -> tuple[Sample, list[Problem]]:
    if facts is None:
        reason = error.reason if isinstance(error, MediaError) else Reason.CRASH
        return sample, [Problem("UNREADABLE", sample.key, f"{reason}: {error}")]
    problems = [Problem(str(reason), sample.key, "some of it cannot be decoded", False) for reason in facts.reasons]
    if sample.sha256 and sample.sha256.lower() != facts.sha256:
        problems.append(Problem("HASH_MISMATCH", sample.key, f"listed with {sample.sha256}, is {facts.sha256}"))
    known = {
        "sha256": facts.sha256, "bytes": facts.bytes, "width": facts.width, "height": facts.height,
        "frame_count": facts.frame_count, "duration_s": facts.duration_s,
    }  # fmt: skip
    return sample.model_copy(update=known), problems


def print_problems(problems: Sequence[Problem], console: Console, *, shown: int = SHOWN) -> None:
    """The problems by kind, the first few of each in full."""
    kinds: dict[tuple[bool, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[not problem.grave, problem.kind].append(problem)
    for (minor, kind), found in sorted(kinds.items()):
        console.print(f"{'warning' if minor else 'ERROR'} {kind}: {len(found)}", style="bold", highlight=False)
        for problem in found[:shown]:
            console.print(f"  {problem.key}: {problem.message}", soft_wrap=True, highlight=False, markup=False)
        if len(found) > shown:
            console.print(f"  and {len(found) - shown} more", highlight=False)
    if not problems:
        console.print("no problem found")


def stats(manifest: Manifest, by: Sequence[str] = ("dataset", "split", "label", "method", "compression")) -> Table:
    """A table of how much there is: videos, persons, pairs, frames, hours and size for each combination.

    Raises:
        UsageError: `by` names no field of a sample.
    """
    unknown = sorted(set(by) - set(Sample.model_fields))
    if unknown or not by:
        known = ", ".join(Sample.model_fields)
        raise UsageError(f"cannot count by {', '.join(unknown) or 'nothing'}; choose among {known}")
    groups: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for sample in manifest:
        told = (LABELS[sample.label] if field == "label" else str(getattr(sample, field) or "-") for field in by)
        groups[tuple(told)].append(sample)
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    total = _figures(manifest.samples)
    for number, field in enumerate(by):
        table.add_column(field, footer="all" if number == 0 else "", overflow="fold")
    for name, footer in zip(("videos", "persons", "pairs", "frames", "hours", "GB"), total, strict=True):
        table.add_column(name, justify="right", footer=footer, no_wrap=True)
    for group, samples in sorted(groups.items()):
        table.add_row(*group, *_figures(samples))
    return table


def _figures(samples: Sequence[Sample]) -> tuple[str, ...]:
    def total(field: str, unit: float, digits: int) -> str:
        known = [value for s in samples if (value := getattr(s, field)) is not None]
        mark = "" if len(known) == len(samples) else "+"  # of some it is not known: verify fills it in
        return f"{sum(known) / unit:,.{digits}f}{mark}" if known else "-"

    frames = [s.frame_count if s.frame_count is not None else len(s.frames) or None for s in samples]
    counted = sum(n for n in frames if n)
    persons = {person for s in samples for person in s.identities}
    pairs = Tally(s.pair for s in samples if s.pair)
    return (
        f"{len(samples):,}", f"{len(persons):,}", f"{len(pairs):,}", f"{counted:,}" if counted else "-",
        total("duration_s", 3600, 2), total("bytes", 1e9, 3),
    )  # fmt: skip


def main_verify(
    path: Path, *, root: Path | None, workers: int | None, timeout: float, quick: bool, again: bool, report: Path | None
) -> int:
    """Run `fastdetect data verify`; returns the exit code: 3 where something grave was found."""
    manifest = read_manifest(path, root)
    if report is not None:
        _write_report(report, ())  # opening every file takes long: what cannot be written to is found before
    if quick:
        problems = sorted(check(manifest), key=lambda p: (not p.grave, p.kind))
    else:
        manifest, problems = verify(manifest, workers=workers, timeout=timeout, again=again)
        manifest.write(path)
    print_problems(problems, Console())
    if report is not None:
        _write_report(report, problems)
    if any(p.kind == "INTERRUPTED" for p in problems):
        return 130
    return 3 if any(p.grave for p in problems) else 0


def _write_report(path: Path, problems: Sequence[Problem]) -> None:
    lines = [f"{'error' if p.grave else 'warning'}\t{p.kind}\t{p.key}\t{p.message}\n" for p in problems]
    try:
        path.write_text("".join(lines), "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}; give another --report") from error


def main_stats(path: Path, by: str) -> int:
    """Run `fastdetect data stats`; returns the exit code."""
    table = stats(read_manifest(path), tuple(filter(None, by.split(","))))
    console = Console()
    if not console.is_terminal:  # a log or a pipe has no width: nothing may be cut
        console = Console(width=200)
    console.print(table)
    return 0
