"""Where a face's parts lie: the mean shape of 68 points fitted to the detector's five, and masks of its regions."""

import torch
from torch import Tensor

from fastdetect.errors import ShapeError

# 68 points in the usual order (jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67): the median near-frontal
# shape, mirrored and averaged; origin between the eyes, unit = distance from there to the mouth's centre.
_HALF_JAW = [
    (-1.08, 0.03),
    (-1.06, 0.32),
    (-1.01, 0.57),
    (-0.96, 0.82),
    (-0.88, 1.09),
    (-0.73, 1.32),
    (-0.57, 1.47),
    (-0.34, 1.61),
]
_BROW = [(-0.83, -0.23), (-0.70, -0.32), (-0.54, -0.34), (-0.40, -0.33), (-0.27, -0.29)]
_NOSE = [
    (0, 0.01),
    (0, 0.20),
    (0, 0.38),
    (0, 0.54),
    (-0.18, 0.65),
    (-0.10, 0.67),
    (0, 0.69),
    (0.10, 0.67),
    (0.18, 0.65),
]
_EYE = [(-0.63, -0.01), (-0.53, -0.04), (-0.40, -0.04), (-0.28, 0.01), (-0.39, 0.04), (-0.52, 0.04)]
_MOUTH = [(-0.37, 1.00), (-0.25, 0.92), (-0.08, 0.87), (0, 0.89), (0.08, 0.87), (0.25, 0.92), (0.37, 1.00),
          (0.24, 1.11), (0.12, 1.17), (0, 1.18), (-0.12, 1.17), (-0.24, 1.11),
          (-0.34, 1.00), (-0.11, 0.97), (0, 0.97), (0.11, 0.97),
          (0.34, 1.00), (0.11, 1.04), (0, 1.05), (-0.11, 1.04)]  # fmt: skip


def _mirror(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(-x, y) for x, y in reversed(points)]


_RIGHT_EYE = [(-x, y) for x, y in (_EYE[3], _EYE[2], _EYE[1], _EYE[0], _EYE[5], _EYE[4])]
MEAN_SHAPE = torch.tensor(
    [
        *_HALF_JAW,
        (0.0, 1.69),
        *_mirror(_HALF_JAW),
        *_BROW,
        *_mirror(_BROW),
        *_NOSE,
        *_EYE,
        *_RIGHT_EYE,
        *_MOUTH,
    ]
)  # [68, 2]
MEAN_FIVE = torch.stack(
    [MEAN_SHAPE[36:42].mean(0), MEAN_SHAPE[42:48].mean(0), MEAN_SHAPE[30], MEAN_SHAPE[48], MEAN_SHAPE[54]]
)

REGIONS = ("face", "forehead", "lower", "mouth", "eyes", "nose", "box", "blob")


def affine_between(source: Tensor, target: Tensor) -> Tensor:
    """Return the least-squares affine maps [B,2,3] from points `source` to `target`, both [B,N,2] with N >= 3."""
    if source.shape != target.shape or source.dim() != 3 or source.shape[1] < 3 or source.shape[2] != 2:
        raise ShapeError(f"points are {list(source.shape)} and {list(target.shape)}; wanted equal [B, N >= 3, 2]")
    ones = torch.ones_like(source[..., :1])
    homogeneous = torch.cat([source, ones], 2)
    gram = homogeneous.mT @ homogeneous + 1e-6 * torch.eye(3, dtype=source.dtype, device=source.device)
    return torch.linalg.solve(gram, homogeneous.mT @ target).mT


def transform_points(maps: Tensor, points: Tensor) -> Tensor:
    """Apply affine maps [B,2,3] to points [B,N,2]."""
    return points @ maps[:, :, :2].mT + maps[:, None, :, 2]


def fit_shape(landmarks: Tensor) -> Tensor:
    """Return 68 points [B,68,2]: the mean shape, mapped affinely onto the detector's five landmarks [B,5,2]."""
    five = MEAN_FIVE.to(landmarks).expand(len(landmarks), -1, -1)
    maps = affine_between(five, landmarks)
    return transform_points(maps, MEAN_SHAPE.to(landmarks).expand(len(landmarks), -1, -1))


def _grow(points: Tensor, factor: float) -> Tensor:
    centre = points.mean(1, keepdim=True)
    return centre + factor * (points - centre)


def region_polygons(shape: Tensor, region: str) -> list[Tensor]:
    """Return the closed polygons [B,N,2] that make up a region of shapes [B,68,2] (not `blob`, which has none)."""
    down = (shape[:, 48:60].mean(1) - shape[:, 36:48].mean(1))[:, None]  # eyes to mouth
    brows = shape[:, 17:27].flip(1)
    if region == "face":
        return [torch.cat([shape[:, :17], brows - 0.1 * down], 1)]
    if region == "forehead":
        return [torch.cat([shape[:, :17], brows - 0.45 * down], 1)]
    if region == "lower":
        return [torch.cat([shape[:, 2:15], shape[:, [35, 30, 31]]], 1)]
    if region == "mouth":
        return [_grow(shape[:, 48:60], 1.5)]
    if region == "eyes":
        return [_grow(torch.cat([shape[:, a:b], shape[:, c:d].flip(1)], 1), 1.25) for a, b, c, d in
                ((17, 22, 40, 42), (22, 27, 46, 48))]  # fmt: skip
    if region == "nose":
        return [_grow(shape[:, [27, 31, 32, 33, 34, 35]], 1.3)]
    if region == "box":  # what lip-sync models paste back: an upright rectangle from mid-nose to chin
        x0, x1 = shape[:, 3, 0], shape[:, 13, 0]
        y0, y1 = shape[:, 29, 1], shape[:, 8, 1]
        return [torch.stack([torch.stack(p, 1) for p in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], 1)]
    raise ShapeError(f"unknown region {region!r}; have {', '.join(REGIONS[:-1])}")


def rasterize(polygon: Tensor, size: int, scale: float) -> Tensor:
    """Return the insides [B,1,size,size] (0 or 1, even-odd rule) of polygons [B,N,2] whose pixels are `scale` cells."""
    centres = (torch.arange(size, device=polygon.device, dtype=polygon.dtype) + 0.5) / scale
    x0, y0 = polygon[..., 0], polygon[..., 1]
    x1, y1 = x0.roll(-1, 1), y0.roll(-1, 1)
    y = centres[None, None, :]  # [1, 1, rows]
    spans = (y0[..., None] > y) != (y1[..., None] > y)  # [B, edges, rows]
    rise = torch.where((y1 - y0).abs() < 1e-9, torch.ones_like(y0), y1 - y0)[..., None]
    crossing = x0[..., None] + (y - y0[..., None]) / rise * (x1 - x0)[..., None]
    crossing = torch.where(spans, crossing, torch.full_like(crossing, -torch.inf))
    cell = torch.searchsorted(centres, crossing).mT  # [B, rows, edges]: how many cells lie to the left of each crossing
    count = torch.zeros(*cell.shape[:2], size + 1, dtype=torch.int32, device=polygon.device)
    count.scatter_add_(2, cell, torch.ones((), dtype=count.dtype, device=count.device).expand(cell.shape))
    right = count.flip(2).cumsum(2, dtype=torch.int32).flip(2)[..., 1:]  # edges to the right of each cell
    return (right % 2).to(polygon.dtype)[:, None]
