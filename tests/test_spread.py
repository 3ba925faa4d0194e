"""Hidden sides take the colours that are seen of what is like them; how bright these are, the voxels' own tell."""

from dataclasses import replace

import pytest
import torch

from threed.cutout import Cutout
from threed.renderers.voxels import TRUNCATION, Voxels
from threed.spread import DIMMEST, light, likened, spread
from threed.viewpoint import Viewpoint

RED, GREEN = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.8, 0.2])


def test_what_is_as_high_has_the_same_colour():
    """Two rings of points, seen in front, one red and one green; behind they are the same."""
    angle = torch.arange(40) / 40 * 2 * torch.pi
    ring = torch.stack([0.4 * angle.sin(), torch.zeros(40), 0.4 * angle.cos()], dim=-1)
    points = torch.cat([ring + torch.tensor([0.0, 0.3, 0.0]), ring])
    colour = torch.cat([RED.expand(40, 3), GREEN.expand(40, 3)])
    seen = (points[:, 2] > 0).float()
    found = likened(points, torch.full_like(points, 0.5), colour * seen[:, None], seen, mirrored=False)
    torch.testing.assert_close(found, colour, atol=1e-3, rtol=0)


def test_what_was_believed_to_have_another_colour_keeps_apart():
    """At one height, two colours beside each other: behind, each goes where the start had it."""
    x = torch.linspace(-0.4, 0.4, 40)
    front = torch.stack([x, torch.zeros(40), torch.full((40,), 0.3)], dim=-1)
    points = torch.cat([front, front * torch.tensor([1.0, 1.0, -1.0])])
    right = (points[:, :1] > 0).float()
    believed = right.expand(-1, 3)  # white on the right, black on the left
    colour = right * RED + (1 - right) * GREEN
    seen = (points[:, 2] > 0).float()
    found = likened(points, believed, colour * seen[:, None], seen, mirrored=False)
    assert ((found - colour).abs().amax(-1) < 0.1).all()


def test_mirrored_the_other_half_is_as_near():
    """Only the right half is seen; at its own height every place takes what its reflection shows."""
    x, z = torch.meshgrid(torch.linspace(-0.5, 0.5, 21), torch.tensor([-0.3, 0.3]), indexing="ij")
    points = torch.stack([x.flatten(), torch.zeros(42), z.flatten()], dim=-1)
    colour = points[:, :1].abs().expand(-1, 3) * 2
    seen = (points[:, 0] > 0).float()
    grey = torch.full_like(points, 0.5)
    even, odd = (likened(points, grey, colour * seen[:, None], seen, mirrored) for mirrored in (True, False))
    torch.testing.assert_close(even, even.view(21, 2, 3).flip(0).reshape(42, 3))
    left = points[:, 0] < 0
    assert (even - colour)[left].abs().mean() < 0.7 * (odd - colour)[left].abs().mean()


def grey_ball():
    axis = torch.arange(24) - 11.5
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    distance = (points.norm(dim=-1) - 9).clamp(-TRUNCATION, TRUNCATION)
    return Voxels(distance, torch.full((24, 24, 24, 3), 0.5))


def square():
    alpha = torch.zeros(64, 64, 1)
    alpha[12:52, 12:52] = 1
    return alpha


def test_voxels_take_the_colour_of_the_picture_all_around():
    voxels, alpha = grey_ball(), square()
    distance = voxels.distance
    found = spread(voxels, Viewpoint(0.0, 15.0), Cutout(alpha * GREEN, alpha), mirrored=True)
    assert found.distance is distance
    near = distance.abs() < 1
    assert (found.colour[near] - GREEN).abs().max() < 0.02
    assert (found.colour[distance.abs() > 2.5] == 0.5).all()
    nowhere = spread(voxels, Viewpoint(0.0, 15.0), Cutout(0 * alpha * GREEN, 0 * alpha), mirrored=True)
    assert nowhere is voxels


@pytest.mark.parametrize(("shown", "expected"), [(0.8, 0.8), (0.3, DIMMEST), (1.2, 1.0)])
def test_the_light_is_what_the_picture_shows_of_the_voxels_colours(shown, expected):
    """Of things in two colours, too, and half in light and half in shade; where nothing is seen it is all the light."""
    alpha, ahead = square(), Viewpoint(0.0, 0.0)
    assert light(grey_ball(), ahead, Cutout(0.5 * shown * alpha.expand(-1, -1, 3), alpha)) == pytest.approx(expected)
    rows = torch.linspace(1.5, 0.5, 64)[:, None, None]  # as much more above as it is less below
    shaded = Cutout((0.5 * shown * rows * alpha).expand(-1, -1, 3).clamp(max=1), alpha)
    assert light(grey_ball(), ahead, shaded) == pytest.approx(expected, abs=0.01)
    colour = grey_ball().colour.clone()
    colour[12:] = GREEN
    right = (torch.arange(64) >= 32).float()[None, :, None]
    both = shown * (right * GREEN + (1 - right) * 0.5) * alpha
    assert light(replace(grey_ball(), colour=colour), ahead, Cutout(both, alpha)) == pytest.approx(expected, abs=0.02)
    assert light(grey_ball(), ahead, Cutout(0 * both, 0 * alpha)) == 1


def test_what_is_as_bright_as_can_be_stays_as_it_is():
    """A dark picture of grey with a white corner; half of one per cent of it may be brighter than white."""
    alpha, ahead = square(), Viewpoint(0.0, 0.0)
    rgb = 0.4 * alpha.expand(-1, -1, 3).clone()
    rgb[12:14, 12:16] = 1  # 8 of 1600 pixels
    assert light(grey_ball(), ahead, Cutout(rgb, alpha)) == pytest.approx(0.8, abs=0.02)
    rgb[12:18, 12:18] = 0.9  # 36
    assert light(grey_ball(), ahead, Cutout(rgb, alpha)) == pytest.approx(0.9)
