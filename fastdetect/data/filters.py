"""Batched picture operations on tensors, each with its own strength per sample: resampling, blur, JPEG, noise, colour.

All take images [B,C,S,S] in [0,1], square, on any device, and parameters [B]; none loops over samples.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = torch.tensor([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]], dtype=torch.float32)  # fmt: skip
_CHROMA = torch.full((8, 8), 99.0)
_CHROMA[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])
_TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def apply_to_(images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Do `change(images, *parameters)` to the samples where `chosen` [B] is true, in place; returns `images`.

    Only those are computed: most changes of an augmentation touch a third of a batch.
    """
    rows = torch.nonzero(chosen).flatten()
    if len(rows):
        changed = change(images.index_select(0, rows), *(p[rows] for p in parameters))
        put_rows(images, rows, changed)
    return images


def put_rows(images: Tensor, rows: Tensor, changed: Tensor) -> None:
    """Write `changed` [N,...] to the rows [N] of `images`, in place."""
    if images.device.type == "cpu":  # twice as fast as index_copy_ there
        for row, picture in zip(rows.tolist(), changed, strict=True):
            images[row] = picture
    else:
        images.index_copy_(0, rows, changed)


def blur_resample(images: Tensor, zoom: Tensor, sigma: Tensor) -> Tensor:
    """Blur by `sigma` pixels, then lose resolution by `zoom` (1 = none)."""
    size = images.shape[-1]
    return separable(images, resample_matrix(zoom, size) @ blur_matrix(sigma, size))


def add_noise(images: Tensor, noise: Tensor, amount: Tensor) -> Tensor:
    """Add `amount` [B] times `noise` of the images' shape."""
    return torch.addcmul(images, amount[:, None, None, None], noise).clamp_(0, 1)


def separable(images: Tensor, matrices: Tensor) -> Tensor:
    """Apply a linear map to rows and columns alike: M X M^T with M [B,S,S]."""
    half = (images.flatten(1, 2) @ matrices.mT).reshape(images.shape)
    out = torch.empty_like(half)
    for channel in range(images.shape[1]):  # a broadcast product would copy the matrices for each
        torch.bmm(matrices, half[:, channel], out=out[:, channel])
    return out


def resample_matrix(factor: Tensor, size: int) -> Tensor:
    """Return [B,S,S] that shrinks by `factor` >= 1 with box weights and grows back linearly, as low resolution does."""
    cells = (size / factor).round().clamp(4, size)  # [B]
    step = (size / cells)[:, None, None]
    pixel = torch.arange(size, device=factor.device, dtype=factor.dtype)
    cell = pixel[:, None]
    overlap = (torch.minimum((cell + 1) * step, pixel + 1) - torch.maximum(cell * step, pixel)).clamp(min=0)
    down = overlap / step * (cell < cells[:, None, None])
    position = (pixel + 0.5) / step[:, 0] - 0.5  # of each output pixel, in cells
    position = position.clamp(min=0).minimum(cells[:, None] - 1)
    up = (1 - (position[:, :, None] - pixel).abs()).clamp(min=0)
    return up @ down


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Return [B,S,S] Gaussian blur of `sigma` pixels, rows summing to 1."""
    apart = torch.arange(1 - size, size, device=sigma.device, dtype=sigma.dtype)
    squared = (apart / sigma.clamp(min=0.05)[:, None]) ** 2
    # tails end at four sigma: left in, they are denormal numbers that make the product ten times as slow
    weights = torch.where(squared <= 16, torch.exp(-0.5 * squared.clamp(max=16)), 0.0)
    weights = weights.unfold(1, size, 1).flip(1)  # row i: distances -i to size - 1 - i
    return weights / weights.sum(2, keepdim=True)


def smooth(images: Tensor, sigma: Tensor, tolerance: Tensor) -> Tensor:
    """Blur by `sigma` pixels where that changes little (against `tolerance`): texture goes, edges stay, as a
    generator's faces look."""
    blurred = separable(images, blur_matrix(sigma, images.shape[-1]))
    change = (images - blurred) / tolerance[:, None, None, None]
    return images + torch.exp(-change.square().mean(1, keepdim=True)) * (blurred - images)


def upsampled(images: Tensor, factor: Tensor, ripple: Tensor) -> Tensor:
    """Shrink by `factor` and grow back with weights that alternate by `ripple` from pixel to pixel, as transposed
    convolutions grow pictures."""
    size = images.shape[-1]
    matrices = resample_matrix(factor, size)
    sign = 1 - 2 * (torch.arange(size, device=images.device) % 2).to(images.dtype)
    return separable(images, matrices * (1 + ripple[:, None, None] * sign[:, None])).clamp_(0, 1)


