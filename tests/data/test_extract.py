"""Extraction for real: screening's own crops, bad files that cost themselves only, runs that go on after a kill."""

import json
import os
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_trees import png, write_video

from fastdetect.data.extract import ExtractSettings, FaceExtractor, FaceStore, extract, folder_of
from fastdetect.data.footage import frame_numbers, read_footage
from fastdetect.data.manifest import Manifest, Sample
from fastdetect.data.shards import TarSink
from fastdetect.errors import DataError, MediaError, UsageError
from fastdetect.faces.centerface import DETECT_SIDE
from fastdetect.reasons import Reason
from fastdetect.video.sampling import SamplingPolicy

SETTINGS = ExtractSettings(sample="uniform:3", size=64)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """scikit-image's astronaut: one face of about 110 px near (225, 120)."""
    return pytest.importorskip("skimage.data").astronaut()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, portrait: np.ndarray) -> Manifest:
    """Two persons' clips in one name, blanks and dots in names, a zip, cut-out faces, nobody, and broken files."""
    root = tmp_path_factory.mktemp("faces in the wild")
    head = portrait[:256, 96:352]
    write_video(root / "real/a b.v1.mp4", [np.roll(head, 2 * i, 1) for i in range(12)])
    write_video(root / "fake/a b.v1.mp4", [head[:, ::-1]] * 8)
    write_video(root / "real/nobody.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 4)
    (root / "broken.mp4").write_bytes(b"\0" * 500)
    with zipfile.ZipFile(root / "part.zip", "w") as archive:
        archive.write(root / "fake/a b.v1.mp4", "inner/z.MP4")
    face = portrait[60:190, 160:290]
    (root / "crops").mkdir()
    for number in (2, 10):
        (root / f"crops/{number}.png").write_bytes(png(np.roll(face, number, 0)))

    def sample(video: str, label: int, path: str, **more) -> Sample:
        fields = {"method": "Swap" if label else "", "split": "train", **more}
        return Sample(dataset="set", video=video, label=label, path=path, **fields)

    return Manifest(
        (
            sample("a b.v1", 0, "real/a b.v1.mp4", identity="p", pair="set/a b.v1"),
            sample("a b.v1", 1, "fake/a b.v1.mp4", identity="p", source_identity="q", pair="set/a b.v1"),
            sample("nobody", 0, "real/nobody.mp4"),
            sample("broken", 1, "broken.mp4"),
            sample("gone", 0, "gone.mp4"),
            sample("zipped", 1, "part.zip", container="zip", member="inner/z.MP4"),
            sample("crops", 1, "crops", frames=("crops/2.png", "crops/10.png"), cropped=True),
        ),
        root,
    )


@pytest.fixture(scope="module")
def whole(data: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run into shards."""
    output = tmp_path_factory.mktemp("out") / "faces"
    assert extract(data, output, SETTINGS, workers=1) == (3 + 3 + 3 + 2, 1, 2)
    return output


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("faces-*.tar")):
        with tarfile.open(path) as tar:
            found |= {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    return found


def test_shards_hold_a_picture_and_its_facts_for_every_face(whole: Path, data: Manifest) -> None:
    files = members(whole)
    pictures = {name[:-4] for name in files if name.endswith(".png")}
    assert pictures == {name[:-5] for name in files if name.endswith(".json")}
    assert len(pictures) == 11
    # webdataset takes what precedes the first dot of the file's name as the sample's name
    assert all("." not in name for name in pictures)
    facts = json.loads(files[next(n for n in files if n.endswith(".json") and "/fake/" in n and "_v1" in n)])
    assert (facts["label"], facts["method"], facts["source_identity"], facts["pair"]) == (1, "Swap", "q", "set/a b.v1")
    table = pq.read_table(whole / "faces.parquet").to_pylist()
    assert {row["name"] for row in table} == pictures
    assert {row["key"] for row in table} == {data.samples[i].key for i in (0, 1, 5, 6)}
    landmarks = np.array([row["landmarks"] for row in table])
    assert ((landmarks > 0) & (landmarks < 64)).all()
    assert (landmarks[:, 0, 0] < landmarks[:, 1, 0]).all()  # eyes: the image's left one first
    assert (landmarks[:, 0, 1] < landmarks[:, 3, 1]).all()  # above the mouth


def test_pictures_are_those_that_screening_looks_at(whole: Path, data: Manifest) -> None:
    from fastdetect.screening.stages import Extractor, Job, StageSettings

    screened = Extractor(
        StageSettings(
            sampling="uniform:3", max_seconds=None, largest_only=True, detect_side=DETECT_SIDE, detect_score=0.5,
            max_people=16, max_faces=1024, crop_size=64, crop_margin=1.3,
            detect_runtime="onnxruntime",
        )
    )(Job(str(data.locate(data.samples[0].path))))  # fmt: skip
    files = members(whole)
    base = folder_of(data.samples[0])
    cut = [
        cv2.imdecode(np.frombuffer(files[n], np.uint8), 1)[..., ::-1]
        for n in sorted(files)
        if n.startswith(base) and n.endswith("png")
    ]
    np.testing.assert_array_equal(np.stack(cut), screened.crops)


def test_bad_files_are_listed_and_a_video_without_a_face_is_none(whole: Path) -> None:
    failed = [line.split("\t")[:2] for line in (whole / "failed.txt").read_text().splitlines()]
    assert sorted(failed) == [["broken.mp4", "DECODE_ERROR"], ["gone.mp4", "NOT_FOUND"]]
    lines = [json.loads(line) for line in (whole / "faces.jsonl").read_text().splitlines()]
    assert next(line for line in lines if "nobody" in line["key"])["faces"] == []


def test_a_killed_run_goes_on_to_the_same_result(whole: Path, data: Manifest, tmp_path: Path) -> None:
    """The kill fell into the second sample's shard and the journal's second line."""
    lines = (whole / "faces.jsonl").read_bytes().splitlines(keepends=True)
    told = [json.loads(line) for line in lines]
    first = next(n for n, line in enumerate(told) if line.get("shard"))
    kept = b"".join(lines[: first + 1])
    tmp_path.joinpath("settings.json").write_bytes((whole / "settings.json").read_bytes())
    tmp_path.joinpath("faces.jsonl").write_bytes(kept + lines[first + 1][:20])
    shard = (whole / "faces-000000.tar").read_bytes()
    tmp_path.joinpath("faces-000000.tar").write_bytes(shard[: told[first]["end"] + 700])
    with pytest.raises(UsageError, match="--resume goes on"):
        extract(data, tmp_path, SETTINGS)
    with pytest.raises(UsageError, match=r"differently: size was 64, is 32$"):
        extract(data, tmp_path, ExtractSettings(sample="uniform:3", size=32), resume=True)
    assert extract(data, tmp_path, SETTINGS, resume=True, workers=1) == (11, 1, 2)
    assert members(tmp_path) == members(whole)
    before = tmp_path.joinpath("faces-000000.tar").read_bytes()
    again = data.where(lambda s: s.video not in ("broken", "gone"))
    extract(again, tmp_path, SETTINGS, resume=True, workers=1)  # nothing to do: no worker starts, nothing changes
    assert tmp_path.joinpath("faces-000000.tar").read_bytes() == before


def test_folders_hold_the_same_bytes(whole: Path, data: Manifest, tmp_path: Path) -> None:
    settings = ExtractSettings(sample="uniform:3", size=64, layout="folders")
    extract(data.where(lambda s: s.video == "a b.v1"), tmp_path, settings, workers=1)
    files = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*_f*.*") if p.is_file()}
    expected = {name: data for name, data in members(whole).items() if "_v1" in name}
    assert files == expected


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    store = FaceStore(tmp_path, SETTINGS, resume=False)
    with pytest.raises(UsageError, match="another run"):
        FaceStore(tmp_path, SETTINGS, resume=True)
    store.close()


def test_unlabelled_and_doubled_samples_are_refused(data: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two samples"):
        extract(Manifest(data.samples[:1] * 2, data.root), tmp_path / "x", SETTINGS)
    with pytest.raises(DataError, match="no label"):
        extract(
            Manifest((Sample(dataset="d", video="v", label=None, path="v.mp4"),), data.root), tmp_path / "y", SETTINGS
        )
    assert not any(tmp_path.iterdir())
    for wrong in ({"faces": "some"}, {"size": 4}, {"sample": "first:3"}):
        with pytest.raises(UsageError):
            ExtractSettings(**wrong)


def test_names_never_collide_and_fit_webdataset() -> None:
    names = ["a b", "a_b", "a.b", "A_b", "ä", "-", "../../etc"]
    folders = [folder_of(Sample(dataset="s", video=name, label=0, path="x")) for name in names]
    assert len(set(folders)) == len(names)
    assert not any("." in folder or " " in folder for folder in folders)


def test_faces_that_fill_their_frames_are_found_and_stay_in_the_frame(data: Manifest, portrait: np.ndarray) -> None:
    found = FaceExtractor(data.root, SETTINGS)(data.samples[6])
    assert [record.frame for record, _ in found.faces] == [2, 10]
    x0, y0, x1, y1 = found.faces[0][0].box
    assert -40 < x0 < 40 < 90 < x1 < 170  # of a 130 px crop around a face of about 100 px
    assert -40 < y0 < 40 < 90 < y1 < 170


def test_shards_roll_and_are_plain_tars(tmp_path: Path) -> None:
    sink = TarSink(tmp_path, 3000)
    long = "d" * 90 + "/" + "n" * 90
    shards = [sink.write([(f"{long}{i}.png", os.urandom(1000)), (f"{long}{i}.json", b"{}")])[0] for i in range(4)]
    assert sink.write([]) == ("", 0)
    sink.close()
    assert [shard[6:12] for shard in shards] == ["000000", "000001", "000002", "000003"]
    assert len(members(tmp_path)) == 8
    assert all(path.stat().st_size % 512 == 0 for path in tmp_path.glob("*.tar"))


def test_frame_lists_are_sampled_over_their_whole_length(tmp_path: Path) -> None:
    for number in range(0, 100, 5):
        (tmp_path / f"f_{number}.png").write_bytes(png(np.full((8, 8, 3), number, np.uint8)))
    names = tuple(f"f_{number}.png" for number in range(0, 100, 5))
    sample = Sample(dataset="d", video="v", label=0, path=".", frames=names)
    footage = read_footage(sample, tmp_path, SamplingPolicy.parse("uniform:4"))
    assert [frame.index for frame in footage.frames] == [10, 35, 60, 85]  # evenly: never the first four
    assert [int(frame.rgb[0, 0, 0]) for frame in footage.frames] == [10, 35, 60, 85]
    (tmp_path / "f_35.png").write_bytes(b"torn")
    footage = read_footage(sample, tmp_path, SamplingPolicy.parse("uniform:4"))
    assert [frame.index for frame in footage.frames] == [10, 60, 85]
    assert footage.reasons == [Reason.TRUNCATED]
    for name in names:
        (tmp_path / name).unlink()
    with pytest.raises(MediaError, match=r"f_10\.png") as caught:
        read_footage(sample, tmp_path, SamplingPolicy.parse("uniform:4"))
    assert caught.value.reason == Reason.NOT_FOUND


def test_frame_numbers() -> None:
    assert frame_numbers(["a/f9.png", "a/f10.jpg"]) == [9, 10]
    assert frame_numbers(["set\\x\\000.png", "set\\x\\012.png"]) == [0, 12]
    assert frame_numbers(["b.png", "a1.png"]) == [0, 1]
    assert frame_numbers(["2.png", "1.png"]) == [0, 1]


def test_a_member_that_is_not_there_is_named(data: Manifest) -> None:
    sample = data.samples[5].model_copy(update={"member": "inner/none.mp4"})
    with pytest.raises(MediaError, match=r"inner/none\.mp4") as caught:
        read_footage(sample, data.root, SamplingPolicy.parse("all"))
    assert caught.value.reason == Reason.NOT_FOUND
