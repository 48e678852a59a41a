"""The command line: one thin command per verb; whatever a verb needs is imported when it runs."""

import importlib
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdetect import __version__
from fastdetect.errors import FastdetectError, MissingDependencyError, UsageError
from fastdetect.process import hold_standard_streams, patient, stoppable

app = typer.Typer(
    name="fastdetect",
    help="Finds manipulated faces in video, fast. An estimate, not evidence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
_shown = {"traceback": False}

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key of the configuration.")
]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML configuration.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastdetect {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    _shown["traceback"] = debug


@app.command()
@stoppable("with --resume the same command goes on with the rows that are there")
def screen(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs or @list.txt; videos and images.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where results go.")] = Path(
        "fastdetect-out"
    ),
    resume: Annotated[bool, typer.Option(help="Go on with the rows already in the output folder.")] = False,
    lists: Annotated[
        list[Path] | None,
        typer.Option("--list", metavar="FILE", help="A file that names inputs, one a line."),
    ] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only the I-th of N equal parts.")] = None,
    model: Annotated[str | None, typer.Option(help="Shipped name, folder or Hub id. [fastdetect-small]")] = None,
    sample: Annotated[
        str | None, typer.Option(metavar="POLICY", help="uniform:N, fps:X, keyframes or all. [uniform:16]")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Look at the first seconds only.")] = None,
    faces: Annotated[str | None, typer.Option(help="all or largest. [all]")] = None,
    fpr_suspicious: Annotated[
        float | None, typer.Option(help="Suspicious from this false-positive rate on. [0.05]")
    ] = None,
    fpr_manipulated: Annotated[
        float | None, typer.Option(help="Manipulated from this false-positive rate on. [0.01]")
    ] = None,
    threshold_suspicious: Annotated[float | None, typer.Option(help="A score instead of --fpr-suspicious.")] = None,
    threshold_manipulated: Annotated[float | None, typer.Option(help="A score instead of --fpr-manipulated.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="auto, torch, torch-compile, torch-cuda-graph, onnxruntime, openvino, tensorrt or tensorrt-rtx. [auto]"
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. [auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, fp16 or bf16. [auto]")] = None,
    decoder: Annotated[str | None, typer.Option(help="auto (NVDEC if it can), dali, nvcodec or pyav. [auto]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode and find faces. [one per core]")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds of wall time per file. [120]")] = None,
    no_media: Annotated[bool, typer.Option("--no-media", help="Keep no picture of any face.")] = False,
    residual: Annotated[
        str | None, typer.Option(help="shown or all: faces inpainted where the verdict needs none. [shown]")
    ] = None,
    uncalibrated: Annotated[
        bool,
        typer.Option("--uncalibrated", help="Allow a model without calibration: no scores, no verdicts."),
    ] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Screen videos and images: a verdict per file, results.jsonl and a report.

    Exit code: 0 nothing flagged, 1 something flagged, 2 usage error, 3 some files failed (even where others were
    flagged) or results could not be written, 130 stopped (go on with --resume).
    """
    from fastdetect.screening.config import load_config
    from fastdetect.screening.inputs import expand_inputs
    from fastdetect.screening.run import run_screening

    options: dict[str, Any] = {
        "model": model,
        "sample": sample,
        "max_seconds": max_seconds,
        "faces": faces,
        "verdict.fpr_suspicious": fpr_suspicious,
        "verdict.fpr_manipulated": fpr_manipulated,
        "verdict.threshold_suspicious": threshold_suspicious,
        "verdict.threshold_manipulated": threshold_manipulated,
        "engine": engine,
        "device": device,
        "precision": precision,
        "decoder": decoder,
        "workers": workers,
        "timeout": timeout,
        "media": False if no_media else None,
        "residual": residual,
        "uncalibrated": uncalibrated or None,
    }
    named = [*(inputs or ()), *(f"@{path}" for path in lists or ())]
    if not named:
        raise UsageError("nothing to screen: name files, folders, globs or @list.txt")
    files = expand_inputs(named, shard=shard, output=output)
    settings = load_config(config, overrides or (), options)
    raise typer.Exit(run_screening(files, output, settings, resume=resume).exit_code)


@app.command()
@stoppable("the same command begins again")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER")] = Path("demo"),
    open_report: Annotated[bool, typer.Option("--open", help="Show the report in a browser.")] = False,
) -> None:
    """Screen footage that comes inside installed packages, real and manipulated here, and write the report."""
    from fastdetect.screening.demo import run_demo

    raise typer.Exit(run_demo(output, open_=open_report))


@app.command()
def doctor(
    clips: Annotated[list[str] | None, typer.Argument(help="Of --parity: your files or folders.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    parity: Annotated[
        bool, typer.Option("--parity", help="Screen a portrait with every decoder and engine here, and compare.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Of --parity. [fastdetect-small]")] = None,
) -> None:
    """Say what this machine has, what is missing and what that costs."""
    if parity:
        from fastdetect.screening.parity import run_parity

        if as_json:
            raise UsageError("--json is of doctor without --parity; leave one of them out")
        raise typer.Exit(run_parity(model=model or "fastdetect-small", clips=clips or []))
    if clips or model:
        got = ([f"--model {model}"] if model else []) + (clips or [])
        raise UsageError(f"doctor takes files and a model with --parity only; got {' '.join(got)}")
    from fastdetect.screening.doctor import run_doctor

    raise typer.Exit(run_doctor(as_json))


RunOutput = Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where the run goes.")]
Steps = Annotated[int | None, typer.Option(help="Budget in steps of the optimiser; or")]
Minutes = Annotated[float | None, typer.Option(help="in minutes.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the output's state.pt.")]


@app.command()
def pretrain(
    packs: Annotated[
        list[Path] | None, typer.Argument(help="Face packs, see `fastdetect data pack`.", show_default=False)
    ] = None,
    output: RunOutput = None,
    init: Annotated[str | None, typer.Option(help="Model to start from: folder, shipped name or Hub id.")] = None,
    masking: Annotated[str | None, typer.Option(help="random, block or facial. [random]")] = None,
    steps: Steps = None,
    minutes: Minutes = None,
    resume: Resume = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Pretrain the masked image model on real faces; under torchrun on several GPUs or machines."""
    from fastdetect.training.pretrain import main as run

    options: dict[str, Any] = {
        "packs": packs or None,
        "output": output,
        "init": init,
        "masking": masking,
        "steps": steps,
        "minutes": minutes,
        "resume": resume or None,
    }
    raise typer.Exit(run(config, overrides or [], options))


@app.command()
def train(
    pack: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Reals, of which fakes are made; or")] = None,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="a set's own reals and fakes: what `data extract` wrote.")
    ] = None,
    output: RunOutput = None,
    mim: Annotated[Path | None, typer.Option(help="Masked image model: folder or shipped name.")] = None,
    init: Annotated[Path | None, typer.Option(help="Detector to start from: folder or shipped name.")] = None,
    loss: Annotated[str | None, typer.Option(help="ce, supcon or real-centric. [ce]")] = None,
    margin: Annotated[float | None, typer.Option(help="Of the real-centric loss. [0.1]")] = None,
    no_residual: Annotated[bool, typer.Option("--no-residual", help="The image branch alone.")] = False,
    no_fusion: Annotated[bool, typer.Option("--no-fusion", help="Real-centric without fused negatives.")] = False,
    no_synthesis: Annotated[
        bool, typer.Option("--no-synthesis", help="Real-centric without synthetic positives.")
    ] = False,
    steps: Steps = None,
    minutes: Minutes = None,
    patience: Annotated[int | None, typer.Option(help="Validations without a better one that end the run.")] = None,
    resume: Resume = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Train the two-branch detector on a set's own fakes or on fakes made of reals; under torchrun on several GPUs."""
    from fastdetect.training.train import main as run

    options: dict[str, Any] = {
        "pack": pack,
        "manifest": manifest,
        "output": output,
        "mim": mim,
        "init": init,
        "loss": loss,
        "margin": margin,
        "residual": False if no_residual else None,
        "fusion": False if no_fusion else None,
        "synthesis": False if no_synthesis else None,
        "steps": steps,
        "minutes": minutes,
        "patience": patience,
        "resume": resume or None,
    }
    raise typer.Exit(run(config, overrides or [], options))


@app.command()
def evaluate(
    videos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]INDEX",
            help="index.csv files, manifests (.parquet) or data sets as they lie on disk; NAME makes them one set.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where the result goes. [evaluation]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Shipped name, folder or Hub id. [fastdetect-small]")] = None,
    split: Annotated[
        str | None, typer.Option(help="auto (test, else validation, else all), all, or a split's name. [auto]")
    ] = None,
    compression: Annotated[list[str] | None, typer.Option(help="Only these compressions.")] = None,
    root: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the data lies now.")] = None,
    sample: Annotated[
        str | None, typer.Option(metavar="POLICY", help="uniform:N, fps:X, keyframes or all. [uniform:16]")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Look at the first seconds only.")] = None,
    robustness: Annotated[
        list[str] | None,
        typer.Option(metavar="TEST", help="all, jpeg, blur, resize, noise or h264, or strengths: h264:23,40."),
    ] = None,
    synthetic: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Also on fakes made of the reals: all, self_blend, swap, resynthesis."),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="standard or cross-manipulation. [standard]")] = None,
    trained: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=MODEL", help="Of cross-manipulation: a model, or its evaluation.json, and what it knows."
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Of cross-manipulation: columns by method or type. [method]")] = None,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(metavar="INDEX", help="What the model was trained on: none of it may be measured."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="As of screen. [auto]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. [auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, fp16 or bf16. [auto]")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the model, the decoder and the face detector. [1]")] = None,
    no_media: Annotated[bool, typer.Option("--no-media", help="Keep no picture of any face.")] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Measure a model: AUC per manipulation with intervals, error rates, calibration, robustness; and a report.

    Exit code: 0; 2 where an option cannot be used or the output not be written to, before anything is measured; 3 where
    the data cannot be read, a file could not be decoded, or too few for any figure.
    """
    from fastdetect.evaluation.protocol import main as run

    named = dict(text.partition("=")[::2] for text in trained or ())
    if not all(named.values()):
        raise UsageError(
            f"--trained {' '.join(trained or ())}: wanted KIND=MODEL, for example Deepfakes=runs/deepfakes"
        )
    options: dict[str, Any] = {
        "index": videos or None,
        "output": output,
        "model": model,
        "split": split,
        "compressions": compression,
        "root": root,
        "sampling": sample,
        "max_seconds": max_seconds,
        "robustness": robustness,
        "synthetic": synthetic,
        "protocol": protocol,
        "trained": named or None,
        "by": by,
        "trained_on": trained_on,
        "engine": engine,
        "device": device,
        "precision": precision,
        "threads": threads,
        "media": False if no_media else None,
    }
    raise typer.Exit(run(config, overrides or [], options))


@app.command()
def calibrate(
    pack: Annotated[Path, typer.Argument(help="Face pack with held-out persons.")],
    model: Annotated[Path, typer.Option(help="Model folder; its config.json gets the block.")],
    splits: Annotated[str, typer.Option(help="Splits that training never saw.")] = "val,test",
    check: Annotated[
        str, typer.Option(metavar="SPLITS", help="Splits to check the thresholds on. [folds of --splits]")
    ] = "",
    sample: Annotated[str, typer.Option(metavar="POLICY", help="Policy that the thresholds are for.")] = "uniform:16",
    degraded: Annotated[
        bool, typer.Option("--degraded/--as-packed", help="Change each clip as training does, or take it as it is.")
    ] = True,
) -> None:
    """Fit a model's probabilities and thresholds on held-out reals and fakes made from them, and check them."""
    from fastdetect.evaluation.calibrate import main as run

    raise typer.Exit(run(pack, model, splits=splits, check=check, sampling=sample, degraded=degraded))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Time every op against its floor and its peers; needs a source checkout. Its options: `bench --help`."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "bench" / "__main__.py").is_file():
        raise UsageError(
            "the benchmarks are in the source repository, not in the installed package: clone it, "
            "pip install --no-build-isolation -e '.[bench]' there, and run fastdetect bench or python -m bench"
        )
    sys.path.insert(0, str(root))
    raise typer.Exit(importlib.import_module("bench.__main__").main(context.args))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Shipped name, folder or Hub id.")],
    to: Annotated[str, typer.Option(help="onnx, openvino, tensorrt, tensorrt-rtx or torch.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")],
    part: Annotated[str, typer.Option(help="detector, verdict, masked-image-model or face-detector.")] = "detector",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 or bf16; for ONNX and TensorRT int8 or fp8, with --faces.")
    ] = "fp32",
    faces: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="int8, fp8: real videos and pictures that give the ranges; repeatable."),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="TensorRT: latency, balanced, throughput, a size, or least,best,most. [balanced]")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="SM", help="TensorRT-RTX: build for it, such as sm_89.")] = None,
) -> None:
    """Write a network for another runtime, with its preprocess contract and calibration inside."""
    from fastdetect.engines.export import main as run
    from fastdetect.screening.inputs import expand_inputs

    files = [entry.path for entry in expand_inputs(faces)] if faces else []
    raise typer.Exit(run(model, to, output, part=part, precision=precision, batch=batch, gpu=gpu, faces=files))


