"""Every layout on a miniature tree with the real set's names and traps."""

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from dataset_trees import celebdf, faceforensics, picture, png, touch, write_json

from fastdetect.data.layouts import LAYOUTS, Options, detect_layout, read_layout
from fastdetect.data.layouts.base import natural
from fastdetect.data.manifest import Manifest, Sample, check
from fastdetect.errors import DataError, UsageError


def read(root: Path, **options) -> tuple[dict[str, Sample], list[str]]:
    manifest, warnings = read_layout(root, options=Options(**options))
    return manifest.by_key, warnings


def gone(root: Path, samples: dict[str, Sample]) -> list[str]:
    return [p.key for p in check(Manifest(tuple(samples.values()), root)) if p.kind == "MISSING_FILE"]


def test_faceforensics(tmp_path: Path) -> None:
    root = faceforensics(tmp_path / "FF++ data")
    samples, warnings = read(root)
    assert detect_layout(root).name == "faceforensics"
    # a level has 3 originals, 1 actor, 2 fakes of 5 methods and 1 of DeepFakeDetection: masks and ._000.mp4 are none
    assert len(samples) == 2 * (3 + 1 + 10 + 1)
    fake = samples["FaceForensics++/fake/train/c23/Deepfakes/000_003"]
    assert (fake.target_identity, fake.source_identity, fake.manipulation) == ("ffpp:000", "ffpp:003", "swap")
    assert fake.masks == ("manipulated_sequences/Deepfakes/masks/videos/000_003.mp4",)
    assert samples["FaceForensics++/fake/train/c40/NeuralTextures/000_003"].manipulation == "reenactment"
    real = samples["FaceForensics++/real/train/c23/-/000"]
    assert real.identity == "ffpp:000"
    same = [s for s in samples.values() if s.pair == real.pair]
    assert {s.video for s in same} == {"000", "000_003"}
    assert len(same) == 6  # itself and five methods, all c23
    assert samples["FaceForensics++/real/train/c23/-/003"].path.endswith("003.MP4")
    assert samples["FaceForensics++/real/test/c23/-/071"].split == "test"
    actor, swapped = (s for s in samples.values() if s.dataset == "DeepFakeDetection" and s.compression == "c40")
    assert (actor.identity, actor.split) == ("dfd:01", "")
    assert (swapped.target_identity, swapped.source_identity) == ("dfd:01", "dfd:02")
    assert swapped.pair == actor.pair
    assert warnings == []
    assert gone(root, samples) == []


def test_faceforensics_without_split_files_says_so_and_takes_them_from_elsewhere(tmp_path: Path) -> None:
    root = faceforensics(tmp_path / "data" / "ff")
    (root / "splits").rename(tmp_path / "splits-elsewhere")
    samples, warnings = read(root)
    assert {s.split for s in samples.values()} == {""}
    assert "--splits" in warnings[0]
    named, _ = read(root, splits=tmp_path / "splits-elsewhere")
    assert {s.split for s in named.values() if s.dataset == "FaceForensics++"} == {"train", "test"}
    write_json(tmp_path / "splits-elsewhere/val.json", [["003", "999"]])
    with pytest.raises(DataError, match="003 is also in train"):
        read(root, splits=tmp_path / "splits-elsewhere")
    write_json(tmp_path / "splits-elsewhere/val.json", {"a": 1})
    with pytest.raises(DataError, match="wanted pairs"):
        read(root, splits=tmp_path / "splits-elsewhere")


def test_faceforensics_frames_are_in_order_of_time(tmp_path: Path) -> None:
    touch(tmp_path / "original_sequences/youtube/c23/frames/000", "10.png", "2.PNG", "0.png")
    touch(tmp_path / "original_sequences/youtube/c23/landmarks/000", "0.npy")
    (sample,) = read(tmp_path)[0].values()
    assert [Path(f).name for f in sample.frames] == ["0.png", "2.PNG", "10.png"]
    touch(tmp_path / "original_sequences/youtube/c23/videos", "000.mp4")
    assert next(iter(read(tmp_path)[0].values())).frames == ()
    assert next(iter(read(tmp_path, prefer="frames")[0].values())).frames == sample.frames


