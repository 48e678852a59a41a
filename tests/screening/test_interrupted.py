"""A real `fastdetect screen` process that is stopped in every way, and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from screen_clips import write_clip

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_its_files_written(
    folder: Path, tmp_path: Path, model_folder: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = start(folder, out, model_folder)
    wait_for_rows(out, 1, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    shown, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "--resume" in shown
    assert "Traceback" not in messages
    run = json.loads((out / "run.json").read_text())
    assert run["interrupted"]
    assert 1 <= len(rows(out)) == run["files"] < FILES
    assert (out / "report.html").is_file()
