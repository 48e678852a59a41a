"""Files in, rows out: worker processes decode and find faces while this process runs the model on them."""

import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastdetect import __version__
from fastdetect.engines.base import on_host
from fastdetect.engines.machine import usable_cores
from fastdetect.errors import FastdetectError, MediaError, UsageError
from fastdetect.reasons import Reason
from fastdetect.screening.batching import FaceBatcher, Scored
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import InputFile, file_key, path_text
from fastdetect.screening.model import Model
from fastdetect.screening.results import FaceRow, MediaFacts, Row, TrackRow, save_media
from fastdetect.screening.stages import Extracted, Job, StageSettings, file_sha256
from fastdetect.screening.store import writing
from fastdetect.screening.verdict import Verdict, judge
from fastdetect.video.lanes import this_machine
from fastdetect.video.planned import within
from fastdetect.video.worker import JobResult, WorkerLimits, WorkerPool

if TYPE_CHECKING:
    from fastdetect.screening.crop_memory import CropMemory

MEDIA_FACES = 8  # crops kept per person for the report
_HASH_BYTES, _HASH_S = 2**30, 10.0  # a second or two: this process has better things to do than to hash more
_WORKER_BYTES = 2 * 2**30  # on a GPU: its context, a clip's frames, and the detector on 512 MiB of them
_IDLE_S = 0.25  # without news for this long a batch that is not full is run: rows should not wait for a slow file


