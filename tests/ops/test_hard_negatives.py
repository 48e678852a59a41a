"""fuse_hard_negatives: which rows, which weights, the same on every run."""

import pytest
import torch
import torch.nn.functional as F

from fastdetect.errors import ShapeError, UsageError
from fastdetect.ops import fuse_hard_negatives, hard_negatives
from fastdetect.ops.hard_negatives import uniform


def batch(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = F.normalize(torch.randn(40, 8), dim=1)
    return z.to(device), (torch.arange(40) % 4).to(device), F.normalize(torch.randn(8), dim=0).to(device)


def test_philox_known_answer() -> None:
    """Random123's vector for key 0, counter 0; the top 23 bits of each word."""
    words = [int((u[0].item() - 2**-24) * 2**23) for u in uniform(0, 2, torch.device("cpu"))]
    assert words == [0x6627E8D5 >> 9, 0xE169C58D >> 9, 0xBC57AC4C >> 9]


def test_only_the_most_marginal_fakes(device: str) -> None:
    z, labels, center = batch(device)
    fused = fuse_hard_negatives(z, labels, center, n_hard=5, n_fused=2000, seed=7)
    hard = (z @ center).masked_fill(labels == 0, -2).topk(5).indices.tolist()
    assert set(fused.index_a.tolist()) == set(hard)
    assert set(fused.index_b.tolist()) == {*hard, -1}
    assert (fused.index_b[1::2] == -1).all()
    assert (fused.index_b[::2] >= 0).all()
    assert (fused.index_a != fused.index_b).all()
    pairs, centred = fused.weight[::2], fused.weight[1::2]
    assert 0 < pairs.min() < 0.01 < 0.99 < pairs.max() < 1
    assert 0.5 < centred.min() < 0.51 < 0.99 < centred.max() < 1  # weight of the fake: 1 - beta
    counts = torch.bincount(fused.index_a, minlength=40)[hard]
    assert counts.min() > 300  # of 400 expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cosines_are_not_rounded_to_the_dtype(device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes so near to the centre that their cosines are one number of bfloat16."""
    center = F.normalize(torch.randn(32), dim=0)
    z = F.normalize(center + 0.01 * torch.randn(2000, 32), dim=1).to(dtype)
    exact = (z.double() @ center.double()).float()
    want = exact.argsort(descending=True, stable=True)[:64].sort().values
    args = (z.to(device), torch.ones(2000, dtype=torch.long, device=device), center.to(device))
    options = {"n_hard": 64, "n_fused": 4000, "seed": 1}
    fused = fuse_hard_negatives(*args, **options)
    assert torch.equal(fused.index_a.unique().cpu(), want)
    monkeypatch.setattr(hard_negatives, "_CHUNK", 300 * 32)
    assert all(torch.equal(a, b) for a, b in zip(fused, fuse_hard_negatives(*args, **options), strict=True))


def test_negative_labels_where_nobody_looks() -> None:
    z, labels, center = batch()

    def weight(labels: torch.Tensor) -> torch.Tensor:
        return fuse_hard_negatives(z, labels, center, n_hard=5, n_fused=4, seed=0).weight

    assert torch.func.vmap(weight)(torch.stack([labels, labels - 1])).isnan().all(dim=1).tolist() == [False, True]


def test_compile_and_export() -> None:
    class Fuse(torch.nn.Module):
        def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(fuse_hard_negatives(*args, n_hard=5, n_fused=4, seed=0))

    args, rows = batch(), {0: torch.export.Dim("rows", min=2)}
    want = Fuse()(*args)
    torch.testing.assert_close(torch.compile(Fuse(), fullgraph=True, dynamic=True, backend="aot_eager")(*args), want)
    program = torch.export.export(Fuse(), args, dynamic_shapes=((rows, rows, None),))
    torch.testing.assert_close(program.module()(*args), want)


def test_seed(device: str) -> None:
    z, labels, center = batch(device)
    first, again, other, tensor = (
        fuse_hard_negatives(z, labels, center, n_hard=5, n_fused=30, seed=seed)
        for seed in (7, 7, 8, torch.tensor(7, device=device))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, tensor, strict=True))
    assert not torch.equal(first.weight, other.weight)


