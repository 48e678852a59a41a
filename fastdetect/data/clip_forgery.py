"""Fakes of whole clips: `forge` frame by frame with one set of parameters, so that a forgery stays itself over time.

What moves is what moves in real ones: the mask follows the face, a donor's face its own motion, and both wander a
little, smoothly, as a tracker's errors do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastdetect.data.forgery import ForgeryConfig, forge
from fastdetect.data.h264 import H264, reencode
from fastdetect.errors import ShapeError, UsageError

_STEADY = 1.0  # frames, sigma: detectors' landmarks tremble by about a pixel from frame to frame
_NODES = 4  # frames between two knots of the wandering


@dataclass(frozen=True)
class ClipForgeryConfig:
    """What the fakes of clips are made of.

    Args:
        forgery: kinds, regions and difficulty, as for single faces; drawn once a clip.
        wander: how far the pasted part strays from its place, standard deviation in distances of the eyes.
        recompressed: share of fakes whose replaced part goes through H.264 before it is pasted.
        crf: range of that encoding.
    """

    forgery: ForgeryConfig = field(default_factory=ForgeryConfig)
    wander: float = 0.02
    recompressed: float = 0.3
    crf: tuple[int, int] = (23, 40)

    def __post_init__(self) -> None:
        if self.wander < 0 or not 0 <= self.recompressed <= 1 or not 0 <= self.crf[0] <= self.crf[1] <= 51:
            raise UsageError(f"wanted wander >= 0, recompressed in [0, 1] and crf within 0 to 51, got {self}")


@dataclass
class ForgedClips:
    """Fakes of N clips.

    Attributes:
        images: [N,T,3,S,S] in [0,1].
        masks: [N,T,1,S,S] in [0,1], the opacity of what was replaced.
        kind, region: int64 [N], indices into `KINDS` and `REGIONS`.
    """

    images: Tensor
    masks: Tensor
    kind: Tensor
    region: Tensor


def forge_clips(
    images: Tensor,
    landmarks: Tensor,
    donors: Tensor,
    donor_landmarks: Tensor,
    *,
    config: ClipForgeryConfig = ClipForgeryConfig(),
    seed: int,
    redraw: Callable[[Tensor], Tensor] | None = None,
) -> ForgedClips:
    """Make one fake of every clip of a face.

    Every frame is forged with the same draws: kind, region, opacity, colours, blur, compression, deformations. Only
    noise that is added stays put over time, too.

    Args:
        images: reals [N,T,3,S,S] float in [0,1], in order of time, S a multiple of 16.
        landmarks: [N,T,5,2] in their pixels.
        donors: [N,U,3,V,V], another person's clip for each; read forwards and backwards where U is less than T.
        donor_landmarks: [N,U,5,2] in its pixels.
        config: what the fakes are made of.
        seed: the same seed and shapes give the same fakes on the same kind of device.
        redraw: see `forge`.
    Raises:
        ShapeError: shapes do not fit.
    """
    if images.dim() != 5 or landmarks.shape != (*images.shape[:2], 5, 2):
        raise ShapeError(
            f"images {list(images.shape)} and landmarks {list(landmarks.shape)}; wanted [N,T,3,S,S] and [N,T,5,2]"
        )
    if donors.dim() != 5 or donor_landmarks.shape != (*donors.shape[:2], 5, 2) or len(donors) != len(images):
        raise ShapeError(
            f"donors {list(donors.shape)} and their landmarks {list(donor_landmarks.shape)}; "
            f"wanted [{len(images)},U,3,V,V] and [{len(images)},U,5,2]"
        )
    device, frames = images.device, images.shape[1]
    generator = torch.Generator(device)
    paths = steady(landmarks)
    eyes = (paths[:, :, 0] - paths[:, :, 1]).norm(dim=2).mean(1)  # [N]
    strays = wandering(len(images), frames, generator.manual_seed(seed)) * (config.wander * eyes)[:, None, None]
    paths, donor_paths = paths + strays[:, :, None], steady(donor_landmarks)
    made = []
    for t in range(frames):
        u = _bounce(t, donors.shape[1])
        generator.manual_seed(seed)  # the same draws for every frame
        made.append(
            forge(
                images[:, t], paths[:, t], donors[:, u], donor_paths[:, u],
                config=config.forgery, generator=generator, redraw=redraw,
            )
        )  # fmt: skip
    fakes, masks = (torch.stack([getattr(one, name) for one in made], 1) for name in ("images", "masks"))
    chosen = torch.rand(len(images), generator=generator, device=device) < config.recompressed
    for n in torch.nonzero(chosen).flatten().tolist():
        coded = recompress(fakes[n], H264.random(generator, config.crf))
        fakes[n] = torch.lerp(fakes[n], coded, masks[n])
    return ForgedClips(fakes, masks, made[0].kind, made[0].region)


def recompress(clip: Tensor, settings: H264) -> Tensor:
    """H.264 of a clip [T,3,S,S] in [0,1], on any device; see `reencode`.

    A real and its fake that get the same settings differ no more by their compression.
    """
    frames = (clip.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    back = torch.from_numpy(reencode(np.ascontiguousarray(frames), settings))
    return back.permute(0, 3, 1, 2).to(clip) / 255


def steady(landmarks: Tensor) -> Tensor:
    """Smooth the landmarks [N,T,5,2] of clips over time, the ends repeated, against the detector's trembling."""
    reach = math.ceil(3 * _STEADY)
    steps = torch.arange(-reach, reach + 1, device=landmarks.device, dtype=landmarks.dtype)
    weights = torch.exp(-0.5 * (steps / _STEADY) ** 2)
    frames = landmarks.shape[1]
    at = (torch.arange(frames, device=landmarks.device)[:, None] + steps.long()).clamp(0, frames - 1)  # [T, window]
    return torch.einsum("ntwkc,w->ntkc", landmarks[:, at], weights / weights.sum())


def wandering(clips: int, frames: int, generator: torch.Generator) -> Tensor:
    """Return smooth random paths [clips,frames,2] of about unit variance."""
    knots = torch.randn(clips, 2, frames // _NODES + 3, generator=generator, device=generator.device)
    place = torch.arange(frames, device=generator.device) / _NODES
    at = place.long()
    share = (1 - torch.cos(math.pi * (place - at))) / 2  # cosine ramps: no corner at a knot
    return torch.lerp(knots[:, :, at], knots[:, :, at + 1], share).transpose(1, 2)


def _bounce(t: int, length: int) -> int:
    """Position of step `t` in a clip read forwards, then backwards, and so on."""
    period = max(1, 2 * (length - 1))
    return length - 1 - abs(length - 1 - t % period) if length > 1 else 0
