"""Groups of a data set's own faces: who is in them, that they are cut and degraded alike, and how they are dealt."""

import tarfile
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fastdetect.data.extract import Extracted, ExtractSettings, FaceRecord, FaceStore
from fastdetect.data.face_table import FaceTable
from fastdetect.data.forgery import Dice
from fastdetect.data.group_sampler import Group, GroupMaker, GroupSampler, held_out_faces
from fastdetect.data.manifest import Sample
from fastdetect.data.pairs import Deal, Pieces
from fastdetect.errors import DataError, ShapeError, UsageError
from fastdetect.faces.crop import crop_face, crop_square

FRAMES = (0, 12, 25)
SIZE = (240, 200)  # of the videos' frames


def scene(tint: int) -> np.ndarray:
    """A frame whose colours tell where one is in it: red grows to the right, green downwards; blue is the video's."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.stack([x, y, np.full_like(x, tint)], 2).astype(np.uint8)


def face(frame: int, box: tuple[float, ...], tint: int, track: int = 0) -> tuple[FaceRecord, bytes]:
    picture = crop_face(scene(tint), box, size=96, margin=1.75)
    data = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    x0, y0, x1, y1 = box
    return FaceRecord(
        track=track, frame=frame, time_s=frame / 25, box=(x0, y0, x1, y1), frame_size=SIZE,
        square=crop_square(box, 1.75), landmarks=[[30.0, 30.0]] * 5, detection=0.9, face_px=60.0, sharpness=0.1,
        brightness=0.5,
    ), data  # fmt: skip


def ffpp(video: str, method: str = "", *, split: str = "train", **more: str) -> Sample:
    target, _, source = video.partition("_")
    about = {"identity": f"ffpp:{target}", "pair": f"ff/c23/{target}", "split": split, "compression": "c23"}
    if method:
        swap = method in ("Deepfakes", "FaceSwap")
        about |= {"method": method, "manipulation": "swap" if swap else "reenactment", "target_identity": target}
        about |= {"source_identity": f"ffpp:{source}"}
    return Sample(dataset="ff", video=video, path=f"{method}/{video}.mp4", label=int(bool(method)), **(about | more))


def write(folder: Path, layout: str = "shards", fake_frames: tuple[int, ...] = FRAMES) -> Path:
    """Two train pairs with three methods each, one val pair; the fakes' boxes lie some pixels beside the reals'."""
    samples = [(ffpp(v, split="val" if v in ("071", "054") else "train"), FRAMES) for v in ("000", "003", "071", "054")]
    for method in ("Deepfakes", "Face2Face", "FaceSwap"):
        samples += [(ffpp(video, method), fake_frames) for video in ("000_003", "003_000")]
    samples += [(ffpp("071_054", "Deepfakes", split="val"), fake_frames)]
    settings = ExtractSettings(sample="fps:2", size=96, margin=1.75, layout=layout)
    with closing(FaceStore(folder, settings, resume=False)) as store:
        for tint, (sample, frames) in enumerate(samples):
            moved = 3.0 if sample.label else 0.0
            box = (70 + moved, 50 + moved, 120 + moved, 115.0)
            store.add(sample, Extracted([face(n, box, 20 * tint) for n in frames], 3, []), None)
        store.finish()
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("groups") / "faces")


@pytest.fixture(scope="module")
def table(faces: Path) -> FaceTable:
    return FaceTable.load(faces)


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_pictures_come_from_shards_and_folders_alike(table: FaceTable, tmp_path: Path) -> None:
    plain = FaceTable.load(write(tmp_path, layout="folders") / "faces.parquet")
    assert len(table) == len(plain) == 33
    for row in (0, 7, 32):
        np.testing.assert_array_equal(table.picture(row), plain.picture(row))
    np.testing.assert_array_equal(table.picture(0), crop_face(scene(0), table.box[0].tolist(), size=96, margin=1.75))
    (tmp_path / f"{plain.text['name'][5]}.png").write_bytes(b"torn")
    (tmp_path / f"{plain.text['name'][6]}.png").unlink()
    for row in (5, 6):
        with pytest.raises(DataError, match="extract again"):
            plain.picture(row)


def test_a_table_holds_what_was_asked_for(faces: Path, tmp_path: Path) -> None:
    some = FaceTable.load(faces, methods=["FaceSwap"])
    assert set(some.text["method"]) == {"", "FaceSwap"}
    assert (some.label == 0).sum() == 12
    with pytest.raises(UsageError, match="compressions: got c40; the extraction has c23"):
        FaceTable.load(faces, compressions=["c40"])
    with pytest.raises(UsageError, match="methods: got Nope; the extraction has Deepfakes, Face2Face, FaceSwap"):
        FaceTable.load(faces, methods=["Deepfakes", "Nope"])
    with pytest.raises(DataError, match="fastdetect data extract"):
        FaceTable.load(tmp_path)
    with pytest.raises(DataError, match=r"'test' has 0 real and 0 fake .* \['train', 'val'\]"):
        some.rows("test")
    with pytest.raises(DataError, match="'val' has 6 real and 0 fake"):
        some.rows("val")


def test_a_shard_that_is_missing_or_damaged_is_an_error_with_its_name(tmp_path: Path) -> None:
    (shard,) = write(tmp_path).glob("faces-*.tar")
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        member = tar.getmembers()[-1]
    for data in (b"", b"no tar" * 1000, whole[: len(whole) // 2], whole[: member.offset_data - 700]):
        shard.write_bytes(data)
        with pytest.raises(DataError, match="extract again"):
            FaceTable.load(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=r"faces-000000\.tar cannot be read .*No such file.* extract again"):
        FaceTable.load(tmp_path)


def test_footage_and_persons_of_two_splits_are_told(tmp_path: Path) -> None:
    def found(folder: Path, *samples: tuple[Sample, float]) -> FaceTable:
        with closing(FaceStore(folder, ExtractSettings(size=96, margin=1.75), resume=False)) as store:
            for sample, x in samples:
                store.add(sample, Extracted([face(n, (x, 50, x + 50, 115.0), 20) for n in FRAMES], 3, []), None)
            store.finish()
        return FaceTable.load(folder)

    train = [(ffpp("000"), 60.0), (ffpp("000_003", "FaceSwap"), 61.0)]
    clean = found(
        tmp_path / "clean", *train, (ffpp("071", split="val"), 62.0), (ffpp("071_054", "FaceSwap", split="val"), 63.0)
    )
    assert clean.shared_videos("train", "val") == []
    assert clean.persons("train") & clean.persons("val") == set()
    assert clean.persons("val") == {"ffpp:071", "071", "ffpp:054"}
    source = found(tmp_path / "source", *train, (ffpp("003", split="val"), 64.0))
    assert source.shared_videos("train", "val") == []
    assert source.persons("train") & source.persons("val") == {"ffpp:003"}  # as a fake's source
    footage = found(tmp_path / "footage", *train, (ffpp("000_071", "Deepfakes", split="val"), 65.0))
    assert footage.shared_videos("train", "val") == ["ff/fake/val/c23/Deepfakes/000_071"]
    copied = found(tmp_path / "copied", *train, (ffpp("555", split="val"), 60.0))  # 000 under another name
    assert copied.shared_videos("train", "val") == ["ff/real/val/c23/-/555"]


@pytest.mark.usefixtures("no_warning")
def test_a_group_is_a_frame_its_fakes_its_source_and_another_frame(table: FaceTable) -> None:
    sampler = GroupSampler(table, "train", fakes=2, seed=3)
    assert len(sampler) == 6  # two videos of three frames; every fake is some real's
    text = table.text
    for number in range(24):
        group = sampler.group(number)
        target, source, other = group.reals
        assert len(group.fakes) == 2
        assert all(group.own)
        for fake in group.fakes:
            assert text["pair"][fake] == text["pair"][target]
            assert table.frame[fake] == table.frame[target]
        assert len({text["method"][fake] for fake in group.fakes}) == 2
        assert text["identity"][source] != text["identity"][target]  # at least one of two of the three is a swap
        assert text["pair"][other] == text["pair"][target]
        assert table.frame[other] != table.frame[target]
        assert {text["split"][row] for row in group.rows} == {"train"}
        assert group == sampler.group(number)


@pytest.mark.usefixtures("no_warning")
def test_groups_lack_no_frame_in_an_epoch_and_ranks_share_none(table: FaceTable) -> None:
    sampler = GroupSampler(table, "train", fakes=3, seed=0)
    for epoch in range(3):
        targets = [sampler.group(6 * epoch + i).reals[0] for i in range(6)]
        assert sorted(targets) == sorted(sampler.units)
    assert [sampler.group(i).reals for i in range(6)] != [sampler.group(6 + i).reals for i in range(6)]

    def targets_of(rank: int, world: int, workers: int = 0) -> list[int]:
        make = GroupMaker(table, "train", 2, 32, fakes=1, seed=0)
        deal = Deal(2 * 3, rank, world, parts=3)
        made = [number for step in range(2) for number in deal.own(step, 0)]
        return [make.sampler.group(n * 2 + i).reals[0] for n in made for i in range(2)]

    ranks = [targets_of(rank, 3) for rank in range(3)]
    assert sorted(chain(*ranks)) == sorted(targets_of(0, 1)) == sorted([*sampler.units, *sampler.units])
    assert all(not set(a[:2]) & set(b[:2]) for i, a in enumerate(ranks) for b in ranks[:i])


def test_fakes_of_other_frames_are_drawn_in_balanced_groups_with_one_warning(tmp_path: Path) -> None:
    table = FaceTable.load(write(tmp_path, fake_frames=(1, 13)))
    with pytest.warns(UserWarning, match="12 of 12 fakes in 'train' have no real of the same footage") as caught:
        sampler = GroupSampler(table, "train", fakes=3, seed=0)
    assert len(caught) == 1
    assert len(sampler) == 12
    groups = [sampler.group(number) for number in range(12)]
    assert sorted(group.fakes[0] for group in groups) == sorted(sampler.units)
    assert all(len(group.reals) == 3 and len(group.fakes) == 3 and not any(group.own) for group in groups)
    reals = [row for number in range(400) for row in sampler.group(number).reals]
    share = np.mean([table.text["identity"][row] == "ffpp:000" for row in reals])
    assert 0.45 < share < 0.55  # persons evenly
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GroupSampler(table, "train", fakes=3, seed=0, warn=False)


def stored(folder: Path, *samples: tuple[Sample, list[tuple[FaceRecord, bytes]]]) -> FaceTable:
    with closing(FaceStore(folder, ExtractSettings(size=96, margin=1.75), resume=False)) as store:
        for sample, found in samples:
            store.add(sample, Extracted(found, 1, []), None)
        store.finish()
    return FaceTable.load(folder)


def test_a_face_elsewhere_or_in_a_frame_of_another_size_is_nobodys_pair(tmp_path: Path) -> None:
    left, right = (20.0, 50.0, 70.0, 110.0), (150.0, 60.0, 210.0, 130.0)
    record, data = face(0, left, 9)
    halved = replace(record, frame_size=(120, 100))
    table = stored(
        tmp_path,
        (ffpp("000"), [face(0, left, 0)]),
        (ffpp("000_003", "Deepfakes"), [face(0, right, 9)]),
        (ffpp("000_003", "FaceSwap"), [(halved, data)]),
    )
    with pytest.warns(UserWarning, match="2 of 2 fakes"):
        assert GroupSampler(table, "train", fakes=1, seed=0).paired == {}


def test_only_a_swap_brings_its_source_and_what_is_missing_is_drawn_evenly(tmp_path: Path) -> None:
    box = (70.0, 50.0, 120.0, 115.0)
    samples = [(ffpp(v), [face(0, box, 0)]) for v in ("000", "003", "005", "007")]
    samples += [(ffpp("000_003", "Face2Face"), [face(0, box, 9)])]
    samples += [(ffpp("003_005", "FaceSwap"), [face(n, box, 9) for n in (0, *range(100, 109))])]
    table = stored(tmp_path, *samples)
    sampler = GroupSampler(table, "train", fakes=3, seed=0, warn=False)
    names = table.text["identity"]
    for method, chosen, wanted in (("Face2Face", "ffpp:000", (1 / 3,) * 3), ("FaceSwap", "ffpp:003", (0, 1, 0))):
        groups = [
            group for group in map(sampler.group, range(1800)) if names[group.reals[0]] == chosen and group.own[0]
        ]
        assert table.text["method"][groups[0].fakes[0]] == method
        sources = [names[group.reals[1]] for group in groups]
        assert chosen not in sources
        others = sorted({"ffpp:000", "ffpp:003", "ffpp:005", "ffpp:007"} - {chosen})
        assert [sources.count(name) / len(groups) for name in others] == pytest.approx(wanted, abs=0.15)
        filled = [table.text["method"][row] for group in groups for row in group.fakes[1:]]
        assert filled.count("FaceSwap") / len(filled) == pytest.approx(0.5, abs=0.15)  # not ten in eleven
        assert all(group.own == [True, False, False] for group in groups)


def test_only_fakes_of_the_very_frame_are_cut_by_the_reals_square() -> None:
    assert Group([0, 1, 2], [3, 4], [True, False]).like_first == [True, False, False, True, False]


def test_epochs_are_in_orders_of_their_own(table: FaceTable) -> None:
    sampler = GroupSampler(table, "train", fakes=1, seed=0)
    orders = {tuple(sampler.group(6 * epoch + i).reals[0] for i in range(6)) for epoch in range(5)}
    assert len(orders) == 5


def test_a_group_is_degraded_alike(tmp_path: Path) -> None:
    """A fake that is its real's very picture stays that, through light, noise and compression."""
    box = (70.0, 50.0, 120.0, 115.0)
    table = stored(tmp_path, (ffpp("000"), [face(0, box, 0)]), (ffpp("000_003", "Face2Face"), [face(0, box, 0)]))
    make = GroupMaker(table, "train", 8, 64, fakes=1, seed=1)
    images = make(0, 0)[0].unflatten(0, (4, 8)).float()
    assert (images[0] - images[3]).abs().max() < 2e-3
    blue = images[0, :, 2]  # 0 in the frame: what is there was added
    assert (blue.amax((1, 2)) > 0.02).sum() >= 2


