"""What volumes agree on: means by hand, parts that must not be lost, and the symmetry that noise had hidden."""

import pytest
import torch

from threed.distill.consensus import agreed, consensus, longest, medoid
from threed.distill.symmetry import symmetrised


def volumes(count: int) -> torch.Tensor:
    return torch.rand(count, 4, 8, 8, 8, generator=torch.Generator().manual_seed(7)) * 2 - 1


def test_the_medoid_is_the_one_most_like_the_others():
    found = volumes(6)
    found[4] = found[1]  # two that agree entirely

    def agreement(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a & b).sum() / (a | b).sum()).item()

    inside = found[:, 0] < 0
    expected = max(range(6), key=lambda i: sum(agreement(inside[i], inside[j]) for j in range(6)))
    assert medoid(found) == expected


def test_agreement_is_the_mean_by_likeness_to_the_medoid():
    found = volumes(5)
    inside = found[:, 0] < 0
    own = inside[medoid(found)]
    weights = torch.stack([((each & own).sum() / (each | own).sum()).square() for each in inside])
    expected = sum(weight * volume.clamp(-1, 1) for weight, volume in zip(weights, found, strict=True)) / weights.sum()
    torch.testing.assert_close(agreed(found), expected)
    torch.testing.assert_close(agreed(found[:1]), found[0].clamp(-1, 1))


def test_a_part_that_stands_elsewhere_in_each_is_not_lost():
    """A crown that all have, on trunks in different places, of which one in four would remain: none."""
    trees = torch.ones(4, 4, 16, 16, 16)
    trees[:, 0, 2:14, 9:15, 2:14] = -1.0
    for k in range(4):
        trees[k, 0, 3 + 2 * k, 1:9, 7] = -1.0
    plain = torch.einsum("c,cnxyz->nxyz", torch.full((4,), 0.25), trees)
    assert longest(plain) == 12
    found = agreed(trees)
    assert longest(found) == longest(trees[0]) == 14
    assert torch.equal(found, trees[medoid(trees)])
    low = trees.clone()
    low[1:, 0, :, :9] = 1.0  # where only one has a trunk at all
    assert longest(agreed(low)) == 12


def test_what_is_alone_has_no_part_in_a_agreed():
    """Of three equal volumes, one that shares nothing with them and one that is empty, the first remain."""
    same, other = torch.ones(2, 4, 8, 8, 8)
    same[0, :4] = -1.0
    other[0, 5:] = -0.5
    assert torch.equal(agreed(torch.stack([other, same, torch.ones_like(same), same, same])), same)
    assert agreed(torch.ones(3, 4, 8, 8, 8)).eq(1).all()  # in which nothing is solid


def cylinder() -> torch.Tensor:
    """4 x 32^3: upright, of one colour."""
    axis = torch.arange(32) - 15.5
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    distance = torch.maximum(torch.hypot(x, z) - 10, y.abs() - 12) / 3
    return torch.stack([distance, *[torch.full_like(distance, 0.5)] * 3]).clamp(-1, 1)


def test_noise_beside_a_symmetry_goes():
    """Of noisy cylinders one comes that is round, and nearer to the true one than their mean."""
    noise = 0.1 * torch.randn(6, 4, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    noise[:, 1:] *= 0.4
    found, symmetry = consensus(cylinder() + noise)
    assert symmetry == "round"
    torch.testing.assert_close(found, found.transpose(-3, -1))
    near = cylinder()[0].abs() < 0.9
    error, plain = ((each - cylinder())[:, near].square().mean() for each in (found, agreed(cylinder() + noise)))
    assert error < 0.3 * plain


def test_a_symmetry_that_would_cost_a_part_is_not_taken():
    """A round crown on a trunk that stands aside: any symmetry but the mirror through the trunk would lose it."""
    tree = torch.ones(4, 32, 32, 32)
    tree[0] = torch.where(torch.arange(32)[:, None] >= 16, cylinder()[0], tree[0])
    tree[0, 14:18, 2:18, 22:25] = -0.2
    found, symmetry = consensus(tree.expand(3, -1, -1, -1, -1))
    assert symmetry == "left-right"
    assert longest(found) == longest(tree)
    assert longest(symmetrised(tree, "round")) < 0.9 * longest(tree)


def test_what_has_no_symmetry_stays_as_it_is():
    found = volumes(3)
    best, symmetry = consensus(found)
    assert symmetry is None
    assert torch.equal(best, agreed(found))
    with pytest.raises(IndexError):
        consensus(found[:0])
