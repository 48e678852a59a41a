"""Whole runs on real media with a real model: rows, scores that nothing disturbs, what is left behind."""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from screen_clips import write_clip

from fastdetect.engines.base import Engine, EngineOutput
from fastdetect.errors import EngineError, UsageError
from fastdetect.reasons import Reason
from fastdetect.screening.config import ScreenConfig, load_config
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.model import Model
from fastdetect.screening.pipeline import Screener
from fastdetect.screening.results import Row, RunInfo, load_media
from fastdetect.screening.run import run_screening

Screen = Callable[..., tuple[RunInfo, dict[str, Row]]]


@pytest.fixture(scope="module")
def screen(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Screen:
    def run(*inputs: Path, out: Path | None = None, resume: bool = False, **options) -> tuple[RunInfo, dict[str, Row]]:
        out = out or tmp_path_factory.mktemp("run") / "out"
        config = load_config(
            options={"model": str(model_folder), "precision": "fp32", "workers": 1, "detection.side": 192, **options}
        )
        with open(out.with_name("log"), "w") as log:
            info = run_screening(expand_inputs(inputs), out, config, resume=resume, console=Console(file=log))
        rows = map(Row.model_validate_json, (out / "results.jsonl").read_text().splitlines())
        return info, {Path(row.path).name: row for row in rows}

    return run


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory, face_frames: Callable[..., list[np.ndarray]]) -> Path:
    folder = tmp_path_factory.mktemp("media")
    person = face_frames(25)
    write_clip(folder / "person.mp4", person)
    write_clip(folder / "two.mp4", [np.concatenate([f, f[:, ::-1]], axis=1) for f in person])
    write_clip(folder / "dark.mp4", face_frames(25, light=0.06))
    write_clip(folder / "blurred.mp4", [cv2.GaussianBlur(frame, (0, 0), 5) for frame in person])
    write_clip(folder / "small.mp4", face_frames(25, side=512, zoom=0.25))
    write_clip(folder / "short.mp4", person[:1])
    write_clip(folder / "brief.mp4", [*person[:3], *[np.full_like(person[0], 90)] * 60])
    rng = np.random.default_rng(0)
    write_clip(folder / "noise.mp4", [rng.integers(0, 256, (128, 128, 3), np.uint8) for _ in range(10)])
    whole = write_clip(folder / "cut.mkv", person * 2, fps=5).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    (folder / "empty.mp4").touch()
    cv2.imwrite(str(folder / "face.png"), cv2.cvtColor(person[0], cv2.COLOR_RGB2BGR))
    (folder / "notes.txt").write_text("left out")
    return folder


@pytest.fixture(scope="module")
def everything(
    screen: Screen, media: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunInfo, dict[str, Row]]:
    out = tmp_path_factory.mktemp("everything") / "out"
    return out, *screen(media, media / "gone.mp4", out=out, workers=2)


def scores(row: Row) -> list[tuple[float, ...]]:
    return [(f.margin, f.image_margin, f.residual_margin, f.time_s, *f.box) for t in row.tracks for f in t.faces]


