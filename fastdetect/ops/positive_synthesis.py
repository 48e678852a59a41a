"""update_center and synthesize_positives: argument checks, torch.library registration, choice of implementation."""

import math
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import reference
from fastdetect.ops.backend import check_tensors, fused_synthesis, is_integer, readable, traced
from fastdetect.ops.ranks import sum_over_ranks

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_UNIT_TOLERANCE = 0.02  # of a squared length; rounding to bfloat16 moves it by 0.008 at most


def update_center(
    center: Tensor | None,  # (D,)
    z: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    momentum: float = 0.9,
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    """New centre of the real faces: `normalize(momentum * center + (1 - momentum) * mean of the reals)` [ours].

    Without a centre (None or all zero) it is the normalised mean. A batch without reals leaves it unchanged, and so
    does a mixture that is the zero vector. No gradient. Sums are deterministic, whatever the number of threads.

    Args:
        center: [D] float, or None before the first batch.
        z: [N, D] float32, bfloat16, float16 or float64 embeddings.
        labels: [N] integers, 0 = real, above = fake. Rows of fakes are not read.
        momentum: weight of the old centre, 0 to 1.
        group: process group whose batches are taken together (`torch.distributed.group.WORLD` for all); None: this
            process's batch alone.

    Returns:
        [D] float32 (float64 where an argument is).

    Raises:
        ShapeError: a shape, dtype or device does not fit; on the CPU also a negative label, or NaN or infinity in the
            row of a real, on every rank of the group alike. On CUDA, where looking would stop the stream, and under
            torch.vmap those make the centre NaN.
        UsageError: momentum out of range.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=-1)
        >>> center = update_center(None, z, torch.tensor([0, 1, 0, 2, 0, 1, 0, 1]))
        >>> center.shape, round(center.norm().item(), 4)
        (torch.Size([16]), 1.0)
    """
    if not 0.0 <= momentum <= 1.0:
        raise UsageError(f"momentum: got {momentum}, want 0 to 1")
    _check(z, labels, center)
    z = z.detach()
    dtype = reference.accumulation_dtype(z, z if center is None else center)
    old = z.new_zeros(z.shape[1], dtype=dtype) if center is None else center.detach().to(dtype)
    ranks = "" if group is None else group.group_name
    if not fused_synthesis(z, center):
        sums = sum_over_ranks(reference.real_sums(z, labels, dtype), ranks)
        if readable(z, labels):
            _refuse_bad_sums(z, labels, sums, ranks)
        return reference.mix_center(old, sums, momentum)
    if traced(z, labels, center):
        return _mix_center_op(old, _real_sums_op(z, labels, ranks), momentum)
    return _mix_center(old, _real_sums(z, labels, ranks), momentum)


def synthesize_positives(
    z: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    center: Tensor,  # (D,)
    *,
    rho: float = 0.25,
    lam_max: float = 0.5,
    seed: int | Tensor | None = None,
    lam: float | Tensor | None = None,
    guard: bool = True,
    size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hard positives: the reals farthest from their centre, turned farther away from it [ours, after ICCV'21's
    feature transformation].

    Mines the M = ceil(rho * R) of R reals with the lowest `z.c` (equal ones: the lower row), and makes of each
    `normalize(z + lam * (z - c))`. The guard cuts lam so that a synthetic positive stays at least as near to the
    centre as the nearest fake; a real that is farther away already gets lam = 0. Differentiable with respect to z,
    with lam and c fixed (once: there is no double backward).

    Args:
        z: [N, D] float32, bfloat16, float16 or float64, rows of unit length.
        labels: [N] integers, 0 = real, above = fake.
        center: [D] float, unit length: what `update_center` returned.
        rho: part of the reals that is mined, 0 to 1.
        lam_max: lam = lam_max * Beta(2, 2); finite, from 0.
        seed: key of the Philox generator, 0 to 2^63 - 1, or an int64 tensor of one element on z's device (for CUDA
            graphs: the replay reads it). The draw depends on the seed and the row in z, not on the device.
        lam: instead of seed: a number, or [N] (one per row of z), or [M] (one per row of the result); from 0.
        guard: cut lam as said; without fakes there is nothing to guard against.
        size: rows of the result. None: M of them, which on CUDA waits for the device once. A number: no wait and a
            static shape (CUDA graphs); at most that many are mined, and the rows past the mined ones have index -1,
            lam 0 and z_new 0, for the caller to mask.

    Returns:
        z_new [M, D] of z's dtype; index [M] int64, the mined rows in ascending order; lam [M] as applied, float32
        (float64 where z or center is).

    Raises:
        ShapeError: a shape, dtype or device does not fit; a row or the centre is not of unit length (NaN is not), a
            label or lam is negative. With `size`, on CUDA, where looking would stop the stream, and under torch.vmap
            these make every lam and mined row NaN.
        UsageError: rho, lam_max, seed or size out of range; both or neither of seed and lam; a gradient is asked for
            center or lam.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=-1)
        >>> labels = torch.tensor([0, 1, 0, 2, 0, 1, 0, 1])
        >>> z_new, index, lam = synthesize_positives(z, labels, update_center(None, z, labels), rho=0.5, seed=7)
        >>> z_new.shape, index.shape, lam.shape
        (torch.Size([2, 16]), torch.Size([2]), torch.Size([2]))
    """
    check_tensors(center=center)
    _check(z, labels, center)
    if not 0.0 <= rho <= 1.0:
        raise UsageError(f"rho: got {rho}, want 0 to 1")
    if not 0.0 <= lam_max < math.inf:
        raise UsageError(f"lam_max: got {lam_max}, want a finite number from 0")
    if (seed is None) == (lam is None):
        raise UsageError(f"want one of seed and lam: got {'neither' if seed is None else 'both'}")
    if size is not None and not (is_integer(size) and size >= 0):
        raise UsageError(f"size: got {size!r}, want None or an integer from 0")
    seed, seed_at = _check_seed(seed, z)
    lam = _check_lam(lam, z, size)
    for name, tensor in (("center", center), ("lam", lam)):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                f"synthesize_positives has a gradient for z only, but {name} requires one: pass {name}.detach()"
            )
    if not fused_synthesis(z, center):
        if (size is None and not torch.compiler.is_compiling()) or readable(z, labels, center, lam):
            _refuse_values(z, labels, center, lam)
        made = reference.synthesize_positives(
            z, labels, center, rho=rho, lam_max=lam_max, seed=seed if seed_at is None else seed_at, lam=lam,
            guard=guard, size=size,
        )  # fmt: skip
        return made
    args = (z, labels, center, lam, seed_at, rho, lam_max, seed, guard, size)
    return _synthesize_op(*args) if traced(z, labels, center, lam, seed_at) else _Eager.apply(*args)


def _check(z: Tensor, labels: Tensor, center: Tensor | None) -> None:
    check_tensors(z=z, labels=labels, **({} if center is None else {"center": center}))
    if z.dim() != 2 or z.shape[1] == 0:
        raise ShapeError(f"z: got shape {tuple(z.shape)}, want [N, D] with D of at least 1")
    if z.dtype not in _DTYPES:
        raise ShapeError(f"z: got {z.dtype}, want one of {_names(_DTYPES)}")
    if labels.shape != z.shape[:1]:
        raise ShapeError(f"labels: got shape {tuple(labels.shape)}, want {tuple(z.shape[:1])}, one per row of z")
    if labels.dtype not in _LABEL_DTYPES:
        raise ShapeError(f"labels: got {labels.dtype}, want integers, 0 = real, above = fake: pass labels.long()")
    for name, tensor in (("labels", labels), ("center", center)):
        if tensor is not None and tensor.device != z.device:
            raise ShapeError(f"{name}: got device {tensor.device}, want z's {z.device}")
    if center is None:
        return
    if center.shape != z.shape[1:]:
        raise ShapeError(f"center: got shape {tuple(center.shape)}, want {tuple(z.shape[1:])}, the width of z")
    if center.dtype not in _DTYPES:
        raise ShapeError(f"center: got {center.dtype}, want one of {_names(_DTYPES)}")


def _check_seed(seed: int | Tensor | None, z: Tensor) -> tuple[int, Tensor | None]:
    if isinstance(seed, Tensor):
        if seed.numel() != 1 or seed.dtype != torch.int64 or seed.device != z.device:
            raise ShapeError(
                f"seed: got shape {tuple(seed.shape)} {seed.dtype} on {seed.device}, want an int or one int64 on "
                f"{z.device}"
            )
        return 0, seed.reshape(1)
    if seed is not None and not (is_integer(seed) and 0 <= seed < 2**63):
        raise UsageError(f"seed: got {seed!r}, want an integer of 0 to 2^63 - 1")
    return seed or 0, None


def _check_lam(lam: float | Tensor | None, z: Tensor, size: int | None) -> Tensor | None:
    if lam is None:
        return None
    if not isinstance(lam, Tensor):
        if not 0.0 <= lam < math.inf:
            raise UsageError(f"lam: got {lam}, want a finite number from 0")
        return z.new_full((z.shape[0],), lam, dtype=reference.accumulation_dtype(z))
    if lam.dim() != 1 or (size is not None and lam.shape[0] not in (z.shape[0], size)):
        raise ShapeError(f"lam: got shape {tuple(lam.shape)}, want a number, [N] = [{z.shape[0]}] or [M]")
    if lam.dtype not in _DTYPES:
        raise ShapeError(f"lam: got {lam.dtype}, want one of {_names(_DTYPES)}")
    if lam.device != z.device:
        raise ShapeError(f"lam: got device {lam.device}, want z's {z.device}")
    return lam


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _refuse_labels(labels: Tensor) -> None:
    negative = labels < 0
    if negative.any():
        row = int(negative.int().argmax())
        raise ShapeError(f"labels: got {int(labels[row])} at row {row}, want 0 = real, above = fake")


def _refuse_bad_sums(z: Tensor, labels: Tensor, sums: Tensor, ranks: str) -> None:
    """Say what made the sums of all ranks bad; after the reduction, so that every rank raises."""
    if sums.isfinite().all():
        return
    _refuse_labels(labels)
    if sums[-1].isnan():
        raise ShapeError("labels: got a negative one on another rank of the group, want 0 = real, above = fake")
    bad = (labels == 0) & ~z.isfinite().all(dim=1)
    row = ": the sum of the reals overflows float32" + (" or another rank of the group has such a row" if ranks else "")
    if bad.any():
        row = f" at row {int(bad.int().argmax())}"
    raise ShapeError(f"z: got NaN or infinity{row}, want finite rows of unit length")


def _refuse_values(z: Tensor, labels: Tensor, center: Tensor, lam: Tensor | None) -> None:
    """Say which value cannot be used; nothing where all can."""
    _refuse_labels(labels)
    for name, rows in (("center", center[None]), ("z", z)):
        square = rows.detach().to(torch.float32).square().sum(dim=1)
        bad = ~((square - 1).abs() <= _UNIT_TOLERANCE)
        if bad.any():
            row = int(bad.int().argmax())
            where, fix = (f" at row {row}", "z, dim=-1") if name == "z" else ("", "center, dim=0")
            first = "call update_center first, or " if name == "center" else ""
            raise ShapeError(
                f"{name}: got length {square[row].sqrt().item():.4g}{where}, want unit length: {first}pass "
                f"torch.nn.functional.normalize({fix})"
            )
    if lam is not None and not _usable(lam).all():
        raise ShapeError(f"lam: got {lam[(~_usable(lam)).int().argmax()].item():.4g}, want finite numbers from 0")


def _usable(lam: Tensor) -> Tensor:
    return (lam >= 0) & (lam < math.inf)


def _core(tensor: Tensor) -> Any:
    return torch.ops.fastdetect_cpu if tensor.device.type == "cpu" else torch.ops.fastdetect_cuda


def _rows(z: Tensor) -> Tensor:
    """The kernels take any row stride but want stride 1 in the last dimension."""
    return z if z.stride(1) == 1 else z.contiguous()


def _vector(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).contiguous()


def _synthesize(
    z: Tensor,
    labels: Tensor,
    center: Tensor,
    lam: Tensor | None,
    seed_at: Tensor | None,
    rho: float,
    lam_max: float,
    seed: int,
    guard: bool,
    size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    core, rows, c = _core(z), _rows(z), _vector(center)
    capacity = math.ceil(rho * z.shape[0]) if size is None else size
    index, similarity, state = core.mine(rows, labels.to(torch.int64).contiguous(), c, rho, capacity)
    if size is None or z.device.type == "cpu":
        mined, bad, *_ = state.tolist()  # the one wait on CUDA: M is not known before
        if bad or (lam is not None and not _usable(lam).all()):
            _refuse_values(z, labels, center, lam)
            raise ShapeError("z: got rows that are not of unit length: pass torch.nn.functional.normalize(z, dim=-1)")
        index = index if size is not None else index[:mined]
    if lam is not None and lam.shape[0] not in (z.shape[0], index.shape[0]):
        raise ShapeError(f"lam: got [{lam.shape[0]}], want a number, [N] = [{z.shape[0]}] or [M] = [{index.shape[0]}]")
    none = similarity.new_empty(0)
    given = none if lam is None else _vector(lam)
    seeds = index.new_empty(0) if seed_at is None else seed_at
    z_new, applied = core.synthesize(rows, c, index, similarity, state, given, lam_max, seed, seeds, guard)
    return z_new, index, applied


_DEVICES = ("cpu", "cuda")
_synthesize_op = torch.library.custom_op(
    "fastdetect::synthesize_positives", _synthesize, mutates_args=(), device_types=_DEVICES
)


@_synthesize_op.register_fake
def _(
    z: Tensor,
    labels: Tensor,
    center: Tensor,
    lam: Tensor | None,
    seed_at: Tensor | None,
    rho: float,
    lam_max: float,
    seed: int,
    guard: bool,
    size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    mined = torch.library.get_ctx().new_dynamic_size() if size is None else size
    index = z.new_empty((mined,), dtype=torch.int64)
    return z.new_empty((mined, z.shape[1])), index, z.new_empty((mined,), dtype=torch.float32)


def _gradient(grad: Tensor, z: Tensor, center: Tensor, index: Tensor, lam: Tensor) -> Tensor:
    grad = grad.to(z.dtype).contiguous()
    return _core(z).synthesize_backward(grad, _rows(z), _vector(center), index.contiguous(), lam.contiguous())


_gradient_op = torch.library.custom_op(
    "fastdetect::synthesize_positives_backward", _gradient, mutates_args=(), device_types=_DEVICES
)


@_gradient_op.register_fake
def _(grad: Tensor, z: Tensor, center: Tensor, index: Tensor, lam: Tensor) -> Tensor:
    return z.new_empty(z.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, index, lam = output
    ctx.mark_non_differentiable(index, lam)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], inputs[2], index, lam)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    if torch.is_grad_enabled():
        raise UsageError(
            "synthesize_positives has no double backward: drop create_graph=True or set FASTDETECT_BACKEND=reference"
        )
    return ((_gradient_op if traced(grad) else _gradient)(grad, *ctx.saved_tensors), *(None,) * 9)


_synthesize_op.register_autograd(_backward, setup_context=_setup_context)


class _Eager(torch.autograd.Function):
    """The same op without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:  # ctx first: apply() inspects no signature
        output = _synthesize(*args)
        _setup_context(ctx, args, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _backward(ctx, grad)


def _real_sums(z: Tensor, labels: Tensor, ranks: str = "") -> Tensor:
    sums = sum_over_ranks(_core(z).real_sums(_rows(z), labels.to(torch.int64).contiguous()), ranks)
    if z.device.type == "cpu":
        _refuse_bad_sums(z, labels, sums, ranks)
    return sums


_real_sums_op = torch.library.custom_op("fastdetect::real_sums", _real_sums, mutates_args=(), device_types=_DEVICES)


@_real_sums_op.register_fake
def _(z: Tensor, labels: Tensor, ranks: str = "") -> Tensor:
    return z.new_empty((z.shape[1] + 1,), dtype=torch.float32)


def _mix_center(center: Tensor, sums: Tensor, momentum: float) -> Tensor:
    return _core(center).mix_center(_vector(center), sums.contiguous(), momentum)


_mix_center_op = torch.library.custom_op("fastdetect::mix_center", _mix_center, mutates_args=(), device_types=_DEVICES)


@_mix_center_op.register_fake
def _(center: Tensor, sums: Tensor, momentum: float) -> Tensor:
    return center.new_empty(center.shape, dtype=torch.float32)
