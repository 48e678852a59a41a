"""Colours of decoders that are not PyAV: by the stream's own matrix and range, and found out where they are not."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from fastdetect.video.colours import FROM_601_TO_709, luma_chroma, nv12_to_rgb
from fastdetect.video.planned import _cells, _disproof
from fastdetect.video.probe import probe
from fastdetect.video.pyav import decode
from fastdetect.video.sampling import SamplingPolicy

torch = pytest.importorskip("torch")


def smooth(height: int = 96, width: int = 128, strength: int = 100) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin(x / 17), np.sin(y / 13), np.cos((x + y) / 23)
    return np.stack([128 + strength * wave for wave in waves], axis=-1).astype(np.uint8)


def encoded(path: Path, pix_fmt: str, matrix: int | None, full_range: bool) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, pix_fmt
        stream.options = {"crf": "4"}
        stream.codec_context.color_range = 2 if full_range else 1
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        frame = av.VideoFrame.from_ndarray(smooth(), format="rgb24")
        for _ in range(3):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
@pytest.mark.parametrize(("matrix", "full_range"), [(None, False), (5, False), (1, False), (1, True), (6, True)])
def test_nv12_becomes_what_pyav_shows(tmp_path: Path, pix_fmt: str, matrix: int | None, full_range: bool) -> None:
    path = encoded(tmp_path / "clip.mp4", pix_fmt, matrix, full_range)
    info = probe(path)
    assert info.colour_matrix == (2 if matrix is None else matrix)
    assert info.full_range == (full_range or pix_fmt == "yuvj420p")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        planes = [np.asarray(plane).reshape(-1, plane.line_size)[:, : plane.width] for plane in frame.planes]
        want = frame.to_ndarray(format="rgb24").astype(int)
    chroma = np.stack(planes[1:], axis=2).reshape(48, 128)
    nv12 = torch.from_numpy(np.concatenate([planes[0], chroma]))
    got = nv12_to_rgb(nv12[None].repeat(2, 1, 1), info.colour_matrix, info.full_range).numpy().astype(int)
    assert got.shape == (2, 96, 128, 3)
    off = np.abs(got - want)
    assert off.mean() < 0.7
    assert off.max() <= 2
    other = nv12_to_rgb(nv12[None], 1 if info.colour_matrix != 1 else 6, info.full_range).numpy().astype(int)
    assert np.abs(other - want).mean() > 3


CONFUSIONS = {
    "by BT.709's matrix, not BT.601's": lambda rgb: rgb @ FROM_601_TO_709.T,
    "by BT.601's matrix, not BT.709's": lambda rgb: rgb @ np.linalg.inv(FROM_601_TO_709).T,
    "with the narrow range taken for the full one": lambda rgb: rgb * 219 / 255 + 16,
    "with the full range taken for the narrow one": lambda rgb: (rgb - 16) * 255 / 219,
}


@pytest.mark.parametrize("strength", [15, 100])
@pytest.mark.parametrize("name", CONFUSIONS)
@pytest.mark.parametrize("on_device", [False, True])
def test_a_wrong_matrix_or_range_is_found_out_also_in_weak_colours(name: str, strength: int, on_device: bool) -> None:
    wanted = smooth(strength=strength)
    noise = np.random.default_rng(0).integers(-3, 4, wanted.shape)
    same = (wanted + noise).clip(0, 255).astype(np.uint8)
    wrong = (CONFUSIONS[name](wanted.astype(float)) + noise).round().clip(0, 255).astype(np.uint8)
    found, other = (torch.from_numpy(x) if on_device else x for x in (same, wrong))
    assert _disproof(found, wanted) == ""
    assert name in _disproof(other, wanted)


def test_without_colour_a_matrix_changes_nothing() -> None:
    grey = smooth()[..., :1].repeat(3, 2)
    assert _disproof((grey @ FROM_601_TO_709.T).round().clip(0, 255).astype(np.uint8), grey) == ""
    assert "another picture" in _disproof(np.flip(grey, 1), grey)


def test_the_matrices_are_those_of_the_standards() -> None:
    np.testing.assert_allclose(luma_chroma(6)[0], [1, 0, 1.402], atol=1e-9)
    np.testing.assert_allclose(luma_chroma(1)[:, 1], [0, -0.187324, 1.8556], atol=1e-6)
    np.testing.assert_allclose(luma_chroma(1).sum(1) - luma_chroma(1)[:, 1:].sum(1), 1)


@pytest.mark.data
@pytest.mark.slow
def test_on_real_videos_no_right_picture_is_refused_and_no_visible_confusion_passes(data_root: Path) -> None:
    files = [path for kind in ("real", "fake") for path in sorted((data_root / f"videos_{kind}").rglob("*.mp4"))]
    assert len(files) > 50
    for path in files:
        rgb = decode(path, SamplingPolicy.parse("uniform:1"), threads=1).frames[0].rgb
        height, width = rgb.shape[:2]
        luma, *chroma = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb))
        halves = [cv2.resize(c, (width // 2, height // 2), interpolation=cv2.INTER_AREA) for c in chroma]
        chroma = [cv2.resize(c, (width, height), interpolation=cv2.INTER_LINEAR) for c in halves]
        theirs = cv2.cvtColor(cv2.merge([luma, *chroma]), cv2.COLOR_YCrCb2RGB)  # by another chroma filter
        assert _disproof(theirs, rgb) == "", path
        for name, change in CONFUSIONS.items():
            wrong = change(theirs.astype(float)).round().clip(0, 255).astype(np.uint8)
            if np.abs(_cells(wrong) - _cells(rgb)).mean() > 0.75:  # or there is hardly any colour
                assert name in _disproof(wrong, rgb), path