models_app = typer.Typer(help="Model folders.", no_args_is_help=True)
app.add_typer(models_app, name="models")


@models_app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint of the official MAE with its decoder (.pth).")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the model goes.")],
    heads: Annotated[int | None, typer.Option(help="Of the encoder. [MAE's for its width]")] = None,
    decoder_heads: Annotated[int | None, typer.Option(help="Of the decoder. [MAE's for its width]")] = None,
    norm_pix: Annotated[bool, typer.Option("--norm-pix", help="It was trained with --norm_pix_loss.")] = False,
) -> None:
    """Make a masked image model of a foreign checkpoint, which is read with weights_only=True in a process apart."""
    from fastdetect.models.convert import convert_mae

    folder = convert_mae(source, output, heads=heads, decoder_heads=decoder_heads, norm_pix=norm_pix)
    typer.echo(f"model: {folder}")


@models_app.command()
def average(
    models: Annotated[
        list[str], typer.Argument(help="Folders, shipped names or Hub ids: two or more, or one with --start.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the model goes.")],
    shares: Annotated[str | None, typer.Option(metavar="A,B,...", help="Weight of each. [equal]")] = None,
    start: Annotated[float, typer.Option(help="Share of the ImageNet weights that the image branch began with.")] = 0.0,
) -> None:
    """Average the weights of models that were trained from one another; calibrate the result afterwards."""
    from fastdetect.models.average import average_models

    try:
        wanted = [float(share) for share in shares.split(",")] if shares else None
    except ValueError:
        raise UsageError(f"--shares {shares}: wanted a number for each model, such as 0.5,0.5") from None
    typer.echo(f"model: {average_models(models, output, shares=wanted, start=start)}")


