"""`fastdetect evaluate` and `fastdetect calibrate` from end to end, on clips made here and a small real model."""

import csv
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from portraits import tinted, write_index, write_video
from typer.testing import CliRunner

from fastdetect.cli import app
from fastdetect.data.face_pack import PACK_MARGIN, FacePack
from fastdetect.data.face_shape import MEAN_FIVE
from fastdetect.data.manifest import Manifest, Sample
from fastdetect.engines.export import export_model
from fastdetect.engines.load import deciding_part
from fastdetect.engines.torch_engine import TorchEngine
from fastdetect.errors import DataError, UsageError
from fastdetect.evaluation import calibrate, protocol
from fastdetect.evaluation.protocol import EvaluateConfig
from fastdetect.evaluation.runner import Runner
from fastdetect.evaluation.scoring import AGGREGATION, VideoScore
from fastdetect.evaluation.synthetic import parse_kinds
from fastdetect.models.detector import DetectorConfig, TwoBranchDetector
from fastdetect.screening.verdict import Calibration

CALIBRATION = {
    "method": "platt",
    "a": 1.0,
    "b": 0.0,
    "thresholds": {"0.01": 0.9, "0.05": 0.7},
    "sampling": "uniform:16",
    "aggregation": AGGREGATION,
    "id": "test00000000",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-branch detector of the small size with random weights, calibrated by hand."""
    torch.manual_seed(0)
    small = "mobilenetv3_small_050"
    config = DetectorConfig(image_size=112, image_backbone=small, residual_backbone=small, protocol="sparse-4")
    folder = tmp_path_factory.mktemp("models") / "untrained"
    TwoBranchDetector(config).save_pretrained(folder, calibration=CALIBRATION, model_id="untrained")
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reals, two red "fakes" of one content, a faceless clip and a broken file."""
    portrait = pytest.importorskip("skimage.data").astronaut()
    noise = np.random.default_rng(0).integers(0, 256, portrait.shape, dtype=np.uint8)
    root = tmp_path_factory.mktemp("clips")
    red = tinted(portrait)
    for name, picture in (("r0", portrait), ("r1", portrait[:, ::-1]), ("f0", red), ("f1", red), ("x", noise)):
        write_video(root / f"{name}.mp4", picture, 12)
    (root / "broken.mp4").write_bytes(b"not a video")
    return write_index(
        root / "index.csv",
        [
            ("r0.mp4", "real", "", "a", "", "test"),
            ("r1.mp4", "real", "", "b", "", "test"),
            ("f0.mp4", "fake", "tint, red", "c", "r0.mp4", "test"),
            ("f1.mp4", "fake", "tint, dark", "d", "", "test"),
            ("x.mp4", "real", "", "e", "", "test"),
            ("broken.mp4", "fake", "tint, red", "f", "", "test"),
        ],
    )


COMMON = {"sampling": "uniform:4", "resamples": 20, "device": "cpu", "precision": "fp32", "engine": "torch"}


def test_evaluate(index: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = COMMON | {"index": [str(index)], "model": str(model), "output": tmp_path / "out", "worst": 1}
    options |= {"robustness": ["jpeg:40", "h264:45", "resize:0.2"], "synthetic": ["swap", "resynthesis"]}
    assert protocol.main(None, ["seed=1"], options) == 3  # a file could not be decoded
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert result["abstained"] == ["x.mp4"]
    assert list(result["failed"]) == ["broken.mp4"]
    assert result["videos"] == {"real": 2, "fake": 2, "listed": 6}
    assert result["coverage_by_class"] == {"real": 2 / 3, "fake": 2 / 3}
    assert result["paired"]["n"] == 1
    assert (result["model"], result["sampling"], result["splits"]) == ("untrained", "uniform:4", ["test"])
    assert result["warnings"] == [
        "the thresholds are for the sampling uniform:16; with uniform:4 their false-positive rates hold only roughly"
    ]
    margins = {row["file"]: row["margin"] for row in result["rows"]}
    assert margins["f0.mp4"] == margins["f1.mp4"]  # the same content, the same score
    assert margins["f0.mp4"] != margins["r0.mp4"]
    assert [row["condition"] for row in result["robustness"]] == ["jpeg:40", "h264:45", "resize:0.2"]
    assert result["robustness"][0]["coverage"] == 4 / 6
    assert result["robustness"][2]["coverage"] == 0  # faces of 22 px have no say
    assert {kind: row["fakes"] for kind, row in result["synthetic"].items()} == {"swap": 2, "resynthesis": 2}
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert page.count('alt="Face"') == 8  # the worst real and the worst fake, four faces each
    assert "tint, red" in (tmp_path / "out/evaluation.md").read_text()
    assert "sampling: uniform:4" in (tmp_path / "out/config.yaml").read_text()
    assert len(list(csv.reader((tmp_path / "out/scores.csv").open()))) == 5
    assert "mean of types" in capsys.readouterr().out


def test_a_score_does_not_depend_on_its_neighbours(index: Path, model: Path) -> None:
    """A clip alone, among others, and after a broken one: one score; and the same of both of two models."""
    videos = protocol.read_videos([str(index)]).entries
    engine = TorchEngine(TwoBranchDetector.from_pretrained(model))
    runner = Runner({"a": engine, "b": engine}, protocol.SamplingPolicy.parse("uniform:4"))
    every = runner.run(videos)
    alone = runner.run([videos[2]])
    assert isinstance(alone.scores["a"][0], VideoScore)
    assert alone.scores["a"][0].margin == every.scores["a"][2].margin == every.scores["b"][2].margin
    assert [isinstance(outcome, str) for outcome in every.scores["b"]] == [False] * 5 + [True]
    assert every.pictures == {}


def test_cross_manipulation(index: Path, model: Path, tmp_path: Path) -> None:
    """Two models at once; then one of them from its own evaluation.json."""
    options = COMMON | {"index": [str(index)], "protocol": "cross-manipulation", "output": tmp_path / "both"}
    assert protocol.main(None, [], options | {"trained": {"red": str(model), "dark": str(model)}}) == 3
    result = json.loads((tmp_path / "both/evaluation.json").read_text())["cross_manipulation"]
    assert result["columns"] == {"dark": 1, "red": 1}
    assert result["matrix"]["red"] == result["matrix"]["dark"]  # one and the same model
    assert result["gap"]["value"] == 0
    own = json.loads((tmp_path / "both/red/evaluation.json").read_text())
    assert own["overall"]["auc"]["value"] in (0.0, 0.5, 1.0)
    assert own["types"]["tint"]["frame_auc"]["value"] == pytest.approx(own["frame_auc"])  # the only type
    cells = [result["frame"]["matrix"]["red"][column]["value"] for column in ("dark", "red")]
    assert np.mean(cells) == pytest.approx(own["frame_auc"])  # as many faces in either fake
    figures = (tmp_path / "both/figures.csv").read_text()
    assert "cross_manipulation/frame/matrix/red/dark," in figures
    assert "face_margins" not in (tmp_path / "both/red/scores.csv").read_text()
    told = {name: str(tmp_path / f"both/{name}/evaluation.json") for name in ("red", "dark")}
    again = COMMON | {"protocol": "cross-manipulation", "output": tmp_path / "again", "trained": told}
    assert protocol.main(None, [], again) == 0  # nothing is decoded
    assert json.loads((tmp_path / "again/evaluation.json").read_text())["cross_manipulation"] == result
    assert (tmp_path / "again/report.html").is_file()


def test_settings_that_cannot_be_used(index: Path, tmp_path: Path) -> None:
    for overrides, message in (
        (["index=[]"], "nothing to measure"),
        (["robustness=[fog]"], "no robustness test 'fog'"),
        (["synthetic=[regenerated]"], "no synthetic fakes of the kind 'regenerated'"),
        (["split=holiday"], "no video of the split 'holiday'"),
        (["trained={A: a}"], "--protocol cross-manipulation"),
        (["colour=red"], "colour"),
        (["resamples=1"], "resamples"),
        (["protocol=cross-manipulation", "trained={A: a.json}"], "cannot be read|not the evaluation.json"),
        (["split"], "wanted key=value"),
        (["compressions=[c23]"], "no video of the compression c23"),
        (["root=/nowhere/at/all"], "no such folder"),
    ):
        with pytest.raises((UsageError, DataError), match=message):
            protocol.main(None, [f"index=[{index}]", *overrides], {"output": tmp_path / "none"})
    assert list((tmp_path / "none").iterdir()) == []
    assert EvaluateConfig(index=["a"]).split == "auto"
    assert parse_kinds(["swap", "all"])[0] == "swap"


@pytest.mark.parametrize("place", ["file/below", "file", "/proc/x"])
def test_an_output_that_cannot_be_written_to_is_found_before_anything_is_measured(
    index: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(Runner, "run", lambda *_, **__: pytest.fail("it measures"))
    with pytest.raises(UsageError, match=r"cannot write to .*give another --output"):
        protocol.main(None, [], COMMON | {"index": [str(index)], "output": tmp_path / place})


def test_when_every_file_fails_the_error_says_which_and_why(model: Path, tmp_path: Path) -> None:
    rows = tuple(
        Sample(dataset="s", video=f"v{n}", path=f"v{n}.mp4", label=n % 2, split="test", manipulation="swap")
        for n in range(8)
    )
    Manifest(rows, tmp_path).write(tmp_path / "m.parquet")
    options = COMMON | {"index": [str(tmp_path / "m.parquet")], "model": str(model), "output": tmp_path / "out"}
    with pytest.raises(DataError) as caught:
        protocol.main(None, [], options)
    text = str(caught.value)
    assert "got 0 real and 0 fake videos with a score, of 8: 0 have too few usable faces, 8 could not be read" in text
    assert f"{tmp_path / 'v0.mp4'}: NOT_FOUND" in text
    assert "and 3 more" in text
    assert "--root FOLDER" in text


def test_options_of_the_command_reach_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[EvaluateConfig] = []

    def run(settings: EvaluateConfig, console: object) -> None:
        seen.append(settings)
        raise UsageError("enough")

    for name in ("evaluate", "evaluate_across"):
        monkeypatch.setattr(protocol, name, run)
    shared = ["evaluate", "a.csv", "mine=b.parquet", "--sample", "fps:2", "--set", "seed=3", "--no-media", "-o", "out"]
    assert "enough" in str(
        CliRunner().invoke(app, [*shared, "--robustness", "jpeg", "--robustness", "h264:23"]).exception
    )
    across = ["--protocol", "cross-manipulation", "--trained", "A=x/model", "--trained", "B=y.json", "--by", "type"]
    levels = ["--compression", "c23", "--compression", "c40", "--root", "data"]
    CliRunner().invoke(app, [*shared, *across, *levels, "--threads", "2", "--split", "all"])
    first, second = seen
    assert first.index == ["a.csv", "mine=b.parquet"]
    assert (first.robustness, first.media, first.sampling, first.seed) == (["jpeg", "h264:23"], False, "fps:2", 3)
    assert (second.trained, second.by) == ({"A": "x/model", "B": "y.json"}, "type")
    assert (second.threads, second.split, second.output) == (2, "all", Path("out"))
    assert (second.compressions, second.root) == (["c23", "c40"], Path("data"))
    refused = CliRunner().invoke(app, ["evaluate", "--trained", "A"]).exception
    assert "wanted KIND=MODEL" in str(refused)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve persons' clips of four textured pictures, eight persons in `val` and four in `test`."""
    rng = np.random.default_rng(0)
    count, folder = 48, tmp_path_factory.mktemp("pack")
    shade = rng.integers(60, 200, (12, 1, 1, 3)).repeat(4, 0)
    pictures = np.clip(shade + rng.normal(0, 25, (count, 256, 256, 3)), 0, 255).astype(np.uint8)
    landmarks = (
        MEAN_FIVE.numpy()[None] * (256 / PACK_MARGIN / 3) + np.array([128, 100]) + rng.normal(0, 2, (count, 5, 2))
    )
    person = np.arange(12).repeat(4)
    np.save(folder / "images.npy", pictures)
    np.savez(
        folder / "faces.npz",
        landmarks=landmarks.astype(np.float32),
        face_px=np.full(count, 146, np.float32),
        identity=person,
        source=np.zeros(count, int),
        clip=person,
        split=np.where(person < 8, "val", "test"),
    )
    names = {"identities": [f"p{i}" for i in range(12)], "sources": ["s"], "clips": [f"c{i}" for i in range(12)]}
    (folder / "names.json").write_text(json.dumps(names))
    return folder


def test_calibrate_fits_checks_and_stores(
    pack: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "fit_calibration", _whatever_the_slope(calibrate.fit_calibration))
    before = (model / "config.json").read_text()
    assert calibrate.main(pack, model, splits="val", check="test") == 0
    block = json.loads((model / "config.json").read_text())["calibration"]
    assert (block["n_real"], block["n_fake"], block["n_identities"]) == (8, 8, 8)
    assert block["checked"]["reals"] == "test"
    assert block["checked"]["rates"]["0.05"]["identities"] == 4
    assert Calibration.from_config(block).id == block["id"]
    assert "of 4 other persons: " in capsys.readouterr().out.replace("\n", " ")
    assert calibrate.main(pack, model, splits="val") == 0
    folded = json.loads((model / "config.json").read_text())["calibration"]
    assert folded["checked"] == {"reals": "5 folds of val", "rates": folded["checked"]["rates"]}
    assert folded["checked"]["rates"]["0.05"]["identities"] == 8
    assert folded["id"] == block["id"]  # how it was checked is no part of the fit
    (model / "config.json").write_text(before)
    with pytest.raises(UsageError, match="share a split"):
        calibrate.main(pack, model, splits="val,test", check="test")
    with pytest.raises(DataError, match="no clip of the splits none, such has"):
        calibrate.main(pack, model, splits="none,such")
    monkeypatch.setattr(Path, "write_text", _full_disk)
    with pytest.raises(OSError, match="No space left"):
        calibrate.main(pack, model, splits="val")
    assert (model / "config.json").read_text() == before


def _full_disk(path: Path, text: str) -> int:
    path.write_bytes(text[:10].encode())
    raise OSError(errno.ENOSPC, "No space left on device")


def _whatever_the_slope(fit):
    """A model that was never trained may score fakes lower than reals: then the reals are taken as the fakes."""

    def fitted(reals, who, fakes, fake_who, **more):
        if np.mean(fakes) <= np.mean(reals):
            fakes = np.asarray(reals) + 1.0
        return fit(reals, who, fakes, fake_who, **more)

    return fitted


def test_a_clip_s_fake_is_one_forgery(pack: Path, model: Path) -> None:
    engine = TorchEngine(TwoBranchDetector.from_pretrained(model))
    faces = FacePack.load(pack)
    reals, fakes, who = calibrate.clip_scores(faces, ("val",), engine, min_faces=3, seed=0)
    again = calibrate.clip_scores(faces, ("val",), engine, min_faces=3, seed=0)
    assert np.array_equal(fakes, again[1])
    assert who == [f"p{i}" for i in range(8)]
    assert (np.abs(fakes - reals) > 0).all()
    with pytest.raises(DataError, match="has 5 faces"):
        calibrate.clip_scores(faces, ("val",), engine, min_faces=5, seed=0)


def test_a_model_that_needs_nothing_inpainted_has_heat_maps_of_the_worst_files_all_the_same(
    index: Path, model: Path, tmp_path: Path
) -> None:
    whole = TwoBranchDetector.from_pretrained(model).decide_by_image()
    alone = whole.save_pretrained(tmp_path / "image")
    assert (deciding_part(str(model)), deciding_part(str(alone))) == ("detector", "verdict")
    options = COMMON | {"index": [str(index)], "model": str(alone), "precision": "fp32"}
    _, pictures, entries = protocol.evaluate(EvaluateConfig.model_validate(options))
    assert len(pictures) >= 2
    engine = TorchEngine(whole, device="cpu", precision="fp32")
    for key, shown in pictures.items():
        assert key in entries
        want = engine.run(shown.crops)
        np.testing.assert_allclose(shown.patches, want.patch_scores, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(shown.margins, want.logits[:, 1] - want.logits[:, 0], atol=1e-3)
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed: pip install 'fastdetect[onnx]'")
    file, _ = export_model(str(alone), "onnx", tmp_path / "export", part="verdict")
    options |= {"model": str(file), "engine": "onnxruntime"}
    with pytest.raises(UsageError, match="--part detector"):
        protocol.evaluate(EvaluateConfig.model_validate(options))
    _, pictures, _ = protocol.evaluate(EvaluateConfig.model_validate(options | {"media": False}))
    assert pictures == {}
