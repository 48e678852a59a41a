"""Decoding: the right frames by every policy, the same by every method, upright and in true colours."""

import gc
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from counted_clips import HEIGHT, WIDTH, all_numbers, numbered_picture, read_number, write_clip
from PIL import Image, ImageOps

from fastdetect.errors import MediaError, UsageError
from fastdetect.reasons import Reason
from fastdetect.video import Limits, SamplingPolicy, decode, probe
from fastdetect.video.planned import plan_clip
from fastdetect.video.pyav import DECODER, JUMP_PACKETS, _decode_video

X265 = {"x265-params": "log-level=none"}
CLIPS = {
    "h264-bframes.mp4": {},
    "h264-one-gop.mp4": {"gop": 250},
    "h264-open-gop.ts": {"options": {"x264-params": "open-gop=1", "bf": "3"}},
    "h264.mkv": {},
    "h264-bframes.avi": {},  # stores no presentation times
    "h264-raw.264": {},  # nor does this
    "h264-fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.flv": {},
    "hevc10-open-gop.mkv": {
        "codec": "libx265",
        "pix_fmt": "yuv420p10le",
        "options": {"x265-params": "log-level=none:open-gop=1:keyint=12"},
    },
    "mpeg2-open-gop.mpg": {"codec": "mpeg2video"},
    "mpeg1.mpg": {"codec": "mpeg1video"},
    "mpeg4-bframes.avi": {"codec": "mpeg4"},
    "vp8.webm": {"codec": "libvpx"},
    "vp9-hidden-frames.webm": {
        "codec": "libvpx-vp9",
        "options": {"lag-in-frames": "16", "auto-alt-ref": "1"},
    },
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}
POLICY = SamplingPolicy.parse


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return lambda name: folder / name if (folder / name).exists() else write_clip(folder / name, **CLIPS[name])


def numbers(clip):
    return [read_number(frame.rgb) for frame in clip.frames]


@pytest.mark.parametrize("name", CLIPS)
def test_every_policy_gives_the_frames_it_names(clips, name):
    path = clips(name)
    wanted = {
        "uniform:16": [int(25 * (i + 0.5) * 2 / 16) for i in range(16)],
        "uniform:3": [8, 25, 41],
        "fps:5": list(range(0, 50, 5)),
        "all": list(range(50)),
    }
    for policy, expected in wanted.items():
        clip = decode(path, POLICY(policy))
        assert numbers(clip) == expected == [frame.index for frame in clip.frames], policy
        np.testing.assert_allclose([frame.time_s for frame in clip.frames], np.array(expected) / 25, atol=2e-3)
        assert clip.reasons == []
        assert clip.decoder == DECODER
        assert all(f.rgb.shape == (HEIGHT, WIDTH, 3) and f.rgb.flags.c_contiguous for f in clip.frames)


