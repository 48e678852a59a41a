"""Fakes made from real faces: self-blends, swaps and regenerated faces, with masks, in batches on any device.

Training on them needs no deepfake: what they share with real manipulations is a part of the face whose resolution,
colour, noise, compression or geometry does not fit the rest [self-blended images, CVPR'22, extended: ours].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdetect.data import filters
from fastdetect.data.face_shape import (
    REGIONS,
    affine_between,
    fit_shape,
    rasterize,
    region_polygons,
    transform_points,
)
from fastdetect.errors import ShapeError, UsageError

KINDS = ("self_blend", "swap", "regenerated", "resynthesis")
_MASK_SIZE = 64  # masks are soft: drawn coarse, then enlarged


@dataclass(frozen=True)
class ForgeryConfig:
    """What fakes a batch is made of.

    Args:
        kinds: weights of `KINDS`: the face pasted onto itself after changes; another person's face; the face as an
            inpainting model redraws it (falls to self-blends where no `redraw` is given); the whole picture drawn by
            a network (`drawn`), or warped, smoothed and upsampled, as models that draw every pixel leave it.
        regions: weights of `REGIONS`, the part of the face that is replaced.
        difficulty: 0 = full opacity and large mismatches, 1 = down to faint ones.
        matched: share of the reals that `Forged.reals` shows changed as a whole, as the pasted part of a fake is.
    """

    kinds: tuple[float, ...] = (0.35, 0.3, 0.15, 0.2)
    regions: tuple[float, ...] = (0.32, 0.1, 0.14, 0.12, 0.08, 0.04, 0.1, 0.1)
    difficulty: float = 1.0
    matched: float = 0.0

    def __post_init__(self) -> None:
        if len(self.kinds) != len(KINDS) or len(self.regions) != len(REGIONS):
            raise UsageError(f"wanted {len(KINDS)} kinds and {len(REGIONS)} regions, got {self}")
        if min(self.kinds) < 0 or min(self.regions) < 0 or not (0 <= self.difficulty <= 1 and 0 <= self.matched <= 1):
            raise UsageError(f"weights must not be negative, difficulty and matched lie in [0, 1], got {self}")

    def draw(self, dice: "Dice", *, redraws: bool) -> Tensor:
        """Draw a batch's kinds int64 [B], indices into `KINDS`; without `redraws` none is "regenerated"."""
        kind = dice.choice(self.kinds)
        return kind if redraws else torch.where(kind == KINDS.index("regenerated"), torch.zeros_like(kind), kind)


VALIDATED = ForgeryConfig(kinds=(0.4, 0.35, 0.0, 0.25))  # the fakes that held-out persons are given in validations


@dataclass
class Forged:
    """Fakes of a batch of reals.

    Attributes:
        images: [B,3,S,S] in [0,1].
        reals: [B,3,S,S] in [0,1], the reals to stand beside them: a self-blend's, where it was changed, as the whole
            picture that the pasted part was taken from; another's with a change of its own. So what resolution,
            noise, colour or compression a picture has is no answer, and what does not fit together is [ours].
        masks: [B,1,S,S] in [0,1], the opacity of what was pasted.
        changed: [B,1,S,S] in [0,1], how far each pixel is not the real's: the rest of the picture, where the untouched
            face was pasted onto a changed picture, and `masks` elsewhere.
        kind, region: int64 [B], indices into `KINDS` and `REGIONS`.
    """

    images: Tensor
    reals: Tensor
    masks: Tensor
    changed: Tensor
    kind: Tensor
    region: Tensor


