"""The HTML report of a run: one file that opens anywhere, without a network and without JavaScript."""

import base64
import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fastdetect.errors import DataError
from fastdetect.inline_images import crop_image, heat_image, heat_stops
from fastdetect.reasons import Reason
from fastdetect.screening import plots
from fastdetect.screening.results import STAGES, LoadedMedia, Row, RunInfo, TrackMedia, TrackRow, load_media
from fastdetect.screening.wording import (
    FLAGGED,
    OUTCOMES,
    REASON_TEXT,
    clock,
    known,
    moment,
    outcome,
    percent,
    printable,
    rate_facts,
    reached_by,
    score_text,
    verdict_meanings,
    worst_first,
)

TEMPLATES = Path(__file__).parent / "templates"
# So that a browser opens 10,000 files in seconds: crops weigh about 50 kB a file, a plot 5 kB.
MEDIA_FILES, PLOT_FILES, TRACKS_SHOWN = 100, 1000, 6
CROP_PX, THUMB_PX = 144, 72
FAILURES_NAMED = 5


def write_report(rows: Iterable[Row], path: Path, *, run: RunInfo, media: Path | None) -> None:
    """Write the report of a run as one HTML file.

    Args:
        rows: every row of the run, in any order; they are shown by score, highest first.
        path: the file to write; replaced only when the new one is whole.
        run: the figures of the summary.
        media: the folder of crops and patch scores, `<output>/media`; None: nobody's picture is shown.
    """
    ordered = _ranked(rows)
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "clock": clock,
        "moment": moment,
        "score": score_text,
        "percent": percent,
        "printable": printable,
        "rate_facts": rate_facts,
    }
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js"))
    with_media = [i for i, row in enumerate(ordered) if media and any(t.media for t in row.tracks)]
    top = _heat_top([ordered[i] for i in with_media[:MEDIA_FILES]], media)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="utf-8") as file:
        stream = env.get_template(
            "report.html"
        ).stream(
            run=run,
            style=Markup(style),  # both are ours and hold nothing of the user's
            script=Markup(script),
            csp=f"default-src 'none'; img-src data:; style-src {_sha(style)}; script-src {_sha(script)}",
            total=len(ordered),
            counts=Counter(map(outcome, ordered)),
            flagged=sum(outcome(row) in FLAGGED for row in ordered),
            outcomes=OUTCOMES,
            meanings=verdict_meanings(run.thresholds),
            verdict_bar=plots.shares(dict(_counts(ordered))),
            histogram=plots.histogram(ordered, run.thresholds),
            stages=plots.shares(_in_order(run.stage_seconds)),
            failures=_failures(ordered),
            named=FAILURES_NAMED,
            media_shown=min(len(with_media), MEDIA_FILES),
            media_left_out=max(0, len(with_media) - MEDIA_FILES),
            media_off=media is None,
            plots_left_out=max(0, len(ordered) - PLOT_FILES),
            plots_shown=PLOT_FILES,
            heat_stops=heat_stops(),
            heat_top=top,
            files=_files(ordered, set(with_media[:MEDIA_FILES]), media, top),
        )
        stream.enable_buffering(64)
        file.writelines(stream)
    os.replace(unfinished, path)


def _ranked(rows: Iterable[Row]) -> list[Row]:
    """Worst first; rows without a plot lose their tracks' faces, 95 % of a row's memory."""
    top: list[Row] = []
    rest: list[Row] = []
    for row in rows:
        top.append(row)
        if len(top) >= 2 * PLOT_FILES:
            top.sort(key=worst_first)
            rest += map(_without_faces, top[PLOT_FILES:])
            del top[PLOT_FILES:]
    top.sort(key=worst_first)
    return top[:PLOT_FILES] + sorted([*map(_without_faces, top[PLOT_FILES:]), *rest], key=worst_first)


def _without_faces(row: Row) -> Row:
    return row.model_copy(update={"tracks": [t.model_copy(update={"faces": []}) for t in row.tracks]})


