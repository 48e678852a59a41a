"""Every kernel configuration compiles for sm_80 and sm_90 without a GPU, sm_100 may warn: no spill, shared fits."""

import pytest
from offline_compile import gate, loss_case, on_architectures, residual_case, scale_case, sm_100_warns


@pytest.mark.parametrize(
    ("arch", "pred", "image", "patch", "channels", "norm", "channels_last"),
    on_architectures([
        ("bf16", "fp32", 16, 3, False, False),  # the paper's size
        ("bf16", "u8", 16, 3, True, False),
        ("fp32", "fp32", 8, 3, False, False),  # the shipped model
        ("fp16", "fp16", 14, 3, True, False),  # K = 588
        ("bf16", "bf16", 16, 3, False, True),  # channels last
        ("bf16", "bf16", 52, 3, True, False),  # BLOCK 8192, the longest row that backend.py sends here
    ]),
)  # fmt: skip
def test_loss(arch: int, pred: str, image: str, patch: int, channels: int, norm: bool, channels_last: bool) -> None:
    with sm_100_warns(arch):
        usage = loss_case(arch, pred, image, patch, channels, norm, channels_last)
        gate(arch, usage)
        if patch % 4 == 0:
            assert usage.widest_load == usage.widest_store == 128, usage  # the prediction and its gradient


@pytest.mark.parametrize(
    ("arch", "pred", "image", "patch", "channels", "single_pass"),
    on_architectures([("bf16", "fp32", 16, 3, False), ("fp32", "u8", 8, 3, True), ("bf16", "bf16", 52, 3, False)]),
)
def test_residual(arch: int, pred: str, image: str, patch: int, channels: int, single_pass: bool) -> None:
    with sm_100_warns(arch):
        gate(arch, residual_case(arch, pred, image, patch, channels, single_pass))


@pytest.mark.parametrize(("arch", "data"), on_architectures([("bf16",), ("fp32",)]))
@pytest.mark.parametrize("per_row", [False, True])
def test_scale_rows(arch: int, data: str, per_row: bool) -> None:
    with sm_100_warns(arch):
        usage = scale_case(arch, data, per_row)
        gate(arch, usage)
        assert usage.widest_load == usage.widest_store == 128, usage  # a pure pass over memory
