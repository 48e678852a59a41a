"""INT8 and FP8: NVIDIA's ModelOpt puts quantising nodes (Q/DQ) into an exported graph, with ranges from real faces."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fastdetect.engines.cache import Say
from fastdetect.engines.graph import SCORERS, Graph, Quantized
from fastdetect.errors import EngineError, MediaError, MissingDependencyError, UsageError

FACES = 256  # as many as are looked at: half of them give the ranges, half are compared
_LEAST = 32
_FRAMES = 32  # of a video, at most
_BATCH = 16
_NOT_THERE = 3
# In a process of its own: ModelOpt changes functions of ONNX Runtime where it is imported, and talks a lot.
_SCRIPT = f"""
import sys
try:
    from modelopt.onnx.quantization import quantize
except ImportError as error:
    print(str(error).splitlines()[0], file=sys.stderr)
    sys.exit({_NOT_THERE})
import numpy as np
folder, mode = sys.argv[1:]
quantize(
    f"{{folder}}/fp32.onnx", quantize_mode=mode, calibration_data={{"crops": np.load(f"{{folder}}/crops.npy")}},
    calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=f"{{folder}}/{{mode}}.onnx", log_level="ERROR",
)
"""
CORRELATION = 0.9  # of margins before and after; a graph below it is not written


def face_crops(paths: Sequence[Path], size: int, margin: float, say: Say) -> tuple[np.ndarray, np.ndarray]:
    """Cut faces out of videos and pictures as screening does, evenly from all files.

    Returns:
        crops uint8 [N,S,S,3] RGB, N <= FACES; the number of each one's file [N].
    Raises:
        UsageError: fewer than 32 faces in all.
    """
    from fastdetect.faces.centerface import CenterFaceDetector
    from fastdetect.faces.crop import crop_face
    from fastdetect.video.lanes import Decoder
    from fastdetect.video.sampling import SamplingPolicy

    decoder, detector, policy = Decoder("pyav"), CenterFaceDetector(), SamplingPolicy.parse(f"uniform:{_FRAMES}")
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(len(paths), FACES)).astype(int)]
    each = FACES // len(paths)
    crops: list[np.ndarray] = []
    files: list[int] = []
    for number, path in enumerate(paths):
        try:
            frames = [frame.rgb for frame in decoder.decode(path, policy).frames]
        except MediaError as error:
            say(f"{path} gives no faces: {error}")
            continue
        found = detector.detect(frames)
        places = [(frame, face.box) for frame, faces in zip(frames, found, strict=True) for face in faces]
        some = places[:: max(1, len(places) // each)][:each]
        crops += [crop_face(frame, box, size=size, margin=margin) for frame, box in some]
        files += [number] * len(some)
    if len(crops) < _LEAST:
        raise UsageError(
            f"--faces: got {len(crops)} faces in {len(paths)} files; wanted at least {_LEAST}, of many people"
        )
    return np.stack(crops), np.asarray(files)


def quantized(
    graph: Graph, mode: Quantized, crops: np.ndarray, files: np.ndarray, say: Say
) -> tuple[Graph, dict[str, Any]]:
    """Quantise a graph that scores faces; what is not quantised stays fp32.

    Args:
        graph: in fp32, of the detector or the verdict.
        crops, files: see `face_crops`. Every other file's give the ranges, the others' are scored before and after.
        say: hears each step.
    Returns:
        The graph, and what was measured: numbers of faces, median and largest difference of the margins, their
        standard deviation in fp32 and their correlation.
    Raises:
        UsageError: a graph of another kind; MissingDependencyError: ModelOpt is not there.
        EngineError: ModelOpt fails, or the margins afterwards hardly resemble those before.
    """
    if graph.info.part not in SCORERS or graph.info.precision != "fp32":
        raise UsageError(
            f"int8 and fp8 are for the parts {' and '.join(SCORERS)}, exported in fp32; got the {graph.info.part} in "
            f"{graph.info.precision}"
        )
    import onnx

    apart = np.unique(files)
    ranged = np.isin(files, apart[::2]) if len(apart) > 1 else np.arange(len(crops)) % 2 == 0
    say(f"ModelOpt looks for the ranges of {mode} on {ranged.sum()} faces")
    proto = onnx.load_from_string(_by_modelopt(graph.onnx, mode, crops[ranged]))
    made_with = graph.info.made_with | {"nvidia-modelopt": version("nvidia-modelopt")}
    info = graph.info.model_copy(update={"precision": mode, "made_with": made_with})
    onnx.helper.set_model_props(proto, info.metadata())
    onnx.checker.check_model(proto)
    made = Graph(proto.SerializeToString(), info)
    say(f"comparing margins with fp32 on {(~ranged).sum()} other faces")
    before, after = (_margins(which, crops[~ranged]) for which in (graph, made))
    apart_by = np.abs(after - before)
    facts = {
        "faces": int(ranged.sum()),
        "compared_faces": int((~ranged).sum()),
        "median_difference": round(float(np.median(apart_by)), 4),
        "largest_difference": round(float(apart_by.max()), 4),
        "margin_deviation": round(float(before.std()), 4),
        "correlation": round(float(np.corrcoef(before, after)[0, 1]), 4),
    }
    say(
        f"margins in {mode}: correlation {facts['correlation']}, median difference {facts['median_difference']} where "
        f"they deviate by {facts['margin_deviation']}"
    )
    if not facts["correlation"] >= CORRELATION:
        raise EngineError(
            f"in {mode} the margins hardly resemble those in fp32: correlation {facts['correlation']}, wanted "
            f"{CORRELATION}; export --part verdict if this was the detector, give more --faces, or take fp16"
        )
    return made, facts


def _by_modelopt(graph: bytes, mode: Quantized, crops: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "fp32.onnx").write_bytes(graph)
        np.save(folder / "crops.npy", crops)
        run = subprocess.run([sys.executable, "-c", _SCRIPT, name, mode], capture_output=True, text=True)
        if run.returncode == 0:
            return (folder / f"{mode}.onnx").read_bytes()
    last = (run.stderr.strip().splitlines() or ["it says nothing"])[-1]
    if run.returncode == _NOT_THERE:
        raise MissingDependencyError(f"{mode} needs NVIDIA's ModelOpt ({last}): pip install 'fastdetect[quantize]'")
    raise EngineError(f"ModelOpt cannot make {mode} of the graph (exit code {run.returncode}): {last}")


def _margins(graph: Graph, crops: np.ndarray) -> np.ndarray:
    """Fused logit margins [N] by ONNX Runtime on the CPU."""
    import onnxruntime as ort

    from fastdetect.engines.onnxruntime_engine import EXACT_INT8

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(*EXACT_INT8)
    if graph.info.precision == "fp8":  # its optimiser stops at FP8 nodes
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph.onnx, options, providers=["CPUExecutionProvider"])
    parts = [session.run(["logits"], {"crops": crops[i : i + _BATCH]})[0] for i in range(0, len(crops), _BATCH)]
    logits = np.concatenate(parts)
    return np.asarray(logits[:, 1] - logits[:, 0], np.float64)
