"""`fastdetect data extract`: the faces of a manifest's videos, cut as screening cuts them, in shards or folders."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from fastdetect.data.footage import Footage, read_footage
from fastdetect.data.jobs import Counter, run_jobs
from fastdetect.data.manifest import LABELS, REAL, Manifest, Sample, read_manifest
from fastdetect.data.shards import FolderSink, TarSink
from fastdetect.errors import DataError, FastdetectError, MediaError, UsageError
from fastdetect.faces.centerface import DETECT_SIDE, CenterFaceDetector
from fastdetect.faces.crop import MARGIN, crop_face, crop_square
from fastdetect.faces.cut_out import cut_out_track
from fastdetect.faces.quality import face_quality
from fastdetect.faces.tracker import Track, track
from fastdetect.reasons import Reason
from fastdetect.video.sampling import SamplingPolicy


@dataclass(frozen=True)
class ExtractSettings:
    """What decides which pictures come out; a run that is resumed must have the same.

    Args:
        sample: frames of a video, as `fastdetect screen --sample`.
        max_seconds: look at the first seconds only.
        faces: all people, or the one with the most face area.
        size, margin: crops' side in pixels, and in longer box sides; 1.3 is what models are shown, more leaves room
            to shift and scale them.
        image: png keeps every bit; jpg is JPEG at quality 95.
        detect_side, detect_score: of the face detector.
        max_people: tracks kept per video, those with the most face area.
        layout: tar shards or folders.
        shard_mb: megabytes after which a shard ends.
    """

    sample: str = "uniform:16"
    max_seconds: float | None = None
    faces: Literal["all", "largest"] = "largest"
    size: int = 256
    margin: float = MARGIN
    image: Literal["png", "jpg"] = "png"
    detect_side: int = DETECT_SIDE
    detect_score: float = 0.5
    max_people: int = 16
    layout: Literal["shards", "folders"] = "shards"
    shard_mb: int = 512

    def __post_init__(self) -> None:
        SamplingPolicy.parse(self.sample)
        choices = {"faces": ("all", "largest"), "image": ("png", "jpg"), "layout": ("shards", "folders")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}; wanted {' or '.join(known)}")
        if not (16 <= self.size <= 4096 and 0.5 <= self.margin <= 4 and self.shard_mb >= 1):
            raise UsageError(
                f"size {self.size}, margin {self.margin}, shard_mb {self.shard_mb}; "
                "wanted 16 to 4096, 0.5 to 4, and 1 or more"
            )


@dataclass(frozen=True)
class FaceRecord:
    """One face: where it was, and its encoded picture.

    Args:
        track: 0 for the person with the most face area.
        frame, time_s: number of the frame and its time.
        box: (x0, y0, x1, y1) in pixels of the frame; `frame_size` is (width, height) of that.
        square: (x, y, side) of the frame that the picture shows; it may overrun the frame.
        landmarks: five points, pixels of the picture.
    """

    track: int
    frame: int
    time_s: float
    box: tuple[float, float, float, float]
    frame_size: tuple[int, int]
    square: tuple[int, int, int]
    landmarks: list[list[float]]
    detection: float
    face_px: float
    sharpness: float
    brightness: float


@dataclass(frozen=True)
class Extracted:
    """What a worker sends back of one sample."""

    faces: list[tuple[FaceRecord, bytes]]
    frames: int
    reasons: list[Reason]


class FaceExtractor:
    """Cuts the faces of a sample with screening's sampling, detector, tracker and crop; lives in a worker process."""

    def __init__(self, root: Path, settings: ExtractSettings) -> None:
        cv2.setNumThreads(1)  # the processes are the parallelism
        self.root, self.settings = root, settings
        self.policy = SamplingPolicy.parse(settings.sample)
        self.detector = CenterFaceDetector(
            threads=1, detect_side=settings.detect_side, score_threshold=settings.detect_score
        )

    def __call__(self, sample: Sample) -> Extracted:
        """The faces, track by track in order of time.

        Raises:
            MediaError: the sample cannot be read.
        """
        footage = read_footage(sample, self.root, self.policy, max_seconds=self.settings.max_seconds)
        pictures = [frame.rgb for frame in footage.frames]
        if sample.cropped:
            chosen = cut_out_track(pictures, self.detector)
        else:
            times = [frame.time_s for frame in footage.frames]
            found = track(self.detector.detect(pictures), times, footage.size, frames=pictures)
            chosen = found[: 1 if self.settings.faces == "largest" else self.settings.max_people]
        cut = [self._cut(footage, one, number) for one in chosen for number in range(len(one.faces))]
        return Extracted(cut, len(pictures), footage.reasons)

    def _cut(self, footage: Footage, one: Track, number: int) -> tuple[FaceRecord, bytes]:
        settings, face = self.settings, one.faces[number]
        frame = footage.frames[one.frames[number]]
        picture = crop_face(frame.rgb, face.box, size=settings.size, margin=settings.margin)
        x, y, side = crop_square(face.box, settings.margin)
        quality = face_quality(frame.rgb, face.box)
        landmarks = (face.landmarks - [x, y]) * (settings.size / side)
        record = FaceRecord(
            track=one.id,
            frame=frame.index,
            time_s=round(frame.time_s, 6),
            box=face.box,
            frame_size=(frame.rgb.shape[1], frame.rgb.shape[0]),
            square=(x, y, side),
            landmarks=landmarks.round(3).tolist(),
            detection=face.score,
            face_px=quality.face_px,
            sharpness=quality.sharpness,
            brightness=quality.brightness,
        )
        options = [cv2.IMWRITE_JPEG_QUALITY, 95] if settings.image == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
        done, data = cv2.imencode(f".{settings.image}", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
        if not done:
            raise MediaError(Reason.CRASH, f"a face of {settings.size} px cannot be encoded as {settings.image}")
        return record, data.tobytes()


def folder_of(sample: Sample) -> str:
    """Where a sample's faces go: its key, fit for every file system; a changed name gets a hash, so none collide."""
    parts = [re.sub(r"[^\w+-]+", "_", part).strip("_") or "_" for part in sample.key.split("/")]
    name = "/".join(parts)
    if name != sample.key:
        name += f"-{hashlib.sha256(sample.key.encode()).hexdigest()[:8]}"
    return name


_TOLD = (
    "dataset", "label", "manipulation", "method", "split", "compression", "video", "identity", "source_identity",
    "target_identity", "pair",
)  # fmt: skip


class FaceStore:
    """The output folder: pictures, and `faces.jsonl` with a line per sample that was done.

    A line is written when its pictures are on disk; what a kill tore is cut off when the run goes on.

    Args:
        folder: created where missing.
        settings: a resumed run must have the same.
        resume: go on with what is there.
    Raises:
        UsageError: there is a run already and `resume` is off, or it had other settings.
    """

    def __init__(self, folder: Path, settings: ExtractSettings, *, resume: bool) -> None:
        self.folder, self.settings = folder, settings
        self.path = folder / "faces.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}; give another --output") from error
        told = json.dumps(asdict(settings), indent=2) + "\n"
        known = folder / "settings.json"
        if self.path.exists():
            if not resume:
                raise UsageError(f"{self.path} is there already; --resume goes on with it, or give another --output")
            self._check_settings(known)
        known.write_text(told, "utf-8")
        self._file = self.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise UsageError(f"another run is writing to {folder}; give another --output") from error
        self._lines = self._read()
        ends: dict[str, int] = {}
        for line in self._lines.values():
            if line.get("shard"):
                ends[line["shard"]] = max(line["end"], ends.get(line["shard"], 0))
        self.sink = (
            TarSink(folder, settings.shard_mb * 10**6, ends) if settings.layout == "shards" else FolderSink(folder)
        )

    def _check_settings(self, known: Path) -> None:
        try:
            before: dict[str, Any] = json.loads(known.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"--resume: {known} cannot be read ({error}); give another --output") from error
        now = asdict(self.settings)
        differ = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in now if before.get(key) != now.get(key)]
        if differ:
            raise UsageError(f"--resume: the faces in {self.folder} were cut differently: {'; '.join(differ)}")

    def _read(self) -> dict[str, dict[str, Any]]:
        lines: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return lines
        with self.path.open("r+b") as file:
            whole = 0
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                try:
                    line = json.loads(raw)
                    lines[line["key"]] = line
                except (ValueError, KeyError) as error:
                    raise DataError(f"{self.path} has a line that this program did not write: {error}") from error
                whole += len(raw)
            file.truncate(whole)
        return lines

    def has(self, sample: Sample) -> bool:
        """Whether the sample was done; one that failed is tried again."""
        return self._lines.get(sample.key, {}).get("status") == "ok"

    def add(self, sample: Sample, found: Extracted | None, error: FastdetectError | None) -> None:
        """Write a sample's faces, or why it has none; on disk when this returns."""
        line: dict[str, Any] = {"key": sample.key, "path": sample.path, "status": "ok" if found else "failed"}
        if found is None:
            reason = error.reason if isinstance(error, MediaError) else Reason.CRASH
            line |= {"reason": reason, "message": str(error)}
        else:
            about = {field: getattr(sample, field) for field in _TOLD}
            faces, members, base = [], [], folder_of(sample)
            for record, data in found.faces:
                name = f"{base}/t{record.track:02d}_f{record.frame:06d}"
                facts = {"name": name, **about, **asdict(record)}
                members.append((f"{name}.{self.settings.image}", data))
                members.append((f"{name}.json", json.dumps(facts).encode()))
                faces.append({"name": name, **asdict(record)})
            shard, end = self.sink.write(members)
            line |= {"frames": found.frames, "reasons": found.reasons, "shard": shard, "end": end}
            line |= {"about": about, "faces": faces}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._lines[sample.key] = line

    def finish(self) -> tuple[int, int, int]:
        """Write faces.parquet and failed.txt; returns how many faces, samples without a face, and failed samples."""
        failed = [line for line in self._lines.values() if line["status"] != "ok"]
        text = "".join(f"{line['path']}\t{line['reason']}\t{line['message']}\n" for line in failed)
        (self.folder / "failed.txt").write_text(text, "utf-8", "backslashreplace")
        table = pa.Table.from_pylist(list(self._rows()), _FACE_SCHEMA)
        partial = self.folder / "faces.parquet.partial"
        pq.write_table(table, partial, compression="zstd")
        os.replace(partial, self.folder / "faces.parquet")
        empty = sum(1 for line in self._lines.values() if line["status"] == "ok" and not line["faces"])
        return len(table), empty, len(failed)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for line in self._lines.values():
            for face in line.get("faces", ()):
                yield {
                    "key": line["key"],
                    "shard": line["shard"],
                    "image": self.settings.image,
                    **line["about"],
                    **face,
                }

    def close(self) -> None:
        """End the shard in hand."""
        self.sink.close()
        self._file.close()


