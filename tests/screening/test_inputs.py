"""What a user can name on the command line, and what becomes of it."""

import os
from pathlib import Path

import numpy as np
import pytest
from screen_clips import write_clip

from fastdetect.errors import UsageError
from fastdetect.screening.inputs import MEDIA_EXTENSIONS, expand_inputs
from fastdetect.video import probe


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.mp4",
        "a.MOV",
        "sub/c.webm",
        "sub/face.jpg",
        "notes.txt",
        "LICENSE",
        ".hidden.mp4",
        ".git/d.mp4",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(tree: Path, *inputs: str | Path, shard: str | None = None) -> list[str]:
    return [str(entry.path.relative_to(tree)) for entry in expand_inputs(inputs, shard=shard)]


def test_a_folder_gives_its_media_files_sorted_and_no_other(tree: Path) -> None:
    assert names(tree, tree) == ["a.MOV", "b.mp4", "sub/c.webm", "sub/face.jpg"]


def test_a_named_file_is_taken_whatever_its_extension(tree: Path) -> None:
    assert names(tree, tree / "notes.txt", tree / ".hidden.mp4") == ["notes.txt", ".hidden.mp4"]


def test_each_file_once_in_the_order_of_first_mention(tree: Path) -> None:
    assert names(tree, tree / "sub" / "c.webm", tree, tree / "sub/../b.mp4") == [
        "sub/c.webm", "a.MOV", "b.mp4", "sub/face.jpg",
    ]  # fmt: skip


