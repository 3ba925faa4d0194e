"""Symmetries of volumes: means over groups against brute force and closed forms, and which of them solids have."""

import pytest
import torch
from scipy import ndimage

from threed.distill.symmetry import LEAST, likely, symmetrised

SIDE = 16
AXIS = torch.arange(SIDE) - (SIDE - 1) / 2
X, Y, Z = torch.meshgrid(AXIS, AXIS, AXIS, indexing="ij")


def solid(distance: torch.Tensor, colour: torch.Tensor | float = 0.3) -> torch.Tensor:
    """4 x G^3, of distances in voxels."""
    return torch.stack([distance / 3, *[torch.as_tensor(colour).expand_as(distance)] * 3]).clamp(-1, 1)


def box(x: float, y: float, z: float, at: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    """Distance of half a side of so many voxels."""
    return torch.stack([(X - at[0]).abs() - x, Y.abs() - y, (Z - at[1]).abs() - z]).amax(0)


ROUND = torch.maximum(torch.hypot(X, Z) - 5.3, Y.abs() - 6)
CHAIR = torch.minimum(box(5, 1, 5), box(5, 7, 1, at=(0, -5)))


def noise() -> torch.Tensor:
    return torch.rand(4, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("symmetry", LEAST)
def test_the_mean_has_the_symmetry_and_a_symmetric_volume_stays(symmetry):
    found = symmetrised(noise(), symmetry)
    turns = {
        "left-right": [lambda v: v.flip(-3)],
        "front-back": [lambda v: v.flip(-1)],
        "both": [lambda v: v.flip(-3), lambda v: v.flip(-1)],
        "quarters": [lambda v: v.flip(-3), lambda v: v.rot90(1, (-3, -1))],
        "round": [lambda v: v.flip(-3), lambda v: v.rot90(1, (-3, -1))],
    }
    for turn in turns[symmetry]:
        torch.testing.assert_close(turn(found), found, atol=1e-5, rtol=0)
        torch.testing.assert_close(symmetrised(turn(noise()), symmetry), found, atol=1e-5, rtol=0)
    if symmetry != "round":  # which interpolates
        torch.testing.assert_close(symmetrised(found, symmetry), found)
    batch = torch.stack([noise(), noise().flip(0)])
    torch.testing.assert_close(symmetrised(batch, symmetry)[1], symmetrised(batch[1], symmetry))


def test_a_round_mean_is_that_of_many_turns():
    """Against scipy's rotations of smooth noise, within the cylinder that all of them see."""
    smooth = ndimage.gaussian_filter(noise().numpy(), (0, 2, 2, 2))
    turned = [
        ndimage.rotate(smooth, angle, axes=(1, 3), reshape=False, order=3, mode="nearest") for angle in range(0, 360, 5)
    ]
    expected = torch.from_numpy(sum(turned) / len(turned))
    inner = torch.hypot(X, Z) < SIDE / 2 - 1
    apart = (symmetrised(torch.from_numpy(smooth), "round") - expected)[:, inner]
    assert apart.abs().max() < 0.1 * smooth.std()  # which is how well lines between voxels follow it


def test_round_means_in_closed_form():
    """A function of height and radius stays; the cosine of the angle vanishes."""
    radius = torch.hypot(X, Z)
    field = torch.stack([0.1 * radius + 0.05 * Y, X / radius * radius.clamp(max=3)])
    found = symmetrised(field, "round")
    inner = radius < SIDE / 2 - 1
    torch.testing.assert_close(found[0, inner], field[0, inner], atol=0.03, rtol=0)
    assert found[1, inner].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("volume", "strongest"),
    [
        (solid(ROUND), "round"),
        (solid(box(5, 6, 5)), "quarters"),
        (solid(box(6, 5, 3)), "both"),
        (solid(CHAIR), "left-right"),
        (solid(CHAIR.transpose(0, 2)), "front-back"),
        (solid(box(3, 6, 2, at=(3, 4))), None),
        (solid(ROUND, torch.where(X > 0, 0.9, -0.9)), "front-back"),  # of two colours
    ],
)
def test_solids_are_found_as_symmetric_as_they_are(volume, strongest):
    found = likely(volume[None], torch.ones(1))
    assert (found[0] if found else None) == strongest
    strengths = list(LEAST)
    assert found[:3] == sorted(found[:3], key=strengths.index)


def test_what_counts_little_decides_nothing():
    """Two that are round, and a failure that weighs nothing."""
    three = torch.stack([solid(ROUND), solid(ROUND), solid(box(3, 6, 2, at=(3, 4)))])
    assert likely(three, torch.tensor([1.0, 1.0, 0.0]))[0] == "round"
    assert "round" not in likely(three, torch.ones(3))
    assert likely(torch.ones(2, 4, SIDE, SIDE, SIDE), torch.zeros(2)) == []  # in which nothing is solid
