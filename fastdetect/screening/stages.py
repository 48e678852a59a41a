"""What happens to one file inside a worker process: hash, decode, detect, track, measure, crop."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from fastdetect.errors import MediaError
from fastdetect.faces.centerface import CenterFaceDetector
from fastdetect.faces.crop import crop_face
from fastdetect.faces.quality import FaceQuality, face_quality
from fastdetect.faces.tracker import Track, track
from fastdetect.reasons import Reason
from fastdetect.screening.inputs import file_key
from fastdetect.video.dali import TIMEOUT_S
from fastdetect.video.lanes import Decoder, DecoderName
from fastdetect.video.probe import Limits, VideoInfo, check_file
from fastdetect.video.pyav import Frame
from fastdetect.video.sampling import SamplingPolicy


@dataclass(frozen=True)
class StageSettings:
    """What a worker needs to know; all of it can change a score, except `threads` and `decode_timeout_s`."""

    sampling: str
    max_seconds: float | None
    largest_only: bool
    detect_side: int
    detect_score: float
    max_people: int
    max_faces: int
    crop_size: int
    crop_margin: float
    decoder: DecoderName = "auto"
    decode_device: int | None = None  # the GPU whose NVDEC may be used
    decode_timeout_s: float = TIMEOUT_S  # in DALI, before a file is given to PyAV
    threads: int = 1


@dataclass(frozen=True)
class FoundFace:
    """One face of a track before it is scored."""

    frame: int
    time_s: float
    box: tuple[float, float, float, float]
    detection: float
    quality: FaceQuality


@dataclass
class Extracted:
    """What a worker sends back: crops [N,S,S,3] RGB uint8 in the order of the tracks' faces, or an error."""

    path: str
    bytes: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None
    error: MediaError | None = None
    info: VideoInfo | None = None
    reasons: list[Reason] = field(default_factory=list)
    decoder: str | None = None
    method: str | None = None
    note: str = ""
    frames_sampled: int = 0
    frames_decoded: int = 0
    faces_found: int = 0
    tracks: list[list[FoundFace]] = field(default_factory=list)
    crops: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8))
    timings: dict[str, float] = field(default_factory=dict)


class Extractor:
    """Turns a file into face crops; lives in a worker process and is built once there."""

    def __init__(self, settings: StageSettings) -> None:
        cv2.setNumThreads(settings.threads)  # the processes are the parallelism
        self.settings = settings
        self.policy = SamplingPolicy.parse(settings.sampling)
        self.decoder = Decoder(
            settings.decoder,
            device=settings.decode_device,
            threads=settings.threads,
            timeout_s=settings.decode_timeout_s,
        )
        self.detector = CenterFaceDetector(
            threads=settings.threads, detect_side=settings.detect_side, score_threshold=settings.detect_score
        )

    def __call__(self, path: str) -> Extracted:
        """Extract the faces of a file; a file that cannot be read gives an Extracted with `error`."""
        done = Extracted(path)
        try:
            self._extract(done)
        except MediaError as error:
            done.error = error
        return done

    def _extract(self, done: Extracted) -> None:
        settings, path = self.settings, done.path
        with _timed(done, "hash"):
            # Before it is read: a file that grows meanwhile must not count as done.
            done.bytes, done.mtime_ns = file_key(Path(path))
            check_file(path, Limits())
            done.sha256 = file_sha256(path)
        with _timed(done, "decode"):
            clip = self.decoder.decode(path, self.policy, max_seconds=settings.max_seconds)
        done.info, done.reasons = clip.info, clip.reasons
        done.decoder, done.method, done.note = clip.decoder, clip.method, clip.note
        done.frames_sampled, done.frames_decoded = len(clip.frames), clip.frames_decoded
        pictures = [frame.rgb for frame in clip.frames]
        with _timed(done, "detect"):
            faces = self.detector.detect(pictures)
        done.faces_found = sum(map(len, faces))
        with _timed(done, "track"):
            times = [frame.time_s for frame in clip.frames]
            found = track(faces, times, (clip.info.width, clip.info.height), frames=pictures)
            tracks = self._choose(found)
        with _timed(done, "crop"):
            self._cut(done, clip.frames, tracks)

    def _choose(self, tracks: list[Track]) -> list[Track]:
        """The people to score: most face area first, thinned so that a crowd costs no more than max_faces."""
        chosen = tracks[: 1 if self.settings.largest_only else self.settings.max_people]
        total = sum(len(t.faces) for t in chosen)
        if total > self.settings.max_faces:
            share = self.settings.max_faces / total
            for one in chosen:
                keep = max(1, int(len(one.faces) * share))
                at = np.linspace(0, len(one.faces) - 1, keep).round().astype(int)
                one.frames, one.faces = [one.frames[i] for i in at], [one.faces[i] for i in at]
        return chosen

    def _cut(self, done: Extracted, frames: list[Frame], tracks: list[Track]) -> None:
        crops = []
        for one in tracks:
            found = []
            for position, face in zip(one.frames, one.faces, strict=True):
                frame = frames[position]
                quality = face_quality(frame.rgb, face.box)
                found.append(FoundFace(frame.index, frame.time_s, face.box, face.score, quality))
                crops.append(
                    crop_face(frame.rgb, face.box, size=self.settings.crop_size, margin=self.settings.crop_margin)
                )
            done.tracks.append(found)
        if crops:
            done.crops = np.stack(crops)


def file_sha256(path: str) -> str:
    """The hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _timed(done: Extracted, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        done.timings[stage] = time.perf_counter() - start
