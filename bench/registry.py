"""What a benchmark of an op is: inputs, shapes, floor, providers and truth. Every op is registered once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from fastdetect.errors import UsageError

Inputs = Mapping[str, Any]
Outputs = tuple[Tensor, ...]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "u8": torch.uint8}


@dataclass(frozen=True)
class Shape:
    """Sizes and dtypes of one case, and which regime they cover."""

    values: Mapping[str, int | float | str]
    regime: str

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values.items())

    def dtype(self, key: str) -> torch.dtype:
        return DTYPES[self[key]]


@dataclass(frozen=True)
class Provider:
    """One way to compute an op.

    Args:
        run: inputs -> outputs, which must be those of `truth` within `tolerance`.
        tolerance: largest error of an output, relative to that output's largest true value.
        truth: float64 outputs, where the provider computes something else than the op (a bare product); None: the op's.
        graph: whether it may be captured in a CUDA graph.
        skip: why it does not run on this shape; empty: it runs.
    """

    run: Callable[[Inputs], Outputs]
    tolerance: float
    truth: Callable[[Inputs], Outputs] | None = None
    graph: bool = True
    skip: str = ""


def largest_error(actual: Outputs, truth: Outputs) -> float:
    """Largest error of any output, relative to that output's largest true value; NaN where either has one."""
    if [a.shape for a in actual] != [t.shape for t in truth]:
        return float("inf")
    errors = [
        ((a.double() - t.double()).abs().max() / t.double().abs().max().clamp(min=1e-30)).item()
        for a, t in zip(actual, truth, strict=True)
    ]
    return float("nan") if any(e != e for e in errors) else max(errors)


class Op(ABC):
    """An op as the harness sees it.

    Attributes:
        name: key in results and on the command line; title: for people.
        floor: the byte and FLOP formulas in words.
        axis: the size that grows in plots.
        shapes: by set: "cpu", "cuda" and "tiny" (seconds on any machine).
        product: dtype of the matrix product that bounds the arithmetic.
        baseline: the provider that CPU times are divided by when two runs are compared.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    floor: ClassVar[str]
    axis: ClassVar[str]
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]]
    product: ClassVar[str] = "bf16"
    baseline: ClassVar[str] = "eager"

    @abstractmethod
    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        """Fresh random inputs from torch's global generator."""

    @abstractmethod
    def truth(self, inputs: Inputs) -> Outputs:
        """The outputs in float64."""

    @abstractmethod
    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        """Ways to compute the op; "ours" is among them."""

    @abstractmethod
    def bytes(self, shape: Shape) -> float:
        """Bytes that the job cannot avoid: each needed input read once, each output written once."""

    def flops(self, shape: Shape) -> float:
        """Matrix operations that the job cannot avoid."""
        return 0.0

    def targets(self, shape: Shape, device: torch.device) -> Mapping[str, float]:
        """By provider: how many times as fast as it ours should be."""
        return {}

    def error(self, actual: Outputs, truth: Outputs) -> float:
        """Distance of outputs from the truth."""
        return largest_error(actual, truth)


OPS: dict[str, Op] = {}
_Class = TypeVar("_Class", bound=type[Op])


def register(kind: _Class) -> _Class:
    """Class decorator: put an op into OPS; UsageError where the name is taken."""
    if kind.name in OPS:
        raise UsageError(f"op {kind.name!r} is registered twice; give the second one another name")
    OPS[kind.name] = kind()
    return kind


def compiled(function: Callable[..., Any], *, dynamic: bool = False) -> Callable[..., Any]:
    """torch.compile at the first call: loading the compiler takes seconds that a run without it need not spend."""
    made: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if not made:
            made.append(torch.compile(function, dynamic=dynamic))
        return made[0](*args)

    return call


def forward_backward(loss: Tensor, leaf: Tensor) -> Outputs:
    """The loss and its gradient: what a training step pays for."""
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]
