"""CenterFace's network on its two CPU runtimes."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastdetect.errors import MissingDependencyError, UsageError
from fastdetect.faces import CenterFaceDetector
from fastdetect.faces.network import INPUT, OUTPUTS, load_network

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


@pytest.fixture(scope="module")
def half_precision() -> Callable[[np.ndarray], list[np.ndarray]]:
    """The network as `fastdetect export --part face-detector --precision fp16` writes it, in ONNX Runtime."""
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed: pip install 'fastdetect[onnx]'")
    import onnxruntime

    from fastdetect.engines.export import export_graph

    graph = export_graph("fastdetect-small", "face-detector", "fp16", lambda text: None)
    session = onnxruntime.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])
    return lambda blob: session.run(list(OUTPUTS), {INPUT: blob})


def test_an_export_in_half_precision_finds_the_same_faces(half_precision, detector, portrait, carphone, monkeypatch):
    frames = [portrait, *carphone]
    want = detector.detect(frames)
    monkeypatch.setattr(detector, "_network", half_precision)
    for mine, theirs in zip(detector.detect(frames), want, strict=True):
        assert len(mine) == len(theirs) == 1
        assert 0 < np.abs(np.subtract(mine[0].box, theirs[0].box)).max() < 0.002 * theirs[0].side
        assert abs(mine[0].score - theirs[0].score) < 0.003


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


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_threads_share_a_network(runtime, portrait):
    if runtime == "openvino":
        pytest.importorskip("openvino", reason=NO_OPENVINO)
    network = load_network(runtime)
    blob = np.ascontiguousarray(portrait[None, ::2, ::2].transpose(0, 3, 1, 2), np.float32)
    blobs = [blob, blob[..., ::-1].copy(), blob[:, :, ::-1].copy(), np.zeros_like(blob)]
    want = [network(one) for one in blobs]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(network, blobs * 8), want * 8, strict=True):
            for ours, theirs in zip(got, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_a_runtime_that_is_not_there(monkeypatch):
    with pytest.raises(UsageError, match="onnxruntime, openvino"):
        load_network("abacus")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"fastdetect\[openvino\]"):
        load_network("openvino")
