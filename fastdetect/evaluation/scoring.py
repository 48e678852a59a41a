"""Raw video scores for evaluation and calibration: the stages of screening in one process, without verdicts.

A face's margin is its logit of fake minus its logit of real. A track (one person) scores the trimmed mean
of its usable faces, a video the highest of its tracks [ours]; these are the rules of
`fastdetect.screening.verdict`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import trim_mean

from fastdetect.faces.centerface import CenterFaceDetector, Face
from fastdetect.faces.crop import MARGIN, crop_face
from fastdetect.faces.quality import face_quality
from fastdetect.faces.tracker import track
from fastdetect.reasons import Reason
from fastdetect.video.pyav import decode
from fastdetect.video.sampling import SamplingPolicy

if TYPE_CHECKING:
    from fastdetect.engines.base import Engine

TRIM = 0.1
AGGREGATION = f"trimmed-mean:{TRIM:g} over a track's usable faces, max over tracks"

Cropper = Callable[[np.ndarray, Face], np.ndarray]


@dataclass(frozen=True)
class Gate:
    """What a face, a track and a video need to have a say; the defaults are those of a verdict."""

    min_face_px: float = 40.0
    min_sharpness: float = 0.004  # real videos have 0.02 to 0.4; this is a blur of 2 % of the face's height
    min_brightness: float = 0.08
    min_faces: int = 3
    min_share: float = 0.1
    min_frames: int = 3

    def usable(self, frame: np.ndarray, face: Face) -> bool:
        """Whether a face is large, sharp and bright enough to count."""
        quality = face_quality(frame, face.box)
        return (
            quality.face_px >= self.min_face_px
            and quality.sharpness >= self.min_sharpness
            and quality.brightness >= self.min_brightness
        )

    def faces_needed(self, frames: int, is_image: bool) -> int:
        """Usable faces that a track needs in a clip of `frames` sampled frames."""
        return 1 if is_image else max(self.min_faces, int(np.ceil(self.min_share * frames)))


@dataclass(frozen=True)
class TrackFaces:
    """One person: positions in the sampled frames [n], usable [n] bool, and crops [n,S,S,3] by name."""

    frames: list[int]
    usable: np.ndarray
    crops: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class VideoFaces:
    """The faces of one video, ready to be scored by any model."""

    frames_sampled: int
    is_image: bool
    tracks: list[TrackFaces]
    reasons: list[Reason] = field(default_factory=list)


@dataclass(frozen=True)
class VideoScore:
    """A video's raw score, None where no person has enough usable faces, and the faces that decided it.

    Attributes:
        margin: the deciding track's trimmed mean.
        track: its position among the video's tracks.
        face_margins: [n] its usable faces' margins, in time order: the frame scores.
    """

    margin: float | None
    track: int | None
    face_margins: np.ndarray


def contract_crop(size: int, margin: float = MARGIN) -> Cropper:
    """The crop of the preprocess contract, as a function of frame and face."""
    return lambda frame, face: crop_face(frame, face.box, size=size, margin=margin)


def extract_faces(
    path: str | Path,
    detector: CenterFaceDetector,
    policy: SamplingPolicy,
    *,
    crops: Mapping[str, Cropper],
    max_seconds: float | None = None,
    threads: int = 1,
    gate: Gate = Gate(),
) -> VideoFaces:
    """Probe, decode, detect, track and crop one file.

    Args:
        path: a local video or image.
        detector: face detector.
        policy: which frames.
        crops: crop functions by name; all must give one size each.
        max_seconds: use only the clip's beginning.
        threads: decoder threads.
        gate: which faces are usable.
    Raises:
        MediaError: the file cannot be decoded.
    """
    clip = decode(path, policy, max_seconds=max_seconds, threads=threads)
    frames = [frame.rgb for frame in clip.frames]
    times = [frame.time_s for frame in clip.frames]
    tracks = track(detector.detect(frames), times, (clip.info.width, clip.info.height), frames=frames)
    found = [
        TrackFaces(
            frames=list(person.frames),
            usable=np.array([gate.usable(frames[i], f) for i, f in zip(person.frames, person.faces, strict=True)]),
            crops={
                name: np.stack([crop(frames[i], f) for i, f in zip(person.frames, person.faces, strict=True)])
                for name, crop in crops.items()
            },
        )
        for person in tracks
    ]
    return VideoFaces(len(frames), clip.info.is_image, found, list(clip.reasons))


def track_margin(margins: np.ndarray) -> float:
    """The raw score of one person: the mean of the margins [n] without the TRIM extremes [ours]."""
    return float(trim_mean(np.sort(np.asarray(margins, dtype=np.float64)), TRIM))


def aggregate(
    faces: VideoFaces,
    margins: Sequence[np.ndarray],
    *,
    gate: Gate = Gate(),
    track_score: Callable[[np.ndarray], float] = track_margin,
) -> VideoScore:
    """Turn face margins into the video's score: the most suspicious person who has a say [ours].

    Args:
        faces: the video's faces.
        margins: per track, [n] one per face.
        gate: how many usable faces a person and a video need.
        track_score: usable faces' margins -> the track's score.
    """
    nobody = VideoScore(None, None, np.empty(0))
    if not faces.is_image and faces.frames_sampled < gate.min_frames:
        return nobody
    needed = gate.faces_needed(faces.frames_sampled, faces.is_image)
    able = [
        (track_score(values[person.usable]), position)
        for position, (person, values) in enumerate(zip(faces.tracks, margins, strict=True))
        if int(person.usable.sum()) >= needed
    ]
    if not able:
        return nobody
    margin, position = max(able)
    return VideoScore(margin, position, margins[position][faces.tracks[position].usable])


def engine_margins(engine: "Engine", faces: VideoFaces, crop: str = "model") -> list[np.ndarray]:
    """Fused logit margins per track [n]; one engine call a video."""
    counts = [len(person.frames) for person in faces.tracks]
    if not counts:
        return []
    logits = engine.run(np.concatenate([person.crops[crop] for person in faces.tracks])).logits
    return np.split((logits[:, 1] - logits[:, 0]).astype(np.float64), np.cumsum(counts)[:-1])


def score_video(
    path: str | Path,
    engine: "Engine",
    detector: CenterFaceDetector,
    policy: SamplingPolicy,
    *,
    margin: float = MARGIN,
    max_seconds: float | None = None,
    gate: Gate = Gate(),
) -> VideoScore:
    """Score one file from path to raw video score.

    Args:
        path: a local video or image.
        engine: the model's runtime; its image_size is the crop's.
        detector: face detector.
        policy: which frames.
        margin: crop margin of the model's preprocess contract.
        max_seconds: use only the clip's beginning.
        gate: which faces and persons have a say.
    Raises:
        MediaError: the file cannot be decoded.
    """
    crops = {"model": contract_crop(engine.image_size, margin)}
    faces = extract_faces(path, detector, policy, crops=crops, max_seconds=max_seconds, gate=gate)
    return aggregate(faces, engine_margins(engine, faces), gate=gate)
