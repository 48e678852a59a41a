"""The parity table: every decoder and engine that is here, one line each, and an exit code that tells."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fastdetect.errors import UsageError
from fastdetect.screening import parity
from fastdetect.video import dali, lanes


def shown(found: list[parity.Parity]) -> tuple[int, list[str]]:
    text = StringIO()
    return parity.show(found, Console(file=text, width=300)), text.getvalue().splitlines()


def test_decoders_agree_and_a_difference_is_an_error(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_CODECS", {name: parity._CODECS[name] for name in ("vp9.webm", "mjpeg.avi")})
    found = list(parity.compare(("torch",), model=str(model_folder)))
    by_pyav, by_dali = ([one for one in found if one.decoder == name] for name in ("pyav", "dali"))
    assert [one.difference for one in by_pyav] == [0.0, 0.0]
    if dali.installed() is None:
        assert [one.row for one in by_dali] == [None]
    else:
        assert [one.clip for one in by_dali] == ["mjpeg.avi", "vp9.webm"]
        assert all(one.row is not None and (one.row.decoder or "").startswith("dali-") for one in by_dali)
    code, lines = shown(found)
    assert code == 0
    assert len(lines) == 1 + len(found) + 1
    assert "limit 0.02" in lines[-1]
    monkeypatch.setattr(parity, "LIMIT", -1.0)
    assert shown(found)[0] == 1


def test_a_users_own_clips(clip: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "DECODERS", ("pyav",))
    (tmp_path / "text.mp4").write_text("no video")
    found = list(parity.compare(("torch", "torch"), model=str(model_folder), clips=[clip, tmp_path]))
    assert [(one.clip, one.difference) for one in found] == [(clip.name, 0.0), ("text.mp4", 0.0)] * 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no media file"):
        list(parity.compare(("torch",), clips=[tmp_path / "empty"]))


def test_what_is_missing_is_listed_with_its_reason(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "this_machine", lambda device=0: lanes.Machine())
    monkeypatch.setattr(parity, "DECODERS", ("dali",))
    (only,) = parity.compare(("torch",), model=str(model_folder))
    assert only.row is None
    code, lines = shown([only])
    assert code == 0
    assert "fastdetect[gpu]" in lines[1]
