"""Images a second of every engine, from crops on its device to scores on the host, in the precisions that it has.

    python -m bench engines --device cuda
    python -m bench engines profile=latency --device cuda

The model that ships, its verdict alone and the whole detector; and ViT-B/16 at 224 px: the image branch of the preset
`paper-vit-b16` with random weights and all 196 tokens, with nothing inpainted. Batches are those of the engines'
profiles. Scores are held against torch in fp32 on the CPU before anything is timed. An engine that cannot be had here
is listed with the reason: a missing package, a precision that it does not have, a GPU that it does not build for.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import torch

from bench.registry import Inputs, Op, Outputs, Provider, Shape
from bench.train import TINY_DETECTOR, TINY_MIM
from fastdetect.engines import Engine, load_engine
from fastdetect.engines.base import PROFILES, EngineName
from fastdetect.errors import EngineError, UsageError
from fastdetect.models.detector import DETECTOR_PRESETS, TwoBranchDetector

VIT = "vit-b16-224"
_VIT_GRID = TINY_MIM.model_copy(update={"image_size": 224, "patch_size": 16})  # its tokens' places; never run
MODELS = {  # made here, with random weights; other names are models that ship
    "tiny": TINY_DETECTOR,
    VIT: DETECTOR_PRESETS["paper-vit-b16"].model_copy(
        update={"mim": _VIT_GRID, "residual_backbone": "test_vit", "token_selection": False}
    ),
}
TOLERANCE = {"fp32": 5e-3, "fp16": 5e-2, "bf16": 0.15}  # of the largest logit, of random pictures


def _shape(model: str, part: str, profile: str, precision: str, regime: str) -> Shape:
    values = {"model": model, "part": part, "precision": precision, "profile": profile}
    return Shape(values | {"batch": PROFILES[profile].best}, regime)


_NETWORKS = (
    (
        VIT,
        "verdict",
        "the image branch of paper-vit-b16, random weights; wanted of TensorRT in fp16: 15,000/s on an H200",
    ),
    ("fastdetect-small", "verdict", "the shipped model, nothing inpainted"),
    ("fastdetect-small", "detector", "the shipped model, whole"),
)


class Engines(Op):
    """Crops to scores, on every engine."""

    name = "engines"
    title = "Crops to scores on every engine"
    floor = ""
    axis = "batch"
    baseline = "torch"
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cuda": tuple(  # in the order in which they are wanted, where time runs out
            _shape(model, part, profile, precision, regime)
            for profile, precision, (model, part, regime) in product(
                ("throughput", "balanced", "latency"), ("fp16", "bf16", "fp32"), _NETWORKS
            )
        ),
        "cpu": tuple(_shape(model, part, "balanced", "fp32", regime) for model, part, regime in _NETWORKS[1:]),
        "tiny": (
            _shape("tiny", "verdict", "latency", "fp32", "tiny"),
            _shape("tiny", "detector", "latency", "fp32", "tiny"),
        ),
    }

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reference: tuple[Shape, Engine] | None = None

    def bytes(self, shape: Shape) -> float:
        return 0.0

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        reference = self.reference(shape)
        crops = torch.randint(256, (shape["batch"], *[reference.image_size] * 2, 3), dtype=torch.uint8)
        return {"crops": crops.to(device), "reference": reference}

    def truth(self, inputs: Inputs) -> Outputs:
        return _scores(inputs["reference"], inputs["crops"].cpu())

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        names = [name for name in get_args(EngineName) if name != "auto"]
        if device.type == "cuda":
            names.remove("openvino")  # which is for CPUs and Intel's GPUs
        return {name: self._provider(name, shape, device) for name in names}

    def _provider(self, name: str, shape: Shape, device: torch.device) -> Provider:
        tolerance = TOLERANCE[shape["precision"]]
        if name == "torch-compile" and device.type == "cpu":
            return Provider(_none, tolerance, skip="on a CPU it compiles for minutes")
        try:
            engine = load_engine(
                self.model(shape["model"]),
                engine=name,
                device=str(device),
                precision=shape["precision"],
                threads=torch.get_num_threads(),
                profile=shape["profile"],
                part=shape["part"],
            )
        except (ImportError, UsageError) as error:
            return Provider(_none, tolerance, skip=str(error))
        except EngineError as error:
            if "does not build for" in str(error):
                return Provider(_none, tolerance, skip=str(error))
            return Provider(_Broken(error), tolerance)
        return Provider(lambda x: _scores(engine, x["crops"]), tolerance, graph=False)

    def reference(self, shape: Shape) -> Engine:
        """Torch in fp32 on the CPU, which says what is right; kept for the next inputs of the case."""
        if self._reference is None or self._reference[0] != shape:
            options = {"device": "cpu", "precision": "fp32", "batch_size": shape["batch"], "part": shape["part"]}
            self._reference = shape, load_engine(self.model(shape["model"]), engine="torch", **options)
        return self._reference[1]

    def model(self, name: str) -> str:
        """The name of a model that ships, or the folder of one that is made here: its image branch decides."""
        folder = self.folder / name
        if name in MODELS and not folder.is_dir():
            torch.manual_seed(0)
            TwoBranchDetector(MODELS[name]).decide_by_image().save_pretrained(folder, model_id=name)
        return str(folder) if name in MODELS else name


class _Broken:
    """What an engine that could not be built does: its error, which makes the run red."""

    def __init__(self, error: EngineError) -> None:
        self.error = error

    def __call__(self, inputs: Inputs) -> Outputs:
        raise self.error


def _none(inputs: Inputs) -> Outputs:
    return ()


def _scores(engine: Engine, crops: torch.Tensor) -> Outputs:
    """Logits of each head that the part has."""
    out = engine.run(crops)
    heads = (out.logits, out.image_logits, *((out.residual_logits,) if engine.grid else ()))
    return tuple(torch.from_numpy(np.ascontiguousarray(logits)) for logits in heads)