def test_a_video_that_has_frames_only_is_not_lost_among_videos(tmp_path: Path) -> None:
    part = tmp_path / "original_sequences/youtube/c23"
    touch(part, "videos/000.mp4", "videos/poster.jpg", "frames/000/0.png", "frames/003/0.png", "frames/003/1.png")
    found = {s.video: (Path(s.path).suffix, len(s.frames)) for s in read(tmp_path)[0].values()}
    assert found == {"000": (".mp4", 0), "003": ("", 2)}
    touch(part, "videos/071.mp4")
    (part / "videos/poster.jpg").unlink()
    found = {s.video: (Path(s.path).suffix, len(s.frames)) for s in read(tmp_path, prefer="frames")[0].values()}
    assert found == {"000": ("", 1), "003": ("", 2), "071": (".mp4", 0)}


def test_folders_of_options_that_do_not_help_are_told(tmp_path: Path) -> None:
    root = faceforensics(tmp_path / "ff")
    for name in ("splits", "media_root", "lmdb"):
        with pytest.raises(UsageError, match=rf"--{name.replace('_', '-')} .*nowhere: no such folder"):
            read(root, **{name: tmp_path / "nowhere"})
    (tmp_path / "empty").mkdir()
    samples, warnings = read(root, splits=tmp_path / "empty")
    assert {s.split for s in samples.values() if s.dataset == "FaceForensics++"} == {"train", "test"}
    assert "empty has no train.json, val.json and test.json; they are looked for elsewhere" in warnings[0]


def test_faceforensics_flat_and_dfd_with_blanks_in_names(tmp_path: Path) -> None:
    root = tmp_path / "FaceForensics++_C23"
    touch(root, "original/000.mp4", "Deepfakes/000_003.mp4", "DeepFakeDetection/01_02__hugging_happy__YVGY8LOK.mp4")
    touch(root, "csv/FF++_Metadata.csv")
    samples, warnings = read(root)
    assert samples["FaceForensics++/fake/-/c23/Deepfakes/000_003"].pair == "FaceForensics++/c23/000"
    assert any("split" in text for text in warnings)
    dfd = tmp_path / "dfd_c23"
    touch(dfd, "DFD_original sequences/01__hugging_happy.mp4")
    touch(dfd, "DFD_manipulated_sequences/DFD_manipulated_sequences/01_02__hugging_happy__YVGY8LOK.mp4")
    real, fake = sorted(read(dfd)[0].values(), key=lambda s: s.label or 0)
    assert fake.pair == real.pair == "DeepFakeDetection/c23/01__hugging_happy"
    assert gone(dfd, {"a": real, "b": fake}) == []


def test_celebdf_one_is_real(tmp_path: Path) -> None:
    root = celebdf(tmp_path / "Celeb-DF-v2")
    samples, warnings = read(root)
    assert samples["Celeb-DF-v2/real/test/-/-/youtube-00000"].identity == "celebdf:youtube-00000"
    fake = samples["Celeb-DF-v2/fake/test/-/Celeb-synthesis/id0_id16_0000"]
    assert (fake.target_identity, fake.source_identity) == ("celebdf:id0", "celebdf:id16")
    assert samples["Celeb-DF-v2/real/test/-/-/id0_0000"].pair == fake.pair
    assert samples["Celeb-DF-v2/fake/train/-/Celeb-synthesis/id16_id0_0000"].split == "train"
    assert gone(root, samples) == ["Celeb-DF-v2/fake/test/-/Celeb-synthesis/id3_id9_0005"]
    assert "1 videos" in warnings[0]
    # the official split shares persons between train and test: that is said, not hidden
    manifest = Manifest(tuple(samples.values()), root)
    shared = {p.key for p in check(manifest) if p.kind == "IDENTITY_IN_TWO_SPLITS"}
    assert shared == {"celebdf:id0", "celebdf:id16"}


