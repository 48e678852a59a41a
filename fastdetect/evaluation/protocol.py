"""`fastdetect evaluate`: how well a model tells each type of manipulation from reals, and what wears it down."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.markdown import Markdown

from fastdetect import __version__
from fastdetect import config as configuration
from fastdetect.data.jobs import Counter
from fastdetect.engines import load_engine
from fastdetect.engines.base import Engine, EngineName, Precision
from fastdetect.engines.graph import Scoring
from fastdetect.engines.load import deciding_part
from fastdetect.errors import UsageError
from fastdetect.evaluation.cross import By, Prediction, cross_manipulation, predictions, read_predictions
from fastdetect.evaluation.figures import across, conditions, report
from fastdetect.evaluation.index import AUTO, Entry, Videos, overlap, read_videos
from fastdetect.evaluation.page import write_page
from fastdetect.evaluation.robustness import Condition, parse_conditions
from fastdetect.evaluation.runner import Measured, Runner, contract_margin
from fastdetect.evaluation.scoring import AGGREGATION, Pictures
from fastdetect.evaluation.synthetic import parse_kinds, synthetic_figures
from fastdetect.evaluation.tables import cross_markdown, to_markdown, write_csv
from fastdetect.video.sampling import SamplingPolicy

__all__ = ["EvaluateConfig", "contract_margin", "evaluate", "main", "report", "to_markdown"]


class EvaluateConfig(BaseModel):
    """What `fastdetect evaluate` runs on.

    Args:
        index: index.csv files, manifests or data sets, [NAME=]PATH; see `read_videos`.
        model: model folder, name of a shipped model, or Hub id.
        split: rows of this split; auto, or all.
        compressions: rows of these levels; none: of every level.
        root: what the paths in manifests, indices and lists start at, where the data was moved since.
        sampling, max_seconds: which frames; calibrated thresholds hold for the policy they were fitted with.
        robustness: parts of the grid, see `parse_conditions`.
        synthetic: kinds of fakes to make from the reals, see `parse_kinds`.
        protocol: standard, or cross-manipulation over `trained`.
        trained: what each model was trained on -> model, or the evaluation.json of an earlier run.
        by: columns of cross-manipulation.
        trained_on: indices or manifests that the model was trained on; what is measured may not be in their train
            splits.
        engine, device, precision, threads: how the model runs; `threads` also decode and find faces.
        output: folder for evaluation.json, evaluation.md, report.html, scores.csv, figures.csv and the resolved
            config.yaml.
        media: show the faces of the worst files in the report; worst: how many reals and fakes.
        resamples, seed: of the bootstrap.
    """

    model_config = ConfigDict(extra="forbid")

    index: list[str] = []
    model: str = "fastdetect-small"
    split: str = AUTO
    compressions: list[str] = []
    root: Path | None = None
    sampling: str = "uniform:16"
    max_seconds: float | None = Field(default=None, gt=0)
    robustness: list[str] = []
    synthetic: list[str] = []
    protocol: Literal["standard", "cross-manipulation"] = "standard"
    trained: dict[str, str] = {}
    by: By = "method"
    trained_on: list[str] = []
    engine: EngineName = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    threads: int = Field(default=1, ge=1)
    output: Path = Path("evaluation")
    media: bool = True
    worst: int = Field(default=8, ge=0)
    resamples: int = Field(default=2000, ge=10)
    seed: int = 0


def evaluate(
    settings: EvaluateConfig, console: Console | None = None
) -> tuple[dict[str, Any], dict[str, Pictures], dict[str, Entry]]:
    """Run a model over videos, through the stages of screening, and work out every figure.

    Args:
        settings: what to run; the protocol is taken as standard.
        console: where progress is shown.
    Returns:
        The result, JSON-ready; the pictures of the files it got most wrong by key; and the videos by key.
    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: an index cannot be read, videos are in the training split too, or a class has no score.
        UsageError: a setting cannot be used.
    """
    grid, kinds = parse_conditions(settings.robustness), parse_kinds(settings.synthetic)
    policy, videos = SamplingPolicy.parse(settings.sampling), _videos(settings)
    part = deciding_part(settings.model)
    engine = _load(settings, settings.model, part)
    with closing(engine):
        if engine.grid is None and part == "detector" and settings.media and settings.worst:
            raise UsageError(
                f"{settings.model} is an export of the verdict alone, which inpaints nothing: give --no-media, or "
                "export --part detector"
            )
        runner = Runner(
            {"model": engine},
            policy,
            max_seconds=settings.max_seconds,
            threads=settings.threads,
            worst=settings.worst if settings.media else 0,
            explain=partial(_load, settings, settings.model, "detector") if part == "verdict" else None,
        )
        measured = _measure(runner, videos.entries, grid, bool(kinds), console)
        scores = measured.scores["model"]
        calibration, options = engine.info.calibration, _options(settings)
        result = _about(settings, engine, videos, calibration)
        result |= report(videos.entries, scores, calibration, **options)
        if "types" in result and len({entry.dataset for entry in videos.entries}) > 1:
            result |= across(videos.entries, scores, calibration, **options)
        if grid:
            result["robustness"] = conditions(videos.entries, scores, measured.conditions, calibration, **options)
        if kinds:
            result["synthetic"] = synthetic_figures(measured.clips, engine, kinds, **options)
    return result, measured.pictures, {entry.key: entry for entry in videos.entries}


def _videos(settings: EvaluateConfig) -> Videos:
    split, root = None if settings.split == "all" else settings.split, settings.root
    videos = read_videos(settings.index, split, compressions=settings.compressions, root=root)
    if settings.trained_on:
        known = read_videos(settings.trained_on, None, root=root)
        splits = {row.split for row in known.entries}
        trained = [row for row in known.entries if row.split == "train" or "train" not in splits]
        told = [text for text in known.warnings if text not in videos.warnings]
        videos.warnings.extend(told + overlap(videos.entries, trained))
    return videos


def _load(settings: EvaluateConfig, model: str, part: Scoring) -> Engine:
    return load_engine(
        model,
        engine=settings.engine,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        part=part,
    )


def _options(settings: EvaluateConfig) -> dict[str, int]:
    return {"resamples": settings.resamples, "seed": settings.seed}


def _measure(
    runner: Runner, entries: Sequence[Entry], grid: Sequence[Condition], clips: bool, console: Console | None
) -> Measured:
    with Counter("measuring", len(entries), console=console) as counter:
        return runner.run(entries, grid, keep_clips=clips, step=lambda failed: counter.step(failed=failed))


def _about(
    settings: EvaluateConfig, engine: Engine, videos: Videos, calibration: Mapping[str, Any] | None
) -> dict[str, Any]:
    warnings = list(videos.warnings)
    if calibration and (calibration["sampling"] != settings.sampling or settings.max_seconds):
        first = f" in the first {settings.max_seconds:g} s" if settings.max_seconds else ""
        warnings.append(
            f"the thresholds are for the sampling {calibration['sampling']}; with {settings.sampling}{first} their "
            "false-positive rates hold only roughly"
        )
    return {
        "model": engine.info.model_id,
        "weights_sha256": engine.info.weights_sha256,
        "sampling": settings.sampling,
        "max_seconds": settings.max_seconds,
        "aggregation": AGGREGATION,
        "engine": engine.name,
        "device": engine.device,
        "precision": engine.precision,
        "fastdetect": __version__,
        "splits": sorted({entry.split for entry in videos.entries}),
        "compressions": sorted({entry.compression for entry in videos.entries} - {""}) or None,
        "warnings": warnings,
    }


def evaluate_across(settings: EvaluateConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the cross-manipulation protocol: every video is decoded once and scored by every model.

    Each model's own report is written to a folder of its name below the output, so that its evaluation.json can stand
    for it in a later run.

    Raises:
        CheckpointError: a model cannot be loaded.
        DataError: see `cross_manipulation`.
        UsageError: fewer than two models, or models to run and no index.
    """
    known = {name: Path(place) for name, place in settings.trained.items() if place.endswith(".json")}
    found: dict[str, Sequence[Prediction]] = {name: read_predictions(path) for name, path in known.items()}
    told: dict[str, Any] = {"trained": dict(settings.trained), "sampling": settings.sampling, "fastdetect": __version__}
    if len(known) < len(settings.trained):
        videos = _videos(settings)
        told["warnings"] = videos.warnings
        with ExitStack() as stack:
            engines = {
                name: stack.enter_context(closing(_load(settings, place, deciding_part(place))))
                for name, place in settings.trained.items()
                if name not in known
            }
            policy = SamplingPolicy.parse(settings.sampling)
            runner = Runner(engines, policy, max_seconds=settings.max_seconds, threads=settings.threads)
            measured = _measure(runner, videos.entries, (), False, console)
            for name, engine in engines.items():
                own = _about(settings, engine, videos, engine.info.calibration)
                own |= report(videos.entries, measured.scores[name], engine.info.calibration, **_options(settings))
                _write(own, settings.output / _folder(name), f"Evaluation of {name}")
                found[name] = predictions(videos.entries, measured.scores[name])
            told["failed"] = {
                entry.name: outcome
                for entry, outcome in zip(videos.entries, next(iter(measured.scores.values())), strict=True)
                if isinstance(outcome, str)
            }
    ordered = {name: found[name] for name in settings.trained}
    return told | {"cross_manipulation": cross_manipulation(ordered, by=settings.by, **_options(settings))}


