"""H.264 in memory and from file to file: how much it changes, what it keeps, what it refuses."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from dataset_trees import write_video

from fastdetect.data.h264 import H264, PRESETS, reencode, transcode
from fastdetect.errors import MediaError, ShapeError, UsageError
from fastdetect.reasons import Reason
from fastdetect.video import SamplingPolicy, decode


def clip(frames: int = 12, height: int = 64, width: int = 80) -> np.ndarray:
    """A smooth picture that drifts by two pixels a frame, each frame a little brighter than the one before."""
    y, x = np.mgrid[:height, : width + 2 * frames]
    base = np.stack([np.sin(x / 5) + np.cos(y / 7), np.cos(x / 9 + y / 5), np.sin(y / 6)], -1) * 50 + 110
    moved = [base[:, 2 * t : 2 * t + width] + 2 * t for t in range(frames)]
    return np.stack(moved).clip(0, 255).astype(np.uint8)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_error_grows_with_crf_and_frames_keep_their_order() -> None:
    frames = clip()
    coded = {crf: reencode(frames, H264(crf)) for crf in (0, 23, 40, 51)}
    errors = [error(coded[crf], frames) for crf in coded]
    assert errors == sorted(errors)
    assert errors[0] < 3  # chroma at half size and 8-bit colour conversion
    assert errors[-1] > 2 * errors[1]
    for t in range(len(frames)):  # each frame is nearest to itself, not to the one before or after
        assert min(range(len(frames)), key=lambda u: error(coded[23][t], frames[u])) == t
    assert np.array_equal(coded[23], reencode(frames, H264(23)))


PERTURBED = """
import hashlib, sys
import numpy as np
from fastdetect.data.h264 import H264, reencode

rng = np.random.default_rng(0)
y, x = np.mgrid[:324, :324]
wall = rng.normal(size=(324, 324, 1)) * 12 + 110
frames = []
for t in range(50):
    ball = np.hypot(x - 160 - 60 * np.sin(t / 6), y - 150 - 30 * np.cos(t / 4)) < 70
    drawn = np.where(ball[..., None], 150 + 40 * np.sin((x + y - 5 * t) / 9)[..., None], wall + 8 * np.sin(t / 9))
    frames.append(np.broadcast_to(drawn, (324, 324, 3)))
frames = np.stack(frames).clip(0, 255).astype(np.uint8)
print(hashlib.sha256(reencode(frames, H264(36))).hexdigest())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's MALLOC_PERTURB_ fills what malloc gives")
def test_what_lies_in_memory_changes_nothing() -> None:
    heap = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TOP_PAD_": str(2**28)}  # fresh pages would hold zeros
    outputs = set()
    for filled in ("0", "1", "2"):
        env = os.environ | heap | {"MALLOC_PERTURB_": filled}
        run = subprocess.run([sys.executable, "-c", PERTURBED], env=env, capture_output=True, text=True, check=True)
        outputs.add(run.stdout)
    assert len(outputs) == 1


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (2, 33, 47, 3), (60, 16, 18, 3), (1, 1, 1, 3)])
def test_any_number_of_frames_and_odd_sides(shape: tuple[int, ...]) -> None:
    frames = np.full(shape, 130, np.uint8)
    coded = reencode(frames, H264(gop=7))
    assert coded.shape == shape
    assert coded.dtype == np.uint8
    assert error(coded, frames) < 3


def test_frames_depend_on_each_other_but_not_across_keyframes() -> None:
    frames = clip(8)
    other = frames.copy()
    other[0] = 255 - other[0]
    apart = [error(a, b) for a, b in zip(reencode(frames, H264(35, gop=1)), reencode(other, H264(35, gop=1)),
                                         strict=True)]  # fmt: skip
    assert apart[0] > 20
    assert max(apart[1:]) < 1.5  # rate control still spends its bits by what came before


def test_random_settings_are_seeded_and_cover_their_range() -> None:
    draws = [H264.random(torch.Generator().manual_seed(seed), (23, 25)) for seed in range(60)]
    assert draws == [H264.random(torch.Generator().manual_seed(seed), (23, 25)) for seed in range(60)]
    assert {d.crf for d in draws} == {23, 24, 25}
    assert len({d.preset for d in draws}) > 1
    assert {d.preset for d in draws} <= set(PRESETS)


def test_wrong_input_is_refused() -> None:
    for frames in (clip().astype(np.float32), clip()[0], clip()[:0], clip()[..., :2]):
        with pytest.raises(ShapeError, match="wanted RGB uint8"):
            reencode(frames)
    for settings in ({"crf": 52}, {"crf": -1}, {"gop": 0}, {"preset": "placebo2"}):
        with pytest.raises(UsageError, match="wanted crf 0 to 51"):
            H264(**settings)


def test_a_file_keeps_its_frames_times_and_picture(tmp_path: Path) -> None:
    frames = clip(30)
    source = write_video(tmp_path / "in.mp4", frames, fps=10)
    target = transcode(source, tmp_path / "out.mp4", H264(20))
    before, after = (decode(path, SamplingPolicy.parse("all")) for path in (source, target))
    assert [f.time_s for f in after.frames] == pytest.approx([f.time_s for f in before.frames], abs=1e-3)
    assert all(error(a.rgb, b.rgb) < 4 for a, b in zip(before.frames, after.frames, strict=True))
    small = transcode(source, tmp_path / "worse.mp4", H264(45))
    assert small.stat().st_size < 0.6 * target.stat().st_size
    first = transcode(source, tmp_path / "first.mp4", H264(20), max_seconds=1.0)
    assert len(decode(first, SamplingPolicy.parse("all")).frames) == 10


def test_uneven_times_and_odd_sides(tmp_path: Path) -> None:
    times = [0, 1, 5, 6, 20]
    with av.open(str(tmp_path / "vfr.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 81, 65, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for number, rgb in zip(times, clip(5, 65, 81), strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    made = decode(transcode(tmp_path / "vfr.mkv", tmp_path / "out.mp4", H264(18)), SamplingPolicy.parse("all"))
    assert (made.info.width, made.info.height) == (80, 64)
    assert [f.time_s for f in made.frames] == pytest.approx([t / 25 for t in times], abs=2e-3)


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError) as caught:
        transcode(tmp_path / "text.mp4", tmp_path / "out.mp4", H264())
    assert caught.value.reason in (Reason.UNSUPPORTED_CONTAINER, Reason.DECODE_ERROR)
    with pytest.raises(MediaError) as caught:
        transcode(tmp_path / "none.mp4", tmp_path / "out.mp4", H264())
    assert caught.value.reason is Reason.NOT_FOUND


@pytest.mark.data
@pytest.mark.parametrize("name", ["h264_rot90.mp4", "hevc_face_10bit.mp4", "mjpeg_face.avi", "h264_vfr.mp4"])
def test_turned_deep_and_full_range_films_look_the_same(data_root: Path, tmp_path: Path, name: str) -> None:
    source = data_root / "decode_samples" / "made" / name
    made = transcode(source, tmp_path / "out.mp4", H264(15))
    before, after = (decode(path, SamplingPolicy.parse("uniform:4")) for path in (source, made))
    assert after.info.rotation == 0
    assert (after.info.width, after.info.height) == (before.info.width, before.info.height)
    for a, b in zip(before.frames, after.frames, strict=True):
        assert error(a.rgb, b.rgb) < 4
        assert abs(a.time_s - b.time_s) < 0.05
