"""From margins to a verdict: means, the deciding person, calibration, and when there is no answer."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdetect.errors import CheckpointError, UsageError
from fastdetect.evaluation.scoring import AGGREGATION
from fastdetect.reasons import Reason
from fastdetect.screening.results import FaceRow, TrackRow
from fastdetect.screening.verdict import Calibration, Verdict, VerdictConfig, judge, track_margin

BLOCK = {
    "method": "platt",
    "a": 1.0,
    "b": 0.0,
    "thresholds": {"0.01": 0.9, "0.05": 0.7},
    "sampling": "uniform:16",
    "aggregation": AGGREGATION,
    "id": "abc",
}
CALIBRATION = Calibration.from_config(BLOCK)


def person(*margins: float, id: int = 0, px: float = 100, sharpness: float = 1e6, light: float = 0.5) -> TrackRow:
    faces = [
        FaceRow(
            frame=i, time_s=i / 25, box=(0, 0, px, px), detection=0.9, face_px=px, sharpness=sharpness,
            brightness=light, usable=True, margin=m, image_margin=m, residual_margin=m, score=None,
        )
        for i, m in enumerate(margins)
    ]  # fmt: skip
    return TrackRow(id=id, score=None, margin=None, faces=faces)


def ask(
    *tracks: TrackRow,
    frames: int = 16,
    is_image: bool = False,
    calibration: Calibration | None = CALIBRATION,
    **rules,
) -> Verdict:
    config = VerdictConfig(**rules)
    limits = calibration.limits(config) if calibration else []
    return judge(
        list(tracks),
        frames=frames,
        is_image=is_image,
        calibration=calibration,
        thresholds=limits,
        config=config,
    )


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.1, "authentic"),
        (0.699, "authentic"),
        (0.701, "suspicious"),
        (0.899, "suspicious"),
        (0.901, "manipulated"),
    ],
)
def test_the_thresholds_divide_the_scores(score: float, verdict: str) -> None:
    answer = ask(person(*[logit(score)] * 16))
    assert answer.verdict == verdict
    assert answer.score == pytest.approx(score)
    assert answer.margin == pytest.approx(logit(score))
    assert not answer.reasons


def test_a_score_on_the_threshold_reaches_it() -> None:
    margin = 0.8
    block = {**BLOCK, "thresholds": {"0.05": CALIBRATION.probability(margin), "0.01": 0.99}}
    assert ask(person(*[margin] * 16), calibration=Calibration.from_config(block)).verdict == "suspicious"


def test_one_wild_face_of_sixteen_does_not_move_the_track() -> None:
    assert track_margin([0.0] * 15 + [1000.0]) == 0.0
    assert ask(person(*[-2.0] * 15, 1000.0)).verdict == "authentic"


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40))
def test_the_track_margin_is_a_mean_that_ignores_order(margins: list[float]) -> None:
    value = track_margin(margins)
    assert min(margins) - 1e-9 <= value <= max(margins) + 1e-9
    assert value == track_margin(margins[::-1]) == track_margin(sorted(margins))


def test_the_mean_is_scipys_trimmed_mean_by_hand() -> None:
    margins = np.random.default_rng(0).normal(size=16)
    assert track_margin(list(margins)) == pytest.approx(np.sort(margins)[1:-1].mean())


def test_the_most_suspicious_person_decides() -> None:
    calm, loud = person(*[-3.0] * 16, id=0), person(*[3.0] * 4, id=1)
    answer = ask(calm, loud)
    assert (answer.verdict, calm.decides, loud.decides) == ("manipulated", False, True)
    assert answer.score == loud.score
    assert calm.score == pytest.approx(CALIBRATION.probability(-3.0))


def test_a_false_detection_in_one_or_two_frames_decides_nothing() -> None:
    answer = ask(person(*[-3.0] * 16, id=0), ghost := person(9.0, 9.0, id=1))
    assert answer.verdict == "authentic"
    assert (ghost.score, ghost.reasons) == (None, [Reason.TOO_FEW_FACES])


def test_the_more_frames_the_longer_a_person_must_be_there() -> None:
    brief = person(*[9.0] * 5, id=1)
    assert ask(person(*[-3.0] * 100, id=0), brief, frames=100).verdict == "authentic"
    assert ask(person(*[-3.0] * 16, id=0), brief, frames=16).verdict == "manipulated"
    assert ask(person(*[9.0] * 3), frames=30).verdict == "manipulated"  # a tenth of the frames, at least
    assert ask(person(*[9.0] * 3), frames=31).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("track", "reason"),
    [
        (person(*[5.0] * 16, px=20), Reason.FACE_TOO_SMALL),
        (person(*[5.0] * 16, light=0.01), Reason.TOO_DARK),
        (person(*[5.0] * 16, sharpness=0.003), Reason.TOO_BLURRY),
        (person(5.0, 5.0), Reason.TOO_FEW_FACES),
    ],
)
def test_it_abstains_rather_than_guesses(track: TrackRow, reason: Reason) -> None:
    answer = ask(track)
    assert (answer.verdict, answer.score, answer.reasons) == ("inconclusive", None, [reason])
    assert answer.message
    assert not track.decides


def test_mixed_defects_are_low_quality() -> None:
    mixed = person(*[5.0] * 16)
    mixed.faces = person(*[5.0] * 8, px=20).faces + person(*[5.0] * 8, light=0.0).faces
    assert ask(mixed).reasons == [Reason.LOW_QUALITY]


def test_unusable_faces_do_not_count_towards_the_score() -> None:
    track = person(*[-2.0] * 12)
    track.faces += person(*[50.0] * 4, px=20).faces
    assert ask(track).margin == -2.0
    assert [face.usable for face in track.faces] == [True] * 12 + [False] * 4


def test_a_person_mostly_unusable_is_scored_and_says_why_to_doubt_it() -> None:
    track = person(*[3.0] * 4)
    track.faces += person(*[3.0] * 12, px=20).faces
    answer = ask(track)
    assert (answer.verdict, answer.reasons) == ("manipulated", [Reason.FACE_TOO_SMALL])


def test_a_face_on_a_limit_is_usable() -> None:
    rules = VerdictConfig()
    assert rules.defect(rules.min_face_px, rules.min_sharpness, rules.min_brightness) is None


def test_half_of_the_faces_usable_and_too_few_says_so() -> None:
    track = person(3.0, 3.0)
    track.faces += person(3.0, 3.0, px=20).faces
    assert ask(track).reasons == [Reason.TOO_FEW_FACES]


def test_reasons_begin_with_the_person_who_is_seen_most() -> None:
    small, dark = person(*[5.0] * 4, px=20, id=0), person(*[5.0] * 9, light=0.0, id=1)
    assert ask(small, dark).reasons == [Reason.TOO_DARK, Reason.FACE_TOO_SMALL]


def test_no_face_and_too_short() -> None:
    assert ask(frames=16).reasons == [Reason.NO_FACE]
    answer = ask(person(5.0), frames=1)
    assert (answer.verdict, answer.reasons) == ("inconclusive", [Reason.TOO_SHORT])


def test_an_image_is_judged_by_its_face_and_says_that_the_rates_do_not_hold() -> None:
    answer = ask(person(5.0), frames=1, is_image=True)
    assert (answer.verdict, answer.reasons) == ("manipulated", [Reason.TOO_FEW_FACES])
    assert "image" in answer.message
    assert ask(frames=1, is_image=True).reasons == [Reason.NO_FACE]


def test_without_calibration_there_is_a_margin_and_no_verdict() -> None:
    answer = ask(person(*[5.0] * 16), calibration=None)
    assert (answer.verdict, answer.score, answer.margin) == ("inconclusive", None, 5.0)


def test_thresholds_carry_their_false_positive_rates() -> None:
    low, high = CALIBRATION.limits(VerdictConfig())
    assert (low.verdict, low.fpr, low.score) == ("suspicious", 0.05, 0.7)
    assert (high.verdict, high.fpr, high.score) == ("manipulated", 0.01, 0.9)
    by_hand = CALIBRATION.limits(VerdictConfig(threshold_suspicious=0.5))[0]
    assert (by_hand.fpr, by_hand.score) == (None, 0.5)


def test_thresholds_carry_what_the_calibration_knows_of_their_rates() -> None:
    known = {"fits": {"0.01": {"fpr_interval": [1e-6, 0.00125]}}, "checked": {"rates": {"0.01": {"identities": 87}}}}
    low, high = Calibration.from_config(BLOCK | known).limits(VerdictConfig())
    assert (low.fpr_interval, low.checked_on) == (None, None)
    assert (high.fpr, high.fpr_interval, high.checked_on) == (0.01, (1e-6, 0.00125), 87)


def test_thresholds_that_were_not_calibrated_or_are_crossed_are_refused() -> None:
    with pytest.raises(UsageError, match=r"0\.01, 0\.05"):
        CALIBRATION.limits(VerdictConfig(fpr_suspicious=0.2))
    with pytest.raises(UsageError, match="above"):
        CALIBRATION.limits(VerdictConfig(threshold_suspicious=0.95))
    with pytest.raises(ValueError, match="fpr_manipulated"):
        VerdictConfig(fpr_suspicious=0.01, fpr_manipulated=0.05)
    one = CALIBRATION.limits(VerdictConfig(fpr_suspicious=0.01))  # one rate for both: nothing is suspicious
    assert [row.score for row in one] == [0.9, 0.9]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "magic"},
        {"a": -1.0},
        {"a": None},
        {"thresholds": None},
        {"id": ...},
        {"aggregation": "max"},
    ],
)
def test_a_calibration_that_cannot_be_used_is_refused(change: dict) -> None:
    block = {k: v for k, v in {**BLOCK, **change}.items() if v is not ...}
    with pytest.raises(CheckpointError, match="calibrat"):
        Calibration.from_config(block)


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_the_score_is_a_probability_that_grows_with_the_margin(one: float, other: float) -> None:
    low, high = sorted((CALIBRATION.probability(one), CALIBRATION.probability(other)))
    assert 0 <= low <= high <= 1
    assert CALIBRATION.probability(min(one, other)) == low
