"""compare finds a planted regression, and no other."""

import copy
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench import compare, harness, records
from bench.__main__ import main
from fastdetect.errors import UsageError


def results(device: str = "cpu", ours: float = 2.0, eager: float = 10.0, extra: float = 8.0) -> dict:
    """A results file with one case, its samples 1 % apart."""

    def provider(ms: float) -> dict:
        times = [(ms * (1 + 0.01 * i), 1.0) for i in range(5)]
        summary = harness.summary(times, "median" if device == "cuda" else "min")
        return {"status": "ok", "error": 1e-7, "tolerance": 1e-5, "extra_mb": extra, **summary}

    case = {
        "op": "squares", "title": "Squares", "case": "N=1000", "shape": {"N": 1000}, "axis": "N", "regime": "toy",
        "baseline": "eager", "providers": {"ours": provider(ours), "eager": provider(eager)}, "targets": {},
        "floor": {"ms": 1.0, "bound": "memory", "bytes": 1e6, "flops": 0.0, "formula": "once"},
    }  # fmt: skip
    block = {"commit": "abc", "date": "2026-01-01", "versions": {"torch": "2.15"}, "threads": 2, "load": 0.1}
    machine = {
        "name": "toy", "device": device, "cpu": "toy", "cores": 2, "cpu_capability": "AVX2", "memory_gb": 4,
    }  # fmt: skip
    block |= {"ceilings": {"copy_gbps": 10.0}, "cases": [case]}
    return {"schema": records.SCHEMA, "machine": machine, "suites": {"ops": block}}


def outcome(a: dict, b: dict) -> int:
    return compare.show(*compare.compare(a, b), Console(quiet=True))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_planted_regression(device: str) -> None:
    before = results(device)
    assert outcome(before, results(device)) == 0
    assert outcome(before, results(device, ours=2.1)) == 0  # 5 %, and the spread on top
    assert outcome(before, results(device, ours=2.4)) == 1
    assert outcome(before, results(device, ours=1.5)) == 0
    (change,) = compare.compare(before, results(device, ours=2.4))[0]
    assert change.factor == pytest.approx(1.2)
    assert 1.05 < change.allowed < 1.12


def test_slower_machine_is_no_regression_on_a_cpu() -> None:
    assert outcome(results(), results(ours=6.0, eager=30.0)) == 0
    assert outcome(results("cuda"), results("cuda", ours=6.0, eager=30.0)) == 1


def test_wide_spread_allows_more() -> None:
    after = results("cuda", ours=2.4)
    after["suites"]["ops"]["cases"][0]["providers"]["ours"]["spread"] = 0.3
    assert outcome(results("cuda"), after) == 0


def test_memory_regression() -> None:
    assert outcome(results(), results(extra=8.9)) == 0  # under a megabyte
    assert outcome(results(), results(extra=12.0)) == 1
    assert outcome(results(extra=12.0), results()) == 0


def test_graph_times_are_compared() -> None:
    a, b = results("cuda"), results("cuda")
    for data, ms in ((a, 1.0), (b, 1.3)):
        data["suites"]["ops"]["cases"][0]["providers"]["ours"]["graph"] = {"time_ms": ms, "spread": 0.0}
    assert outcome(a, b) == 1


def test_lost_cases() -> None:
    wrong = results()
    wrong["suites"]["ops"]["cases"][0]["providers"]["ours"] = {"status": "wrong", "note": "error 1"}
    assert outcome(results(), wrong) == 1
    gone = results()
    gone["suites"]["ops"]["cases"] = []
    assert compare.compare(results(), gone) == ([], ["ops squares N=1000: gone"])
    other = copy.deepcopy(results())
    other["suites"] = {"train": other["suites"]["ops"]}  # a suite that was not run is not lost
    with pytest.raises(UsageError, match="no case in common"):
        compare.compare(results(), other)


def test_other_machine() -> None:
    other = results()
    other["machine"]["name"] = "another"
    with pytest.raises(UsageError, match="another"):
        compare.compare(results(), other)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in {"a": results(), "b": results(ours=3.0)}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert main(["compare", a, a]) == 0
    assert main(["compare", a, b]) == 1
    assert "1 regressions" in capsys.readouterr().out
    (tmp_path / "old.json").write_text('{"cores": 2}')
    assert main(["compare", a, str(tmp_path / "old.json")]) == 3
    assert "schema" in capsys.readouterr().out
    assert main(["table", a]) == 0
    assert "squares N=1000" in capsys.readouterr().out
