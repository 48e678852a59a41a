"""`fastdetect evaluate`: how well a model tells each type of manipulation from reals, over an index."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.markdown import Markdown

from fastdetect import __version__
from fastdetect.engines import Engine, load_engine
from fastdetect.engines.torch_engine import Precision
from fastdetect.errors import MediaError, UsageError
from fastdetect.evaluation import metrics
from fastdetect.evaluation.calibration import calibrate, check_fpr
from fastdetect.evaluation.index import REAL, Entry, read_index
from fastdetect.evaluation.scoring import AGGREGATION, VideoScore, score_video
from fastdetect.faces.centerface import CenterFaceDetector
from fastdetect.faces.crop import MARGIN
from fastdetect.video.sampling import SamplingPolicy


class EvaluateConfig(BaseModel):
    """What `fastdetect evaluate` runs on.

    Args:
        index: CSV files with the columns of `COLUMNS`, one row per video (paths relative to the index's
        folder or its
            parent).
        model: model folder or the name of a shipped model.
        split: rows of this split only; None takes all.
        sampling, max_seconds: which frames; calibrated thresholds hold for the policy they were fitted with.
        engine, device, precision, threads: how the model runs.
        output: folder for evaluation.json, evaluation.md and the resolved config.yaml.
        resamples, seed: of the bootstrap.
    """

    model_config = ConfigDict(extra="forbid")

    index: list[Path]
    model: str = "fastdetect-small"
    split: str | None = "validation"
    sampling: str = "uniform:16"
    max_seconds: float | None = None
    engine: str = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    threads: int = 1
    output: Path = Path("evaluation")
    resamples: int = 2000
    seed: int = 0


def report(
    entries: Sequence[Entry],
    scores: Sequence[VideoScore | str],
    calibration: Mapping[str, Any] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure of an evaluation, JSON-ready.

    A video without a score (no person with enough usable faces, or a failure) enters no metric; `coverage`
    and `unscored` say which they are.

    Args:
        entries: the videos.
        scores: of each; a text says why the file failed.
        calibration: the model's block: adds rates at its thresholds and the calibration error.
        resamples, seed: of the bootstrap.
    Raises:
        DataError: no real or no fake could be scored.
    """
    rows = [(e, s) for e, s in zip(entries, scores, strict=True) if isinstance(s, VideoScore) and s.margin is not None]
    kept, found = [e for e, _ in rows], [s for _, s in rows]
    labels, margins = np.array([e.label for e in kept]), np.array([s.margin for s in found], dtype=np.float64)
    groups, types = [e.identity for e in kept], [e.type for e in kept]
    options = {"resamples": resamples, "seed": seed}
    overall = metrics.summary(labels, margins)
    frame_labels = np.concatenate([np.full(s.face_margins.size, e.label) for e, s in rows])
    result: dict[str, Any] = {
        "videos": {
            "real": int((labels == 0).sum()),
            "fake": int((labels == 1).sum()),
            "listed": len(entries),
        },
        "identities": len(set(groups)),
        "coverage": len(rows) / len(entries),
        "abstained": [
            e.name for e, s in zip(entries, scores, strict=True) if not isinstance(s, str) and s.margin is None
        ],
        "failed": {e.name: s for e, s in zip(entries, scores, strict=True) if isinstance(s, str)},
        "mean_auc": _interval(metrics.mean_auc_interval(types, margins, groups, resamples=resamples, seed=seed)),
        "overall": overall | {"auc": _interval(metrics.auc_interval(labels, margins, groups, **options))},
        "frame_auc": metrics.roc_auc(frame_labels, np.concatenate([s.face_margins for s in found])),
        "paired": _paired(kept, margins, np.ones(len(kept), bool)),
        "types": _by_class(kept, margins, types, options),
        "methods": _by_class(kept, margins, [e.manipulation for e in kept], options),
        "rows": [
            {
                "file": e.name,
                "label": e.label,
                "manipulation": e.manipulation,
                "identity": e.identity,
                "margin": s.margin,
            }
            for e, s in rows
        ],
    }
    if calibration is not None:
        p = calibrate(calibration, margins)
        result["calibration_id"] = calibration["id"]
        result["ece"] = metrics.expected_calibration_error(labels, p)
        result["thresholds"] = {key: _rates(p, labels, value) for key, value in calibration["thresholds"].items()}
    return result