def sharpen(images: Tensor, amount: Tensor, sigma: Tensor) -> Tensor:
    """Unsharp mask: adds `amount` times what a blur of `sigma` takes away."""
    blurred = separable(images, blur_matrix(sigma, images.shape[-1]))
    return torch.lerp(blurred, images, 1 + amount[:, None, None, None]).clamp_(0, 1)


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Compress as JPEG with 4:2:0 chroma at `quality` [B] in 1..100 does (same tables, DCT and rounding).

    S must be a multiple of 16. Chroma is averaged 2x2 before and interpolated after, as libjpeg does.
    """
    batch = len(images)
    ycc = _mix(_TO_YCC.to(images) * 255, images)
    ycc[:, 0] -= 128
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None]
    k = torch.arange(8, device=images.device, dtype=images.dtype)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    both_ways = torch.kron(dct, dct)  # of a block's 64 pixels: one product in place of two small ones a block

    def quantise(plane: Tensor, table: Tensor) -> Tensor:
        channels, side = plane.shape[1], plane.shape[2]
        steps = ((table.to(images).flatten() * scale + 50) / 100).floor_().clamp_(1, 255)[:, None]
        cut = (batch, channels, side // 8, 8, side // 8, 8)
        blocks = plane.reshape(cut).transpose(3, 4).reshape(batch, -1, 64)
        coefficients = (blocks @ both_ways.T).div_(steps).round_().mul_(steps)
        return (coefficients @ both_ways).view(*cut[:3], cut[4], 8, 8).transpose(3, 4).reshape(plane.shape)

    luma = quantise(ycc[:, :1], _LUMA) + 128
    half, double = (m.to(images) for m in _halving(images.shape[-1]))
    chroma = double @ quantise(half @ ycc[:, 1:] @ half.mT, _CHROMA) @ double.mT
    both = torch.cat([luma, chroma], 1)
    to_rgb = torch.linalg.inv(_TO_YCC.double()).to(images)
    return _mix(to_rgb / 255, both).clamp_(0, 1)


@lru_cache(maxsize=8)
def _halving(size: int) -> tuple[Tensor, Tensor]:
    """[size/2,size], means of two neighbours, and [size,size/2], linear interpolation back."""
    mean = torch.eye(size // 2).repeat_interleave(2, 1) / 2
    unit = torch.eye(size // 2)[None]
    return mean, F.interpolate(unit, size, mode="linear", align_corners=False)[0].mT.contiguous()


def luma(images: Tensor) -> Tensor:
    """Return the BT.601 luma [..., 1, H, W] of RGB pictures [..., 3, H, W]."""
    return (images * _TO_YCC[0].to(images)[:, None, None]).sum(-3, keepdim=True)


def _mix(matrix: Tensor, images: Tensor) -> Tensor:
    """Apply a matrix [3,3] to the channels."""
    return (matrix @ images.flatten(2)).reshape(images.shape)


def colour(images: Tensor, gain: Tensor, offset: Tensor, gamma: Tensor, saturation: Tensor) -> Tensor:
    """Scale [B,3] and shift [B,3] each channel, then gamma [B] and saturation [B] (1 = none)."""
    grey = images.mean(1, keepdim=True)
    x = torch.lerp(grey, images, saturation[:, None, None, None])
    x = torch.addcmul(offset[:, :, None, None], x, gain[:, :, None, None])
    # a power, four times as fast
    return x.clamp_(1e-4, 1).log_().mul_(gamma[:, None, None, None]).exp_()


def smooth_field(shape: tuple[int, ...], cells: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return smooth noise [*shape] of unit variance at its `cells` x `cells` nodes, bicubic between them."""
    batch, channels, height, width = shape
    nodes = torch.randn(batch, channels, cells, cells, generator=generator, device=device)
    return _bicubic(cells, height).to(device) @ nodes @ _bicubic(cells, width).to(device).mT


@lru_cache(maxsize=32)
def _bicubic(cells: int, size: int) -> Tensor:
    """[size,cells]: what bicubic interpolation makes of `cells` numbers; as a product it is ten times as fast."""
    unit = torch.eye(cells)[None, None]
    return F.interpolate(unit, (size, cells), mode="bicubic", align_corners=False)[0, 0]


def sample(images: Tensor, maps: Tensor, size: int, flow: Tensor | None = None) -> Tensor:
    """Read images [B,C,H,W] through affine maps [B,2,3] from output pixels to input pixels, edges repeated.

    Args:
        size: side of the result.
        flow: [B,2,size,size] pixels of the input added to where each output pixel reads, (x, y).
    """
    extent = torch.tensor(images.shape[:-3:-1], device=images.device, dtype=images.dtype)  # width, height
    linear = maps[:, :, :2] * size / extent[:, None]
    offset = (maps[:, :, :2].sum(2) * size / 2 + maps[:, :, 2]) * 2 / extent - 1
    grid = F.affine_grid(torch.cat([linear, offset[..., None]], 2), [len(images), 1, size, size], align_corners=False)
    if flow is not None:
        grid = grid + flow.permute(0, 2, 3, 1) * (2 / extent)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
