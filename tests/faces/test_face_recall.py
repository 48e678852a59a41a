"""The detector against YuNet on real and manipulated videos: at least 98 % of its faces over 60 px are found."""

from pathlib import Path

import cv2
import pytest

from fastdetect.faces import CenterFaceDetector


@pytest.mark.data
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_recall_against_yunet(data_root, monkeypatch, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'fastdetect[openvino]'")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    face_recall = pytest.importorskip("face_recall")
    before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    tally = face_recall.Tally(runtime, CenterFaceDetector(runtime=runtime))
    paths = face_recall.video_paths(data_root)
    assert len(paths) == 80
    assert len(list(face_recall.compare(data_root, paths[::3], 2, [tally]))) == 27
    cv2.utils.logging.setLogLevel(before)
    assert tally.wanted >= 50
    assert tally.recall >= 0.98, tally.missed
    assert tally.extra <= 0.1 * tally.wanted