@pytest.mark.parametrize("name", CLIPS)
def test_keyframes(clips, name):
    clip = decode(clips(name), POLICY("keyframes"))
    with av.open(str(clips(name))) as container:
        expected = [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert numbers(clip) == expected
    assert clip.method == "keyframes"
    assert all(frame.keyframe for frame in clip.frames)


@pytest.mark.parametrize("name", CLIPS)
def test_jumping_gives_the_bits_of_decoding_through_for_any_number_of_threads(clips, name):
    path = clips(name)
    with av.open(str(path)) as container:
        truth = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    info = probe(path)
    for policy in ("uniform:4", "uniform:16", "keyframes"):
        for threads in (1, 3):
            for jump_packets in (0, JUMP_PACKETS, 10**9):
                frames, *_ = _decode_video(info, POLICY(policy), None, threads, Limits(), jump_packets)
                assert len(frames) >= 1
                for frame in frames:
                    np.testing.assert_array_equal(frame.rgb, truth[frame.index])


def test_long_gaps_are_jumped_and_short_ones_are_not(tmp_path):
    long = decode(write_clip(tmp_path / "a.mp4", 500, gop=25), POLICY("uniform:5"))
    assert numbers(long) == [50, 150, 250, 350, 450]
    assert (long.method, long.frames_decoded) == ("seek", 5)  # each lies on a keyframe
    short = decode(write_clip(tmp_path / "b.mp4", 60, gop=6, bframes=0), POLICY("fps:12.5"))
    assert (short.method, short.frames_decoded) == ("sequential", 59)
    far = decode(tmp_path / "a.mp4", POLICY("uniform:1"))
    assert (far.method, numbers(far), far.frames_decoded) == ("seek", [250], 1)


def test_nothing_is_decoded_past_the_last_wanted_frame(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 250, gop=250, bframes=0)
    assert decode(path, POLICY("uniform:4"), max_seconds=1.0).frames_decoded == 22
    first = decode(path, POLICY("all"), max_seconds=0.2)
    assert numbers(first) == [0, 1, 2, 3, 4]


def test_variable_frame_rate_picks_what_is_on_screen(tmp_path):
    times = [0, 40, 80, 1000, 1040, 1500, 3000, 3040, 3960]
    clip = decode(write_clip(tmp_path / "a.mkv", 9, times_ms=times), POLICY("uniform:4"))
    # the clip ends at 4.0 s: instants 0.5, 1.5, 2.5, 3.5
    assert numbers(clip) == [2, 5, 7]
    assert [frame.time_s for frame in clip.frames] == pytest.approx([0.08, 1.5, 3.04])


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_a_late_start_does_not_shift_times(tmp_path, suffix):
    path = write_clip(tmp_path / f"a.{suffix}", 50, times_ms=range(12_000, 14_000, 40), gop=10)
    clip = decode(path, POLICY("fps:5"), max_seconds=1.0)
    assert numbers(clip) == [0, 5, 10, 15, 20]
    assert [frame.time_s for frame in clip.frames] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8], abs=2e-3)
    whole = decode(path, POLICY("uniform:2"))
    assert whole.reasons == []  # the offset is no missing part
    assert whole.info.duration_s == pytest.approx(2.0, abs=0.1)


def test_fewer_frames_than_asked(tmp_path):
    assert numbers(decode(write_clip(tmp_path / "a.mp4", 3))) == [0, 1, 2]
    assert numbers(decode(write_clip(tmp_path / "b.mp4", 1))) == [0]


