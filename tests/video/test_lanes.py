"""Lanes: the codec matrix, what happens where a decoder is missing or fails, and that nothing of it is silent."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from counted_clips import read_number, write_clip
from PIL import Image

from fastdetect.errors import MediaError, MissingDependencyError, UsageError
from fastdetect.reasons import Reason
from fastdetect.video import SamplingPolicy, dali, decode, nvcodec
from fastdetect.video.lanes import Choice, Decoder, Machine, check_decoder, choose, in_memory, nvdec
from fastdetect.video.probe import VideoInfo, probe
from fastdetect.video.pyav import DECODER

needs_dali = pytest.mark.skipif(dali.installed() is None, reason="DALI is not installed: pip install 'fastdetect[gpu]'")
ALL = SamplingPolicy.parse("all")
NOTHING, NO_GPU = Machine(), Machine("2.4.0")
HOPPER, ADA, BLACKWELL = (Machine("2.4.0", capability) for capability in ((9, 0), (8, 9), (12, 0)))
H264 = VideoInfo(
    path="a.mp4",
    container="mov,mp4,m4a,3gp,3g2,mj2",
    codec="h264",
    profile="High",
    pix_fmt="yuv420p",
    bit_depth=8,
    width=1920,
    height=1080,
    rotation=0,
    fps=25.0,
    duration_s=10.0,
    start_s=0.0,
    frames=250,
    stream_index=0,
    video_streams=1,
    is_image=False,
)


@pytest.mark.parametrize(
    ("changes", "machine", "auto", "dali_lane"),
    [
        ({}, HOPPER, "nvdec", "nvdec"),
        ({}, NO_GPU, "pyav", "pyav"),
        ({}, NOTHING, "pyav", "pyav"),
        ({"colour_matrix": 1}, HOPPER, "nvdec", "nvdec"),
        ({"colour_matrix": 9}, HOPPER, "pyav", "pyav"),
        ({"codec": "hevc"}, HOPPER, "nvdec", "nvdec"),
        ({"codec": "hevc", "pix_fmt": "yuv420p10le", "bit_depth": 10}, HOPPER, "pyav", "pyav"),
        ({"pix_fmt": "yuv422p"}, HOPPER, "pyav", "pyav"),
        ({"width": 5120, "height": 2880}, HOPPER, "pyav", "pyav"),
        ({"width": 5120, "height": 2880, "codec": "hevc"}, HOPPER, "nvdec", "nvdec"),
        ({"width": 96, "height": 96}, HOPPER, "pyav", "pyav"),
        ({"width": 1921}, HOPPER, "pyav", "pyav"),
        ({"interlaced": True}, HOPPER, "pyav", "pyav"),
        ({"video_streams": 2}, HOPPER, "pyav", "pyav"),
        ({"is_image": True}, HOPPER, "pyav", "pyav"),
        ({"codec": "libdav1d"}, HOPPER, "pyav", "pyav"),
        ({"codec": "libdav1d"}, ADA, "nvdec", "nvdec"),
        ({"codec": "av1"}, BLACKWELL, "nvdec", "nvdec"),
        ({"codec": "vp9"}, HOPPER, "nvdec", "nvdec"),
        ({"codec": "vp9"}, NO_GPU, "pyav", "dali-cpu"),
        ({"codec": "vp9", "width": 1921}, HOPPER, "pyav", "dali-cpu"),
        ({"codec": "vp9", "pix_fmt": "yuv420p10le"}, NO_GPU, "pyav", "pyav"),
        ({"codec": "vp8"}, NO_GPU, "pyav", "dali-cpu"),
        ({"codec": "mjpeg", "pix_fmt": "yuvj420p"}, HOPPER, "pyav", "dali-cpu"),
        ({"codec": "prores"}, HOPPER, "pyav", "pyav"),
    ],
)
def test_the_codec_matrix(changes, machine, auto, dali_lane):
    info = replace(H264, **changes)
    by_itself, asked = choose(info, "auto", machine), choose(info, "dali", machine)
    assert (by_itself.lane, asked.lane) == (auto, dali_lane)
    assert choose(info, "pyav", machine).lane == "pyav"
    assert bool(asked.why) == (dali_lane != "nvdec")  # who asks for DALI is told why it is not NVDEC
    assert bool(by_itself.why) == (auto != "nvdec" and machine.nvdec is not None)


def test_a_decoder_that_cannot_be_had_is_refused_before_anything_is_read():
    with pytest.raises(UsageError, match="auto, dali, nvcodec, pyav"):
        check_decoder("ffmpeg")
    with pytest.raises(MissingDependencyError, match=r"fastdetect\[gpu\]"):
        Decoder("dali", machine=NOTHING)
    check_decoder("auto", NOTHING)


def test_nvdec_through_pynvvideocodec():
    both, alone = Machine("2.4.0", (9, 0), "2.1.0"), Machine(None, (7, 5), "2.1.0")
    assert choose(H264, "auto", both).lane == "nvdec"  # DALI takes a batch
    assert choose(H264, "auto", alone).lane == choose(H264, "nvcodec", both).lane == "nvcodec"
    assert choose(H264, "auto", alone).why == ""
    ten_bits = replace(H264, pix_fmt="yuv420p10le", bit_depth=10)
    for wanted in ("auto", "nvcodec"):
        assert choose(ten_bits, wanted, alone).lane == "pyav"
        assert "8-bit" in choose(ten_bits, wanted, alone).why
    without_driver = Machine(None, None, "2.1.0")
    assert choose(H264, "auto", without_driver) == Choice("pyav")
    assert "no NVDEC" in choose(H264, "nvcodec", without_driver).why


@pytest.mark.parametrize(
    ("machine", "lack"), [(NO_GPU, "PyNvVideoCodec"), (Machine(None, None, "2.1.0"), "a GPU with a video decoder")]
)
def test_pynvvideocodec_that_cannot_be_had_is_refused_at_once(machine, lack):
    with pytest.raises(MissingDependencyError, match=f"needs {lack}.*--decoder auto") as told:
        check_decoder("nvcodec", machine)
    assert ("pip install" in str(told.value)) == (machine.nvcodec is None)


@pytest.mark.skipif(nvcodec.installed() is not None and nvdec(0) is not None, reason="PyNvVideoCodec runs here")
def test_pynvvideocodec_that_does_not_import_leaves_the_file_to_pyav(tmp_path):
    with pytest.raises(MissingDependencyError, match="NVIDIA's driver"):
        nvcodec.NvCodecDecoder()
    path = write_clip(tmp_path / "a.mp4", 12, size=(256, 192))
    decoder = Decoder("nvcodec", machine=Machine(None, (9, 0), "2.1.0"))  # as a broken driver would look
    clip = decoder.decode(path, ALL)
    assert clip.decoder == DECODER
    assert "PyNvVideoCodec" in clip.note


class RefusedError(Exception):
    """As PyNvVideoCodec's: of no type of Python's."""


def test_a_clip_that_pynvvideocodec_refuses_goes_to_pyav(tmp_path, monkeypatch):
    def refuse(*_, **options):
        raise RefusedError("Elementary streams not supported by Simple Decoder. Invalid input stream.")

    module = SimpleNamespace(SimpleDecoder=refuse, OutputColorType=SimpleNamespace(NATIVE=0))
    monkeypatch.setattr(nvcodec, "load", lambda: module)
    path = write_clip(tmp_path / "a.mkv", 20, size=(256, 192))
    clip = Decoder("auto", machine=Machine(None, (7, 5), "2.1.0")).decode(path, ALL)
    assert clip.decoder == DECODER
    assert "Elementary streams not supported" in clip.note


@pytest.mark.gpu
@pytest.mark.skipif(
    nvdec(0) is None or not (dali.installed() or nvcodec.installed()), reason="needs NVDEC, and DALI or PyNvVideoCodec"
)
@pytest.mark.parametrize("keep", [False, True])
def test_files_of_all_lanes_on_a_gpu(tmp_path, keep):
    paths = [
        write_clip(tmp_path / "a.mp4", 20, size=(256, 192)),
        write_clip(tmp_path / "b.avi", 25, codec="mjpeg", pix_fmt="yuvj422p"),
        tmp_path / "missing.mp4",
        write_clip(tmp_path / "d.mkv", 25, codec="libx265", size=(320, 240)),
        write_clip(tmp_path / "e.mp4", 25, size=(131, 97), pix_fmt="yuv444p"),
    ]
    clips = Decoder("auto", keep=keep).decode_many(paths, SamplingPolicy.parse("uniform:5"))
    assert clips[2].reason is Reason.NOT_FOUND
    of_25 = [2, 7, 12, 17, 22]
    for i, on_gpu, numbers in ((0, True, [2, 6, 10, 14, 18]), (1, False, of_25), (3, True, of_25)):
        frames = [frame.rgb for frame in clips[i].frames]
        assert clips[i].decoder.endswith("/nvdec") is on_gpu
        assert all(isinstance(rgb, np.ndarray) is not (keep and on_gpu) for rgb in frames)
        assert [read_number(rgb if isinstance(rgb, np.ndarray) else rgb.cpu().numpy()) for rgb in frames] == numbers
    assert (clips[0].note, clips[3].note) == ("", "")
    assert "yuvj422p" in clips[1].note
    assert "yuv444p" in clips[4].note


def test_auto_without_a_gpu_is_pyav_to_the_bit_and_needs_no_note(tmp_path):
    path = write_clip(tmp_path / "a.webm", 20, codec="libvpx-vp9")
    clip, reference = Decoder("auto", machine=NO_GPU).decode(path, ALL), decode(path, ALL)
    assert (clip.decoder, clip.method, clip.note) == (DECODER, "sequential", "")
    assert all((a.rgb == b.rgb).all() for a, b in zip(clip.frames, reference.frames, strict=True))


@needs_dali
def test_files_of_all_lanes_come_back_in_order_with_their_reasons(tmp_path):
    fast = {"options": {"cpu-used": "8", "deadline": "realtime"}}
    paths = [
        write_clip(tmp_path / "a.mp4", 20),
        write_clip(tmp_path / "b.webm", 60, codec="libvpx-vp9", **fast),
        tmp_path / "missing.mp4",
        write_clip(tmp_path / "d.webm", 25, codec="libvpx", **fast),
        write_clip(tmp_path / "e.avi", 25, codec="mjpeg", pix_fmt="yuvj422p"),
        tmp_path / "f.png",
        tmp_path / "g.webm",
    ]
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(paths[5])
    data = paths[1].read_bytes()
    paths[6].write_bytes(data[: len(data) * 6 // 10])
    decoder = Decoder("dali", machine=NO_GPU)
    clips = decoder.decode_many(paths, SamplingPolicy.parse("uniform:5"))
    decoder.close()
    assert isinstance(clips[2], MediaError)
    assert clips[2].reason is Reason.NOT_FOUND
    for i, numbers in ((0, [2, 6, 10, 14, 18]), (1, [6, 18, 30, 42, 54]), (3, [2, 7, 12, 17, 22])):
        assert [read_number(frame.rgb) for frame in clips[i].frames] == numbers
    used = f"dali-{dali.installed()}/cpu"
    assert [clip.decoder for i, clip in enumerate(clips) if i != 2] == [DECODER, used, used, DECODER, DECODER, DECODER]
    for i, why in ((0, "no h264"), (4, "yuvj422p"), (5, "image"), (6, "damaged")):
        assert why in clips[i].note
    assert clips[6].reasons == [Reason.TRUNCATED]
    assert clips[1].note == clips[3].note == ""


@needs_dali
def test_a_file_that_dali_cannot_finish_in_time_is_decoded_by_pyav(tmp_path):
    path = write_clip(tmp_path / "a.webm", 20, codec="libvpx-vp9")
    clip = Decoder("dali", machine=NO_GPU, timeout_s=1e-9).decode(path, ALL)
    assert clip.decoder == DECODER
    assert "longer than" in clip.note
    assert len(clip.frames) == 20


@needs_dali
def test_bytes_in_memory(tmp_path):
    path = write_clip(tmp_path / "a.webm", 20, codec="libvpx-vp9", turn=90)
    with in_memory(path.read_bytes()) as name:
        clips = [Decoder(wanted, machine=NO_GPU).decode(name, ALL) for wanted in ("dali", "pyav")]
    reference = decode(path, ALL)
    assert [clip.decoder for clip in clips] == [f"dali-{dali.installed()}/cpu", DECODER]
    for clip in clips:
        assert [f.time_s for f in clip.frames] == [f.time_s for f in reference.frames]
        assert clip.frames[0].rgb.shape == reference.frames[0].rgb.shape
        assert abs(clip.frames[7].rgb.astype(int) - reference.frames[7].rgb).max() <= 3
    with pytest.raises(MediaError):
        probe(name)
