"""The MesoNet peer: weights land where Keras has them, and its crop is upright and centred on the nose."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.ndimage import maximum_filter
from scipy.signal import correlate

SHAPES = [(3, 3, 3, 8), (5, 5, 8, 8), (5, 5, 8, 16), (5, 5, 16, 16)]


@pytest.fixture
def mesonet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    return pytest.importorskip("mesonet")


def test_meso4_against_a_channel_last_reference(mesonet: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    for i, shape in enumerate(SHAPES, 9):  # numbered across 9 and 10: order by number, not by text
        weights[f"conv2d_{i}/kernel"] = rng.normal(size=shape) / np.sqrt(np.prod(shape[:3]))
        weights[f"conv2d_{i}/bias"] = rng.normal(size=shape[3]) * 0.1
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            weights[f"batch_normalization_{i}/{name}"] = rng.uniform(0.5, 1.5, shape[3])
    for i, (rows, columns) in enumerate(((1024, 16), (16, 1)), 3):
        weights[f"dense_{i}/kernel"] = rng.normal(size=(rows, columns)) / np.sqrt(rows)
        weights[f"dense_{i}/bias"] = rng.normal(size=columns) * 0.1
    np.savez(tmp_path / "Meso4_X.npz", **{k: v.astype(np.float32) for k, v in weights.items()})
    crop = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)

    x = crop / 255
    for i, pool in enumerate((2, 2, 2, 4), 9):
        kernel = weights[f"conv2d_{i}/kernel"]
        pad = kernel.shape[0] // 2
        padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
        maps = [correlate(padded, kernel[..., k], "valid")[..., 0] for k in range(kernel.shape[3])]
        x = np.maximum(np.stack(maps, -1) + weights[f"conv2d_{i}/bias"], 0)
        gamma, beta, mean, variance = (
            weights[f"batch_normalization_{i}/{name}"] for name in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        x = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
        x = x.reshape(x.shape[0] // pool, pool, x.shape[1] // pool, pool, -1).max((1, 3))
    hidden = x.reshape(-1) @ weights["dense_3/kernel"] + weights["dense_3/bias"]
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    real = 1 / (1 + np.exp(-(hidden @ weights["dense_4/kernel"] + weights["dense_4/bias"])))
    fake = mesonet.fake_probability(mesonet.load(tmp_path / "Meso4_X.npz"), crop[None])
    assert fake[0] == pytest.approx(1 - real[0], abs=1e-5)


@pytest.mark.parametrize("degrees", [-40, 0, 25, 170])
@pytest.mark.parametrize("side", [60, 400], ids=["enlarged", "shrunk"])
def test_aligned_crop(mesonet: ModuleType, degrees: float, side: float) -> None:
    upright = np.array([[-0.5, -0.5], [0.5, -0.5], [0, 0], [-0.3, 0.5], [0.3, 0.5]])
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = (upright * side) @ turn.T + (600, 500)
    frame = np.zeros((1000, 1200, 3), np.uint8)
    for x, y in landmarks.round().astype(int):
        frame[y - side // 20 : y + side // 20 + 1, x - side // 20 : x + side // 20 + 1] = 255
    crop = mesonet.aligned_crop(frame, landmarks.astype(np.float32))
    grey = crop[..., 0].astype(float)
    expected = 128 + upright * 256 / (2.2 * 1.3)
    for x, y in expected:
        window = grey[int(y) - 6 : int(y) + 7, int(x) - 6 : int(x) + 7]
        rows, columns = np.mgrid[-6:7, -6:7]
        assert maximum_filter(window, 3).max() > 150
        offset = ((window * columns).sum() / window.sum(), (window * rows).sum() / window.sum())
        assert np.hypot(*offset) < 2.5


@pytest.mark.data
def test_published_weights_fit(mesonet: ModuleType, data_root: Path) -> None:
    crops = np.full((2, 256, 256, 3), 128, np.uint8)
    for name in mesonet.MODELS:
        p = mesonet.fake_probability(mesonet.load(data_root / "weights" / "mesonet" / f"{name}.npz"), crops)
        assert p.shape == (2,)
        assert 0 <= p[0] == p[1] <= 1
