"""From known volumes to solids: the threshold that silhouettes ask for, volumes, genus, and the colour that is seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from threed.exporters.clean import clean
from threed.isosurface import extract, isosurface, sampled, surface_colour
from threed.nerf import THRESHOLDS, NeRF, NeRFConfig
from threed.renderers.ops import HashGrid
from threed.renderers.volume import Sample

CONFIG = replace(
    NeRFConfig(), grid=HashGrid(levels=1, coarsest=2, finest=2), resolution=48, samples=64, occupancy=32, bound=1.2
)
GREY = torch.tensor([0.2, 0.5, 0.9])


class Known(NeRF):
    """A NeRF whose density and albedo are given as functions of the position."""

    def __init__(self, density, albedo=lambda x: GREY.expand_as(x), config=CONFIG):
        self.known = density, albedo
        super().__init__(config, torch.Generator().manual_seed(0))

    def density(self, x):
        return self.known[0](x)

    def forward(self, x):
        return Sample(self.density(x), self.known[1](x), torch.nn.functional.normalize(x, dim=-1))


def soft(distance, sharpness=60.0, peak=40.0):
    """Density that falls across the surface where the signed distance is 0."""
    return lambda x: peak * torch.sigmoid(-sharpness * distance(x))


def ball(radius, centre=(0.0, 0.0, 0.0)):
    return lambda x: (x - x.new_tensor(centre)).norm(dim=-1) - radius


def torus(large, small):
    return lambda x: torch.stack([x[:, [0, 2]].norm(dim=-1) - large, x[:, 1]], dim=-1).norm(dim=-1) - small


def solid(mesh):
    """As an independent reader sees it."""
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)


def silhouette_radius(sharpness, radius, peak):
    """The impact parameter at which half of the light passes a soft ball, by quadrature."""
    miss, along = torch.linspace(0, 1, 2001), torch.linspace(-1, 1, 2001)
    from_centre = (miss[:, None] ** 2 + along**2).sqrt()
    depth = 2 * (peak * torch.sigmoid(sharpness * (radius - from_centre))).mean(1)
    return miss[depth > torch.tensor(2.0).log()].max().item()


@pytest.mark.parametrize(("sharpness", "peak"), [(60.0, 40.0), (25.0, 60.0), (200.0, 8.0)])
def test_a_soft_ball_becomes_the_ball_of_its_silhouette(sharpness, peak):
    """The radius cannot be chosen finer than from one threshold to the next, or than a pixel."""
    found = extract(Known(soft(ball(0.6), sharpness, peak)), grid=64, smoothing=5)
    edge = silhouette_radius(sharpness, 0.6, peak)
    radii = found.vertices.norm(dim=-1)
    mean = radii.mean().item()
    assert mean == pytest.approx(edge, abs=0.35 / sharpness + 0.02)
    assert radii.std() < 0.003
    assert found.volume.item() == pytest.approx(4 / 3 * np.pi * mean**3, rel=0.01)
    assert found.is_watertight
    assert solid(found).euler_number == 2


def test_a_torus_keeps_its_hole():
    """Genus 1, and everywhere as far from its circle as the density of one of the thresholds is."""
    sharpness, peak = 60.0, 100.0
    found = extract(Known(soft(torus(0.6, 0.22), sharpness, peak)), grid=64, smoothing=5)
    assert found.is_watertight
    assert solid(found).euler_number == 0
    distance = torus(0.6, 0.22)(found.vertices)
    assert min(abs(distance.mean().item() - np.log(peak / t - 1) / sharpness) for t in THRESHOLDS) < 0.003
    assert distance.std() < 0.004
    tube = 0.22 + distance.mean().item()
    assert found.volume.item() == pytest.approx(2 * np.pi**2 * 0.6 * tube**2, rel=0.02)


def test_haze_that_nobody_sees_is_left_out():
    """A small faint ball hides less than half of the light, so no silhouette shows it."""
    dense, faint = soft(ball(0.3), 200.0, 100.0), soft(ball(0.12, (0.7, 0.0, 0.0)), 200.0, 2.8)
    nerf = Known(lambda x: dense(x) + faint(x))
    all_of_it = clean(isosurface(sampled(nerf, 64), THRESHOLDS[0], CONFIG.bound), smoothing=0)
    assert solid(all_of_it).body_count == 2
    found = extract(nerf, grid=64, smoothing=0)
    assert solid(found).body_count == 1
    assert found.vertices.norm(dim=-1).max() < 0.35


def test_haze_that_everybody_sees_is_kept():
    """A large faint ball that hides nearly all light is part of the object, though its density is low."""
    dense, faint = soft(ball(0.2), 200.0, 100.0), soft(ball(0.6), 200.0, 3.5)
    found = extract(Known(lambda x: dense(x) + faint(x)), grid=64, smoothing=0)
    assert found.volume.item() == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.1)


def test_surface_lies_where_the_density_is_the_threshold():
    """Marching cubes on an exponential fall is exact to a small part of a cell, for the logarithm is linear there."""
    radius = 0.6
    nerf = Known(lambda x: 10 * torch.exp(40 * (radius - x.norm(dim=-1))).clamp(max=1e6))
    found = isosurface(sampled(nerf, 48), 10.0, CONFIG.bound)
    cell = 2 * CONFIG.bound / 48
    assert (found.vertices.norm(dim=-1) - radius).abs().max() < 0.05 * cell
    assert found.volume > 0


def test_closed_where_the_object_touches_the_cube():
    found = extract(Known(lambda x: torch.full_like(x[:, 0], 50.0)), grid=24, smoothing=0)
    assert found.is_watertight
    assert found.volume.item() == pytest.approx((2 * CONFIG.bound) ** 3, rel=0.15)
    assert found.vertices.abs().max() <= CONFIG.bound * (1 + 2 / 24)


def test_lattice_is_indexed_x_y_z():
    values = sampled(Known(lambda x: x @ torch.tensor([100.0, 10.0, 1.0]) + 200), 4)
    axis = torch.linspace(-CONFIG.bound, CONFIG.bound, 5)
    torch.testing.assert_close(values, 100 * axis[:, None, None] + 10 * axis[:, None] + axis + 200)


def test_an_empty_volume_is_refused():
    with pytest.raises(ValueError, match=r"its density stays below 2.5 per metre everywhere; use more --steps"):
        extract(Known(lambda x: torch.full_like(x[:, 0], 2.0)), grid=16, smoothing=0)


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match=r"density"):
        extract(Known(lambda x: torch.full_like(x[:, 0], torch.nan)), grid=16, smoothing=0)


def test_isosurface_of_nothing_is_none():
    assert isosurface(torch.zeros(8, 8, 8), 5.0, 1.0) is None


def facing_up(count):
    """Points on the plane z = 0 of a slab below it, and its normals."""
    x = torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    x[:, 2] = 0
    return x, torch.tensor([0.0, 0.0, 1.0]).expand(count, 3)


def test_colour_of_one_colour_is_that_colour():
    """However dense or thin the volume."""
    for density in (0.0, 1.0, 1e4):
        colour = surface_colour(Known(lambda x, density=density: torch.full_like(x[:, 0], density)))
        torch.testing.assert_close(colour(*facing_up(5)), GREY.expand(5, 3))


def test_colour_follows_the_order_along_the_ray():
    """A red coat of 2 cm on blue: the light that each sends out, sample by sample 1 cm apart, over all that is sent."""
    red, blue = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    for density in (5.0, 50.0, 500.0):
        nerf = Known(
            lambda x, density=density: density * (x[:, 2] < 0),
            lambda x: torch.where(x[:, 2:] > -0.02, red, blue),
        )
        coat, whole = (1 - np.exp(-density * depth) for depth in (0.02, 0.04))
        exact = torch.tensor([coat / whole, 0.0, 1 - coat / whole], dtype=torch.float32)
        found = surface_colour(nerf, depth=0.08, samples=8)(*facing_up(3))
        torch.testing.assert_close(found, exact.expand(3, 3), atol=1e-4, rtol=0)
        points, up = facing_up(3)
        inside_out = surface_colour(nerf, depth=0.08, samples=8)(points - 0.06 * up, -up)
        assert (inside_out[:, 2] > inside_out[:, 0]).all()  # from below, blue comes first