class Dice:
    """Seeded random numbers for a batch, made on the device they are used on."""

    def __init__(self, batch: int, generator: torch.Generator, device: torch.device) -> None:
        self.batch, self.generator, self.device = batch, generator, device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.batch, *shape, generator=self.generator, device=self.device)

    def normal(self, scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(self.batch, *shape, generator=self.generator, device=self.device)

    def chance(self, p: float) -> Tensor:
        return self.uniform(0, 1) < p

    def choice(self, weights: tuple[float, ...]) -> Tensor:
        table = torch.tensor(weights, device=self.device)
        return torch.multinomial(table, self.batch, replacement=True, generator=self.generator)

    def grainy(self, images: Tensor, amount: Tensor) -> Tensor:
        """Add `amount` [N] of white noise to images [N,C,S,S]."""
        noise = torch.randn(images.shape, generator=self.generator, device=self.device)
        return filters.add_noise(images, noise, amount)

    def part(self, rows: Tensor) -> "Dice":
        """Dice for some samples of the batch."""
        return Dice(len(rows), self.generator, self.device)


def face_masks(landmarks: Tensor, region: Tensor, size: int, dice: Dice) -> Tensor:
    """Return soft masks [B,1,size,size] of each sample's region, randomly deformed and feathered.

    Args:
        landmarks: [B,5,2] in pixels of the image of side `size`.
        region: int64 [B], index into `REGIONS`.
    """
    shape = fit_shape(landmarks)
    scale = _MASK_SIZE / size
    unit = (shape[:, 8] - shape[:, 27]).norm(dim=1)  # about the distance from the eyes to the chin
    shape = shape + dice.normal(0.03, 68, 2) * unit[:, None, None]
    masks = torch.empty(len(landmarks), 1, _MASK_SIZE, _MASK_SIZE, device=landmarks.device)
    for index, name in enumerate(REGIONS):
        rows = torch.nonzero(region == index).flatten()
        if not len(rows):
            continue
        polygons = region_polygons(shape[rows], "forehead" if name == "blob" else name)
        drawn = torch.stack([rasterize(p, _MASK_SIZE, scale) for p in polygons]).amax(0)
        if name == "blob":
            drawn *= filters.smooth_field(tuple(drawn.shape), 5, dice.generator, dice.device) > 0.3
        masks.index_copy_(0, rows, drawn)
    # elastic deformation, then a feather of random width, narrower for small regions
    identity = torch.eye(2, 3, device=landmarks.device).expand(len(landmarks), -1, -1)
    flow = filters.smooth_field((len(landmarks), 2, _MASK_SIZE, _MASK_SIZE), 4, dice.generator, dice.device)
    masks = filters.sample(masks, identity, _MASK_SIZE, flow * dice.uniform(0, 2.0)[:, None, None, None])
    small = torch.isin(region, torch.tensor([3, 4, 5], device=region.device))
    sigma = torch.where(small, dice.uniform(0.5, 1.8), dice.uniform(0.6, 4.5))
    masks = filters.separable(masks, filters.blur_matrix(sigma, _MASK_SIZE))
    shrink = dice.uniform(1.0, 1.6)[:, None, None, None]  # steeper edges, as erosion after blurring gives
    masks = ((masks - 0.5) * shrink + 0.5).clamp(0, 1)
    return torch.nn.functional.interpolate(masks, (size, size), mode="bilinear", align_corners=False)


def match_colour(source: Tensor, target: Tensor, masks: Tensor, strength: Tensor) -> Tensor:
    """Give `source` the mean and deviation per channel of `target` under the masks, by `strength` [B] in [0,1]."""
    weight = (masks / masks.sum((2, 3), keepdim=True).clamp(min=1.0)).flatten(2).mT

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(2)
        mean = flat @ weight
        square = flat.square() @ weight - (2 - weight.sum(1, keepdim=True)) * mean.square()
        return mean[..., None], square.clamp(min=4e-4).sqrt()[..., None]

    (ms, ss), (mt, st) = moments(source), moments(target)
    matched = (source - ms) * (st / ss).clamp(0.4, 2.5) + mt
    return torch.lerp(source, matched, strength[:, None, None, None])


def mismatch(images: Tensor, difficulty: float, dice: Dice) -> Tensor:
    """Change, in place, what the pasted part looks like: resolution, blur or sharpness, colour, noise, compression.

    Each change is drawn per sample; `difficulty` widens the range downwards, to changes that hardly show.
    """
    least = 1.0 - difficulty  # the least strength, as a share of the largest
    strength = least + (1 - least) * dice.uniform(0, 1)
    zoom = torch.where(dice.chance(0.55), 1 + strength * dice.uniform(0.2, 2.2), torch.ones_like(strength))
    sigma = torch.where(dice.chance(0.25), strength * dice.uniform(0.3, 1.8), torch.zeros_like(strength))
    x = filters.apply_to_(images, (zoom > 1) | (sigma > 0), filters.blur_resample, zoom, sigma)
    filters.apply_to_(x, dice.chance(0.3), filters.sharpen, strength * dice.uniform(0.3, 1.8), dice.uniform(0.7, 2.0))
    filters.apply_to_(
        x,
        dice.chance(0.7),
        filters.colour,
        1 + strength[:, None] * dice.uniform(-0.16, 0.16, 3),
        strength[:, None] * dice.uniform(-0.08, 0.08, 3),
        torch.exp(strength * dice.uniform(-0.25, 0.25)),
        1 + strength * dice.uniform(-0.4, 0.4),
    )
    filters.apply_to_(x, dice.chance(0.25), dice.grainy, strength * dice.uniform(0.0, 0.04))
    return filters.apply_to_(x, dice.chance(0.3), filters.jpeg, dice.uniform(25, 90).round())


def resynthesis(images: Tensor, difficulty: float, dice: Dice) -> Tensor:
    """Leave the traces of a model that draws the whole picture: uneven warps, lost texture, upsampling, sharpening."""
    size = images.shape[-1]
    least = 1.0 - 0.8 * difficulty
    strength = least + (1 - least) * dice.uniform(0, 1)
    same = torch.eye(2, 3, device=images.device).expand(dice.batch, -1, -1)
    flow = filters.smooth_field((dice.batch, 2, size, size), 6, dice.generator, dice.device)
    flow = flow * (strength * dice.uniform(0, 0.03 * size) * dice.chance(0.6))[:, None, None, None]
    x = filters.sample(images, same, size, flow)
    smoothing = dice.chance(0.7)
    filters.apply_to_(x, smoothing, filters.smooth, dice.uniform(1.0, 3.0), strength * dice.uniform(0.02, 0.1))
    grown = dice.chance(0.6) | ~smoothing
    ripple = torch.where(dice.chance(0.5), strength * dice.uniform(0.0, 0.04), torch.zeros_like(strength))
    filters.apply_to_(x, grown, filters.upsampled, 1 + strength * dice.uniform(0.2, 1.5), ripple)
    return filters.apply_to_(
        x, dice.chance(0.4), filters.sharpen, strength * dice.uniform(0.3, 1.5), dice.uniform(0.7, 2.0)
    )


def _jittered(maps: Tensor, size: int, amount: Tensor, dice: Dice) -> Tensor:
    """Compose affine maps [B,2,3] with a small random similarity about the centre of the output."""
    angle, zoom = amount * dice.normal(0.06), torch.exp(amount * dice.normal(0.05))
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    centre = torch.full((len(maps), 2, 1), size / 2, device=maps.device)
    shift = centre - turn @ centre + (amount[:, None] * dice.normal(0.015 * size, 2))[..., None]
    linear = maps[:, :, :2]
    return torch.cat([linear @ turn, linear @ shift + maps[:, :, 2:]], 2)


def forge(
    images: Tensor,
    landmarks: Tensor,
    donors: Tensor,
    donor_landmarks: Tensor,
    *,
    config: ForgeryConfig,
    generator: torch.Generator,
    redraw: Callable[[Tensor], Tensor] | None = None,
    kind: Tensor | None = None,
    drawn: Tensor | None = None,
) -> Forged:
    """Make one fake of every real face.

    Args:
        images: reals [B,3,S,S] float in [0,1], S a multiple of 16.
        landmarks: [B,5,2] in their pixels.
        donors: [B,3,T,T], another person's face for each; donor_landmarks: [B,5,2] in its pixels. With `kind`: one for
            each swap in it, in order.
        config: kinds, regions and difficulty.
        generator: on the images' device; the same state gives the same fakes.
        redraw: images [N,3,S,S] -> the same faces drawn again by a model.
        kind: int64 [B], what `config.draw` gave; None: drawn here.
        drawn: [R,3,S,S], the R faces whose `kind` is "resynthesis" as networks drew them, see `neural_redraw`; NaN
            where there is none. Four in five of them are used.
    Raises:
        ShapeError: shapes do not fit.
    """
    batch, size = len(images), images.shape[-1]
    if images.dim() != 4 or images.shape[1:] != (3, size, size) or size % 16 or landmarks.shape != (batch, 5, 2):
        raise ShapeError(
            f"images {list(images.shape)} and landmarks {list(landmarks.shape)}; "
            "wanted [B,3,S,S] with S % 16 == 0 and [B,5,2]"
        )
    dice = Dice(batch, generator, images.device)
    own_kind = kind is None
    if kind is None:
        kind = config.draw(dice, redraws=redraw is not None)
    blends, swaps, redrawn, whole = (torch.nonzero(kind == i).flatten() for i in range(len(KINDS)))
    if own_kind and len(donors) == len(donor_landmarks) == batch:
        donors, donor_landmarks = donors[swaps], donor_landmarks[swaps]
    if len(donors) != len(swaps) or len(donor_landmarks) != len(swaps):
        raise ShapeError(
            f"donors {list(donors.shape)} and their landmarks {list(donor_landmarks.shape)}; wanted one for each of "
            + (f"{batch} faces" if own_kind else f"{len(swaps)} swaps")
        )
    region = dice.choice(config.regions)
    masks = face_masks(landmarks, region, size, dice)
    # what is pasted, already in the target's pixels
    source = images.clone()
    if len(blends):
        own = dice.part(blends)
        same = torch.eye(2, 3, device=images.device).expand(len(blends), -1, -1)
        moved = _jittered(same, size, own.uniform(0, 1) * own.chance(0.8), own)
        filters.put_rows(source, blends, filters.sample(images[blends], moved, size, _bent(size, own)))
    if len(swaps):
        onto = affine_between(landmarks[swaps], donor_landmarks)
        filters.put_rows(source, swaps, filters.sample(donors, onto, size, _bent(size, dice.part(swaps))))
    if len(redrawn):
        if redraw is None:
            raise UsageError('fakes of the kind "regenerated" need `redraw`, a model that draws faces again')
        source.index_copy_(0, redrawn, redraw(images[redrawn]).to(source.dtype).clamp(0, 1))
    pasted = torch.nonzero(kind != KINDS.index("resynthesis")).flatten()
    if len(pasted):
        own, is_swap = dice.part(pasted), kind[pasted] == KINDS.index("swap")
        fit = torch.where(is_swap, own.uniform(0.4, 1.0), own.uniform(0.0, 0.6))
        fitted = match_colour(source[pasted], images[pasted], masks[pasted], fit).clamp_(0, 1)
        # a donor or a redrawn face is a mismatch in itself; half of them get no other
        altered = torch.nonzero((kind[pasted] == 0) | own.chance(1 - 0.5 * config.difficulty)).flatten()
        filters.put_rows(fitted, altered, mismatch(fitted[altered], config.difficulty, dice.part(altered)))
        filters.put_rows(source, pasted, fitted)
    opacity = torch.where(
        dice.chance(0.5 * config.difficulty), dice.uniform(0.4, 1.0), torch.ones(batch, device=images.device)
    )
    masks = masks * opacity[:, None, None, None]
    if len(whole):  # most of them whole, the others inside their region
        own = dice.part(whole)
        made = torch.empty_like(images[whole]) if drawn is None else drawn.to(images.dtype).clone()
        taken = own.chance(0.8)
        taken = taken & ~made.flatten(1).isnan().any(1) if drawn is not None else torch.zeros_like(taken)
        rest = torch.nonzero(~taken).flatten()
        if len(rest):
            filters.put_rows(made, rest, resynthesis(images[whole[rest]], config.difficulty, dice.part(rest)))
        filters.put_rows(source, whole, made)
        everywhere = own.chance(0.6)
        if config.matched:  # a picture that was filtered as a whole is not a fake
            everywhere = everywhere & taken
        everywhere = everywhere[:, None, None, None]
        masks.index_copy_(0, whole, torch.where(everywhere, torch.ones_like(masks[whole]), masks[whole]))
    # some self-blends paste the untouched face onto the changed one instead
    inverted = ((kind == 0) & dice.chance(0.3))[:, None, None, None]
    changed = torch.where(inverted, 1 - masks, masks)
    reals = images
    if config.matched:
        taken, blended = dice.chance(config.matched), kind == KINDS.index("self_blend")
        pasted_from, others = torch.nonzero(taken & blended).flatten(), torch.nonzero(taken & ~blended).flatten()
        reals = images.clone()
        filters.put_rows(reals, pasted_from, source[pasted_from])
        if len(others):
            filters.put_rows(reals, others, mismatch(images[others], config.difficulty, dice.part(others)))
    return Forged(torch.lerp(images, source, changed), reals, masks, changed, kind, region)


def _bent(size: int, dice: Dice) -> Tensor:
    """Return smooth small displacements [B,2,size,size] in pixels, none for some."""
    flow = filters.smooth_field((dice.batch, 2, size, size), 4, dice.generator, dice.device)
    return flow.mul_((dice.uniform(0, 0.02 * size) * dice.chance(0.6))[:, None, None, None])


def choose_donors(
    landmarks: Tensor, identity: Tensor, generator: torch.Generator, *, of: int | None = None, among: int = 16
) -> Tensor:
    """Return for each of the first `of` faces the index [of] of one of another person that stands alike, out of
    `among` random ones.

    Faces of a set with one identity get themselves; `forge` then pastes a face onto itself.

    Args:
        landmarks: [N,5,2], aligned crops' pixels; identity: int64 [N].
        of: None: of all N.
    """
    count, of = len(landmarks), len(landmarks) if of is None else of
    candidates = torch.randint(0, count, (of, among), generator=generator, device=landmarks.device)
    flat = landmarks.reshape(count, -1)
    flat = flat - flat.mean(1, keepdim=True)
    distance = (flat[candidates] - flat[:of, None]).square().sum(2)
    distance = torch.where(identity[candidates] == identity[:of, None], torch.inf, distance)
    best = candidates.gather(1, distance.argmin(1, keepdim=True)).flatten()
    alone = torch.isinf(distance.amin(1))
    return torch.where(alone, torch.arange(of, device=landmarks.device), best)


def crop_maps(
    landmarks: Tensor, side: int, size: int, pack_scale: float, dice: Dice, *, jitter: bool
) -> tuple[Tensor, Tensor]:
    """Say where model crops lie in packed faces, with the shifts, turns, scales and flips of training where `jitter`.

    Args:
        landmarks: [B,5,2] in pixels of the packed pictures; side: of these.
        size: side of the crops; pack_scale: side of the model's square as a share of `side`.
    Returns:
        Affine maps [B,2,3] from the crops' pixels to the pack's, for `filters.sample`; landmarks [B,5,2] in the crops'
        pixels, in the detector's order.
    """
    batch = len(landmarks)
    amount = torch.full((batch,), 1.0 if jitter else 0.0, device=landmarks.device)
    zoom = torch.exp(amount * dice.uniform(-0.12, 0.12)) * pack_scale * side / size
    angle = amount * dice.normal(0.07)
    flip = torch.where(dice.chance(0.5) & (amount > 0), -1.0, 1.0)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    linear = torch.stack([torch.stack([cos * flip, -sin], 1), torch.stack([sin * flip, cos], 1)], 1)
    centre = torch.full((batch, 2, 1), size / 2, device=landmarks.device)
    middle = side / 2 + amount[:, None] * dice.normal(0.025 * side, 2)
    maps = torch.cat([linear, middle[..., None] - linear @ centre], 2)
    inverse = torch.linalg.inv(linear)
    back = torch.cat([inverse, -inverse @ maps[:, :, 2:]], 2)
    points = transform_points(back, landmarks)
    mirrored = points[:, [1, 0, 2, 4, 3]]
    return maps, torch.where((flip < 0)[:, None, None], mirrored, points)


def crop_pack(
    images: Tensor, landmarks: Tensor, size: int, pack_scale: float, dice: Dice, *, jitter: bool
) -> tuple[Tensor, Tensor]:
    """Cut model crops out of packed faces, see `crop_maps`.

    Args:
        images: [B,3,T,T] of a face pack; the others: see `crop_maps`.
    Returns:
        Crops [B,3,size,size] and landmarks [B,5,2] in their pixels, in the detector's order.
    """
    maps, points = crop_maps(landmarks, images.shape[-1], size, pack_scale, dice, jitter=jitter)
    return filters.sample(images, maps, size), points
