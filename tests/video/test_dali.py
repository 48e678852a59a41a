"""DALI's and PyNvVideoCodec's decoders against PyAV's: the same frames and times, every clip its own, whatever is
beside it in a batch. On the CPU it is DALI's; on NVDEC (marked gpu) the same tests take H.264, HEVC and VP9.
"""

import time
from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest
from counted_clips import HEIGHT, WIDTH, read_number, write_clip

from fastdetect.errors import MediaError, MissingDependencyError
from fastdetect.reasons import Reason
from fastdetect.video import SamplingPolicy, dali, decode, nvcodec, planned, probe
from fastdetect.video.dali import DaliDecoder
from fastdetect.video.lanes import Machine, check_decoder, choose, nvdec
from fastdetect.video.nvcodec import NvCodecDecoder
from fastdetect.video.planned import plan_clip
from fastdetect.video.probe import DEFAULT_LIMITS
from fastdetect.video.pyav import DecodedClip

needs_dali = pytest.mark.skipif(dali.installed() is None, reason="DALI is not installed: pip install 'fastdetect[gpu]'")
needs_nvcodec = pytest.mark.skipif(nvcodec.installed() is None, reason=f"it is not installed: {nvcodec.INSTALL}")
NVDEC = [pytest.mark.gpu, pytest.mark.skipif(nvdec(0) is None, reason="needs a GPU with libnvcuvid")]
ON_NVDEC = [
    pytest.param("dali-nvdec", marks=[needs_dali, *NVDEC]),
    pytest.param("nvcodec", marks=[needs_nvcodec, *NVDEC]),
]
MAKE = {"dali-cpu": DaliDecoder, "dali-nvdec": partial(DaliDecoder, 0), "nvcodec": partial(NvCodecDecoder, 0)}
NAMES = {
    "dali-cpu": f"dali-{dali.installed()}/cpu",
    "dali-nvdec": f"dali-{dali.installed()}/nvdec",
    "nvcodec": f"nvcodec-{nvcodec.installed()}/nvdec",
}

POLICY = SamplingPolicy.parse
VFR_MS = [0, 40, 50, 300, 301, 900, 1000, 1040, 1500, 3000, 3010, 3020, 3600]
VP9 = {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}
VP8 = {"codec": "libvpx", "options": {"cpu-used": "8", "deadline": "realtime"}}
MJPEG = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}
HIDDEN = {"lag-in-frames": "16", "auto-alt-ref": "1"}
LATER_MS = [5000 + 40 * i for i in range(25)]
H264 = {"codec": "libx264", "size": (256, 192)}  # NVDEC takes no side under 144
HEVC = {"codec": "libx265", "size": (256, 192), "options": {"x265-params": "log-level=error"}}
WIDE_VP9 = VP9 | {"size": (256, 192)}
CLIPS = {  # by what they are for: a file's name and how it is encoded
    "one": ("vp9.webm", VP9 | {"count": 30}),
    "other": ("vp8.webm", VP8 | {"count": 30}),
    "third": ("mjpeg.avi", MJPEG | {"count": 30}),
    "vfr": ("vp9-vfr.webm", VP9 | {"times_ms": VFR_MS, "count": len(VFR_MS), "gop": 4}),
    "other-vfr": ("vp8-vfr.mkv", VP8 | {"times_ms": VFR_MS, "count": len(VFR_MS)}),
    "late": ("vp9-starts-at-5s.mp4", VP9 | {"times_ms": LATER_MS, "count": 25, "gop": 5}),
    "another-size": ("vp9-odd.webm", VP9 | {"size": (131, 97), "count": 20}),
    "others-size": ("mjpeg-odd.avi", MJPEG | {"size": (101, 67), "count": 20}),
    "turned": ("vp9-turned.mp4", VP9 | {"turn": 90, "count": 20}),
    "mirrored": ("vp9-upside-down-mirrored.mp4", VP9 | {"turn": 180, "mirror": True, "count": 20}),
    "hidden": ("vp9-hidden-frames.webm", {"codec": "libvpx-vp9", "options": HIDDEN}),
    "other-hidden": ("vp8-hidden-frames.webm", {"codec": "libvpx", "options": HIDDEN}),
}
NVDEC_CLIPS = {
    "one": ("h264.mp4", H264 | {"count": 30}),
    "other": ("hevc.mkv", HEVC | {"count": 30}),
    "third": ("wide-vp9.webm", WIDE_VP9 | {"count": 30}),
    "vfr": ("h264-vfr.mp4", H264 | {"times_ms": VFR_MS, "count": len(VFR_MS), "gop": 4}),
    "other-vfr": ("hevc-vfr.mkv", HEVC | {"times_ms": VFR_MS, "count": len(VFR_MS), "bframes": 0}),
    "late": ("h264-starts-at-5s.mp4", H264 | {"times_ms": LATER_MS, "count": 25, "gop": 5}),
    "another-size": ("h264-larger.mp4", H264 | {"size": (320, 240), "count": 20}),
    "others-size": ("hevc-larger.mp4", HEVC | {"size": (322, 242), "count": 20}),
    "turned": ("h264-turned.mp4", H264 | {"turn": 90, "count": 20}),
    "mirrored": ("hevc-upside-down-mirrored.mp4", HEVC | {"turn": 180, "mirror": True, "count": 20}),
    "hidden": ("wide-vp9-hidden-frames.webm", WIDE_VP9 | {"options": HIDDEN}),
}


