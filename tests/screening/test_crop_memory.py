"""Crops that stay on the device: what workers leave in the main process's memory is what it scores."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from screen_clips import write_clip

from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.crop_memory import FACES, CropMemory, CropWriter
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.model import Model
from fastdetect.screening.pipeline import Screener
from fastdetect.screening.results import Row
from fastdetect.video import dali, nvcodec
from fastdetect.video.lanes import nvdec
from fastdetect.video.worker import WorkerLimits, WorkerPool

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
DECODED_THERE = [  # frames that stay where they were decoded: on the CPU only DALI leaves them as tensors
    pytest.param("cpu", marks=pytest.mark.skipif(dali.installed() is None, reason="DALI is not installed")),
    pytest.param(
        "cuda",
        marks=[
            *GPU,
            pytest.mark.skipif(nvdec(0) is None, reason="needs NVDEC"),
            pytest.mark.skipif(not (dali.installed() or nvcodec.installed()), reason="needs DALI or PyNvVideoCodec"),
        ],
    ),
]


@pytest.fixture(autouse=True)
def by_name() -> Iterator[None]:
    """On a CPU torch shares memory by name here, since workers are no children of torch's own."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    yield
    torch.multiprocessing.set_sharing_strategy(before)


class Painter:
    """A worker that fills its place with its job's number; a negative one kills it in the middle."""

    def __init__(self, handle: bytes, device: str) -> None:
        self.writer, self.device = CropWriter(handle), device

    def __call__(self, job: tuple[int, int, int]) -> bool:
        place, number, count = job
        done = self.writer.put(place, torch.full((count, 8, 8, 3), abs(number), dtype=torch.uint8, device=self.device))
        if number < 0:
            os._exit(9)
        return done


@pytest.mark.parametrize("device", DEVICES)
def test_processes_write_and_the_owner_reads(device: str) -> None:
    memory = CropMemory(device, 3, 8)
    places = [memory.take() for _ in range(4)]
    assert places == [0, 1, 2, None]
    jobs = [(0, 7, 5), (1, -9, 2), (2, 11, FACES + 1)]
    arguments = {"handle": memory.handle, "device": device}
    limits = WorkerLimits(address_space_bytes=None)  # CUDA reserves more than it uses
    with WorkerPool("test_crop_memory:Painter", workers=2, init_args=arguments, limits=limits, env=_here()) as pool:
        found = {result.job[0]: result for result in pool.map(jobs)}
    assert found[0].value is True
    assert (memory.crops(0, 5) == 7).all()
    assert "9" in str(found[1].error)  # it died: the memory is the owner's, and stays
    assert found[2].value is False  # too many faces for a place
    assert (memory.crops(2, FACES) == 0).all()
    memory.give_back(1)
    assert (memory.take(), memory.take()) == (1, None)


def _here() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}


def test_a_handle_that_cannot_be_opened_is_an_error() -> None:
    memory = CropMemory("cpu", 1, 8)
    handle = memory.handle
    broken = handle.replace(b"/torch_", b"/tarch_")
    assert broken != handle
    with pytest.raises(RuntimeError):
        CropWriter(broken)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, face_frames: Callable[..., list[np.ndarray]]) -> list[Path]:
    folder, frames = tmp_path_factory.mktemp("clips"), face_frames(20)
    made = [write_clip(folder / f"{i}.webm", frames[i:], codec="libvpx-vp9") for i in range(3)]
    (folder / "broken.webm").write_bytes(made[0].read_bytes()[:300])
    return [*made, folder / "broken.webm"]


def rows_of(model_folder: Path, clips: list[Path], media: Path | None, device: str) -> list[Row]:
    config = ScreenConfig.model_validate(
        {
            "model": str(model_folder), "engine": "torch", "precision": "fp32", "device": device, "workers": 2,
            "sample": "uniform:6", "decoder": "dali" if device == "cpu" else "auto",
            "detection": {"runtime": "torch"}, "media": media is not None,
        }
    )  # fmt: skip
    with Model.load(config) as model:
        rows = list(Screener(model, config, media=media).screen(expand_inputs([str(path) for path in clips])))
    return sorted(rows, key=lambda row: row.path)


@pytest.mark.parametrize("device", DECODED_THERE)
@pytest.mark.parametrize("with_media", [False, True])
def test_scores_are_those_of_crops_that_are_sent(
    model_folder: Path,
    clips: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_media: bool,
    device: str,
) -> None:
    monkeypatch.setattr(Screener, "_same_gpu", lambda self: False)
    sent = rows_of(model_folder, clips, tmp_path / "sent" if with_media else None, device)
    held, crops = [], CropMemory.crops

    def counted(self: CropMemory, place: int, count: int) -> torch.Tensor:
        held.append((self, place, count))
        return crops(self, place, count)

    monkeypatch.setattr(CropMemory, "crops", counted)
    monkeypatch.setattr(Screener, "_same_gpu", lambda self: True)
    stayed = rows_of(model_folder, clips, tmp_path / "stayed" if with_media else None, device)
    assert [count for _, _, count in held] == [6, 6, 6]
    assert sorted(held[0][0]._free) == list(range(4 * 2 + 8))  # every place came back, the broken file's too
    assert [row.status for row in stayed] == [row.status for row in sent] == ["ok", "ok", "ok", "failed"]
    assert [row.score for row in stayed] == [row.score for row in sent]
    assert [row.faces_scored for row in stayed] == [6, 6, 6, 0]
    assert {row.device for row in stayed} == {device}
    if with_media:
        names = sorted(path.relative_to(tmp_path / "sent") for path in (tmp_path / "sent").rglob("*.jpg"))
        assert len(names) == 3
        assert all((tmp_path / "stayed" / n).read_bytes() == (tmp_path / "sent" / n).read_bytes() for n in names)


@pytest.mark.parametrize("device", DECODED_THERE)
def test_memory_that_cannot_be_shared_sends_the_crops(
    model_folder: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    def refuse(self: CropMemory, *_: object) -> None:
        raise RuntimeError("CUDA error: operation not supported\nmore")

    monkeypatch.setattr(CropMemory, "__init__", refuse)
    monkeypatch.setattr(Screener, "_same_gpu", lambda self: True)
    rows = rows_of(model_folder, clips[:1], None, device)
    assert rows[0].faces_scored == 6
    assert (
        rows[0].decode_note
        == "crops cross the host, their memory cannot be shared: CUDA error: operation not supported"
    )


def test_one_memory_for_all_runs_of_a_screener(
    model_folder: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, init = [], CropMemory.__init__

    def counted(self: CropMemory, device: str, places: int, size: int) -> None:
        made.append(self)
        init(self, device, places, size)

    monkeypatch.setattr(CropMemory, "__init__", counted)
    monkeypatch.setattr(Screener, "_same_gpu", lambda self: True)
    options = {"model": str(model_folder), "engine": "torch", "precision": "fp32", "device": "cpu", "workers": 1}
    config = ScreenConfig.model_validate({**options, "sample": "uniform:3", "media": False, "decoder": "pyav"})
    files = expand_inputs([str(path) for path in clips])
    with Model.load(config) as model:
        screener = Screener(model, config, media=None)
        first = screener.screen(files)
        next(first)
        first.close()  # stopped, with places taken
        assert len(list(screener.screen(files))) == len(files)
    assert len(made) == 1
    assert sorted(made[0]._free) == list(range(4 * 1 + 8))