class Screener:
    """Screens files with one model; a file's scores do not depend on the files beside it.

    One run at a time: threads that screen at once have a screener each, and may share the model.

    Args:
        model: what scores faces.
        config: the options.
        media: folder for crops and patch scores; None keeps nothing of a face.
    Raises:
        UsageError: `media` is a folder where the options keep no pictures.
    """

    def __init__(self, model: Model, config: ScreenConfig, *, media: Path | None) -> None:
        if media is not None and not config.media:
            raise UsageError(f"got a folder for pictures, {media}, and media=False; the model was loaded without them")
        self.model, self.config, self.media = model, config, media
        detect_runtime = model.detector_runtime(config)
        on_gpu = model.engine.device if model.engine.device.startswith("cuda") and detect_runtime == "torch" else None
        self.workers = config.workers or default_workers(on_gpu)
        self.settings = StageSettings(
            sampling=config.sample,
            max_seconds=config.max_seconds,
            largest_only=config.faces == "largest",
            detect_side=config.detection.side,
            detect_score=config.detection.score,
            detect_runtime=detect_runtime,
            detect_device=on_gpu or "cpu",
            max_people=config.detection.max_people,
            max_faces=config.detection.max_faces,
            crop_size=model.preprocess.size,
            crop_margin=model.preprocess.margin,
            decoder=config.decoder,
            decode_device=nvdec_device(config.device),
            decode_timeout_s=config.timeout / 2,  # time is left to do it again with PyAV
        )
        self._memory: CropMemory | None = None
        self._trouble = ""

    def screen(self, files: Sequence[InputFile], stop: threading.Event | None = None) -> Iterator[Row]:
        """Screen files; yields one row each, in order of completion.

        Args:
            files: what to screen.
            stop: when it is set, files in hand are dropped and the iteration ends.
        Raises:
            FastdetectError: workers cannot start, or the engine failed.
            OutputError: a picture cannot be written.
        """
        stop = stop or threading.Event()
        by_path = {os.fspath(file.path): file for file in files}
        batcher: FaceBatcher[Extracted] = FaceBatcher(self.model.engine, self.model.spare)
        shown: FaceBatcher[Scored[Extracted]] | None = None
        if self.model.explainer is not None and self.media is not None:
            shown = FaceBatcher(self.model.explainer)
        for extracted in self._extract(list(by_path), stop):
            if extracted is not None and len(extracted.crops):
                batcher.add(extracted, extracted.crops)
            elif extracted is not None:
                yield self._row(by_path[extracted.path], extracted, None)
            for scored in _score(batcher, shown, flush=extracted is None):
                yield self._row(by_path[scored.owner.path], scored.owner, scored)
                if stop.is_set():
                    return

    def _extract(self, paths: list[str], stop: threading.Event) -> Iterator[Extracted | None]:
        """What the workers found, as it comes; None when nothing came for a while, and at the end."""
        if not paths:
            return
        self._memory = self._memory or self._crop_memory()
        if self._memory is not None:
            self._memory.give_all_back()  # also what a run that was stopped had in hand
        found: queue.Queue[JobResult | FastdetectError | None] = queue.Queue(maxsize=self.workers)
        limits = WorkerLimits(timeout_s=self.config.timeout, cpu_s=2 * self.config.timeout)
        uses_nvdec = self.config.decoder != "pyav" and this_machine(self.settings.decode_device).nvdec
        if uses_nvdec or self.settings.detect_device != "cpu":
            limits = replace(limits, address_space_bytes=None)  # CUDA reserves more than it uses
        pool = WorkerPool(
            "fastdetect.screening.stages:Extractor",
            workers=min(self.workers, len(paths)),
            init_args={
                "settings": self.settings,
                "crop_memory": self._memory.handle if self._memory else None,
            },
            limits=limits,
        )

        def read() -> None:
            try:
                for result in pool.map(self._jobs(paths)):
                    found.put(result)
                found.put(None)
            except FastdetectError as error:
                found.put(error)
            except Exception as error:  # a silent end would leave the other side waiting for ever
                found.put(FastdetectError(f"files cannot be handed to the workers: {error!r}"))

        reader = threading.Thread(target=read, name="fastdetect-results", daemon=True)
        reader.start()
        try:
            while not stop.is_set():
                try:
                    item = found.get(timeout=_IDLE_S)
                except queue.Empty:
                    yield None
                    continue
                if stop.is_set():  # what stopped this run may have hit the workers, too: no row for that
                    return
                if isinstance(item, FastdetectError):
                    raise item
                yield None if item is None else self._extracted(item)
                if item is None:
                    return
        finally:
            pool.close()
            while reader.is_alive():  # it may be waiting for room in the queue
                if not found.empty():
                    found.get_nowait()
                reader.join(0.01)

    def _crop_memory(self) -> "CropMemory | None":
        """Where workers leave crops for the model on the same GPU; None: crops come over the host."""
        if not self._same_gpu():
            return None
        from fastdetect.screening.crop_memory import CropMemory, not_shared

        places = 4 * self.workers + 8  # files in hand, found, and waiting for a batch; more go over the host
        try:
            return CropMemory(self.settings.detect_device, places, self.settings.crop_size)
        except RuntimeError as error:
            self._trouble = not_shared(error)
            return None

    def _same_gpu(self) -> bool:
        """Whether faces are found on the model's own GPU."""
        return self.settings.detect_device != "cpu"

    def _jobs(self, paths: Iterable[str]) -> Iterator[Job]:
        for path in paths:
            yield Job(path, self._memory.take() if self._memory else None)

    def _extracted(self, result: JobResult) -> Extracted:
        job: Job = result.job
        found = result.value if result.error is None else _lost(job.path, result.error)
        if self._memory is not None and job.place is not None:
            if found.place is None:
                self._memory.give_back(job.place)
            else:
                found.crops = self._memory.crops(found.place, sum(map(len, found.tracks)))
        return found

    def _row(self, file: InputFile, found: Extracted, scored: Scored[Extracted] | None) -> Row:
        if scored is not None and scored.engine is None:
            found.error = MediaError(Reason.MODEL_ERROR, str(scored.error))
        tracks = _tracks(found, scored)
        answer = self._judge(found, tracks)
        spared = f"scored on the CPU: {scored.error}" if scored and scored.error and scored.engine else ""
        explained = scored is not None and scored.error is None and scored.patch_scores.size
        if self.media is not None and scored is not None and explained and found.sha256:
            with writing(self.media):
                _save_tracks(self.media, found, tracks, scored.patch_scores)
        if self._memory is not None and found.place is not None:
            self._memory.give_back(found.place)
        timings = found.timings | ({"model": scored.seconds} if scored else {})
        return Row(
            path=path_text(file.path),
            name=path_text(Path(file.name)),
            bytes=found.bytes,
            mtime_ns=found.mtime_ns,
            sha256=found.sha256,
            status="failed" if found.error else "ok",
            verdict=answer.verdict,
            score=answer.score,
            margin=answer.margin,
            reasons=answer.reasons,
            message="; ".join(filter(None, (answer.message, spared))),
            media=_facts(found),
            frames_sampled=found.frames_sampled,
            frames_decoded=found.frames_decoded,
            faces_found=found.faces_found,
            faces_scored=0 if found.error else len(found.crops),
            tracks=tracks,
            decoder=found.decoder,
            decode_method=found.method,
            decode_note=found.note or (self._trouble if len(found.crops) else ""),
            detector=found.detector,
            sampling=self.config.sample,
            max_seconds=self.config.max_seconds,
            fastdetect=__version__,
            timings_s={stage: round(seconds, 6) for stage, seconds in timings.items()},
            finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            **self.model.facts(scored.engine if scored else None),
        )

    def _judge(self, found: Extracted, tracks: list[TrackRow]) -> Verdict:
        if found.error is not None:
            return Verdict("inconclusive", reasons=[found.error.reason], message=str(found.error))
        answer = judge(
            tracks,
            frames=found.frames_sampled,
            is_image=found.info is not None and found.info.is_image,
            calibration=self.model.calibration,
            thresholds=self.model.thresholds,
            config=self.config.verdict,
        )
        answer.reasons += found.reasons
        return answer


