"""update_center and synthesize_positives against the eager chain and torch.compile."""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.registry import Inputs, Op, Outputs, Provider, Shape, compiled, largest_error, register
from fastdetect.ops import reference, synthesize_positives, update_center
from fastdetect.ops.backend import fused_synthesis

MOMENTUM, LAM_MAX, SEED = 0.9, 0.5, 7
NOT_BUILT = "the fused kernel is not there: pip install --no-build-isolation -e ."


def plain_center(center: Tensor, z: Tensor, labels: Tensor) -> Tensor:
    """As one writes it: pick the reals, average, mix, normalise."""
    mean = z[labels == 0].float().mean(dim=0)
    return normalize(MOMENTUM * center + (1 - MOMENTUM) * mean, dim=0)


def masked_center(center: Tensor, z: Tensor, labels: Tensor) -> Tensor:
    """The same without an indexing whose size depends on data, so that a compiler sees one graph."""
    real = labels == 0
    mean = torch.where(real[:, None], z.float(), 0).sum(dim=0) / real.sum()
    return normalize(MOMENTUM * center + (1 - MOMENTUM) * mean, dim=0)


def plain_synthesis(z: Tensor, labels: Tensor, center: Tensor, lam: Tensor, count: int) -> Outputs:
    """The eager chain in z's dtype, without the draws; the number of mined reals is given, which costs it nothing."""
    real = labels == 0
    similarity = z.detach().float() @ center  # in bfloat16 it would mine other rows
    index = torch.where(real, similarity, torch.inf).topk(count, largest=False).indices.sort().values
    theta = similarity[index].clamp(-1, 1).acos()
    guard = torch.where(real, -torch.inf, similarity).amax().clamp(-1, 1).acos()
    between = (guard - theta).sin()
    room = guard.sin() - between
    limit = torch.where(theta >= guard, 0.0, torch.where(room > 0, between / room, torch.inf))
    applied = torch.minimum(lam[index] if len(lam) == len(z) else lam, limit)
    hard = z[index]
    made = normalize(hard + applied[:, None].to(z.dtype) * (hard - center.to(z.dtype)), dim=-1)
    return made, index, applied


def drawn(count: int, device: torch.device) -> Tensor:
    """Beta(2, 2) as one writes it; seeded, so that the truth has the same numbers."""
    torch.manual_seed(SEED)
    two = torch.tensor(2.0, device=device)
    return LAM_MAX * torch.distributions.Beta(two, two, validate_args=False).sample((count,))


def _features(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """Reals around a centre and fakes apart from it, as in training; half and half."""
    rows, width = shape["N"], shape["D"]
    center = normalize(torch.randn(width, device=device), dim=0)
    labels = torch.arange(rows, device=device) % 2
    labels = labels[torch.randperm(rows, device=device)]
    noise = torch.randn(rows, width, device=device) / math.sqrt(width)
    z = torch.where(labels[:, None] == 0, center, -0.5 * center) + noise
    return {"z": normalize(z, dim=-1).to(shape.dtype("dtype")), "labels": labels, "center": center}


def _sizes(rows: int, width: int, regime: str, dtype: str = "bf16") -> Shape:
    return Shape({"N": rows, "D": width, "dtype": dtype}, regime)


def _mined(rows: int, width: int, rho: float, backward: int, regime: str, dtype: str = "bf16") -> Shape:
    return Shape({"N": rows, "D": width, "dtype": dtype, "rho": rho, "backward": backward}, regime)


def _with_gradient(made: Outputs, z: Tensor, inputs: Inputs) -> Outputs:
    """The results, and the gradient of z where the case has a backward."""
    new, index, lam = made
    if "upstream" not in inputs:
        return new, index, lam
    return new.detach(), index, lam, torch.autograd.grad(new, z, inputs["upstream"].to(new.dtype))[0]


def _skip(shape: Shape, device: torch.device) -> str:
    z, center = torch.empty(1, shape["D"], dtype=shape.dtype("dtype"), device=device), torch.empty(1, device=device)
    return "" if fused_synthesis(z, center) else NOT_BUILT


@register
class UpdateCenter(Op):
    name = "update_center"
    title = "Centre of the real faces: masked mean, mixture, normalisation (half of the rows are real)"
    floor = "rows of reals read once, labels read once"
    axis = "N"
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cpu": (
            _sizes(65536, 128, "out of every cache", "fp32"),
            _sizes(4096, 128, "inside the L2 cache", "fp32"),
            _sizes(65536, 128, "half the bytes"),
        ),
        "cuda": (
            _sizes(65536, 512, "about the L2"),
            _sizes(1 << 20, 512, "memory-bound, many times the L2"),
            _sizes(4096, 512, "launch-bound"),
        ),
        "tiny": (_sizes(64, 16, "tiny", "fp32"),),
    }

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        return _features(shape, device)

    def truth(self, inputs: Inputs) -> Outputs:
        sums = reference.real_sums(inputs["z"], inputs["labels"], torch.float64)
        return (reference.mix_center(inputs["center"].double(), sums, MOMENTUM),)

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        def by(center: Callable[..., Tensor]) -> Callable[[Inputs], Outputs]:
            return lambda x: (center(x["center"], x["z"], x["labels"]),)

        def ours(center: Tensor, z: Tensor, labels: Tensor) -> Tensor:
            return update_center(center, z, labels, momentum=MOMENTUM)

        return {
            "ours": Provider(by(ours), 1e-5, skip=_skip(shape, device)),
            "eager": Provider(by(plain_center), 1e-5, graph=False),
            "torch.compile": Provider(by(compiled(masked_center)), 1e-5),
        }

    def bytes(self, shape: Shape) -> float:
        return shape["N"] * (0.5 * shape["D"] * shape.dtype("dtype").itemsize + 8)

    def targets(self, shape: Shape, device: torch.device) -> Mapping[str, float]:
        return {"eager": 8.0} if shape["N"] >= 65536 else {}


