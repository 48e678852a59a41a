"""Index files: what they mean, identities of pairs, and every way in which one can be wrong."""

from pathlib import Path

import pytest

from fastdetect.data.manifest import Manifest, Sample
from fastdetect.errors import DataError, UsageError
from fastdetect.evaluation.index import COLUMNS, Entry, from_manifest, overlap, read_index, read_videos

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
    assert swap.paired == entries["v/a.mp4"].key
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
        (("v/none.mp4", "real", "", "x", "", ""), "v/none.mp4 is not in .* nor in .*--root"),
        (("v/a.mp4", "genuine", "", "x", "", ""), "label 'genuine'; wanted real or fake"),
        (("v/a.mp4", "fake", "", "x", "", ""), "manipulation is ''"),
        (("v/swap.mp4", "fake", "face swap", "x", "v/none.mp4", ""), "v/none.mp4 is not in"),
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
    index = write(tmp_path, ROWS)
    index.write_bytes(index.read_bytes() + "v/ü.mp4,real,,ü,,test\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not a readable index \(CSV in UTF-8\)"):
        read_videos([str(index)])
    index.write_bytes("file,labél,suggested_split\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"UTF-8"):
        read_videos([str(index)])


def test_data_that_was_moved_is_found_below_the_root(tmp_path: Path) -> None:
    index = write(tmp_path, ROWS)
    Manifest((sample("a", 0, "v/a.mp4"),), tmp_path).write(tmp_path / "m.parquet")
    index = index.rename(tmp_path / "index.csv")
    (tmp_path / "new").mkdir()
    (tmp_path / "v").rename(tmp_path / "new" / "v")
    with pytest.raises(DataError, match="--root"):
        read_videos([str(index)])
    for source in (index, tmp_path / "m.parquet"):
        found = read_videos([str(source)], None, root=tmp_path / "new").entries
        assert all(entry.path.is_file() for entry in found)
    with pytest.raises(UsageError, match=r"--root .*nowhere: no such folder"):
        read_videos([str(index)], root=tmp_path / "nowhere")


def test_one_compression_of_several(tmp_path: Path) -> None:
    rows = tuple(
        sample(f"{kind}{n}", int(kind == "f"), f"{level}/{kind}{n}.mp4", compression=level, identity=f"p{n}")
        for level in ("c23", "c40") for kind in "rf" for n in range(2)
    )  # fmt: skip
    other = sample("o", 0, "o.mp4", dataset="other", identity="q")
    Manifest((*rows, other), tmp_path).write(tmp_path / "m.parquet")
    found = read_videos([str(tmp_path / "m.parquet")], compressions=["c23"])
    assert {entry.compression for entry in found.entries} == {"c23"}
    assert (len(found.entries), len(found.others)) == (4, 5)
    assert found.warnings == ["other has no video of the compression c23: nothing of it is measured"]
    both = read_videos([str(tmp_path / "m.parquet")], compressions=["c23", ""])
    assert (len(both.entries), both.warnings) == (5, [])
    mixed = read_videos([str(tmp_path / "m.parquet")])
    assert mixed.warnings == ["set is measured at 2 compressions mixed (c23, c40): --compression"]
    with pytest.raises(UsageError, match="no video of the compression c22; there are none, c23, c40"):
        read_videos([str(tmp_path / "m.parquet")], compressions=["c23", "c22"])


def test_a_set_without_splits_is_measured_whole_with_a_warning(tmp_path: Path) -> None:
    """FaceForensics++ without its split files: whoever trained on it would be told figures on training videos."""
    touch(tmp_path, "FF/original_sequences/youtube/c23/videos/000.mp4")
    touch(tmp_path, "FF/manipulated_sequences/Deepfakes/c23/videos/000_003.mp4")
    found = read_videos([str(tmp_path / "FF")])
    assert len(found.entries) == 2
    reader, fallback = found.warnings
    assert reader.startswith(f"{tmp_path / 'FF'}: no train.json, val.json and test.json")
    assert fallback.startswith("FaceForensics++ has no test and no validation split: all its 2 videos are measured")
    assert read_videos([str(tmp_path / "FF")], None).warnings == [reader]  # asked for
    Manifest((sample("a", 0, "a.mp4", split="train"),), tmp_path).write(tmp_path / "m.parquet")
    assert "all its 1 videos are measured" in read_videos([str(tmp_path / "m.parquet")]).warnings[0]


def sample(video: str, label: int, path: str, **more) -> Sample:
    return Sample(**{"dataset": "set", "video": video, "label": label, "path": path, "split": "test", **more})


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_samples_of_a_manifest_become_entries(tmp_path: Path) -> None:
    manifest = Manifest(
        (
            sample("000", 0, "o/000.mp4", identity="p0", pair="set/000"),
            sample("000_003", 1, "d/000_003.mp4", identity="p0", pair="set/000", source_identity="p3", sha256="ab",
                   manipulation="swap", method="Deepfakes"),
            sample("u", 1, "u.mp4", manipulation="a, b"),
            sample("unknown", 0, "x.mp4").model_copy(update={"label": None}),
        ),
        tmp_path,
    )  # fmt: skip
    real, fake, odd = from_manifest(manifest)
    assert (real.manipulation, fake.manipulation, odd.manipulation) == ("real", "swap, Deepfakes", "a; b")
    assert fake.paired == real.key == "set/real/test/-/-/000"
    assert (fake.type, fake.split, fake.sha256, fake.dataset) == ("swap", "test", "ab", "set")
    assert fake.path == tmp_path / "d/000_003.mp4"
    assert odd.identity == odd.key  # nobody named: its own


def test_manifests_indices_and_data_sets_in_one_run(tmp_path: Path) -> None:
    touch(tmp_path, "lab/real/a.mp4", "lab/fake/b.mp4", "m/c.mp4", "m/d.mp4")
    rows = (sample("c", 0, "m/c.mp4", split="val"), sample("d", 1, "m/d.mp4", split="train"))
    Manifest(rows, tmp_path).write(tmp_path / "m.parquet")
    index = write(tmp_path, ROWS)
    sources = [str(tmp_path / "lab"), str(tmp_path / "m.parquet"), f"mine={index}"]
    found = read_videos(sources)
    by_set = {name: [e.name for e in found.entries if e.dataset == name] for name in ("lab", "set", "mine")}
    assert len(by_set["lab"]) == 2  # no split at all: everything
    assert by_set["set"] == ["set/real/val/-/-/c"]  # no test split: the validation split
    assert len(by_set["mine"]) == 3
    assert len(read_videos(sources, None).entries) == 8
    with pytest.raises(UsageError, match="no video of the split 'test'; there are no split, train, val, validation"):
        read_videos(sources, "test")
    with pytest.raises(UsageError, match="nothing to measure"):
        read_videos([])
    with pytest.raises(DataError, match="listed twice"):
        read_videos([str(index), str(index)])
    with pytest.raises(DataError, match="no such folder or file"):
        read_videos([str(tmp_path / "none.parquet")])


def test_videos_that_were_trained_on_are_refused_and_persons_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    common = {"identity": "p1", "sha256": "11"}
    copied = Manifest((sample("a", 0, "a.mp4", **common), sample("b", 0, "b.mp4", split="train", **common)), tmp_path)
    copied.write(tmp_path / "copied.parquet")
    with pytest.raises(DataError, match="1 of 1 videos to measure are also in the training split, such as set/real"):
        read_videos([str(tmp_path / "copied.parquet")])
    rows = (
        sample("a", 0, "a.mp4", identity="p1"),
        sample("b", 1, "b.mp4", identity="p2", source_identity="p1", split="train"),
        sample("c", 0, "c.mp4", identity="p3"),
    )
    Manifest(rows, tmp_path).write(tmp_path / "persons.parquet")
    found = read_videos([str(tmp_path / "persons.parquet")])
    assert [e.name.rpartition("/")[2] for e in found.entries] == ["a", "c"]
    assert found.warnings == ["p1 is also in the training split: figures on them are too good"]
    many = [Entry(Path(f"y{i}"), f"y{i}", 0, "real", f"p{i}") for i in (1, 3)]
    assert overlap(many, found.entries)[0].startswith("2 persons, such as p1, are also")
    apart = [Entry(Path("x"), "x", 0, "real", "p9")]
    assert overlap(apart, found.entries) == []
    with pytest.raises(DataError, match="also in the training split"):
        overlap(found.entries, found.entries[:1])


@pytest.mark.data
def test_the_validation_data(data_root: Path) -> None:
    entries = read_index([data_root / f"videos_{kind}" / "index.csv" for kind in ("real", "fake")], "validation")
    assert sum(e.label == 0 for e in entries) == 29
    assert {e.type for e in entries} == {"real", "face swap", "reenactment", "talking head", "lip sync"}
    assert all(e.identity == {x.key: x for x in entries}[e.paired].identity for e in entries if e.paired)