@pytest.fixture(scope="module", params=[pytest.param("dali-cpu", marks=needs_dali), *ON_NVDEC])
def lane(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


def clip_of(folder, name, how):
    return folder / name if (folder / name).exists() else write_clip(folder / name, **how)


@pytest.fixture(scope="module")
def clips(lane, folder):
    """The clip of a purpose, in a codec of the lane."""
    kinds = CLIPS if lane == "dali-cpu" else NVDEC_CLIPS
    return lambda purpose: clip_of(folder, *kinds[purpose])


@pytest.fixture(scope="module")
def every_clip(lane, clips):
    return [clips(purpose) for purpose in (CLIPS if lane == "dali-cpu" else NVDEC_CLIPS)]


@pytest.fixture(scope="module")
def decoder(lane):
    one = MAKE[lane]()
    yield one
    one.close()


@pytest.mark.parametrize("purpose", NVDEC_CLIPS)
def test_the_clips_for_nvdec_are_those_that_it_is_given(folder, purpose):
    info = probe(clip_of(folder, *NVDEC_CLIPS[purpose]))
    assert choose(info, "auto", Machine("2.4.0", (9, 0))).lane == "nvdec"
    plan = plan_clip(info, POLICY("all"), None, DEFAULT_LIMITS)  # none is left to PyAV
    assert plan.chosen.tolist() == [frame.index for frame in decode(info.path, POLICY("all")).frames]


def assert_same(clip, reference):
    assert isinstance(clip, DecodedClip), clip
    levels = 6 if clip.decoder.endswith("/nvdec") else 3  # grey blocks: what is left of chroma is the codec's noise
    assert [f.index for f in clip.frames] == [f.index for f in reference.frames]
    assert [f.time_s for f in clip.frames] == [f.time_s for f in reference.frames]
    assert [f.keyframe for f in clip.frames] == [f.keyframe for f in reference.frames]
    for mine, theirs in zip(clip.frames, reference.frames, strict=True):
        assert mine.rgb.shape == theirs.rgb.shape
        assert mine.rgb.flags.c_contiguous
        assert np.abs(mine.rgb.astype(int) - theirs.rgb).max() <= levels


@pytest.mark.parametrize("policy", ["uniform:5", "fps:10", "keyframes", "all"])
def test_frames_times_and_keyframes_are_pyavs_with_every_kind_of_clip_in_one_call(lane, every_clip, decoder, policy):
    got = decoder.decode_many([probe(path) for path in every_clip], POLICY(policy))
    for path, clip in zip(every_clip, got, strict=True):
        reference = decode(path, POLICY(policy))
        assert_same(clip, reference)
        assert (clip.reasons, clip.method, clip.note) == ([], "frame-list", "")
        assert clip.decoder == NAMES[lane]
        assert clip.frames_decoded >= len(clip.frames)


def test_max_seconds(clips, decoder):
    for purpose in ("late", "vfr"):
        assert_same(
            decoder.decode(clips(purpose), POLICY("all"), max_seconds=0.5),
            decode(clips(purpose), POLICY("all"), max_seconds=0.5),
        )


def coloured(path, pictures, codec, matrix=None, full_range=False, gop=12):
    """Encode RGB pictures, with a named colour matrix (1 = BT.709, 5 = BT.601) and range where they are given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if codec == "mjpeg":
            stream.options = {"qmin": "1", "qmax": "2"}
        else:
            stream.options = {"crf": "4"} | ({"b": "5M", "cpu-used": "8"} if codec.startswith("libvpx") else {})
        if matrix is not None:
            stream.codec_context.colorspace = matrix
            stream.codec_context.color_range = 2 if full_range else 1
        for number, rgb in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(rgb).reformat(
                format=stream.pix_fmt,
                dst_colorspace=5 if matrix is None else matrix,
                dst_color_range=2 if full_range or codec == "mjpeg" else 1,
            )
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def flat(colour, count=6, size=(64, 48)):
    return [np.full((size[1], size[0], 3), colour, np.uint8)] * count


def smooth(number, width=192, height=128):
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin(x / 17 + number), np.sin(y / 13), np.cos((x + y) / 23)
    return np.stack([128 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("codec", "matrix", "full_range"),
    [
        ("libvpx-vp9", None, False),
        ("libvpx-vp9", 5, True),
        ("libvpx-vp9", 1, False),
        ("libvpx-vp9", 1, True),
        ("libvpx", None, False),
        ("mjpeg", None, True),
    ],
)
@needs_dali
def test_colours_agree_with_pyav_within_the_documented_tolerance(tmp_path, codec, matrix, full_range):
    pictures = [smooth(i) for i in range(4)]
    suffix = "avi" if codec == "mjpeg" else "webm"
    path = coloured(tmp_path / f"clip.{suffix}", pictures, codec, matrix, full_range)
    assert_colours(DaliDecoder(), path, pictures, matrix)


@pytest.mark.parametrize("lane", ON_NVDEC, indirect=True)
@pytest.mark.parametrize(
    ("codec", "matrix", "full_range"),
    [
        ("libx264", None, False),
        ("libx264", 1, False),
        ("libx264", 1, True),
        ("libx264", 5, True),
        ("libx265", None, False),
        ("libx265", 1, False),
        ("libvpx-vp9", None, False),
        ("libvpx-vp9", 1, False),
    ],
)
def test_nvdecs_colours_agree_with_pyav(decoder, tmp_path, codec, matrix, full_range):
    pictures = [smooth(i, 320, 240) for i in range(4)]
    assert_colours(decoder, coloured(tmp_path / "clip.mkv", pictures, codec, matrix, full_range), pictures, matrix)


def assert_colours(decoder, path, pictures, matrix):
    info = probe(path)
    if matrix is not None:
        assert info.colour_matrix == matrix
    mine = np.stack([f.rgb for f in decoder.decode(path, POLICY("all")).frames]).astype(int)
    theirs = np.stack([f.rgb for f in decode(path, POLICY("all")).frames]).astype(int)
    difference = np.abs(mine - theirs)
    assert difference.mean() <= 2.5
    assert np.percentile(difference, 99) <= 8
    assert difference.max() <= 12
    # and it is no worse than PyAV against the pictures that were encoded: matrix and range are right, not just alike
    truth = np.stack(pictures)
    assert np.abs(mine - truth).mean() <= np.abs(theirs - truth).mean() + 0.5


def test_every_clip_keeps_its_own_colour_through_several_mixed_batches(lane, tmp_path):
    hues = np.random.default_rng(0).permutation(20) / 20 * 2 * np.pi
    colours = [tuple((128 + 70 * np.cos(h + t)).astype(int) for t in (0, 2.1, 4.2)) for h in hues]
    kinds = [("libvpx-vp9", "webm"), ("mjpeg", "avi"), ("libvpx", "webm")]
    sizes = [(96, 64), (64, 48)]
    if lane != "dali-cpu":
        kinds = [("libx264", "mp4"), ("libx265", "mkv"), ("libvpx-vp9", "webm")]
        sizes = [(256, 192), (320, 240)]
    paths = []
    for i, colour in enumerate(colours):
        codec, suffix = kinds[i % 3]
        paths.append(coloured(tmp_path / f"{i}.{suffix}", flat(colour, 3 + i % 4, sizes[i % 2]), codec))
    decoder = MAKE[lane](batch=3)
    for _ in range(2):  # the second time with pipelines that have been used
        got = decoder.decode_many([probe(path) for path in paths], POLICY("all"))
        for i, clip in enumerate(got):
            assert clip.info.path == str(paths[i])
            assert len(clip.frames) == 3 + i % 4
            for frame in clip.frames:
                np.testing.assert_allclose(frame.rgb.mean(axis=(0, 1)), colours[i], atol=5)


def test_a_bad_file_costs_itself_only(lane, clips, tmp_path):
    good = [clips("one"), clips("other"), clips("another-size")]
    data = bytearray(clips("vfr").read_bytes())
    bad = tmp_path / f"bad{clips('vfr').suffix}"
    infos = [probe(path) for path in good]
    bad.write_bytes(data)
    spoilt = probe(bad)
    decoder = MAKE[lane](batch=8)
    plan = plan_clip(spoilt, POLICY("all"), None, DEFAULT_LIMITS)
    bad.write_bytes(data[:200] + bytes(len(data) - 200))  # it goes bad after the packets were read
    batch = [plan_clip(info, POLICY("all"), None, DEFAULT_LIMITS) for info in infos]
    with pytest.raises(MediaError, match=r"bad\."):
        decoder._decode([*batch, plan])
    assert decoder._alone(plan).reason is Reason.DECODE_ERROR
    got = decoder.decode_many([infos[0], spoilt, *infos[1:]], POLICY("all"))
    assert isinstance(got[1], MediaError)
    for path, clip in zip(good, [got[0], *got[2:]], strict=True):
        assert_same(clip, decode(path, POLICY("all")))


def test_a_batch_that_fails_is_tried_again_file_by_file(lane, clips, monkeypatch):
    infos = [probe(clips(purpose)) for purpose in ("one", "other", "third")]
    plan = plan_clip

    def past_the_end(info, *rest):
        made = plan(info, *rest)
        if info.path == infos[1].path:
            made.asked = np.append(made.asked, 10_000)
        return made

    monkeypatch.setattr(planned, "plan_clip", past_the_end)
    got = MAKE[lane]().decode_many(infos, POLICY("uniform:3"))
    assert [read_number(f.rgb) for f in got[0].frames] == [5, 15, 25]
    assert got[1].reason is Reason.DECODE_ERROR
    if lane != "nvcodec":  # which has words of its own
        assert "10000" in str(got[1])
    assert [read_number(f.rgb) for f in got[2].frames] == [5, 15, 25]


@pytest.mark.parametrize("keep", [False, True])
def test_another_clips_frames_are_found_out(lane, tmp_path, keep):
    codec = "libvpx-vp9" if lane == "dali-cpu" else "libx264"
    red = coloured(tmp_path / "red.mkv", flat((180, 60, 60), size=(256, 192)), codec)
    blue = coloured(tmp_path / "blue.mkv", flat((60, 60, 180), size=(256, 192)), codec)
    decoder = MAKE[lane](keep=keep)
    plans = [plan_clip(probe(path), POLICY("all"), None, DEFAULT_LIMITS) for path in (red, blue)]
    plans[0].info, plans[1].info = plans[1].info, plans[0].info  # what the fault would do: each gets the other's bytes
    for clip in decoder._decode(plans):
        assert clip.reason is Reason.DECODE_ERROR
        assert "another picture" in str(clip)


def test_a_clip_that_is_too_large_for_the_device_is_for_pyav(lane, clips, decoder, monkeypatch):
    monkeypatch.setattr(planned, "BATCH_BYTES", 200_000)
    paths = [clips("one"), clips("other")]
    for clip in MAKE[lane](keep=True).decode_many(paths, POLICY("uniform:16")):
        assert "is for PyAV alone: its frames are" in str(clip)
    assert [len(clip.frames) for clip in decoder.decode_many(paths, POLICY("uniform:16"))] == [16, 16]


@pytest.mark.parametrize("purpose", ["one", "turned", "mirrored", "vfr"])
def test_frames_that_stay_on_the_device_are_the_same(lane, clips, decoder, purpose):
    torch = pytest.importorskip("torch")
    keeper, pair = MAKE[lane](keep=True), [clips(purpose), clips("other")]
    got = [clip for _ in range(2) for clip in keeper.decode_many(pair, POLICY("uniform:4"))]
    want = decoder.decode_many(pair, POLICY("uniform:4"))
    for mine, theirs in zip(got, want * 2, strict=True):  # the second batch uses the library's buffers again
        for kept, frame in zip(mine.frames, theirs.frames, strict=True):
            assert isinstance(kept.rgb, torch.Tensor)
            assert kept.rgb.is_cuda is (lane != "dali-cpu")
            assert kept.rgb.is_contiguous()
            assert np.array_equal(kept.rgb.cpu().numpy(), frame.rgb)
            assert (kept.index, kept.time_s) == (frame.index, frame.time_s)


@pytest.mark.parametrize("purpose", ["hidden", "third"])
@pytest.mark.parametrize("how", ["cut", "overwritten"])
def test_damaged_files_are_left_to_pyav_or_come_out_the_same(clips, decoder, tmp_path, purpose, how):
    data = clips(purpose).read_bytes()
    path = tmp_path / clips(purpose).name
    half = len(data) // 2
    path.write_bytes(data[: len(data) * 6 // 10] if how == "cut" else data[:half] + bytes(200) + data[half + 200 :])
    reference = decode(path, POLICY("all"))
    (clip,) = decoder.decode_many([probe(path)], POLICY("all"))
    if isinstance(clip, MediaError):
        assert reference.reasons == [Reason.TRUNCATED]
    else:
        assert_same(clip, reference)


def test_variable_frame_rates_do_not_hang(clips, decoder):
    begin = time.perf_counter()
    for policy in ("uniform:16", "fps:3", "all", "keyframes"):
        decoder.decode(clips("other-vfr"), POLICY(policy))
    assert time.perf_counter() - begin < 20


def test_a_batch_that_takes_too_long_is_given_up_and_the_decoder_lives_on(lane, clips):
    decoder = MAKE[lane](timeout_s=1e-4)
    with pytest.raises(MediaError, match="longer than") as caught:
        decoder.decode(clips("one"), POLICY("all"))
    assert caught.value.reason is Reason.TIMEOUT
    decoder.timeout_s = 60.0
    assert_same(decoder.decode(clips("one"), POLICY("all")), decode(clips("one"), POLICY("all")))


@needs_dali
def test_a_codec_that_only_nvdec_has_is_an_error_here(tmp_path):
    with pytest.raises(MediaError, match="DALI cannot decode") as caught:
        DaliDecoder().decode(write_clip(tmp_path / "h264.mp4", 10), POLICY("all"))
    assert caught.value.reason is Reason.DECODE_ERROR


@needs_dali
def test_a_size_that_changes_inside_a_stream_is_found_out(tmp_path):
    path = tmp_path / "shrinks.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = 2 * WIDTH, 2 * HEIGHT, "yuv420p"
        smaller = av.CodecContext.create("libvpx", "w")
        smaller.width, smaller.height, smaller.pix_fmt, smaller.time_base = WIDTH, HEIGHT, "yuv420p", Fraction(1, 25)
        for encoder, pictures, first in (
            (stream, flat((30, 120, 60), 5, (2 * WIDTH, 2 * HEIGHT)), 0),
            (smaller, flat((230, 120, 60), 5, (WIDTH, HEIGHT)), 5),
        ):
            packets = []
            for i, rgb in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(rgb)
                frame.pts, frame.time_base = first + i, Fraction(1, 25)
                packets += encoder.encode(frame)
            for packet in [*packets, *encoder.encode(None)]:
                packet.stream = stream
                container.mux(packet)
    assert len(decode(path, POLICY("all")).frames) == 10
    with pytest.raises(MediaError, match=r"another picture|cannot decode"):
        DaliDecoder().decode(path, POLICY("all"))


def test_without_dali_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr(dali, "PACKAGES", ("nvidia-dali-nothing",))
    with pytest.raises(MissingDependencyError, match=r"fastdetect\[gpu\]"):
        DaliDecoder()


@pytest.mark.parametrize(("found", "usable"), [("1.52.0", False), ("2.3.9", False), ("2.4.0", True), ("2.10.0", True)])
def test_an_older_dali_counts_as_none(monkeypatch, found, usable):
    monkeypatch.setattr(dali, "version", lambda package: found)
    assert dali.installed() == (found if usable else None)
    if not usable:
        with pytest.raises(MissingDependencyError, match=r"2\.4 or newer"):
            check_decoder("dali", Machine(dali.installed()))
