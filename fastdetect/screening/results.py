"""The schema of a screening result: one `Row` per file (results.jsonl) and one `RunInfo` per run (run.json).

Media of a face (only where it was not switched off) never goes into results.jsonl. `TrackRow.media` names
files under `<output>/media/`; `load_media` reads them: JPEG crops of up to eight faces of a track, and the
residual score of each of their patches. docs/results.md describes every field.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fastdetect.errors import DataError
from fastdetect.reasons import Reason

DISCLAIMER = (
    "An estimate, not evidence. It is about manipulated faces only (swapped, re-enacted, lip-synced), "
    "not about wholly generated video, voices or context. A person must look before anything follows from it."
)
# Keys of Row.timings_s and RunInfo.stage_seconds, in the order in which a file passes through them.
STAGES = ("hash", "decode", "detect", "track", "crop", "model")

Status = Literal["ok", "failed"]
VerdictName = Literal["authentic", "suspicious", "manipulated", "inconclusive"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ThresholdRow(_Model):
    """From `score` on a verdict is at least `verdict`; set so that a share `fpr` of authentic videos reaches it."""

    verdict: Literal["suspicious", "manipulated"]
    fpr: float | None = Field(ge=0, le=1, description="null: the threshold was set by hand")
    score: float = Field(ge=0, le=1)
    fpr_interval: tuple[float, float] | None = Field(
        default=None, description="where the rate lies in fact (95 %), for reals like those of the calibration"
    )
    checked_on: int | None = Field(default=None, description="persons whose real videos the rate was checked on")


class FaceRow(_Model):
    """One scored face in one frame."""

    frame: int = Field(description="index of the frame in display order, from 0")
    time_s: float = Field(description="seconds from the stream's first frame")
    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1, pixels of the displayed frame")
    detection: float = Field(description="the face detector's confidence, 0 to 1")
    face_px: float = Field(description="longer side of the box, pixels")
    sharpness: float
    brightness: float = Field(description="mean luma, 0 to 1")
    usable: bool = Field(description="False: too small, blurred or dark to count towards the track's score")
    margin: float = Field(description="fused logit margin, fake minus real; above 0 leans to manipulated")
    image_margin: float = Field(description="the same of the image branch alone")
    residual_margin: float | None = Field(description="the same of the residual branch alone; null: not inpainted")
    score: float | None = Field(description="the margin through the calibration, for plots")


class TrackMedia(_Model):
    """Files of a track under `<output>/media/`: `crops` (JPEG, faces side by side) and `patches` (JSON)."""

    crops: str
    patches: str
    faces: list[int] = Field(description="positions in TrackRow.faces, one per crop, in time order")


class TrackRow(_Model):
    """One person across the sampled frames."""

    id: int
    score: float | None = Field(description="calibrated, 0 to 1; null: no say, or an uncalibrated model")
    margin: float | None = Field(description="trimmed mean over usable faces; null: no say")
    reasons: list[Reason] = Field(default_factory=list, description="why it has no say, or less of one")
    decides: bool = Field(default=False, description="True for the one track whose score is the video's")
    faces: list[FaceRow]
    media: TrackMedia | None = None


class MediaFacts(_Model):
    """What the container says about the stream that was screened; sizes after rotation."""

    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    rotation: int
    fps: float | None
    duration_s: float | None
    frames: int | None
    video_streams: int
    is_image: bool


class Row(_Model):
    """The result of one file; every file of a run has exactly one, whatever happened to it.

    `status` "failed": it could not be screened (verdict "inconclusive", score null; `message` says why).
    `status` "ok", verdict "inconclusive": it was screened, score null; `reasons` says why.
    """

    schema_version: Literal[1] = 1
    path: str = Field(description="absolute path")
    name: str = Field(description="the path as the user gave it, or relative to the folder that was given")
    bytes: int | None
    mtime_ns: int | None
    sha256: str | None = Field(description="of the file; null where it could not be read")
    status: Status
    verdict: VerdictName
    score: float | None = Field(description="calibrated probability that a face is manipulated, 0 to 1")
    margin: float | None = Field(description="the deciding track's, before calibration")
    reasons: list[Reason]
    message: str = ""
    thresholds: list[ThresholdRow]
    media: MediaFacts | None = None
    frames_sampled: int = 0
    frames_decoded: int = 0
    faces_found: int = 0
    faces_scored: int = 0
    tracks: list[TrackRow] = Field(default_factory=list)
    decoder: str | None = None
    decode_method: str | None = None
    decode_note: str = Field(default="", description="why the decoder that was asked for was not used")
    detector: str | None = Field(default=None, description="face detector, its runtime and precision")
    engine: str
    device: str
    precision: str
    model_id: str
    model_sha256: str
    preprocess_sha256: str
    calibration_id: str | None
    sampling: str
    max_seconds: float | None
    fastdetect: str
    timings_s: dict[str, float] = Field(default_factory=dict, description="seconds by stage, see STAGES")
    finished_at: str = Field(description="UTC, ISO 8601")


class RunInfo(_Model):
    """What a run used and what came of it (run.json); the report's header is made of it."""

    schema_version: Literal[1] = 1
    fingerprint: str = Field(description="hash of what can change a score; see --resume")
    fastdetect: str
    versions: dict[str, str] = Field(description="python, torch, av, ffmpeg, onnxruntime, timm, numpy, ...")
    machine: dict[str, str] = Field(description="cpu, cores, memory, gpu, system")
    engine: str
    device: str
    precision: str
    model_id: str
    model_sha256: str
    preprocess_sha256: str
    calibration_id: str | None
    sampling: str
    max_seconds: float | None
    thresholds: list[ThresholdRow]
    workers: int
    started_at: str
    finished_at: str
    interrupted: bool = False
    warnings: list[str] = Field(default_factory=list, description="what a reader of the scores must know")
    wall_s: float = Field(description="seconds of this run alone, without what was resumed")
    files: int = Field(description="rows in results.jsonl that belong to this run's inputs; older ones are not counted")
    files_this_run: int = Field(description="files screened by this run; the rest was resumed")
    counts: dict[str, int] = Field(description="these rows by verdict, and 'failed'")
    stage_seconds: dict[str, float] = Field(description="sum over this run's files by stage, see STAGES")
    videos_per_hour: float | None
    media_s_per_s: float | None = Field(description="seconds of footage screened per second of wall time")
    exit_code: int
    disclaimer: str = DISCLAIMER


