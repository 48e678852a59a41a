"""Faces found on a torch device: the CPU's crops and scores, and a device that fails costs no file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from screen_clips import write_clip

from fastdetect.faces.device import DeviceFaceDetector
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.model import Model
from fastdetect.screening.pipeline import Screener, default_workers
from fastdetect.screening.stages import Extractor, Job, StageSettings
from fastdetect.video import dali

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


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory, face_frames: Callable[..., list[np.ndarray]]) -> Path:
    folder = tmp_path_factory.mktemp("media")
    return write_clip(folder / "person.webm", face_frames(20), codec="libvpx-vp9")


@pytest.mark.parametrize("decoder", ["pyav", DALI])
def test_what_a_device_finds_is_what_the_cpu_finds(media: Path, decoder: str) -> None:
    there = Extractor(replace(SETTINGS, decoder=decoder))(Job(str(media)))
    here = Extractor(replace(SETTINGS, decoder=decoder, detect_runtime="onnxruntime"))(Job(str(media)))
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


def test_scores_are_the_cpus(media: Path, model_folder: Path) -> None:
    rows = []
    for runtime in ("torch", "onnxruntime"):
        config = ScreenConfig.model_validate(
            {
                "model": str(model_folder),
                "engine": "torch",
                "precision": "fp32",
                "device": "cpu",
                "workers": 1,
                "sample": "uniform:6",
                "detection": {"runtime": runtime},
            }
        )
        with Model.load(config) as model:
            assert model.identity(config)["detector"] == runtime  # --resume does not mix them
            rows += Screener(model, config, media=None).screen(expand_inputs([str(media)]))
    there, here = rows
    assert there.verdict == here.verdict
    assert (there.detector or "").startswith("centerface/torch-")
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


def test_a_device_without_memory_costs_a_file_nothing_but_time(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor, calls = Extractor(SETTINGS), []
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


def test_a_device_that_takes_no_more_processes_leaves_the_work_to_the_cpu(
    media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: DeviceFaceDetector, *_: object) -> str:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory at the start")

    monkeypatch.setattr(DeviceFaceDetector, "_load", refuse)
    found = Extractor(SETTINGS)(Job(str(media)))
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
