"""Weights in bf16 whose sums are kept."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastdetect.engines.rounding import balanced_bf16

WEIGHTS = arrays(np.float32, (3, 9), elements=st.floats(-100, 100, width=32))


def rounded(weights: np.ndarray) -> np.ndarray:
    return torch.from_numpy(weights).bfloat16().float().numpy()


@settings(deadline=None, max_examples=200)
@given(WEIGHTS)
def test_every_weight_goes_to_a_bf16_neighbour_and_no_sum_is_worse_for_it(weights: np.ndarray) -> None:
    found = balanced_bf16(weights)
    np.testing.assert_array_equal(found, rounded(found))
    gap = np.maximum(np.abs(weights) * 2.0**-7, 2.0**-133)
    assert (np.abs(found - weights) <= gap).all()
    exact = weights.astype(np.float64).sum(1)
    ours, theirs = (np.abs(w.astype(np.float64).sum(1) - exact) for w in (found, rounded(weights)))
    assert (ours <= theirs + 1e-12).all()


def test_sums_are_kept_to_a_fraction_of_what_rounding_makes_of_them() -> None:
    weights = np.random.default_rng(0).normal(size=(1000, 25)).astype(np.float32)
    exact = weights.astype(np.float64).sum(1)
    ours, theirs = (
        np.abs(w.astype(np.float64).sum(1) - exact).mean() for w in (balanced_bf16(weights), rounded(weights))
    )
    assert ours < 0.1 * theirs


@pytest.mark.parametrize("shape", [(0, 9), (4, 1)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    weights = np.ones(shape, np.float32) / 3
    np.testing.assert_array_equal(balanced_bf16(weights), rounded(weights))


def test_what_bf16_holds_stays() -> None:
    weights = np.array([[1.0, -0.5, 0.0, 3.0]], np.float32)
    np.testing.assert_array_equal(balanced_bf16(weights), weights)
