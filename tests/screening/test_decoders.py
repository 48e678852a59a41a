"""Screening with DALI: the verdicts of PyAV, every row says what decoded it, and nothing falls back in silence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from screen_clips import write_clip

from fastdetect.errors import MissingDependencyError
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.results import Row, RunInfo
from fastdetect.screening.run import run_screening
from fastdetect.video import dali, lanes

MODEL = "fastdetect-small"


def screen(media: Path, out: Path, decoder: str) -> tuple[RunInfo, dict[str, Row]]:
    config = ScreenConfig(model=MODEL, decoder=decoder, workers=1, precision="fp32", device="cpu", sample="uniform:8")
    run = run_screening(expand_inputs([str(media)]), out, config)
    rows = [Row.model_validate_json(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return run, {Path(row.path).name: row for row in rows}


@pytest.mark.skipif(dali.installed() is None, reason="DALI is not installed: pip install 'fastdetect[gpu]'")
def test_scores_and_verdicts_are_the_same_with_either_decoder(
    face_frames: Callable[..., list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for name, codec in (("vp9.webm", "libvpx-vp9"), ("h264.mp4", "libx264")):
        write_clip(media / name, face_frames(25), codec=codec)
    by_dali, mine = screen(media, tmp_path / "dali", "dali")
    by_pyav, theirs = screen(media, tmp_path / "pyav", "pyav")

    for name in ("vp9.webm", "h264.mp4"):
        a, b = mine[name], theirs[name]
        assert (a.verdict, a.reasons, a.frames_sampled, a.faces_scored) == (
            b.verdict,
            b.reasons,
            b.frames_sampled,
            b.faces_scored,
        )
        assert a.score is not None
        assert b.score is not None
        assert abs(a.score - b.score) <= 0.02
        assert [f.time_s for f in a.tracks[0].faces] == [f.time_s for f in b.tracks[0].faces]
        for face, other in zip(a.tracks[0].faces, b.tracks[0].faces, strict=True):
            assert np.abs(np.subtract(face.box, other.box)).max() <= 4.0  # the detector's grid
        assert (b.decode_note, b.decoder.partition("-")[0]) == ("", "pyav")
    used = f"dali-{dali.installed()}/cpu"
    row = mine["vp9.webm"]
    assert (row.decoder, row.decode_method, row.decode_note) == (used, "frame-list", "")
    assert mine["h264.mp4"].decoder == theirs["h264.mp4"].decoder
    assert "no h264" in mine["h264.mp4"].decode_note
    assert mine["h264.mp4"].score == theirs["h264.mp4"].score

    warning = next(text for text in by_dali.warnings if "not dali" in text)
    assert warning.startswith("1 of 2 files")
    assert "h264" in warning
    assert warning in capsys.readouterr().err
    assert not any("not dali" in text for text in by_pyav.warnings)
    assert by_dali.fingerprint != by_pyav.fingerprint  # their rows are not mixed by --resume


def test_dali_that_is_not_there_ends_the_run_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "this_machine", lambda device=0: lanes.Machine())
    (tmp_path / "clip.mp4").write_bytes(b"never read")
    with pytest.raises(MissingDependencyError, match=r"fastdetect\[gpu\]"):
        screen(tmp_path / "clip.mp4", tmp_path / "out", "dali")
    assert not (tmp_path / "out").exists()
