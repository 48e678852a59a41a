"""Index files: what they mean, identities of pairs, and every way in which one can be wrong."""

from pathlib import Path

import pytest

from fastdetect.errors import DataError
from fastdetect.evaluation.index import COLUMNS, read_index

ROWS = [
    ("v/a.mp4", "real", "", "anna", "", "validation"),
    ("v/b.mp4", "real", "", "", "", "train"),
    ("v/swap.mp4", "fake", "face swap, GHOST", "ghost:1", "v/a.mp4", "validation"),
    ("v/talk.mp4", "fake", "talking head, SadTalker", "carl", "", "validation"),
]


def write(folder: Path, rows: list[tuple[str, ...]], columns: tuple[str, ...] = COLUMNS) -> Path:
    (folder / "v").mkdir(exist_ok=True)
    for name in ("a", "b", "swap", "talk"):
        (folder / "v" / f"{name}.mp4").touch()
    index = folder / "v" / "index.csv"
    lines = [",".join(f'"{cell}"' for cell in row) for row in (columns, *rows)]
    index.write_text("\n".join(lines), "utf-8")
    return index


def test_reads_types_pairs_and_splits(tmp_path: Path) -> None:
    entries = {entry.name: entry for entry in read_index([write(tmp_path, ROWS)])}
    assert [entries[row[0]].type for row in ROWS] == ["real", "real", "face swap", "talking head"]
    swap = entries["v/swap.mp4"]
    assert (swap.label, swap.manipulation) == (1, "face swap, GHOST")
    assert swap.paired == (tmp_path / "v" / "a.mp4").resolve()
    assert swap.identity == entries["v/a.mp4"].identity  # a fake and its own real are never drawn apart
    assert entries["v/b.mp4"].identity == "v/b.mp4"  # no identity given: the file is its own
    assert entries["v/talk.mp4"].identity == "carl"
    assert [e.name for e in read_index([tmp_path / "v" / "index.csv"], "train")] == ["v/b.mp4"]


def test_paths_may_be_relative_to_the_index_folder(tmp_path: Path) -> None:
    index = write(tmp_path, [("a.mp4", "real", "", "anna", "", "validation")])
    assert read_index([index])[0].path == (tmp_path / "v" / "a.mp4").resolve()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("v/none.mp4", "real", "", "x", "", ""), "v/none.mp4 is neither in"),
        (("v/a.mp4", "genuine", "", "x", "", ""), "label 'genuine'; wanted real or fake"),
        (("v/a.mp4", "fake", "", "x", "", ""), "manipulation is ''"),
        (("v/swap.mp4", "fake", "face swap", "x", "v/none.mp4", ""), "v/none.mp4 is neither in"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_index([write(tmp_path, [row])])


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="listed twice"):
        read_index([write(tmp_path, [ROWS[0], ROWS[0]])])
    with pytest.raises(DataError, match="no column suggested_split"):
        read_index([write(tmp_path, [ROWS[0][:-1]], COLUMNS[:-1])])
    with pytest.raises(DataError, match="no such index"):
        read_index([tmp_path / "missing.csv"])


@pytest.mark.data
def test_the_validation_data(data_root: Path) -> None:
    entries = read_index([data_root / f"videos_{kind}" / "index.csv" for kind in ("real", "fake")], "validation")
    assert sum(e.label == 0 for e in entries) == 29
    assert {e.type for e in entries} == {"real", "face swap", "reenactment", "talking head", "lip sync"}
    assert all(e.identity == {x.path: x for x in entries}[e.paired].identity for e in entries if e.paired)