def _by_class(
    entries: Sequence[Entry], margins: np.ndarray, classes: Sequence[str], options: Mapping[str, int]
) -> dict[str, Any]:
    """Per class of fakes, worst first: count, identities, AUC against all reals with its interval, pairs."""
    kinds = np.asarray(classes)
    result: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(classes) - {REAL}):
        rows = np.flatnonzero((kinds == kind) | (kinds == REAL)).tolist()
        labels = (kinds[rows] == kind).astype(int)
        auc = metrics.auc_interval(labels, margins[rows], [entries[i].identity for i in rows], **options)
        result[kind] = {
            "fakes": int(labels.sum()),
            "identities": len({e.identity for e, c in zip(entries, classes, strict=True) if c == kind}),
            "auc": _interval(auc),
            "paired": _paired(entries, margins, kinds == kind),
        }
    return dict(sorted(result.items(), key=lambda item: item[1]["auc"]["value"]))


def _paired(entries: Sequence[Entry], margins: np.ndarray, chosen: np.ndarray) -> dict[str, int]:
    by_path = {entry.path: margin for entry, margin in zip(entries, margins, strict=True)}
    pairs = [
        (margins[i], by_path[e.paired]) for i, e in enumerate(entries) if chosen[i] and e.label and e.paired in by_path
    ]
    counts = metrics.paired_counts([fake for fake, _ in pairs], [real for _, real in pairs])
    return {"wins": counts.wins, "ties": counts.ties, "n": counts.n}


def _rates(p: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, Any]:
    fpr, fpr_interval = check_fpr(p[labels == 0], threshold)
    tpr, tpr_interval = check_fpr(p[labels == 1], threshold)  # the same binomial, of fakes
    return {
        "threshold": threshold,
        "fpr": fpr,
        "fpr_interval": list(fpr_interval),
        "tpr": tpr,
        "tpr_interval": list(tpr_interval),
    }