def test_every_file_has_one_row(everything: tuple[Path, RunInfo, dict[str, Row]]) -> None:
    out, info, rows = everything
    lines = (out / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(rows) == info.files == info.files_this_run == 13
    assert info.counts["failed"] == 3
    assert info.exit_code == 3
    assert not info.interrupted


@pytest.mark.parametrize(
    ("name", "status", "verdict", "reasons"),
    [
        ("dark.mp4", "ok", "inconclusive", [Reason.TOO_DARK]),
        ("blurred.mp4", "ok", "inconclusive", [Reason.TOO_BLURRY]),
        ("small.mp4", "ok", "inconclusive", [Reason.FACE_TOO_SMALL]),
        ("short.mp4", "ok", "inconclusive", [Reason.TOO_SHORT]),
        ("brief.mp4", "ok", "inconclusive", [Reason.TOO_FEW_FACES]),
        ("noise.mp4", "ok", "inconclusive", [Reason.NO_FACE]),
        ("text.mp4", "failed", "inconclusive", [Reason.DECODE_ERROR]),
        ("empty.mp4", "failed", "inconclusive", [Reason.DECODE_ERROR]),
        ("gone.mp4", "failed", "inconclusive", [Reason.NOT_FOUND]),
    ],
)
def test_no_answer_has_a_reason_and_a_message(
    everything: tuple[Path, RunInfo, dict[str, Row]],
    name: str,
    status: str,
    verdict: str,
    reasons: list[Reason],
) -> None:
    row = everything[2][name]
    assert (row.status, row.verdict, row.score, row.reasons) == (status, verdict, None, reasons)
    assert row.message


@pytest.mark.parametrize(
    ("name", "people", "reasons"),
    [
        ("person.mp4", 1, []),
        ("two.mp4", 2, []),
        ("cut.mkv", 1, [Reason.TRUNCATED]),
        ("face.png", 1, [Reason.TOO_FEW_FACES]),
    ],
)
def test_faces_are_scored_per_person(
    everything: tuple[Path, RunInfo, dict[str, Row]], name: str, people: int, reasons: list[Reason]
) -> None:
    row = everything[2][name]
    assert row.status == "ok"
    assert row.verdict != "inconclusive"
    assert row.reasons == reasons
    assert len(row.tracks) == people
    assert row.score == max(t.score for t in row.tracks if t.score is not None)
    assert sum(t.decides for t in row.tracks) == 1
    assert all(math.isfinite(f.margin) and 60 < f.face_px < 200 for t in row.tracks for f in t.faces)


def test_a_row_says_how_it_was_made(
    everything: tuple[Path, RunInfo, dict[str, Row]], media: Path, model_folder: Path
) -> None:
    row = everything[2]["person.mp4"]
    assert row.path == str(media / "person.mp4")
    assert row.sha256 == hashlib.sha256((media / "person.mp4").read_bytes()).hexdigest()
    assert row.model_sha256 == hashlib.sha256((model_folder / "model.safetensors").read_bytes()).hexdigest()
    assert (row.model_id, row.calibration_id, row.device, row.precision) == (
        "random-small",
        "test00000000",
        "cpu",
        "fp32",
    )
    assert (row.sampling, row.frames_sampled, row.faces_found, row.faces_scored) == ("uniform:16", 16, 16, 16)
    assert row.media is not None
    assert (row.media.width, row.media.height, row.media.codec) == (256, 256, "h264")
    assert row.decoder is not None
    assert "ffmpeg" in row.decoder
    assert set(row.timings_s) == {"hash", "decode", "detect", "track", "crop", "model"}
    assert min(row.timings_s.values()) > 0
    times = [face.time_s for face in row.tracks[0].faces]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] < 1


def test_everything_is_left_behind_and_agrees(everything: tuple[Path, RunInfo, dict[str, Row]]) -> None:
    out, info, rows = everything
    table = pq.read_table(out / "results.parquet").to_pylist()
    assert [Path(r["path"]).name for r in table] == sorted(rows, key=lambda n: (n == "gone.mp4", n))
    assert {Path(r["path"]).name: r["score"] for r in table} == {name: row.score for name, row in rows.items()}
    assert RunInfo.model_validate_json((out / "run.json").read_text()) == info
    assert len((out / "summary.csv").read_text().splitlines()) == 14
    report = (out / "report.html").read_text()
    assert all(name in report for name in rows)
    assert "verdict:" in (out / "config.yaml").read_text()


def test_media_belong_to_their_faces(everything: tuple[Path, RunInfo, dict[str, Row]], media: Path) -> None:
    out, _, rows = everything
    for track in rows["two.mp4"].tracks:
        assert track.media is not None
        loaded = load_media(out / "media", track.media)
        assert loaded.crops.shape == (8, 112, 112, 3)
        assert loaded.patch_scores.shape[0] == 8
        assert loaded.patch_scores.min() >= 0
        assert track.media.faces == sorted(set(track.media.faces))
        assert 20 < loaded.crops.mean() < 235
    assert rows["noise.mp4"].tracks == []


def test_a_neighbour_changes_no_bit_and_no_media_keeps_nothing_of_a_face(
    screen: Screen, media: Path, everything: tuple[Path, RunInfo, dict[str, Row]], tmp_path: Path
) -> None:
    crowd = everything[2]
    for name in ("person.mp4", "two.mp4"):
        out = tmp_path / name
        _, alone = screen(media / name, out=out, media=False)
        assert scores(alone[name]) == scores(crowd[name])
        assert (alone[name].score, alone[name].margin) == (crowd[name].score, crowd[name].margin)
        assert all(track.media is None for track in alone[name].tracks)
        assert not (out / "media").exists()
        assert "image/jpeg" not in (out / "report.html").read_text()


def test_options_reach_the_stages(screen: Screen, media: Path) -> None:
    info, rows = screen(media / "two.mp4", sample="fps:4", max_seconds=0.5, faces="largest")
    row = rows["two.mp4"]
    assert "the thresholds are meant for the sampling uniform:16" in info.warnings[0], "it must be said"
    assert "fps:4" in info.warnings[0]
    assert (row.frames_sampled, len(row.tracks), row.sampling, row.max_seconds) == (2, 1, "fps:4", 0.5)
    assert row.reasons == [Reason.TOO_SHORT]
    info, rows = screen(
        media / "person.mp4",
        **{
            "detection.max_faces": 5,
            "verdict.threshold_manipulated": 1e-9,
            "verdict.threshold_suspicious": 0.0,
        },
    )
    assert rows["person.mp4"].faces_scored == 5
    assert rows["person.mp4"].verdict == "manipulated"
    assert info.exit_code == 1
    assert [t.fpr for t in rows["person.mp4"].thresholds] == [None, None]


