"""Runs models over videos: each is decoded once, its faces found once a condition, and scored by every model."""

import heapq
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fastdetect.data.h264 import H264
from fastdetect.engines import Engine
from fastdetect.errors import MediaError
from fastdetect.evaluation.clips import read_clip
from fastdetect.evaluation.index import Entry
from fastdetect.evaluation.robustness import H264_PRESET, Condition
from fastdetect.evaluation.scoring import (
    Clip,
    Pictures,
    VideoFaces,
    VideoScore,
    aggregate,
    contract_crop,
    engine_margins,
    find_faces,
)
from fastdetect.faces.centerface import CenterFaceDetector
from fastdetect.faces.crop import MARGIN, crop_square
from fastdetect.video.sampling import SamplingPolicy

SHOWN_FACES = 4
Outcome = VideoScore | str  # a text says why the video failed


@dataclass(frozen=True)
class FaceClip:
    """Who decided a real's score `margin`: usable crops uint8 [T,S,S,3], landmarks float32 [T,5,2] in their pixels."""

    entry: Entry
    margin: float
    crops: np.ndarray
    landmarks: np.ndarray


@dataclass
class Measured:
    """What the models said.

    Attributes:
        scores: of each video, by model.
        conditions: the first model's, of each video under each condition.
        pictures: by a video's key, of the videos that it got most wrong.
        clips: of the reals that have a score, where they were asked for.
    """

    scores: dict[str, list[Outcome]]
    conditions: dict[Condition, list[Outcome]] = field(default_factory=dict)
    pictures: dict[str, Pictures] = field(default_factory=dict)
    clips: list[FaceClip] = field(default_factory=list)


class Runner:
    """Scores videos through the stages of screening.

    Args:
        engines: models by name; the first is the one that conditions and pictures are of.
        policy, max_seconds: which frames.
        threads: of the decoder and the face detector.
        worst: reals and fakes each whose pictures are kept.
        explain: loads what inpaints those pictures' faces; None: the first engine does.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        policy: SamplingPolicy,
        *,
        max_seconds: float | None = None,
        threads: int = 1,
        worst: int = 0,
        explain: Callable[[], Engine] | None = None,
    ) -> None:
        self.engines, self.policy, self.max_seconds, self.threads = dict(engines), policy, max_seconds, threads
        self.detector = CenterFaceDetector(threads=threads)
        self.crop_of = {name: f"{e.image_size} {contract_margin(e)}" for name, e in self.engines.items()}
        self.crops = {
            self.crop_of[name]: contract_crop(engine.image_size, contract_margin(engine))
            for name, engine in self.engines.items()
        }
        self.worst, self.explain = worst, explain
        self._wrong: dict[int, list[tuple[float, int, str, np.ndarray, np.ndarray]]] = {}

    def run(
        self,
        entries: Sequence[Entry],
        conditions: Sequence[Condition] = (),
        *,
        keep_clips: bool = False,
        step: Callable[[bool], None] = lambda failed: None,
    ) -> Measured:
        """Score every video; one that cannot be decoded has its reason in place of a score and stops nothing.

        Args:
            entries: the videos.
            conditions: also score them so changed.
            keep_clips: return the reals' faces.
            step: called after each video, with whether it failed.
        """
        done = Measured({name: [] for name in self.engines}, {condition: [] for condition in conditions})
        first, self._wrong = next(iter(self.engines)), {0: [], 1: []}
        for position, entry in enumerate(entries):
            clip = self._read(entry)
            faces = clip if isinstance(clip, str) else find_faces(clip, self.detector, crops=self.crops)
            for name in self.engines:
                score = faces if isinstance(faces, str) else self._score(name, faces, entry, position)
                done.scores[name].append(score)
            score = done.scores[first][-1]
            if keep_clips and not entry.label and isinstance(score, VideoScore) and isinstance(faces, VideoFaces):
                done.clips += self._clip(entry, faces, score)
            for condition in conditions:
                done.conditions[condition].append(self._under(condition, entry, clip, first))
            step(isinstance(clip, str))
        done.pictures = self._pictures()
        return done

    def close(self) -> None:
        """Free the engines."""
        for engine in self.engines.values():
            engine.close()

    def _read(self, entry: Entry, coded: H264 | None = None) -> Clip | str:
        try:
            return read_clip(entry, self.policy, max_seconds=self.max_seconds, threads=self.threads, coded=coded)
        except MediaError as error:
            return f"{error.reason}: {error}"

    def _score(self, name: str, faces: VideoFaces, entry: Entry, position: int) -> VideoScore:
        margins = engine_margins(self.engines[name], faces, self.crop_of[name])
        score = aggregate(faces, margins)
        if self.worst and name == next(iter(self.engines)) and score.margin is not None and score.track is not None:
            person = faces.tracks[score.track]
            at = np.flatnonzero(person.usable)
            at = at[np.linspace(0, len(at) - 1, min(SHOWN_FACES, len(at))).round().astype(int)]
            crops = person.crops[self.crop_of[name]]
            wrongness = -score.margin if entry.label else score.margin
            heap = self._wrong[entry.label]
            heapq.heappush(heap, (wrongness, -position, entry.key, crops[at], margins[score.track][at]))
            if len(heap) > self.worst:
                heapq.heappop(heap)
        return score

    def _pictures(self) -> dict[str, Pictures]:
        """The worst videos' faces, inpainted all together."""
        kept = [video for heap in self._wrong.values() for video in heap]
        if not kept:
            return {}
        own = self.explain() if self.explain else None
        try:
            out = (own or next(iter(self.engines.values()))).run(np.concatenate([crops for *_, crops, _ in kept]))
        finally:
            if own is not None:
                own.close()
        patches = np.split(out.patch_scores, np.cumsum([len(crops) for *_, crops, _ in kept])[:-1])
        return {
            key: Pictures(crops, maps, margins) for (_, _, key, crops, margins), maps in zip(kept, patches, strict=True)
        }

    def _under(self, condition: Condition, entry: Entry, clip: Clip | str, model: str) -> Outcome:
        if isinstance(clip, str):
            return clip
        changed: Clip | str
        if condition.kind == "h264":
            changed = self._read(entry, H264(int(condition.value), H264_PRESET))
        else:
            seed = zlib.crc32(f"{entry.key} {condition}".encode())
            changed = replace(clip, frames=condition.change(clip.frames, seed))
        if isinstance(changed, str):
            return changed
        faces = find_faces(changed, self.detector, crops={self.crop_of[model]: self.crops[self.crop_of[model]]})
        return aggregate(faces, engine_margins(self.engines[model], faces, self.crop_of[model]))

    def _clip(self, entry: Entry, faces: VideoFaces, score: VideoScore) -> list[FaceClip]:
        if score.track is None or score.margin is None:
            return []
        name, engine = next(iter(self.engines.items()))
        person = faces.tracks[score.track]
        usable = np.flatnonzero(person.usable)
        points = []
        for i in usable.tolist():
            x, y, side = crop_square(person.faces[i].box, contract_margin(engine))
            points.append((person.faces[i].landmarks - [x, y]) * (engine.image_size / side))
        return [FaceClip(entry, score.margin, person.crops[self.crop_of[name]][usable], np.asarray(points, np.float32))]


def contract_margin(engine: Engine) -> float:
    """The crop margin of a model's preprocess contract."""
    return engine.info.preprocess.margin if engine.info.preprocess else MARGIN
