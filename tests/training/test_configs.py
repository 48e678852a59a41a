"""The configurations in configs/ are those of the commands that the docs name, and load."""

from pathlib import Path

import pytest

from fastdetect import config as configuration
from fastdetect.models.detector import DetectorConfig
from fastdetect.models.masked_image_model import PRESETS, MaskedImageModelConfig
from fastdetect.training.pretrain import PretrainConfig
from fastdetect.training.train_settings import TrainConfig

FOLDER = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_it_loads(path: Path) -> None:
    settings = PretrainConfig if path.stem.startswith("pretrain") else TrainConfig
    configuration.load(settings, path, [])


def test_the_papers_sizes_are_the_presets() -> None:
    trained = configuration.load(TrainConfig, FOLDER / "train-paper.yaml", [])
    assert trained.detector == DetectorConfig.preset("paper-vit-b16")
    mim = configuration.load(PretrainConfig, FOLDER / "pretrain-paper.yaml", []).model
    assert (mim if isinstance(mim, MaskedImageModelConfig) else PRESETS[mim]) == trained.detector.mim
