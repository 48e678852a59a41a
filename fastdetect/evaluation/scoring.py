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

from fastdetect.faces.centerface import CenterFaceDetector, Face
from fastdetect.faces.crop import MARGIN, crop_face
from fastdetect.faces.cut_out import cut_out_track
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
    # Real videos have 0.02 to 0.4, faces of 40 px scaled up 0.013; 0.004 is a blur of 2 % of the face's height.
    min_sharpness: float = 0.004
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
class Clip:
    """Sampled frames of a video, RGB uint8 [H,W,3] each, with their times in seconds.

    `cropped`: they are cut-out faces, as some data sets keep them.
    """

    frames: list[np.ndarray]
    times_s: list[float]
    is_image: bool = False
    cropped: bool = False
    reasons: list[Reason] = field(default_factory=list)


@dataclass(frozen=True)
class TrackFaces:
    """One person: positions in the sampled frames [n], usable [n] bool, crops [n,S,S,3] by name, faces as found."""

    frames: list[int]
    usable: np.ndarray
    crops: Mapping[str, np.ndarray]
    faces: Sequence[Face] = ()


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


@dataclass(frozen=True)
class Pictures:
    """Faces of the person who decided a score: crops uint8 [K,S,S,3], patch scores float32 [K,gh,gw], margins [K]."""

    crops: np.ndarray
    patches: np.ndarray
    margins: np.ndarray


def contract_crop(size: int, margin: float = MARGIN) -> Cropper:
    """The crop of the preprocess contract, as a function of frame and face."""
    return lambda frame, face: crop_face(frame, face.box, size=size, margin=margin)


def read_file(path: str | Path, policy: SamplingPolicy, *, max_seconds: float | None = None, threads: int = 1) -> Clip:
    """Decode the sampled frames of a file; MediaError where it cannot be."""
    clip = decode(path, policy, max_seconds=max_seconds, threads=threads)
    frames, times = [frame.rgb for frame in clip.frames], [frame.time_s for frame in clip.frames]
    return Clip(frames, times, clip.info.is_image, reasons=list(clip.reasons))


def find_faces(
    clip: Clip, detector: CenterFaceDetector, *, crops: Mapping[str, Cropper], gate: Gate = Gate()
) -> VideoFaces:
    """Detect, track and crop the faces of a clip.

    Args:
        clip: its sampled frames.
        detector: face detector.
        crops: crop functions by name; all must give one size each.
        gate: which faces are usable.
    """
    frames = clip.frames
    if clip.cropped:
        tracks = cut_out_track(frames, detector)
    else:
        height, width = frames[0].shape[:2]
        tracks = track(detector.detect(frames), clip.times_s, (width, height), frames=frames)
    found = [
        TrackFaces(
            frames=list(person.frames),
            usable=np.array([gate.usable(frames[i], f) for i, f in zip(person.frames, person.faces, strict=True)]),
            crops={
                name: np.stack([crop(frames[i], f) for i, f in zip(person.frames, person.faces, strict=True)])
                for name, crop in crops.items()
            },
            faces=person.faces,
        )
        for person in tracks
    ]
    return VideoFaces(len(frames), clip.is_image, found, clip.reasons)


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
    """Decode, detect, track and crop one file; arguments as in `decode` and `find_faces`.

    Raises:
        MediaError: the file cannot be decoded.
    """
    clip = read_file(path, policy, max_seconds=max_seconds, threads=threads)
    return find_faces(clip, detector, crops=crops, gate=gate)


def track_margin(margins: np.ndarray) -> float:
    """The raw score of one person: the mean of the margins [n] without the TRIM extremes [ours]."""
    ordered = np.sort(np.asarray(margins, dtype=np.float64))
    cut = int(TRIM * len(ordered))
    return float(ordered[cut : len(ordered) - cut].mean())


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


def video_scores(videos: Sequence[VideoFaces], logits: np.ndarray) -> list[VideoScore]:
    """Scores of many videos whose faces went through a model together.

    Args:
        videos: their faces.
        logits: [N,2], real and fake, of all faces: video by video, track by track.
    """
    values = logits.astype(np.float64)
    counts = [len(person.frames) for faces in videos for person in faces.tracks]
    margins = iter(np.split(values[:, 1] - values[:, 0], np.cumsum(counts)[:-1]))
    return [aggregate(faces, [next(margins) for _ in faces.tracks]) for faces in videos]


def engine_margins(engine: "Engine", faces: VideoFaces, crop: str = "model") -> list[np.ndarray]:
    """Fused logit margins [n] of each track; one engine call a video."""
    counts = [len(person.frames) for person in faces.tracks]
    if not counts:
        return []
    out = engine.run(np.concatenate([person.crops[crop] for person in faces.tracks]))
    ends = np.cumsum(counts)[:-1]
    margins = (out.logits[:, 1] - out.logits[:, 0]).astype(np.float64)
    return np.split(margins, ends)
