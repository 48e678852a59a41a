"""Kept pieces: a second run learns from the very pictures of the first and makes none; what does not fit is refused."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tiny import DETECTOR, pretrain_options, rows, train_options

from fastdetect import config as configuration
from fastdetect.data.pairs import PairSource
from fastdetect.errors import DataError, ShapeError, UsageError
from fastdetect.models.detector import DetectorConfig, TwoBranchDetector
from fastdetect.models.inpainting import inpaint
from fastdetect.training import pretrain, train
from fastdetect.training.train_settings import TrainConfig


@pytest.fixture(scope="module")
def mim(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mim")
    pretrain.main(None, pretrain_options(pack, folder, "steps=2"))
    return folder / "model"


def options(pack: Path, mim: Path, output: Path, *more: str) -> list[str]:
    return [
        *train_options(output, f"pack={pack}", f"mim={mim}", "steps=3", "save_steps=1", "ema=0", "precision=fp32"),
        *more,
    ]


def test_a_second_run_makes_nothing_and_learns_the_same(
    pack: Path, mim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = f"pieces={tmp_path / 'pieces'}"
    assert train.main(None, options(pack, mim, tmp_path / "plain")) == 0
    assert train.main(None, options(pack, mim, tmp_path / "first", pieces)) == 0
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) == 3
    made = PairSource.batch
    calls = []
    monkeypatch.setattr(PairSource, "batch", lambda *a, **k: calls.append(a[0]) or made(*a, **k))
    assert train.main(None, options(pack, mim, tmp_path / "second", pieces)) == 0
    assert {len(source.rows) for source in calls} == {len(calls[0].rows)}  # the validations' only
    plain, first, second = (rows(tmp_path / name) for name in ("plain", "first", "second"))
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    # residuals are kept in float16
    assert [row["loss"] for row in first] == pytest.approx([row["loss"] for row in plain], rel=2e-3)


def test_pieces_made_from_something_else_are_refused(pack: Path, mim: Path, tmp_path: Path) -> None:
    pieces = f"pieces={tmp_path / 'pieces'}"
    train.main(None, options(pack, mim, tmp_path / "run", pieces))
    with pytest.raises(UsageError, match=r"resynthesis was 0\.27, is 0\.5; give another"):
        train.main(None, options(pack, mim, tmp_path / "other", pieces, "resynthesis=0.5"))
    part = next((tmp_path / "pieces").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match="delete it"):
        train.main(None, options(pack, mim, tmp_path / "again", pieces))


@pytest.mark.parametrize("more", [["steps=null", "minutes=1"], ["detector.token_selection=true"]])
def test_pieces_need_a_run_that_can_be_repeated(pack: Path, tmp_path: Path, more: list[str]) -> None:
    with pytest.raises((UsageError, ValidationError), match="pieces needs"):
        configuration.load(TrainConfig, None, [*options(pack, tmp_path, tmp_path, f"pieces={tmp_path}"), *more])


def test_a_model_takes_what_inpainting_gave() -> None:
    torch.manual_seed(0)
    model = TwoBranchDetector(DetectorConfig.model_validate(DETECTOR)).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        found = inpaint(model.mim, images, protocol=model.config.protocol, gain=model.config.gain)
        own, given = model(images), model(images, inpainted=(found.residual, found.patch_scores))
    assert torch.equal(own.logits, given.logits)
    assert torch.equal(own.patch_scores, given.patch_scores)
    with pytest.raises(ShapeError, match=r"wanted \[2, 3, 32, 32\]"):
        model(images, inpainted=(found.residual[:1], found.patch_scores[:1]))
