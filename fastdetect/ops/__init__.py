"""Tensor ops: fused kernels behind plain functions, each with an eager truth in fastdetect.ops.reference."""

from fastdetect.ops.backend import release_memory
from fastdetect.ops.hard_negatives import FusedNegatives, fuse_hard_negatives
from fastdetect.ops.masked_residual import masked_patch_loss, patch_residual
from fastdetect.ops.positive_synthesis import synthesize_positives, update_center
from fastdetect.ops.supcon_margin import supcon_margin_loss

__all__ = [
    "FusedNegatives",
    "fuse_hard_negatives",
    "masked_patch_loss",
    "patch_residual",
    "release_memory",
    "supcon_margin_loss",
    "synthesize_positives",
    "update_center",
]
