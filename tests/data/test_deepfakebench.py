"""DeepfakeBench's JSON files and LMDB folders: back-slashes, foreign roots, malformed splits, repeated reals."""

import sys
from pathlib import Path
from typing import Any

import lmdb
import pytest
from dataset_trees import deepfakebench_record as record
from dataset_trees import picture, png, touch, write_json

from fastdetect.data.footage import read_footage
from fastdetect.data.layouts import Options, detect_layout, read_layout
from fastdetect.data.lmdb_store import LmdbStore
from fastdetect.data.manifest import check
from fastdetect.errors import DataError, MissingDependencyError
from fastdetect.video.sampling import SamplingPolicy

REAL = "FaceForensics++/original_sequences/youtube/c23/frames/000"
FAKE = "FaceForensics++/manipulated_sequences/Deepfakes/c23/frames/000_003"


def windows(folder: str, *names: str) -> list[str]:
    return [f"./datasets\\{folder}/{name}".replace("/", "\\") for name in names]


def ff_json(name: str = "FF-DF", folder: str = FAKE) -> dict[str, Any]:
    reals = {"c23": {"000": record("FF-real", windows(REAL, "10.png", "9.png"))}}
    masks = windows(folder.replace("frames", "masks"), "9.png")
    fakes = {"c23": {"000_003": record(name, windows(folder, "9.png", "10.png"), masks=masks)}}
    empty: dict[str, Any] = {"c23": {}}
    return {
        name: {
            "FF-real": {"train": reals, "val": empty, "test": empty},
            name: {"train": fakes, "val": empty, "test": empty},
        }
    }


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """preprocessing/dataset_json beside datasets/, as the benchmark has them."""
    folder = tmp_path / "preprocessing" / "dataset_json"
    write_json(folder / "FF-DF.json", ff_json())
    f2f = FAKE.replace("Deepfakes", "Face2Face")
    write_json(folder / "FF-F2F.json", ff_json("FF-F2F", f2f))
    write_json(folder / "notes.json", {"hello": 1})
    for place in (REAL, FAKE, f2f, FAKE.replace("frames", "masks")):
        touch(tmp_path / "datasets" / place, "9.png", "10.png")
    return folder


def test_frames_are_found_behind_windows_paths_and_reals_are_not_doubled(bench: Path, tmp_path: Path) -> None:
    assert detect_layout(bench).name == "deepfakebench"
    manifest, warnings = read_layout(bench, options=Options(media_root=tmp_path / "datasets"))
    samples = manifest.by_key
    assert set(samples) == {
        "FaceForensics++/real/train/c23/-/000",
        "FaceForensics++/fake/train/c23/Deepfakes/000_003",
        "FaceForensics++/fake/train/c23/Face2Face/000_003",
    }
    assert not [p for p in check(manifest) if p.grave]
    real, fake = (
        samples["FaceForensics++/real/train/c23/-/000"],
        samples["FaceForensics++/fake/train/c23/Deepfakes/000_003"],
    )
    assert [Path(f).name for f in real.frames] == ["9.png", "10.png"]
    assert (fake.pair, fake.source_identity, fake.cropped) == (real.pair, "ffpp:003", True)
    assert [Path(m).name for m in fake.masks] == ["9.png"]
    assert any("notes.json" in text for text in warnings)


def test_missing_frames_are_reported_not_dropped(bench: Path) -> None:
    manifest, _ = read_layout(bench / "FF-DF.json", options=Options(media_root=bench))
    assert sorted(p.kind for p in check(manifest)) == ["MISSING_FILE", "MISSING_FILE"]


def test_somebody_elses_root_is_cut_off(tmp_path: Path) -> None:
    frames = ["/their/cluster/data/DF40/simswap/cdf/frames/id0_id16_0003/000.png"]
    write_json(
        tmp_path / "simswap_cdf.json",
        {"simswap_cdf": {"simswap_Fake": {"test": {"id0_id16_0003": record("simswap_Fake", frames)}}}},
    )
    touch(tmp_path / "data", "DF40/simswap/cdf/frames/id0_id16_0003/000.png")
    manifest, _ = read_layout(tmp_path / "simswap_cdf.json", options=Options(media_root=tmp_path / "data"))
    (sample,) = manifest
    assert manifest.locate(sample.frames[0]).is_file()
    assert (sample.label, sample.method, sample.manipulation, sample.split) == (1, "simswap", "swap", "test")
    assert (sample.target_identity, sample.source_identity) == ("celebdf:id0", "celebdf:id16")


