"""Every contrastive case compiles for sm_80 and sm_90, sm_100 may warn: no spill, shared fits, matrix units."""

import pytest
from offline_compile import gate, on_architectures, sm_100_warns
from offline_supcon import row_sums_case, supcon_case

CASES = [
    # kind, dtype, D, variant: each row of the tuned table at its widest D, with the option that takes most registers
    ("sums", "bf16", 64, {}),
    ("sums", "bf16", 128, {"negatives": True, "stage": 2}),
    ("sums", "fp16", 256, {"online": True}),
    ("sums", "bf16", 768, {"negatives": True, "online": True}),
    ("sums", "fp32", 128, {"negatives": True, "stage": 2}),
    ("sums", "bf16", 128, {"fused": True}),
    ("sums", "bf16", 768, {"fused": True}),
    ("sums", "fp32", 128, {"fused": True}),
    ("gradient", "bf16", 64, {"in_tile": True}),
    ("gradient", "bf16", 128, {"negatives": True, "online": True}),
    ("gradient", "fp16", 256, {"negatives": True, "online": True}),
    ("gradient", "fp32", 64, {"negatives": True, "online": True}),
    ("gradient", "bf16", 64, {"fused": True}),
    ("gradient", "bf16", 128, {"fused": True}),
    ("gradient", "bf16", 128, {"mask": True, "in_tile": True}),
    ("gradient", "fp32", 64, {"fused": True}),
    ("weights", "bf16", 768, {"online": True, "in_tile": True}),
    ("weights", "fp32", 128, {}),
    ("weights", "bf16", 768, {"fused": True}),
    ("weights", "fp32", 128, {"fused": True}),
]


@pytest.mark.parametrize(("arch", "kind", "dtype", "width", "variant"), on_architectures(CASES))
def test_supcon(arch: int, kind: str, dtype: str, width: int, variant: dict) -> None:
    with sm_100_warns(arch):
        gate(arch, supcon_case(arch, kind, dtype, width, **variant), matrix=True)


@pytest.mark.parametrize(
    ("arch", "kind", "dtype", "width", "class_sums"),
    on_architectures([
        ("positive", "bf16", 128, True),
        ("positive", "fp32", 1024, True),
        ("finish", "bf16", 128, True),
        ("finish", "fp32", 1024, True),
        ("finish", "fp32", 64, False),
    ]),
)  # fmt: skip
def test_row_sums(arch: int, kind: str, dtype: str, width: int, class_sums: bool) -> None:
    with sm_100_warns(arch):
        usage = row_sums_case(arch, kind, dtype, width, class_sums)
        gate(arch, usage)
        assert usage.widest_load == 128, usage  # passes over memory
