"""From a raw FaceForensics++ to a manifest and faces with the four commands, and what verify and stats say."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_trees import faceforensics, write_json, write_video
from typer.testing import CliRunner

from fastdetect.cli import app
from fastdetect.data import verify
from fastdetect.data.face_pack import FacePack, read_index
from fastdetect.data.layouts.command import read_label_map
from fastdetect.data.manifest import read_manifest
from fastdetect.errors import DataError, UsageError
from fastdetect.evaluation.index import read_videos


@pytest.fixture(scope="module")
def ff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two originals and two Deepfakes of real footage at c23; one fake is cut short, one original is doubled."""
    face = pytest.importorskip("skimage.data").astronaut()[:256, 96:352]
    root = tmp_path_factory.mktemp("data") / "FF"
    videos = {
        "000": face,
        "071": face[:, ::-1],
        "000_003": np.clip(face + np.uint8(8), 0, 255),
        "071_054": face[::1, ::-1] // 2,
    }
    for name, picture in videos.items():
        part = "manipulated_sequences/Deepfakes" if "_" in name else "original_sequences/youtube"
        write_video(root / part / "c23/videos" / f"{name}.mp4", [np.roll(picture, i, 1) for i in range(25)])
    originals = root / "original_sequences/youtube/c23/videos"
    (originals / "003.mp4").write_bytes((originals / "071.mp4").read_bytes())  # train's 003 is test's 071
    (originals / "054.mp4").write_bytes(b"\0" * 100)
    for split, pairs in (("train", [["000", "003"]]), ("val", []), ("test", [["071", "054"]])):
        write_json(root / f"{split}.json", pairs)
    return root


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *map(str, words)], catch_exceptions=False)
    return result.exit_code, result.output


def test_four_commands_from_raw_videos_to_faces(ff: Path, tmp_path: Path) -> None:
    manifest, faces = tmp_path / "ff.parquet", tmp_path / "faces"
    code, text = run("index", ff, "-o", manifest)
    assert (code, "6 videos" in text) == (0, True)

    code, text = run("verify", manifest, "--workers", 1, "--report", tmp_path / "report.txt")
    assert code == 3
    assert "UNREADABLE: 1" in text
    assert "VIDEO_IN_TWO_SPLITS: 1" in text
    report = (tmp_path / "report.txt").read_text()
    assert re.search(r"error\tUNREADABLE\tFaceForensics\+\+/real/test/c23/-/054\tDECODE_ERROR", report)
    known = {s.video: s for s in read_manifest(manifest)}
    assert (known["000"].width, known["000"].frame_count, known["000"].duration_s) == (256, 25, 1.0)
    assert known["003"].sha256 == known["071"].sha256 != ""
    assert known["054"].bytes is None
    before = manifest.stat().st_size
    assert run("verify", manifest, "--quick")[0] == 3  # the doubled video is still known by its hash
    assert manifest.stat().st_size == before

    code, text = run("stats", manifest, "--by", "split,label")
    assert code == 0
    rows = [line.split() for line in text.splitlines()]
    assert next(r for r in rows if r[:2] == ["train", "real"])[:3] == ["train", "real", "2"]
    assert rows[-1][:2] == ["all", "6"]
    assert "+" in rows[-1][-1]  # the size of one is not known

    code, text = run(
        "extract", manifest, "-o", faces, "--sample", "fps:2", "--size", 64, "--workers", 1, "--compression", "c23"
    )
    assert code == 3
    assert "054.mp4" in (faces / "failed.txt").read_text()
    table = pq.read_table(faces / "faces.parquet").to_pylist()
    groups: dict[str, set[tuple[int, int]]] = {}
    for row in table:
        groups.setdefault(row["pair"], set()).add((row["label"], row["frame"]))
    # with fps:X a real and its fake are cut at the same frames
    assert groups["FaceForensics++/c23/000"] == {(0, 0), (1, 0), (0, 12), (1, 12)}