_FACE_SCHEMA = pa.schema(
    [
        ("key", pa.string()), ("shard", pa.string()), ("name", pa.string()), ("image", pa.string()),
        *((field, pa.int8() if field == "label" else pa.string()) for field in _TOLD),
        ("track", pa.int32()), ("frame", pa.int64()), ("time_s", pa.float64()), ("box", pa.list_(pa.float32(), 4)),
        ("frame_size", pa.list_(pa.int32(), 2)), ("square", pa.list_(pa.int32(), 3)),
        ("landmarks", pa.list_(pa.list_(pa.float32(), 2), 5)),
        *((field, pa.float32()) for field in ("detection", "face_px", "sharpness", "brightness")),
    ]
)  # fmt: skip


def extract(
    manifest: Manifest,
    output: str | Path,
    settings: ExtractSettings,
    *,
    resume: bool = False,
    workers: int | None = None,
    timeout: float = 120.0,
) -> tuple[int, int, int]:
    """Cut the faces of every sample into a folder; a file that cannot be read is listed, and the run goes on.

    Args:
        manifest: what to extract; every sample must have a label.
        output: gets shards (or folders), faces.jsonl, faces.parquet, failed.txt and settings.json.
        settings: see `ExtractSettings`.
        resume: go on with what is there.
        workers: processes; one per core by default.
        timeout: seconds of wall time per file.
    Returns:
        Numbers of faces, of samples without a face, and of samples that failed.
    Raises:
        DataError: two samples have one key, or one has no label.
        UsageError: see `FaceStore`.
    """
    _ = manifest.by_key
    bare = [s.key for s in manifest if s.label is None]
    if bare:
        raise DataError(f"{len(bare)} samples have no label ({LABELS[None]}), such as {bare[0]}; leave them out first")
    with closing(FaceStore(Path(output), settings, resume=resume)) as store:
        todo = [sample for sample in manifest if not store.has(sample)]
        with Counter("extracting", len(manifest), done=len(manifest) - len(todo)) as counter:
            results = run_jobs(
                "fastdetect.data.extract:FaceExtractor", todo, count=len(todo), workers=workers, timeout=timeout,
                init_args={"root": manifest.root, "settings": settings},
            )  # fmt: skip
            for result in results:
                store.add(todo[result.id], result.value, result.error)
                counter.step(failed=result.error is not None)
        return store.finish()