@pytest.mark.parametrize("gone", range(3))
def test_a_frame_that_is_missing_hides_no_other(tmp_path: Path, gone: int) -> None:
    """Behind somebody else's root, whichever frame it is: also in the masks and in an LMDB."""
    frames = [f"/their/data/UADFV/fake/frames/0000_fake/{n}.png" for n in range(3)]
    masks = [frame.replace("/frames/", "/masks/") for frame in frames]
    table = {"UADFV": {"UADFV_Fake": {"test": {"0000_fake": record("UADFV_Fake", frames, masks=masks)}}}}
    write_json(tmp_path / "UADFV.json", table)
    there = [n for n in range(3) if n != gone]
    for kind in ("frames", "masks"):
        touch(tmp_path / "data", *(f"UADFV/fake/{kind}/0000_fake/{n}.png" for n in there))
    manifest, _ = read_layout(tmp_path / "UADFV.json", options=Options(media_root=tmp_path / "data"))
    (sample,) = manifest
    assert [n for n, name in enumerate(sample.frames) if manifest.locate(name).is_file()] == there
    assert [Path(name).name for name in sample.masks] == [f"{n}.png" for n in there]
    assert [p.kind for p in check(manifest)] == ["MISSING_FILE"]
    folder = tmp_path / "lmdbs" / "UADFV_lmdb"
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**22) as env, env.begin(write=True) as txn:
        for n in there:
            txn.put(frames[n].removeprefix("/their/data/").replace("/", "\\").encode(), b"x")
    for frame in table["UADFV"]["UADFV_Fake"]["test"].values():
        frame["frames"] = [name.removeprefix("/their/data/") for name in frame["frames"]]
    write_json(tmp_path / "UADFV.json", table)
    manifest, warnings = read_layout(
        tmp_path / "UADFV.json", options=Options(lmdb=folder.parent, media_root=folder.parent)
    )
    assert [len(sample.frames) for sample in manifest] == [2]
    assert "lacks 1 of the frames" in warnings[0]


def test_persons_are_the_tree_readers(tmp_path: Path) -> None:
    sets = {
        "UADFV": {"UADFV_Real": "0000", "UADFV_Fake": "0000_fake"},
        "DFDCP": {"DFDCP_Real": "1003254_A_001", "DFDCP_FakeA": "1255229_1003254_A_001"},
        "simswap_ff": {"simswap_Real": "000", "simswap_Fake": "000_003"},
        "mine": {"mine_real": "12", "mine_fake": "12_5"},
    }
    for name, labels in sets.items():
        table = {label: {"test": {v: record(label, [f"{name}/{v}/0.png"])}} for label, v in labels.items()}
        write_json(tmp_path / f"{name}.json", {name: table})
    manifest, _ = read_layout(tmp_path)
    found = {name: [(s.identity, s.source_identity, s.pair) for s in manifest.where(dataset=name)] for name in sets}
    assert found == {
        "UADFV": [("uadfv:0000", "", "UADFV/0000")] * 2,
        "DFDCP": [
            ("dfdcp:1003254", "", "DFDCP/1003254_A_001"),
            ("dfdcp:1003254", "dfdcp:1255229", "DFDCP/1003254_A_001"),
        ],
        "simswap_ff": [("ffpp:000", "", "simswap_ff//000"), ("ffpp:000", "ffpp:003", "simswap_ff//000")],
        "mine": [("mine:12", "", ""), ("mine:12_5", "", "")],  # names of one's own say nothing of FF++'s persons
    }


@pytest.mark.parametrize("table", ["a text", {"odd_fake": "a text"}])
def test_a_set_or_label_that_is_no_table_is_refused(tmp_path: Path, table: Any) -> None:
    good = {"x_real": {"train": {"v": record("x_real", ["x/v/0.png"])}}}
    write_json(tmp_path / "x.json", {"x": good | table} if isinstance(table, dict) else {"x": good, "y": table})
    with pytest.raises(DataError, match=r"x\.json: .* is 'a text'; wanted a table"):
        read_layout(tmp_path)


