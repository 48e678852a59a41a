"""A real `fastdetect screen` process that is stopped in every way, and taken up again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from screen_clips import write_clip

from fastdetect.screening import pipeline
from fastdetect.screening.config import load_config
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.model import Model
from fastdetect.screening.pipeline import Screener

FILES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, face_frames: Callable[..., list[np.ndarray]]) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(FILES):
        write_clip(folder / f"clip{i}.mp4", face_frames(25 + i))
    return folder


def start(folder: Path, out: Path, model: Path, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "fastdetect",
        "screen",
        str(folder),
        "-o",
        str(out),
        "--model",
        str(model),
    ]
    options = ("--workers", "1", "--precision", "fp32", "--set", "detection.side=192", *options)
    # Its own process group, as a terminal gives it: so the signal of Ctrl-C reaches the workers too.
    return subprocess.Popen(
        [*command, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_rows(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = out / "results.jsonl"
        if path.is_file() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} rows: {process.communicate() if process.poll() is not None else 'time is up'}")


def rows(out: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    named = {line["path"]: line for line in lines}
    assert len(named) == len(lines), "a file has two rows"
    return named


def test_after_kill_9_nothing_is_lost_and_nothing_twice(folder: Path, tmp_path: Path, model_folder: Path) -> None:
    out = tmp_path / "out"
    process = start(folder, out, model_folder)
    wait_for_rows(out, 2, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    before = (out / "results.jsonl").read_bytes()
    done = before.count(b"\n")
    assert 2 <= done < FILES
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "a worker outlived its run"
    with (out / "results.jsonl").open("ab") as file:  # a kill in the middle of a write
        file.write(b'{"schema_version":1,"path":"/half')

    again = start(folder, out, model_folder, "--resume")
    _, messages = again.communicate(timeout=200)
    assert again.returncode in (0, 1), messages
    assert sorted(rows(out)) == sorted(str(path) for path in folder.iterdir())
    assert (out / "results.jsonl").read_bytes().startswith(before)
    run = json.loads((out / "run.json").read_text())
    assert (run["files"], run["files_this_run"]) == (FILES, FILES - done)

    fresh = start(folder, tmp_path / "fresh", model_folder)
    fresh.communicate(timeout=200)
    one, other = rows(out), rows(tmp_path / "fresh")
    assert [one[p]["margin"] for p in sorted(one)] == [other[p]["margin"] for p in sorted(one)]


@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "process"])  # timeout(1) signals the group
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_its_files_written(
    folder: Path, tmp_path: Path, model_folder: Path, number: signal.Signals, whole_group: bool
) -> None:
    out = tmp_path / "out"
    process = start(folder, out, model_folder)
    wait_for_rows(out, 1, process)
    os.killpg(process.pid, number) if whole_group else process.send_signal(number)
    shown, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "--resume" in shown
    assert "Traceback" not in messages
    run = json.loads((out / "run.json").read_text())
    assert run["interrupted"]
    assert 1 <= len(rows(out)) == run["files"] < FILES
    assert {row["status"] for row in rows(out).values()} == {"ok"}, "the signal became a file's row"
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_workers_start_is_no_error(
    folder: Path, tmp_path: Path, model_folder: Path, number: signal.Signals
) -> None:
    process = start(folder, tmp_path / "out", model_folder)
    while not psutil.Process(process.pid).children() and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, number)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "Traceback" not in messages
    # The first child may be another's than the workers', and then no file is there yet.
    assert not (tmp_path / "out" / "results.jsonl").exists() or rows(tmp_path / "out") == {}


EARLY = """
import os, sys
from fastdetect import cli
from fastdetect.screening import inputs

inputs.expand_inputs = lambda *_, **__: exec("os.kill(os.getpid(), {number})")
sys.argv = ["fastdetect", "screen", "x.mp4"]
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_model_is_loaded_is_one_line(number: signal.Signals) -> None:
    code = EARLY.format(number=int(number))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (130, "", 1), ended.stderr
    assert "--resume" in ended.stderr


def test_what_comes_after_the_stop_is_no_row(folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_IDLE_S", 60.0)  # so that it waits for the first file while it is stopped
    config = load_config(options={"model": str(model_folder), "precision": "fp32", "workers": 1, "media": False})
    stop = threading.Event()
    with Model.load(config) as model:
        threading.Timer(0.1, stop.set).start()  # a worker takes longer to start
        assert list(Screener(model, config, media=None).screen(expand_inputs([folder]), stop)) == []
