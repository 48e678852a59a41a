"""Tensor ops: fused kernels behind plain functions, each with an eager truth in fastdetect.ops.reference."""

from fastdetect.ops.masked_residual import masked_patch_loss, patch_residual

__all__ = ["masked_patch_loss", "patch_residual"]
