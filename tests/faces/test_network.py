"""CenterFace's network on its two CPU runtimes."""

import sys

import numpy as np
import pytest

from fastdetect.errors import MissingDependencyError, UsageError
from fastdetect.faces import CenterFaceDetector
from fastdetect.faces.network import OUTPUTS, load_network

NO_OPENVINO = "OpenVINO is not installed: pip install 'fastdetect[openvino]'"


def test_openvino_finds_the_same_faces(detector, portrait, carphone):
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    other = CenterFaceDetector(runtime="openvino")
    assert detector.name.startswith("centerface/onnxruntime-")
    assert other.name.startswith("centerface/openvino-")
    frames = [portrait, *carphone]
    for theirs, mine in zip(detector.detect(frames), other.detect(frames), strict=True):
        assert len(mine) == len(theirs) == 1
        # in bf16 a neighbouring cell of the heat map may win, whose box is another by up to 5 %
        assert np.abs(np.subtract(mine[0].box, theirs[0].box)).max() < 0.06 * theirs[0].side
        assert abs(mine[0].score - theirs[0].score) < 0.03


def test_openvinos_maps_have_their_own_storage(portrait):
    pytest.importorskip("openvino", reason=NO_OPENVINO)
    network = load_network("openvino")
    blob = np.ascontiguousarray(portrait[None, ::4, ::4].transpose(0, 3, 1, 2), np.float32)
    first = network(blob)
    kept = [m.copy() for m in first]
    network(np.zeros_like(blob))
    assert [m.shape[1] for m in first] == list(OUTPUTS.values())
    for now, before in zip(first, kept, strict=True):
        np.testing.assert_array_equal(now, before)


def test_a_runtime_that_is_not_there(monkeypatch):
    with pytest.raises(UsageError, match="onnxruntime, openvino"):
        load_network("abacus")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"fastdetect\[openvino\]"):
        load_network("openvino")