def _files(ordered: Sequence[Row], pictured: set[int], media: Path | None, top: float) -> Iterator[dict[str, Any]]:
    """What the template shows of each file, one at a time: only one file's pictures are in memory."""
    for i, row in enumerate(ordered):
        folder = media if i in pictured else None
        tracks = sorted(row.tracks, key=lambda t: (not t.decides, -(known(t.score) or 0.0), -len(t.faces)))
        shown = [_track(track, row, folder, top) for track in tracks[:TRACKS_SHOWN]]
        directory, _, base = printable(row.name).rpartition("/")
        yield {
            "row": row,
            "outcome": outcome(row),
            "score": known(row.score),
            "directory": directory,
            "base": base,
            "reasons": [(reason, REASON_TEXT[reason]) for reason in row.reasons],
            "seconds": None if row.media is None or row.media.is_image else known(row.media.duration_s),
            "marks": [(t.verdict, 100 * t.score) for t in row.thresholds],
            "tracks": shown,
            "tracks_left_out": len(tracks) - len(shown),
            "thumb": next((track["thumb"] for track in shown if track["thumb"]), None),
            "say": _say(row),
        }


def _track(track: TrackRow, row: Row, folder: Path | None, top: float) -> dict[str, Any]:
    pictures, trouble = [], ""
    if folder and track.media:
        try:
            pictures = list(_pictures(track, _load(folder, track.media), top))
        except DataError as error:
            trouble = printable(str(error))
    best = max(pictures, key=lambda p: -1.0 if p["score"] is None else p["score"], default=None)
    seconds = row.media.duration_s if row.media else None
    return {
        "row": track,
        "usable": sum(face.usable for face in track.faces),
        "plot": plots.timeline(track, row.thresholds, seconds),
        "pictures": pictures,
        "trouble": trouble,
        "thumb": crop_image(best["crop"], THUMB_PX) if best else None,
        "reasons": [REASON_TEXT[reason] for reason in track.reasons],
    }


def _load(folder: Path, entry: TrackMedia) -> LoadedMedia:
    loaded = load_media(folder, entry)
    if not len(loaded.crops) == len(loaded.patch_scores) == len(entry.faces):
        raise DataError(
            f"{folder / entry.patches}: {len(loaded.patch_scores)} faces, wanted {len(entry.faces)}; "
            "screen the file again"
        )
    return loaded


def _pictures(track: TrackRow, loaded: LoadedMedia, top: float) -> Iterator[dict[str, Any]]:
    faces = [track.faces[i] for i in track.media.faces] if track.media else []
    for face, crop, patches in zip(faces, loaded.crops, loaded.patch_scores, strict=True):
        yield {
            "crop": crop,
            "image": crop_image(crop, CROP_PX),
            "heat": heat_image(patches, top),
            "time": face.time_s,
            "score": known(face.score),
            "usable": face.usable,
        }


def _heat_top(rows: Sequence[Row], media: Path | None) -> float:
    """The patch score drawn brightest [ours]: one for the whole report, so that faces can be compared."""
    values = [np.zeros(0, np.float32)]
    if media is not None:
        for entry in (track.media for row in rows for track in row.tracks if track.media):
            # A track whose files are gone says so in its own place.
            with contextlib.suppress(DataError):
                values.append(_load(media, entry).patch_scores.ravel())
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    return max(float(np.percentile(finite, 99.5)), 1e-9) if finite.size else 1.0


def _say(row: Row) -> str:
    """The verdict as a sentence."""
    score = known(row.score)
    if row.status == "failed":
        return "This file could not be screened."
    if score is None:
        return "No verdict for this file."
    for line in row.thresholds:
        if line.verdict == row.verdict:
            return (
                f"The score {score_text(score)} reaches the {line.verdict} line at {score_text(line.score)}, "
                f"as {reached_by(line)} of authentic videos do."
            )
    lowest = score_text(min((t.score for t in row.thresholds), default=None))
    return (
        f"The score {score_text(score)} stays below the lowest line, {lowest}. "
        "This does not prove that the video is genuine."
    )


def _counts(rows: Sequence[Row]) -> list[tuple[str, float]]:
    counts = Counter(map(outcome, rows))
    return [(name, counts[name]) for name in OUTCOMES]


def _in_order(stages: dict[str, float]) -> dict[str, float]:
    names = [*STAGES, *(name for name in stages if name not in STAGES)]
    return {name: stages[name] for name in names if name in stages}


def _failures(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """Failed rows by their first reason, commonest first: (code, plain words, rows)."""
    groups: dict[Reason | None, list[Row]] = {}
    for row in rows:
        if row.status == "failed":
            groups.setdefault(row.reasons[0] if row.reasons else None, []).append(row)
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [(c, REASON_TEXT[c], g) if c else ("FAILED", "no reason was recorded", g) for c, g in ranked]


def _sha(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