def _score(
    batcher: FaceBatcher[Extracted], shown: FaceBatcher[Scored[Extracted]] | None, *, flush: bool
) -> Iterator[Scored[Extracted]]:
    """Files whose faces are scored, and those that the report shows inpainted."""
    for scored in batcher.run(flush=flush):
        if shown is None or scored.error:  # then the crops may be lost, too
            yield scored
        else:
            shown.add(scored, scored.owner.crops[np.concatenate(_shown(scored.owner))])
    if shown is not None:
        for found in shown.run(flush=flush):
            yield _explained(found.owner, found)


def _explained(scored: Scored[Extracted], found: Scored[Scored[Extracted]]) -> Scored[Extracted]:
    """A file's scores with what inpainting gave for the faces that are shown, NaN for the others."""
    if found.engine is None:  # it has its verdict, and no pictures
        return scored
    rows = np.concatenate(_shown(scored.owner))
    patches = np.full((len(scored.margins), *found.patch_scores.shape[1:]), np.nan, np.float32)
    patches[rows] = found.patch_scores
    scored.margins[rows, 2] = found.margins[:, 2]
    return replace(scored, patch_scores=patches, seconds=scored.seconds + found.seconds)


def _shown(found: Extracted) -> list[np.ndarray]:
    """The faces of each track that the report shows, as rows of the crops."""
    counts = [len(track) for track in found.tracks]
    starts = np.cumsum([0, *counts])
    return [
        start + np.unique(np.linspace(0, count - 1, min(count, MEDIA_FACES)).round().astype(int))
        for start, count in zip(starts, counts, strict=False)
    ]


def nvdec_device(device: str) -> int | None:
    """The GPU that decodes: the model's, none where that is the CPU or another maker's GPU."""
    return None if device in ("cpu", "gpu") else int(device.partition(":")[2] or 0)


def default_workers(gpu: str | None = None) -> int:
    """One process per core: the model and the workers then share the cores by need, and no core waits.

    Args:
        gpu: CUDA device on which the workers find faces: as many as its free memory has room for.
    """
    cores = usable_cores()
    if gpu is None:
        return cores
    import torch

    free, _ = torch.cuda.mem_get_info(gpu)
    return max(1, min(cores, free // _WORKER_BYTES))


def _lost(path: str, error: Exception) -> Extracted:
    """A file whose worker died or was stopped before it could tell."""
    lost = Extracted(path, error=error if isinstance(error, MediaError) else MediaError(Reason.CRASH, str(error)))
    with suppress(OSError, MediaError):  # what the worker died of may be the file's disk, which may not answer
        lost.bytes, lost.mtime_ns = within(_HASH_S, lambda: file_key(Path(path)))
        if lost.bytes is not None and lost.bytes <= _HASH_BYTES and os.path.isfile(path):
            lost.sha256 = within(_HASH_S, lambda: file_sha256(path))
    return lost


def _tracks(found: Extracted, scored: Scored[Extracted] | None) -> list[TrackRow]:
    if scored is None or scored.engine is None:
        return []
    margins = iter(scored.margins.tolist())
    tracks = []
    for number, track in enumerate(found.tracks):
        faces = []
        for face in track:
            fused, image, residual = next(margins)
            faces.append(
                FaceRow(
                    frame=face.frame,
                    time_s=face.time_s,
                    box=face.box,
                    detection=face.detection,
                    face_px=face.quality.face_px,
                    sharpness=face.quality.sharpness,
                    brightness=face.quality.brightness,
                    usable=True,
                    margin=fused,
                    image_margin=image,
                    residual_margin=None if np.isnan(residual) else residual,
                    score=None,
                )
            )
        tracks.append(TrackRow(id=number, score=None, margin=None, faces=faces))
    return tracks


def _save_tracks(folder: Path, found: Extracted, tracks: list[TrackRow], patch_scores: np.ndarray) -> None:
    first = 0
    for track, rows in zip(tracks, _shown(found), strict=True):
        numbers = (rows - first).tolist()
        track.media = save_media(
            folder, found.sha256 or "", track.id, numbers, on_host(found.crops[rows]), patch_scores[rows]
        )
        first += len(track.faces)


def _facts(found: Extracted) -> MediaFacts | None:
    if found.info is None:
        return None
    known = asdict(found.info)
    return MediaFacts(**{name: known[name] for name in MediaFacts.model_fields})