def test_of_several_persons_in_a_frame_the_overlapping_one_is_paired(tmp_path: Path) -> None:
    left, right = (20.0, 50.0, 70.0, 110.0), (150.0, 60.0, 210.0, 130.0)
    with closing(FaceStore(tmp_path, ExtractSettings(size=96, margin=1.75), resume=False)) as store:
        store.add(ffpp("000"), Extracted([face(0, left, 0), face(0, right, 0, 1)], 1, []), None)
        moved = (152.0, 58.0, 212.0, 128.0)
        store.add(ffpp("000_003", "Deepfakes"), Extracted([face(0, moved, 9), face(5, left, 9)], 1, []), None)
        store.finish()
    table = FaceTable.load(tmp_path)
    with pytest.warns(UserWarning, match="1 of 2 fakes"):
        sampler = GroupSampler(table, "train", fakes=1, seed=0)
    assert sampler.paired == {1: [2]}


@pytest.mark.usefixtures("no_warning")
def test_a_real_and_its_fakes_show_the_same_square_of_their_frame(table: FaceTable) -> None:
    """Red and green are places in the frame: equal for the real and its fakes though their boxes differ."""
    make = GroupMaker(table, "train", 4, 64, fakes=2, seed=1)
    groups = [make.sampler.group(i) for i in range(4)]
    rows = np.asarray([g.rows for g in groups]).T.reshape(-1)
    shown = np.asarray([[g.reals[0] if like else row for row, like in zip(g.rows, g.like_first, strict=True)]
                        for g in groups]).T.reshape(-1)  # fmt: skip
    dice = Dice(4, torch.Generator().manual_seed(0), torch.device("cpu"))
    crops = make._crops(rows, shown, dice).unflatten(0, (5, 4)) * 255
    for fake in (3, 4):
        torch.testing.assert_close(crops[fake, :, :2], crops[0, :, :2], rtol=0, atol=1.5)
        assert ((crops[fake, :, 2] - crops[0, :, 2]).abs().mean() > 5).all()  # another video
    # jitter differs from group to group, but not inside one: another frame of the same box moves alike
    torch.testing.assert_close(crops[2, :, :2], crops[0, :, :2], rtol=0, atol=1.5)
    widths = [(c[0].max() - c[0].min()).item() for c in crops[0]]
    assert max(widths) - min(widths) > 3


