"""What an outline says of volumes: a ball's is a cone, what is led by it has it, and a lattice finds its place."""

import math
from dataclasses import replace

import pytest
import torch

from threed.cutout import Cutout
from threed.hull import Carving, Sight, bounds, extent, inflated, pixels_away, projected
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.voxels import TRUNCATION, Voxels, lattice, span
from threed.viewpoint import Viewpoint

SIDE = 24
FREE = torch.full((128, 128), 1e6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def disc(radius=0.5, size=128, right=0.0, down=0.0):
    """Alpha of a disc, in half sides of the frame."""
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    away = ((axis[None] - right) ** 2 + (axis[:, None] - down) ** 2).sqrt()
    return (away < radius).float()[..., None]


def sight(alpha=None, camera=None, scale=1.0, bulge=FREE, trust=1.0):
    camera, alpha = orbit(1, elevation=0.0) if camera is None else camera, disc() if alpha is None else alpha
    return Sight(camera, alpha, scale, bulge, trust)


def solid(voxels):
    return Voxels(voxels, torch.full((*voxels.shape, 3), 0.5))


def ball(radius, side=SIDE, middle=(0.0, 0.0, 0.0)):
    """Signed distance in voxels, of a ball in the frame of voxels."""
    away = (lattice(side) - torch.tensor(middle)).norm(dim=-1) - radius
    return (away * span(side)).clamp(-TRUNCATION, TRUNCATION).reshape((side,) * 3)


def test_the_hull_of_a_disc_is_a_cone():
    """Distances are those across it, in voxels, within a pixel of the picture."""
    hull = sight().hull(SIDE)
    x, y, z = lattice(SIDE).T
    slope = 0.5 * math.tan(math.radians(20))  # of the cone's side
    across = (x.square() + y.square()).sqrt() - (3.1 - z) * slope
    expected = (across * span(SIDE)).clamp(-TRUNCATION, TRUNCATION)
    assert (hull.distance.flatten() - expected).abs().max() < 0.6


def test_a_twice_as_large_lattice_sees_half_as_large_an_outline():
    far = replace(sight(scale=2.0), camera=replace(orbit(1, elevation=0.0), distance=torch.tensor([6.2])))
    torch.testing.assert_close(far.hull(SIDE).distance, sight().hull(SIDE).distance, atol=1e-3, rtol=0)


def test_what_is_carved_and_grown_has_the_outline():
    """From any volume, and what was right already stays as it is."""
    hull = sight().hull(SIDE)
    volumes = (2 * torch.randn(3, SIDE, SIDE, SIDE, generator=seeded())).clamp(-TRUNCATION, TRUNCATION)
    led = hull.grown(hull.carved(volumes, False), False)
    assert ((led < 0) & (hull.distance > 0.5)).sum() == 0
    for each in led:
        nearest = hull._nearest(each[None])[0]
        met = hull.asked & nearest.isfinite()
        assert (nearest[met] < 0).all()
    again = hull.grown(hull.carved(led, False), False)
    torch.testing.assert_close(again, led)


def test_growing_reaches_only_rays_that_lack_something():
    """Near the ball it swells until it is deep enough; far from it a share of the bulge is filled, and no more."""
    hull = sight(bulge=torch.full((128, 128), 20.0)).hull(SIDE)
    small = ball(0.25)
    grown = hull.grown(small[None], False)[0]
    before, after = (hull._nearest(each[None])[0] for each in (small, grown))
    lacking, far = (hull.asked & (before > least) for least in (-0.5, 2.0))
    on = {name: rays[hull.ray].view_as(small) for name, rays in (("lacking", lacking), ("far", far))}
    assert lacking.sum() > far.sum() > 0
    assert torch.equal(grown[~on["lacking"]], small[~on["lacking"]])
    assert torch.equal(grown[on["far"]], small.minimum(hull.fill)[on["far"]])
    torch.testing.assert_close(after[lacking & ~far], torch.full_like(after[lacking & ~far], -0.5))
    metres = 0.6 * 20 * 2 * 3.1 * math.tan(math.radians(20)) / 128
    deep = lattice(SIDE)[:, 2].reshape(small.shape).abs()
    assert (hull.fill[deep > metres + 0.1] > 0).all()
    assert (hull.fill[(deep < metres - 0.1) & (hull.distance < -1)] < 0).all()


def test_without_trust_there_is_a_core():
    """Half a bulge deep, whatever the volumes say; with trust there is none."""
    empty = torch.full((1, SIDE, SIDE, SIDE), TRUNCATION)
    for trust, filled in ((0.0, True), (1.0, False)):
        hull = sight(bulge=torch.full((128, 128), 20.0), trust=trust).hull(SIDE)
        assert bool((hull.core < 0).any()) == filled
        assert (hull.grown(empty, False)[0] <= hull.core).all()


def test_mirrored_it_is_symmetrical():
    hull = sight(disc(0.4, right=0.15)).hull(SIDE)
    volumes = torch.randn(2, SIDE, SIDE, SIDE, generator=seeded())
    even = (volumes + volumes.flip(1)) / 2
    led = hull.grown(hull.carved(even, True), True)
    torch.testing.assert_close(led, led.flip(1))


def test_an_outline_tells_whether_left_and_right_can_be_alike():
    """A disc in the middle can be a ball's; beside it, seen from the front, it cannot; seen from the side, it can."""
    assert sight().hull(SIDE).symmetrical
    aside = disc(0.3, right=0.35)
    assert not sight(aside).hull(SIDE).symmetrical
    from_the_right = replace(orbit(1, elevation=0.0), azimuth=torch.tensor([math.pi / 2]))
    assert sight(aside, from_the_right).hull(SIDE).symmetrical


def test_a_lattice_finds_its_size_and_its_place():
    """Led for a while, the ball that the outline belongs to is as large as the lattice wants, and in its middle."""
    truth = ball(0.5, 32)  # one across
    wanted = sight(disc(0.3, right=0.1, down=-0.15), scale=0.9)
    carving = Carving(wanted, mirrored=False)
    for _ in range(30):
        led = carving(torch.cat([truth[None] / TRUNCATION, torch.zeros(3, 32, 32, 32)])[None])
    low, high = bounds(led[:, 0])
    assert float((high - low).max()) == pytest.approx(1, abs=0.08)
    x, y = projected(-carving.sight.scale * torch.tensor([carving.sight.middle]), wanted.camera)[0].tolist()
    assert x == pytest.approx(0.1, abs=0.04)
    assert y == pytest.approx(-0.15, abs=0.04)


def test_a_sight_takes_its_scale_from_what_is_deep():
    """A ball, shown with the outline of one twice as high: stretched, the outline is its picture exactly."""
    tall = solid(ball(0.5, 32))
    seen = Viewpoint(20.0, 10.0)
    mesh = tall.mesh()
    stretched = mesh.vertices * torch.tensor([0.5, 1.0, 0.5])
    stretched = replace(mesh, vertices=stretched / stretched.norm(dim=-1).max())
    shown = surface.render(stretched, seen.camera, 128, 128)
    cutout = Cutout(shown.albedo[0], shown.alpha[0])
    found = Sight.of(seen, tall, cutout, 128)
    assert found.scale == pytest.approx(1.0 * 2 / 2 / 0.5, rel=0.05)  # the longest side is its height, 2 metres
    both = (found.alpha > 0.5) & (shown.alpha[0] > 0.5)
    either = (found.alpha > 0.5) | (shown.alpha[0] > 0.5)
    assert both.sum() / either.sum() > 0.97


def test_a_disc_bulges_as_a_ball():
    height = inflated(disc(0.5))
    axis = torch.arange(128) + 0.5 - 64
    expected = (32**2 - axis[None] ** 2 - axis[:, None] ** 2).clamp(min=0).sqrt()
    inner = expected > 8
    assert (height - expected)[inner].abs().max() < 2
    assert (height[disc(0.5)[..., 0] == 0] == 0).all()
    assert (inflated(torch.zeros(16, 16, 1)) == 0).all()


def test_a_bulge_bounds_the_depth():
    """A bulge of 10 pixels either way, and nothing before or behind it where nothing is trusted."""
    hull = sight(bulge=torch.full((128, 128), 10.0), trust=0.0).hull(SIDE)
    z = lattice(SIDE)[:, 2].reshape((SIDE,) * 3)
    metres = 10 * 2 * 3.1 * math.tan(math.radians(20)) / 128
    assert (hull.distance[z.abs() > metres + 0.1] > 0).all()
    free = sight().hull(SIDE).distance
    shallow = z.abs() < metres - 0.1
    assert ((hull.distance < 0)[shallow] == (free < 0)[shallow]).all()


def test_distances_from_an_outline():
    alpha = torch.zeros(9, 9, 1)
    alpha[3:6] = 1
    away = pixels_away(alpha)
    assert away[:, 4].tolist() == [3, 2, 1, -1, -2, -1, 1, 2, 3]
    assert extent(alpha) == pytest.approx((-1, 1, -1 / 3, 1 / 3))
    with pytest.raises(ValueError, match="the picture shows nothing"):
        extent(torch.zeros(4, 4, 1))


def test_what_lies_beyond_the_frame_is_outside():
    near = Cameras(torch.zeros(1), torch.zeros(1), torch.tensor([1.2]), torch.tensor([math.radians(40)]))
    hull = sight(torch.ones(64, 64, 1), near, bulge=torch.full((64, 64), 1e6)).hull(SIDE)
    aside = lattice(SIDE)[:, 0].reshape((SIDE,) * 3).abs() > 0.52
    front = lattice(SIDE)[:, 2].reshape((SIDE,) * 3) > 0
    assert (hull.distance[aside & front] > 0).all()
