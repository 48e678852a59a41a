"""Fakes made from reals: masks lie where the face is, nothing changes outside them, seeds decide everything."""

import pytest
import torch

from fastdetect.data.face_shape import MEAN_FIVE, REGIONS, affine_between, fit_shape, rasterize, transform_points
from fastdetect.data.forgery import (
    KINDS,
    Dice,
    ForgeryConfig,
    choose_donors,
    crop_pack,
    face_masks,
    forge,
    match_colour,
)
from fastdetect.errors import ShapeError, UsageError

SIZE = 96


@pytest.fixture
def faces() -> tuple[torch.Tensor, torch.Tensor]:
    """(images [8,3,96,96], landmarks [8,5,2]): textured pictures with an upright face's landmarks in the middle."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 3, SIZE, SIZE, generator=generator)
    images = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    landmarks = MEAN_FIVE * 24 + torch.tensor([SIZE / 2, SIZE / 2 - 14])
    return images, landmarks + torch.randn(8, 5, 2, generator=generator)


def make(faces: tuple[torch.Tensor, torch.Tensor], config: ForgeryConfig, seed: int = 0, **options):
    images, landmarks = faces
    donors, donor_landmarks = images.roll(1, 0), landmarks.roll(1, 0)
    generator = torch.Generator().manual_seed(seed)
    return forge(images, landmarks, donors, donor_landmarks, config=config, generator=generator, **options)


def only(names: tuple[str, ...], name: str) -> tuple[float, ...]:
    return tuple(float(n == name) for n in names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("region", REGIONS)
def test_each_kind_and_region_changes_the_face_and_nothing_else(faces, kind: str, region: str) -> None:
    made = make(faces, ForgeryConfig(only(KINDS, kind), only(REGIONS, region), 0.5), redraw=lambda x: x.flip(1))
    assert made.images.shape == faces[0].shape
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert (made.region == REGIONS.index(region)).all()
    assert (made.kind == KINDS.index(kind)).all()
    if kind == "resynthesis":
        assert (made.masks.amin((1, 2, 3)) == 1).sum() >= 3  # most of them are whole
    inside = made.masks.amax((1, 2, 3))
    assert (inside > 0.05).sum() >= 7  # a rare blob can miss the face
    changed = (made.images - faces[0]).abs().amax(1, keepdim=True)
    if kind == "self_blend":  # some are pasted the other way round: the face stays and the rest changes
        assert (changed.amax((1, 2, 3)) > 1e-3).sum() >= 6
    else:
        assert changed[made.masks == 0].max() < 1e-5


def test_same_seed_same_fakes_other_seed_others(faces) -> None:
    first, again, other = (make(faces, ForgeryConfig(), seed) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.images, other.images)


def test_easy_fakes_differ_more_than_hard_ones(faces) -> None:
    kinds, regions = only(KINDS, "self_blend"), only(REGIONS, "face")

    def change(difficulty: float) -> float:
        runs = [make(faces, ForgeryConfig(kinds, regions, difficulty), seed).images - faces[0] for seed in range(6)]
        return torch.stack(runs).abs().mean().item()

    assert change(0.0) > 1.15 * change(1.0)


def test_without_a_redrawing_model_no_fake_is_called_regenerated(faces) -> None:
    made = make(faces, ForgeryConfig(only(KINDS, "regenerated")))
    assert (made.kind == KINDS.index("self_blend")).all()


def test_wrong_input_is_refused(faces) -> None:
    images, landmarks = faces
    with pytest.raises(ShapeError, match="S % 16"):
        make((images[..., :90, :90], landmarks), ForgeryConfig())
    with pytest.raises(ShapeError, match=r"\[B,5,2\]"):
        make((images, landmarks[:, :4]), ForgeryConfig())
    with pytest.raises(UsageError, match="kinds"):
        ForgeryConfig(kinds=(1.0,))
    with pytest.raises(UsageError, match="difficulty"):
        ForgeryConfig(difficulty=1.5)


def test_given_kinds_need_a_donor_for_each_swap_only(faces) -> None:
    images, landmarks = faces
    kind = torch.tensor([0, 1, 3, 1, 0, 0, 3, 0])
    drawn = torch.full((2, 3, SIZE, SIZE), 0.25)
    drawn[1] = torch.nan  # no network has drawn this one
    made = [
        forge(
            images, landmarks, images[:2], landmarks[:2], config=ForgeryConfig(), kind=kind, drawn=drawn,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in range(6)
    ]  # fmt: skip
    assert all(torch.equal(one.kind, kind) for one in made)
    wholly = [(one.images[2] - 0.25).abs().max() < 1e-6 for one in made]
    assert any(wholly)
    assert not any(one.images.isnan().any() for one in made)
    with pytest.raises(ShapeError, match="one for each of 2 swaps"):
        make(faces, ForgeryConfig(), kind=kind)  # a donor for every face
    with pytest.raises(UsageError, match="need `redraw`"):
        forge(
            images, landmarks, images[:0], landmarks[:0], config=ForgeryConfig(), kind=torch.full((8,), 2),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip


def test_masks_sit_on_their_region(faces) -> None:
    _, landmarks = faces
    dice = Dice(8, torch.Generator().manual_seed(0), torch.device("cpu"))
    rows = torch.arange(SIZE) + 0.5

    def height(region: str) -> torch.Tensor:
        masks = face_masks(landmarks, torch.full((8,), REGIONS.index(region)), SIZE, dice)[:, 0]
        return (masks.sum(2) * rows).sum(1) / masks.sum((1, 2))

    mouth, eyes = landmarks[:, 3:, 1].mean(1), landmarks[:, :2, 1].mean(1)
    assert (height("mouth") - mouth).abs().max() < 8
    assert (height("eyes") - eyes).abs().max() < 10
    assert (height("lower") > height("eyes") + 10).all()


def test_fitted_shape_meets_the_landmarks(faces) -> None:
    shape = fit_shape(faces[1])
    five = torch.stack([shape[:, 36:42].mean(1), shape[:, 42:48].mean(1), shape[:, 30], shape[:, 48], shape[:, 54]], 1)
    assert (five - faces[1]).norm(dim=2).max() < 3


def test_affine_between_recovers_a_known_map() -> None:
    maps = torch.tensor([[[1.1, 0.2, 3.0], [-0.1, 0.9, -2.0]]], dtype=torch.float64)
    points = torch.rand(1, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 50
    torch.testing.assert_close(affine_between(points, transform_points(maps, points)), maps, atol=1e-4, rtol=1e-4)


def test_rasterize_draws_a_square_and_a_concave_polygon() -> None:
    square = torch.tensor([[[4.0, 4.0], [12.0, 4.0], [12.0, 12.0], [4.0, 12.0]]])
    assert rasterize(square, 16, 1.0).sum() == 64
    notched = torch.tensor([[[0.0, 0.0], [16.0, 0.0], [16.0, 16.0], [8.0, 8.0], [0.0, 16.0]]])
    drawn = rasterize(notched, 16, 1.0)[0, 0]
    assert drawn[14, 8] == 0
    assert drawn[12, 1] == 1
    assert drawn[2, 8] == 1


def test_a_face_drawn_again_or_pasted_onto_itself_is_its_own(faces) -> None:
    """Among swaps, so that the rows of a kind are not the first ones."""
    images, mixed = faces[0], [0.5 * (name == "swap") for name in KINDS]
    for kind in ("regenerated", "self_blend"):
        mixed[KINDS.index(kind)] = 0.5
        made = make(faces, ForgeryConfig(tuple(mixed), only(REGIONS, "face"), 1.0), seed=1, redraw=lambda x: x)
        mixed[KINDS.index(kind)] = 0.0
        rows = torch.nonzero(made.kind == KINDS.index(kind)).flatten()
        assert 2 <= len(rows) < 8
        assert rows.tolist() != list(range(len(rows)))
        if kind == "regenerated":  # a redrawn face is often changed no further
            assert ((made.images - images)[rows].abs().amax((1, 2, 3)) < 1e-5).any()
            continue
        for row in rows.tolist():
            inside = (made.masks[row, 0] > 0.5 * made.masks[row].max()).expand(3, -1, -1)
            like = [torch.corrcoef(torch.stack([made.images[row][inside], other[inside]]))[0, 1] for other in images]
            assert torch.stack(like).argmax() == row


def test_a_swapped_face_lies_where_the_face_is(faces) -> None:
    """A donor with a bright spot between its eyes, of another size and place: the spot comes to between the eyes."""
    images, landmarks = torch.full_like(faces[0], 0.5), faces[1]
    donors = MEAN_FIVE * 14 + torch.tensor([60.0, 30.0])
    spot = donors[:2].mean(0)
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    picture = 0.5 + 0.5 * torch.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 18)
    made = forge(
        images, landmarks, picture.expand(8, 3, -1, -1), donors.expand(8, -1, -1),
        config=ForgeryConfig(only(KINDS, "swap"), only(REGIONS, "face"), 0.0),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    light = (made.images - images).mean(1).clamp(min=0)
    light = light * (light > 0.5 * light.amax((1, 2), keepdim=True))
    centre = torch.stack([(light * x).sum((1, 2)), (light * y).sum((1, 2))], 1) / light.sum((1, 2))[:, None]
    assert (centre - landmarks[:, :2].mean(1)).norm(dim=1).median() < 6


def test_matched_colours_have_the_mean_and_deviation_of_the_target() -> None:
    generator = torch.Generator().manual_seed(0)
    source = 0.3 + 0.05 * torch.randn(2, 3, 64, 64, generator=generator)
    target = torch.tensor([0.5, 0.6, 0.7])[:, None, None] + 0.08 * torch.randn(2, 3, 64, 64, generator=generator)
    masks = torch.zeros(2, 1, 64, 64)
    masks[..., 8:40, 8:40] = 1
    matched = match_colour(source, target, masks, torch.tensor([1.0, 0.0]))
    inside = [picture[0, :, 8:40, 8:40].flatten(1) for picture in (matched, target)]
    torch.testing.assert_close(inside[0].mean(1), inside[1].mean(1), rtol=0, atol=1e-3)
    torch.testing.assert_close(inside[0].std(1), inside[1].std(1), rtol=0.02, atol=0)
    torch.testing.assert_close(matched[1], source[1])


def test_hard_fakes_are_pasted_faintly_now_and_then(faces) -> None:
    kinds, regions = only(KINDS, "swap"), only(REGIONS, "face")
    faint = [
        sum(
            (make(faces, ForgeryConfig(kinds, regions, d), seed).masks.amax((1, 2, 3)) < 0.9).sum() for seed in range(4)
        )
        for d in (0.0, 1.0)
    ]
    assert faint[0] == 0
    assert 5 < faint[1] < 27


def test_donors_are_other_persons_that_stand_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    landmarks = torch.randn(40, 5, 2, generator=generator)
    identity = torch.arange(40) // 4
    donors = choose_donors(landmarks, identity, generator, among=32)
    assert (identity[donors] != identity).all()
    random = landmarks[torch.randperm(40, generator=generator)]
    assert (landmarks[donors] - landmarks).norm() < (random - landmarks).norm()
    alone = choose_donors(landmarks[:4], identity[:4], generator)
    assert torch.equal(alone, torch.arange(4))


def test_crop_without_jitter_is_centred_and_flips_swap_the_sides() -> None:
    images = torch.rand(16, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    landmarks = MEAN_FIVE.mul(20).add(64).expand(16, -1, -1)
    dice = Dice(16, torch.Generator().manual_seed(0), torch.device("cpu"))
    still, points = crop_pack(images, landmarks, 64, 0.5, dice, jitter=False)
    torch.testing.assert_close(still, images[..., 32:96, 32:96])
    torch.testing.assert_close(points, landmarks - 32)
    _, moved = crop_pack(images, landmarks, 64, 0.5, dice, jitter=True)
    assert (moved[:, 0, 0] < moved[:, 1, 0]).all()  # the first eye is on the image's left, flipped or not


def test_what_was_changed_is_the_rest_where_the_untouched_face_was_pasted(faces) -> None:
    made = make(faces, ForgeryConfig(only(KINDS, "self_blend"), only(REGIONS, "face"), 0.0))
    turned = (made.changed - made.masks).abs().amax((1, 2, 3)) > 0.5
    assert 0 < turned.sum() < 8
    difference = (made.images - faces[0]).abs().amax(1, keepdim=True)
    untouched = made.changed < 1e-6
    assert untouched.any()
    assert difference[untouched].max() < 1e-6


def test_drawn_pictures_are_used_where_there_is_one(faces) -> None:
    drawn = torch.full_like(faces[0], 0.25)
    drawn[4:] = torch.nan
    made = make(faces, ForgeryConfig(only(KINDS, "resynthesis"), only(REGIONS, "face"), 0.0), drawn=drawn)
    assert (made.masks.amax((1, 2, 3)) == 1).all()
    off = ((made.images - 0.25).abs() * (made.masks == 1)).amax((1, 2, 3))
    assert 2 <= (off[:4] < 1e-3).sum() <= 4
    assert off[4:].min() > 0.05
    assert made.images.isfinite().all()


def test_matched_reals_are_changed_as_a_whole(faces) -> None:
    kinds, regions = only(KINDS, "self_blend"), only(REGIONS, "face")
    plain, made = (make(faces, ForgeryConfig(kinds, regions, 0.0, matched=share)) for share in (0.0, 1.0))
    assert torch.equal(plain.reals, faces[0])
    assert torch.equal(made.images, plain.images)  # the fakes stay as they are
    # a fake is its matched real inside, and the untouched picture outside
    torch.testing.assert_close(made.images, torch.lerp(faces[0], made.reals, made.changed))
    assert ((made.reals - faces[0]).abs().amax((1, 2, 3)) > 1e-3).all()
    outside = (made.reals - faces[0]).abs() * (made.masks == 0)
    assert (outside.amax((1, 2, 3)) > 1e-3).sum() >= 6


@pytest.mark.parametrize("kind", ["swap", "resynthesis"])
def test_reals_beside_other_fakes_get_a_change_of_their_own(faces, kind: str) -> None:
    changed = []
    for seed in range(4):
        made = make(faces, ForgeryConfig(only(KINDS, kind), matched=0.5), seed=seed)
        changed.append((made.reals - faces[0]).abs().amax((1, 2, 3)) > 0)
        assert made.reals.min() >= 0
        assert made.reals.max() <= 1
    assert 6 <= torch.stack(changed).sum() <= 26


def test_with_matched_reals_a_filtered_picture_is_no_fake(faces) -> None:
    drawn = faces[0].flip(2)
    drawn[:4] = torch.nan  # no network drew these
    whole = torch.zeros(8, dtype=torch.long)
    for seed in range(6):
        made = make(faces, ForgeryConfig(only(KINDS, "resynthesis"), matched=0.5), seed=seed, drawn=drawn)
        whole += made.masks.amin((1, 2, 3)) == 1
    assert not whole[:4].any()
    assert whole[4:].all()


def test_a_share_of_matched_reals_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match="matched"):
        ForgeryConfig(matched=1.5)