@models_app.command()
def push(
    model: Annotated[str, typer.Argument(help="Folder or shipped name.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Of a repository that is made.")] = False,
) -> None:
    """Upload a model folder to the Hugging Face Hub; `hf auth login` first."""
    from fastdetect.models.hub import push_to_hub

    typer.echo(push_to_hub(model, repo, private=private or None))


data_app = typer.Typer(help="Prepare data for training.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command()
def pack(
    indices: Annotated[list[Path], typer.Argument(help="index.csv files; their reals are packed.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the pack goes.")],
    splits: Annotated[str, typer.Option(help="Rows of other splits stay out.")] = "train,val,test",
    compression: Annotated[list[str] | None, typer.Option(help="Only these compressions.")] = None,
    per_video: Annotated[int, typer.Option(min=1, help="Frames of each video.")] = 24,
) -> None:
    """Cut the faces of a data set into one folder of arrays, as training reads them."""
    from fastdetect.data.face_pack import main as run

    raise typer.Exit(run(indices, output, splits=splits, compressions=tuple(compression or ()), per_video=per_video))


@data_app.command()
def redraw(
    pack: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of `data pack`.")],
    count: Annotated[int, typer.Option(min=1, help="Faces to draw, from all sources alike.")] = 3000,
    seed: Annotated[int, typer.Option(help="Of the choice of faces and networks.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of a network.")] = 1,
) -> None:
    """Let published upscalers draw a pack's faces again: training then makes fakes of them (extra: redraw)."""
    from fastdetect.data.neural_redraw import main as run

    raise typer.Exit(run(pack, count=count, seed=seed, threads=threads))


@data_app.command()
def index(
    roots: Annotated[
        list[Path], typer.Argument(help="Data sets as they lie on disk: folders, JSON or CSV files; manifests, too.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="manifest.parquet, or index.csv.")],
    layout: Annotated[str, typer.Option(help="Name of the layout, where it is not to be found out.")] = "auto",
    prefer: Annotated[str, typer.Option(help="videos or frames, where a tree has both.")] = "videos",
    splits: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the set's split files are.")] = None,
    media_root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What paths in a JSON, CSV or manifest start at.")
    ] = None,
    lmdb: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Holds DeepfakeBench's *_lmdb folders.")] = None,
    label_map: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML: label name -> 0 (real) or 1 (fake).")
    ] = None,
    frame_folders: Annotated[bool, typer.Option(help="A folder of pictures is one video.")] = False,
    sources: Annotated[bool, typer.Option(help="DeeperForensics: the actors' recordings as reals, too.")] = False,
    hold_out: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Persons to validate on, of sets without a val split.")
    ] = None,
) -> None:
    """Read data sets of any known layout into one manifest."""
    from fastdetect.data.layouts.command import main as run

    code = run(
        roots, output, layout=layout, prefer=prefer, splits=splits, media_root=media_root, lmdb=lmdb,
        label_map=label_map, frame_folders=frame_folders, sources=sources, held_out=hold_out,
    )  # fmt: skip
    raise typer.Exit(code)


