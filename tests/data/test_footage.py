"""Archives that people really have: damaged, encrypted, packed by other programs, gone. Each costs its sample alone."""

import importlib.util
import random
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from fastdetect.data.footage import copy_member, frame_bytes
from fastdetect.data.layouts import read_layout
from fastdetect.data.manifest import Sample
from fastdetect.errors import DataError, MediaError
from fastdetect.reasons import Reason

NAME = "v/0.png"
_FLAGS, _METHOD = 0, 2  # bytes after the version, in a zip's local header and in its directory


def sample(path: str, container: str) -> Sample:
    return Sample(dataset="set", video="v", label=0, path=path, container=container, member=NAME, frames=(NAME,))


def zipped(path: Path, compression: int) -> bytearray:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(NAME, bytes(random.Random(0).choices(b"abcdefgh", k=20_000)))
    return bytearray(path.read_bytes())


def set_in_headers(data: bytearray, place: int, value: int) -> None:
    for signature, version in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(signature) + version + place] = value


def read_both_ways(one: Sample, root: Path) -> list[MediaError]:
    with pytest.raises(MediaError) as frames:
        frame_bytes(one, root, one.frames)
    with pytest.raises(MediaError) as video:
        copy_member(one, root, BytesIO())
    return [frames.value, video.value]


@pytest.mark.parametrize("how", ["damaged", "encrypted", "deflate64"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_that_cannot_be_unpacked(tmp_path: Path, how: str, compression: int) -> None:
    data = zipped(tmp_path / "a.zip", compression)
    if how == "damaged":
        data[2000:2040] = bytes(byte ^ 0xFF for byte in data[2000:2040])
    elif how == "encrypted":
        set_in_headers(data, _FLAGS, 1)
    else:  # what Windows makes of large files
        set_in_headers(data, _METHOD, 9)
    (tmp_path / "a.zip").write_bytes(data)
    for error in read_both_ways(sample("a.zip", "zip"), tmp_path):
        assert error.reason is Reason.DECODE_ERROR
        assert str(tmp_path / "a.zip") in str(error)


@pytest.mark.skipif(importlib.util.find_spec("lmdb") is None, reason="needs lmdb")
def test_an_lmdb_folder_that_is_gone_or_damaged(tmp_path: Path) -> None:
    gone = sample("gone_lmdb", "lmdb")
    with pytest.raises(MediaError) as caught:
        frame_bytes(gone, tmp_path, gone.frames)
    assert caught.value.reason is Reason.NOT_FOUND
    (tmp_path / "gone_lmdb").mkdir()
    (tmp_path / "gone_lmdb" / "data.mdb").write_bytes(b"\0" * 8192)
    with pytest.raises(MediaError) as caught:
        frame_bytes(gone, tmp_path, gone.frames)
    assert caught.value.reason is Reason.DECODE_ERROR


def test_an_index_of_archives_that_are_damaged_is_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    for part in ("real_train", "fake_train"):
        (tmp_path / "wild" / part).mkdir(parents=True)
        with tarfile.open(tmp_path / "wild" / part / "1.tar.gz", "w:gz") as archive:
            for number in range(3):
                info = tarfile.TarInfo(f"1/{part[:4]}/0/{number}.png")
                info.size = 60_000
                archive.addfile(info, BytesIO(bytes(rng.choices(b"abcdefgh", k=info.size))))
    broken = tmp_path / "wild" / "fake_train" / "1.tar.gz"
    data = bytearray(broken.read_bytes())
    data[10_000:10_040] = bytes(range(200, 240))
    broken.write_bytes(data)
    with pytest.raises(DataError, match=r"1\.tar\.gz is not a readable tar: .*download it again"):
        read_layout(tmp_path / "wild")
    path = tmp_path / "dfdc" / "dfdc_train_part_0.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dfdc_train_part_0/metadata.json", "{}")
    data = bytearray(path.read_bytes())
    set_in_headers(data, _FLAGS, 1)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"part_0\.zip is not a readable zip: .*encrypted.*download it again"):
        read_layout(path.parent)
