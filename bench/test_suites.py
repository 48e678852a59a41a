"""Ops and stages under pytest-benchmark: `python -m pytest bench`; FASTDETECT_BENCH_SHAPES=cpu or cuda for the ops.

The stages (training steps, decoding, screening) take tiny shapes on the CPU.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.ops  # noqa: F401, the import registers them
from bench import screening
from bench.decode import Decode
from bench.decode_many import DecodeMany
from bench.registry import OPS, Op, Shape
from bench.train import STEPS
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.run import run_screening

CPU = torch.device("cpu")
SHAPES = os.environ.get("FASTDETECT_BENCH_SHAPES", "tiny")
DEVICE = torch.device("cuda") if SHAPES == "cuda" else CPU
CLIPS = Path(tempfile.gettempdir()) / f"fastdetect-bench-{os.getpid()}"
STAGES: tuple[Op, ...] = (*STEPS, Decode(CLIPS), DecodeMany(CLIPS))
CASES = [(op, shape, DEVICE) for op in OPS.values() for shape in op.shapes.get(SHAPES, ())]
CASES += [(op, shape, CPU) for op in STAGES for shape in op.shapes["tiny"]]
PAIRS = [(op, shape, device, name) for op, shape, device in CASES for name in op.providers(shape, device)]


@pytest.fixture(scope="module", autouse=True)
def clips() -> Iterator[None]:
    CLIPS.mkdir()
    yield
    shutil.rmtree(CLIPS)


@pytest.mark.parametrize(
    ("op", "shape", "device", "name"), PAIRS, ids=[f"{op.name}-{shape}-{name}" for op, shape, _, name in PAIRS]
)
def test_op(benchmark: Any, op: Op, shape: Shape, device: torch.device, name: str) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    benchmark.group = f"{op.name} {shape}"
    provider, inputs = op.providers(shape, device)[name], op.inputs(shape, device)
    if provider.skip:
        pytest.skip(provider.skip)

    def run() -> tuple[torch.Tensor, ...]:
        outputs = provider.run(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return outputs

    assert op.error(run(), (provider.truth or op.truth)(inputs)) <= provider.tolerance  # what is wrong is not timed
    benchmark(run)


@pytest.mark.parametrize("who", ["ours", *screening.usual_pipelines("fastdetect-small")])
def test_screening(benchmark: Any, tmp_path: Path, who: str) -> None:
    benchmark.group = "screening, one clip, start-up included in ours"
    files = screening.generate(tmp_path, 1, side=256, frames=25)
    model = "fastdetect-small"
    if who == "ours":
        config = ScreenConfig.model_validate({"model": model, "media": False})
        run = benchmark.pedantic(lambda: run_screening(expand_inputs(files), tmp_path / "out", config), rounds=1)
        assert run.exit_code in (0, 1)
        return
    usual = screening.usual_pipelines(model)[who]
    assert benchmark.pedantic(usual.screen, args=(files[0],), rounds=1) is not None
