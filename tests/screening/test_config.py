"""Options: defaults, file, --set, command line; and what is refused."""

from pathlib import Path

import pytest
import yaml

from fastdetect.errors import UsageError
from fastdetect.evaluation.scoring import Gate
from fastdetect.screening.config import ScreenConfig, load_config


def test_what_comes_later_wins(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("sample: fps:1\nworkers: 3\ntimeout: 9\nverdict: {min_faces: 7, min_face_px: 50}\n")
    config = load_config(
        file, ["workers=4", "verdict.min_faces=8", "sample=all"], {"sample": "keyframes", "model": None}
    )
    assert (config.sample, config.workers, config.timeout, config.model) == ("keyframes", 4, 9, "fastdetect-small")
    assert (config.verdict.min_faces, config.verdict.min_face_px) == (8, 50)
    assert config.verdict.min_frames == ScreenConfig().verdict.min_frames


def test_the_resolved_configuration_can_be_read_again(tmp_path: Path) -> None:
    config = load_config(overrides=["max_seconds=2.5", "faces=largest", "detection.side=320"])
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(file) == config


def test_sampling_is_written_one_way() -> None:
    assert load_config(options={"sample": "uniform"}).sample == "uniform:16"
    assert load_config(options={"sample": "fps:2.0"}).sample == "fps:2"


def test_verdicts_count_what_the_calibration_counts() -> None:
    rules, gate = ScreenConfig().verdict, Gate()
    for name in ("min_face_px", "min_brightness", "min_faces", "min_share", "min_frames"):
        assert getattr(rules, name) == getattr(gate, name)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["nonsense=1"], "nonsense"),
        (["verdict=3"], "verdict"),
        (["verdict.min_faces.x=3"], "min_faces"),
        (["timeout=-1"], "timeout"),
        (["engine=magic"], "engine"),
        (["timeout=[1"], "YAML"),
        (["=1"], "key=value"),
        (["timeout=1", "timeout.x=2"], "timeout"),
        (["max_seconds=.inf"], "max_seconds: Input should be a finite number"),
        (["timeout=.inf"], "timeout"),
        (["detection.score=.nan"], "detection.score"),
        (["verdict.min_face_px=.inf"], "min_face_px"),
        (["verdict.min_sharpness=.inf"], "min_sharpness"),
        (["verdict.threshold_suspicious=.nan"], "threshold_suspicious"),
    ],
)
def test_what_cannot_be_used_is_a_usage_error_that_names_it(overrides: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_config(overrides=overrides)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("verdict.min_facs=3", "verdict.min_facs: no such key; did you mean verdict.min_faces?"),
        ("worker=3", "worker: no such key; did you mean workers?"),
        ("detection.qqq=3", "detection.qqq: no such key; there are side, score, runtime, max_people, max_faces"),
    ],
)
def test_an_unknown_key_is_answered_with_those_that_there_are(override: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(overrides=[override])
    assert str(caught.value) == said


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\xff"])
def test_a_file_that_is_no_configuration_is_a_usage_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"c\.yaml"):
        load_config(file)
