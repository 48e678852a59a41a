"""The robustness grid: what each condition does to frames, how it is asked for, and H.264 of whole clips."""

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from portraits import write_video

from fastdetect.data.h264 import H264
from fastdetect.data.manifest import Manifest, Sample
from fastdetect.errors import MediaError, UsageError
from fastdetect.evaluation.clips import read_clip
from fastdetect.evaluation.index import Entry, from_manifest
from fastdetect.evaluation.robustness import KINDS, Condition, parse_conditions
from fastdetect.reasons import Reason
from fastdetect.video.sampling import SamplingPolicy

POLICY = SamplingPolicy.parse("uniform:4")


@pytest.fixture(scope="module")
def textured() -> np.ndarray:
    """One frame with edges and fine texture, 96 x 128."""
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(40, 216, (6, 8, 3), np.uint8), (128, 96), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("kind", ["jpeg", "blur", "noise"])
def test_stronger_means_further_from_the_frame(textured: np.ndarray, kind: str) -> None:
    apart = [distance(Condition(kind, v).change([textured], 0)[0], textured) for v in KINDS[kind].values]
    assert apart == sorted(apart)
    assert apart[0] > 0
    assert apart[-1] > 1.2 * apart[0]  # JPEG's half-size chroma costs most of it


def test_each_does_what_its_name_says(textured: np.ndarray) -> None:
    frames = [textured, textured[::-1].copy()]
    jpeg = Condition("jpeg", 30).change(frames, 0)
    _, data = cv2.imencode(".jpg", textured[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])
    assert np.array_equal(jpeg[0], cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])  # channels in order
    small = Condition("resize", 0.25).change(frames, 0)
    assert [f.shape for f in small] == [(24, 32, 3)] * 2  # stays small, as a platform's copy
    assert distance(small[0].mean((0, 1)), textured.mean((0, 1))) < 1
    assert Condition("resize", 0.02).change([np.zeros((3, 2, 3), np.uint8)], 0)[0].shape == (1, 1, 3)
    noisy = Condition("noise", 5).change([np.full((64, 64, 3), 128, np.uint8)] * 2, 1)
    assert np.std(noisy[0].astype(float)) == pytest.approx(5, rel=0.05)
    assert not np.array_equal(noisy[0], noisy[1])  # new in every frame
    again = Condition("noise", 5).change([np.full((64, 64, 3), 128, np.uint8)] * 2, 1)
    assert np.array_equal(noisy[1], again[1])
    blurred = Condition("blur", 2).change(frames, 0)[1]
    assert np.abs(np.diff(blurred.astype(float), axis=1)).mean() < 0.4 * np.abs(np.diff(textured.astype(float))).mean()


def test_parsing() -> None:
    assert [str(c) for c in parse_conditions(["h264:23,40", "jpeg:50"])] == ["h264:23", "h264:40", "jpeg:50"]
    everything = parse_conditions(["all"])
    assert {c.kind for c in everything} == set(KINDS)
    jpeg, crf = ([c.value for c in everything if c.kind == kind] for kind in ("jpeg", "h264"))
    assert (min(jpeg), max(jpeg), min(crf), max(crf)) == (30, 100, 23, 40)
    assert parse_conditions(["jpeg", "jpeg:50", "all"]) == parse_conditions(["jpeg", "all"])  # each once
    assert parse_conditions([]) == []
    for text, message in (
        ("fog", "no robustness test 'fog'; there are all, jpeg"),
        ("jpeg:0", "wanted quality, whole numbers 1 to 100"),
        ("h264:23.5", "wanted CRF, whole numbers 0 to 51"),
        ("blur:", "wanted sigma, pixels, numbers 0.1 to 50"),
        ("resize:nan", "share of the side"),
        ("all:3", "no robustness test 'all'"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_conditions([text])


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    y, x = np.mgrid[:512, :512]
    return np.stack([x / 3, y / 3, (x + y) / 5], -1).astype(np.uint8)


def test_the_whole_clip_is_transcoded_before_it_is_sampled(tmp_path: Path, picture: np.ndarray) -> None:
    write_video(tmp_path / "a.mp4", picture, 24)
    entry = Entry(tmp_path / "a.mp4", "a", 0, "real", "p")
    plain = read_clip(entry, POLICY)
    coded = read_clip(entry, POLICY, coded=H264(40))
    assert coded.times_s == plain.times_s
    apart = [distance(a, b) for a, b in zip(coded.frames, plain.frames, strict=True)]
    assert min(apart) > 0
    assert max(apart) < 12
    assert not list(tmp_path.glob("*coded*"))


def test_frames_and_archives_of_a_manifest(tmp_path: Path, picture: np.ndarray) -> None:
    write_video(tmp_path / "a.mp4", picture, 12)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.mp4", "inner/a.mp4")
    names = tuple(f"{n:03d}.png" for n in range(8))
    for n, name in enumerate(names):
        cv2.imwrite(str(tmp_path / name), picture[n : n + 64, :65, ::-1])
    rows = (
        Sample(dataset="s", video="zip", path="a.zip", member="inner/a.mp4", container="zip", label=0),
        Sample(dataset="s", video="frames", path=".", frames=names, label=0),
        Sample(dataset="s", video="file", path="a.mp4", label=1, manipulation="swap"),
        Sample(dataset="s", video="gone", path="b.mp4", label=1, manipulation="swap"),
    )
    inside, frames, plain, gone = from_manifest(Manifest(rows, tmp_path))
    want = read_clip(plain, POLICY)
    for coded in (None, H264(35)):
        found = read_clip(inside, POLICY, coded=coded)
        also = read_clip(plain, POLICY, coded=coded)
        assert all(np.array_equal(a, b) for a, b in zip(found.frames, also.frames, strict=True))
    assert len(want.frames) == 4
    apart = [
        distance(a, b)
        for a, b in zip(read_clip(frames, POLICY).frames, read_clip(frames, POLICY, coded=H264(40)).frames, strict=True)
    ]
    assert len(apart) == 4
    assert min(apart) > 0
    with pytest.raises(MediaError) as caught:
        read_clip(gone, POLICY)
    assert caught.value.reason is Reason.NOT_FOUND
