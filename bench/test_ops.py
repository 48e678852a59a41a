"""The registered ops under pytest-benchmark: `python -m pytest bench/test_ops.py`; FASTDETECT_BENCH_SHAPES=tiny."""

import os
from typing import Any

import pytest
import torch

import bench.ops  # noqa: F401, the import registers them
from bench.registry import OPS, Op, Shape

SHAPES = os.environ.get("FASTDETECT_BENCH_SHAPES", "tiny")
DEVICE = torch.device("cuda" if SHAPES == "cuda" else "cpu")
CASES = [(op, shape) for op in OPS.values() for shape in op.shapes.get(SHAPES, ())]
PAIRS = [(op, shape, name) for op, shape in CASES for name in op.providers(shape, DEVICE)]


@pytest.mark.parametrize(("op", "shape", "name"), PAIRS, ids=[f"{o.name}-{s}-{n}" for o, s, n in PAIRS])
def test_op(benchmark: Any, op: Op, shape: Shape, name: str) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    benchmark.group = f"{op.name} {shape}"
    provider, inputs = op.providers(shape, DEVICE)[name], op.inputs(shape, DEVICE)
    if provider.skip:
        pytest.skip(provider.skip)

    def run() -> tuple[torch.Tensor, ...]:
        outputs = provider.run(inputs)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return outputs

    assert op.error(run(), (provider.truth or op.truth)(inputs)) <= provider.tolerance  # what is wrong is not timed
    benchmark(run)
