"""The harness can fail: what is slow is slow, what is wrong has no time."""

import pytest
import torch
from squares import (
    CEILINGS,
    CPU,
    SHAPE,
    Drifting,
    Squares,
    broken,
    method,
    not_a_number,
    right,
    short,
    slow,
    unwritten,
    wrong,
)

from bench import harness
from bench.memory import extra_bytes


def run(**providers: object) -> dict:
    return harness.measure(Squares(**providers), SHAPE, method(), CEILINGS)  # type: ignore[arg-type]


def test_right_providers_are_timed() -> None:
    case = run(ours=right, eager=right)
    assert harness.problems(case) == []
    for result in case["providers"].values():
        assert result["status"] == "ok"
        assert 0 < result["time_ms"] == result["ms"]["min"] <= result["ms"]["q20"] <= result["ms"]["q80"]
        assert result["rounds"] == 5
    assert case["floor"]["bytes"] == 8000
    assert case["floor"]["ms"] == pytest.approx(8000 / 10e9 * 1e3)
    assert case["floor"]["bound"] == "memory"


def test_slow_provider_is_seen() -> None:
    case = run(ours=slow, eager=right)
    ours, eager = (case["providers"][name]["time_ms"] for name in ("ours", "eager"))
    assert ours > 10 > 5 * eager
    target = case["targets"]["eager"]
    assert not target["met"]
    assert target["got"] == pytest.approx(eager / ours)
    assert run(ours=right, eager=slow)["targets"]["eager"]["met"]


@pytest.mark.parametrize("provider", [wrong, not_a_number, short])
def test_wrong_provider_is_not_timed(provider: object) -> None:
    case = run(ours=right, eager=provider)
    assert case["providers"]["eager"]["status"] == "wrong"
    assert "time_ms" not in case["providers"]["eager"]
    assert "time_ms" in case["providers"]["ours"]
    assert case["targets"] == {}
    (problem,) = harness.problems(case)
    assert "eager wrong" in problem


def test_unwritten_element_of_ours_is_seen() -> None:
    assert run(ours=unwritten)["providers"]["ours"]["status"] == "wrong"
    assert not torch.are_deterministic_algorithms_enabled()


def test_wrong_in_the_middle_loses_its_time() -> None:
    result = run(ours=Drifting())["providers"]["ours"]
    assert result["status"] == "wrong"
    assert "time_ms" not in result
    assert "not after" in result["note"]


def test_changed_inputs_are_seen() -> None:
    def destructive(inputs: dict) -> tuple:
        out = inputs["x"] ** 2
        inputs["x"] += 1
        return (out,)

    case = run(ours=right, eager=destructive)
    assert {result["status"] for result in case["providers"].values()} == {"wrong"}


def test_broken_provider_does_not_stop_the_others() -> None:
    case = run(eager=broken, ours=right)
    assert case["providers"]["eager"] == {"status": "failed", "note": "RuntimeError: no such kernel"}
    assert "time_ms" in case["providers"]["ours"]
    assert len(harness.problems(case)) == 1


def test_provider_that_breaks_late_does_not_stop_the_others() -> None:
    for good_calls in (1, 2, 3, 6):  # after the check, the measurement of memory, the warm-up, in the rounds
        calls = iter(range(100))

        def late(inputs: dict, calls: object = calls, last: int = good_calls) -> tuple:
            return broken(inputs) if next(calls) >= last else right(inputs)  # type: ignore[call-overload]

        case = run(ours=right, eager=late)
        assert case["providers"]["eager"]["status"] == "failed"
        assert "time_ms" not in case["providers"]["eager"]
        assert "time_ms" in case["providers"]["ours"]


def test_ours_must_run() -> None:
    op = Squares(ours=right)
    provider = op.providers(SHAPE, CPU)["ours"]
    skipped = type(provider)(provider.run, 1.0, skip="not built")
    op.providers = lambda shape, device: {"ours": skipped}  # type: ignore[method-assign]
    case = harness.measure(op, SHAPE, method(), CEILINGS)
    assert "not built" in harness.problems(case)[0]


def test_time_under_the_floor_is_a_problem_on_a_gpu() -> None:
    case = run(ours=right)
    case["providers"]["ours"]["graph"] = {"time_ms": case["floor"]["ms"] / 2}
    assert "under the floor" in harness.problems(case)[0]


def test_check_only_times_nothing() -> None:
    case = harness.measure(Squares(ours=right, eager=wrong), SHAPE, method(check_only=True), CEILINGS)
    assert "time_ms" not in case["providers"]["ours"]
    assert case["providers"]["eager"]["status"] == "wrong"


def test_providers_take_turns() -> None:
    calls: list[str] = []

    def note(name: str) -> object:
        return lambda inputs: calls.append(name) or right(inputs)

    op = Squares(ours=note("a"), eager=note("b"), third=note("c"))  # type: ignore[arg-type]
    harness.interleaved(op.providers(SHAPE, CPU), [op.inputs(SHAPE, CPU)], method(rounds=(3, 3)))
    assert "".join(calls[-9:]) == "abc" + "bca" + "cab"


def test_summary() -> None:
    samples = [(float(value), 1.0) for value in (10, 12, 14, 16, 110)]
    low = harness.summary(samples, "min")
    assert (low["time_ms"], low["spread"]) == (10, pytest.approx(0.16))
    middle = harness.summary(samples, "median")
    assert middle["time_ms"] == 14
    assert middle["spread"] == pytest.approx((middle["ms"]["q80"] - 11.6) / 28)


def test_extra_memory() -> None:
    size = 64 << 20
    extra = extra_bytes(lambda: torch.ones(size, dtype=torch.uint8).add_(1).max(), CPU)
    if extra is None:
        pytest.skip("this system does not count resident memory")
    assert 0.95 * size < extra < 1.5 * size
