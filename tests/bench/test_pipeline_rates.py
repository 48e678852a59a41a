"""Files to verdicts beside the decoder alone: rows that were made elsewhere are red, and so is a run that failed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import harness, pipeline, records
from bench.__main__ import main
from bench.registry import Shape
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.results import Row
from fastdetect.video import dali
from fastdetect.video.lanes import Machine, choose
from fastdetect.video.planned import plan_clip
from fastdetect.video.probe import DEFAULT_LIMITS, probe
from fastdetect.video.sampling import SamplingPolicy

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NVDEC = {"device": "cuda:0", "decoder": "dali-2.4.0/nvdec", "detector": "centerface/torch-2.11"}
(TINY,) = pipeline.SHAPES["tiny"]


def row(second: float = 0.0, **changes: Any) -> Row:
    """A row of a file that was screened on the CPU; nothing else of it is looked at."""
    values = {
        "path": "/a.mp4", "status": "ok", "score": 0.3, "reasons": [], "message": "", "device": "cpu",
        "decoder": "pyav-18", "decode_note": "", "detector": "centerface/onnxruntime", "frames_decoded": 12,
        "timings_s": {"decode": 0.2}, "engine": "torch", "precision": "fp32",
        "finished_at": f"2026-01-01T00:00:{second:06.3f}+00:00",
    }  # fmt: skip
    return Row.model_construct(**values | changes)


def test_videos_per_hour_and_the_decoder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage", reason="the face is scikit-image's")
    path = tmp_path / "r.json"
    arguments = ["--shapes", "tiny", "--device", "cpu", "--threads", "1", "--results", str(path)]
    assert main(["screening", "pipeline", *arguments]) == 0
    (case,) = records.load(path)["suites"]["screening"]["cases"]
    ours, alone = case["providers"]["ours"], case["providers"]["DALI alone"]
    assert ours["videos_per_hour"] == pytest.approx(3.6e6 / ours["time_ms"])
    assert ours["made_by"]["device"] == {"cpu": 3}
    assert ours["frames_decoded"] == 36
    if dali.installed() is None:
        assert (alone["status"], alone["note"], case["decode_share"]) == ("skipped", "missing: DALI", None)
    else:
        assert case["decode_share"] == pytest.approx(ours["steady_videos_per_hour"] / alone["videos_per_hour"])
    capsys.readouterr()
    assert main(["table", str(path)]) == 0
    assert "videos/h" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "device", "nvdec", "words"),
    [
        ({}, CPU, False, ""),
        (NVDEC, CUDA, True, ""),
        (NVDEC | {"decoder": "pyav-18", "decode_note": "DALI is not installed"}, CUDA, False, ""),
        (NVDEC | {"decoder": "pyav-18"}, CUDA, True, "decoded by pyav-18, want NVDEC"),
        (NVDEC | {"decode_note": "crops cross the host"}, CUDA, True, "crops cross the host"),
        (NVDEC | {"detector": "centerface/onnxruntime"}, CUDA, True, "found by centerface/onnxruntime"),
        (NVDEC | {"device": "cpu"}, CUDA, True, "ran on cpu, want cuda"),
        ({"score": None, "reasons": ["no_face"]}, CPU, False, "no score: no_face"),
        ({"status": "failed", "score": None, "message": "broken"}, CPU, False, "failed, no score: broken"),
    ],
)
def test_rows_that_were_made_elsewhere_are_found(changes: Any, device: torch.device, nvdec: bool, words: str) -> None:
    good = row(**NVDEC) if nvdec else row(device=device.type, detector="centerface/torch-2.11")
    found = pipeline.trouble([good, row(**changes)], device, nvdec)
    assert (found == "") == (words == "")
    assert found.startswith("1 of 2 files: ") or not words
    assert words in found


def test_such_a_run_keeps_no_rate_and_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage", reason="the face is scikit-image's")
    rows = [row(second) for second in (0.0, 0.5, 1.0)]
    monkeypatch.setattr(pipeline, "_screen", lambda files, config: rows)
    case = pipeline.pipeline_case(TINY, CPU, turns=2)
    assert harness.problems(case) == []
    assert case["providers"]["ours"]["steady_videos_per_hour"] == pytest.approx(7200)
    rows[1] = row(0.5, decode_note="DALI failed")
    case = pipeline.pipeline_case(TINY, CPU, turns=1)
    assert "1 of 3 files: DALI failed" in harness.problems(case)[0]
    assert case["decode_share"] is None
    assert "videos_per_hour" not in case["providers"]["ours"]


@pytest.mark.parametrize(("code", "fine"), [(0, True), (1, True), (3, False), (130, False)])
def test_flagged_files_are_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, fine: bool) -> None:
    def screen(files: Any, output: Path, config: Any, console: Any) -> Any:
        (output / "results.jsonl").write_text("")
        return SimpleNamespace(exit_code=code, counts={"failed": 1})

    monkeypatch.setattr(pipeline, "run_screening", screen)
    (tmp_path / "a.mp4").touch()
    if fine:
        assert pipeline._screen([tmp_path / "a.mp4"], ScreenConfig()) == []
    else:
        with pytest.raises(RuntimeError, match=f"exit code {code}"):
            pipeline._screen([tmp_path / "a.mp4"], ScreenConfig())


def test_the_rate_once_it_runs_leaves_the_first_quarter_out() -> None:
    rows = [row(second) for second in (9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0)]
    assert pipeline.steady_rate(rows) == pytest.approx(3600)
    rows[0] = row(0.0)  # a slow start
    assert pipeline.steady_rate(rows) == pytest.approx(3600)
    assert pipeline.steady_rate(rows[:1]) is None


@pytest.mark.parametrize("shape", pipeline.SHAPES["cuda"], ids=str)
def test_the_clips_for_a_gpu_are_nvdecs(tmp_path: Path, shape: Shape) -> None:
    pytest.importorskip("skimage", reason="the face is scikit-image's")
    paths = pipeline.make_clips(tmp_path, Shape({**shape.values, "frames": 8, "clips": 3, "distinct": 1}, ""))
    assert len({path.stat().st_ino for path in paths}) == 1
    info = probe(paths[2])
    assert (info.width, info.height, info.codec) == (shape["width"], shape["height"], "h264")
    assert choose(info, "auto", Machine("2.4.0", (9, 0))).lane == "nvdec"
    plan_clip(info, SamplingPolicy.parse("uniform:4"), None, DEFAULT_LIMITS)  # it is not left to PyAV
    assert shape["clips"] % shape["distinct"] == 0  # DALI alone repeats the distinct ones
