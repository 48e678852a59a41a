"""The benchmarks of the ops, one file each; importing this package registers them all."""

from bench.ops import contrastive, masked_residual, positive_synthesis

__all__ = ["contrastive", "masked_residual", "positive_synthesis"]
