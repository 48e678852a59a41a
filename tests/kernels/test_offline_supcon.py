"""Every contrastive configuration compiles for sm_80 and sm_90: no stack, no spill, shared fits, matrix units used."""

import pytest
from offline_compile import SHARED_LIMIT
from offline_supcon import supcon_case

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


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("kind", "dtype", "width", "variant"), CASES)
def test_supcon(arch: int, kind: str, dtype: str, width: int, variant: dict) -> None:
    usage = supcon_case(arch, kind, dtype, width, **variant)
    assert usage.stack == 0, usage  # a spill would live there
    assert usage.local == 0, usage
    assert usage.registers <= 255, usage
    assert usage.shared <= SHARED_LIMIT[arch], usage
    assert usage.matrix > 0, usage
