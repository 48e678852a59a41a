"""Weights in bf16 whose sums are as before."""

import numpy as np


def balanced_bf16(weights: np.ndarray) -> np.ndarray:
    """Round each row to bf16 so that its sum is kept, as far as bf16 can. [ours]

    Every weight goes to one of the two bf16 numbers around it: to the nearer one at first; then those that were nearly
    as near to the other one go there, where that brings the row's sum closer. A depthwise kernel reads few inputs,
    which are alike: what its sum is off by, its channel is off by everywhere.

    Args:
        weights: float32 [R, K], finite.
    Returns:
        float32 [R, K], every value a bf16 number.
    """
    weights = np.ascontiguousarray(weights, np.float32)
    bits = weights.view(np.uint32)
    low = (bits & np.uint32(0xFFFF0000)).view(np.float32)  # towards zero
    high = np.where(low == weights, weights, ((bits & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32))
    nearer = np.abs(high - weights) < np.abs(low - weights)
    chosen, other = np.where(nearer, high, low).astype(np.float64), np.where(nearer, low, high).astype(np.float64)
    cost = np.abs(other - weights) - np.abs(chosen - weights)
    missing = (weights - chosen).sum(1)
    rows = np.arange(len(weights))
    for column in np.argsort(cost, axis=1, kind="stable").T:
        step = other[rows, column] - chosen[rows, column]
        better = np.abs(missing - step) < np.abs(missing)
        chosen[rows, column] += np.where(better, step, 0)
        missing -= np.where(better, step, 0)
    return chosen.astype(np.float32)
