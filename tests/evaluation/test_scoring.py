"""From faces to a video's raw score: the rules of a verdict, and the whole command on media made here."""

import csv
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fastdetect.evaluation import protocol, scoring
from fastdetect.evaluation.index import COLUMNS
from fastdetect.evaluation.scoring import Gate, TrackFaces, VideoFaces, aggregate
from fastdetect.faces.centerface import CenterFaceDetector
from fastdetect.models.detector import TwoBranchDetector
from fastdetect.video.sampling import SamplingPolicy


def faces(*usable: list[bool], sampled: int = 16, is_image: bool = False) -> VideoFaces:
    tracks = [TrackFaces(list(range(len(u))), np.array(u, dtype=bool), {}) for u in usable]
    return VideoFaces(sampled, is_image, tracks)


def test_the_most_suspicious_person_with_a_say_decides() -> None:
    video = faces([True] * 16, [True] * 16, [True] * 2)
    margins = [np.full(16, -1.0), np.full(16, 0.5), np.full(2, 9.0)]  # two faces are too few for a say
    score = aggregate(video, margins)
    assert (score.margin, score.track) == (0.5, 1)
    assert score.face_margins.tolist() == [0.5] * 16


def test_one_outlier_and_unusable_faces_do_not_move_a_track() -> None:
    usable = [True] * 15 + [False]
    values = np.r_[np.linspace(-1, 1, 14), 1000.0, 5000.0]
    score = aggregate(faces(usable), [values])
    assert score.margin is not None
    assert abs(score.margin) < 0.2
    assert score.face_margins.size == 15


def test_no_say_no_score() -> None:
    assert aggregate(faces([True] * 16, sampled=2), [np.zeros(16)]).margin is None
    assert aggregate(faces(), []).margin is None
    assert aggregate(faces([False] * 16), [np.zeros(16)]).margin is None
    assert aggregate(faces([True] * 5, sampled=100), [np.zeros(5)]).margin is None  # under a tenth of the frames
    assert aggregate(faces([True], sampled=1, is_image=True), [np.array([2.0])]).margin == 2.0


def test_the_rules_are_those_of_the_verdict() -> None:
    verdict, results = (pytest.importorskip(f"fastdetect.screening.{name}") for name in ("verdict", "results"))
    config, gate = verdict.VerdictConfig(), Gate()
    for field in ("min_face_px", "min_sharpness", "min_brightness", "min_faces", "min_share", "min_frames"):
        assert getattr(gate, field) == getattr(config, field)
    rng = np.random.default_rng(0)
    for _ in range(200):
        frames = int(rng.integers(1, 30))
        counts = rng.integers(0, frames + 1, size=rng.integers(0, 4))
        margins = [rng.normal(size=n) for n in counts]
        usable = [rng.random(n) < 0.7 for n in counts]
        tracks = [
            results.TrackRow(
                id=i,
                score=None,
                margin=None,
                faces=[
                    results.FaceRow(
                        frame=j, time_s=0, box=(0, 0, 9, 9), detection=1, face_px=90 if u else 5, sharpness=9,
                        brightness=0.5,
                        usable=bool(u), margin=m, image_margin=m, residual_margin=m, score=None,
                    )
                    for j, (m, u) in enumerate(zip(values, mask, strict=True))
                ],
            )
            for i, (values, mask) in enumerate(zip(margins, usable, strict=True))
        ]  # fmt: skip
        judged = verdict.judge(tracks, frames=frames, is_image=False, calibration=None, thresholds=[], config=config)
        mine = aggregate(
            VideoFaces(frames, False, [TrackFaces(list(range(len(u))), u, {}) for u in usable]),
            margins,
        )
        assert mine.margin == pytest.approx(judged.margin)


def test_faces_are_those_of_screening(tmp_path: Path) -> None:
    """Evaluation and screening cut the same crops out of a file, in the same tracks."""
    data = pytest.importorskip("skimage.data")
    config, stages = (pytest.importorskip(f"fastdetect.screening.{name}") for name in ("config", "stages"))
    write_video(tmp_path / "clip.mp4", data.astronaut(), 12)
    detection = config.ScreenConfig().detection
    settings = stages.StageSettings(
        sampling="uniform:4",
        max_seconds=None,
        largest_only=False,
        detect_side=detection.side,
        detect_score=detection.score,
        max_people=detection.max_people,
        max_faces=detection.max_faces,
        crop_size=96,
        crop_margin=1.3,
    )
    screened = stages.Extractor(settings)(str(tmp_path / "clip.mp4"))
    mine = scoring.extract_faces(
        tmp_path / "clip.mp4",
        CenterFaceDetector(),
        SamplingPolicy.parse("uniform:4"),
        crops={"model": scoring.contract_crop(96)},
    )
    assert [len(t.frames) for t in mine.tracks] == [len(t) for t in screened.tracks]
    np.testing.assert_array_equal(np.concatenate([t.crops["model"] for t in mine.tracks]), screened.crops)


def write_video(path: Path, picture: np.ndarray, frames: int) -> None:
    """The picture, drifting, as H.264."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for i in range(frames):
            view = np.ascontiguousarray(picture[i : i + 256, 128 - i : 384 - i])
            for packet in stream.encode(av.VideoFrame.from_ndarray(view, "rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def test_evaluate_runs_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fastdetect evaluate` on two reals, two tinted "fakes", a faceless clip and a broken file."""
    data = pytest.importorskip("skimage.data")
    portrait = data.astronaut()
    tinted = (portrait * np.array([1.0, 0.6, 0.6])).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, portrait.shape, dtype=np.uint8)
    for name, picture in (("r0", portrait), ("r1", portrait[:, ::-1]), ("f0", tinted), ("f1", tinted), ("x", noise)):
        write_video(tmp_path / f"{name}.mp4", picture, 12)
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    rows = [
        ("r0.mp4", "real", "", "a", "", "test"),
        ("r1.mp4", "real", "", "b", "", "test"),
        ("f0.mp4", "fake", "tint, red", "c", "r0.mp4", "test"),
        ("f1.mp4", "fake", "tint, red", "d", "", "test"),
        ("x.mp4", "real", "", "e", "", "test"),
        ("broken.mp4", "fake", "tint, red", "f", "", "test"),
    ]
    with (tmp_path / "index.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    TwoBranchDetector("small").save_pretrained(tmp_path / "model", model_id="untrained")
    out = tmp_path / "out"
    code = protocol.main(
        None,
        [
            f"index=[{tmp_path / 'index.csv'}]", f"model={tmp_path / 'model'}", f"output={out}",
            "split=test", "sampling=uniform:4", "resamples=20", "device=cpu", "precision=fp32",
        ],
    )  # fmt: skip
    assert code == 3  # a file could not be decoded
    result = json.loads((out / "evaluation.json").read_text())
    assert result["abstained"] == ["x.mp4"]
    assert list(result["failed"]) == ["broken.mp4"]
    assert result["videos"] == {"real": 2, "fake": 2, "listed": 6}
    assert result["paired"]["n"] == 1
    assert (result["model"], result["sampling"]) == ("untrained", "uniform:4")
    margins = {row["file"]: row["margin"] for row in result["rows"]}
    assert margins["f0.mp4"] == margins["f1.mp4"]  # the same file, the same score
    assert margins["f0.mp4"] != margins["r0.mp4"]
    assert "tint, red" in (out / "evaluation.md").read_text()
    assert "sampling: uniform:4" in (out / "config.yaml").read_text()
    assert "mean of types" in capsys.readouterr().out
    assert result["aggregation"] == scoring.AGGREGATION
