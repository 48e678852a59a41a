"""The four commands of docs/training.md, as they stand there, from raw videos to an evaluated model."""

import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from fastdetect.cli import app
from fastdetect.models.detector import TwoBranchDetector
from fastdetect.models.folder import find_folder
from fastdetect.video.sampling import SamplingPolicy

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
SPLITS = {
    "train": [("000", "003")],
    "val": [("071", "054"), ("100", "101"), ("200", "201"), ("300", "301")],  # five folds want eight persons
    "test": [("720", "672")],
}
# what makes a minute of the run that the page describes
SMALLER = {
    "index": "", "extract": "--workers 1", "evaluate": "--set resamples=50 --sample uniform:4",
    "train": "--steps 2 --set detector.image_size=112 --set detector.image_backbone=mobilenetv3_small_050 "
    "--set image_weights=null --set pairs=2 --set group_fakes=2 --set val_faces=8 --set save_steps=1 --set workers=0",
}  # fmt: skip


def commands(name: str = "four commands") -> list[str]:
    block = re.search(rf"<!-- {name}.*?-->\n```sh\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert block is not None
    return block[1].splitlines()


def run(line: str, more: str = "") -> None:
    program, *words = shlex.split(line)
    result = CliRunner().invoke(app, [*words, *shlex.split(more)], catch_exceptions=False)
    assert (program, result.exit_code) == ("fastdetect", 0), f"{line}\n{result.output}"


def write_video(path: Path, picture: np.ndarray, frames: int = 30) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
        for shift in range(frames):
            moved = np.ascontiguousarray(np.roll(picture, shift // 3, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """FaceForensics++ with two methods, at two compressions; fakes have another mouth, the later pairs have none."""
    portrait = pytest.importorskip("skimage.data").astronaut()[:256, 96:352]
    root = tmp_path / "FaceForensics++"
    for split, pairs in SPLITS.items():
        (root / "splits").mkdir(parents=True, exist_ok=True)
        (root / "splits" / f"{split}.json").write_text(json.dumps(pairs))
        for number, (target, source) in enumerate([order for pair in pairs for order in (pair, pair[::-1])]):
            shade = 3 * len(split) + 4 * (number // 2)
            real = np.clip(portrait[:, :: 1 - 2 * (number % 2)].astype(int) + shade, 0, 255).astype(np.uint8)
            fake = real.copy()
            fake[130:170] = cv2.blur(fake[130:170], (9, 9))
            for level in ("c23", "c40"):
                write_video(root / f"original_sequences/youtube/{level}/videos/{target}.mp4", real)
                for method in ("Deepfakes", "Face2Face") if number < 2 else ():
                    folder = root / f"manipulated_sequences/{method}/{level}/videos"
                    write_video(folder / f"{target}_{source}.mp4", fake)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_four_commands_of_the_page(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    lines = commands()
    assert len(lines) == 4
    for line in lines:
        run(line, SMALLER[line.removeprefix("fastdetect data ").removeprefix("fastdetect ").split()[0]])
    assert Path("faces/failed.txt").read_text() == ""
    log = [json.loads(row) for row in Path("runs/ff/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2]
    assert 0 <= log[-1]["val_auc"] <= 1
    assert TwoBranchDetector.from_pretrained("runs/ff/model").config.image_size == 112
    measured = json.loads(Path("runs/ff/evaluation/evaluation.json").read_text())
    assert (measured["videos"]["real"], measured["videos"]["fake"]) == (2, 4)  # the test split's
    assert {row["file"].split("/")[-1] for row in measured["rows"]} == {"720", "672", "720_672", "672_720"}
    assert {row["file"].split("/")[3] for row in measured["rows"]} == {"c23"}
    assert measured["compressions"] == ["c23"]


@pytest.mark.slow
def test_the_page_s_way_to_a_calibration(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the shipped model: what learnt for two steps scores fakes no higher than reals, and has no calibration."""
    monkeypatch.chdir(tree)
    shutil.copytree(find_folder("fastdetect-small"), "runs/ff/model")
    before = json.loads(Path("runs/ff/model/config.json").read_text())["calibration"]["id"]
    for line in commands("calibration"):
        run(line)
    block = json.loads(Path("runs/ff/model/config.json").read_text())["calibration"]
    assert block["id"] != before
    assert (block["n_real"], block["n_identities"]) == (8, 8)  # the val split's reals at c23, and nobody else's


def test_the_page_names_policies_and_options_that_exist() -> None:
    lines = commands()
    assert [line.split()[1:3] for line in lines[:2]] == [["data", "index"], ["data", "extract"]]
    assert str(SamplingPolicy.parse(re.search(r"--sample (\S+)", lines[1])[1])) == "fps:2"