@register
class SynthesizePositives(Op):
    name = "synthesize_positives"
    title = "Positive synthesis: mining of a part rho of the reals, extrapolation, guard"
    floor = (
        "every row read once for the mining, mined rows read and new rows written once; backward: mined rows and the "
        "upstream gradient read once, the gradient of every row written once"
    )
    axis = "N"
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cpu": (
            _mined(65536, 128, 0.25, 1, "as trained, out of every cache", "fp32"),
            _mined(4096, 128, 0.25, 1, "as trained, inside the L2 cache", "fp32"),
            _mined(65536, 128, 1.0, 0, "every real, forward", "fp32"),
        ),
        "cuda": (
            _mined(65536, 512, 0.25, 1, "as trained, about the L2"),
            _mined(65536, 512, 1.0, 0, "every real, forward"),
            _mined(1 << 20, 512, 0.25, 1, "memory-bound, many times the L2"),
            _mined(4096, 512, 0.25, 1, "launch-bound"),
        ),
        "tiny": (_mined(64, 16, 0.25, 1, "tiny", "fp32"), _mined(64, 16, 1.0, 0, "tiny", "fp32")),
    }

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        inputs, count = _features(shape, device), self._count(shape)
        rows = torch.arange(shape["N"], device=device)
        draws = LAM_MAX * reference.beta22(SEED, rows, torch.float32)  # what ours draws itself from the seed
        more = {"lam": draws, "count": count, "rho": shape["rho"]}
        if shape["backward"]:
            inputs["z"].requires_grad_()
            more["upstream"] = torch.randn(count, shape["D"], device=device).to(shape.dtype("dtype"))
        return inputs | more

    @staticmethod
    def _count(shape: Shape) -> int:
        return math.ceil(shape["rho"] * (shape["N"] - shape["N"] // 2))

    def truth(self, inputs: Inputs) -> Outputs:
        return self._truth(inputs, None)

    @staticmethod
    def _truth(inputs: Inputs, lam: Tensor | None) -> Outputs:
        z = inputs["z"].detach().double().requires_grad_(inputs["z"].requires_grad)
        made = reference.synthesize_positives(
            z, inputs["labels"], inputs["center"].double(), rho=inputs["rho"], lam_max=LAM_MAX, seed=SEED, lam=lam,
            guard=True, size=None,
        )  # fmt: skip
        return _with_gradient(made, z, inputs)

    def error(self, actual: Outputs, truth: Outputs) -> float:
        """Error of the rows that both mined; rounding may swap a few at the edge, no more than one in a thousand."""
        both = torch.isin(truth[1], actual[1]), torch.isin(actual[1], truth[1])
        swapped = ~both[0]
        if len(actual[1]) != len(truth[1]) or swapped.sum() > max(1, len(truth[1]) // 1000):
            return float("inf")
        found, wanted = ([out[0][both[i]], out[2][both[i]]] for i, out in ((1, actual), (0, truth)))
        if len(truth) > 3 and not swapped.any():  # a swap moves the upstream gradients of all rows behind it
            found.append(actual[3])
            wanted.append(truth[3])
        return largest_error(tuple(found), tuple(wanted))

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        def by(synthesis: Callable[..., Outputs]) -> Callable[[Inputs], Outputs]:
            return lambda x: _with_gradient(
                synthesis(x["z"], x["labels"], x["center"], x["lam"], x["count"]), x["z"], x
            )

        def ours(z: Tensor, labels: Tensor, center: Tensor, lam: Tensor, count: int) -> Outputs:
            size = count if z.is_cuda else None  # without a size CUDA waits for the device once
            return synthesize_positives(z, labels, center, rho=shape["rho"], lam_max=LAM_MAX, seed=SEED, size=size)

        def eager(z: Tensor, labels: Tensor, center: Tensor, lam: Tensor, count: int) -> Outputs:
            return plain_synthesis(z, labels, center, drawn(count, device), count)

        tolerance = 2e-2 if shape["dtype"] == "bf16" else 1e-4  # the guard's angles magnify float32 rounding
        # Seeding cannot be captured in a CUDA graph, nor compiled: there the draws are given, which costs them nothing.
        found = {"eager": Provider(by(plain_synthesis), tolerance)}
        if device.type == "cpu":
            draws = lambda x: self._truth(x, drawn(x["count"], device))  # noqa: E731
            found = {"eager": Provider(by(eager), tolerance, truth=draws)}
        return {
            "ours": Provider(by(ours), tolerance, skip=_skip(shape, device)),
            **found,
            "torch.compile": Provider(by(compiled(plain_synthesis)), tolerance),
        }

    def bytes(self, shape: Shape) -> float:
        row = shape["D"] * shape.dtype("dtype").itemsize
        forward = shape["N"] * (row + 8) + self._count(shape) * (2 * row + 12)
        return forward + shape["backward"] * (shape["N"] * row + self._count(shape) * 2 * row)

    def targets(self, shape: Shape, device: torch.device) -> Mapping[str, float]:
        return {"eager": 8.0} if shape["N"] >= 65536 else {}
