"""Models by name, uploads to a server that speaks the Hub's protocol, timm names, converted MAE checkpoints."""

import argparse
import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from typer.testing import CliRunner

from fastdetect.cli import app
from fastdetect.errors import CheckpointError, UsageError
from fastdetect.models import DetectorConfig, MaskedImageModel, MaskedImageModelConfig, TwoBranchDetector
from fastdetect.models.convert import convert_mae
from fastdetect.models.folder import ModelFolder, find_folder, sha256_of
from fastdetect.models.hub import AutoDetector, model_card, push_to_hub
from fastdetect.models.masked_image_model import sincos_positions

MIM = MaskedImageModelConfig(
    image_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, decoder_embed_dim=24, decoder_depth=1,
    decoder_num_heads=3,
)  # fmt: skip
NET = "mobilenetv3_small_050"
CONFIG = DetectorConfig(image_size=32, image_backbone=NET, residual_backbone=NET, mim=MIM, protocol="sparse-4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TwoBranchDetector(CONFIG).save_pretrained(tmp_path_factory.mktemp("models") / "tiny", license="MIT")


class Hub:
    """A server with the part of the Hub's protocol that an upload uses; keeps what it is sent."""

    def __init__(self) -> None:
        self.repos: list[dict[str, object]] = []
        self.files: dict[str, bytes] = {}
        self.message, self.status = "", 200
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(hub.status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(hub.answer(self.path, body)).encode())

            def log_message(self, *_: object) -> None:
                """The test's output stays readable."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str, body: bytes) -> dict[str, object]:
        if path == "/api/repos/create":
            self.repos.append(json.loads(body))
            return {"url": f"{self.url}/me/tiny", "name": "me/tiny", "id": "me/tiny"}
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                else:
                    self.message = line["value"]["summary"]
            return {"success": True, "commitUrl": f"{self.url}/me/tiny/commit/abc", "commitOid": "abc"}
        return {"errors": [], "warnings": []}


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.server.shutdown()


def test_a_detector_is_found_by_folder_and_shipped_name(folder: Path, tmp_path: Path) -> None:
    assert AutoDetector.from_pretrained(folder).config == CONFIG
    assert AutoDetector.from_pretrained("fastdetect-small").info.model_id == "fastdetect-small"
    MaskedImageModel(MIM).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="'masked_image_model', no detector"):
        AutoDetector.from_pretrained(tmp_path)


def test_without_a_network_a_hub_id_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"'somebody/model' here.*cannot be fetched.*give a local folder"):
        AutoDetector.from_pretrained("somebody/model")


def test_a_revision_is_fetched_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    """The Hub's own cache, as two downloads of a branch that moved leave it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo, old, new = tmp_path / "models--me--tiny", "a" * 40, "b" * 40
    for commit in (old, new):
        shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(new)
    assert find_folder("me/tiny").name == new
    assert find_folder(f"me/tiny@{old}").name == old
    assert AutoDetector.from_pretrained(f"me/tiny@{old}").info.model_type == "two_branch_detector"
    with pytest.raises(CheckpointError, match=r"'me/tiny@v2' here.*cannot be fetched"):
        find_folder("me/tiny@v2")


def test_what_is_pushed_is_a_whole_model_folder(hub: Hub, folder: Path, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url, token="hf_test")
    url = push_to_hub(folder, "me/tiny", private=True, message="First", api=api)
    assert url == f"{hub.url}/me/tiny/commit/abc"
    assert (hub.repos[0]["name"], hub.message) == ("tiny", "First")
    assert hub.repos[0].get("private") is True or hub.repos[0].get("visibility") == "private"
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    for name, data in hub.files.items():
        tmp_path.joinpath(name).write_bytes(data)
    first, second = TwoBranchDetector.from_pretrained(folder), AutoDetector.from_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(first(images).logits, second(images).logits)
    assert "license_name: MIT" in hub.files["README.md"].decode()
    assert sha256_of(folder / "model.safetensors") in hub.files["README.md"].decode()


def test_a_model_and_a_card_of_ones_own_are_pushed(hub: Hub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url, token="hf_test")
    push_to_hub(MaskedImageModel(MIM), "me/mim", api=api)
    assert json.loads(hub.files["config.json"])["model_id"] == "mim"
    own = MaskedImageModel(MIM).save_pretrained(tmp_path / "own")
    (own / "README.md").write_text("my words")
    push_to_hub(own, "me/own", api=api)
    assert hub.files["README.md"] == b"my words"


def test_a_push_that_fails_says_why_and_sends_nothing(hub: Hub, folder: Path, tmp_path: Path) -> None:
    broken = TwoBranchDetector(CONFIG).save_pretrained(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    api = HfApi(endpoint=hub.url, token="hf_test")
    with pytest.raises(CheckpointError, match=r"not what config\.json names"):
        push_to_hub(broken, "me/tiny", api=api)
    with pytest.raises(CheckpointError, match="owner/name"):
        push_to_hub(folder, "not/a/name", api=api)
    hub.status = 403
    with pytest.raises(CheckpointError, match=r"cannot push to me/tiny .*hf auth login"):
        push_to_hub(folder, "me/tiny", api=api)
    assert not hub.files


def test_cards_say_whether_a_model_is_calibrated() -> None:
    config = ModelFolder(model_type="two_branch_detector", architecture={}, model_id="m")
    assert "not calibrated: no verdicts" in model_card(config)
    assert "calibration ab12" in model_card(config.model_copy(update={"calibration": {"id": "ab12"}}))


def test_timm_knows_the_branches() -> None:
    detector = AutoDetector.from_pretrained("fastdetect-small")
    images = torch.rand(2, 3, detector.config.image_size, detector.config.image_size)
    net = timm.create_model("fastdetect_image_small", pretrained=True).eval()
    with torch.no_grad():
        own = detector.image_head(detector.image_branch((images - detector.mean) / detector.std, None))
        torch.testing.assert_close(net((images - detector.mean) / detector.std), own, rtol=1e-4, atol=1e-4)
        residual = torch.rand(2, 3, *detector.config.mim.size) * 2 - 1
        net = timm.create_model("fastdetect_residual_small", pretrained=True, num_classes=0).eval()
        torch.testing.assert_close(net(residual), detector.residual_branch(residual, None), rtol=1e-4, atol=1e-4)
    assert timm.create_model("fastdetect_image_small", num_classes=5)(images).shape == (2, 5)
    assert timm.data.resolve_data_config({}, model=net)["input_size"] == (3, *detector.config.mim.size)
    assert timm.list_models("fastdetect_*") == ["fastdetect_image_small", "fastdetect_residual_small"]
    with pytest.raises(UsageError, match="in_chans=1"):
        timm.create_model("fastdetect_image_small", in_chans=1)


def official(model: MaskedImageModel) -> dict[str, torch.Tensor]:
    """The state of a model as the official MAE stores it, positions included."""
    c = model.config
    positions = {
        "pos_embed": sincos_positions(c.embed_dim, c.grid),
        "decoder_pos_embed": sincos_positions(c.decoder_embed_dim, c.grid),
    }
    return dict(model.state_dict()) | positions


def test_an_official_mae_becomes_a_model_folder(tmp_path: Path) -> None:
    model = MaskedImageModel(MIM).eval()
    torch.save({"model": official(model), "args": argparse.Namespace(lr=1.0), "epoch": 3}, tmp_path / "mae.pth")
    words = ["models", "convert", str(tmp_path / "mae.pth"), "-o", str(tmp_path / "mae"), "--heads", "2"]
    result = CliRunner().invoke(app, [*words, "--decoder-heads", "3"], catch_exceptions=False)
    assert result.exit_code == 0
    converted = MaskedImageModel.from_pretrained(tmp_path / "mae")
    assert converted.config == MIM
    images, mask = torch.rand(2, 3, 32, 32), model.random_mask(2, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(converted(images, mask), model(images, mask))


class Bomb:
    """What a malicious pickle holds: loading it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_checkpoints_that_are_no_mae_or_not_safe_are_refused(tmp_path: Path) -> None:
    state = official(MaskedImageModel(MIM))

    def refused(content: dict[str, torch.Tensor], message: str, **options: int) -> None:
        save_file({key: value.clone() for key, value in content.items()}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=message):
            convert_mae(tmp_path / "x.safetensors", tmp_path / "out", **options)

    torch.save({"model": Bomb(tmp_path / "written")}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match="weights_only=True"):
        convert_mae(tmp_path / "bomb.pth", tmp_path / "out")
    assert not (tmp_path / "written").exists()
    refused(state, "width 16: its attention heads are not known; give heads")
    encoder = {key: value for key, value in state.items() if "decoder" not in key}
    refused(encoder, "no decoder_pos_embed, decoder_pred.weight; wanted an MAE with its decoder")
    heads = {"heads": 2, "decoder_heads": 3}
    refused(state | {"pos_embed": state["pos_embed"] + 0.1}, "not MAE's fixed sin-cos", **heads)
    refused(state | {"extra": torch.ones(1)}, "1 unknown: extra", **heads)
    refused(state, "divisible", heads=3, decoder_heads=3)
    with pytest.raises(CheckpointError, match=r"no file .*none\.pth"):
        convert_mae(tmp_path / "none.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