@pytest.mark.usefixtures("no_warning")
def test_parts_of_a_batch_are_balanced_seeded_and_equal_in_any_worker(table: FaceTable) -> None:
    make = GroupMaker(table, "train", 2, 32, fakes=3, seed=1)
    images, labels = make(4, 0)
    assert images.shape == (12, 3, 32, 32)
    assert images.dtype == torch.float16
    assert labels.tolist()[:6] == [0] * 6
    assert {*labels.tolist()[6:]} == {1, 2, 3}  # Deepfakes, Face2Face, FaceSwap
    again, _ = GroupMaker(table, "train", 2, 32, fakes=3, seed=1)(4, 0)
    assert torch.equal(images, again)
    assert not torch.equal(images, make(5, 0)[0])
    loader = Pieces(make, Deal(4, parts=2), start=2).loader(2)
    batches = [next(loader) for _ in range(3)]
    assert torch.equal(batches[0][0], torch.cat([images, make(5, 0)[0]]))
    assert torch.equal(batches[2][0], torch.cat([make(8, 0)[0], make(9, 0)[0]]))
    with pytest.raises(ShapeError, match="multiple of 16"):
        GroupMaker(table, "train", 2, 40, fakes=1, seed=0)


def test_some_groups_go_through_h264_as_a_whole_and_the_others_stay(table: FaceTable) -> None:
    options = {"fakes": 2, "seed": 1}
    plain, labels = GroupMaker(table, "train", 8, 64, **options)(0, 0)
    make = GroupMaker(table, "train", 8, 64, h264=0.5, **options)
    images, same = make(0, 0)
    assert torch.equal(labels, same)
    assert torch.equal(images, make(0, 0)[0])
    changed = (images != plain).flatten(1).any(1).view(5, 8)  # [member, group]
    assert torch.equal(changed, changed[:1].expand(5, -1))
    assert 0 < changed[0].sum() < 8
    assert (images - plain).abs().mean() < 0.1
    assert images.min() >= 0
    assert images.max() <= 1
    assert (GroupMaker(table, "train", 8, 64, h264=1.0, **options)(0, 0)[0] != plain).flatten(1).any(1).all()


def test_held_out_faces_are_cut_as_screening_cuts_them(table: FaceTable) -> None:
    images, labels = held_out_faces(table, "val", 48, each=2)
    assert labels.tolist() == [0, 0, 1, 1]
    rows = np.flatnonzero((table.text["split"] == "val") & (table.label == 0))
    last = crop_face(table.picture(rows[-1]), (21, 21, 75, 75), size=48, margin=1.0).mean((0, 1))
    assert np.abs(images[1].float().mean((1, 2)).numpy() - last).max() < 20  # the other end of the table
    row = int(np.flatnonzero((table.text["split"] == "val") & (table.label == 0))[0])
    wanted = crop_face(scene(40), table.box[row].tolist(), size=48)
    difference = np.abs(images[0].permute(1, 2, 0).numpy().astype(int) - wanted)
    assert difference.max() <= 2
