"""A tiny real detector, its export, and a cache of its own for every run of the tests."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_helpers import SIDE

from fastdetect.engines.cache import cached
from fastdetect.engines.export import export_graph
from fastdetect.engines.graph import Graph, Stored, parse_info
from fastdetect.models import DetectorConfig, MaskedImageModelConfig, TwoBranchDetector
from fastdetect.onnx_wire import read_metadata

# pytest listens to every logger, and torch then describes each step of an export.
logging.getLogger("torch.__trace").setLevel(logging.WARNING)

NO_ONNX = "onnx and onnxscript are not installed: pip install 'fastdetect[onnx]'"
CALIBRATION = {
    "method": "platt",
    "a": 0.25,
    "b": 0.0,
    "thresholds": {"0.01": 0.9, "0.05": 0.7},
    "sampling": "uniform:16",
    "id": "test00000000",
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines-cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDETECT_CACHE", str(cache))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: every kind of layer of the shipped model, few of each; logits of about 0.5."""
    from fastdetect.evaluation.scoring import AGGREGATION

    torch.manual_seed(0)
    mim = MaskedImageModelConfig(
        image_size=64, patch_size=8, embed_dim=48, depth=1, num_heads=3,
        decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4,
    )  # fmt: skip
    config = DetectorConfig(
        image_size=SIDE,
        image_backbone="test_efficientnet",
        image_backbone_args={"act_layer": "hard_swish"},
        residual_backbone="test_resnet",
        mim=mim,
        protocol="sparse-4",
    )
    model = TwoBranchDetector(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    for head in (model.head, model.image_head, model.residual_head):
        torch.nn.init.normal_(head.weight, std=0.4)
    path = tmp_path_factory.mktemp("models") / "tiny"
    return model.save_pretrained(path, calibration=CALIBRATION | {"aggregation": AGGREGATION}, model_id="tiny")


@pytest.fixture(scope="session")
def image_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same detector with a fused head that gives its residual branch no weight."""
    model = TwoBranchDetector.from_pretrained(folder)
    return model.decide_by_image().save_pretrained(tmp_path_factory.mktemp("models") / "image", model_id="image")


Export = Callable[..., Graph]


@pytest.fixture(scope="session")
def exported(folder: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports of the tiny detector, each made once in a run of the tests, whatever processes they run in."""
    pytest.importorskip("onnxscript", reason=NO_ONNX)
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"

    def make(part: str, precision: Stored) -> Graph:
        model = str(image_folder if part == "verdict" else folder)
        key = {"part": part, "precision": precision}
        data = cached("onnx", key, lambda: export_graph(model, part, precision, print).onnx, print, shared)
        return Graph(data, parse_info(read_metadata(data)["fastdetect"], part))

    return make


@pytest.fixture(scope="session")
def graph(exported: Export) -> Graph:
    """The whole scorer, fp32."""
    return exported("detector", "fp32")


@pytest.fixture(scope="session")
def half(exported: Export) -> Graph:
    """The masked image model with its inpainting, fp16."""
    return exported("masked-image-model", "fp16")


@pytest.fixture(scope="session")
def onnx_file(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "detector.onnx"
    path.write_bytes(graph.onnx)
    return path
