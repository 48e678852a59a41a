"""Mistakes that published benchmarks make, each as a test that fails if it is made here."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from portraits import tinted, write_index, write_video
from sklearn.metrics import roc_auc_score

from fastdetect.data.manifest import Manifest, Sample
from fastdetect.errors import DataError, MediaError
from fastdetect.evaluation import figures
from fastdetect.evaluation.clips import read_clip
from fastdetect.evaluation.index import Entry, from_manifest, read_videos
from fastdetect.evaluation.scoring import VideoScore
from fastdetect.video.sampling import SamplingPolicy

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")


def faceforensics(root: Path) -> tuple[list[Entry], np.ndarray]:
    """FF++-shaped: every method has a video called 000_003, and each video's frames their own noise."""
    rng = np.random.default_rng(0)
    rows, scores = [], []
    for number in range(40):
        name = f"{number:03d}"
        rows.append(Sample(dataset="FF++", video=name, path=f"youtube/{name}.mp4", label=0, identity=name))
        scores.append(rng.normal(0.0, 1.0))
        for method in METHODS:
            fake = f"{name}_{(number + 3) % 40:03d}"
            rows.append(
                Sample(dataset="FF++", video=fake, path=f"{method}/{fake}.mp4", label=1, manipulation="swap",
                       method=method, identity=name)
            )  # fmt: skip
            scores.append(rng.normal(1.5, 1.0))
    return from_manifest(Manifest(tuple(rows), root)), np.array(scores)


def test_videos_are_not_grouped_by_their_folder_s_name(tmp_path: Path) -> None:
    entries, scores = faceforensics(tmp_path)
    labels = np.array([e.label for e in entries])
    # The mistake: one score for each name, so four methods' fakes are averaged and their noise with them.
    names = np.array([e.name.rpartition("/")[2] for e in entries])
    merged = {name: (labels[names == name][0], scores[names == name].mean()) for name in set(names.tolist())}
    wrong = roc_auc_score([label for label, _ in merged.values()], [score for _, score in merged.values()])
    true = roc_auc_score(labels, scores)
    assert wrong > true + 0.05
    assert len({e.key for e in entries}) == len(entries) == 200
    outcomes = [VideoScore(s, 0, np.full(4, s)) for s in scores]
    result = figures.report(entries, outcomes, resamples=50)
    assert result["videos"] == {"real": 40, "fake": 160, "listed": 200}
    assert result["overall"]["auc"]["value"] == pytest.approx(true)
    assert {name: block["fakes"] for name, block in result["methods"].items()} == {f"swap, {m}": 40 for m in METHODS}
    assert len({row["file"] for row in result["rows"]}) == 200


def test_two_rows_of_one_name_are_refused_not_merged(tmp_path: Path) -> None:
    rows = [Sample(dataset="d", video="a", path=f"{n}.mp4", label=0) for n in range(2)]
    with pytest.raises(DataError, match="two samples are called d/real"):
        from_manifest(Manifest(tuple(rows), tmp_path))


def test_frames_are_spread_over_the_clip_not_the_first_n(tmp_path: Path) -> None:
    """A clip that is manipulated in its second half only: the first frames show nothing of it."""
    grey = np.full((512, 512, 3), 120, np.uint8)
    write_video(tmp_path / "half.mp4", grey, 40, late=tinted(grey))
    entry = Entry(tmp_path / "half.mp4", "half", 1, "tint", "p")
    clip = read_clip(entry, SamplingPolicy.parse("uniform:8"))
    red = [frame[..., 0].mean() > frame[..., 1].mean() + 20 for frame in clip.frames]
    assert red == [False] * 4 + [True] * 4
    assert np.ptp(np.diff(clip.times_s)) < 1e-6


def test_frame_lists_are_sampled_evenly_as_well(tmp_path: Path) -> None:
    names = [f"f/{n}.png" for n in range(20)]
    (tmp_path / "f").mkdir()
    for n, name in enumerate(names):
        cv2.imwrite(str(tmp_path / name), np.full((8, 8, 3), 10 * n, np.uint8))
    sample = Sample(dataset="d", video="f", path="f", frames=tuple(names), label=0)
    clip = read_clip(from_manifest(Manifest((sample,), tmp_path))[0], SamplingPolicy.parse("uniform:4"))
    assert [frame[0, 0, 0] // 10 for frame in clip.frames] == [2, 7, 12, 17]


def test_what_was_trained_on_cannot_be_measured(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").touch()
    index = write_index(
        tmp_path / "index.csv",
        [("a.mp4", "real", "", "p", "", "train"), ("b.mp4", "real", "", "p", "", "test"),
         ("c.mp4", "fake", "swap, X", "q", "", "test")],
    )  # fmt: skip
    found = read_videos([str(index)])
    assert found.warnings == ["p is also in the training split: figures on them are too good"]
    twice = tmp_path / "again.csv"
    write_index(twice, [("a.mp4", "real", "", "p", "", "test")])
    with pytest.raises(DataError, match="listed twice"):
        read_videos([str(index), str(twice)])


def test_a_video_that_cannot_be_read_is_no_other_video(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(MediaError):
        read_clip(Entry(tmp_path / "broken.mp4", "broken", 1, "swap", "p"), SamplingPolicy.parse("uniform:4"))
    entries, scores = faceforensics(tmp_path)
    outcomes: list[VideoScore | str] = [VideoScore(s, 0, np.full(4, s)) for s in scores]
    outcomes[1] = "DECODE_ERROR: broken"
    result = figures.report(entries, outcomes, resamples=50)
    kept = [i for i in range(200) if i != 1]
    labels = np.array([e.label for e in entries])
    assert result["overall"]["auc"]["value"] == pytest.approx(roc_auc_score(labels[kept], scores[kept]))
    assert list(result["failed"]) == [entries[1].name]
    assert entries[1].name not in {row["file"] for row in result["rows"]}
