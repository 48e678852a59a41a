"""Choice of implementation: the environment variable, the missing library, the private C++ ops' refusals."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

from fastdetect.errors import UsageError
from fastdetect.ops import backend, masked_patch_loss, patch_residual, supcon_margin_loss

ARGS = (torch.zeros(1, 4, 12), torch.zeros(1, 3, 4, 4), torch.ones(1, 4))


def test_import_loads_no_compiler_and_leaves_the_environment() -> None:
    code = "import os, sys; before = dict(os.environ); import fastdetect.losses, fastdetect.integrations; "
    code += "sys.exit('torch._dynamo' in sys.modules or dict(os.environ) != before)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_library_is_built() -> None:
    """The rest of these tests would pass on the fallback too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.load_cpu_library()
    assert backend.fused(ARGS[0], ARGS[1], 12)


def test_reference_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "reference")
    assert not backend.fused(ARGS[0], ARGS[1], 12)
    pred = ARGS[0].clone().requires_grad_()
    loss = masked_patch_loss(pred, *ARGS[1:], patch_size=2)
    assert "GeneratedBackwardFor" not in type(loss.grad_fn).__name__


def test_torch_func_takes_the_reference() -> None:
    """Our ops are torch.autograd.Functions without rules for functorch."""

    def loss(pred: torch.Tensor) -> torch.Tensor:
        return masked_patch_loss(pred, *ARGS[1:], patch_size=2)

    pred = torch.rand(3, *ARGS[0].shape)
    plain = [one.clone().requires_grad_() for one in pred]
    want = torch.stack([torch.autograd.grad(loss(one), one)[0] for one in plain])
    torch.testing.assert_close(torch.func.grad(loss)(pred[0]), want[0])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(pred), want)
    compiled = torch.compile(torch.func.grad(loss), backend="aot_eager")
    torch.testing.assert_close(compiled(pred[0]), want[0])
    assert backend.fused(ARGS[0], ARGS[1], 12)


def test_forward_mode_takes_the_reference() -> None:
    """Without a rule of their own, ops would drop the tangent and say nothing."""
    torch.manual_seed(0)
    pred, tangent = torch.rand_like(ARGS[0]), torch.randn_like(ARGS[0])
    want = torch.func.jvp(lambda p: masked_patch_loss(p, *ARGS[1:], patch_size=2), (pred,), (tangent,))[1]
    z, labels = torch.nn.functional.normalize(torch.randn(6, 8), dim=1), torch.tensor([0, 0, 0, 1, 1, 2])
    dz = torch.randn_like(z)
    want_z = torch.func.jvp(lambda rows: supcon_margin_loss(rows, labels), (z,), (dz,))[1]
    with forward_ad.dual_level():
        loss = masked_patch_loss(forward_ad.make_dual(pred, tangent), *ARGS[1:], patch_size=2)
        torch.testing.assert_close(forward_ad.unpack_dual(loss).tangent, want)
        loss = supcon_margin_loss(forward_ad.make_dual(z, dz), labels)
        torch.testing.assert_close(forward_ad.unpack_dual(loss).tangent, want_z)


def test_other_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", "fast")
    with pytest.raises(UsageError, match="FASTDETECT_BACKEND: got 'fast', want 'auto' or 'reference'"):
        masked_patch_loss(*ARGS, patch_size=2)
    with pytest.raises(UsageError, match="FASTDETECT_BACKEND"):
        patch_residual(ARGS[0][None], ARGS[1], torch.ones(1, 4, dtype=torch.bool), patch_size=2)


def test_float64_and_long_cuda_rows_take_torch() -> None:
    assert not backend.fused(ARGS[0].double(), ARGS[1], 12)
    assert not backend.fused(ARGS[0].to("meta"), ARGS[1], 12)


@pytest.mark.parametrize("broken", [False, True])
def test_missing_or_broken_library_warns_once_and_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    expected = masked_patch_loss(*ARGS, patch_size=2)
    monkeypatch.setattr(backend, "LIBRARY", tmp_path / "_ops_cpu.so")
    if broken:
        backend.LIBRARY.write_bytes(b"not a library")
    backend.load_cpu_library.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                torch.testing.assert_close(masked_patch_loss(*ARGS, patch_size=2), expected)
                patch_residual(ARGS[0][None], ARGS[1], torch.ones(1, 4, dtype=torch.bool), patch_size=2)
        assert not backend.fused(ARGS[0], ARGS[1], 12)
    finally:
        backend.load_cpu_library.cache_clear()
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert "pip install --no-build-isolation" in str(warning.message)
    assert ("Could not load this library" if broken else "does not exist") in str(warning.message)


def test_cpp_ops_refuse_other_dtypes() -> None:
    with pytest.raises(RuntimeError, match="dtype must be float32, bfloat16, float16 or uint8"):
        torch.ops.fastdetect_cpu.masked_patch_loss(ARGS[0].double(), *ARGS[1:], 2, False, True, True)
