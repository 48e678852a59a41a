"""From face scores to a verdict: a mean per person, the most suspicious person, calibration, abstention."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fastdetect.errors import CheckpointError, DataError, UsageError
from fastdetect.evaluation.calibration import calibrate
from fastdetect.evaluation.scoring import AGGREGATION, Gate, track_margin
from fastdetect.reasons import Reason
from fastdetect.screening.results import ThresholdRow, TrackRow, VerdictName

_GATE = Gate()  # what the calibration counts is what a verdict counts


class VerdictConfig(BaseModel):
    """Where verdicts begin and when there is none [ours]; the thresholds' reasons are in docs/results.md."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    fpr_suspicious: float = Field(default=0.05, gt=0, lt=1, description="suspicious from this false-positive rate")
    fpr_manipulated: float = Field(default=0.01, gt=0, lt=1, description="manipulated from this one")
    threshold_suspicious: float | None = Field(default=None, ge=0, le=1, description="a score, set by hand")
    threshold_manipulated: float | None = Field(default=None, ge=0, le=1, description="a score, set by hand")
    min_face_px: float = Field(default=_GATE.min_face_px, ge=0, description="below: FACE_TOO_SMALL")
    min_sharpness: float = Field(default=_GATE.min_sharpness, ge=0, description="below: TOO_BLURRY")
    min_brightness: float = Field(default=_GATE.min_brightness, ge=0, le=1, description="mean luma below: TOO_DARK")
    min_faces: int = Field(
        default=_GATE.min_faces, ge=1, description="usable faces a person needs; fewer: TOO_FEW_FACES"
    )
    min_share: float = Field(default=_GATE.min_share, ge=0, le=1, description="and their share of the sampled frames")
    min_frames: int = Field(
        default=_GATE.min_frames, ge=1, description="frames that a video must have; fewer: TOO_SHORT"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "VerdictConfig":
        if self.fpr_manipulated > self.fpr_suspicious:
            raise ValueError(
                f"fpr_manipulated {self.fpr_manipulated} is above fpr_suspicious {self.fpr_suspicious}: "
                "the stronger verdict needs the lower false-positive rate"
            )
        return self

    def defect(self, face_px: float, sharpness: float, brightness: float) -> Reason | None:
        """Why a face does not count towards a score, or None."""
        if face_px < self.min_face_px:
            return Reason.FACE_TOO_SMALL
        if brightness < self.min_brightness:
            return Reason.TOO_DARK
        return Reason.TOO_BLURRY if sharpness < self.min_sharpness else None


@dataclass(frozen=True)
class Calibration:
    """A model's fitted map from margins to probabilities, and its scores at false-positive rates."""

    id: str
    sampling: str
    thresholds: dict[float, float]  # false-positive rate -> calibrated score
    block: Mapping[str, Any]

    @classmethod
    def from_config(cls, block: Mapping[str, Any]) -> "Calibration":
        """Read the `calibration` block of a model's config.json, as `fit_calibration` made it.

        Raises:
            CheckpointError: a value is missing or not usable, or it was fitted on another kind of video score.
        """
        try:
            thresholds = {float(fpr): float(score) for fpr, score in block["thresholds"].items()}
            read = cls(block["id"], block["sampling"], thresholds, block)
            if not 0 <= read.probability(-1.0) <= read.probability(1.0) <= 1:
                raise ValueError("scores do not grow with margins")
            if block["aggregation"] != AGGREGATION:
                raise ValueError(f"fitted on {block['aggregation']!r}, here a video's score is {AGGREGATION!r}")
        except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the model's calibration cannot be used ({error!r}); calibrate it again") from error
        return read

    def probability(self, margin: float) -> float:
        """The calibrated score, 0 to 1, of a logit margin."""
        return float(calibrate(self.block, [margin])[0])

    def limits(self, config: VerdictConfig) -> list[ThresholdRow]:
        """The thresholds in force, the lower one first.

        Raises:
            UsageError: no threshold was calibrated at a wanted false-positive rate, or they are out of order.
        """
        rows = [
            self._limit("suspicious", config.fpr_suspicious, config.threshold_suspicious),
            self._limit("manipulated", config.fpr_manipulated, config.threshold_manipulated),
        ]
        if rows[0].score > rows[1].score:
            raise UsageError(
                f"the threshold of suspicious, {rows[0].score:.4f}, above manipulated's {rows[1].score:.4f}"
            )
        return rows

    def _limit(self, verdict: Any, fpr: float, by_hand: float | None) -> ThresholdRow:
        if by_hand is not None:
            return ThresholdRow(verdict=verdict, fpr=None, score=by_hand)
        if fpr not in self.thresholds:
            known = ", ".join(f"{value:g}" for value in sorted(self.thresholds))
            raise UsageError(
                f"the model is not calibrated at a false-positive rate of {fpr:g}, only at {known}; "
                f"use one of these or --threshold-{verdict}"
            )
        fit, check = self._of(fpr, "fits"), self._of(fpr, "checked", "rates")
        return ThresholdRow(
            verdict=verdict,
            fpr=fpr,
            score=self.thresholds[fpr],
            fpr_interval=fit.get("fpr_interval"),
            checked_on=check.get("identities"),
        )

    def _of(self, fpr: float, *keys: str) -> Mapping[str, Any]:
        """What a part of the block says of a rate; empty where it says nothing."""
        part: Mapping[str, Any] = self.block
        for key in keys:
            part = part.get(key) or {}
        return next((found for rate, found in part.items() if float(rate) == fpr), {})


@dataclass
class Verdict:
    """What a row says: `score` is None exactly where `verdict` is inconclusive."""

    verdict: VerdictName
    score: float | None = None
    margin: float | None = None
    reasons: list[Reason] = field(default_factory=list)
    message: str = ""


def judge(
    tracks: list[TrackRow],
    *,
    frames: int,
    is_image: bool,
    calibration: Calibration | None,
    thresholds: Sequence[ThresholdRow],
    config: VerdictConfig,
) -> Verdict:
    """Score the tracks (in place) and the file [ours].

    A person has a say in a video with at least `min_faces` usable faces that make up at least `min_share` of
    the sampled frames: so a false detection, which seldom lasts, decides nothing. In an image one usable face
    is enough. The file's score is that of the most suspicious person who has a say.

    Args:
        tracks: faces and their margins set; score, margin, reasons and decides are written.
        frames: how many frames were sampled.
        is_image: the file is a still image.
        calibration: None gives margins without scores and verdicts.
        thresholds: Calibration.limits; empty without calibration.
        config: the rules.
    """
    needed = Gate(min_faces=config.min_faces, min_share=config.min_share).faces_needed(frames, is_image)
    for track in tracks:
        _score_track(track, needed, calibration, config)
    if not is_image and frames < config.min_frames:
        return Verdict(
            "inconclusive",
            reasons=[Reason.TOO_SHORT],
            message=f"{frames} frame(s); a video is judged from {config.min_frames} on",
        )
    if not tracks:
        return Verdict("inconclusive", reasons=[Reason.NO_FACE], message=f"no face in {frames} sampled frame(s)")
    able = [track for track in tracks if track.margin is not None]
    if not able:
        found = sum(len(track.faces) for track in tracks)
        reasons = list(dict.fromkeys(r for t in sorted(tracks, key=lambda t: -len(t.faces)) for r in t.reasons))
        advice = "; a denser --sample may help" if Reason.TOO_FEW_FACES in reasons else ""
        message = f"{found} face(s) found, nobody with {needed} usable ones{advice}"
        return Verdict("inconclusive", reasons=reasons, message=message)
    chosen = max(able, key=lambda track: track.margin or 0.0)
    chosen.decides = True
    reasons = list(chosen.reasons)
    message = ""
    if is_image:
        reasons.append(Reason.TOO_FEW_FACES)
        message = "one image: the false-positive rates were measured on videos and do not hold"
    if calibration is None:
        return Verdict("inconclusive", None, chosen.margin, reasons, "the model is not calibrated: margin only")
    score = calibration.probability(chosen.margin or 0.0)
    verdict: VerdictName = "authentic"
    for limit in thresholds:
        verdict = limit.verdict if score >= limit.score else verdict
    return Verdict(verdict, score, chosen.margin, reasons, message)


def _score_track(track: TrackRow, needed: int, calibration: Calibration | None, config: VerdictConfig) -> None:
    defects: Counter[Reason] = Counter()
    for face in track.faces:
        defect = config.defect(face.face_px, face.sharpness, face.brightness)
        face.usable = defect is None
        face.score = calibration.probability(face.margin) if calibration else None
        if defect:
            defects[defect] += 1
    track.score = track.margin = None
    track.reasons, track.decides = [], False
    usable = [face.margin for face in track.faces if face.usable]
    if len(track.faces) < needed:
        track.reasons.append(Reason.TOO_FEW_FACES)
    if 2 * len(usable) < len(track.faces):
        common, count = defects.most_common(1)[0]
        track.reasons.append(common if 2 * count > len(track.faces) else Reason.LOW_QUALITY)
    if len(usable) >= needed:
        track.margin = track_margin(np.asarray(usable))
        track.score = calibration.probability(track.margin) if calibration else None
    elif not track.reasons:
        track.reasons.append(Reason.TOO_FEW_FACES)
