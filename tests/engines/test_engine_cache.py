"""Kept files are whole and the right ones, or are made again."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from engine_helpers import on_a_full_disk, start_child

from fastdetect.engines.cache import cache_folder, cached, pack, unpack, write_atomic
from fastdetect.errors import EngineError

KEY = {"onnx": "aa", "gpu": "sm_89"}


class Builder:
    def __init__(self, data: bytes) -> None:
        self.data, self.times = data, 0

    def __call__(self) -> bytes:
        self.times += 1
        return self.data


def test_built_once_and_kept_under_its_key(tmp_path: Path) -> None:
    build, said = Builder(b"plan" * 1000), []
    for _ in range(3):
        assert cached("plan", KEY, build, said.append, tmp_path) == build.data
    assert (build.times, said) == (1, [])
    other = Builder(b"other")
    assert cached("plan", KEY | {"gpu": "sm_120"}, other, said.append, tmp_path) == b"other"
    assert cached("plan", KEY, build, said.append, tmp_path) == build.data
    assert (build.times, other.times, len(list(tmp_path.glob("plan-*.bin")))) == (1, 1, 2)


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_a_file_system_without_locks_keeps_files_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", no_locks)
    build = Builder(b"plan")
    assert [cached("plan", KEY, build, print, tmp_path) for _ in range(2)] == [b"plan"] * 2
    assert build.times == 1


def test_a_user_without_a_home_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("FASTDETECT_CACHE", raising=False)
    with pytest.raises(EngineError, match=r"home directory\. Set FASTDETECT_CACHE"):
        cache_folder()
    monkeypatch.setenv("FASTDETECT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: b"", "no file of this cache"),
        (lambda whole: b"\x00" * 64, "no file of this cache"),
        (lambda whole: whole[:-7], "of 4000 bytes"),
        (lambda whole: whole[:60], "header"),
        (lambda whole: whole[:-3] + b"abc", "SHA-256"),
        (lambda whole: pack(b"plan" * 1000, KEY | {"gpu": "sm_86"}), "'sm_86', wanted 'sm_89'"),
        (lambda whole: pack(b"plan" * 1000, {"onnx": "aa"}), "None, wanted 'sm_89'"),
    ],
)
def test_what_is_not_whole_or_foreign_is_said_and_made_again(tmp_path: Path, damage, said: str) -> None:
    build, told = Builder(b"plan" * 1000), []
    cached("plan", KEY, build, told.append, tmp_path)
    (file,) = tmp_path.glob("plan-*.bin")
    file.write_bytes(damage(file.read_bytes()))
    assert cached("plan", KEY, build, told.append, tmp_path) == build.data
    assert build.times == 2
    assert len(told) == 1
    assert said in told[0]
    assert unpack(file.read_bytes(), KEY) == build.data


def test_what_is_whole_but_cannot_be_used_is_said_and_made_again(tmp_path: Path) -> None:
    """A plan that the driver of today refuses."""
    build, told, refused = Builder(b"plan"), [], []

    def check(data: bytes) -> None:
        refused.append(data)
        raise EngineError("the runtime cannot load the engine")

    for _ in range(2):
        assert cached("plan", KEY, build, told.append, tmp_path, check=check) == b"plan"
    assert (build.times, refused) == (2, [b"plan"])  # what was built just now is not asked about here
    assert len(told) == 1
    assert "cannot load the engine; it is made again" in told[0]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise EngineError("the parser refuses it")

    with pytest.raises(EngineError, match="refuses"):
        cached("plan", KEY, fail, print, tmp_path)
    assert list(tmp_path.glob("*.bin")) == []
    assert cached("plan", KEY, Builder(b"x"), print, tmp_path) == b"x"  # and nothing is locked


def test_a_killed_writer_leaves_nothing_under_the_name_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "plan.bin"
    write_atomic(file, b"before")

    def die() -> None:  # with all bytes written, before the rename
        os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
        write_atomic(file, b"half" * 100)

    _, status = os.waitpid(start_child(die), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert file.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2  # what the killed one left
    write_atomic(file, b"after")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"after"]


def test_a_full_disk_is_an_error_that_says_where_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    said = on_a_full_disk(lambda: cached("plan", KEY, Builder(bytes(9000)), print, folder), tmp_path / "said")
    assert said.startswith(f"EngineError cannot write {folder}")
    assert "MiB free" in said
    assert "FASTDETECT_CACHE" in said
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot write"):
        cached("plan", KEY, Builder(b"x"), print, tmp_path / "file" / "cache")


def test_two_processes_build_once(tmp_path: Path) -> None:
    def build() -> bytes:
        with (tmp_path / "builds").open("a") as file:
            file.write("x")
        time.sleep(0.5)
        return b"plan"

    def work() -> None:
        assert cached("plan", KEY, build, print, tmp_path) == b"plan"

    children = [start_child(work) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert (tmp_path / "builds").read_text() == "x"
