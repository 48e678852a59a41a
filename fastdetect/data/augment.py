"""What cameras, editors and uploads do to a picture: the same change for a real and the fake made from it."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdetect.data import filters
from fastdetect.data.forgery import Dice
from fastdetect.data.h264 import H264, reencode


def degrade(pairs: Tensor, dice: Dice) -> Tensor:
    """Change light, resolution, sharpness, noise and compression, in place and alike for all pictures of a group.

    Args:
        pairs: [G,B,3,S,S] in [0,1], G pictures (a real and its fakes) of each of B faces; S a multiple of 16.
        dice: random numbers for B.
    Returns:
        `pairs`; noise is drawn once per face too, so a real and its fake differ by the forgery alone.
    """
    group, batch = pairs.shape[:2]
    x = pairs.view(-1, *pairs.shape[2:])

    def apply(p: float, change: Callable[..., Tensor], *parameters: Tensor) -> None:
        chosen = dice.chance(p).repeat(group)
        filters.apply_to_(x, chosen, change, *(v.repeat(group, *[1] * (v.dim() - 1)) for v in parameters))

    def grain(images: Tensor, amount: Tensor) -> Tensor:  # the same for all pictures of a face
        noise = torch.randn(len(images) // group, *images.shape[1:], generator=dice.generator, device=images.device)
        return filters.add_noise(images, noise.repeat(group, 1, 1, 1), amount)

    grey = dice.chance(0.05)
    apply(
        0.6,
        filters.colour,
        dice.uniform(0.85, 1.15, 1) * dice.uniform(0.96, 1.04, 3),
        dice.uniform(-0.06, 0.06, 1).expand(-1, 3),
        torch.exp(dice.uniform(-0.25, 0.25)),
        torch.where(grey, dice.uniform(0.0, 0.2), dice.uniform(0.6, 1.4)),
    )
    apply(0.12, filters.smooth, dice.uniform(1.0, 3.0), dice.uniform(0.02, 0.08))  # filters that smooth the skin
    blurred = torch.where(dice.chance(0.3), dice.uniform(0.2, 1.5), torch.zeros(batch, device=pairs.device))
    apply(0.55, filters.blur_resample, torch.exp(dice.uniform(0.0, 1.1)), blurred)
    apply(0.2, filters.sharpen, dice.uniform(0.2, 1.2), dice.uniform(0.7, 1.8))
    apply(0.25, grain, dice.uniform(0.0, 0.04))
    apply(0.6, filters.jpeg, dice.uniform(30, 95).round())
    return pairs


def recompress(pairs: Tensor, dice: Dice, share: float) -> Tensor:
    """Send the pictures of some faces through libx264 and back, in place and alike for all pictures of a group.

    Each picture is encoded by itself, so it is an intra frame: nothing is predicted from other frames as in a video. It
    is done on the CPU, whatever the pictures' device, with a crf of 23 to 40 (`H264.random`).

    Args:
        pairs: [G,B,3,S,S] in [0,1], as in `degrade`.
        dice: random numbers for B.
        share: of the B faces.
    Returns:
        `pairs`.
    """
    for face in torch.nonzero(dice.chance(share)).flatten().tolist():
        settings = H264.random(dice.generator)
        for picture in pairs[:, face]:
            frame = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            picture.copy_(torch.from_numpy(reencode(frame[None], settings)[0]).permute(2, 0, 1) / 255)
    return pairs
