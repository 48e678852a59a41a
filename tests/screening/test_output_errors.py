"""A real `fastdetect` process whose results or whose words cannot be written."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def call(*args: str | Path, **streams: int) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run([sys.executable, "-m", "fastdetect", *map(str, args)], text=True, timeout=200, **streams)


@pytest.fixture
def command(clip: Path, model_folder: Path, tmp_path: Path) -> list[str | Path]:
    """A screening of one file that nothing is found in: its exit code is 0."""
    options = "--workers 1 --precision fp32 --threshold-suspicious 1 --threshold-manipulated 1 --set detection.side=192"
    return ["screen", clip, "-o", tmp_path / "out", "--model", model_folder, *options.split()]


@pytest.fixture
def left() -> Iterator[int]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize(("name", "said"), [("media", "Not a directory"), ("report.html", "Is a directory")])
def test_what_cannot_be_written_is_one_line_and_exit_code_3(
    command: list[str | Path], tmp_path: Path, name: str, said: str
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir()
    path.touch() if name == "media" else path.mkdir()
    ended = call(*command)
    line = ended.stderr.splitlines()[-1]
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    assert line.startswith(f"fastdetect: cannot write {path}")
    assert said in line
    assert "--resume" in line

    path.unlink() if name == "media" else path.rmdir()
    again = call(*command, "--resume")
    assert again.returncode == 0, again.stderr
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1


def test_the_configuration_in_the_way_is_said_before_anything_is_screened(
    command: list[str | Path], tmp_path: Path
) -> None:
    (tmp_path / "out" / "config.yaml").mkdir(parents=True)
    ended = call(*command)
    assert (ended.returncode, ended.stderr.count("\n")) == (3, 1), ended.stderr
    assert "config.yaml: Is a directory" in ended.stderr


def test_a_reader_that_leaves_changes_no_exit_code(command: list[str | Path], tmp_path: Path, left: int) -> None:
    assert call(*command, stdout=left, stderr=left).returncode == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["exit_code"] == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_full_standard_output_changes_no_exit_code(command: list[str | Path]) -> None:
    with open("/dev/full", "w") as full:
        ended = call(*command, stdout=full.fileno())
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_doctor_answers_also_where_nobody_reads(left: int) -> None:
    ended = call("doctor")
    assert ended.returncode == 0, ended.stdout
    assert call("doctor", stdout=left).returncode == 0
    with open("/dev/full", "w") as full:
        assert call("doctor", stdout=full.fileno()).returncode == 0


def test_what_the_terminals_encoding_lacks_is_escaped(
    clip: Path, command: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tmp_path / "na\u00efve \u2013 \u4e2d.mp4"
    name.write_bytes(clip.read_bytes())
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = call(command[0], name, tmp_path / "gone.mp4", *command[2:])  # the latter's score is a dash
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "\\u2013" in ended.stdout


def test_closed_standard_streams_are_no_place_for_results(command: list[str | Path], tmp_path: Path) -> None:
    # A worker's standard output is the command's standard error: it must not be results.jsonl.
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif '-c' in sys.argv[:1]: os.write(1, b'a word\\n')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    line = ["env", f"PYTHONPATH={path}", sys.executable, "-m", "fastdetect", *map(str, command)]
    ended = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *line], timeout=200)
    assert ended.returncode == 0
    rows = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(row)["status"] for row in rows] == ["ok"]
