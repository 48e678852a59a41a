"""Worker processes under real crashes, hangs and memory hogs."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from fastdetect.errors import FastdetectError, MediaError, UsageError
from fastdetect.reasons import Reason
from fastdetect.video.worker import WorkerLimits, WorkerPool

HERE = str(Path(__file__).parent)
JOBS = "misbehaving_jobs:run"
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("jobs_on_path")]


@pytest.fixture
def jobs_on_path(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def outcome(pool, job):
    (result,) = pool.map([job])
    return result


def children():
    return [p for p in psutil.Process().children(recursive=True) if "fastdetect.video.worker" in " ".join(p.cmdline())]


def test_results_of_all_jobs_in_any_order():
    with WorkerPool(JOBS, workers=2) as pool:
        results = list(pool.map(("double", i) for i in range(50)))
    assert sorted(r.value for r in results) == [2 * i for i in range(50)]
    assert all(r.error is None and r.value == 2 * r.job[1] for r in results)
    assert sorted(r.id for r in results) == list(range(50))
    assert children() == []


def test_completion_order_not_submission_order():
    with WorkerPool(JOBS, workers=2) as pool:
        pool.submit(("nap", 1.0))
        pool.submit(("nap", 0.01))
        assert [r.id for r in pool.results()] == [1, 0]


CRASHES = {
    ("signal_itself", int(signal.SIGSEGV)): "SIGSEGV",
    ("signal_itself", int(signal.SIGKILL)): "SIGKILL",
    ("signal_itself", int(signal.SIGABRT)): "SIGABRT",
    ("read_null", 0): "SIGSEGV",
    ("hog_in_c", 2**31): "SIGSEGV",
    ("leave", 7): "exit code 7",
    ("hog", 2**31): "out of memory",
    ("fail", "odd thing"): "ValueError: odd thing",
    ("unpicklable", 0): "pickle",
    ("open_files", 500): "Too many open files",
}


def test_each_crash_costs_one_job_and_names_its_cause_and_the_others_keep_their_bits():
    limits = WorkerLimits(memory_bytes=2**30, open_files=128)
    jobs = [job for i, crash in enumerate(CRASHES) for job in (("noise", i), crash)]
    with WorkerPool(JOBS, workers=2, limits=limits) as pool:
        results = {r.job: r for r in pool.map(jobs)}
    assert len(results) == len(jobs)
    for crash, said in CRASHES.items():
        error = results[crash].error
        assert isinstance(error, MediaError), crash
        assert error.reason == Reason.CRASH
        assert said in str(error), crash
    for i in range(len(CRASHES)):
        expected = np.random.default_rng(i).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
        np.testing.assert_array_equal(results["noise", i].value, expected)


@pytest.mark.parametrize(
    ("job", "limits", "said"),
    [
        (("nap", 60), WorkerLimits(timeout_s=1.0), "1 s of wall-clock"),
        (("signal_itself", signal.SIGSTOP), WorkerLimits(timeout_s=1.0), "1 s of wall-clock"),
        (("spin", 0), WorkerLimits(timeout_s=60.0, cpu_s=0.5), "0.5 s of CPU"),
    ],
    ids=["hang", "stopped", "cpu"],
)
def test_a_hang_ends_in_time_and_costs_one_job(job, limits, said):
    with WorkerPool(JOBS, workers=2, limits=limits) as pool:
        begin = time.monotonic()
        results = {r.id: r for r in pool.map([("double", 1), job, ("double", 2), ("double", 3)])}
        assert time.monotonic() - begin < 30
    assert [results[i].value for i in (0, 2, 3)] == [2, 4, 6]
    assert results[1].error.reason == Reason.TIMEOUT
    assert said in str(results[1].error)


def test_typed_errors_pass_through():
    with WorkerPool(JOBS) as pool:
        error = outcome(pool, ("refuse", "no such codec")).error
    assert isinstance(error, MediaError)
    assert (error.reason, str(error)) == (Reason.UNSUPPORTED_CODEC, "no such codec")


def test_a_worker_is_kept_until_it_fails():
    with WorkerPool(JOBS) as pool:
        first, same = outcome(pool, ("where", 0)).value, outcome(pool, ("where", 0)).value
        outcome(pool, ("fail", "an exception is no reason to start afresh"))
        after_error = outcome(pool, ("where", 0)).value
        outcome(pool, ("read_null", 0))
        after_crash = outcome(pool, ("where", 0)).value
    assert first == same == after_error != after_crash


def test_a_worker_that_dies_idle_is_replaced_without_a_loss():
    with WorkerPool(JOBS) as pool:
        before = outcome(pool, ("where", 0)).value
        os.kill(before, signal.SIGKILL)
        time.sleep(0.5)
        assert outcome(pool, ("where", 0)).value != before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_stops_the_parent_is_no_workers_business_from_its_first_moment(number):
    with WorkerPool(JOBS) as pool:
        while not (started := children()):
            time.sleep(0.002)
        started[0].send_signal(number)
        assert outcome(pool, ("where", 0)).value == started[0].pid
        assert outcome(pool, ("signal_and_go_on", number)).value == started[0].pid
    assert children() == []


def test_limits_and_environment_reach_the_worker():
    limits = WorkerLimits(memory_bytes=3 * 2**30, address_space_bytes=9 * 2**30, open_files=99)
    with WorkerPool(JOBS, limits=limits, env={"FASTDETECT_TEST": "yes"}) as pool:
        got = outcome(pool, ("settings", 0)).value
    assert (got["core"], got["data"], got["as"], got["files"]) == (0, 3 * 2**30, 9 * 2**30, 99)
    assert (got["no_new_privs"], got["interrupt"], got["environment"]) == (1, True, "yes")
    assert got["main"] is None  # the program's own script is not run again in a worker


def test_classes_are_set_up_once_and_functions_take_options():
    with WorkerPool("misbehaving_jobs:Counter", init_args={"start": 10}) as pool:
        assert [r.value for r in pool.map([1, 1, 1])] == [11, 12, 13]
    with WorkerPool("misbehaving_jobs:with_options", init_args={"factor": 3}) as pool:
        assert outcome(pool, 5).value == 15


def test_a_worker_that_is_killed_while_it_starts_is_tried_again(tmp_path):
    for name in "ab":
        (tmp_path / name).touch()
    with WorkerPool("misbehaving_jobs:Stumbling", init_args={"folder": str(tmp_path)}) as pool:
        assert [result.value for result in pool.map([1, 2, 3])] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "args", "limits", "said"),
    [
        ("no_such_module:run", {}, None, "no_such_module"),
        ("misbehaving_jobs:none", {}, None, "none"),
        ("misbehaving_jobs:Counter", {"fault": "raise"}, None, "no model here"),
        ("misbehaving_jobs:Counter", {"fault": "crash"}, None, "SIGSEGV"),
        ("misbehaving_jobs:Counter", {"fault": "hang"}, WorkerLimits(start_timeout_s=2.0), "within 2 s"),
    ],
)
def test_workers_that_cannot_start_end_the_run_with_the_cause(function, args, limits, said):
    with (
        WorkerPool(function, workers=2, init_args=args, limits=limits) as pool,
        pytest.raises(FastdetectError, match=said),
    ):
        list(pool.map([1, 2, 3]))
    assert children() == []


@pytest.mark.parametrize("bad", ["module", "module:", ":name", "a:b:c"])
def test_wrong_names_are_usage_errors(bad):
    with pytest.raises(UsageError, match="module:callable"):
        WorkerPool(bad)


def test_wrong_numbers_and_jobs_are_usage_errors():
    with pytest.raises(UsageError, match="workers"):
        WorkerPool(JOBS, workers=0)
    with WorkerPool(JOBS) as pool:
        with pytest.raises(UsageError, match="picklable"):
            pool.submit(lambda: 0)
        assert outcome(pool, ("double", 2)).value == 4
    with pytest.raises(UsageError, match="closed"):
        pool.submit(("double", 1))


def test_a_slow_reader_holds_the_workers_back():
    taken = []

    def jobs():
        for i in range(100):
            taken.append(i)
            yield ("double", i)

    with WorkerPool(JOBS, workers=2, max_in_flight=4) as pool:
        results = pool.map(jobs())
        for done in range(1, 11):
            next(results)
            time.sleep(0.02)
            assert len(taken) <= done + 5
            assert len(pool._done) + pool._running <= 4


def test_submitting_far_ahead_neither_blocks_nor_piles_up_results():
    with WorkerPool(JOBS, workers=2, max_in_flight=3) as pool:
        for i in range(300):
            pool.submit(("double", i))
        time.sleep(1.0)
        assert len(pool._done) + pool._running <= 3
        assert sum(r.value for r in pool.results()) == sum(2 * i for i in range(300))


def test_results_too_long_are_refused():
    with WorkerPool(JOBS, limits=WorkerLimits(max_result_bytes=10_000)) as pool:
        error = outcome(pool, ("noise", 0)).error
        assert error.reason == Reason.CRASH
        assert outcome(pool, ("double", 1)).value == 2


def test_prints_do_not_reach_standard_output(capfd):
    with WorkerPool(JOBS) as pool:
        outcome(pool, ("shout", "hello from a worker"))
    assert capfd.readouterr().out == ""


def test_closing_drops_running_jobs_at_once_and_leaves_nothing(recwarn):
    before = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    pool = WorkerPool(JOBS, workers=2)
    pool.submit(("nap", 60))
    pool.submit(("spin", 0))
    time.sleep(1.5)
    assert len(children()) == 2
    begin = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - begin < 5
    assert children() == []
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads


PARENT = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    sys.path.insert(0, {here!r})
    from fastdetect.video.worker import WorkerPool
    pool = WorkerPool("misbehaving_jobs:run", workers=2)
    print(*[r.value for r in pool.map([("where", 0), ("nap", 0.3), ("where", 0)])], flush=True)
    with pool:
        for _ in pool.map([("spin", 0), ("nap", 60)]):
            pass
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_die_with_their_parent(number):
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT).format(here=HERE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) == 2
    time.sleep(0.3)
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=20)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert b"leaked" not in errors
    if number == signal.SIGINT:
        assert b"KeyboardInterrupt" in errors


def test_a_media_error_survives_the_trip():
    error = pickle.loads(pickle.dumps(MediaError(Reason.TIMEOUT, "late"), protocol=5))
    assert (error.reason, str(error)) == (Reason.TIMEOUT, "late")
