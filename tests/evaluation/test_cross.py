"""Cross-manipulation: the matrix against scikit-learn, its means and gap, and predictions from files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fastdetect.errors import DataError, UsageError
from fastdetect.evaluation.cross import Prediction, cross_manipulation, predictions, read_predictions
from fastdetect.evaluation.index import Entry
from fastdetect.evaluation.scoring import VideoScore
from fastdetect.evaluation.tables import cross_markdown

METHODS = {"Deepfakes": "swap", "FaceSwap": "swap", "Face2Face": "reenactment"}


def rows(knows: str, seed: int, skip: int = 0) -> list[Prediction]:
    """Predictions of a model that sees one method's fakes clearly and the others a little."""
    rng = np.random.default_rng(seed)
    made = [Prediction("set", f"r{i}", 0, "real", f"p{i}", rng.normal(), faces(rng)) for i in range(20)]
    for method, kind in METHODS.items():
        shift = 4.0 if method == knows else 0.5
        made += [
            Prediction("set", f"{method}/{i}", 1, f"{kind}, {method}", f"p{i}", shift + rng.normal(), faces(rng, shift))
            for i in range(12)
        ]
    return made[skip:]


def faces(rng: np.random.Generator, shift: float = 0.0) -> tuple[float, ...]:
    return tuple((shift + rng.normal(size=rng.integers(3, 9))).tolist())


def test_every_cell_is_that_method_against_all_reals() -> None:
    models = {"Deepfakes": rows("Deepfakes", 1), "FaceSwap": rows("FaceSwap", 2)}
    found = cross_manipulation(models, resamples=100)
    assert found["columns"] == {"Deepfakes": 12, "Face2Face": 12, "FaceSwap": 12}
    assert (found["reals"], found["videos"], found["left_out"]) == (20, 56, 0)
    for name, table in models.items():
        for method in METHODS:
            kept = [row for row in table if not row.label or row.manipulation.endswith(method)]
            auc = roc_auc_score([row.label for row in kept], [row.margin for row in kept])
            cell = found["matrix"][name][method]
            assert cell["value"] == pytest.approx(auc)
            assert cell["low"] <= auc <= cell["high"]
    seen = np.mean([found["matrix"][name][name]["value"] for name in models])
    unseen = np.mean([found["matrix"][n][m]["value"] for n in models for m in METHODS if m != n])
    assert found["mean_seen"]["value"] == pytest.approx(seen)
    assert found["mean_unseen"]["value"] == pytest.approx(unseen)
    assert found["gap"]["value"] == pytest.approx(seen - unseen)
    assert found["gap"]["low"] > 0.1
    frames = found["frame"]
    for name, table in models.items():
        for method in METHODS:
            kept = [row for row in table if not row.label or row.manipulation.endswith(method)]
            labels = [row.label for row in kept for _ in row.face_margins]
            auc = roc_auc_score(labels, [margin for row in kept for margin in row.face_margins])
            assert frames["matrix"][name][method]["value"] == pytest.approx(auc)
    own = frames["matrix"]["Deepfakes"]["Deepfakes"]
    assert own["value"] != found["matrix"]["Deepfakes"]["Deepfakes"]["value"]
    assert own["low"] <= own["value"] <= own["high"]
    seen = np.mean([frames["matrix"][name][name]["value"] for name in models])
    assert frames["gap"]["value"] == pytest.approx(seen - frames["mean_unseen"]["value"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = "\n".join(cross_markdown(found))
    assert f"**{found['matrix']['FaceSwap']['FaceSwap']['value']:.3f} [" in text
    assert "Face2Face (12)" in text
    assert f"**{own['value']:.3f} [" in text
    assert "| Video AUC, trained on |" in text
    assert "| Frame AUC, trained on |" in text


def test_by_type_and_models_of_other_data() -> None:
    found = cross_manipulation({"swap": rows("FaceSwap", 1), "self-blends": rows("", 2)}, by="type", resamples=50)
    assert found["columns"] == {"reenactment": 12, "swap": 24}
    assert found["unseen"]["self-blends"]["value"] == pytest.approx(
        np.mean([cell["value"] for cell in found["matrix"]["self-blends"].values()])
    )


def test_only_videos_that_all_models_scored_are_compared() -> None:
    found = cross_manipulation(
        {"Deepfakes": rows("Deepfakes", 1, skip=5), "FaceSwap": rows("FaceSwap", 2)}, resamples=50
    )
    assert (found["reals"], found["videos"], found["left_out"]) == (15, 51, 5)


def test_predictions_survive_the_file(tmp_path: Path) -> None:
    entries = [Entry(Path("a"), "a", 0, "real", "p", dataset="s"), Entry(Path("b"), "b", 1, "swap, X", "q")]
    scores = [VideoScore(0.25, 0, np.array([0.25, -1.5])), VideoScore(None, None, np.zeros(0))]
    told = predictions(entries, scores)
    assert told == [Prediction("s", "a", 0, "real", "p", 0.25, (0.25, -1.5))]
    (tmp_path / "e.json").write_text(json.dumps({"rows": [vars(told[0]) | {"score": 0.5}]}))
    assert read_predictions(tmp_path / "e.json") == told
    for content in ("{}", "no json", '{"rows": [{"file": "a"}]}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=r"is not the evaluation\.json.*measure again"):
            read_predictions(tmp_path / "bad.json")


def test_what_cannot_be_compared_is_refused() -> None:
    one = rows("Deepfakes", 1)
    with pytest.raises(UsageError, match="two models at least"):
        cross_manipulation({"Deepfakes": one})
    with pytest.raises(UsageError, match="no model is called by a kind of fake"):
        cross_manipulation({"x": one, "y": one})
    other = [replace(row, dataset="other") for row in one]
    with pytest.raises(DataError, match="no video has a score by every model"):
        cross_manipulation({"Deepfakes": one, "FaceSwap": other})
    flipped = [replace(row, label=1 - row.label, manipulation="swap, X") for row in one]
    with pytest.raises(DataError, match="another label"):
        cross_manipulation({"Deepfakes": one, "FaceSwap": flipped})
    with pytest.raises(DataError, match="needs reals and fakes"):
        cross_manipulation({"Deepfakes": one[20:], "FaceSwap": one[20:]})