def test_frames_that_are_not_turned_are_not_asked_for_side_data(tmp_path):
    """PyAV 18 can crash when a frame whose side data was read is garbage-collected."""
    path = write_clip(tmp_path / "a.mp4", 4)
    gc.collect()
    gc.disable()
    try:
        decode(path, POLICY("all"))
        kinds = {type(thing).__name__ for thing in gc.get_objects()}
    finally:
        gc.enable()
    assert not any("SideData" in kind for kind in kinds)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_pictures_come_upright(tmp_path, turn, mirror):
    path = write_clip(tmp_path / "a.mp4", 4, turn=turn, mirror=mirror)
    clip = decode(path, POLICY("all"))
    stored = [frame.to_ndarray(format="rgb24") for frame in av.open(str(path)).decode(video=0)]
    for frame, picture in zip(clip.frames, stored, strict=True):
        upright = np.rot90(picture, -turn // 90)
        upright = upright[:, ::-1] if mirror else upright
        if turn == 180 and mirror:  # flipped top to bottom: the one matrix whose angle is 0, which is not read
            upright = picture
        np.testing.assert_array_equal(frame.rgb, upright)
        assert frame.rgb.flags.c_contiguous
        assert frame.rgb.shape == (clip.info.height, clip.info.width, 3)


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_exif_orientation(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x112] = orientation
    picture = numbered_picture(77)
    Image.fromarray(np.rot90(picture, turn)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    clip = decode(tmp_path / "a.jpg")
    assert (numbers(clip), clip.method, clip.info.rotation) == ([77], "image", turn * 90)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_turns_and_mirrors_as_viewers_do(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(numbered_picture(1234)[:, :80]).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    clip = decode(path)
    assert clip.frames[0].rgb.shape == upright.shape == (clip.info.height, clip.info.width, 3)
    assert np.abs(clip.frames[0].rgb - upright).mean() < 3


@pytest.mark.parametrize("size", [(97, 65), (359, 287), (99, 64)])
@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p", "yuv422p", "yuv420p10le"])
def test_odd_sizes_and_formats(tmp_path, size, pix_fmt):
    if pix_fmt != "yuv444p":
        size = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    path = write_clip(tmp_path / "a.mp4", 6, size=size, pix_fmt=pix_fmt, options={"crf": "12"})
    clip = decode(path, POLICY("all"))
    assert numbers(clip) == list(range(6))
    assert clip.frames[0].rgb.shape == (size[1], size[0], 3)
    error = np.abs(clip.frames[5].rgb.astype(int) - numbered_picture(5, *size)).mean()
    assert error < 4


def rgb_of(luma, cb, cr, kr, kb, full):
    """Invert Y'CbCr by its definition (ITU-R BT.601 / BT.709), in float64."""
    y, scale = (luma / 255, 255) if full else ((luma - 16) / 219, 224)
    pb, pr = (cb - 128) / scale, (cr - 128) / scale
    red, blue = y + 2 * (1 - kr) * pr, y + 2 * (1 - kb) * pb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.array([red, green, blue]) * 255, 0, 255)


@pytest.mark.parametrize(
    ("tags", "kr", "kb", "full"),
    [
        ({}, 0.299, 0.114, False),
        ({"colorspace": "smpte170m", "color_range": "tv"}, 0.299, 0.114, False),
        ({"colorspace": "bt709", "color_range": "tv"}, 0.2126, 0.0722, False),
        ({"colorspace": "bt709", "color_range": "pc"}, 0.2126, 0.0722, True),
        ({"colorspace": "smpte170m", "color_range": "pc"}, 0.299, 0.114, True),
    ],
)
def test_colours_follow_the_streams_matrix_and_range(tmp_path, tags, kr, kb, full):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"qp": "0", **tags}
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane, value in zip(frame.planes, (150, 100, 160), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    got = decode(path).frames[0].rgb[20, 20]
    np.testing.assert_allclose(got, rgb_of(150, 100, 160, kr, kb, full), atol=2)


def test_a_picture_that_changes_size_on_the_way_keeps_the_first_size(tmp_path):
    parts = []
    for size in ((96, 64), (192, 128)):
        path = write_clip(tmp_path / f"{size[0]}.264", 10, size=size, bframes=0)
        parts.append(path.read_bytes())
    (tmp_path / "a.264").write_bytes(b"".join(parts))
    clip = decode(tmp_path / "a.264", POLICY("all"))
    assert len(clip.frames) == 20
    assert {frame.rgb.shape for frame in clip.frames} == {(64, 96, 3)}


def test_cut_off_tail_is_told_and_the_rest_is_sampled_evenly(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 200, container_options={"movflags": "faststart"}, gop=20)
    data = path.read_bytes()
    start = data.index(b"mdat")
    path.write_bytes(data[: start + int((len(data) - start) * 0.4)])
    clip = decode(path, POLICY("uniform:16"))
    assert clip.reasons == [Reason.TRUNCATED]
    got = numbers(clip)
    assert got == [frame.index for frame in clip.frames]
    assert len(got) == 16
    assert 20 < got[-1] < 120
    assert max(np.diff(got)) - min(np.diff(got)) <= 2
    assert numbers(decode(path, POLICY("all")))[:20] == list(range(20))
    early = decode(path, POLICY("uniform:4"), max_seconds=0.4)
    assert (numbers(early), early.reasons) == ([1, 3, 6, 8], [])  # what is missing was not asked for


@pytest.mark.parametrize(("head", "cut"), [(63, False), (63, True), (60, False)])
def test_a_clip_that_an_edit_list_trims_is_whole(tmp_path, head, cut):
    times = [40 * (i - head) for i in range(200)]  # before zero: left out by the list; 60 are whole groups
    path = write_clip(tmp_path / "a.mp4", 200, times_ms=times, gop=10, container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # its length in ticks of 1 ms
    assert int.from_bytes(data[at : at + 4], "big") == (200 - head) * 40
    data[at : at + 4] = (100 * 40).to_bytes(4, "big")  # and some at the end
    path.write_bytes(data[: len(data) * 6 // 10] if cut else data)
    clip = decode(path, POLICY("all"))
    assert numbers(clip)[0] == head
    assert clip.reasons == ([Reason.TRUNCATED] if cut else [])
    if not cut:
        assert numbers(clip) == list(range(head, head + 100))
    with pytest.raises(MediaError, match="for PyAV alone"):
        plan_clip(clip.info, POLICY("all"), None, Limits())


def test_cut_off_matroska_is_told(tmp_path):
    path = write_clip(tmp_path / "a.mkv", 200, gop=20)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    clip = decode(path)
    assert clip.reasons == [Reason.TRUNCATED]
    assert len(clip.frames) == 16


def test_a_hole_in_the_middle_leaves_both_ends(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 100, gop=10, bframes=0, container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[start : start + len(data) // 8] = b"\xa5" * (len(data) // 8)
    path.write_bytes(bytes(data))
    for threads in (1, 3):
        clip = decode(path, POLICY("all"), threads=threads)
        assert clip.reasons == [Reason.TRUNCATED]
        got = [read_number(f.rgb) for f in clip.frames if f.time_s < 1.5 or f.time_s > 3.5]
        assert set(range(37)) <= set(got)
        assert set(range(90, 100)) <= set(got)


def test_damage_gives_the_same_frames_for_any_number_of_threads(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 60, gop=15, container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    for at in range(data.index(b"mdat") + 2000, len(data), 997):
        data[at] ^= 0x5A
    path.write_bytes(bytes(data))
    one, many = (decode(path, threads=threads) for threads in (1, 4))
    assert [frame.index for frame in one.frames] == [frame.index for frame in many.frames]
    assert all((a.rgb == b.rgb).all() for a, b in zip(one.frames, many.frames, strict=True))


def test_nothing_decodable(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 20, gop=250, container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = b"\xff" * (len(data) - start)
    path.write_bytes(bytes(data))
    with pytest.raises(MediaError) as caught:
        decode(path)
    assert caught.value.reason == Reason.DECODE_ERROR


def test_all_is_held_to_the_memory_limit_and_says_what_to_do(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 50)
    limits = Limits(max_kept_bytes=20 * WIDTH * HEIGHT * 3)
    with pytest.raises(MediaError, match=r"max_kept_bytes.*uniform:N") as caught:
        decode(path, POLICY("all"), limits=limits)
    assert caught.value.reason == Reason.TOO_LARGE
    assert len(decode(path, POLICY("uniform:20"), limits=limits).frames) == 20


def test_max_seconds_must_be_sensible(tmp_path):
    with pytest.raises(UsageError, match="max_seconds"):
        decode(tmp_path / "a.mp4", max_seconds=0)


def test_paths_may_be_strings_bytes_or_paths(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 2)
    assert probe(path).path == probe(str(path)).path == probe(os.fsencode(path)).path == str(path)


@pytest.mark.parametrize("name", ["h264-bframes.mp4", "h264.mkv", "h264-open-gop.ts", "vp9-hidden-frames.webm"])
def test_random_damage_gives_frames_or_a_reason(clips, tmp_path, name):
    data = clips(name).read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for trial in range(30):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 1 + trial):
            broken[at] = rng.integers(256)
        path = tmp_path / f"{trial}{clips(name).suffix}"
        path.write_bytes(bytes(broken[: rng.integers(len(data) // 2, len(data) + 1)]))
        try:
            clip = decode(path, POLICY("uniform:4"))
        except MediaError as error:
            outcomes.add(error.reason)
        else:
            assert 1 <= len(clip.frames) <= 4
            outcomes.update(clip.reasons)
    assert Reason.TRUNCATED in outcomes or Reason.DECODE_ERROR in outcomes


def test_the_ground_truth_itself(clips):
    assert all_numbers(clips("h264-bframes.mp4")) == list(range(50))