def test_few_fakes(device: str) -> None:
    z, labels, center = batch(device)
    none = fuse_hard_negatives(z, labels * 0, center, n_hard=5, n_fused=4, seed=0)
    assert none.index_a.tolist() == [-1] * 4
    one = torch.zeros_like(labels)
    one[11] = 3
    single = fuse_hard_negatives(z, one, center, n_hard=5, n_fused=4, seed=0)
    assert single.index_a.tolist() == [11] * 4
    assert single.index_b.tolist() == [-1] * 4  # nothing to pair it with: all with the centre
    one[2] = 1
    two = fuse_hard_negatives(z, one, center, n_hard=50, n_fused=6, seed=0)
    assert sorted({*two.index_a.tolist(), *two.index_b[::2].tolist()}) == [2, 11]
    assert fuse_hard_negatives(z, labels, center, n_hard=5, n_fused=0, seed=0).weight.shape == (0,)


def test_ties_go_to_the_lower_index() -> None:
    z = torch.ones(6, 4) / 2
    fused = fuse_hard_negatives(z, torch.tensor([0, 1, 1, 1, 1, 1]), z[0], n_hard=2, n_fused=50, seed=0)
    assert sorted(set(fused.index_a.tolist())) == [1, 2]


def test_no_gradient_any_dtype() -> None:
    z, labels, center = batch()
    fused = fuse_hard_negatives(z.bfloat16().requires_grad_(), labels, center, n_hard=5, n_fused=4, seed=0)
    assert not any(tensor.requires_grad for tensor in fused)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_hard": 0}, UsageError, r"n_hard, n_fused: got 0, 2"),
        ({"n_fused": -1}, UsageError, r"got 1, -1, want integers of at least 1 and at least 0"),
        ({"n_hard": 1.5}, UsageError, r"n_hard, n_fused: got 1.5, 2, want integers"),
        ({"seed": 1.5}, UsageError, r"seed: got 1.5, want an integer"),
        ({"z": [[1.0, 0.0]]}, ShapeError, r"z: got list, want a torch.Tensor"),
        ({"center": None}, ShapeError, r"center: got NoneType, want a torch.Tensor"),
        ({"z": torch.zeros(3)}, ShapeError, r"z: got torch.float32 of shape \(3,\)"),
        ({"labels": torch.zeros(3)}, ShapeError, r"labels: got torch.float32 of shape \(3,\), want integers"),
        ({"labels": torch.tensor([0, -2, 1])}, ShapeError, r"labels: got -2, want at least 0"),
        ({"center": torch.zeros(3)}, ShapeError, r"center: got torch.float32 of shape \(3,\), want .* \(4,\)"),
        ({"center": torch.zeros(4, device="meta")}, ShapeError, r"center: got device meta, want that of z, cpu"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_errors(
    monkeypatch: pytest.MonkeyPatch, backend: str, change: dict, error: type[Exception], message: str
) -> None:
    monkeypatch.setenv("FASTDETECT_BACKEND", backend)
    args = {
        "z": torch.zeros(3, 4),
        "labels": torch.arange(3),
        "center": torch.zeros(4),
        "n_hard": 1,
        "n_fused": 2,
        "seed": 0,
    }
    with pytest.raises(error, match=message):
        fuse_hard_negatives(**(args | change))


def test_equal_fakes_are_taken_by_their_rows_and_every_bit_of_the_seed_counts() -> None:
    z = torch.eye(2)[torch.tensor([0] * 100)]
    labels = torch.tensor([0] * 10 + [1] * 90)
    recipes = [fuse_hard_negatives(z, labels, z[0], n_hard=5, n_fused=64, seed=seed) for seed in (3, 3 + 2**32)]
    assert sorted(set(recipes[0].index_a.tolist())) == [10, 11, 12, 13, 14]
    assert not torch.equal(recipes[0].weight, recipes[1].weight)
