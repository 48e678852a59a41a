"""What every run can do: be cut anywhere, run on several processes, stop early, keep the best, be watched."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import LOSSES, runs
from rich.console import Console
from tiny import pretrain_options, rows, train_options
from torch import nn
from typer.testing import CliRunner

from fastdetect.cli import app
from fastdetect.data.pairs import Deal
from fastdetect.errors import CheckpointError, MissingDependencyError, UsageError
from fastdetect.training import pretrain, train
from fastdetect.training.distributed import Ranks
from fastdetect.training.log import RunLog
from fastdetect.training.loop import Budget
from fastdetect.training.runner import Task, run, runs_bf16
from fastdetect.training.settings import RunSettings

CPU = torch.device("cpu")


def same_state(one: object, other: object) -> bool:
    """Whether two nests of tensors are equal bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_state, one, other))
    return one == other


def equal_states(one: Path, other: Path) -> bool:
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (one, other)]
    for state in states:
        del state["minutes"]
    return same_state(*states)


def close_weights(one: Path, other: Path) -> None:
    first, second = (torch.load(folder / "state.pt", weights_only=True)["model"] for folder in (one, other))
    for key, value in first.items():
        if not key.endswith("qkv.bias"):  # a key's bias has no gradient but noise, and Adam's steps have one size
            torch.testing.assert_close(second[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


def test_a_detector_run_that_was_cut_ends_with_the_same_bits(pack: Path, tmp_path: Path) -> None:
    """Dropout, token selection, pieces, the centre of the reals and the log's mean go on where they were."""
    mim = tmp_path / "mim"
    pretrain.main(None, pretrain_options(pack, mim, "steps=1"))
    more = [f"pack={pack}", f"mim={mim / 'model'}", "steps=4", "accumulate=2", "loss=real-centric", "save_steps=2"]
    more += ["h264=0.5"]
    net = {"drop_rate": 0.5, "drop_path_rate": 0.2, "token_selection": True}
    train.main(None, train_options(tmp_path / "whole", *more, **net))
    train.main(None, train_options(tmp_path / "cut", *more, "stop_at=2", **net))
    half = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
    train.main(None, train_options(tmp_path / "cut", *more, "resume=true", **net))
    assert equal_states(tmp_path / "whole", tmp_path / "cut")
    assert not same_state(half["model"], torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["model"])
    assert half["model"]["contrast.step"] == 2 * 2
    whole, cut = ([(r["step"], r["loss"], r["val_auc"], r["lr"]) for r in rows(tmp_path / n)] for n in ("whole", "cut"))
    assert whole == cut
    first, second = ((tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("whole", "cut"))
    assert first == second


def test_a_pretraining_run_that_was_cut_ends_with_the_same_bits(pack: Path, tmp_path: Path) -> None:
    more = ["steps=4", "masking=facial", "blocks=0.5", "accumulate=2"]
    pretrain.main(None, pretrain_options(pack, tmp_path / "whole", *more))
    pretrain.main(None, pretrain_options(pack, tmp_path / "cut", *more, "stop_at=3"))
    pretrain.main(None, pretrain_options(pack, tmp_path / "cut", *more, "resume=true"))
    assert equal_states(tmp_path / "whole", tmp_path / "cut")


def test_a_run_is_not_begun_over_another(pack: Path, tmp_path: Path) -> None:
    mim, image = tmp_path / "mim", tmp_path / "image"
    runs = {
        pretrain: pretrain_options(pack, mim, "steps=1"),
        train: train_options(image, f"pack={pack}", "residual=false", "steps=1"),
    }
    for command, options in runs.items():
        command.main(None, options)
        with pytest.raises(UsageError, match=r"state\.pt is there already; --resume goes on with it, or give another"):
            command.main(None, options)
    kept = {folder: (folder / "config.yaml").read_text() for folder in (mim, image)}
    with pytest.raises(UsageError, match=r"other settings: seed was 0, is 1; masking was random, is block; give"):
        pretrain.main(None, [*runs[pretrain], "resume=true", "seed=1", "masking=block"])
    with pytest.raises(UsageError, match=r"other settings: lr was 0\.0005, is 0\.1; give"):
        train.main(None, [*runs[train], "resume=true", "lr=0.1"])
    assert kept == {folder: (folder / "config.yaml").read_text() for folder in (mim, image)}
    budget = ["resume=true", "steps=2", "save_steps=1", "save_minutes=7", "threads=2", "patience=3", "keep=best"]
    for command, options in runs.items():
        command.main(None, [*options, *budget, "stop_at=2"])
    assert [row["step"] for row in rows(mim)] == [row["step"] for row in rows(image)] == [1, 2]


def test_a_folder_that_cannot_be_written_or_gone_on_from_is_named(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (Path("/proc/fastdetect/x"), tmp_path / "file"):
        for command, options in (
            (pretrain, pretrain_options(pack, output, "steps=1")),
            (train, train_options(output, f"pack={pack}", "residual=false", "steps=1")),
        ):
            with pytest.raises(UsageError, match=f"cannot write to {output}: .*; give another --output"):
                command.main(None, options)
    with pytest.raises(UsageError, match=r"--resume: cannot go on from .*state\.pt, which is not there"):
        pretrain.main(None, pretrain_options(pack, tmp_path / "none", "steps=1", "resume=true"))


def test_a_damaged_state_is_an_error_with_its_path(tmp_path: Path) -> None:
    go(tmp_path / "run", [0.5], steps=1)
    file = tmp_path / "run" / "state.pt"
    whole = file.read_bytes()
    other = io.BytesIO()
    torch.save([1, 2], other)
    for data in (b"", b"no state at all", whole[: len(whole) // 2], other.getvalue()):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"cannot go on from .*state\.pt: \w.*; it is damaged or of another"):
            go(tmp_path / "run", [0.5], steps=2, resume=True)


def test_pieces_give_the_gradient_of_the_batch(pack: Path, tmp_path: Path) -> None:
    for pieces in (1, 4):
        more = ["steps=2", "parts=4", f"accumulate={pieces}", "precision=fp32", "base_lr=0.05"]
        pretrain.main(None, pretrain_options(pack, tmp_path / str(pieces), *more))
    close_weights(tmp_path / "1", tmp_path / "4")


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}:{here.parents[1]}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_line_runs_under_torchrun(pack: Path, tmp_path: Path) -> None:
    words = ["-m", "fastdetect", "pretrain", str(pack), "-o", str(tmp_path / "mim"), "--steps", "1"]
    options = [part for option in pretrain_options(pack, tmp_path)[2:] for part in ("--set", option)]
    done = torchrun(*words, *options, "--set", "pictures=true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("val_loss") == 1
    assert [row["step"] for row in rows(tmp_path / "mim")] == [1]
    assert [path.name for path in (tmp_path / "mim" / "pictures").iterdir()] == ["step-0000001.png"]
    done = torchrun(*words, "--set", "batch=9")
    assert done.returncode != 0
    assert "a batch of 9 in 2 parts does not divide over 2 processes" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_are_one(pack: Path, tmp_path: Path) -> None:
    """The losses of two processes under torchrun are those of one process with the same pictures."""
    done = torchrun(str(Path(__file__).parent / "ranks.py"), str(pack), str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("model: ") == 2 * (1 + len(LOSSES))
    runs(pack, tmp_path / "one")
    for name in ("mim", *LOSSES):
        one, two = rows(tmp_path / "one" / name), rows(tmp_path / "two" / name)
        assert [row["step"] for row in two] == [2, 4]  # process 0 alone writes
        assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=2e-4)
        close_weights(tmp_path / "one" / name, tmp_path / "two" / name)


@pytest.mark.parametrize(
    ("precision", "hardware", "wanted"), [("auto", True, True), ("auto", False, False), ("bf16", False, True)]
)
def test_a_gpu_that_would_emulate_bf16_gets_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, hardware: bool, wanted: bool
) -> None:
    """A T4, which torch says supports it, unless it is asked without emulation."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: hardware or including_emulation
    )
    settings = RunSettings(output=tmp_path, steps=1, precision=precision)
    assert runs_bf16(settings, torch.device("cuda")) is wanted


def test_a_batch_is_dealt_without_gaps_and_overlaps() -> None:
    for world, accumulate, parts in ((1, 1, None), (2, 3, None), (4, 1, 8), (2, 2, 4)):
        deals = [Deal(24, rank, world, accumulate, parts) for rank in range(world)]
        dealt = [n for deal in deals for piece in range(accumulate) for n in deal.own(5, piece)]
        assert sorted(dealt) == list(range(5 * deals[0].draws, 6 * deals[0].draws))
        assert deals[0].each * deals[0].draws == 24
    # the same pictures in the same order on one process and on two
    assert [*Deal(8, 0, 2).own(3, 0), *Deal(8, 1, 2).own(3, 0)] == [*Deal(8, parts=2).own(3, 0)]
    with pytest.raises(UsageError, match=r"batch of 9 .* 2 processes .* accumulate=2"):
        Deal(9, 0, 2, 2)
    with pytest.raises(UsageError, match="parts a multiple of 4"):
        Deal(24, 0, 4, 1, 6)


class Weight(nn.Linear):
    """One number, whose product with the input is the loss."""

    def __init__(self) -> None:
        super().__init__(1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).sum()


def go(folder: Path, figures: list[float], console: Console | None = None, **more: object) -> list[float]:
    """A run of the loop on one weight; returns what was saved as the model. Validations give `figures` in turn."""
    model = Weight()
    left, saved = list(figures), []
    task = Task(
        objective=model, kept=model, model=model, average=Weight(),
        optimizer=torch.optim.SGD(model.parameters(), 1.0), rate=1.0, batches=lambda start: iter(lambda: 0, 1),
        prepare=lambda piece, step, number: (torch.ones(1),), measure=lambda average: {"val_auc": left.pop(0)},
        rising=True, save=lambda average: saved.append(len(figures) - len(left)),
    )  # fmt: skip
    settings = RunSettings(output=folder, save_steps=1, tensorboard=False, precision="fp32", **more)
    folder.mkdir(exist_ok=True)
    run(task, settings, Ranks(0, 1, CPU), Budget(settings.steps, None), console or Console(quiet=True))
    return saved


def test_a_run_stops_when_validations_get_no_better_and_keeps_the_best(tmp_path: Path) -> None:
    figures = [0.5, 0.7, 0.6, 0.65, 0.9]
    assert go(tmp_path / "best", figures, steps=5, patience=2, keep="best") == [1, 2]
    assert len(rows(tmp_path / "best")) == 4  # the fifth was never reached
    assert go(tmp_path / "last", figures, steps=5, patience=3, keep="last") == [1, 2, 3, 4, 5]
    # patience goes on over a cut: the second part starts with one validation in vain
    assert go(tmp_path / "cut", figures[:3], steps=5, patience=2, keep="best", stop_at=3) == [1, 2]
    assert go(tmp_path / "cut", [0.65], steps=5, patience=2, keep="best", resume=True) == []
    assert rows(tmp_path / "cut")[-1]["step"] == 4


def test_a_loss_that_is_not_finite_ends_the_run_before_a_state_is_written(tmp_path: Path) -> None:
    model = Weight()
    task = Task(
        objective=model, kept=model, model=model, average=Weight(),
        optimizer=torch.optim.SGD(model.parameters(), 1.0), rate=0.5, batches=lambda start: iter(lambda: 0, 1),
        prepare=lambda piece, step, number: (torch.full((1,), torch.inf),), measure=lambda average: {"v": 0.0},
        rising=True, save=lambda average: None,
    )  # fmt: skip
    settings = RunSettings(output=tmp_path, steps=3, tensorboard=False, precision="fp32")
    with pytest.raises(UsageError, match=r"loss is (inf|-inf|nan) at step 0; lower the learning rate \(now 0"):
        run(task, settings, Ranks(0, 1, CPU), Budget(3, None), Console(quiet=True))
    assert not (tmp_path / "state.pt").exists()


def test_a_terminal_gets_a_bar_and_a_file_plain_lines(tmp_path: Path) -> None:
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=100)
        go(tmp_path / str(terminal), [0.5, 0.6], console, steps=2)
        text = out.getvalue()
        assert text.count("val_auc") == 2
        assert ("━" in text) == terminal
        assert ("\x1b[" in text) == terminal


def test_pictures_and_curves_of_a_pretraining_run(pack: Path, tmp_path: Path) -> None:
    from PIL import Image

    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = pretrain_options(pack, tmp_path, "steps=2", "save_steps=1", "pictures=true", "tensorboard=true")
    pretrain.main(None, options)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["step-0000001.png", "step-0000002.png"]
    grid = Image.open(tmp_path / "pictures" / names[0])
    assert grid.size == (3 * 32, 1 * 32)  # one held-out face: as it is, masked, reconstructed
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2]
    assert [event.step for event in board.Scalars("validation/val_loss")] == [1, 2]
    assert [event.step for event in board.Images("reconstructions")] == [1, 2]


def test_tensorboard_that_is_asked_for_and_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"fastdetect\[train\]"):
        RunLog(tmp_path, Console(quiet=True), step=0, tensorboard=True)
    with RunLog(tmp_path, Console(quiet=True), step=0, tensorboard=None) as log:
        log.row({"step": 1})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1}


def test_the_command_lines_switches_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of `train` and `pretrain` arrives in the configuration, and what is not given stays as it is."""
    seen: dict[str, object] = {}
    monkeypatch.setattr(train, "train", lambda config, console: seen.update(train=config) or config.output)
    monkeypatch.setattr(pretrain, "pretrain", lambda config, console: seen.update(pretrain=config) or config.output)
    (tmp_path / "c.yaml").write_text("loss: supcon\nmargin: 0.3\nlr: 0.25\n")
    words = "train --pack p -o out --loss real-centric --no-residual --no-fusion --no-synthesis --margin 0.2 --steps 7"
    more = ["--config", str(tmp_path / "c.yaml"), "--set", "lr=0.5", "--patience", "3", "--resume"]
    assert CliRunner().invoke(app, [*words.split(), *more], catch_exceptions=False).exit_code == 0
    config = seen["train"]
    assert (config.pack, config.output, config.loss, config.margin) == (Path("p"), Path("out"), "real-centric", 0.2)
    assert (config.residual, config.fusion, config.synthesis) == (False, False, False)
    assert (config.steps, config.patience, config.resume, config.lr) == (7, 3, True, 0.5)
    CliRunner().invoke(app, ["train", "--manifest", "m", "-o", "x", "--config", str(tmp_path / "c.yaml")])
    config = seen["train"]
    assert (config.manifest, config.loss, config.margin, config.lr) == (Path("m"), "supcon", 0.3, 0.25)
    assert (config.residual, config.fusion, config.synthesis, config.resume) == (True, True, True, False)
    CliRunner().invoke(app, ["pretrain", "a", "b", "-o", "x", "--masking", "facial", "--minutes", "2"])
    config = seen["pretrain"]
    assert (config.packs, config.masking, config.minutes) == ([Path("a"), Path("b")], "facial", 2.0)
    with pytest.raises(UsageError, match="one of them"):
        CliRunner().invoke(app, ["train", "--pack", "a", "--manifest", "b", "-o", "x"], catch_exceptions=False)
