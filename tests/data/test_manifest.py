"""The manifest: what is written is read, keys tell apart what names do not, every leak and contradiction is found."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dataset_trees import touch

from fastdetect.data import face_pack
from fastdetect.data.manifest import SCHEMA, Manifest, Sample, check, concat, new_sample, read_manifest
from fastdetect.errors import DataError
from fastdetect.evaluation.index import read_index


def sample(video: str, label: int | None = 0, **fields) -> Sample:
    told = {"dataset": "set", "path": f"{video}.mp4"} | fields
    return Sample(video=video, label=label, **told)


def kinds(manifest: Manifest) -> dict[str, str]:
    return {p.kind: p.key for p in check(manifest)}


@pytest.fixture
def full() -> Sample:
    return Sample(
        dataset="FaceForensics++", video="000_003", path="a b/ü.mp4", label=1, manipulation="swap", method="Deepfakes",
        split="train", compression="c23", container="zip", member="x/000_003.mp4", frames=("0.png", "1.png"),
        masks=("m.png",), cropped=True, identity="ffpp:000", source_identity="ffpp:003", target_identity="ffpp:000",
        pair="FaceForensics++/c23/000", sha256="ab", bytes=12, duration_s=1.5, width=4, height=6, frame_count=30,
    )  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path, full: Sample) -> None:
    assert full.model_fields_set == set(Sample.model_fields)  # every field is put to the test
    manifest = Manifest((full, sample("x", None)), tmp_path)
    manifest.write(tmp_path / "new folder" / "m.parquet")
    back = read_manifest(tmp_path / "new folder" / "m.parquet")
    assert back.samples == manifest.samples
    assert back.root == tmp_path
    assert read_manifest(tmp_path / "new folder" / "m.parquet", "/moved").locate("v.mp4") == Path("/moved/v.mp4")
    assert not list(tmp_path.rglob("*.partial"))


def test_other_files_and_versions_are_refused(tmp_path: Path, full: Sample) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(DataError, match="data index"):
        read_manifest(path)
    Manifest((full,), tmp_path).write(path)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"fastdetect_manifest": b"99"}), path)
    with pytest.raises(DataError, match="version 99"):
        read_manifest(path)
    pq.write_table(table.drop(["pair"]), path)
    with pytest.raises(DataError, match="columns"):
        read_manifest(path)
    with pytest.raises(DataError, match=r"line 7: label: .*got 2"):
        new_sample("x.csv, line 7", dataset="d", video="v", path="p", label=2)
    with pytest.raises(DataError, match="cannot write the manifest"):
        Manifest((sample("v", path="bad\udcff"),), tmp_path).write(path)


def test_key_keeps_apart_what_a_name_does_not() -> None:
    rows = [
        sample("000_003", 1, method=m, compression=c, split=s)
        for m in ("Deepfakes", "FaceSwap")
        for c in ("c23", "c40")
        for s in ("train", "test")
    ]
    assert len({row.key for row in rows}) == 8
    assert rows[0].key == "set/fake/train/c23/Deepfakes/000_003"
    assert len(Manifest(tuple(rows), Path()).by_key) == 8
    with pytest.raises(DataError, match="set/real/-/-/-/a"):
        _ = Manifest((sample("a"), sample("a", path="b")), Path()).by_key


def test_filters_and_counts() -> None:
    manifest = Manifest((sample("a", split="train"), sample("b", 1, split="test"), sample("c", 1, method="x")), Path())
    assert [s.video for s in manifest.where(split=("train", "test"))] == ["a", "b"]
    assert [s.video for s in manifest.where(lambda s: s.video > "a", label=1)] == ["b", "c"]
    assert manifest.counts("label") == {(0,): 1, (1,): 2}
    with pytest.raises(DataError, match="no field speed"):
        manifest.where(speed=1)


def test_concat_moves_paths_but_not_keys_inside_containers(tmp_path: Path) -> None:
    one = Manifest((sample("a", frames=("f/0.png",), masks=("m/0.png",)),), tmp_path / "x")
    two = Manifest((sample("b", path="s_lmdb", container="lmdb", frames=("set\\0.png",)),), tmp_path / "y" / "z")
    far = Manifest((sample("c", path="/elsewhere/c.mp4"),), tmp_path)
    joined = concat([one, two, far])
    assert joined.root == tmp_path
    a, b, c = joined
    assert (a.frames, a.masks) == (("x/f/0.png",), ("x/m/0.png",))
    assert (b.path, b.frames) == ("y/z/s_lmdb", ("set\\0.png",))
    assert joined.locate(c.path) == Path("/elsewhere/c.mp4")
    with pytest.raises(DataError, match="two samples are called"):
        concat([one, one])
    with pytest.raises(DataError, match="no manifest"):
        concat([])


def test_a_clean_set_has_no_problem(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "f/0.png")
    rows = (
        sample("a", split="train", identity="p"),
        sample("b", 1, split="test", identity="q", source_identity="r"),
        sample("c", path="f", frames=("f/0.png",), split="test", identity="q"),
    )
    assert check(Manifest(rows, tmp_path)) == []


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ((sample("a"), sample("a", path="b.mp4")), "DUPLICATE_KEY"),
        ((sample("a", None),), "UNLABELLED"),
        ((sample("gone"),), "MISSING_FILE"),
        ((sample("c", path="f", frames=("f/0.png", "f/1.png")),), "MISSING_FILE"),
        ((sample("a", 0), sample("x", 1, path="a.mp4")), "LABEL_CONFLICT"),
        ((sample("a", 0, sha256="s"), sample("b", 1, sha256="s")), "LABEL_CONFLICT"),
        ((sample("a", split="train"), sample("a", split="test")), "VIDEO_IN_TWO_SPLITS"),
        ((sample("a", split="train", sha256="s"), sample("b", split="val", sha256="s")), "VIDEO_IN_TWO_SPLITS"),
        ((sample("a", sha256="s"), sample("b", sha256="s")), "DUPLICATE_CONTENT"),
        ((sample("a", split="train", identity="p"), sample("b", split="test", identity="p")), "IDENTITY_IN_TWO_SPLITS"),
        (
            (sample("a", split="train", identity="p"), sample("b", 1, split="test", identity="q", source_identity="p")),
            "IDENTITY_IN_TWO_SPLITS",
        ),
    ],
)
def test_each_problem_is_found_and_no_other(tmp_path: Path, rows: tuple[Sample, ...], kind: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "f/0.png")
    assert list(kinds(Manifest(rows, tmp_path))) == [kind]


def test_missing_frames_are_counted_and_containers_are_looked_for_as_files(tmp_path: Path) -> None:
    touch(tmp_path, "f/1.png", "part.zip")
    frames = sample("c", path="f", frames=("f/0.png", "f/1.png", "f/2.png"))
    inside = sample("d", path="part.zip", container="zip", member="d.mp4")
    (problem,) = check(Manifest((frames, inside), tmp_path))
    assert problem.message.endswith("f/0.png and 1 more of its 3 frames")


def test_index_csv_feeds_pack_and_evaluate(tmp_path: Path) -> None:
    touch(tmp_path, "r/000.mp4", "f/000_003.mp4")
    real = sample("000", path="r/000.mp4", split="train", identity="ffpp:000", pair="p")
    fake = sample(
        "000_003", 1, path="f/000_003.mp4", split="test", manipulation="swap", method="Deepfakes",
        identity="ffpp:000", pair="p",
    )  # fmt: skip
    Manifest((real, fake), tmp_path).write(tmp_path / "out" / "index.csv")
    measured = {entry.label: entry for entry in read_index([tmp_path / "out" / "index.csv"])}
    assert measured[0].path == tmp_path / "r/000.mp4"
    assert measured[1].paired == measured[0].key
    assert (measured[1].type, measured[1].manipulation) == ("swap", "swap, Deepfakes")
    assert measured[1].identity == "ffpp:000"
    (packed,) = face_pack.read_index(tmp_path / "out" / "index.csv")
    assert (packed.path, packed.split, packed.identity) == (tmp_path / "r/000.mp4", "train", "set:ffpp:000")
    with pytest.raises(DataError, match=r"write a \.parquet"):
        Manifest((sample("a", frames=("0.png",)),), tmp_path).write(tmp_path / "index.csv")


def test_schema_has_every_field() -> None:
    assert SCHEMA.names == list(Sample.model_fields)
