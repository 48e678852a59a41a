"""Validation persons taken out of data sets that name none."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastdetect.cli import app
from fastdetect.data.hold_out import hold_out
from fastdetect.data.manifest import Manifest, Sample, check, read_manifest
from fastdetect.errors import DataError, UsageError


def swaps(people: int, *, split: str = "", dataset: str = "swaps") -> list[Sample]:
    """Two reals of each person, and a swap of each into each of the next two."""
    samples = []
    for a in range(people):
        for take in range(2):
            name = f"id{a}_{take}"
            samples.append(
                Sample(
                    dataset=dataset, video=name, path=f"r/{name}.mp4", label=0, identity=f"{dataset}:id{a}", split=split
                )
            )
        for b in ((a + 1) % people, (a + 2) % people):
            name = f"id{a}_id{b}"
            samples.append(
                Sample(
                    dataset=dataset, video=name, path=f"f/{name}.mp4", label=1, manipulation="swap", split=split,
                    identity=f"{dataset}:id{a}", target_identity=f"{dataset}:id{a}", source_identity=f"{dataset}:id{b}",
                )
            )  # fmt: skip
    return samples


def persons(manifest: Manifest, split: str) -> set[str]:
    return {person for s in manifest.samples if s.split == split for person in s.identities}


def test_nobody_is_on_both_sides() -> None:
    manifest, (line,) = hold_out(Manifest(tuple(swaps(40)), Path()), 0.3)
    assert len(persons(manifest, "val")) > 1
    assert not persons(manifest, "val") & persons(manifest, "train")
    assert {s.label for s in manifest.samples if s.split == "val"} == {0, 1}
    assert {s.label for s in manifest.samples if s.split == ""} == {1}  # reals have one person, so one side
    assert line.startswith("swaps: 12 of 40 persons held out")
    assert not [p for p in check(manifest) if p.kind == "IDENTITY_IN_TWO_SPLITS"]
    again, _ = hold_out(Manifest(tuple(swaps(40)[::-1]), Path()), 0.3)
    assert persons(again, "val") == persons(manifest, "val")


def test_only_training_videos_move_and_only_where_val_is_missing() -> None:
    test = [s.model_copy(update={"split": "test", "dataset": "half"}) for s in swaps(5, dataset="other")]
    mine = swaps(30, split="train", dataset="half") + test
    whole = swaps(6, split="train", dataset="whole") + swaps(3, split="val", dataset="whole")
    manifest, lines = hold_out(Manifest(tuple(mine + whole), Path()), 0.4)
    assert [line.partition(":")[0] for line in lines] == ["half"]
    assert [s for s in manifest.samples if s.dataset == "whole"] == whole
    assert sum(s.split == "test" for s in manifest.samples) == len(test)
    assert {s.split for s in manifest.samples if s.dataset == "half"} == {"train", "val", "test", ""}


def test_a_video_of_nobody_is_a_person_of_its_own() -> None:
    nameless = [Sample(dataset="d", video=f"v{n}", path=f"{n}.mp4", label=n % 2) for n in range(40)]
    manifest, (line,) = hold_out(Manifest(tuple(nameless), Path()), 0.25)
    assert sum(s.split == "val" for s in manifest.samples) == 10
    assert line.startswith("d: 10 of 40 persons held out for validation; 0 fakes between")


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"swaps: with 1 of 4 persons held out, val has 2 reals and 0 fakes"):
        hold_out(Manifest(tuple(swaps(4)), Path()), 0.1)
    with pytest.raises(DataError, match=r"swaps: with 4 of 4 persons held out, train has 0 reals and 0 fakes"):
        hold_out(Manifest(tuple(swaps(4)), Path()), 0.9)
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(UsageError, match="above 0 and below 1"):
            hold_out(Manifest(tuple(swaps(4)), Path()), share)


def test_the_command_holds_out(tmp_path: Path) -> None:
    for label in ("real", "fake"):
        for n in range(20):
            (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / label / f"{label}{n}.mp4").write_bytes(b"x")
    words = ["data", "index", str(tmp_path / "set"), "-o", str(tmp_path / "set.parquet"), "--hold-out", "0.3"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "12 of 40 persons held out" in result.output
    splits = [s.split for s in read_manifest(tmp_path / "set.parquet").samples]
    assert (splits.count("val"), splits.count("train")) == (12, 28)
