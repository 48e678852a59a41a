"""Faces drawn again by ncnn networks: run for real, on a network small enough to write here."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from fastdetect.data import neural_redraw
from fastdetect.data.face_pack import FacePack
from fastdetect.data.neural_redraw import Network, Upscaler, choose, redraw
from fastdetect.errors import DataError, MissingDependencyError

pytest.importorskip("ncnn")
DOUBLE = """7767517
2 2
Input                    in0                      0 1 in0
Interp                   grow                     1 1 in0 out0 0=1 1=2.0 2=2.0
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    """A package on the path whose only network repeats every pixel."""
    models = tmp_path / "tiny_upscaler" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").touch()
    (models / "double.param").write_text(DOUBLE)
    (models / "double.bin").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("tiny_upscaler", None)
    return Network("tiny_upscaler", "double", 2, 0, 1.0)


def picture(seed: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_upscaler_keeps_pixels_and_channels_in_place(network: Network) -> None:
    image = picture(0, 12)[:, :8]
    drawn = Upscaler(network)(image)
    np.testing.assert_array_equal(drawn, image.repeat(2, 0).repeat(2, 1))


def test_an_output_of_another_size_is_an_error(network: Network) -> None:
    with pytest.raises(DataError, match=r"wanted \(36, 36, 3\)"):
        Upscaler(dataclasses.replace(network, factor=3))(picture(0, 12))


def test_missing_package_and_missing_file(network: Network) -> None:
    with pytest.raises(MissingDependencyError, match=r"fastdetect\[redraw\]"):
        Upscaler(dataclasses.replace(network, package="no_such_upscaler"))
    with pytest.raises(DataError, match="reinstall tiny_upscaler"):
        Upscaler(dataclasses.replace(network, file="triple"))


def test_redraw_is_like_the_picture_but_not_it(network: Network) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 64, 3)).copy()
    drawn = redraw(smooth, Upscaler(network), np.random.default_rng(0))
    assert drawn.shape == smooth.shape
    assert drawn.dtype == np.uint8
    assert 0 < np.abs(drawn.astype(int) - smooth).mean() < 6


def pack(folder: Path, split: list[str]) -> Path:
    count = len(split)
    folder.mkdir()
    np.savez(
        folder / "faces.npz",
        landmarks=np.zeros((count, 5, 2), np.float32), face_px=np.ones(count, np.float32),
        identity=np.arange(count) // 2, source=(np.arange(count) >= 6).astype(np.int64), clip=np.arange(count),
        split=np.asarray(split),
    )  # fmt: skip
    (folder / "names.json").write_text('{"identities": [], "sources": ["a", "b"], "clips": []}')
    np.save(folder / "images.npy", np.stack([picture(i) for i in range(count)]))
    return folder


def test_choice_takes_sources_in_turn_and_leaves_the_test_split_out(tmp_path: Path) -> None:
    data = FacePack.load(pack(tmp_path / "p", ["train"] * 7 + ["val", "test", "test"]))
    rows = choose(data, 4, np.random.default_rng(0))
    assert (data.source[rows] == 1).sum() == 2
    assert len(set(rows.tolist())) == 4
    assert set(choose(data, 99, np.random.default_rng(0)).tolist()) == set(range(8))


def test_the_pack_gets_its_drawn_faces(tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pack(tmp_path / "p", ["train"] * 8)
    assert FacePack.load(folder).redrawn is None
    monkeypatch.setattr(neural_redraw, "NETWORKS", (network,))
    assert neural_redraw.main(folder, count=5, seed=3) == 0
    data = FacePack.load(folder)
    assert data.redrawn is not None
    assert data.redrawn_of is not None
    drawn = np.flatnonzero(data.redrawn_of >= 0)
    assert data.redrawn.shape == (5, 64, 64, 3)
    assert len(drawn) == 5
    for row in drawn:  # each is nearer to its own face than to any other
        distance = np.abs(data.images.astype(int) - data.redrawn[data.redrawn_of[row]]).mean((1, 2, 3))
        assert distance.argmin() == row
    neural_redraw.main(folder, count=2, seed=4)
    assert (np.asarray(FacePack.load(folder).redrawn_of) >= 0).sum() == 2
