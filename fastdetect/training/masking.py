"""Masks that remove a part of the face [ours, after FSFM's facial regions]: what a model of faces has to know."""

import torch
from torch import Tensor

from fastdetect.data.face_shape import fit_shape, rasterize, region_polygons
from fastdetect.errors import ShapeError

FACIAL = ("eyes", "nose", "mouth", "lower", "face")
_CELLS = 4  # samples a patch side


def facial_mask(
    landmarks: Tensor,
    size: tuple[int, int],
    patch_size: int,
    ratio: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw masks that remove one region of each face whole, and patches elsewhere up to `ratio`.

    Args:
        landmarks: [B,5,2] on the CPU, in pixels of the image, in the face detector's order.
        size: (height, width) of the image, equal.
        patch_size: side of the patches.
        ratio: share of all patches that is removed, as in `MaskedImageModel.random_mask`; of a region that is larger,
            some patches stay.
    Returns:
        bool [B,L].
    Raises:
        ShapeError: the image is not square.
    """
    if size[0] != size[1]:
        raise ShapeError(f"facial masks are for square images, got {size[0]} x {size[1]}")
    batch, grid = len(landmarks), size[0] // patch_size
    shape, cells = fit_shape(landmarks), grid * _CELLS
    region = torch.randint(len(FACIAL), (batch,), generator=generator)
    inside = torch.zeros(batch, grid * grid)
    for index, name in enumerate(FACIAL):
        drawn = [rasterize(polygon, cells, cells / size[0]) for polygon in region_polygons(shape, name)]
        touched = torch.nn.functional.max_pool2d(torch.stack(drawn).amax(0), _CELLS).flatten(1)
        inside = torch.where((region == index)[:, None], touched, inside)
    order = (torch.rand(batch, grid * grid, generator=generator) + inside).argsort(1, descending=True)
    count = grid * grid - int(grid * grid * (1 - ratio))
    return torch.zeros(batch, grid * grid, dtype=torch.bool).scatter_(1, order[:, :count], True)
