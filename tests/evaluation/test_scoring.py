"""From faces to a video's raw score: the rules of a verdict, and the crops of screening."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from portraits import write_video

from fastdetect.data.extract import ExtractSettings, FaceExtractor
from fastdetect.data.manifest import Manifest, Sample
from fastdetect.evaluation import scoring
from fastdetect.evaluation.clips import read_clip
from fastdetect.evaluation.index import from_manifest
from fastdetect.evaluation.scoring import Gate, TrackFaces, VideoFaces, aggregate, video_scores
from fastdetect.faces.centerface import CenterFaceDetector
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


def test_faces_that_were_scored_together_go_back_to_their_videos() -> None:
    videos = [faces([True] * 4, [True] * 3), faces(), faces([True] * 5)]
    margins = np.r_[np.full(4, 1.0), np.full(3, 2.0), np.full(5, -3.0)]
    logits = np.stack([np.full(12, 0.25), margins + 0.25], 1).astype(np.float32)
    assert [score.margin for score in video_scores(videos, logits)] == [2.0, None, -3.0]
    assert video_scores([faces()], np.empty((0, 2)))[0].margin is None


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
        detect_runtime="onnxruntime",
        max_people=detection.max_people,
        max_faces=detection.max_faces,
        crop_size=96,
        crop_margin=1.3,
    )
    screened = stages.Extractor(settings)(stages.Job(str(tmp_path / "clip.mp4")))
    mine = scoring.extract_faces(
        tmp_path / "clip.mp4",
        CenterFaceDetector(),
        SamplingPolicy.parse("uniform:4"),
        crops={"model": scoring.contract_crop(96)},
    )
    assert [len(t.frames) for t in mine.tracks] == [len(t) for t in screened.tracks]
    np.testing.assert_array_equal(np.concatenate([t.crops["model"] for t in mine.tracks]), screened.crops)


def test_cut_out_faces_are_those_of_extraction(tmp_path: Path) -> None:
    """Frames that are faces already, as DeepfakeBench keeps them: one person, found as `data extract` finds it."""
    portrait = pytest.importorskip("skimage.data").astronaut()
    names = []
    for number in range(3):
        face = portrait[60 - number : 190, 160 : 290 + number]  # of uneven size
        names.append(f"{number}.png")
        cv2.imwrite(str(tmp_path / names[-1]), face[..., ::-1])
    blank = np.full((80, 80, 3), 120, np.uint8)
    cv2.imwrite(str(tmp_path / "3.png"), blank)
    frames = (*names, "3.png")
    sample = Sample(dataset="d", video="v", path=".", frames=frames, cropped=True, label=0)
    extracted = FaceExtractor(tmp_path, ExtractSettings(sample="all", size=96))(sample)
    clip = read_clip(from_manifest(Manifest((sample,), tmp_path))[0], SamplingPolicy.parse("all"))
    assert clip.cropped
    found = scoring.find_faces(clip, CenterFaceDetector(), crops={"model": scoring.contract_crop(96)})
    assert [person.frames for person in found.tracks] == [[0, 1, 2]]  # nobody in the blank one
    pictures = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for _, data in extracted.faces]
    np.testing.assert_array_equal(found.tracks[0].crops["model"], np.stack(pictures))
