"""Runs on a set's own faces: what is said of splits that share persons, and refused of splits that share footage."""

from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console
from tiny import rows, train_options

from fastdetect import config as configuration
from fastdetect.data.extract import Extracted, ExtractSettings, FaceRecord, FaceStore
from fastdetect.data.manifest import Sample
from fastdetect.errors import DataError
from fastdetect.faces.crop import crop_square
from fastdetect.training.train import TrainConfig, train

PERSONS = {"train": ("a", "b"), "val": ("c", "d")}


def extraction(folder: Path, source: str = "d", pair: str = "c") -> Path:
    """A real and a swap of each person, a frame each; of the swap of c the face is `source` and the footage `pair`."""
    dice = np.random.default_rng(0)
    with closing(FaceStore(folder, ExtractSettings(size=64, margin=1.75), resume=False)) as store:
        for split, persons in PERSONS.items():
            for person, other in zip(persons, persons[::-1], strict=True):
                who = {"identity": person, "pair": person}
                swap = who | {"method": "swap", "manipulation": "swap", "source_identity": other}
                swap |= {"source_identity": source, "pair": pair} if person == "c" else {}
                for label, about in enumerate((who, swap)):
                    sample = Sample(dataset="made", video=person, path=person, label=label, split=split, **about)
                    box = tuple(np.array([60, 60, 110, 120]) + dice.uniform(-5, 5, 4))
                    picture = cv2.imencode(".png", dice.integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
                    record = FaceRecord(
                        track=0, frame=0, time_s=0.0, box=box, frame_size=(200, 200), square=crop_square(box, 1.75),
                        landmarks=[[30.0, 30.0]] * 5, detection=0.9, face_px=60.0, sharpness=0.1, brightness=0.5,
                    )  # fmt: skip
                    store.add(sample, Extracted([(record, picture)], 1, []), None)
        store.finish()
    return folder


def go(faces: Path, output: Path) -> str:
    options = train_options(output, f"manifest={faces}", "residual=false", "steps=1", "group_fakes=1")
    console = Console(width=400, record=True, quiet=False)
    train(configuration.load(TrainConfig, None, options), console)
    return console.export_text()


def test_splits_without_a_shared_person_pass_in_silence(tmp_path: Path) -> None:
    assert "warning" not in go(extraction(tmp_path / "faces"), tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [1]


def test_a_person_of_val_who_is_a_fakes_source_in_train_is_a_warning(tmp_path: Path) -> None:
    said = go(extraction(tmp_path / "faces", source="a"), tmp_path / "run")
    assert "warning: 1 of 3 persons of val are in train, too, such as a: val_auc is too good" in said
    first, second = rows(tmp_path / "run")
    assert first["warning"] in said
    assert second["step"] == 1


def test_footage_in_both_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="footage of 1 videos of val is in train, too, such as made/fake/val/-/swap/c;"):
        go(extraction(tmp_path / "faces", pair="a"), tmp_path / "run")
