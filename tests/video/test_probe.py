"""What probe says of good files, and the Reason of every kind of bad one."""

import os
import resource
import socket
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from counted_clips import HEIGHT, WIDTH, numbered_picture, write_clip
from PIL import Image

from fastdetect.errors import MediaError
from fastdetect.reasons import Reason
from fastdetect.video import Limits, decode, probe


def refusal(path, limits=None):
    with pytest.raises(MediaError) as caught:
        probe(path, limits or Limits())
    assert str(caught.value)
    return caught.value.reason


def test_plain_clip(tmp_path):
    info = probe(write_clip(tmp_path / "a.mp4", 30))
    assert (info.container, info.codec, info.pix_fmt, info.bit_depth) == (
        "mov,mp4,m4a,3gp,3g2,mj2",
        "h264",
        "yuv420p",
        8,
    )
    assert (info.width, info.height, info.rotation, info.frames) == (WIDTH, HEIGHT, 0, 30)
    assert (info.fps, info.stream_index, info.video_streams, info.is_image) == (25.0, 0, 1, False)
    assert info.duration_s == pytest.approx(1.2)
    assert info.sample_aspect == 1.0


def test_ten_bits_and_start_offset(tmp_path):
    options = {"x265-params": "log-level=none"}
    path = write_clip(
        tmp_path / "a.mkv",
        8,
        codec="libx265",
        pix_fmt="yuv420p10le",
        options=options,
        times_ms=range(9000, 9320, 40),
    )
    info = probe(path)
    assert (info.codec, info.profile, info.pix_fmt, info.bit_depth) == ("hevc", "Main 10", "yuv420p10le", 10)
    assert info.start_s == pytest.approx(9.0, abs=0.01)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotation_gives_displayed_size(tmp_path, turn):
    info = probe(write_clip(tmp_path / "a.mp4", 3, turn=turn))
    assert info.rotation == turn
    assert (info.width, info.height) == ((HEIGHT, WIDTH) if turn % 180 else (WIDTH, HEIGHT))


def test_largest_of_two_streams_and_no_cover_art(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, size in zip(streams, (96, 192), strict=True):
            stream.width, stream.height, stream.pix_fmt = size, 64, "yuv420p"
        for number in range(5):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(numbered_picture(number, stream.width, 64))
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    info = probe(path)
    assert (info.video_streams, info.stream_index, info.width) == (2, 1, 192)


def write_sound(path, cover=False):
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        picture = None
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 96, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.time_base = 44100, Fraction(1, 44100)
        for i in range(20):
            frame.pts = i * 1024
            container.mux(sound.encode(frame))
        if picture is not None:
            still = av.VideoFrame.from_ndarray(numbered_picture(1)).reformat(format="yuvj420p")
            still.pts = 0
            container.mux(picture.encode(still))
            container.mux(picture.encode(None))
        container.mux(sound.encode(None))
    return path


def test_sound_alone_has_no_video(tmp_path):
    assert refusal(write_sound(tmp_path / "a.m4a")) == Reason.NO_VIDEO_STREAM


def test_cover_art_is_not_video(tmp_path):
    path = write_sound(tmp_path / "a.mp4", cover=True)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert refusal(path) == Reason.NO_VIDEO_STREAM


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "ppm"])
def test_images_are_videos_of_one_frame(tmp_path, suffix):
    path = tmp_path / f"face%03d.{suffix}"  # the name of a sequence, to FFmpeg; here it is one file
    Image.fromarray(numbered_picture(5, 97, 65)).save(path)
    Image.fromarray(numbered_picture(6, 97, 65)).save(tmp_path / f"face001.{suffix}")
    info = probe(path)
    assert (info.is_image, info.width, info.height) == (True, 97, 65)


@pytest.mark.parametrize(
    "name", ["http:x.mp4", "-i.mp4", "concat:a|b.mp4", "a b'\"\n.mp4", os.fsdecode(b"\xff\xfe.mp4")]
)
def test_odd_names_are_only_names(tmp_path, name, monkeypatch):
    write_clip(tmp_path / "a.mp4", 2).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe(name).frames == 2


