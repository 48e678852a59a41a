"""Faces found on a torch device: the CPU's crops and scores, and a device that fails costs no file.

On the CPU torch is held against ONNX Runtime; marked gpu, CUDA and NVDEC are.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from screen_clips import write_clip

from fastdetect.engines import machine
from fastdetect.errors import FastdetectError, MediaError
from fastdetect.faces.device import DeviceFaceDetector
from fastdetect.reasons import Reason
from fastdetect.screening import pipeline, stages
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.model import Model, default_threads
from fastdetect.screening.pipeline import Screener, default_workers
from fastdetect.screening.results import Row
from fastdetect.screening.stages import Extractor, Job, StageSettings
from fastdetect.video import dali, nvcodec
from fastdetect.video.lanes import nvdec

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SETTINGS = StageSettings(
    sampling="uniform:6",
    max_seconds=None,
    largest_only=False,
    detect_side=320,
    detect_score=0.5,
    detect_runtime="torch",
    max_people=4,
    max_faces=64,
    crop_size=128,
    crop_margin=1.3,
    decoder="pyav",
)
DALI = pytest.param("dali", marks=pytest.mark.skipif(dali.installed() is None, reason="DALI is not installed"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def settings(device: str) -> StageSettings:
    return replace(SETTINGS, detect_device=device, decode_device=0 if device == "cuda" else None)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory, face_frames: Callable[..., list[np.ndarray]]) -> Path:
    folder = tmp_path_factory.mktemp("media")
    return write_clip(folder / "person.webm", face_frames(20), codec="libvpx-vp9")


@pytest.mark.parametrize("decoder", ["pyav", DALI])
def test_what_a_device_finds_is_what_the_cpu_finds(media: Path, settings: StageSettings, decoder: str) -> None:
    there = Extractor(replace(settings, decoder=decoder))(Job(str(media)))
    here = Extractor(replace(settings, decoder=decoder, detect_runtime="onnxruntime"))(Job(str(media)))
    assert there.error is None
    assert there.note == ""
    assert there.detector is not None
    assert here.detector is not None
    assert (there.detector.split("-")[0], here.detector.split("-")[0]) == ("centerface/torch", "centerface/onnxruntime")
    assert there.decoder == here.decoder
    assert there.crops.shape == here.crops.shape == (6, 128, 128, 3)
    # a box that is a pixel larger moves the whole crop a little
    assert np.abs(there.crops.astype(int) - here.crops).mean() < 3
    (mine,), (theirs,) = there.tracks, here.tracks
    assert [face.frame for face in mine] == [face.frame for face in theirs]
    assert max(abs(a.quality.brightness - b.quality.brightness) for a, b in zip(mine, theirs, strict=True)) < 0.01


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, face_frames: Callable[..., list[np.ndarray]]) -> list[Path]:
    folder, codecs = tmp_path_factory.mktemp("clips"), ("libx264", "libx265", "libvpx-vp9")
    sizes = ((256, 1.0), (256, 1.4), (384, 1.0), (512, 0.8))
    return [
        write_clip(folder / f"{codec}-{side}-{zoom}.mkv", face_frames(20, side=side, zoom=zoom), codec=codec)
        for codec, (side, zoom) in zip((*codecs, "libx264"), sizes, strict=True)
    ]


def test_scores_are_the_cpus(clips: list[Path], device: str) -> None:
    """From the files to the verdicts of the shipped model."""
    rows: list[list[Row]] = []
    for where, runtime, decoder in ((device, "torch", "auto"), ("cpu", "onnxruntime", "pyav")):
        config = ScreenConfig.model_validate(
            {
                "engine": "torch",
                "precision": "fp32",
                "device": where,
                "decoder": decoder,
                "workers": 1,
                "media": False,
                "sample": "uniform:6",
                "detection": {"runtime": runtime},
            }
        )
        with Model.load(config) as model:
            assert model.identity(config)["detector"] == runtime  # --resume does not mix them
            found = Screener(model, config, media=None).screen(expand_inputs([str(path) for path in clips]))
            rows.append(sorted(found, key=lambda row: row.path))
    assert len(rows[0]) == len(clips)
    on_nvdec = device == "cuda" and nvdec(0) and (dali.installed() or nvcodec.installed())
    for there, here in zip(*rows, strict=True):
        assert there.verdict == here.verdict
        assert there.device == device
        assert (there.detector or "").startswith("centerface/torch-")
        assert (there.decoder or "").endswith("/nvdec") is bool(on_nvdec)
        if device == "cpu" or on_nvdec:
            assert there.decode_note == ""
        assert there.score is not None
        assert here.score is not None
        assert abs(there.score - here.score) <= 0.02


@pytest.mark.parametrize(
    ("name", "device", "precision", "wanted"),
    [
        ("openvino-2026.1", "cpu", "bf16", "openvino"),
        ("openvino-2026.1", "cpu", "fp32", "onnxruntime"),
        ("torch-2.15", "cpu", "bf16", "onnxruntime"),
        ("torch-2.15", "cuda:0", "bf16", "torch"),
    ],
)
def test_the_detector_goes_with_the_model(name: str, device: str, precision: str, wanted: str) -> None:
    engine = SimpleNamespace(name=name, device=device, precision=precision)
    model = Model(engine, info=None, preprocess=None, calibration=None, thresholds=[])  # type: ignore[arg-type]
    assert model.detector_runtime(ScreenConfig()) == wanted
    asked = ScreenConfig.model_validate({"detection": {"runtime": "torch"}})
    assert model.detector_runtime(asked) == "torch"


def test_a_device_without_memory_costs_a_file_nothing_but_time(
    media: Path, settings: StageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor, calls = Extractor(settings), []
    run = DeviceFaceDetector._run

    def full(self: DeviceFaceDetector, pictures: torch.Tensor, scale: float) -> list:
        calls.append(len(pictures))
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(self, pictures, scale)

    monkeypatch.setattr(DeviceFaceDetector, "_run", full)
    good, spoiled, again = (extractor(Job(str(media))) for _ in range(3))
    assert (good.note, again.note) == ("", "")
    assert good.detector == again.detector
    assert "out of memory" in spoiled.note
    assert (spoiled.detector or "").startswith("centerface/onnxruntime")
    assert [len(found.crops) for found in (good, spoiled, again)] == [6, 6, 6]


@pytest.mark.parametrize(("gone", "reason"), [(False, Reason.DECODE_ERROR), (True, Reason.NOT_FOUND)])
def test_a_file_on_a_bad_disk_costs_itself_alone(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool, reason: Reason
) -> None:
    path = tmp_path / "bad.webm"
    path.write_bytes(media.read_bytes())

    def fail(_: str) -> str:
        if gone:
            path.unlink()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(stages, "file_sha256", fail)
    found = Extractor(SETTINGS)(Job(str(path)))
    assert found.error is not None
    assert (found.error.reason, found.sha256, found.bytes) == (reason, None, media.stat().st_size)
    assert "Input/output error" in str(found.error)


@pytest.mark.parametrize("kind", ["bad", "hanging", "folder", "pipe"])
def test_the_file_of_a_worker_that_died_may_be_unreadable(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def fail(_: str) -> str:
        if kind == "hanging":
            time.sleep(60)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pipeline, "_HASH_S", 0.2)
    path = {"bad": media, "hanging": media, "folder": tmp_path, "pipe": tmp_path / "pipe"}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    else:
        monkeypatch.setattr(pipeline, "file_sha256", fail)
    lost = pipeline._lost(str(path), MediaError(Reason.CRASH, "SIGKILL"))
    assert lost.error is not None
    assert (lost.error.reason, lost.sha256) == (Reason.CRASH, None)


def test_a_device_that_takes_no_more_processes_leaves_the_work_to_the_cpu(
    media: Path, settings: StageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: DeviceFaceDetector, *_: object) -> str:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory at the start")

    monkeypatch.setattr(DeviceFaceDetector, "_load", refuse)
    found = Extractor(settings)(Job(str(media)))
    assert len(found.crops) == 6
    assert "at the start" in found.note


@pytest.mark.parametrize(("free", "cores", "workers"), [(9, 16, 4), (100, 16, 16), (1, 16, 1), (3.9, 2, 1)])
def test_no_more_workers_than_the_gpu_has_memory_for(
    monkeypatch: pytest.MonkeyPatch, free: float, cores: int, workers: int
) -> None:
    asked: list[str] = []

    def memory(device: str) -> tuple[int, int]:
        asked.append(device)
        return int(free * 2**30), 2**40

    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    assert default_workers("cuda:1") == workers
    assert asked == ["cuda:1"]
    assert default_workers() == cores


@pytest.mark.timeout(60)
def test_a_fault_on_the_way_to_the_workers_ends_the_run(
    model_folder: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Screener, paths: list[str]) -> None:
        raise MemoryError

    monkeypatch.setattr(Screener, "_jobs", fail)
    options = {"model": str(model_folder), "engine": "torch", "precision": "fp32", "media": False, "workers": 1}
    config = ScreenConfig.model_validate(options)
    with Model.load(config) as model, pytest.raises(FastdetectError, match="MemoryError"):
        list(Screener(model, config, media=None).screen(expand_inputs([str(media)])))


@pytest.mark.parametrize(
    ("quota", "workers"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 16),
        ("max 100000", 16),
        ("", 16),
    ],
)
def test_no_more_workers_than_a_container_has_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, workers: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert default_workers() == workers
    assert default_threads() == max(1, workers // 2)
