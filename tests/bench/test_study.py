"""The study: arms that learn from the same pictures, runs that go on, paired intervals, no figure typed by hand."""

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from bench import study, study_page
from bench.__main__ import main
from bench.records import load_all
from bench.study_figures import Draws, aucs_of, intervals
from fastdetect.data.face_pack import FacePack, build_pack, read_index
from fastdetect.errors import ShapeError, UsageError
from fastdetect.evaluation.index import COLUMNS
from fastdetect.models.detector import DetectorConfig, TwoBranchDetector
from fastdetect.models.masked_image_model import MaskedImageModel, MaskedImageModelConfig
from fastdetect.training.objective import Objective

MIM = MaskedImageModelConfig(  # 14x14 patches, as blocks16 wants
    image_size=28, patch_size=2, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1,
    decoder_num_heads=2,
)  # fmt: skip
VIDEOS = {"real": ["real"] * 4, "fake": ["face swap, made"] * 2 + ["lip sync, made"] * 2}


def write_video(path: Path, picture: np.ndarray) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
        for shift in range(6):
            moved = np.ascontiguousarray(np.roll(picture, shift, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of one portrait in six lights, an untrained masked image model, and eight validation videos."""
    portrait = pytest.importorskip("skimage.data").astronaut()[:300, 100:400]
    folder = tmp_path_factory.mktemp("study")
    lit = [np.clip(portrait * (0.6 + 0.05 * n), 0, 255).astype(np.uint8) for n in range(12)]
    (folder / "faces").mkdir()
    with (folder / "faces" / "index.csv").open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["file", "label", "person", "source", "suggested_split"])
        for n in range(6):
            cv2.imwrite(str(folder / "faces" / f"{n}.png"), lit[n][..., ::-1])
            table.writerow([f"{n}.png", "real", f"p{n}", "made", "val" if n > 3 else "train"])
    build_pack(read_index(folder / "faces" / "index.csv"), folder / "pack")
    torch.manual_seed(0)
    MaskedImageModel(MIM).save_pretrained(folder / "mim")
    for label, kinds in VIDEOS.items():
        (folder / f"videos_{label}").mkdir()
        with (folder / f"videos_{label}" / "index.csv").open("w", newline="") as handle:
            table = csv.writer(handle)
            table.writerow(COLUMNS)
            for n, kind in enumerate(kinds):
                picture = lit[4 + 2 * n + (label == "fake")][:256, 20:276].copy()
                if label == "fake":
                    picture[150:190] = cv2.blur(picture[150:190], (7, 7))
                write_video(folder / f"videos_{label}" / f"{n}.mp4", picture)
                table.writerow([f"{n}.mp4", label, kind, f"{label}{n}", "", "validation"])
    return folder


def command(place: Path, *more: str) -> list[str]:
    nets = ["--image-backbone", "mobilenetv3_small_050", "--size", "32", "--set", "workers=0", "--set", "val_faces=4"]
    data = ["--pack", str(place / "pack"), "--mim", str(place / "mim"), "--data", str(place), "-o", str(place / "out")]
    fast = ["--steps", "2", "--pairs", "2", "--val-pairs", "6", "--sample", "uniform:4", "--resamples", "100"]
    some = ["--arms", "residual", "ce", "--seeds", "0", "--rounds", "1", "--cache", str(place / "crops")]
    return ["study", *data, *nets, *fast, *some, "--device", "cpu", *more]


Seen = dict[str, list[str]]


class Watch:
    """What the steps of each arm are given, from the forward pass that every step goes through; Ctrl-C in a later one.

    Args:
        stop: steps of the arm "residual" to let through.
    """

    def __init__(self, patch: pytest.MonkeyPatch, stop: int | None = None) -> None:
        self.seen: Seen = defaultdict(list)
        self.stop = stop
        forward = Objective.forward

        def watched(own: Objective, images: Tensor, labels: Tensor, *rest: Tensor | None) -> Tensor:
            arm = "residual" if own.config.residual else "ce"
            if arm == "residual" and len(self.seen[arm]) == self.stop:
                raise KeyboardInterrupt
            self.seen[arm].append(hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest())
            return forward(own, images, labels, *rest)

        patch.setattr(Objective, "forward", watched)


@pytest.fixture(scope="module")
def done(place: Path) -> tuple[Path, Seen]:
    """The study's folder after a command that ended after a step, one that was stopped by Ctrl-C in a run's last step,
    and one that went on; what the steps were given."""
    out = place / "out"
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch, stop=1)
        assert main(command(place, "--set", "stop_at=1")) == 1
        assert {arm: len(steps) for arm, steps in watch.seen.items()} == {"ce": 1, "residual": 1}
        assert main(command(place)) == 130
        assert {arm: len(steps) for arm, steps in watch.seen.items()} == {"ce": 2, "residual": 1}
        assert not (out / "study.json").exists()
        watch.stop = None
        assert main(command(place)) == 0
    return out, dict(watch.seen)


def test_a_cut_study_goes_on_and_a_finished_run_is_not_trained_again(place: Path, done: tuple[Path, Seen]) -> None:
    out, seen = done
    assert {arm: len(steps) for arm, steps in seen.items()} == {"ce": 2, "residual": 2}
    for arm in ("ce-0", "residual-0"):
        rows = [json.loads(line)["step"] for line in (out / "runs" / arm / "log.jsonl").read_text().splitlines()]
        assert rows == [1, 2]
    before = json.loads((out / "study.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        patch.setattr(study.TorchEngine, "run", lambda *_: pytest.fail("scored twice"))
        assert main(command(place)) == 0
    assert watch.seen == {}
    after = json.loads((out / "study.json").read_text())
    assert after["arms"] == before["arms"]
    assert after["differences"] == before["differences"]


def test_all_arms_learn_from_the_same_pictures(done: tuple[Path, Seen]) -> None:
    seen = done[1]
    assert seen["ce"] == seen["residual"]
    assert len(set(seen["ce"])) == 2  # another batch in each step


def test_results_hold_what_they_must(place: Path, done: tuple[Path, Seen]) -> None:
    out = done[0]
    text = (out / "study.json").read_text()
    assert str(place) not in text  # no path of the machine
    data = json.loads(text)
    assert data["machine"]["cpu"]
    assert data["versions"]["torch"] == torch.__version__
    assert data["settings"]["steps"] == 2
    assert data["settings"]["pairs"] == 2
    assert data["settings"]["redraw"] == 0
    assert (
        data["weights"]["mim"]["sha256"]
        == hashlib.sha256((place / "mim" / "model.safetensors").read_bytes()).hexdigest()
    )
    assert {split: data["pack"][split]["persons"] for split in ("train", "val")} == {"train": 4, "val": 2}
    assert data["videos"]["types"]["real"] == {"videos": 4, "identities": 4}
    assert data["pairs"] == {"pairs": 6, "persons": 2}
    assert list(data["arms"]) == ["ce", "residual"]  # the table's order, not the command's
    for name, arm in data["arms"].items():
        assert set(arm["video"]["score"]) == {"face swap", "lip sync", "mean"}
        for what in ("video", "pairs"):
            assert set(arm[what]) == {"score", "image", *(["residual"] if name == "residual" else [])}
            for figure in (block["mean"] for block in arm[what].values()):
                assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
                assert figure["per_seed"] == [figure["value"]]
    assert data["arms"]["ce"]["video"]["score"] == data["arms"]["ce"]["video"]["image"]
    (step,) = data["differences"]
    assert (step["from"], step["to"]) == ("ce", "residual")
    means = [data["arms"][arm]["video"]["score"]["mean"]["value"] for arm in ("ce", "residual")]
    assert step["video"]["score"]["mean"]["value"] == pytest.approx(means[1] - means[0])
    assert load_all(out) == []  # none of the results that docs/performance.md is made of


def test_protocols_are_of_the_same_model(done: tuple[Path, Seen]) -> None:
    data = json.loads((done[0] / "study.json").read_text())
    found = data["protocols"]["protocols"]
    assert {name: block["encoder_tokens"] for name, block in found.items()} == {
        "sparse-4": 196, "blocks16": 2992, "complementary-4": 588,
    }  # fmt: skip
    for block in found.values():
        assert min(block["crops_per_s"].values()) > 0
        assert block["crops_per_s"]["inpainting"] > 0
        assert block["video"]["image"] == found["sparse-4"]["video"]["image"]  # it sees no inpainting
    assert found["sparse-4"]["video"] == data["arms"]["residual"]["video"]
    same = found["sparse-4"]["against_trained"]["video"]["score"]["mean"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    scores = [
        json.loads((done[0] / "runs" / "residual-0" / f"scores-{name}.json").read_text())["scores"]["video"]["residual"]
        for name in found
    ]
    assert scores[0] != scores[1] != scores[2]


def test_a_grid_that_a_protocol_does_not_suit_is_said() -> None:
    small = MIM.model_copy(update={"image_size": 32, "patch_size": 8})
    nets = {"image_backbone": "mobilenetv3_small_050", "residual_backbone": "mobilenetv3_small_050"}
    with pytest.raises(ShapeError, match="14x14"):
        study.with_protocol(
            TwoBranchDetector(DetectorConfig(image_size=32, mim=small, protocol="sparse-4", **nets)), "blocks16"
        )


def test_page_is_what_the_results_give(done: tuple[Path, Seen], tmp_path: Path) -> None:
    out, page = done[0], done[0] / "study.md"
    assert study_page.is_current(out / "study.json", page)
    data = json.loads((out / "study.json").read_text())
    text = page.read_text()
    mean = data["arms"]["residual"]["video"]["score"]["mean"]
    assert re.search(rf"\| residual \| \+ residual branch \| {mean['value']:.3f} \[{mean['low']:.3f}, ", text)
    assert "| ce → residual |" in text
    assert "lip sync: 2 (2)" in text
    assert "| blocks16 | 16 | 2,992 |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("| ce |")}) == 3  # one of each table
    data["protocols"]["left_out"] = {"blocks16": "no 14x14 grid"}
    assert "Not measured: blocks16. no 14x14 grid." in study_page.tables(data)
    page = tmp_path / "study.md"
    page.write_text(f"# Study\n\n{study_page.BEGIN}\nold\n{study_page.END}\n\nWords.\n")
    options = ["--tables", "--results", str(out / "study.json"), "--page", str(page)]
    assert main(["study", *options]) == 0
    assert study_page.is_current(out / "study.json", page)
    assert page.read_text().startswith("# Study\n\n")
    assert page.read_text().endswith("\n\nWords.\n")
    page.write_text(page.read_text().replace("0.", "1.", 1))  # typed by hand
    assert not study_page.is_current(out / "study.json", page)
    page.write_text("no marks")
    with pytest.raises(UsageError, match="add the marks"):
        study_page.write_page(page, "text")


def test_committed_page_is_current_and_names_every_arm() -> None:
    assert study_page.is_current(), "docs/study.md is not what bench/results/study.json gives: bench study --tables"
    text = study_page.PAGE.read_text()
    assert all(f"| `{arm}` |" in text for arm in study.ARMS)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "lr=0.01"], "lr was 0.0005, is 0.01"),
        (["--set", "nonsense=1"], "nonsense"),
        (["--pairs", "3"], "pairs was 2, is 3"),
    ],
)
def test_other_settings_do_not_go_on_with_a_run(
    place: Path, done: tuple[Path, Seen], more: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(place, *more)) == 2
    assert words in " ".join(capsys.readouterr().out.split())


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study"]) == 2
    assert "wanted --pack" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["list", "--seeds", "3"])
    with pytest.raises(SystemExit):
        main(["study", "--arms", "other"])


def test_an_arm_overrules_set_and_shares_everything_else(place: Path) -> None:
    options = command(
        place, "-o", str(place / "plan"), "--set", "loss=supcon", "--set", "margin=0.2", "--seeds", "3", "4"
    )
    args = study._parser().parse_args([*options[1:], "--arms", *study.ARMS])
    runs = study.plan_runs(args)
    assert [(run.seed, run.arm) for run in runs] == [(seed, arm) for seed in (3, 4) for arm in study.ARMS]
    losses = {run.arm: run.config.loss for run in runs}
    assert losses == dict.fromkeys(study.ARMS, "real-centric") | {"ce": "ce", "residual": "ce", "supcon": "supcon"}
    assert {run.arm: run.config.margin for run in runs} == dict.fromkeys(study.ARMS, 0.2) | {"margin-0": 0.0}
    own = {"output", "residual", "loss", "margin", "synthesis", "fusion"}
    first = [run.config.model_dump(exclude=own) for run in runs if run.seed == 3]
    assert all(config == first[0] for config in first)
    switches = [(run.config.synthesis, run.config.fusion) for run in runs if run.seed == 4][-3:]
    assert switches == [(False, False), (True, False), (True, True)]


def test_pairs_name_the_persons_who_are_in_them() -> None:
    """A black and a white person: the pictures say whom a batch drew."""
    landmarks = np.array([[100, 110], [156, 110], [128, 140], [106, 170], [150, 170]], np.float32)
    images = np.zeros((5, 256, 256, 3), np.uint8)
    images[3:] = 255
    pack = FacePack(
        images, np.stack([landmarks] * 5), np.full(5, 146.0, np.float32), np.array([1, 1, 1, 0, 0]), np.zeros(5, int),
        np.arange(5), np.array(["val"] * 5), ["white", "black"], ["made"], [str(n) for n in range(5)],
    )  # fmt: skip
    pictures, persons = study.held_out_pairs(pack, 32, 30)
    assert pictures.shape == (60, 32, 32, 3)
    assert pictures.dtype == np.uint8
    assert ["white" if mean > 128 else "black" for mean in pictures[:30].mean((1, 2, 3))] == persons
    assert set(persons) == {"white", "black"}
    again, _ = study.held_out_pairs(pack, 32, 30)
    assert np.array_equal(again, pictures)


GROUPS = [f"p{n}" for n in range(20)]
KINDS = ["real"] * 10 + ["swap"] * 5 + ["lip sync"] * 5


def test_identical_arms_differ_by_nothing_and_a_better_one_is_above() -> None:
    rng = np.random.default_rng(0)
    draws = {"video": Draws(GROUPS, KINDS, 3, resamples=200)}
    poor = [{"video": {"score": rng.normal(size=20).tolist()}} for _ in range(3)]
    good = [{"video": {"score": (np.arange(20) >= 10).astype(float).tolist()}} for _ in range(3)]
    one, other = aucs_of(draws, poor), aucs_of(draws, good)
    for figure in intervals(draws, one, one)["video"]["score"].values():
        assert (figure["value"], figure["low"], figure["high"]) == (0, 0, 0)
    above = intervals(draws, other, one)["video"]["score"]
    assert set(above) == {"swap", "lip sync", "mean"}
    assert 0 < above["mean"]["low"] <= above["mean"]["value"] <= above["mean"]["high"]
    below = intervals(draws, one, other)["video"]["score"]["mean"]
    assert (below["low"], below["high"]) == pytest.approx((-above["mean"]["high"], -above["mean"]["low"]))


def test_differences_are_paired() -> None:
    """Every fake a little higher than before: sure on the same draws, and lost in the noise of independent ones."""
    scores = np.random.default_rng(1).normal(size=20)
    higher = scores + 0.4 * (np.arange(20) >= 10)
    draws, others = (Draws(GROUPS, KINDS, 1, resamples=500, seed=seed) for seed in (0, 1))
    before, after = ({"video": draws.aucs([row.tolist()])} for row in (scores, higher))
    paired = intervals({"video": draws}, {"video": {"score": after["video"]}}, {"video": {"score": before["video"]}})
    assert paired["video"]["score"]["mean"]["low"] > 0
    assert draws.interval(others.aucs([higher.tolist()])["mean"] - before["video"]["mean"])["low"] < 0


def test_seeds_are_drawn_too() -> None:
    """No video can change these AUCs: what is left are two seeds, of which one is wrong about everything."""
    right = (np.arange(20) >= 10).astype(float)
    drawn = Draws(GROUPS, KINDS, 2, resamples=200)
    figures = drawn.aucs([right.tolist(), (-right).tolist()])
    assert figures["mean"].shape == (2, 201)
    assert drawn.interval(figures["mean"]) == {"value": 0.5, "low": 0.0, "high": 1.0, "per_seed": [1.0, 0.0]}
    alone = Draws(GROUPS, KINDS, 1, resamples=200)
    assert alone.interval(alone.aucs([right.tolist()])["mean"])["low"] == 1.0


def test_heads_that_one_arm_lacks_are_left_out_of_a_difference() -> None:
    draws = {"video": Draws(GROUPS, KINDS, 1, resamples=20)}
    row = np.arange(20.0).tolist()
    image, both = (
        aucs_of(draws, [{"video": {"score": row}}]),
        aucs_of(draws, [{"video": {"score": row, "residual": row}}]),
    )
    assert set(intervals(draws, both, image)["video"]) == {"score"}
    assert set(intervals(draws, both)["video"]) == {"score", "residual"}
