"""A run of the default engine on a CPU does not wait for torch: what was converted once is enough."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import trim_mean

from fastdetect.engines import machine
from fastdetect.evaluation.scoring import TRIM, track_margin

CODE = """
import json, sys
import numpy as np
from fastdetect.engines import load_engine
from fastdetect.screening import run
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.model import Model

options = {"model": sys.argv[1], "engine": sys.argv[2], "device": "cpu", "precision": "fp32", "uncalibrated": True}
with Model.load(ScreenConfig.model_validate(options)) as model:
    side = model.engine.image_size
    logits = model.engine.run(np.zeros((1, side, side, 3), np.uint8)).logits
slow = {"torch", "timm", "torchvision", "scipy.stats", "scipy.optimize"}
print(json.dumps({"logits": logits.tolist(), "slow": sorted(slow & set(sys.modules))}))
"""


def start(model: Path, engine: str, cache: Path) -> dict[str, list[str]]:
    command = [sys.executable, "-c", CODE, str(model), engine]
    env = os.environ | {"FASTDETECT_CACHE": str(cache)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240, env=env)
    return json.loads(run.stdout)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_what_is_converted_runs_without_torch(engine: str, image_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip({"openvino": "openvino", "onnxruntime": "onnxscript"}[engine])
    first, again = (start(image_folder, engine, tmp_path) for _ in range(2))
    assert again["slow"] == []
    assert first["logits"] == again["logits"]


def test_the_machine_is_told_as_torch_tells_it() -> None:
    bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    assert machine.cpu_has_bf16() == bf16
    assert machine.torch_has_gpu() == torch.cuda.is_available()


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 37])
def test_a_persons_score_is_the_trimmed_mean(count: int) -> None:
    margins = torch.randn(count, generator=torch.Generator().manual_seed(count)).double().numpy()
    assert track_margin(margins) == pytest.approx(float(trim_mean(margins, TRIM)), rel=1e-15)