def test_a_model_without_calibration_needs_a_word(
    screen: Screen, media: Path, model_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    config = json.loads((model_folder / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"calibration": None}))
    (bare / "model.safetensors").symlink_to(model_folder / "model.safetensors")
    with pytest.raises(UsageError, match="--uncalibrated"):
        screen(media / "person.mp4", model=str(bare))
    info, rows = screen(media / "person.mp4", model=str(bare), uncalibrated=True)
    row = rows["person.mp4"]
    assert (row.verdict, row.score, row.thresholds) == ("inconclusive", None, [])
    assert row.margin is not None
    assert info.exit_code == 0


def test_resume_screens_only_what_is_new(screen: Screen, media: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    screen(media / "person.mp4", out=out)
    before = (out / "results.jsonl").read_bytes()
    info, _ = screen(media / "person.mp4", media / "noise.mp4", out=out, resume=True)
    assert (info.files, info.files_this_run) == (2, 1)
    assert (out / "results.jsonl").read_bytes().startswith(before)
    info, _ = screen(media / "person.mp4", media / "noise.mp4", out=out, resume=True)
    assert (info.files_this_run, info.videos_per_hour) == (0, None)
    with pytest.raises(UsageError, match="sample was uniform:16, is uniform:8"):
        screen(media / "person.mp4", out=out, resume=True, sample="uniform:8")


def test_a_resumed_run_is_about_the_files_that_it_names(screen: Screen, media: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert screen(media / "empty.mp4", media / "noise.mp4", out=out)[0].exit_code == 3
    info, rows = screen(media / "noise.mp4", out=out, resume=True)
    assert (info.exit_code, info.files, info.counts) == (0, 1, {"inconclusive": 1})
    assert set(rows) == {"empty.mp4", "noise.mp4"}
    assert "1 failed" not in out.with_name("log").read_text()


def test_resuming_without_media_deletes_the_pictures(screen: Screen, media: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    screen(media / "person.mp4", out=out)
    assert (out / "media").is_dir()
    _, rows = screen(media / "person.mp4", out=out, resume=True, media=False)
    assert not (out / "media").exists()
    assert [track.media for track in rows["person.mp4"].tracks] == [None]
    assert "Pictures of faces were switched off" in (out / "report.html").read_text()


def test_files_that_a_folder_leaves_out_are_said(everything: tuple[Path, RunInfo, dict[str, Row]]) -> None:
    assert everything[1].warnings == ["1 other file(s) left out: .txt (1); name a file to screen it all the same"]


def test_a_run_of_nothing_but_failures_ends_well_and_is_not_repeated(
    screen: Screen, media: Path, tmp_path: Path
) -> None:
    out, files = tmp_path / "out", (media / "empty.mp4", media / "text.mp4", media / "gone.mp4")
    info, rows = screen(*files, out=out)
    assert info.exit_code == 3
    assert (rows["empty.mp4"].bytes, rows["empty.mp4"].sha256) == (0, None)
    assert screen(*files, out=out, resume=True)[0].files_this_run == 0


def test_a_file_that_takes_too_long_costs_one_row(screen: Screen, media: Path, face_frames: Callable) -> None:
    long = write_clip(media.parent / "long.mp4", face_frames(25, side=640) * 5)
    info, rows = screen(long, media / "short.mp4", sample="all", timeout=3, **{"detection.side": 640})
    assert rows["long.mp4"].reasons == [Reason.TIMEOUT]
    assert rows["long.mp4"].sha256 == hashlib.sha256(long.read_bytes()).hexdigest()
    assert rows["short.mp4"].reasons == [Reason.TOO_SHORT]
    assert info.exit_code == 3


def test_only_shown_faces_are_inpainted_where_no_verdict_needs_it(
    screen: Screen, media: Path, image_folder: Path, tmp_path: Path
) -> None:
    files = [media / name for name in ("person.mp4", "two.mp4", "noise.mp4", "face.png")]
    runs = {
        "shown": screen(*files, out=tmp_path / "shown", model=str(image_folder))[1],
        "all": screen(*files, out=tmp_path / "all", model=str(image_folder), residual="all")[1],
        "none": screen(*files, out=tmp_path / "none", model=str(image_folder), media=False)[1],
    }
    for name, whole in runs["all"].items():
        for row in (runs["shown"][name], runs["none"][name]):
            assert (row.verdict, row.reasons) == (whole.verdict, whole.reasons)
            assert row.score == pytest.approx(whole.score, abs=1e-5)
        for track, wanted in zip(runs["shown"][name].tracks, whole.tracks, strict=True):
            assert track.media is not None
            assert wanted.media is not None
            assert track.media.faces == wanted.media.faces
            for number, (face, other) in enumerate(zip(track.faces, wanted.faces, strict=True)):
                assert face.margin == pytest.approx(other.margin, abs=1e-4)
                assert other.residual_margin is not None
                inpainted = number in track.media.faces
                assert face.residual_margin == (pytest.approx(other.residual_margin, abs=1e-4) if inpainted else None)
            patches = (load_media(tmp_path / run / "media", t.media) for run, t in (("shown", track), ("all", wanted)))
            shown, every = (loaded.patch_scores for loaded in patches)
            np.testing.assert_allclose(shown, every, atol=1e-4)
        assert all(face.residual_margin is None for track in runs["none"][name].tracks for face in track.faces)
    assert len(runs["shown"]["two.mp4"].tracks) == 2
    assert "residual branch" in (tmp_path / "shown" / "report.html").read_text()
    assert "residual branch" not in (tmp_path / "none" / "report.html").read_text()


def test_a_model_whose_residual_branch_decides_inpaints_every_face(
    screen: Screen, media: Path, everything: tuple[Path, RunInfo, dict[str, Row]]
) -> None:
    _, rows = screen(media / "person.mp4", media=False)
    for row in (rows["person.mp4"], everything[2]["person.mp4"]):
        assert all(face.residual_margin is not None for face in row.tracks[0].faces)


def test_pictures_need_a_model_that_was_loaded_for_them(model_folder: Path, tmp_path: Path) -> None:
    config = load_config(options={"model": str(model_folder), "precision": "fp32", "media": False})
    with Model.load(config) as model, pytest.raises(UsageError, match="media=False"):
        Screener(model, config, media=tmp_path)


def test_threads_with_a_screener_each_share_a_model(model_folder: Path, media: Path) -> None:
    config = load_config(options={"model": str(model_folder), "media": False, "workers": 1, "detection.side": 192})
    model, files = Model.load(config), expand_inputs([media / "person.mp4", media / "face.png"])

    def run(_: int) -> list[tuple[str, float | None]]:
        return sorted((row.name, row.score) for row in Screener(model, config, media=None).screen(files))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    model.close()
    assert first == second
    assert all(score is not None for _, score in first)


def test_the_lines_of_the_docs(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text("utf-8")
    found = re.search(r"<!-- python: .*?-->\n```python\n(.*?)```", text, re.DOTALL)
    assert found
    (tmp_path / "clips").mkdir()
    shutil.copy(media / "person.mp4", tmp_path / "clips")
    monkeypatch.chdir(tmp_path)
    exec(compile(found[1], "docs/deploy.md", "exec"), {})
    assert re.fullmatch(r".*person\.mp4 \w+ (0\.\d+|None) \[.*\]\n", capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


class BrokenGpu:
    """A torch engine that claims to be on a GPU, and fails on dark faces there."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    device = "cuda"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, crops: np.ndarray) -> EngineOutput:
        if crops[0].mean() < 40:
            raise EngineError("torch failed on cuda, batch 16: CUDA out of memory")
        return self._engine.run(crops)


@pytest.mark.parametrize("spare", [True, False])
def test_a_file_that_the_model_fails_on_gets_its_row(
    screen: Screen, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    spare: bool,
) -> None:  # fmt: skip
    _, want = screen(media, media=False, decoder="pyav", **{"detection.runtime": "onnxruntime"})
    load = Model.load

    def broken(config: ScreenConfig) -> Model:
        model = load(config)
        model.engine = BrokenGpu(model.engine)  # type: ignore[assignment]
        if not spare:
            model._spare.append(None)
        return model

    monkeypatch.setattr(Model, "load", broken)
    info, rows = screen(
        media, out=tmp_path / "out", decoder="pyav", residual="all", **{"detection.runtime": "onnxruntime"}
    )
    assert rows.keys() == want.keys()
    dark = rows.pop("dark.mp4")
    if spare:
        assert (dark.status, dark.device, dark.faces_scored) == ("ok", "cpu", want["dark.mp4"].faces_scored)
        assert "scored on the CPU: torch failed on cuda" in dark.message
        assert any(
            f"1 of {len(want)} files were scored on the CPU, where cuda failed" in line for line in info.warnings
        )
        assert "where cuda failed" in capsys.readouterr().err
    else:
        assert (dark.status, dark.verdict, dark.reasons) == ("failed", "inconclusive", [Reason.MODEL_ERROR])
        assert "CUDA out of memory" in dark.message
        assert (dark.faces_scored, dark.tracks, info.exit_code) == (0, [], 3)
    assert {name: (row.score, row.verdict) for name, row in rows.items()} == {
        name: (row.score, row.verdict) for name, row in want.items() if name != "dark.mp4"
    }
    assert "dark.mp4" in (tmp_path / "out" / "report.html").read_text()
