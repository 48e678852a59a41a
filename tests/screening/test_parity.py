"""The parity table: every decoder and engine that is here, one line each, and an exit code that tells."""

import math
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from fastdetect.engines import torch_engine
from fastdetect.errors import UsageError
from fastdetect.screening import parity
from fastdetect.screening.model import Model
from fastdetect.screening.results import Row
from fastdetect.video import dali, lanes


def shown(found: list[parity.Parity]) -> tuple[int, list[str]]:
    text = StringIO()
    return parity.show(found, Console(file=text, width=300)), text.getvalue().splitlines()


def test_decoders_agree_and_a_difference_is_an_error(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_CODECS", {name: parity._CODECS[name] for name in ("vp9.webm", "mjpeg.avi")})
    found = list(parity.compare(("torch",), model=str(model_folder)))
    for kind in ("fp32", "as screened"):
        by_pyav, by_dali = ([x for x in found if (x.decoder, x.kind) == (name, kind)] for name in ("pyav", "dali"))
        assert [one.clip for one in by_pyav] == ["mjpeg.avi", "vp9.webm"]
        if kind == "fp32":
            assert [(one.difference, one.residual) for one in by_pyav] == [(0.0, 0.0)] * 2
        if dali.installed() is None:
            assert [one.row for one in by_dali] == [None]
        else:
            assert [one.clip for one in by_dali] == ["mjpeg.avi", "vp9.webm"]
            assert all(one.row is not None and (one.row.decoder or "").startswith("dali-") for one in by_dali)
            assert all(one.difference is not None and one.difference > 0 for one in by_dali)
    code, lines = shown(found)
    assert code == 0
    assert len(lines) == 1 + len(found) + 1
    assert "limit 0.02" in lines[-1]
    monkeypatch.setattr(parity, "LIMIT", -1.0)
    assert shown(found)[0] == 1


def test_what_screening_takes_is_compared_with_fp32_on_the_cpu(
    clip: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "DECODERS", ("pyav",))
    monkeypatch.setattr(torch_engine, "best_precision", lambda device: "bf16")
    exact, screened = parity.compare(("torch",), model=str(model_folder), clips=[clip])
    assert exact.row is not None
    assert screened.row is not None
    assert (exact.row.precision, screened.row.precision) == ("fp32", "bf16")
    assert exact.difference == 0
    assert screened.difference  # bf16 moves it


def test_a_users_own_clips(clip: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "DECODERS", ("pyav",))
    (tmp_path / "text.mp4").write_text("no video")
    found = list(parity.compare(("torch",), model=str(model_folder), clips=[clip, tmp_path]))
    assert [(one.clip, one.difference) for one in found[:2]] == [(clip.name, 0.0), ("text.mp4", None)]
    assert shown(found)[0] == 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no media file"):
        list(parity.compare(("torch",), clips=[tmp_path / "empty"]))


def test_nothing_to_compare_is_no_agreement(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "DECODERS", ("pyav",))
    (tmp_path / "text.mp4").write_text("no video")
    code, lines = shown(list(parity.compare(("torch",), model=str(model_folder), clips=[tmp_path])))
    assert code == 1
    assert "nothing was compared" in lines[-1]


def test_a_score_that_one_of_them_lacks_is_a_difference() -> None:
    with_score, without = Row.model_construct(score=0.5, tracks=[]), Row.model_construct(score=None, tracks=[])
    assert parity._apart(with_score, without) == math.inf
    assert parity._apart(without, without) is None


def test_what_is_missing_is_listed_with_its_reason(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "this_machine", lambda device=0: lanes.Machine())
    monkeypatch.setattr(parity, "DECODERS", ("dali",))
    found = list(parity.compare(("torch", "torch-cuda-graph"), model=str(model_folder)))
    assert all(one.row is None for one in found)
    code, lines = shown(found)
    assert code == 1
    assert "fastdetect[gpu]" in lines[1]
    if not torch.cuda.is_available():
        assert "needs a CUDA device" in "".join(lines)


def test_an_engine_that_breaks_is_listed_and_the_others_are_compared(
    clip: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: torch_engine.TorchEngine, batch: object) -> list[np.ndarray]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(parity, "DECODERS", ("pyav",))
    reference = list(parity.compare(("onnxruntime",), model=str(model_folder), clips=[clip]))
    assert reference[0].difference is not None
    whole = parity.Model.load

    def load(config: parity.ScreenConfig) -> Model:
        if config.engine == "torch" and config.precision == "auto":
            monkeypatch.setattr(torch_engine.TorchEngine, "run", broken)
        return whole(config)

    monkeypatch.setattr(parity.Model, "load", load)
    found = list(parity.compare(("torch", "onnxruntime"), model=str(model_folder), clips=[clip]))
    assert [one.row.status if one.row else None for one in found] == ["ok", "failed", "ok", "ok"]
    assert found[1].row is not None
    assert "out of memory" in found[1].row.message
    assert shown(found)[0] == 1
