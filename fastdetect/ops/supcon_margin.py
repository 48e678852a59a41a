"""supcon_margin_loss: argument checks, torch.library registration, choice of implementation, global batches."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import reference, supcon_chunked, supcon_cpu
from fastdetect.ops.backend import (
    by_reference,
    check_constants,
    check_tensors,
    constant,
    no_autocast,
    readable,
    tiles_fit,
    traced,
    triton_available,
)
from fastdetect.ops.hard_negatives import FusedNegatives
from fastdetect.ops.ranks import by_name, gather_rows
from fastdetect.ops.supcon_chunked import Problem

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CHOICES = {
    "anchors": ("all", "real"),
    "denominator": ("all", "negatives"),
    "pairing": ("binary", "label"),
    "reduction": ("mean", "mean_all", "sum", "none"),
}


def supcon_margin_loss(
    z: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    temperature: float = 0.1,
    margin: float = 0.1,
    anchors: str = "all",
    denominator: str = "all",
    pairing: str = "binary",
    positives: Tensor | None = None,  # (N, N)
    synthetic: Tensor | None = None,  # (M, D)
    fused_negatives: FusedNegatives | None = None,
    fusion_grad: bool = False,
    normalize: bool = False,
    reduction: str = "mean",
    base_temperature: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Supervised contrastive margin loss [ours; margin = 0 is SupCon, Khosla et al.], never holding N x N numbers.

    For the similarities s = z z^T and an anchor i with positives P and negatives N,
    `L_i = -1/|P| sum_p log[ e^((s_ip-m)/tau) / D_ip ]` with `D_ip = sum_q e^((s_iq-m)/tau) + sum_n e^(s_in/tau)`
    (denominator="all"; q runs over P) or `D_ip = e^((s_ip-m)/tau) + sum_n e^(s_in/tau)` ("negatives",
    epsilon-SupInfoNCE with epsilon = m/tau). A row is never its own positive or negative.

    Args:
        z: [N, D] float32, bfloat16, float16 or float64, N and D at least 1; unit rows (or `normalize=True`). Other
            lengths are computed rightly, by the online maximum where their similarities span too much.
        labels: [N] integers, 0 = real, > 0 = fake. Negative ones, of any rank: ShapeError on the CPU, on CUDA (where
            a look at them would stall the stream) and under torch.vmap a NaN loss.
        temperature: tau > 0.
        margin: m >= 0, taken off the similarity of positives.
        anchors: rows that have a loss: "all", or "real" (no attraction among fakes).
        denominator: "all" or "negatives", as above.
        pairing: positives of a row: "binary", the others of its side (0 against > 0), or "label", of its very label.
        positives: [N, N] bool, instead of `pairing`; need not be symmetric, the diagonal is not looked at.
        synthetic: [M, D], synthetic positives: further columns of class real, seen by real anchors only. Has a
            gradient if it requires one.
        fused_negatives: from `fuse_hard_negatives`; further negatives, seen by real anchors only. Indices that are no
            rows and weights outside [0, 1] are treated as negative labels are.
        fusion_grad: let the gradient flow into the fused fakes (never into the centre).
        normalize: divide the rows of z by their length first, with gradient.
        reduction: "mean" over the anchors that have a positive, "mean_all" over all anchors (SupContrast), "sum", or
            "none": [N], 0 where a row is no anchor or has no positive. No valid anchor: 0 with a zero gradient.
        base_temperature: the loss is multiplied by temperature / base_temperature.
        group: process group: the batch is the rows of all its ranks (as many on each). The value is the global
            loss; the gradient that each rank gets is the complete one of its own rows. DistributedDataParallel
            averages it over the ranks: multiply the loss by the world size. synthetic and fused_negatives are the
            global batch's: the same on every rank, indices being rows of the gathered batch (`RealCentricLoss` makes
            them). The gradient of synthetic is the part of this rank's anchors: sum it over the ranks.

    Returns:
        The loss, a float32 scalar or [N] (float64 where z is). NaN or infinity in z: it is not finite either.

    Raises:
        ShapeError: a shape, dtype, device, label, index or weight does not fit.
        UsageError: an option is out of range; options that exclude each other.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=-1)
        >>> supcon_margin_loss(z, torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), anchors="real").shape
        torch.Size([])
    """
    chosen = {"anchors": anchors, "denominator": denominator, "pairing": pairing, "reduction": reduction}
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            raise UsageError(f"{name}: got {value!r}, want {' or '.join(map(repr, _CHOICES[name]))}")
    _check_numbers(temperature, margin, base_temperature)
    _check_tensors(z, labels, positives, synthetic)
    if fused_negatives is not None:
        _check_fused(fused_negatives, z)
    if group is not None and (positives is not None or by_reference()):
        raise UsageError(
            "group: works with labels and FASTDETECT_BACKEND=auto only, not under torch.func or forward-mode AD; got "
            + ("positives, of which a rank sees its own rows only" if positives is not None else "the reference")
        )
    with no_autocast(z.device.type):
        if normalize:
            exact = z.to(reference.accumulation_dtype(z))
            z = torch.nn.functional.normalize(exact, dim=-1).to(z.dtype)
        problem = Problem(
            z,
            labels,
            None,
            None,
            0,
            positives,
            synthetic,
            None if fused_negatives is None else fused_negatives.index_a,
            None if fused_negatives is None else fused_negatives.index_b,
            None if fused_negatives is None else fused_negatives.weight,
            None if fused_negatives is None else fused_negatives.center,
            float(temperature),
            float(margin),
            anchors == "real",
            denominator == "negatives",
            pairing == "binary",
            fusion_grad,
        )
        scale = 1.0 if base_temperature is None else temperature / base_temperature
        if group is None and supcon_cpu.reduces(problem, reduction):
            _check_fused_values(problem)
            made = supcon_cpu.reduced(problem, reduction, scale)
            if made is not None:
                return made
        loss, count = _rows_loss(problem, group)
        if scale != 1.0:
            loss = loss * scale
        return _reduce(loss, count, labels, anchors, reduction, group)


