"""Every registered op, on tiny shapes: its truth, its providers, its formulas."""

from dataclasses import replace

import pytest
import torch
from squares import CEILINGS, CPU, method

import bench.ops  # noqa: F401, the import registers them
from bench import ceilings, harness, train
from bench.decode import Decode
from bench.decode_many import DecodeMany
from bench.registry import DTYPES, OPS, Op, Shape, largest_error, register
from fastdetect.errors import UsageError

CHECKS = method(check_only=True)
NOT_COMPILED = frozenset({"ours", "eager", "row chunks", "plain rows", "bare products, 6 N^2 D", "PyAV", "OpenCV"})


def green(op: Op, shape: Shape) -> dict:
    case = harness.measure(op, shape, replace(CHECKS, only=NOT_COMPILED), CEILINGS)
    assert harness.problems(case) == []
    assert len([r for r in case["providers"].values() if r["status"] == "ok"]) >= 2
    return case


@pytest.mark.parametrize("name", ["masked_patch_loss", "patch_residual", "supcon_margin_loss",
                                  "supcon_fused_negatives", "update_center", "synthesize_positives"])  # fmt: skip
def test_tiny_shapes_are_green(name: str) -> None:
    for shape in OPS[name].shapes["tiny"]:
        green(OPS[name], shape)


@pytest.mark.parametrize("step", train.STEPS, ids=lambda step: step.name)
def test_training_steps(step: train.Step) -> None:
    (shape,) = step.shapes["tiny"]
    case = green(step, shape)
    assert case["floor"] is None
    assert OPS[step.loss].bytes(step.loss_shape(shape)) > 0


def test_wrong_loss_in_a_training_step_is_seen() -> None:
    step = train.STEPS[0]
    inputs = step.inputs(step.shapes["tiny"][0], CPU)
    truth = step.truth(inputs)
    run = step.providers(step.shapes["tiny"][0], CPU)["ours"].run
    assert step.error(run(inputs), truth) < 3e-2
    inputs["mask"] = ~inputs["mask"]
    with pytest.raises(Exception):  # noqa: B017, PT011
        assert step.error(run(inputs), truth) < 3e-2


def test_batches_of_files(tmp_path) -> None:
    op = DecodeMany(tmp_path)
    (shape,) = op.shapes["tiny"]
    assert green(op, shape)["providers"]["ours"]["error"] == 0
    truth = op.truth(op.inputs(shape, CPU))
    assert truth[0].shape == (3 * 4, 144, 160, 3)
    assert op.error((truth[0].roll(1, 0),), truth) > 0.05  # a frame in another's place


def test_decoders(tmp_path) -> None:
    op = Decode(tmp_path)
    case = green(op, op.shapes["tiny"][0])
    assert case["providers"]["ours"]["error"] == 0
    truth = op.truth(op.inputs(op.shapes["tiny"][0], CPU))
    swapped = truth[0].clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert op.error((swapped,), truth) > 0.05  # frames in the wrong order
    assert op.error((truth[0][:-1],), truth) == float("inf")


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_registered_whole(op: Op) -> None:
    assert {"cpu", "cuda", "tiny"} <= set(op.shapes)
    for shapes in op.shapes.values():
        assert len({str(shape) for shape in shapes}) == len(shapes)
        for shape in shapes:
            assert shape.regime
            assert op.axis in shape.values
            assert op.bytes(shape) > 0
            assert all(shape[key] in DTYPES for key in ("pred", "image", "dtype") if key in shape.values)
    assert op.floor


def test_floors_are_those_of_the_targets() -> None:
    loss = OPS["masked_patch_loss"]
    shape = next(s for s in loss.shapes["cuda"] if s["B"] == 1024 and s["image"] == "fp32" and s["pred"] == "bf16")
    assert loss.bytes(shape) / (1024 * 3 * 224 * 224) == pytest.approx(6.5, rel=0.01)  # bytes a value, 75 % removed
    supcon = OPS["supcon_margin_loss"]
    shape = next(s for s in supcon.shapes["cuda"] if (s["N"], s["D"]) == (65536, 512))
    peak = {"copy_gbps": 4300.0, "product_bf16_tflops": 790.0, "product_fp32_tflops": 50.0}
    ms, bound = ceilings.floor_ms(peak, supcon.bytes(shape), supcon.flops(shape), "bf16")
    assert (round(ms, 1), bound) == (11.1, "arithmetic")


def test_ceilings() -> None:
    found = ceilings.measure(CPU, tiny=True)
    assert found["copy_gbps"] > 0.1
    assert found["product_fp32_tflops"] > 1e-4


def test_an_op_is_registered_once() -> None:
    with pytest.raises(UsageError, match="registered twice"):
        register(type(OPS["update_center"]))


def test_largest_error() -> None:
    truth = (torch.tensor([1.0, -4.0]), torch.tensor(2.0))
    assert largest_error((torch.tensor([1.0, -4.2]), torch.tensor(2.0)), truth) == pytest.approx(0.05)
    assert largest_error((truth[0], torch.tensor(torch.nan)), truth) != largest_error(truth, truth) == 0
    assert largest_error(truth[:1], truth) == float("inf")