@data_app.command()
def verify(
    manifest: Annotated[Path, typer.Argument(help="Gets hashes, sizes and lengths filled in.")],
    root: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the data lies now.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Open no file: names, labels and splits only.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Open files that were opened before, too.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Every problem, one a line.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [one per core]")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds of wall time per file.")] = 120.0,
) -> None:
    """Look for files that are missing or broken, wrong labels, and videos or persons in two splits.

    Exit code: 0 nothing grave, 3 something grave.
    """
    from fastdetect.data.verify import main_verify as run

    code = run(manifest, root=root, workers=workers, timeout=timeout, quick=quick, again=again, report=report)
    raise typer.Exit(code)


@data_app.command()
def stats(
    manifest: Annotated[Path, typer.Argument(help="Hours and sizes are known once it was verified.")],
    by: Annotated[str, typer.Option(help="Fields to count by.")] = "dataset,split,label,method,compression",
) -> None:
    """Count videos, persons, pairs, frames, hours and gigabytes."""
    from fastdetect.data.verify import main_stats as run

    raise typer.Exit(run(manifest, by))


@data_app.command()
def extract(
    manifest: Annotated[Path, typer.Argument(help="What `fastdetect data index` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the faces go.")],
    root: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the data lies now.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the faces already in the output folder.")
    ] = False,
    layout: Annotated[str, typer.Option(help="shards (tar, as webdataset reads them) or folders.")] = "shards",
    sample: Annotated[str, typer.Option(metavar="POLICY", help="uniform:N, fps:X, keyframes or all.")] = "uniform:16",
    max_seconds: Annotated[float | None, typer.Option(help="Look at the first seconds only.")] = None,
    faces: Annotated[str, typer.Option(help="all or largest.")] = "largest",
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 256,
    margin: Annotated[float, typer.Option(help="Side of the square in face sides.")] = 1.3,
    image: Annotated[str, typer.Option(help="png or jpg (quality 95).")] = "png",
    split: Annotated[list[str] | None, typer.Option(help="Only these splits.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Of the fakes, only these methods.")] = None,
    compression: Annotated[list[str] | None, typer.Option(help="Only these compressions.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [one per core]")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds of wall time per file.")] = 120.0,
) -> None:
    """Cut the faces out with screening's sampling, detector, tracker and crop.

    Exit code: 0 all done, 3 some files failed (failed.txt names them), 130 stopped (go on with --resume).
    """
    from fastdetect.data.extract import ExtractSettings
    from fastdetect.data.extract import main as run

    asked: dict[str, Any] = {
        "sample": sample, "max_seconds": max_seconds, "faces": faces, "size": size, "margin": margin, "image": image,
        "layout": layout,
    }  # fmt: skip
    code = run(
        manifest, output, ExtractSettings(**asked), root=root, resume=resume, workers=workers, timeout=timeout,
        splits=tuple(split or ()), methods=tuple(method or ()), compressions=tuple(compression or ()),
    )  # fmt: skip
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the `fastdetect` command."""
    hold_standard_streams()
    with redirect_stdout(patient(sys.stdout)), redirect_stderr(patient(sys.stderr)):
        try:
            app()
        except (FastdetectError, OSError) as error:
            if _shown["traceback"]:
                raise
            typer.echo(f"fastdetect: {error}", err=True)
            sys.exit(2 if isinstance(error, UsageError | MissingDependencyError) else 3)
        finally:
            sys.stdout.flush()  # nobody closes it: what a pipe or a file was to get would be lost
