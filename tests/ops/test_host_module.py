"""fastdetect._host: the C++ core on NumPy arrays, at every instruction set that this processor has."""

import numpy as np
import pytest
import torch

import fastdetect
from fastdetect import _host
from fastdetect.ops import masked_patch_loss, patch_residual, synthesize_positives, update_center

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
        ({"patch_size": 0}, r"patch_size: got 0, want at least 1"),
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


def faces(dtype: str = "float32") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    z = 1.0 + 1.5 * rng.standard_normal((300, 24))
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(dtype)
    labels = rng.integers(0, 3, 300)
    center = z[labels == 0].astype(np.float32).mean(axis=0)
    return z, labels, center / np.linalg.norm(center)


@pytest.mark.parametrize("level", HAVE)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_synthesis_is_the_op(level: str, threads: int, dtype: str) -> None:
    z, labels, center = faces(dtype)
    tensors = [torch.from_numpy(array) for array in (z, labels, center)]
    options = {"threads": threads, "level": level}
    by_row = np.linspace(0, 1, 300, dtype=np.float32)
    for draw, again in (({"seed": 5}, {"seed": 5}), ({"lam": by_row}, {"lam": torch.from_numpy(by_row)})):
        z_new, index, lam = _host.synthesize_positives(z, labels, center, rho=0.5, **draw, **options)
        expected = synthesize_positives(*tensors, rho=0.5, **again)
        assert z_new.dtype == z.dtype
        np.testing.assert_array_equal(index, expected[1].numpy())
        np.testing.assert_array_equal(lam, expected[2].numpy())
        np.testing.assert_allclose(z_new, expected[0].numpy(), rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-6)
    for old in (None, center):
        new = _host.update_center(old, z, labels.astype(np.int32), momentum=0.7, **options)
        expected = update_center(None if old is None else tensors[2], tensors[0], tensors[1], momentum=0.7)
        np.testing.assert_allclose(new, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", HAVE)
@pytest.mark.parametrize("rows", [1, 15, 64, 1000])
def test_mining_is_a_stable_sort(level: str, rows: int) -> None:
    """Few cosines, of both signs and -0, shared by many rows: the selection's bits, and ties at its edge."""
    rng = np.random.default_rng(rows)
    cosine = rng.choice(np.array([-1, -0.75, -0.0, 0.0, 0.5, 0.5 + 2**-24, 0.75, 1], np.float32), rows)
    z = np.stack([cosine, np.sqrt(1 - cosine.astype(np.float64) ** 2).astype(np.float32)], axis=1)
    labels = rng.integers(0, 2, rows)
    reals = np.flatnonzero(labels == 0)
    for rho in (0.0, 0.01, 0.3, 0.5, 0.99, 1.0):
        mined = reals[np.argsort(cosine[reals], kind="stable")[: int(np.ceil(rho * len(reals) - 1e-9))]]
        center = np.array([1, 0], np.float32)
        _, index, _ = _host.synthesize_positives(z, labels, center, rho=rho, seed=1, level=level)
        np.testing.assert_array_equal(index, np.sort(mined))


def test_synthesis_edges() -> None:
    z, labels, center = faces()
    none = _host.synthesize_positives(z, labels * 0 + 1, center, seed=1)
    assert [array.shape for array in none] == [(0, 24), (0,), (0,)]
    np.testing.assert_array_equal(_host.update_center(center, z, labels * 0 + 1), center)
    wide = np.zeros((300, 30), np.float32)
    wide[:, 3:27] = z
    expected = _host.synthesize_positives(z, labels, center, seed=2**64 - 1)
    for view in (wide[:, 3:27], np.asfortranarray(z)):
        for a, b in zip(_host.synthesize_positives(view, labels, center, seed=2**64 - 1), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": np.ones(3, np.float32)}, r"z: got shape \[3\] .*want \[N, D\]"),
        ({"z": np.ones((300, 24))}, r"z: .*float64, want dtype float32 or float16"),
        ({"z": np.ones((300, 24), np.float32)}, r"z and center: want finite rows of unit length"),
        ({"labels": np.zeros(299, np.int64)}, r"labels: got shape \[299\].*want shape \[300\]"),
        ({"labels": np.zeros(300)}, r"labels: .*float64, want integers"),
        ({"labels": np.full(300, -2)}, r"labels: got -2 at row 0, want 0 = real"),
        ({"center": np.ones(23, np.float32)}, r"center: got shape \[23\].*want shape \[24\]"),
        ({"center": np.zeros(24, np.float32)}, r"z and center: want finite rows of unit length"),
        ({"rho": -0.1}, r"rho: got -0.1"),
        ({"lam_max": float("inf")}, r"lam_max: got inf"),
        ({"lam": np.ones(300, np.float32)}, r"want one of seed and lam"),
        ({"seed": None}, r"want one of seed and lam"),
        ({"seed": None, "lam": np.ones(299, np.float32)}, r"lam: got shape \[299\].*want \[N\] or \[M\], M = "),
        ({"seed": None, "lam": -np.ones(300, np.float32)}, r"lam: want finite numbers from 0"),
        ({"seed": None, "lam": np.full(300, np.inf, np.float32)}, r"lam: want finite numbers from 0"),
    ],
)
def test_synthesis_errors(change: dict, message: str) -> None:
    z, labels, center = faces()
    with pytest.raises(ValueError, match=message):
        _host.synthesize_positives(**({"z": z, "labels": labels, "center": center, "seed": 1} | change))


