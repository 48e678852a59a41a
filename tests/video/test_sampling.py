"""Sampling policies: parsing, instants, and the frames picked for them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdetect.errors import UsageError
from fastdetect.video.sampling import SamplingPolicy, check_max_seconds, pick_frames


@pytest.mark.parametrize(
    "text",
    ["uniform:1", "uniform:16", "uniform:100000", "fps:1000", "fps:2", "fps:0.5", "fps:29.97", "keyframes", "all"],
)
def test_text_comes_back(text):
    assert str(SamplingPolicy.parse(text)) == text


def test_default_is_sixteen_frames():
    assert SamplingPolicy() == SamplingPolicy.parse("uniform") == SamplingPolicy.parse("uniform:16")


@pytest.mark.parametrize(
    "text",
    [
        *("", "uniform:", "uniform:0", "uniform:-3", "uniform:2.5", "uniform:1e3", "uniform:999999", " uniform:4"),
        *("uniform:4 ", "uniform:4\n", "UNIFORM:4", "keyframes:3", "all:2", "every:3"),
        *("fps", "fps:0", "fps:nan", "fps:inf", "fps:-1", "fps:1_0", "fps:5000", "fps:٣"),
    ],
)
def test_nonsense_is_refused(text):
    with pytest.raises(UsageError, match=r"uniform|fps"):
        SamplingPolicy.parse(text)


@pytest.mark.parametrize(
    ("kind", "value"), [("uniform", None), ("uniform", 1.5), ("all", 3.0), ("fps", float("nan")), ("odd", None)]
)
def test_made_by_hand_is_checked_too(kind, value):
    with pytest.raises(UsageError):
        SamplingPolicy(kind, value)


@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan")])
def test_max_seconds_must_leave_something(seconds):
    with pytest.raises(UsageError, match="max_seconds"):
        check_max_seconds(seconds)


def test_instants():
    assert SamplingPolicy.parse("uniform:4").times(10.0, 2.0) == [10.25, 10.75, 11.25, 11.75]
    assert SamplingPolicy.parse("uniform:2").times(0.0, 10.0, max_seconds=2.0) == [0.5, 1.5]
    assert SamplingPolicy.parse("fps:2").times(1.0, 1.6) == [1.0, 1.5, 2.0, 2.5]
    assert SamplingPolicy.parse("fps:2").times(0.0, 1.5) == [0.0, 0.5, 1.0]
    assert SamplingPolicy.parse("keyframes").times(0.0, 9.0) is None
    assert SamplingPolicy.parse("all").times(0.0, 9.0) is None


def pick(policy, times, end, keyframes=None, max_seconds=None):
    keys = np.zeros(len(times), dtype=bool) if keyframes is None else np.asarray(keyframes)
    return pick_frames(SamplingPolicy.parse(policy), np.asarray(times, float), keys, end, max_seconds).tolist()


def test_the_frame_shown_at_the_instant_is_picked_not_the_nearest():
    # instants 0.5, 1.5, 2.5, 3.5: the frame that appears at 0.9 is not on screen yet at 0.5
    assert pick("uniform:4", [0.0, 0.9, 1.0, 3.4], 4.0) == [0, 2, 3]


def test_instants_on_timestamps_do_not_slip_back():
    times = np.arange(100) * (1 / 30)
    assert pick("fps:30", times, 100 / 30) == list(range(100))
    assert pick("fps:10", times, 100 / 30) == list(range(0, 100, 3))
    assert pick("fps:30", np.nextafter(times, np.inf), 100 / 30) == list(range(100))  # rounded up by a container
    assert SamplingPolicy.parse("fps:10").times(0.0, 0.1 * 3) == [0.0, 0.1, 0.2]  # a bit over three tenths


def test_short_clips_give_each_frame_once():
    assert pick("uniform:16", [0.0, 0.04, 0.08], 0.12) == [0, 1, 2]
    assert pick("uniform:16", [0.0], 0.0) == [0]


def test_max_seconds_cuts_every_policy():
    times = [0.0, 1.0, 2.0, 3.0]
    keys = [True, False, True, True]
    assert pick("all", times, 4.0, keys, 2.0) == [0, 1]
    assert pick("keyframes", times, 4.0, keys, 2.5) == [0, 2]
    assert pick("uniform:2", times, 4.0, keys, 2.0) == [0, 1]
    assert pick("fps:1", times, 4.0, keys, 3.0) == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(0.001, 3.0), min_size=1, max_size=25),
    policy=st.sampled_from(["uniform:1", "uniform:7", "uniform:16", "fps:3", "fps:0.3", "all"]),
    limit=st.none() | st.floats(0.01, 50.0),
)
def test_picks_are_ordered_unique_and_shown_at_their_instants(gaps, policy, limit):
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    end = float(times[-1]) + 0.04
    chosen = pick(policy, times, end, max_seconds=limit)
    assert chosen == sorted(set(chosen))
    assert chosen
    assert chosen[-1] < len(times)
    instants = SamplingPolicy.parse(policy).times(0.0, end, limit)
    if instants is not None:
        last = max(i for i, t in enumerate(times) if limit is None or i == 0 or t < limit)
        shown = {min(max(i for i, t in enumerate(times) if t <= x + 1e-6), last) for x in instants}
        assert set(chosen) == shown