def test_celebdf_list_that_contradicts_the_folders_is_refused(tmp_path: Path) -> None:
    root = celebdf(tmp_path)
    (root / "List_of_testing_videos.txt").write_text("0 Celeb-real/id0_0000.mp4\n")
    with pytest.raises(DataError, match="line 1: 0 means fake"):
        read(root)
    (root / "List_of_testing_videos.txt").write_text("Celeb-real/id0_0000.mp4 1\n")
    with pytest.raises(DataError, match="1 = real"):
        read(root)


def test_dfdc_parts_unpacked_and_zipped(tmp_path: Path) -> None:
    facts = {
        "aaa.mp4": {"label": "REAL", "split": "train"},
        "bbb.mp4": {"label": "FAKE", "split": "train", "original": "aaa.mp4"},
        "lost.mp4": {"label": "FAKE", "split": "train", "original": "elsewhere.mp4"},
    }
    write_json(tmp_path / "dfdc_train_part_0/metadata.json", facts)
    touch(tmp_path / "dfdc_train_part_0", "aaa.mp4", "bbb.MP4", "unlisted.mp4")
    for number, names in (("00", ("aaa", "bbb", "lost")), ("01", ("ccc",))):
        with zipfile.ZipFile(tmp_path / f"dfdc_train_part_{number}.zip", "w") as archive:
            told = facts if number == "00" else {"ccc.mp4": {"label": "FAKE", "split": "train", "original": "ddd.mp4"}}
            archive.writestr(f"dfdc_train_part_{int(number)}/metadata.json", json.dumps(told))
            for name in names:
                archive.writestr(f"dfdc_train_part_{int(number)}/{name}.mp4", b"x")
                archive.writestr(f"__MACOSX/dfdc_train_part_{int(number)}/._{name}.mp4", b"x")
    samples, warnings = read(tmp_path)
    by_name = {s.video: s for s in samples.values()}
    assert set(by_name) == {"aaa", "bbb", "lost", "unlisted", "ccc"}  # part 00 is unpacked: its zip is not read again
    assert by_name["bbb"].pair == by_name["aaa"].pair
    assert by_name["bbb"].identity == by_name["aaa"].identity == "dfdc:aaa"
    assert by_name["bbb"].path.endswith("bbb.MP4")
    assert by_name["unlisted"].label is None
    assert (by_name["ccc"].container, by_name["ccc"].member) == ("zip", "dfdc_train_part_1/ccc.mp4")
    assert [p.split("/")[-1] for p in gone(tmp_path, samples)] == ["lost"]
    assert any("not on disk" in text for text in warnings)
    assert any("unlabelled" in text for text in warnings)


def test_dfdc_videos_without_any_label_file_are_told(tmp_path: Path) -> None:
    """Kaggle's tree: train_sample_videos/ has a metadata.json, test_videos/ has nothing."""
    write_json(tmp_path / "train_sample_videos/metadata.json", {"aaa.mp4": {"label": "REAL", "split": "train"}})
    touch(tmp_path, "train_sample_videos/aaa.mp4", "test_videos/bbb.mp4", "test_videos/ccc.mp4")
    samples, warnings = read(tmp_path)
    assert [s.video for s in samples.values()] == ["aaa"]
    assert len(warnings) == 1
    assert re.search(r"2 videos in .*test_videos are left out", warnings[0])