def _interval(interval: metrics.Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def to_markdown(result: Mapping[str, Any], title: str = "Evaluation") -> str:
    """The report as Markdown tables, the worst type first."""

    def auc(block: Mapping[str, float]) -> str:
        return f"{block['value']:.3f} [{block['low']:.3f}, {block['high']:.3f}]"

    def pairs(block: Mapping[str, int]) -> str:
        return f"{block['wins']}/{block['n']}" if block["n"] else "–"

    videos, overall = result["videos"], result["overall"]
    lines = [
        f"# {title}",
        "",
        f"{videos['real']} real and {videos['fake']} fake videos of {result['identities']} identities; "
        f"coverage {100 * result['coverage']:.0f} % of {videos['listed']} files. "
        "AUC at video level against all reals, 95 % bootstrap intervals by identity.",
        "",
        "| manipulation | fakes | identities | AUC | fake above its own real |",
        "|---|---|---|---|---|",
    ]
    for name, block in [*result["types"].items(), *result["methods"].items()]:
        row = f"{block['fakes']} | {block['identities']} | {auc(block['auc'])} | {pairs(block['paired'])} |"
        lines.append(f"| {'**' + name + '**' if name in result['types'] else name} | {row}")
    lines += [
        f"| **mean of types** | {videos['fake']} | | {auc(result['mean_auc'])} | {pairs(result['paired'])} |",
        f"| all fakes | {videos['fake']} | | {auc(overall['auc'])} | |",
        "",
        f"Frame AUC {result['frame_auc']:.3f}, AP {overall['ap']:.3f}, EER {overall['eer']:.3f}, "
        f"TPR at 5 % FPR {overall['tpr@0.05']:.3f}, at 1 % {overall['tpr@0.01']:.3f} "
        "(thresholds chosen on these files).",
    ]
    if "thresholds" in result:
        lines += [
            "",
            f"Stored calibration {result['calibration_id']}, ECE {result['ece']:.3f}:",
            "",
            "| target FPR | threshold | realised FPR | TPR |",
            "|---|---|---|---|",
        ]
        for key, row in sorted(result["thresholds"].items(), key=lambda item: float(item[0])):
            cells = [
                f"{row[name]:.3f} [{row[name + '_interval'][0]:.3f}, {row[name + '_interval'][1]:.3f}]"
                for name in ("fpr", "tpr")
            ]
            lines.append(f"| {100 * float(key):g} % | {row['threshold']:.4f} | {' | '.join(cells)} |")
    if result["abstained"]:
        lines += ["", "Too few usable faces for a score: " + ", ".join(result["abstained"]) + "."]
    for name, why in result["failed"].items():
        lines += ["", f"Failed: {name}: {why}"]
    return "\n".join(lines) + "\n"


def score_entries(
    entries: Sequence[Entry],
    score: Callable[[Entry], VideoScore],
    *,
    progress: Callable[[str], None] | None = None,
) -> list[VideoScore | str]:
    """Score every entry; a file that cannot be decoded gives its reason as text and stops nothing."""
    scores: list[VideoScore | str] = []
    for position, entry in enumerate(entries, 1):
        try:
            scores.append(score(entry))
        except MediaError as error:
            scores.append(f"{error.reason}: {error}")
        if progress:
            progress(f"{position}/{len(entries)} {entry.name}")
    return scores


def evaluate_videos(
    model: str,
    entries: Sequence[Entry],
    *,
    policy: SamplingPolicy,
    max_seconds: float | None = None,
    engine: str = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    threads: int = 1,
    resamples: int = 2000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a model over videos, through the stages of screening, and report every figure.

    Args:
        model: model folder or the name of a shipped model.
        entries: the videos.
        policy, max_seconds: which frames.
        engine, device, precision, threads: how the model runs; `threads` also decode and find faces.
        resamples, seed: of the bootstrap.
        progress: told one line per video.
    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: no real or no fake could be scored.
    """
    runtime = load_engine(model, engine=engine, device=device, precision=precision, threads=threads)
    detector, margin, info = CenterFaceDetector(threads=threads), contract_margin(runtime), runtime.info

    def score(entry: Entry) -> VideoScore:
        return score_video(entry.path, runtime, detector, policy, margin=margin, max_seconds=max_seconds)

    scores = score_entries(entries, score, progress=progress)
    runtime.close()
    result = report(entries, scores, info.calibration, resamples=resamples, seed=seed)
    about = {
        "model": info.model_id,
        "weights_sha256": info.weights_sha256,
        "sampling": str(policy),
        "aggregation": AGGREGATION,
        "engine": runtime.name,
        "device": runtime.device,
        "precision": runtime.precision,
        "fastdetect": __version__,
    }
    return about | result


def contract_margin(engine: Engine) -> float:
    """The crop margin of a model's preprocess contract."""
    return engine.info.preprocess.margin if engine.info.preprocess else MARGIN


def load_config(path: Path | None, overrides: Sequence[str]) -> EvaluateConfig:
    """Read a YAML file and `key=value` overrides, values as YAML.

    Raises:
        UsageError: the file cannot be read, or a key or value is not one of the configuration's.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {} if path else {}
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"--set {text}: wanted key=value, for example split=validation")
            values[key.strip()] = yaml.safe_load(value)
        return EvaluateConfig.model_validate(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        raise UsageError(f"configuration of evaluate cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{where}: {first['msg']}, got {first.get('input')!r}; e.g. --set index=[videos/index.csv]"
        ) from error


def main(config: Path | None, overrides: list[str]) -> int:
    """Run `fastdetect evaluate`: print the tables; write evaluation.json, evaluation.md and config.yaml.

    Returns:
        The exit code: 0, or 3 where a file could not be decoded.
    """
    settings = load_config(config, overrides)
    entries = read_index(settings.index, settings.split)
    console, log = Console(), Console(stderr=True)
    options = settings.model_dump(exclude={"index", "split", "sampling", "output", "model"})
    result = evaluate_videos(
        settings.model,
        entries,
        policy=SamplingPolicy.parse(settings.sampling),
        progress=lambda line: log.print(line, style="dim", highlight=False),
        **options,
    )
    settings.output.mkdir(parents=True, exist_ok=True)
    text = to_markdown(result, f"Evaluation of {result['model']}")
    (settings.output / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (settings.output / "evaluation.md").write_text(text, "utf-8")
    resolved = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    (settings.output / "config.yaml").write_text(resolved, "utf-8")
    console.print(Markdown(text))
    console.print(f"written to {settings.output}", highlight=False)
    return 3 if result["failed"] else 0