def _rows_loss(p: Problem, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Loss and number of positives per row."""
    if by_reference() or p.z.device.type not in ("cpu", "cuda"):
        if readable(p.labels, p.index_a, p.index_b, p.weight):
            _check_values(p)
        fused = None
        if p.index_a is not None and p.index_b is not None and p.weight is not None and p.center is not None:
            fused = (p.index_a, p.index_b, p.weight, p.center)
        loss, count = reference.supcon_margin_loss(
            p.z,
            p.labels,
            temperature=p.temperature,
            margin=p.margin,
            anchors="real" if p.real_anchors else "all",
            denominator="negatives" if p.negatives else "all",
            pairing="binary" if p.binary else "label",
            positives=p.positives,
            synthetic=p.synthetic,
            fused=fused,
            fusion_grad=p.fusion_grad,
        )
        return torch.where(p.wrong(), torch.nan, loss), count
    if group is not None:
        p = p._replace(
            columns=gather_rows(p.z.detach(), group),
            column_labels=gather_rows(p.labels, group, equal=True),
            offset=dist.get_rank(group) * len(p.z),
            group=group.group_name,
        )
    loss, statistics = _supcon_margin(*p) if traced(p.z, p.labels, p.synthetic) else _Eager.apply(*p)
    return loss, statistics[2]


def _reduce(
    loss: Tensor, count: Tensor, labels: Tensor, anchors: str, reduction: str, group: dist.ProcessGroup | None
) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "mean_all" and anchors == "all" and group is None:
        return loss.mean()
    counted = count > 0 if reduction == "mean" else labels == 0 if anchors == "real" else torch.ones_like(labels) > 0
    value, number = loss.sum(), counted.sum()
    if group is not None:
        total = torch.stack([value.detach(), number.to(value.dtype)])
        dist.all_reduce(total, group=group)
        value, number = value + (total[0] - value.detach()), total[1]  # the gradient is this rank's part
    return value if reduction == "sum" else value / number.clamp(min=1)


def _check_numbers(temperature: float, margin: float, base_temperature: float | None) -> None:
    check_constants(temperature=temperature, margin=margin, base_temperature=base_temperature)
    if not 0 < temperature < float("inf"):
        raise UsageError(f"temperature: got {temperature}, want a finite number above 0")
    if not 0 <= margin < float("inf"):
        raise UsageError(f"margin: got {margin}, want a finite number of at least 0")
    if base_temperature is not None and not 0 < base_temperature < float("inf"):
        raise UsageError(f"base_temperature: got {base_temperature}, want a finite number above 0 or None")


def _check_tensors(z: Tensor, labels: Tensor, positives: Tensor | None, synthetic: Tensor | None) -> None:
    given = {"positives": positives, "synthetic": synthetic}
    check_tensors(z=z, labels=labels, **{name: value for name, value in given.items() if value is not None})
    if z.dim() != 2 or z.shape[0] == 0 or z.shape[1] == 0:
        raise ShapeError(f"z: got shape {tuple(z.shape)}, want [N, D] with N and D of at least 1")
    rows, width = z.shape
    if z.dtype not in _DTYPES:
        raise ShapeError(f"z: got {z.dtype}, want float32, bfloat16, float16 or float64")
    if labels.shape != (rows,):
        raise ShapeError(f"labels: got shape {tuple(labels.shape)}, want ({rows},), one per row of z")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ShapeError(f"labels: got {labels.dtype}, want integers (0 = real, > 0 = fake): labels.long()")
    if positives is not None and (positives.shape != (rows, rows) or positives.dtype != torch.bool):
        raise ShapeError(
            f"positives: got {positives.dtype} of shape {tuple(positives.shape)}, want bool of ({rows}, {rows})"
        )
    if synthetic is not None:
        if synthetic.dim() != 2 or synthetic.shape[1] != width:
            raise ShapeError(f"synthetic: got shape {tuple(synthetic.shape)}, want [M, {width}]")
        if synthetic.dtype != z.dtype:
            raise ShapeError(f"synthetic: got {synthetic.dtype}, want the dtype of z, {z.dtype}")
    for name, tensor in {"labels": labels, "positives": positives, "synthetic": synthetic}.items():
        if tensor is not None and tensor.device != z.device:
            raise ShapeError(f"{name}: got device {tensor.device}, want that of z, {z.device}")


def _check_fused(fused: FusedNegatives, z: Tensor) -> None:
    count, width = fused.index_a.shape[0] if fused.index_a.dim() else -1, z.shape[1]
    for name, tensor in fused._asdict().items():
        shape = (width,) if name == "center" else (count,)
        if tensor.shape != shape:
            raise ShapeError(f"fused_negatives.{name}: got shape {tuple(tensor.shape)}, want {shape}")
        if name.startswith("index") and tensor.dtype != torch.int64:
            raise ShapeError(f"fused_negatives.{name}: got {tensor.dtype}, want int64")
        if not name.startswith("index") and not tensor.is_floating_point():
            raise ShapeError(f"fused_negatives.{name}: got {tensor.dtype}, want floating point")
        if tensor.device != z.device:
            raise ShapeError(f"fused_negatives.{name}: got device {tensor.device}, want that of z, {z.device}")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise UsageError(f"fused_negatives.{name} requires a gradient, which the loss does not have: detach it")


def _check_values(p: Problem) -> None:
    """Labels of all ranks, so that all of them raise; the recipe of the fused negatives."""
    lowest = int(p.all_labels().min())
    if lowest < 0:
        supcon_cpu.refuse_label(lowest)
    _check_fused_values(p)


def _check_fused_values(p: Problem) -> None:
    for name, index in (("index_a", p.index_a), ("index_b", p.index_b)):
        if index is None or not len(index):
            continue
        low, high = map(int, index.aminmax())
        if low < -1 or high >= len(p.every()):
            raise ShapeError(f"fused_negatives.{name}: got {low} to {high}, want rows of z, -1 to {len(p.every()) - 1}")
    if p.weight is not None and len(p.weight):
        least, most = (value.item() for value in p.weight.aminmax())
        if not (least >= 0 and most <= 1):  # NaN neither
            raise ShapeError(f"fused_negatives.weight: got {least:.4g} to {most:.4g}, want 0 to 1")


_PROBLEM = (
    "Tensor z, Tensor labels, Tensor? columns, Tensor? column_labels, SymInt offset, Tensor? positives, "
    "Tensor? synthetic, Tensor? index_a, Tensor? index_b, Tensor? weight, Tensor? center, float temperature, "
    "float margin, bool real_anchors, bool negatives, bool binary, bool fusion_grad, str group"
)


@constant
def _triton(device_type: str) -> bool:
    return device_type == "cuda" and triton_available()


def _by_triton(z: Tensor) -> bool:
    if z.dtype == torch.float64 or not _triton(z.device.type):
        return False
    return z.dtype == torch.float32 or tiles_fit(z.device)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    p = Problem(*args)
    if p.z.device.type == "cpu":
        _check_values(p)
    with no_autocast(p.z.device.type):  # sums are taken in float32 whatever the autocast
        if not _by_triton(p.z):
            made = supcon_cpu.forward(p) if supcon_cpu.takes(p) else None
            return made or supcon_chunked.forward(p)
        from fastdetect.kernels.supcon_launch import forward as launch

        return launch(p, p.positives_per_row())


def _gradients(*args: Any) -> tuple[Tensor, Tensor]:
    p, coefficients = Problem(*args[:-1]), args[-1]
    with no_autocast(p.z.device.type):
        if not _by_triton(p.z):
            made = supcon_cpu.backward(p, coefficients) if supcon_cpu.takes(p) else None
            return made or supcon_chunked.backward(p, coefficients)
        from fastdetect.kernels.supcon_launch import backward as launch

        return launch(p, coefficients, supcon_chunked.fused_grad)


_supcon_margin = torch.library.custom_op(
    "fastdetect::supcon_margin", _forward, mutates_args=(), schema=f"({_PROBLEM}) -> (Tensor, Tensor)"
)
_supcon_margin_backward = torch.library.custom_op(
    "fastdetect::supcon_margin_backward",
    _gradients,
    mutates_args=(),
    schema=f"({_PROBLEM}, Tensor coefficients) -> (Tensor, Tensor)",
)


@_supcon_margin.register_fake
def _(*args: Any) -> tuple[Tensor, Tensor]:
    z = args[0]
    dtype = reference.accumulation_dtype(z)
    return z.new_empty(z.shape[0], dtype=dtype), z.new_empty((3, z.shape[0]), dtype=dtype)


@_supcon_margin_backward.register_fake
def _(*args: Any) -> tuple[Tensor, Tensor]:
    z, synthetic = args[0], args[6]
    return torch.empty_like(z, memory_format=torch.contiguous_format), (
        z.new_empty((0, z.shape[1])) if synthetic is None else synthetic.new_empty(synthetic.shape)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.tensors = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.save_for_backward(*(inputs[i] for i in ctx.tensors), output[1])


def _backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    grads: list[Tensor | None] = [None] * len(ctx.others)
    if upstream is None:
        return tuple(grads)
    if torch.is_grad_enabled():
        raise UsageError(supcon_cpu.NO_DOUBLE_BACKWARD)
    *tensors, statistics = ctx.saved_tensors
    args = list(ctx.others)
    for i, tensor in zip(ctx.tensors, tensors, strict=True):
        args[i] = tensor
    log_sum, q, count = statistics
    share = torch.where(count > 0, upstream / count.clamp(min=1), 0)
    # q is 0 where nothing pulls; log_sum is -inf where nothing is summed, whose weight must be 0, not NaN.
    pull = torch.where((count > 0) & (log_sum > -torch.inf), upstream * q, 0)
    coefficients = torch.stack([pull, share, log_sum])
    if args[-1]:
        coefficients = gather_rows(coefficients.T, by_name(args[-1]), equal=True).T
    run = _supcon_margin_backward if traced(coefficients) else _gradients
    grad_z, grad_synthetic = run(*args, coefficients.contiguous())
    grads[0] = grad_z if ctx.needs_input_grad[0] else None
    if args[6] is not None and ctx.needs_input_grad[6]:
        grads[6] = grad_synthetic
    return tuple(grads)


_supcon_margin.register_autograd(_backward, setup_context=_setup_context)


class _Eager(torch.autograd.Function):
    """The same op without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:  # ctx first: apply() then inspects no signature
        output = _forward(*args)
        _setup_context(ctx, args, output)
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _backward(ctx, upstream, None)