def test_missing(tmp_path):
    assert refusal(tmp_path / "none.mp4") == Reason.NOT_FOUND
    assert refusal("a\0b.mp4") == Reason.NOT_FOUND
    assert refusal(tmp_path / ("n" * 300)) == Reason.NOT_FOUND
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nothing")
    assert refusal(tmp_path / "dangling.mp4") == Reason.NOT_FOUND
    assert refusal("https://example.com/a.mp4") == Reason.NOT_FOUND


@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.mp4"))
        for path in (tmp_path, tmp_path / "pipe.mp4", tmp_path / "s.mp4", "/dev/zero"):
            assert refusal(path) == Reason.NOT_PERMITTED


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_unreadable(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 2)
    path.chmod(0)
    assert refusal(path) == Reason.NOT_PERMITTED


def test_unreadable_as_the_system_says_it(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 2)

    def forbidden(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    assert refusal(path) == Reason.NOT_PERMITTED


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"hello, this is no video\n" * 40, bytes(range(256)) * 20])
def test_what_is_no_media(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert refusal(path) == Reason.DECODE_ERROR


def test_no_moov(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 10)
    data = path.read_bytes()
    assert data.rindex(b"moov") > len(data) // 3  # the header is last, as encoders leave it
    path.write_bytes(data[: data.rindex(b"moov") - 4])
    assert refusal(path) == Reason.DECODE_ERROR


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.m3u8", "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n"),
        ("a.mp4", "\ufeff#EXTM3U\n{clip}\n"),
        ("a.ffconcat", "ffconcat version 1.0\nfile '{clip}'\n"),
        ("a.mpd", "<?xml version='1.0'?><MPD><BaseURL>{clip}</BaseURL></MPD>"),
        ("a.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\n"),
        ("a.srt", "1\n00:00:00,000 --> 00:00:01,000\nwords\n"),
    ],
)
def test_playlists_and_texts_are_not_followed(tmp_path, name, text):
    clip = write_clip(tmp_path / "clip.mp4", 2)
    (tmp_path / name).write_text(text.format(clip=clip))
    assert refusal(tmp_path / name) == Reason.UNSUPPORTED_CONTAINER


def test_unknown_codec(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 5)
    data = path.read_bytes()
    assert data.count(b"avc1") >= 1
    path.write_bytes(data.replace(b"avc1", b"zzz9").replace(b"avcC", b"zzzC"))
    assert refusal(path) == Reason.UNSUPPORTED_CODEC


def test_a_damaged_avif_is_media_that_does_not_decode(tmp_path):
    path = tmp_path / "a.avif"
    Image.fromarray(numbered_picture(5)).save(path)
    path.write_bytes(path.read_bytes().replace(b"iloc", b"free"))  # where the picture is
    assert refusal(path) == Reason.DECODE_ERROR


def test_an_animated_webp_is_not_called_damaged(tmp_path):
    pictures = [Image.fromarray(numbered_picture(i)) for i in range(3)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], lossless=True)
    assert refusal(tmp_path / "a.webp") == Reason.UNSUPPORTED_CODEC
    pictures[0].save(tmp_path / "still.webp", lossless=True)
    data = (tmp_path / "still.webp").read_bytes()
    (tmp_path / "still.webp").write_bytes(data[:30] + bytes(len(data) - 30))
    assert refusal(tmp_path / "still.webp") == Reason.DECODE_ERROR


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_bytes=1000),
        Limits(max_pixels=WIDTH * HEIGHT - 1),
        Limits(max_duration_s=1.9),
        Limits(max_frames=49),
        Limits(max_kept_bytes=16 * WIDTH * HEIGHT * 3 - 1),
    ],
)
def test_each_limit_is_named(tmp_path, limits):
    path = write_clip(tmp_path / "a.mp4", 50)
    name = next(key for key, value in vars(limits).items() if value != vars(Limits())[key])
    with pytest.raises(MediaError, match=name) as caught:
        decode(path, limits=limits)
    assert caught.value.reason == Reason.TOO_LARGE
    assert len(decode(path).frames) == 16


def test_frames_are_counted_where_none_are_declared(tmp_path):
    path = write_clip(tmp_path / "a.mkv", 50)
    assert probe(path).frames is None
    with pytest.raises(MediaError, match="max_frames"):
        decode(path, limits=Limits(max_frames=49))


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_picture_bomb_is_refused_before_it_is_unpacked(tmp_path, side):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(path) == Reason.TOO_LARGE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; unpacked it takes 432 MB