@dataclass(frozen=True)
class LoadedMedia:
    """One track's crops (RGB uint8 [N,S,S,3]) and patch scores (float32 [N,gh,gw], >= 0)."""

    crops: np.ndarray
    patch_scores: np.ndarray


def save_media(
    folder: Path, sha256: str, track: int, faces: list[int], crops: np.ndarray, patch_scores: np.ndarray
) -> TrackMedia:
    """Write a track's crops and patch scores; the names depend on the file's content and the track alone.

    Args:
        folder: `<output>/media`.
        sha256: of the screened file.
        track: the track's id.
        faces: positions of the N faces in the track.
        crops: RGB uint8 [N,S,S,3].
        patch_scores: float32 [N,gh,gw].
    Returns:
        The entry for the track's row.
    """
    stem = f"{sha256[:16]}/track{track}"
    media = TrackMedia(crops=f"{stem}.jpg", patches=f"{stem}.json", faces=faces)
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    strip = cv2.cvtColor(np.concatenate(list(crops), axis=1), cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, 90])
    (folder / media.crops).write_bytes(jpeg.tobytes())
    rounded = np.round(patch_scores.astype(np.float64), 5).tolist()
    (folder / media.patches).write_text(json.dumps(rounded), "utf-8")
    return media


def load_media(folder: Path, media: TrackMedia) -> LoadedMedia:
    """Read a track's crops and patch scores.

    Args:
        folder: `<output>/media`.
        media: the entry of the track's row.
    Raises:
        DataError: a file is missing or not what its row says.
    """
    strip = cv2.imread(str(folder / media.crops), cv2.IMREAD_COLOR)
    if strip is None:
        raise DataError(f"{folder / media.crops}: not a readable image; screen again without --no-media")
    n, side = len(media.faces), strip.shape[0]
    if strip.shape[1] != n * side:
        raise DataError(f"{folder / media.crops}: {strip.shape[1]} px wide, wanted {n} crops of {side} px")
    crops = cv2.cvtColor(strip, cv2.COLOR_BGR2RGB).reshape(side, n, side, 3).transpose(1, 0, 2, 3)
    try:
        patches = np.asarray(json.loads((folder / media.patches).read_text("utf-8")), dtype=np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / media.patches}: not readable ({error}); screen the file again") from error
    if patches.ndim != 3:
        raise DataError(
            f"{folder / media.patches}: {list(patches.shape)} numbers, wanted rows and columns of {n} faces"
        )
    return LoadedMedia(np.ascontiguousarray(crops), patches)
