"""Batched picture operations on tensors, each with its own strength per sample: resampling, blur, JPEG, noise, colour.

All take images [B,C,S,S] in [0,1], square, on any device, and parameters [B]; none loops over samples.
"""

import math
from collections.abc import Callable

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


def apply_to(chosen: Tensor, images: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Return `images` with `change(images, *parameters)` done to the samples where `chosen` [B] is true.

    Only those are computed: most changes of an augmentation touch a third of a batch.
    """
    rows = torch.nonzero(chosen).flatten()
    if not len(rows):
        return images
    return images.index_copy(0, rows, change(images[rows], *(p[rows] for p in parameters)))


def blur_resample(images: Tensor, zoom: Tensor, sigma: Tensor) -> Tensor:
    """Blur by `sigma` pixels, then lose resolution by `zoom` (1 = none)."""
    size = images.shape[-1]
    return separable(images, resample_matrix(zoom, size) @ blur_matrix(sigma, size))


def add_noise(images: Tensor, noise: Tensor, amount: Tensor) -> Tensor:
    """Add `amount` [B] times `noise` of the images' shape."""
    return (images + amount[:, None, None, None] * noise).clamp(0, 1)


def separable(images: Tensor, matrices: Tensor) -> Tensor:
    """Apply a linear map to rows and columns alike: M X M^T with M [B,S,S]."""
    m = matrices[:, None]
    return m @ images @ m.mT


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
    pixel = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    squared = ((pixel[:, None] - pixel) / sigma.clamp(min=0.05)[:, None, None]) ** 2
    # tails end at four sigma: left in, they are denormal numbers that make the product ten times as slow
    weights = torch.where(squared <= 16, torch.exp(-0.5 * squared.clamp(max=16)), 0.0)
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
    return separable(images, matrices * (1 + ripple[:, None, None] * sign[:, None])).clamp(0, 1)


def sharpen(images: Tensor, amount: Tensor, sigma: Tensor) -> Tensor:
    """Unsharp mask: adds `amount` times what a blur of `sigma` takes away."""
    blurred = separable(images, blur_matrix(sigma, images.shape[-1]))
    return (images + amount[:, None, None, None] * (images - blurred)).clamp(0, 1)


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Compress as JPEG with 4:2:0 chroma at `quality` [B] in 1..100 does (same tables, DCT and rounding).

    S must be a multiple of 16. Chroma is averaged 2x2 before and interpolated after, as libjpeg does.
    """
    batch = len(images)
    ycc = torch.einsum("ij,bjhw->bihw", _TO_YCC.to(images), images) * 255
    ycc[:, 0] -= 128
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None, None, None, None]
    k = torch.arange(8, device=images.device, dtype=images.dtype)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)

    def quantise(plane: Tensor, table: Tensor) -> Tensor:
        channels, side = plane.shape[1], plane.shape[2]
        steps = ((table.to(images) * scale + 50) / 100).floor().clamp(1, 255)
        blocks = plane.reshape(batch, channels, side // 8, 8, side // 8, 8).transpose(3, 4)
        coefficients = dct @ blocks @ dct.T
        coefficients = (coefficients / steps).round() * steps
        return (dct.T @ coefficients @ dct).transpose(3, 4).reshape(plane.shape)

    luma = quantise(ycc[:, :1], _LUMA) + 128
    chroma = quantise(F.avg_pool2d(ycc[:, 1:], 2), _CHROMA)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    both = torch.cat([luma, chroma], 1)
    to_rgb = torch.linalg.inv(_TO_YCC.double()).to(images)
    return (torch.einsum("ij,bjhw->bihw", to_rgb, both) / 255).clamp(0, 1)


def colour(images: Tensor, gain: Tensor, offset: Tensor, gamma: Tensor, saturation: Tensor) -> Tensor:
    """Scale [B,3] and shift [B,3] each channel, then gamma [B] and saturation [B] (1 = none)."""
    grey = images.mean(1, keepdim=True)
    x = grey + saturation[:, None, None, None] * (images - grey)
    x = x * gain[:, :, None, None] + offset[:, :, None, None]
    return x.clamp(1e-4, 1) ** gamma[:, None, None, None]


def smooth_field(shape: tuple[int, ...], cells: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return smooth noise [*shape] of unit variance at its `cells` x `cells` nodes, bicubic between them."""
    batch, channels, height, width = shape
    nodes = torch.randn(batch, channels, cells, cells, generator=generator, device=device)
    return F.interpolate(nodes, (height, width), mode="bicubic", align_corners=False)


def sample(images: Tensor, maps: Tensor, size: int, flow: Tensor | None = None) -> Tensor:
    """Read images [B,C,H,W] through affine maps [B,2,3] from output pixels to input pixels, edges repeated.

    Args:
        size: side of the result.
        flow: [B,2,size,size] pixels of the input added to where each output pixel reads, (x, y).
    """
    height, width = images.shape[-2:]
    axis = torch.arange(size, device=images.device, dtype=images.dtype) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], 1)  # [size * size, 2]
    read = points @ maps[:, :, :2].mT + maps[:, None, :, 2]
    read = read.reshape(len(images), size, size, 2)
    if flow is not None:
        read = read + flow.permute(0, 2, 3, 1)
    grid = read / torch.tensor([width, height], device=images.device, dtype=images.dtype) * 2 - 1
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
