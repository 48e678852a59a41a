"""A toy op with providers of every kind, to see whether the harness can fail."""

import time
from collections.abc import Callable, Mapping

import torch

from bench.harness import Method
from bench.registry import Inputs, Op, Outputs, Provider, Shape

CPU = torch.device("cpu")
SHAPE = Shape({"N": 1000}, "toy")
CEILINGS = {"copy_gbps": 10.0, "product_fp32_tflops": 0.1}


def right(inputs: Inputs) -> Outputs:
    return (inputs["x"] ** 2,)


def slow(inputs: Inputs) -> Outputs:
    time.sleep(0.01)
    return right(inputs)


def wrong(inputs: Inputs) -> Outputs:
    out = inputs["x"] ** 2
    out[17] += 0.01
    return (out,)


def not_a_number(inputs: Inputs) -> Outputs:
    out = inputs["x"] ** 2
    out[17] = torch.nan
    return (out,)


def short(inputs: Inputs) -> Outputs:
    return (inputs["x"][:-1] ** 2,)


def unwritten(inputs: Inputs) -> Outputs:
    out = torch.empty_like(inputs["x"])
    out[:-1] = inputs["x"][:-1] ** 2
    return (out,)


def broken(inputs: Inputs) -> Outputs:
    raise RuntimeError("no such kernel")


class Drifting:
    """Right when it is first looked at, then not."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, inputs: Inputs) -> Outputs:
        self.calls += 1
        return (inputs["x"] ** 2 + 0.01 * (self.calls > 3),)


class Squares(Op):
    """x^2, with the providers that it is given."""

    name = "squares"
    title = "Squares"
    floor = "read once, written once"
    axis = "N"

    def __init__(self, **providers: Callable[[Inputs], Outputs]) -> None:
        self.given = providers

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        return {"x": torch.rand(shape["N"], device=device)}

    def truth(self, inputs: Inputs) -> Outputs:
        return (inputs["x"].double() ** 2,)

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        return {name.replace("_", " "): Provider(run, 1e-6) for name, run in self.given.items()}

    def bytes(self, shape: Shape) -> float:
        return 8.0 * shape["N"]

    def targets(self, shape: Shape, device: torch.device) -> Mapping[str, float]:
        return {"eager": 0.5}


def method(**changes: object) -> Method:
    values: dict[str, object] = {"device": CPU, "threads": 1, "seconds": 0.0, "rounds": (5, 5)}
    return Method(**(values | changes))  # type: ignore[arg-type]
