"""Pictures of what a masked image model reconstructs."""

import numpy as np
import torch
from torch import Tensor

from fastdetect.models.masked_image_model import MaskedImageModel
from fastdetect.ops.reference import patchify, unpatchify


@torch.inference_mode()
def reconstructions(model: MaskedImageModel, images: Tensor, mask: Tensor) -> np.ndarray:
    """Return a grid with a row for each image: as it is, with its patches removed, with them predicted.

    Args:
        images: [B,3,H,W] in [0,1]; mask: bool [B,L], True = removed. A model of standardised patches gets each one's
            own mean and deviation back.
    Returns:
        uint8 [B*H, 3*W, 3].
    """
    size = model.config.patch_size
    patches, removed = patchify(images, size), mask.to(images.device)[..., None]
    predicted = model(images, mask).to(patches.dtype)
    if model.config.norm_pix_loss:
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        predicted = predicted * (variance + 1e-6).sqrt() + mean
    rows = (patches, torch.where(removed, 0.5, patches), torch.where(removed, predicted, patches))
    shown = torch.cat([unpatchify(p, model.config.size, size) for p in rows], 3)  # [B,3,H,3W]
    picture = shown.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).flatten(0, 1)
    return picture.cpu().numpy()