def test_dfdc_test_set_with_labels_csv_where_one_is_fake(tmp_path: Path) -> None:
    touch(tmp_path / "test", "xxx.mp4", "yyy.mp4")
    (tmp_path / "test/labels.csv").write_text("filename,label\nxxx.mp4,1\nyyy.mp4,0\n")
    write_json(tmp_path / "test/metadata.json", {"xxx.mp4": {"is_fake": 1}, "yyy.mp4": {"is_fake": 0}})
    samples, _ = read(tmp_path)
    assert {s.video: (s.label, s.split) for s in samples.values()} == {"xxx": (1, "test"), "yyy": (0, "test")}
    flat = tmp_path / "flat"
    touch(flat, "videos/xxx.mp4")
    (flat / "labels.csv").write_text("filename,label\nxxx.mp4,1\n")
    assert detect_layout(flat).name == "dfdc"
    (sample,) = read(flat)[0].values()
    assert (sample.path, sample.label) == ("videos/xxx.mp4", 1)
    (flat / "labels.csv").write_text("filename,label\nxxx.mp4,perhaps\n")
    with pytest.raises(DataError, match="perhaps"):
        read(flat)


def test_dfdc_broken_zip_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "dfdc_train_part_07.zip")
    with pytest.raises(DataError, match=r"part_07\.zip.*download it again"):
        read(tmp_path)


def test_dfdcp_in_its_own_tree_and_in_others(tmp_path: Path) -> None:
    listing = {
        "original_videos/1003254/1003254_A_001.mp4": {"label": "real", "set": "train", "target_id": 1003254},
        "method_A/1003254/1003254_A/1255229_1003254_A_001.mp4": {
            "label": "fake", "set": "test", "target_id": 1003254, "swapped_id": 1255229, "augmentations": [],
        },
        "method_B/2040724/2040724_C/1_2040724_C_000.mp4": {"label": "fake", "set": "train"},
    }  # fmt: skip
    for place in ("{}/{}/{}", "{}/videos/{}/{}"):
        root = tmp_path / place.replace("/", "").replace("{}", "x")
        write_json(root / "dataset.json", listing)
        touch(root, place.format("original_videos", "1003254", "1003254_A_001.mp4"))
        touch(root, place.format("method_A", "1003254/1003254_A", "1255229_1003254_A_001.mp4"))
        assert detect_layout(root).name == "dfdcp"
        samples, warnings = read(root)
        real, fake, lost = sorted(samples.values(), key=lambda s: (s.label or 0, s.method))
        assert real.pair == fake.pair == "DFDCP/1003254_A_001"
        assert (fake.target_identity, fake.source_identity) == ("dfdcp:1003254", "dfdcp:1255229")
        assert (fake.split, fake.method, real.split) == ("test", "method_A", "train")
        assert gone(root, samples) == [lost.key]
        assert "1 videos" in warnings[0]
    bench = tmp_path / "frames"
    write_json(bench / "dataset.json", listing)
    touch(bench, "method_A/frames/1255229_1003254_A_001/000.png", "original_videos/x")
    fake = next(s for s in read(bench)[0].values() if s.method == "method_A")
    assert fake.frames == ("method_A/frames/1255229_1003254_A_001/000.png",)


def test_deeperforensics_actors_are_not_its_reals(tmp_path: Path) -> None:
    touch(tmp_path, "manipulated_videos/end_to_end/000_M101.mp4", "manipulated_videos/end_to_end_level_5/000_M101.mp4")
    touch(tmp_path, "source_videos/M101/BlendShape/camera_down/M101_BlendShape_camera_down.mp4")
    for split, line in (("train", ""), ("val", ""), ("test", "000_M101.mp4\n")):
        touch(tmp_path, f"lists/splits/{split}.txt")
        (tmp_path / f"lists/splits/{split}.txt").write_text(line)
    samples, warnings = read(tmp_path)
    assert len(samples) == 2
    first = samples["DeeperForensics-1.0/fake/test/end_to_end/DF-VAE/000_M101"]
    assert first.pair == "FaceForensics++/c23/000"  # the pair is in FF++, so that both manifests together have it
    assert (first.target_identity, first.source_identity) == ("ffpp:000", "deeperforensics:M101")
    assert "--sources" in warnings[0]
    with_actors, _ = read(tmp_path, sources=True)
    assert [s.identity for s in with_actors.values() if s.label == 0] == ["deeperforensics:M101"]
    touch(tmp_path, "manipulated_videos/end_to_end/odd.mp4")
    with pytest.raises(DataError, match="000_M101"):
        read(tmp_path)


