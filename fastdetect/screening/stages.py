"""What happens to one file inside a worker process: hash, decode, detect, track, measure, crop."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from fastdetect.errors import MediaError
from fastdetect.faces.centerface import CenterFaceDetector
from fastdetect.faces.crop import crop_face
from fastdetect.faces.quality import FaceQuality, face_quality
from fastdetect.faces.tracker import Track, track
from fastdetect.reasons import Reason
from fastdetect.screening.inputs import file_key
from fastdetect.video.lanes import Decoder, DecoderName
from fastdetect.video.planned import TIMEOUT_S
from fastdetect.video.probe import Limits, VideoInfo, check_file
from fastdetect.video.pyav import Frame
from fastdetect.video.sampling import SamplingPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Job:
    """A file for a worker, and the place in the crop memory that its crops may take."""

    path: str
    place: int | None = None


@dataclass(frozen=True)
class StageSettings:
    """What a worker needs to know; all of it can change a score, except `threads` and `decode_timeout_s`."""

    sampling: str
    max_seconds: float | None
    largest_only: bool
    detect_side: int
    detect_score: float
    detect_runtime: Literal["onnxruntime", "openvino", "torch"]
    max_people: int
    max_faces: int
    crop_size: int
    crop_margin: float
    decoder: DecoderName = "auto"
    decode_device: int | None = None  # the GPU whose NVDEC may be used
    detect_device: str = "cpu"  # of the runtime torch
    decode_timeout_s: float = TIMEOUT_S  # outside PyAV, before a file is given to it
    threads: int = 1


@dataclass(frozen=True)
class FoundFace:
    """One face of a track before it is scored."""

    frame: int
    time_s: float
    box: tuple[float, float, float, float]
    detection: float
    quality: FaceQuality


def _no_crops() -> np.ndarray:
    return np.empty((0, 0, 0, 3), np.uint8)


@dataclass
class Extracted:
    """What a worker sends back: crops [N,S,S,3] RGB uint8 in the order of the tracks' faces, or an error.

    Crops of a worker that left them in the crop memory (`place`) are put in by the main process, on the device.
    """

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
    detector: str | None = None
    frames_sampled: int = 0
    frames_decoded: int = 0
    faces_found: int = 0
    tracks: list[list[FoundFace]] = field(default_factory=list)
    crops: "np.ndarray | Tensor" = field(default_factory=_no_crops)
    place: int | None = None
    timings: dict[str, float] = field(default_factory=dict)


class Extractor:
    """Turns a file into face crops; lives in a worker process and is built once there.

    Args:
        settings: the options.
        crop_memory: the handle of a CropMemory, where crops that were cut on its device stay; None: they are sent.
    """

    def __init__(self, settings: StageSettings, crop_memory: bytes | None = None) -> None:
        cv2.setNumThreads(settings.threads)  # the processes are the parallelism
        self.settings = settings
        self.policy = SamplingPolicy.parse(settings.sampling)
        self.on_device = settings.detect_runtime == "torch"
        self.trouble = ""
        try:
            self.detector = self._detector(on_device=self.on_device)
        except RuntimeError as error:  # no room on the GPU for one more process
            self.trouble, self.on_device = _trouble(settings, error), False
            self.detector = self._detector(on_device=False)
        self.decoder = Decoder(
            settings.decoder,
            device=settings.decode_device,
            threads=settings.threads,
            timeout_s=settings.decode_timeout_s,
            keep=self.on_device,
        )
        self._spare: tuple[Decoder, CenterFaceDetector] | None = None
        self._writer = None
        if crop_memory is not None and self.on_device:
            from fastdetect.screening.crop_memory import CropWriter, not_shared

            try:
                self._writer = CropWriter(crop_memory)
            except RuntimeError as error:
                self.trouble = not_shared(error)

    def _detector(self, *, on_device: bool) -> CenterFaceDetector:
        s = self.settings
        options: dict[str, Any] = {
            "threads": s.threads,
            "detect_side": s.detect_side,
            "score_threshold": s.detect_score,
        }
        if on_device:
            from fastdetect.faces.device import DeviceFaceDetector  # takes torch with it

            return DeviceFaceDetector(s.detect_device, **options)
        return CenterFaceDetector(**options, runtime="openvino" if s.detect_runtime == "openvino" else "onnxruntime")

    def __call__(self, job: Job) -> Extracted:
        """Extract the faces of a file; a file that cannot be read gives an Extracted with `error`."""
        done = Extracted(job.path)
        try:
            self._extract(done, job.place)
        except MediaError as error:
            done.error = error
        return done

    def _extract(self, done: Extracted, place: int | None) -> None:
        path = done.path
        with _timed(done, "hash"):
            # Before it is read: a file that grows meanwhile must not count as done.
            done.bytes, done.mtime_ns = file_key(Path(path))
            check_file(path, Limits())
            try:
                done.sha256 = file_sha256(path)
            except OSError as error:  # a bad sector, or it has just gone
                reason = Reason.DECODE_ERROR if os.path.lexists(path) else Reason.NOT_FOUND
                raise MediaError(reason, f"{path!r} cannot be read: {error.strerror or error}") from error
        if not self.on_device:
            self._find(done, self.decoder, self.detector)
            done.note = self.trouble or done.note
            return
        try:
            self._find(done, self.decoder, self.detector, place)
            done.note = done.note or self.trouble
        except RuntimeError as error:  # torch's: the GPU's memory is full, or the GPU failed; it costs this file only
            done.tracks, done.crops = [], _no_crops()
            if self._spare is None:
                self._spare = Decoder("pyav", threads=self.settings.threads), self._detector(on_device=False)
            self._find(done, *self._spare)
            done.note = _trouble(self.settings, error)

    def _find(self, done: Extracted, decoder: Decoder, detector: CenterFaceDetector, place: int | None = None) -> None:
        with _timed(done, "decode"):
            clip = decoder.decode(done.path, self.policy, max_seconds=self.settings.max_seconds)
        done.info, done.reasons = clip.info, clip.reasons
        done.decoder, done.method, done.note = clip.decoder, clip.method, clip.note
        done.frames_sampled, done.frames_decoded = len(clip.frames), clip.frames_decoded
        pictures = [frame.rgb for frame in clip.frames]
        with _timed(done, "detect"):
            faces = detector.detect(pictures)
        done.detector, done.faces_found = detector.name, sum(map(len, faces))
        with _timed(done, "track"):
            times = [frame.time_s for frame in clip.frames]
            found = track(faces, times, (clip.info.width, clip.info.height), frames=pictures)
            tracks = self._choose(found)
        with _timed(done, "crop"):
            self._cut(done, clip.frames, pictures, tracks)
            if not isinstance(done.crops, np.ndarray):
                self._hand_over(done, done.crops, place)

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

    def _cut(self, done: Extracted, frames: list[Frame], pictures: list[Any], tracks: list[Track]) -> None:
        size, margin = self.settings.crop_size, self.settings.crop_margin
        chosen = [(at, face) for one in tracks for at, face in zip(one.frames, one.faces, strict=True)]
        if not chosen:
            return
        if isinstance(pictures[0], np.ndarray):
            measures = [face_quality(pictures[at], face.box) for at, face in chosen]
            done.crops = np.stack([crop_face(pictures[at], face.box, size=size, margin=margin) for at, face in chosen])
        else:
            from fastdetect.faces.device_crop import crop_faces, face_qualities

            there, boxes = [pictures[at] for at, _ in chosen], [face.box for _, face in chosen]
            done.crops = crop_faces(there, boxes, size=size, margin=margin)
            measures = face_qualities(there, boxes)
        quality = iter(measures)
        done.tracks = [
            [
                FoundFace(frames[at].index, frames[at].time_s, face.box, face.score, next(quality))
                for at, face in zip(one.frames, one.faces, strict=True)
            ]
            for one in tracks
        ]

    def _hand_over(self, done: Extracted, crops: "Tensor", place: int | None) -> None:
        """Leave crops on the device for the main process where there is a place, else bring them to the host."""
        if self._writer is not None and place is not None and self._writer.put(place, crops):
            done.place, done.crops = place, _no_crops()
        else:
            done.crops = crops.cpu().numpy()


def _trouble(settings: StageSettings, error: RuntimeError) -> str:
    return f"{settings.detect_device} failed, the CPU did it: {str(error).partition(chr(10))[0]}"


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