def test_frames_that_are_no_names_are_left_out_with_a_warning(tmp_path: Path) -> None:
    videos = {"v": record("x_real", ["x/v/0.png"]), "w": {"label": "x_real", "frames": [1, 2]}}
    write_json(tmp_path / "x.json", {"x": {"x_real": {"train": videos}}})
    manifest, warnings = read_layout(tmp_path)
    assert [s.video for s in manifest] == ["v"]
    assert "/w is left out" in warnings[0]


def test_malformed_val_empty_and_odd_records_are_told(tmp_path: Path) -> None:
    table = {
        "DFDC": {
            "DFDC_Real": {
                "train": {"a": record("DFDC_Real", ["DFDC/train/frames/a/0.png"])},
                "val": record("DFDC_Real", ["DFDC/test/frames/z/0.png"]),  # as the benchmark's own script writes it
                "test": {"b": record("DFDC_Real", []), "c": "?"},
            }
        }
    }
    write_json(tmp_path / "DFDC.json", table)
    manifest, warnings = read_layout(tmp_path / "DFDC.json")
    assert [s.video for s in manifest] == ["a"]
    assert [("val" in w, "/b" in w, "/c" in w) for w in warnings] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def test_a_video_in_two_splits_is_reported(tmp_path: Path) -> None:
    one = {"id0_0000": record("CelebDFv2_real", ["Celeb-DF-v2/Celeb-real/frames/id0_0000/000.png"])}
    write_json(
        tmp_path / "Celeb-DF-v2.json", {"Celeb-DF-v2": {"CelebDFv2_real": {"train": one, "val": {}, "test": one}}}
    )
    manifest, _ = read_layout(tmp_path)
    assert "VIDEO_IN_TWO_SPLITS" in {p.kind for p in check(manifest)}


def test_unknown_labels_are_not_guessed(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"x": {"odd": {"train": {"v": record("odd", ["x/v/0.png"])}}}})
    with pytest.raises(DataError, match="--label-map"):
        read_layout(tmp_path)
    manifest, _ = read_layout(tmp_path, options=Options(label_map={"odd": 1}))
    assert [s.label for s in manifest] == [1]
    (tmp_path / "x.json").write_text('{"x": {"odd": {"train": {"v"')
    with pytest.raises(DataError, match="not JSON"):
        read_layout(tmp_path, options=Options(label_map={"odd": 1}))


@pytest.mark.parametrize("join", ["windows", "linux"])
def test_lmdb_keys_of_either_system(bench: Path, tmp_path: Path, join: str) -> None:
    for path in (tmp_path / "datasets").rglob("*.png"):
        path.unlink()
    folder = tmp_path / "lmdbs" / "FaceForensics++_lmdb"
    folder.mkdir(parents=True)
    pictures = {}
    with lmdb.open(str(folder), map_size=2**22) as env, env.begin(write=True) as txn:
        for place in (REAL, FAKE):
            for name in ("9.png", "10.png"):
                head, _, rest = f"{place}/{name}".partition("/")
                key = f"{head}\\{rest}" if join == "linux" else f"{head}\\{rest}".replace("/", "\\")
                pictures[place, name] = picture(len(pictures))
                txn.put(key.encode(), png(pictures[place, name]))
    options = Options(lmdb=folder.parent)
    manifest, _ = read_layout(bench / "FF-DF.json", options=options)
    real, fake = sorted(manifest, key=lambda s: s.label or 0)
    assert real.container == fake.container == "lmdb"
    assert not [p for p in check(manifest) if p.kind == "MISSING_FILE"]
    footage = read_footage(fake, manifest.root, SamplingPolicy.parse("all"))
    assert [frame.index for frame in footage.frames] == [9, 10]
    for frame, name in zip(footage.frames, ("9.png", "10.png"), strict=True):
        assert (frame.rgb == pictures[FAKE, name]).all()


def test_lmdb_errors_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="not a readable LMDB"):
        LmdbStore(tmp_path)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(MissingDependencyError, match=r"fastdetect\[train\]"):
        LmdbStore(tmp_path)