def test_uadfv(tmp_path: Path) -> None:
    touch(tmp_path, "real/0000.mp4", "fake/0000_fake.mp4", "fake/landmarks/0000_fake/0.npy")
    assert detect_layout(tmp_path).name == "uadfv"
    real, fake = sorted(read(tmp_path)[0].values(), key=lambda s: s.label or 0)
    assert (real.pair, fake.pair, fake.label) == ("UADFV/0000", "UADFV/0000", 1)


def test_wilddeepfake_archives_and_unpacked(tmp_path: Path) -> None:
    root = tmp_path / "deepfake_in_the_wild"
    for part, kind in (("real_train", "real"), ("fake_test", "fake")):
        (root / part).mkdir(parents=True)
        for number in ("0", "103"):
            with tarfile.open(root / part / f"{number}.tar.gz", "w:gz") as tar:
                for frame in ("10", "9"):
                    data = png(picture(1))
                    member = tarfile.TarInfo(f"./{number}/{kind}/7/{frame}.png")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    touch(root, "real_train/0/real/7/9.png", "real_train/0/real/7/10.png")
    for top in (tmp_path, root):
        assert detect_layout(top).name == "wilddeepfake"
        samples, _ = read(top)
        assert len(samples) == 4  # sequence 7 is in every archive, and is another one in each
        archived = samples["WildDeepfake/real/train/-/-/103/7"]
        assert (archived.container, archived.cropped) == ("tar", True)
        assert archived.frames == ("./103/real/7/9.png", "./103/real/7/10.png")
        unpacked = samples["WildDeepfake/real/train/-/-/0/7"]
        assert (unpacked.container, [Path(f).name for f in unpacked.frames]) == ("", ["9.png", "10.png"])
        assert samples["WildDeepfake/fake/test/-/in the wild/103/7"].label == 1
    (root / "fake_test" / "5.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"(?s)5\.tar.*download"):
        read(root)
    with tarfile.open(root / "fake_test" / "5.tar", "w") as tar:
        for frame in "abc":
            tar.addfile(tarfile.TarInfo(f"5/fake/1/{frame}.png"))
    data = bytearray((root / "fake_test" / "5.tar").read_bytes())
    data[2 * 512 + 20] ^= 1
    (root / "fake_test" / "5.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"5\.tar is not a readable tar: a damaged header at byte 1024"):
        read(root)
    (root / "fake_test" / "5.tar").unlink()
    touch(root, "real_train/8/fake/3/0.png")
    with pytest.raises(DataError, match="says fake"):
        read(root)


def test_df40(tmp_path: Path) -> None:
    touch(tmp_path, "simswap/ff/frames/000_003/1.png", "simswap/ff/frames/000_003/12.png", "simswap/ff/landmarks/a.npy")
    touch(tmp_path, "simswap/cdf/frames/id0_id16_0003/0.png", "sadtalker/cdf/videos/id0_id16_0003.mp4")
    touch(tmp_path, "ddim/ff/a.png", "ddim/ff/b.png")  # single pictures, each a sample
    touch(tmp_path, "styleclip/styleclip/fake/1.png", "styleclip/styleclip/real/1.png")  # unpacked into its own name
    assert detect_layout(tmp_path).name == "df40"
    samples = list(read(tmp_path)[0].values())
    swapped = {s.video: s for s in samples if s.method == "simswap"}
    assert len(swapped["ff/frames/000_003"].frames) == 2
    assert swapped["ff/frames/000_003"].pair == "FaceForensics++/c23/000"
    assert swapped["cdf/frames/id0_id16_0003"].pair == "Celeb-DF-v2/id0_0003"
    assert sum(s.method == "ddim" for s in samples) == 2
    assert {s.manipulation for s in samples} == {"swap", "talking head", "synthesis", "edit", "real"}
    assert [s.label for s in samples if "styleclip" in s.path] == [1, 0]


def test_df40_splits_are_folders_called_so_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "latest_DF40"
    touch(root, "simswap/ff/frames/000_003/0.png", "DF40_test/fomm/ff/frames/000_003/0.png")
    touch(root, "sadtalker/valuable/cdf/frames/id0_id16_0003/0.png")
    for split, pairs in (("train", [["000", "003"]]), ("val", []), ("test", [])):
        write_json(root / f"{split}.json", pairs)
    found = {s.method: s.split for s in read(root)[0].values()}
    assert found == {"simswap": "train", "fomm": "test", "sadtalker": ""}
    part = tmp_path / "DF40_train"
    touch(part, "fomm/cdf/frames/id0_id16_0003/0.png")
    assert {s.split for s in read(part)[0].values()} == {"train"}


def test_df40_says_where_its_reals_are(tmp_path: Path) -> None:
    touch(tmp_path, "train/fomm/ff/frames/000_003/0.png")
    samples, warnings = read(tmp_path)
    assert [(s.split, s.manipulation) for s in samples.values()] == [("train", "reenactment")]
    assert "Celeb-DF-v2" in warnings[0]


def test_ffiw_target_means_fake(tmp_path: Path) -> None:
    root = tmp_path / "FFIW10K-v1-release"
    touch(
        root,
        "source/train/videos/0001.mp4",
        "target/train/videos/0001.mp4",
        "target/val/0009_2.mp4",
        "mask/val/0009_2.mp4",
    )
    assert detect_layout(tmp_path).name == detect_layout(root).name == "ffiw"
    samples, _ = read(tmp_path)
    assert samples["FFIW10K/real/train/-/-/0001"].pair == samples["FFIW10K/fake/train/-/FFIW/0001"].pair != ""
    alone = samples["FFIW10K/fake/val/-/FFIW/0009_2"]
    assert (alone.pair, alone.masks) == ("", ("FFIW10K-v1-release/mask/val/0009_2.mp4",))


def test_plain_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/REAL/a b.MP4", "train/Fake/Deepfakes/a b.mp4", "valid/fake/x.jpg", "valid/real/x.png")
    touch(tmp_path, "readme/x.mp4", "train/Fake/.hidden.mp4", "train/Fake/notes.txt")
    samples, warnings = read(tmp_path)
    found = {(s.split, s.label, s.method, s.video) for s in samples.values()}
    assert found == {
        ("train", 0, "", "a b"), ("train", 1, "Deepfakes", "Deepfakes/a b"), ("val", 1, "", "x.jpg"),
        ("val", 0, "", "x.png"),
    }  # fmt: skip
    assert any("1 files" in text for text in warnings)
    other = tmp_path / "other"
    touch(other, "training_real/1.jpg", "training_fake/1.jpg")
    assert {(s.split, s.label) for s in read(other)[0].values()} == {("train", 0), ("train", 1)}


def test_plain_folders_of_frames_only_when_asked(tmp_path: Path) -> None:
    touch(tmp_path, "real/v1/0.png", "real/v1/1.png", "fake/DF/v1/0.png", "fake/DF/v1/1.png")
    assert len(read(tmp_path)[0]) == 4
    samples, _ = read(tmp_path, frame_folders=True)
    assert {(s.video, s.method, len(s.frames)) for s in samples.values()} == {("v1", "", 2), ("DF/v1", "DF", 2)}


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "disk", "a.mp4")
    (tmp_path / "set/real").mkdir(parents=True)
    touch(tmp_path / "set", "fake/b.mp4")
    (tmp_path / "set/real/linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/again").symlink_to(tmp_path / "disk")
    assert {s.path for s in read(tmp_path / "set")[0].values()} == {"real/linked/a.mp4", "fake/b.mp4"}


def test_tables_as_people_write_them(tmp_path: Path) -> None:
    touch(tmp_path, "v/a.mp4", "v/b.mp4", "v/c.mp4")
    table = tmp_path / "My Table.csv"
    text = (
        "File Path;Label;Subset;Manipulation;Person;Paired_Real\n"
        "v\\a.mp4;REAL;training;;p1;\nv/b.mp4;1;dev;lip sync, Wav2Lip;p1;v/a.mp4\nv/c.mp4;;odd;;;\n"
    )
    table.write_text(text, "utf-8-sig")
    samples, warnings = read(table)
    a, b, c = samples.values()
    assert (a.label, a.split, a.path, a.identity) == (0, "train", "v/a.mp4", "p1")
    assert (b.label, b.split, b.manipulation, b.method) == (1, "val", "lip sync", "Wav2Lip")
    assert a.pair == b.pair == str(tmp_path / "v/a.mp4")
    assert (c.label, c.split) == (None, "")
    assert "odd" in warnings[0]
    table.write_text("path,label\nv/a.mp4,GENUINE\n")
    with pytest.raises(DataError, match=r"line 2: label 'GENUINE'.*--label-map"):
        read(table)
    assert next(iter(read(table, label_map={"GENUINE": 0})[0].values())).label == 0
    table.write_text("name,label\nv/a.mp4,real\n")
    with pytest.raises(DataError, match="no path"):
        read(table)


def test_an_index_in_the_folder_and_parquet_tables(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    touch(tmp_path, "videos/a.mp4")
    (tmp_path / "videos/index.csv").write_text(
        "file,label,suggested_split,identity_group\nvideos/a.mp4,real,validation,g\n"
    )
    (sample,) = read(tmp_path / "videos")[0].values()
    assert (sample.split, sample.identity, sample.path) == ("val", "g", "a.mp4")
    pq.write_table(pa.table({"path": ["videos/a.mp4"], "label": [1]}), tmp_path / "t.parquet")
    (sample,) = read(tmp_path / "t.parquet")[0].values()
    assert (sample.label, sample.path) == (1, "videos/a.mp4")


def test_a_manifest_is_read_as_what_it_is(tmp_path: Path) -> None:
    """Our own Parquet has the columns path and label too, but its paths start at its root."""
    first, _ = read_layout(faceforensics(tmp_path / "ff"))
    first.write(tmp_path / "elsewhere" / "ff.parquet")
    assert detect_layout(tmp_path / "elsewhere" / "ff.parquet").name == "manifest"
    again, warnings = read_layout(tmp_path / "elsewhere" / "ff.parquet")
    assert (again, warnings) == (first, [])
    (tmp_path / "ff").rename(tmp_path / "moved")
    moved, _ = read_layout(tmp_path / "elsewhere" / "ff.parquet", options=Options(media_root=tmp_path / "moved"))
    assert not [p for p in check(moved) if p.kind == "MISSING_FILE"]


def test_a_table_whose_files_are_not_there_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "t.csv").write_text("path,label\na.mp4,real\nb.mp4,fake\n")
    samples, warnings = read(tmp_path / "t.csv")
    assert len(samples) == 2
    assert "1 of the 2 files" in warnings[0]
    assert "--media-root" in warnings[0]


def test_unknown_tree_says_what_was_looked_for_and_what_is_below(tmp_path: Path) -> None:
    celebdf(tmp_path / "sets" / "cdf")
    with pytest.raises(DataError) as caught:
        detect_layout(tmp_path / "sets")
    text = str(caught.value)
    assert all(layout.name in text and layout.wanted in text for layout in LAYOUTS)
    assert "cdf is celebdf" in text
    with pytest.raises(DataError, match="no such folder"):
        detect_layout(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="known are auto"):
        read_layout(tmp_path, "ffpp")
    (tmp_path / "e/real").mkdir(parents=True)
    (tmp_path / "e/fake").mkdir()
    with pytest.raises(DataError, match="has no video"):
        read_layout(tmp_path / "e")


def test_natural_order() -> None:
    assert sorted(["f10", "f9", "f009", "a", "10", "9"], key=natural) == ["9", "10", "a", "f9", "f009", "f10"]
