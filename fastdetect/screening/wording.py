"""What people read: words for verdicts and reasons, number formats, the order in which results are shown."""

import math
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

from fastdetect.reasons import Reason
from fastdetect.screening.results import Row, ThresholdRow

# Worst first, the order of every legend and filter; "failed" is a status, shown beside the verdicts.
OUTCOMES = ("manipulated", "suspicious", "inconclusive", "authentic", "failed")
FLAGGED = ("manipulated", "suspicious")

REASON_TEXT: dict[Reason, str] = {
    Reason.NO_FACE: "no face was found in the sampled frames",
    Reason.FACE_TOO_SMALL: "the faces are too small to judge",
    Reason.TOO_BLURRY: "the faces are too blurred to judge",
    Reason.TOO_DARK: "the faces are too dark to judge",
    Reason.TOO_SHORT: "the video is too short for a reliable score",
    Reason.TOO_FEW_FACES: "too few usable views of a face for a reliable score",
    Reason.LOW_QUALITY: "compression or resolution hides the traces that the model looks for",
    Reason.OUT_OF_DOMAIN: "the material is unlike what the model was calibrated on",
    Reason.DECODE_ERROR: "the file is damaged or not a video; it could not be decoded",
    Reason.TRUNCATED: "the file ends early; only the part that is there was screened",
    Reason.UNSUPPORTED_CODEC: "this build of FFmpeg cannot decode the codec",
    Reason.UNSUPPORTED_CONTAINER: "the container or protocol is not one that is opened",
    Reason.NO_VIDEO_STREAM: "the file has no video stream",
    Reason.TOO_LARGE: "the file exceeds a limit (bytes, pixels, frames, streams or duration)",
    Reason.TIMEOUT: "decoding took longer than the time limit and was stopped",
    Reason.CRASH: "the decoder crashed on this file; other files were not affected",
    Reason.MODEL_ERROR: "the model failed on the faces of this file; other files were not affected",
    Reason.NOT_FOUND: "the file does not exist",
    Reason.NOT_PERMITTED: "the file may not be read",
}

# Invisible characters reorder or erase what stands beside them: a file name must not be able to fake another.
_SPOOFING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # Persian, Indic and emoji names need them


def outcome(row: Row) -> str:
    """The row's verdict, or "failed" where the file could not be screened."""
    return "failed" if row.status == "failed" else row.verdict


def known(value: float | None) -> float | None:
    """The value, or None where it is missing or not a finite number."""
    return value if value is not None and math.isfinite(value) else None


def worst_first(row: Row) -> tuple[bool, float, int, str]:
    """Sort key: highest score first, then rows without a score, failures last; ties by name."""
    score = known(row.score)
    return score is None, -(score or 0.0), OUTCOMES.index(outcome(row)), row.name


def printable(text: str) -> str:
    """The text with control, bidirectional and unencodable characters written as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _SPOOFING and c not in _JOINERS else c
        for c in text
    )


def score_text(score: float | None) -> str:
    """Three decimals; never rounded to a certainty (">0.999"); a dash where there is none."""
    value = known(score)
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return "<0.001"
    if 0.999 < value < 1:
        return ">0.999"
    return f"{value:.3f}"


def percent(share: float) -> str:
    """A share in [0, 1] as "5 %", "0.1 %"."""
    return f"{100 * share:.3g} %"


def reached_by(line: ThresholdRow) -> str:
    """The share of authentic videos that reach a threshold: "about 5 %", "at most about 0.12 %"."""
    if line.fpr is None:
        return "an unmeasured share"
    if line.fpr_interval and line.fpr_interval[1] < line.fpr:  # it is stricter than was asked
        return f"at most about {100 * line.fpr_interval[1]:.2g} %"
    return f"about {percent(line.fpr)}"


def rate_facts(line: ThresholdRow) -> str:
    """What is known of a threshold's false-positive rate, for the report's small print."""
    if line.fpr is None:
        return "set by hand"
    facts = [f"set for a false-positive rate of {percent(line.fpr)}"]
    if line.fpr_interval:
        low, high = (f"{100 * rate:.2g} %" for rate in line.fpr_interval)
        facts.append(f"which lies in {low} to {high} (95 %)")
    if line.checked_on:
        facts.append(f"checked on {line.checked_on} persons")
    return ", ".join(facts)


def clock(seconds: float | None) -> str:
    """Seconds as "0.8 s", "42 s", "3 min 05 s", "2 h 04 min"; a dash where unknown."""
    value = known(seconds)
    if value is None or value < 0:
        return "–"
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(stamp: str) -> str:
    """An ISO 8601 time as "22 November 2026, 03:05 UTC"; the text itself where it is none."""
    try:
        time = datetime.fromisoformat(stamp).astimezone(UTC)
    except ValueError:
        return printable(stamp)
    return f"{time.day} {time:%B %Y, %H:%M} UTC"


def reason_text(row: Row) -> str:
    """The row's reasons as one plain sentence without a full stop; empty where it has none."""
    return "; ".join(REASON_TEXT[r] for r in row.reasons)


def verdict_meanings(thresholds: Sequence[ThresholdRow]) -> dict[str, str]:
    """One sentence per outcome that says what it means at these thresholds."""
    lines = {t.verdict: t for t in thresholds}

    def reached(name: str) -> str:
        line = lines.get(name)  # type: ignore[call-overload]
        if line is None:
            return "never given: the model has no calibration for it"
        start = f"score {score_text(line.score)} or more; "
        if line.fpr is None:
            return start + "the threshold was set by hand, how many authentic videos reach it is unknown"
        return f"{start}{reached_by(line)} of authentic videos like those of the calibration set get this far too"

    return {
        "manipulated": reached("manipulated"),
        "suspicious": reached("suspicious"),
        "inconclusive": "screened, but there is no answer; the reasons say why",
        "authentic": "below every threshold; this does not prove that the video is genuine",
        "failed": "the file could not be screened; the message says why",
    }