def test_center_errors() -> None:
    z, labels, center = faces()
    with pytest.raises(ValueError, match=r"momentum: got 1.5.*want 0 to 1"):
        _host.update_center(center, z, labels, momentum=1.5)
    with pytest.raises(ValueError, match=r"z: a real's row holds NaN or infinity"):
        _host.update_center(center, z * np.float32("nan"), labels)


def test_build_info() -> None:
    info = _host.build_info()
    assert info["version"] == fastdetect.__version__
    assert info["cpu_level"] in LEVELS
    assert info["cpu_library"] is True
    assert info["torch_headers"]
    assert info["compiler"]
    assert info["flags"]
    assert info["cuda_library"] is bool(info["cuda_architectures"])


def test_other_byte_orders_and_packed_views_are_read_as_what_they_are() -> None:
    pred, images, mask = arrays()
    want_loss, want_grad = _host.masked_patch_loss(pred, images, mask, patch_size=7)
    packed = np.zeros(images.shape, dtype=[("a", "u1"), ("v", "<f4")])  # five bytes from value to value
    packed["v"] = images
    shifted = np.zeros(pred.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(pred.shape)  # at an odd address
    shifted[...] = pred
    for some_pred, some_images in (
        (pred.astype(">f4"), images), (pred, images.astype(">f4")), (pred, packed["v"]), (shifted, images),
        (pred, images[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1]),
    ):  # fmt: skip
        loss, grad = _host.masked_patch_loss(some_pred, some_images, mask, patch_size=7)
        assert loss == want_loss
        np.testing.assert_array_equal(grad, want_grad)
    z, labels, center = faces()
    np.testing.assert_array_equal(
        _host.update_center(center, z.astype(">f4"), labels), _host.update_center(center, z, labels)
    )


@pytest.mark.parametrize("dtype", ["uint64", "uint8", "int16", ">i4"])
def test_labels_of_every_integer_type(dtype: str) -> None:
    z, labels, center = faces()
    want = _host.synthesize_positives(z, labels, center, seed=3)
    got = _host.synthesize_positives(z, labels.astype(dtype), center.astype(np.float64), seed=3)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_masks_of_every_number_type_and_seeds_of_every_size() -> None:
    pred, images, mask = arrays()
    want = _host.masked_patch_loss(pred, images, mask, patch_size=7)
    for dtype in (np.float64, np.int32, bool):
        loss, grad = _host.masked_patch_loss(pred, images, mask.astype(dtype), patch_size=7)
        assert loss == want[0]
        np.testing.assert_array_equal(grad, want[1])
    z, labels, center = faces()
    got = [_host.synthesize_positives(z, labels, center, seed=seed)[0] for seed in (-1, 2**64 - 1)]
    np.testing.assert_array_equal(*got)


def test_what_cannot_be_read_is_refused_with_what_is_wanted() -> None:
    pred, images, mask = arrays()
    z, labels, center = faces()
    huge = labels.astype(np.uint64)
    huge[1] = 2**63 + 5
    cases = [
        (lambda: _host.update_center(center, z, huge), r"labels: got 9223372036854775813 at row 1"),
        (lambda: _host.masked_patch_loss(pred, images, mask.astype(str), patch_size=7), "mask: .* want real numbers"),
        (lambda: _host.masked_patch_loss(pred, images, mask, patch_size=0), "patch_size: got 0, want at least 1"),
        (lambda: _host.patch_residual(pred[None], images, mask[:1].astype(int), patch_size=7), "assignment: .*bool"),
        (lambda: _host.patch_residual(pred[None], images, mask[:1] > 0, patch_size=7, gain=np.nan), "gain: got nan"),
        (lambda: _host.patch_residual(pred[None][:0], images, mask[:0] > 0, patch_size=7), "k of at least 1"),
    ]
    for call, wanted in cases:
        with pytest.raises(ValueError, match=wanted):
            call()