def test_index_csv_for_pack_and_evaluate_and_errors_as_usage(ff: Path, tmp_path: Path) -> None:
    assert run("index", ff, "-o", tmp_path / "index.csv")[0] == 0
    code, _ = run("index", tmp_path / "index.csv", "-o", tmp_path / "again.parquet")
    assert code == 0
    again = read_manifest(tmp_path / "again.parquet")
    assert {(s.label, s.split) for s in again} == {(0, "train"), (1, "train"), (0, "test"), (1, "test")}
    with pytest.raises(UsageError, match=r"ends in \.parquet .* or \.csv"):
        run("index", ff, "-o", tmp_path / "index.xls")  # no reader would know it
    assert not (tmp_path / "index.xls").exists()
    for words in (("verify", "again.parquet", "--workers", 0), ("extract", "again.parquet", "-o", "f", "--timeout", 0)):
        assert run(*words)[0] == 2  # and not the default instead
    pairs = {s.pair for s in again if s.label == 1}
    assert pairs <= {s.pair for s in again if s.label == 0}
    with pytest.raises(UsageError, match="cannot count by speed"):
        run("stats", tmp_path / "again.parquet", "--by", "speed")
    with pytest.raises(UsageError, match="nothing to extract"):
        run("extract", tmp_path / "again.parquet", "-o", tmp_path / "x", "--split", "val")


def test_a_report_that_cannot_be_written_is_found_before_files_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text("path,label\na.mp4,real\n")
    run("index", tmp_path / "t.csv", "-o", tmp_path / "m.parquet")
    monkeypatch.setattr(verify, "verify", lambda *_, **__: pytest.fail("it opens files"))
    with pytest.raises(UsageError, match="give another --report"):
        run("verify", tmp_path / "m.parquet", "--report", tmp_path / "no" / "x.txt")


def test_indices_and_packs_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    with pytest.raises(DataError, match=r"index\.csv is not a readable index"):
        run("pack", index, "-o", tmp_path / "pack")
    index.write_bytes("file,label,suggested_split\nü.mp4,real,train\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        run("pack", index, "-o", tmp_path / "pack")
    index.write_text("file,label,suggested_split\na.mp4,real,train\n")
    with pytest.raises(DataError, match="no column 'compression'"):
        run("pack", index, "-o", tmp_path / "pack", "--compression", "c23")
    with pytest.raises(DataError, match="no real of the splits test in"):
        run("pack", index, "-o", tmp_path / "pack", "--splits", "test")
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "names.json").write_text("{}")
    np.savez(pack / "faces.npz", split=np.zeros(9))
    whole = (pack / "faces.npz").read_bytes()
    (pack / "faces.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is not a face pack"):
        FacePack.load(pack)


def test_an_index_keeps_compressions_apart(tmp_path: Path) -> None:
    """One video at two levels is two clips of a pack; a clip of both would have every frame twice."""
    root = faceforensics(tmp_path / "ff")
    assert run("index", root, "-o", tmp_path / "ff.csv")[0] == 0
    every = read_index(tmp_path / "ff.csv", splits=("test",))
    assert [entry.clip for entry in every] == ["FaceForensics++:c23/071", "FaceForensics++:c40/071"]
    assert {entry.identity for entry in every} == {"FaceForensics++:ffpp:071"}
    (one,) = read_index(tmp_path / "ff.csv", splits=("test",), compressions=("c23",))
    assert one.clip == "FaceForensics++:c23/071"
    assert len(read_videos([str(tmp_path / "ff.csv")], compressions=["c23"]).entries) == 1


def test_label_maps(tmp_path: Path) -> None:
    path = tmp_path / "train_config.yaml"
    path.write_text("lmdb: false\nlabel_dict:\n  FF-real: 0\n  odd: 1\n")
    assert read_label_map(path) == {"FF-real": 0, "odd": 1}
    path.write_text("odd: fake\n")
    with pytest.raises(UsageError, match="FF-DF: 1"):
        read_label_map(path)


def test_hashes_that_a_table_tells_are_checked(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 3)
    (tmp_path / "t.csv").write_text(f"path,label,sha256\na.mp4,real,{'0' * 64}\n")
    assert run("index", tmp_path / "t.csv", "-o", tmp_path / "m.parquet")[0] == 0
    code, text = run("verify", tmp_path / "m.parquet", "--workers", 1)
    assert code == 3
    assert "HASH_MISMATCH" in text
