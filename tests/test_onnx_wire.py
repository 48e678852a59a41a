"""with_free_shapes: the rewritten model runs at any size and batch, and computes what it did."""

import numpy as np
import onnxruntime as ort
import pytest

from fastdetect.faces.network import centerface_onnx
from fastdetect.onnx_wire import with_free_shapes

OUTPUTS = {name: ("batch", channels, "rows", "columns") for name, channels in {"537": 1, "538": 2}.items()}


def session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def freed() -> ort.InferenceSession:
    return session(with_free_shapes(centerface_onnx(), {"input.1": ("batch", 3, "height", "width")}, OUTPUTS))


def test_signature_has_only_what_was_asked(freed):
    assert [(i.name, i.shape) for i in freed.get_inputs()] == [("input.1", ["batch", 3, "height", "width"])]
    assert [o.name for o in freed.get_outputs()] == ["537", "538"]


def test_same_result_as_the_original_at_its_own_size(freed):
    batch = np.random.default_rng(0).uniform(0, 255, (10, 3, 32, 32)).astype(np.float32)
    for ours, theirs in zip(
        freed.run(None, {"input.1": batch}),
        session(centerface_onnx()).run(["537", "538"], {"input.1": batch}),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)  # weights are folded in one, not in the other


@pytest.mark.parametrize("shape", [(1, 64, 96), (3, 160, 32)])
def test_other_sizes_and_batches(freed, shape):
    batch, height, width = shape
    pictures = np.random.default_rng(1).uniform(0, 255, (batch, 3, height, width)).astype(np.float32)
    heat, size = freed.run(None, {"input.1": pictures})
    assert heat.shape == (batch, 1, height // 4, width // 4)
    assert size.shape == (batch, 2, height // 4, width // 4)
    np.testing.assert_array_equal(freed.run(None, {"input.1": pictures[-1:]})[0], heat[-1:])


def test_fixed_dimensions_may_be_asked_for():
    model = with_free_shapes(centerface_onnx(), {"input.1": (1, 3, 320, 320)}, OUTPUTS)
    assert session(model).get_inputs()[0].shape == [1, 3, 320, 320]
