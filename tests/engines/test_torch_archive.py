"""A .pt2 that was exported gives its model's scores, and nothing that is in the file is run."""

import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_helpers import crops

from fastdetect.engines import EngineOutput, TorchEngine, load_engine
from fastdetect.engines.base import Precision
from fastdetect.engines.export import export_model
from fastdetect.engines.graph import Scoring
from fastdetect.engines.torch_archive import read_detector
from fastdetect.errors import CheckpointError, EngineError, UsageError

FIELDS = ("logits", "image_logits", "residual_logits", "patch_scores")
CONFIG = "archive/data/weights/model_weights_config.json"


@pytest.fixture(scope="module")
def exported_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector as `fastdetect export --to torch` writes it."""
    path = tmp_path_factory.mktemp("torch-export")
    files = export_model(str(folder), "torch", path)
    assert [file.name for file in files] == ["detector.pt2", "detector.json"]
    return path


def difference(got: EngineOutput, want: EngineOutput) -> float:
    """The largest difference of any score; NaN is alike."""
    pairs = [(getattr(got, field), getattr(want, field)) for field in FIELDS]
    assert all(ours.shape == theirs.shape for ours, theirs in pairs)
    return max(np.nanmax(np.abs(ours - theirs), initial=0) for ours, theirs in pairs)


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_scores_are_the_models(exported_folder: Path, folder: Path, count: int) -> None:
    want = TorchEngine(str(folder), device="cpu", precision="fp32", batch_size=4)
    got = load_engine(str(exported_folder), device="cpu", batch_size=4)  # auto: what the folder holds
    assert (got.name, got.precision, got.grid, got.info) == (want.name, "fp32", want.grid, want.info)
    assert difference(got.run(crops(count)), want.run(crops(count))) <= 1e-3


def test_the_program_in_the_file_gives_the_engines_scores(exported_folder: Path) -> None:
    file = exported_folder / "detector.pt2"
    program = torch.export.load(file).module()
    engine = load_engine(str(file), engine="torch", device="cpu", precision="fp32", batch_size=4)
    found = engine.run(crops(7))
    with torch.no_grad():
        for field, theirs in zip(FIELDS, program(torch.from_numpy(crops(7))), strict=True):
            assert np.abs(getattr(found, field) - theirs.numpy()).max() <= 1e-3


@pytest.mark.parametrize(("part", "precision"), [("detector", "bf16"), ("detector", "fp16"), ("verdict", "bf16")])
def test_every_part_and_precision_is_the_models_to_the_bit(
    part: Scoring, precision: Precision, image_folder: Path, tmp_path: Path
) -> None:
    export_model(str(image_folder), "torch", tmp_path, part=part, precision=precision)  # type: ignore[arg-type]
    got = load_engine(str(tmp_path), device="cpu", batch_size=4)
    want = TorchEngine(str(image_folder), device="cpu", precision=precision, batch_size=4, part=part)
    assert (got.precision, got.grid) == (precision, want.grid)
    assert difference(got.run(crops(5)), want.run(crops(5))) == 0
    with pytest.raises(UsageError, match=rf"{part}\.pt2 is {precision}, wanted fp32"):
        load_engine(str(tmp_path), engine="torch", device="cpu", precision="fp32")


def test_foreign_and_damaged_files_are_refused(exported_folder: Path, folder: Path, tmp_path: Path) -> None:
    data = (exported_folder / "detector.pt2").read_bytes()
    foreign = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), foreign)
    flipped = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    flipped[largest.header_offset + largest.file_size // 2] ^= 1
    file = tmp_path / "detector.pt2"
    for wrong, said in (
        (foreign.getvalue(), "no description"),
        (data[: len(data) // 2], "not all of one"),
        (bytes(flipped), "not all of one"),
        (b"", "no archive"),
        (_changed(data, CONFIG, lambda text: b"[]"), "not all of one"),
        (_changed(data, CONFIG, _without_a_weight), "does not fit FaceScorer: 1 missing"),
        (_changed(data, CONFIG, _past_the_end), "not all of one"),
    ):
        file.write_bytes(wrong)
        for name in ("auto", "torch"):
            with pytest.raises(CheckpointError, match=said):
                load_engine(str(tmp_path), engine=name, device="cpu")
    export_model(str(folder), "torch", tmp_path, part="face-detector")
    with pytest.raises(EngineError, match="face-detector, which scores no faces"):
        load_engine(str(tmp_path / "face-detector.pt2"), device="cpu")


def test_what_a_file_pickles_is_not_unpickled(exported_folder: Path, tmp_path: Path) -> None:
    """As torch.export.load would."""
    data, touched = (exported_folder / "detector.pt2").read_bytes(), tmp_path / "touched"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (touched,)

    def as_pickle(text: bytes) -> bytes:
        stored = json.loads(text)
        for entry in stored["config"].values():
            if entry["path_name"] == "weight_0":
                entry.update(use_pickle=True, tensor_meta=None)
        return json.dumps(stored).encode()

    file = tmp_path / "detector.pt2"
    spoilt = _changed(data, CONFIG, as_pickle)
    buffer = io.BytesIO()
    torch.save(Hostile(), buffer)
    file.write_bytes(_changed(spoilt, "archive/data/weights/weight_0", lambda old: buffer.getvalue()))
    with pytest.raises(CheckpointError):
        read_detector(file)
    assert not touched.exists()
    with suppress(Exception):
        torch.export.load(file)
    assert touched.exists()


def _changed(archive: bytes, record: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with one of its records changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name == record else old.read(name))
    return file.getvalue()


def _without_a_weight(text: bytes) -> bytes:
    stored = json.loads(text)
    stored["config"].popitem()
    return json.dumps(stored).encode()


def _past_the_end(text: bytes) -> bytes:
    stored = json.loads(text)
    next(iter(stored["config"].values()))["tensor_meta"]["storage_offset"] = {"as_int": 10**9}
    return json.dumps(stored).encode()
