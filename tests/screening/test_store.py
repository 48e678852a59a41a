"""Rows on disk: nothing lost, nothing twice, whatever stopped the run before."""

import csv
import json
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastdetect.errors import DataError, OutputError, UsageError
from fastdetect.reasons import Reason
from fastdetect.screening.inputs import file_key, path_text
from fastdetect.screening.results import (
    FaceRow,
    MediaFacts,
    Row,
    RunInfo,
    ThresholdRow,
    TrackRow,
    load_media,
    save_media,
)
from fastdetect.screening.store import ResultStore, fingerprint

IDENTITY = {"model_sha256": "aa", "sampling": "uniform:16"}


def row(path: Path, **changes: object) -> Row:
    size, mtime = file_key(path)
    face = FaceRow(
        frame=3, time_s=0.12, box=(1, 2, 30.5, 40), detection=0.9, face_px=38, sharpness=5, brightness=0.4,
        usable=True, margin=1.5, image_margin=1, residual_margin=2, score=0.8,
    )  # fmt: skip
    facts = MediaFacts(
        container="mov,mp4", codec="h264", pix_fmt="yuv420p", width=64, height=48, rotation=0, fps=25.0,
        duration_s=5.0, frames=125, video_streams=1, is_image=False,
    )  # fmt: skip
    values = {
        "path": path_text(path), "name": path_text(path), "bytes": size, "mtime_ns": mtime, "sha256": "0" * 64,
        "status": "ok", "verdict": "authentic", "score": 0.25, "margin": -1.0, "reasons": [Reason.TRUNCATED],
        "thresholds": [ThresholdRow(verdict="suspicious", fpr=0.05, score=0.7)], "media": facts,
        "tracks": [TrackRow(id=0, score=0.25, margin=-1, reasons=[], decides=True, faces=[face])],
        "engine": "torch", "device": "cpu", "precision": "fp32", "model_id": "m", "model_sha256": "aa",
        "preprocess_sha256": "bb", "calibration_id": "cc", "sampling": "uniform:16", "max_seconds": None,
        "fastdetect": "0.1.0", "timings_s": {"decode": 0.5}, "finished_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Row.model_validate({**values, **changes})


def run_info() -> RunInfo:
    return RunInfo(
        fingerprint="f", fastdetect="0", versions={}, machine={}, engine="torch", device="cpu", precision="fp32",
        model_id="m", model_sha256="aa", preprocess_sha256="bb", calibration_id=None, sampling="uniform:16",
        max_seconds=None, thresholds=[], workers=1, started_at="", finished_at="", wall_s=1.0, files=1,
        files_this_run=1, counts={}, stage_seconds={}, videos_per_hour=None, media_s_per_s=None, exit_code=0,
    )  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.mp4" for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    return paths


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def filled(out: Path, files: list[Path]) -> None:
    store = ResultStore(out, IDENTITY, resume=False)
    for path in files:
        store.append(row(path))
    store.close()


def test_a_row_is_on_the_disk_when_append_returns(out: Path, files: list[Path]) -> None:
    store = ResultStore(out, IDENTITY, resume=False)
    store.append(written := row(files[0]))
    assert Row.model_validate_json((out / "results.jsonl").read_bytes()) == written


def test_resume_keeps_every_row_and_knows_what_is_left(out: Path, files: list[Path]) -> None:
    filled(out, files[:2])
    store = ResultStore(out, IDENTITY, resume=True)
    assert [store.has(path) for path in files] == [True, True, False]
    assert [r.path for r in store.rows()] == [str(p) for p in files[:2]]


@pytest.mark.parametrize("cut", [1, 20, 500])
def test_a_torn_last_line_is_dropped_and_its_file_screened_again(out: Path, files: list[Path], cut: int) -> None:
    filled(out, files)
    path = out / "results.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    store = ResultStore(out, IDENTITY, resume=True)
    assert [store.has(p) for p in files] == [True, True, False]
    store.append(row(files[2]))
    store.finish(run_info(), [str(p) for p in files])
    assert len((out / "results.jsonl").read_bytes().splitlines()) == 3


def test_a_torn_first_line_leaves_an_empty_store(out: Path, files: list[Path]) -> None:
    filled(out, files[:1])
    os.truncate(out / "results.jsonl", 10)
    assert len(ResultStore(out, IDENTITY, resume=True)) == 0


def test_a_changed_file_is_screened_again_and_has_one_row_in_the_end(out: Path, files: list[Path]) -> None:
    filled(out, files)
    files[0].write_text("longer than before")
    store = ResultStore(out, IDENTITY, resume=True)
    assert [store.has(p) for p in files] == [False, True, True]
    store.append(row(files[0], score=0.5))
    store.finish(run_info(), [str(p) for p in files])
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(line["path"] for line in lines) == [str(p) for p in files]
    assert next(store.rows([str(files[0])])).score == 0.5


def test_a_missing_file_is_done_until_it_appears(out: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.mp4"
    filled(out, [gone])
    store = ResultStore(out, IDENTITY, resume=True)
    assert store.has(gone)
    gone.write_text("here")
    assert not store.has(gone)


def test_a_line_in_the_middle_that_is_no_row_is_an_error_with_its_number(out: Path, files: list[Path]) -> None:
    filled(out, files)
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join([lines[0], "{}\n", lines[2]]))
    with pytest.raises(UsageError, match=r"line 2: not a row.*remove the line") as caught:
        ResultStore(out, IDENTITY, resume=True)
    assert len(str(caught.value)) < 300 + len(str(out))


def test_a_row_that_there_is_no_room_for_leaves_whole_rows(out: Path, files: list[Path]) -> None:
    filled(out, files[:1])
    path, limit = out / "results.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = path.read_bytes()
    store = ResultStore(out, IDENTITY, resume=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limit[1]))
    try:
        with pytest.raises(OutputError, match=r"results\.jsonl: File too large; .*--resume"):
            store.append(row(files[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    store.close()
    assert path.read_bytes() == before
    again = ResultStore(out, IDENTITY, resume=True)
    again.append(row(files[1]))
    assert [r.path for r in again.rows()] == [str(p) for p in files[:2]]


def test_resuming_where_there_is_still_no_room_costs_nothing(out: Path, files: list[Path]) -> None:
    filled(out, files)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limit[1]))
    try:
        ResultStore(out, IDENTITY, resume=True).close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(ResultStore(out, IDENTITY, resume=True)) == 3


@pytest.mark.parametrize("name", ["summary.csv", "run.json"])
def test_a_final_file_that_cannot_be_written_is_one_error(out: Path, files: list[Path], name: str) -> None:
    store = ResultStore(out, IDENTITY, resume=False)
    store.append(row(files[0]))
    (out / name / "in the way").mkdir(parents=True)
    with pytest.raises(OutputError, match=f"cannot write .*{name}: Is a directory"):
        store.finish(run_info(), [])


def test_rows_without_resume_are_never_written_over(out: Path, files: list[Path]) -> None:
    filled(out, files)
    before = (out / "results.jsonl").read_bytes()
    with pytest.raises(UsageError, match="--resume"):
        ResultStore(out, IDENTITY, resume=False)
    assert (out / "results.jsonl").read_bytes() == before


def test_resume_with_another_model_says_what_differs(out: Path, files: list[Path]) -> None:
    filled(out, files)
    with pytest.raises(UsageError, match="model_sha256 was aa, is bb"):
        ResultStore(out, {**IDENTITY, "model_sha256": "bb"}, resume=True)
    assert len(ResultStore(out, IDENTITY, resume=True)) == 3


def test_resume_of_an_empty_folder_is_a_first_run(out: Path) -> None:
    assert len(ResultStore(out, IDENTITY, resume=True)) == 0


def test_two_runs_cannot_share_a_folder(out: Path) -> None:
    store = ResultStore(out, IDENTITY, resume=True)
    with pytest.raises(UsageError, match="another run"):
        ResultStore(out, IDENTITY, resume=True)
    store.close()
    ResultStore(out, IDENTITY, resume=True).close()


def test_a_file_system_without_locks_is_a_usage_error(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(UsageError, match=r"without locks \(Function not implemented\)"):
        ResultStore(out, IDENTITY, resume=False)


def test_an_output_that_cannot_be_a_folder_is_a_usage_error(files: list[Path]) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        ResultStore(files[0] / "out", IDENTITY, resume=False)


def test_the_final_files_hold_every_row_in_input_order(out: Path, files: list[Path]) -> None:
    store = ResultStore(out, IDENTITY, resume=False)
    failed = {"status": "failed", "verdict": "inconclusive", "score": None, "tracks": [], "media": None}
    for path in reversed(files):
        store.append(row(path, **(failed if path == files[1] else {})))
    store.finish(run_info(), [str(p) for p in files])

    table = pq.read_table(out / "results.parquet").to_pylist()
    assert [r["path"] for r in table] == [str(p) for p in files]
    back = table[0] | {"timings_s": dict(table[0]["timings_s"])}
    assert Row.model_validate(back) == row(files[0])
    with (out / "summary.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(r["path"], r["status"], r["score"]) for r in lines] == [
        (str(files[0]), "ok", "0.25"), (str(files[1]), "failed", ""), (str(files[2]), "ok", "0.25"),
    ]  # fmt: skip
    assert RunInfo.model_validate_json((out / "run.json").read_text()) == run_info()
    assert not list(out.glob("*.partial"))


def test_rows_of_earlier_inputs_stay_in_the_final_files(out: Path, files: list[Path]) -> None:
    filled(out, files[:2])
    store = ResultStore(out, IDENTITY, resume=True)
    store.append(row(files[2]))
    store.finish(run_info(), [str(files[2])])
    paths = pq.read_table(out / "results.parquet").column("path").to_pylist()
    assert paths == [str(files[2]), str(files[0]), str(files[1])]


def with_picture(path: Path, out: Path, sha256: str) -> Row:
    made = row(path, sha256=sha256)
    crops = np.zeros((1, 8, 8, 3), np.uint8)
    made.tracks[0].media = save_media(out / "media", sha256, 0, [0], crops, np.zeros((1, 2, 2), np.float32))
    return made


def test_pictures_that_no_row_names_are_deleted_in_the_end(out: Path, files: list[Path]) -> None:
    store = ResultStore(out, IDENTITY, resume=False)
    store.append(with_picture(files[0], out, "a" * 64))
    files[0].write_text("longer than before")
    store.append(with_picture(files[0], out, "b" * 64))
    (out / "media" / "mine.jpg").touch()
    (out / "media" / "mine").mkdir()
    store.finish(run_info(), [str(files[0])])
    assert sorted(p.name for p in (out / "media").rglob("*")) == [
        "b" * 16, "mine", "mine.jpg", "track0.jpg", "track0.json",
    ]  # fmt: skip


def test_without_media_no_picture_of_an_earlier_run_stays(out: Path, files: list[Path]) -> None:
    store = ResultStore(out, IDENTITY, resume=False)
    store.append(with_picture(files[0], out, "a" * 64))
    store.finish(run_info(), [str(files[0])])
    store.close()
    store = ResultStore(out, IDENTITY, resume=True)
    store.append(row(files[1]))
    store.finish(run_info(), [str(files[1])], media=False)
    assert not (out / "media").exists()
    assert [track.media for kept in store.rows() for track in kept.tracks] == [None, None]
    table = pq.read_table(out / "results.parquet").to_pylist()
    assert [track["media"] for kept in table for track in kept["tracks"]] == [None, None]


def test_a_name_that_is_not_utf8_survives(out: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    path.write_text("x")
    filled(out, [path])
    store = ResultStore(out, IDENTITY, resume=True)
    assert store.has(path)
    store.finish(run_info(), [path_text(path)])
    assert pq.read_table(out / "results.parquet").column("path").to_pylist() == [path_text(path)]


def test_the_fingerprint_depends_on_values_and_not_on_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_media_come_back_as_they_were_saved(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 56).astype(np.uint8)
    crops = np.stack(
        [np.broadcast_to(ramp[:, None, None], (56, 56, 3)), np.broadcast_to(ramp[None, :, None], (56, 56, 3))]
    )
    crops[..., 2] //= 2  # so that swapped colours would be seen
    patches = np.random.default_rng(0).random((2, 14, 14), dtype=np.float32)
    media = save_media(tmp_path, "f" * 64, 3, [0, 5], crops, patches)
    loaded = load_media(tmp_path, media)
    assert np.abs(loaded.crops.astype(int) - crops).mean() < 2
    np.testing.assert_allclose(loaded.patch_scores, patches, atol=1e-5)
    assert media.faces == [0, 5]
    (tmp_path / media.crops).unlink()
    with pytest.raises(DataError, match="not a readable image"):
        load_media(tmp_path, media)