def main(
    path: Path,
    output: Path,
    settings: ExtractSettings,
    *,
    root: Path | None,
    splits: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    compressions: tuple[str, ...] = (),
    resume: bool,
    workers: int | None,
    timeout: float,
) -> int:
    """Run `fastdetect data extract`; returns the exit code: 3 where files failed, 130 after Ctrl-C."""

    def asked(sample: Sample) -> bool:
        """Whether it is of the splits, methods (reals are of every one) and compressions asked for."""
        method = sample.label == REAL or not methods or sample.method in methods
        level = not compressions or sample.compression in compressions
        return method and level and (not splits or sample.split in splits)

    manifest = read_manifest(path, root).where(asked)
    if not len(manifest):
        raise UsageError(
            f"nothing to extract: no sample of {path} is of the splits, methods and compressions asked for"
        )
    console = Console(soft_wrap=True, highlight=False)
    try:
        faces, empty, failed = extract(manifest, output, settings, resume=resume, workers=workers, timeout=timeout)
    except KeyboardInterrupt:
        console.print(f"stopped; the same command with --resume goes on in {output}")
        return 130
    console.print(f"{output}: {faces:,} faces of {len(manifest):,} videos, {empty:,} without a face")
    if failed:
        console.print(f"{failed:,} videos failed: {output / 'failed.txt'} says why")
    return 3 if failed else 0