def _folder(name: str) -> str:
    return re.sub(r"[^\w+-]+", "_", name)


def _writable(folder: Path) -> None:
    """Make the output folder before anything is measured, which takes long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; give another --output") from error


def _write(result: Mapping[str, Any], folder: Path, title: str) -> str:
    """Write the JSON, CSV and Markdown of a result; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _cross_text(result, title) if "cross_manipulation" in result else to_markdown(result, title)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", "utf-8")
    (folder / "evaluation.md").write_text(text, "utf-8")
    write_csv(result, folder)
    return text


def _cross_text(result: Mapping[str, Any], title: str) -> str:
    warnings = [line for text in result.get("warnings", ()) for line in (f"**Warning**: {text}.", "")]
    return "\n".join([f"# {title}", "", *warnings, *cross_markdown(result["cross_manipulation"])]) + "\n"


def main(config: Path | None, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> int:
    """Run `fastdetect evaluate`: print the tables, write the result in every form.

    Returns:
        The exit code: 0, or 3 where a file could not be decoded.
    Raises:
        UsageError: a setting cannot be used, or the output not be written to; before anything is measured.
        DataError, CheckpointError: as in `evaluate`.
    """
    settings = configuration.load(EvaluateConfig, config, overrides, options)
    console, log = Console(), Console(stderr=True)
    if settings.trained and settings.protocol == "standard":
        raise UsageError("--trained names models for --protocol cross-manipulation; give that, or --model")
    _writable(settings.output)
    pictures: dict[str, Pictures] = {}
    videos: dict[str, Entry] = {}
    if settings.protocol == "cross-manipulation":
        result, title = evaluate_across(settings, log), "Cross-manipulation"
    else:
        result, pictures, videos = evaluate(settings, log)
        title = f"Evaluation of {result['model']}"
    text = _write(result, settings.output, title)
    write_page(result, settings.output / "report.html", title=title, pictures=pictures, entries=videos)
    configuration.save(settings, settings.output / "config.yaml")
    console.print(Markdown(text))
    console.print(f"written to {settings.output}: report.html is for looking at", highlight=False)
    return 3 if result.get("failed") else 0
