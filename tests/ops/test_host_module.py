"""fastdetect._host: the C++ core on NumPy arrays, at every instruction set that this processor has."""

import numpy as np
import pytest
import torch

import fastdetect
from fastdetect import _host
from fastdetect.ops import masked_patch_loss, patch_residual

LEVELS = ["baseline", "avx2", "avx512"]
HAVE = LEVELS[: LEVELS.index(_host.build_info()["cpu_level"]) + 1]


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pred = rng.standard_normal((3, 6, 147), dtype=np.float32)
    return pred, rng.random((3, 3, 14, 21), dtype=np.float32), (rng.random((3, 6)) < 0.7).astype(np.float32)


def to_dtype(images: np.ndarray, dtype: str) -> np.ndarray:
    return (images * 255).astype(np.uint8) if dtype == "uint8" else images.astype(dtype)


@pytest.mark.parametrize("level", HAVE)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("pred_dtype", ["float32", "float16"])
@pytest.mark.parametrize("image_dtype", ["float32", "float16", "uint8"])
def test_loss_is_the_op(level: str, threads: int, pred_dtype: str, image_dtype: str) -> None:
    pred, images, mask = arrays()
    pred, images = pred.astype(pred_dtype), to_dtype(images, image_dtype)
    loss, grad = _host.masked_patch_loss(pred, images, mask, patch_size=7, norm_pix=True, threads=threads, level=level)
    x = torch.from_numpy(pred).requires_grad_()
    expected = masked_patch_loss(x, torch.from_numpy(images), torch.from_numpy(mask), patch_size=7, norm_pix=True)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=2e-6)
    assert grad.dtype == pred.dtype
    np.testing.assert_allclose(grad, x.grad.numpy(), rtol=2e-3 if pred_dtype == "float16" else 2e-5, atol=1e-7)


@pytest.mark.parametrize("level", HAVE)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("image_dtype", ["float32", "float16", "uint8"])
def test_residual_is_the_op(level: str, threads: int, image_dtype: str) -> None:
    _, images, _ = arrays()
    images = to_dtype(images, image_dtype)
    rng = np.random.default_rng(1)
    pred, assignment = rng.random((4, 3, 6, 147), dtype=np.float32), rng.random((4, 6)) < 0.5
    residual, scores = _host.patch_residual(pred, images, assignment, patch_size=7, threads=threads, level=level)
    expected = patch_residual(*map(torch.from_numpy, (pred, images, assignment)), patch_size=7)
    assert residual.dtype == expected[0].numpy().dtype
    np.testing.assert_allclose(
        residual, expected[0].numpy(), rtol=1e-3 if image_dtype == "float16" else 1e-5, atol=2e-6
    )
    np.testing.assert_allclose(scores, expected[1].numpy(), rtol=1e-5, atol=1e-8)


def test_strided_arrays() -> None:
    pred, images, mask = arrays()
    expected = _host.masked_patch_loss(pred, images, mask, patch_size=7)
    interleaved = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    outer = np.zeros((3, 6, 200), np.float32)
    outer[..., :147] = pred
    for p in (outer[..., :147], np.asfortranarray(pred)):
        loss, grad = _host.masked_patch_loss(p, interleaved, mask, patch_size=7)
        assert loss == pytest.approx(expected[0], rel=1e-6)
        np.testing.assert_allclose(grad, expected[1], rtol=1e-5, atol=1e-8)


def test_empty_mask_is_nan() -> None:
    pred, images, mask = arrays()
    loss, grad = _host.masked_patch_loss(pred, images, 0 * mask, patch_size=7)
    assert np.isnan(loss)
    assert np.isnan(grad).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"patch_size": 5},
            r"images: got shape \[3, 3, 14, 21\] dtype float32, want H and W divisible by patch_size 5",
        ),
        ({"patch_size": 0}, r"divisible by patch_size 0"),
        (
            {"images": np.zeros((3, 14, 21), np.float32)},
            r"images: got shape \[3, 14, 21\].*want \[B, C, H, W\]",
        ),
        ({"images": np.zeros((3, 3, 14, 21))}, r"dtype float64, want dtype float32, float16 or uint8"),
        (
            {"pred": np.zeros((3, 6, 146), np.float32)},
            r"pred: got shape \[3, 6, 146\].*want shape \[3, 6, 147\]",
        ),
        ({"pred": np.zeros((3, 6, 147), np.int32)}, r"pred: .*int32, want dtype float32 or float16"),
        ({"mask": np.zeros(6, np.float32)}, r"mask: got shape \[6\].*want shape \[3, 6\]"),
        ({"level": "sse9"}, r"level: got 'sse9', want baseline, avx2 or avx512"),
        ({"threads": 0}, r"threads: got 0, want at least 1"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    pred, images, mask = arrays()
    with pytest.raises(ValueError, match=message):
        _host.masked_patch_loss(**({"pred": pred, "images": images, "mask": mask, "patch_size": 7} | change))


def test_residual_errors() -> None:
    pred, images, _ = arrays()
    with pytest.raises(ValueError, match=r"pred: .*want \[k, B, L, P\*P\*C\]"):
        _host.patch_residual(pred, images, np.ones((1, 6), bool), patch_size=7)
    with pytest.raises(ValueError, match=r"assignment: got shape \[2, 6\].*want shape \[1, 6\]"):
        _host.patch_residual(pred[None], images, np.ones((2, 6), bool), patch_size=7)
    with pytest.raises(ValueError, match="clamp: got 0"):
        _host.patch_residual(pred[None], images, np.ones((1, 6), bool), patch_size=7, clamp=0.0)


def test_build_info() -> None:
    info = _host.build_info()
    assert info["version"] == fastdetect.__version__
    assert info["cpu_level"] in LEVELS
    assert info["cpu_library"] is True
    assert info["torch_headers"]
    assert info["compiler"]
    assert info["flags"]
    assert info["cuda_library"] is False