def test_names_are_as_given_and_paths_absolute(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    (entry, *_), (single,) = expand_inputs(["sub"]), expand_inputs(["b.mp4"])
    assert (entry.name, entry.path) == ("sub/c.webm", tree / "sub" / "c.webm")
    assert (single.name, single.path) == ("b.mp4", tree / "b.mp4")


def test_globs_match_files_and_folders(tree: Path) -> None:
    assert names(tree, tree / "*.mp4") == ["b.mp4"]
    assert names(tree, tree / "su*") == ["sub/c.webm", "sub/face.jpg"]
    assert names(tree, f"{tree}/**/*.webm") == ["sub/c.webm"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tree: Path) -> None:
    (tree / "x[1].mp4").touch()
    (tree / "x1.mp4").touch()
    assert names(tree, tree / "x[1].mp4") == ["x[1].mp4"]


def test_list_file_is_relative_to_itself_and_may_have_comments(tree: Path) -> None:
    (tree / "sub" / "list.txt").write_text("# mine\n\nc.webm\n../b.mp4\ngone.mp4\n")
    assert names(tree, f"@{tree}/sub/list.txt") == ["sub/c.webm", "b.mp4", "sub/gone.mp4"]


def test_a_missing_file_is_kept_so_that_its_row_can_say_so(tree: Path) -> None:
    assert names(tree, tree / "gone.mp4") == ["gone.mp4"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_are_disjoint_complete_and_even(tree: Path, count: int) -> None:
    parts = [names(tree, tree, shard=f"{i}/{count}") for i in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == names(tree, tree)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_bad_shard_is_a_usage_error(tree: Path, shard: str) -> None:
    with pytest.raises(UsageError, match="shard"):
        expand_inputs([tree], shard=shard)


@pytest.mark.parametrize("bad", ["https://example.org/a.mp4", "/nowhere/*.mp4", "@/nowhere/list.txt"])
def test_what_cannot_name_a_file_is_a_usage_error(bad: str) -> None:
    with pytest.raises(UsageError):
        expand_inputs([bad])


def test_a_name_in_a_list_may_hold_what_unicode_calls_a_line_break(tree: Path) -> None:
    odd = ["a\u2028b.mp4", "c\x0cd.mp4", "e\x85f.mp4"]
    (tree / "list.txt").write_bytes("\r\n".join(odd).encode())
    assert names(tree, f"@{tree}/list.txt") == odd


def test_a_list_that_is_no_text_is_a_usage_error(tree: Path) -> None:
    (tree / "list.txt").write_bytes(b"a.MOV\nsub\0/c.webm\n")
    with pytest.raises(UsageError, match="zero byte"):
        expand_inputs([f"@{tree}/list.txt"])


def test_pictures_of_an_earlier_run_are_no_inputs(tree: Path) -> None:
    before = names(tree, tree)
    for name in ("out/media/0123456789abcdef/track0.jpg", "out/media/mine.jpg"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    wanted = sorted([*before, "out/media/mine.jpg"])
    for given in (tree, f"{tree}/**/*.*"):
        found = expand_inputs([given], output=tree / "out")
        assert sorted(str(entry.path.relative_to(tree)) for entry in found if entry.path.suffix != ".txt") == wanted
    assert len(expand_inputs([tree])) == len(wanted) + 1


def test_an_empty_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no media file"):
        expand_inputs([tmp_path])


def test_what_a_folder_holds_beside_media_is_counted(tree: Path) -> None:
    for name in ("a.xyz", "sub/B.XYZ"):
        (tree / name).touch()
    (tree / "empty").mkdir()
    assert expand_inputs([tree, tree / "LICENSE"]).warnings == [
        "3 other file(s) left out: .xyz (2), .txt (1); name a file to screen it all the same"
    ]
    assert expand_inputs([tree / "b.mp4", tree / "empty"]).warnings == [f"no media file in {tree / 'empty'}"]
    assert expand_inputs([tree / "sub" / "face.jpg"]).warnings == []
    (tree / "empty" / "x").touch()
    with pytest.raises(UsageError, match=r"empty; 1 other file\(s\) left out: no extension \(1\)"):
        expand_inputs([tree / "empty"])


def test_a_glob_gives_names_as_the_user_wrote_them(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert [(entry.name, entry.path) for entry in expand_inputs(["s*/*.webm", "su*"])] == [
        ("sub/c.webm", tree / "sub" / "c.webm"), ("sub/face.jpg", tree / "sub" / "face.jpg"),
    ]  # fmt: skip
    (tree / "sub" / "list.txt").write_text("../*.mp4\n")
    (entry,) = expand_inputs(["@sub/list.txt"])
    assert (entry.name, entry.path) == ("../b.mp4", tree / "b.mp4")


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("a.divx", "avi", "mpeg4"),
        ("a.qt", "mov", "mpeg4"),
        ("a.insv", "mp4", "mpeg4"),
        ("a.3gpp", "3gp", "mpeg4"),
        ("a.mk3d", "matroska", "mpeg4"),
        ("a.m1v", "mpeg1video", "mpeg1video"),
        ("a.mpe", "mpeg", "mpeg1video"),
        ("a.m2t", "mpegts", "mpeg2video"),
        ("a.wtv", "wtv", "mpeg2video"),
        ("a.rm", "rm", "rv20"),
    ],
)
def test_a_rare_extension_is_taken_and_its_file_decodes(tmp_path: Path, name: str, container: str, codec: str) -> None:
    write_clip(
        tmp_path / name, [np.full((144, 176, 3), 20 * i, np.uint8) for i in range(8)], codec=codec, kind=container
    )
    (entry,) = expand_inputs([tmp_path])
    assert probe(entry.path).codec == codec


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_not_skipped_in_silence(tree: Path) -> None:
    (tree / "sub").chmod(0)
    try:
        assert "sub" in names(tree, tree)
    finally:
        (tree / "sub").chmod(0o755)


def test_linked_folders_cannot_make_a_loop(tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    assert names(tree, tree) == ["a.MOV", "b.mp4", "sub/c.webm", "sub/face.jpg"]


def test_extensions_are_lower_case_with_a_dot() -> None:
    assert all(e.startswith(".") and e == e.lower() for e in MEDIA_EXTENSIONS)
    assert {".mp4", ".mkv", ".mpg", ".jpg"} <= MEDIA_EXTENSIONS


def test_a_byte_order_mark_is_no_part_of_a_lists_first_name(tree: Path) -> None:
    (tree / "list.txt").write_text("b.mp4\na.MOV\n", "utf-8-sig")
    assert names(tree, f"@{tree}/list.txt") == ["b.mp4", "a.MOV"]
