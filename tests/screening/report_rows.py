"""Rows as the pipeline writes them, for the tests of what people see."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastdetect.screening.results import (
    STAGES,
    FaceRow,
    MediaFacts,
    Row,
    RunInfo,
    ThresholdRow,
    TrackMedia,
    TrackRow,
)

LINES = [
    ThresholdRow(verdict="suspicious", fpr=0.05, score=0.62),
    ThresholdRow(verdict="manipulated", fpr=0.01, score=0.81),
]
SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def make_track(id_: int, scores: list[float | None], *, seconds: float = 5.0, decides: bool = False) -> TrackRow:
    faces = []
    for i, score in enumerate(scores):
        margin = 0.0 if score is None else float(np.log(score / (1 - score))) if 0 < score < 1 else score
        faces.append(
            FaceRow(
                frame=8 * i,
                time_s=seconds * (i + 0.5) / len(scores),
                box=(40, 40, 140, 160),
                detection=0.9,
                face_px=120,
                sharpness=30,
                brightness=0.5,
                usable=i != 3,
                margin=margin,
                image_margin=margin / 2,
                residual_margin=margin / 3,
                score=score,
            )
        )
    finite = [s for s in scores if s is not None]
    score = float(np.mean(finite)) if finite else None
    return TrackRow(id=id_, score=score, margin=None if score is None else 1.0, decides=decides, faces=faces)


def make_row(name: str = "clip.mp4", score: float | None = 0.9, **changes: Any) -> Row:
    verdict = "inconclusive"
    if score is not None:
        verdict = "manipulated" if score >= 0.81 else "suspicious" if score >= 0.62 else "authentic"
    seconds = 5.0
    values: dict[str, Any] = {
        "path": f"/videos/{name}",
        "name": name,
        "bytes": 123456,
        "mtime_ns": 1,
        "sha256": SHA,
        "status": "ok",
        "verdict": verdict,
        "score": score,
        "margin": 1.0,
        "reasons": [],
        "thresholds": LINES,
        "media": MediaFacts(
            container="mov,mp4",
            codec="h264",
            pix_fmt="yuv420p",
            width=640,
            height=360,
            rotation=0,
            fps=25.0,
            duration_s=seconds,
            frames=125,
            video_streams=1,
            is_image=False,
        ),
        "frames_sampled": 16,
        "frames_decoded": 125,
        "faces_found": 16,
        "faces_scored": 16,
        "tracks": [] if score is None else [make_track(0, [score] * 16, decides=True)],
        "decoder": "pyav-18.1.0/ffmpeg-8.0",
        "decode_method": "sequential",
        "engine": "openvino-2026.4",
        "device": "cpu",
        "precision": "bf16",
        "model_id": "fastdetect-small",
        "model_sha256": SHA,
        "preprocess_sha256": SHA,
        "calibration_id": "a1b2c3d4e5f6",
        "sampling": "uniform:16",
        "max_seconds": None,
        "fastdetect": "0.1.0",
        "timings_s": {"decode": 0.2, "model": 0.5},
        "finished_at": "2026-01-02T03:04:05Z",
    }
    return Row(**(values | changes))


def make_failure(name: str, reason: str = "DECODE_ERROR", message: str = "moov atom not found") -> Row:
    return make_row(
        name,
        None,
        status="failed",
        reasons=[reason],
        message=message,
        media=None,
        margin=None,
        decoder=None,
        decode_method=None,
        frames_sampled=0,
        frames_decoded=0,
        faces_found=0,
        faces_scored=0,
    )


def make_run(rows: list[Row], **changes: Any) -> RunInfo:
    counts = Counter("failed" if row.status == "failed" else row.verdict for row in rows)
    values: dict[str, Any] = {
        "fingerprint": SHA,
        "fastdetect": "0.1.0",
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "machine": {"cpu": "two cores", "memory": "8 GiB"},
        "engine": "openvino-2026.4",
        "device": "cpu",
        "precision": "bf16",
        "model_id": "fastdetect-small",
        "model_sha256": SHA,
        "preprocess_sha256": SHA,
        "calibration_id": "a1b2c3d4e5f6",
        "sampling": "uniform:16",
        "max_seconds": None,
        "thresholds": LINES,
        "workers": 2,
        "started_at": "2026-01-02T03:04:05Z",
        "finished_at": "2026-01-02T03:05:05Z",
        "wall_s": 60.0,
        "files": len(rows),
        "files_this_run": len(rows),
        "counts": dict(counts),
        "stage_seconds": dict(zip(STAGES, (0.4, 21.0, 34.0, 0.8, 2.1, 48.0), strict=True)),
        "videos_per_hour": 2540.0,
        "media_s_per_s": 3.5,
        "exit_code": 1,
    }
    return RunInfo(**(values | changes))


def add_media(row: Row, folder: Path, *, faces: int = 2, side: int = 32, fill: int = 120) -> Row:
    """Write crops and patch scores as the store does, and name them in the row's first track."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = row.name.replace("/", "_")
    cv2.imwrite(str(folder / f"{stem}.jpg"), np.full((side, faces * side, 3), fill, np.uint8))
    scores = np.linspace(0, 0.02, faces * 4 * 4).reshape(faces, 4, 4)
    (folder / f"{stem}.json").write_text(json.dumps(scores.tolist()))
    row.tracks[0].media = TrackMedia(crops=f"{stem}.jpg", patches=f"{stem}.json", faces=list(range(faces)))
    return row
