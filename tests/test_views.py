"""Cameras of a step: where they stand, how they spread, that they repeat."""

import math
from dataclasses import fields

import pytest
import torch

from threed.renderers.camera import Cameras
from threed.views import Views

VIEWS = Views(count=3, elevation=(-10.0, 50.0), distance=(2.0, 4.0), fov_y=35.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(count):
    generator = seeded()
    return [VIEWS.sample(generator) for _ in range(count)]


def assert_uniform(values, low, high):
    """Kolmogorov-Smirnov: a distance above 1.95 / sqrt(n) has a chance of a thousandth."""
    share = (values.sort().values - low) / (high - low)
    n = len(share)
    assert share[0] >= -1e-6
    assert share[-1] <= 1 + 1e-6
    assert (share - torch.arange(n) / n).abs().max() < 1.95 / math.sqrt(n) + 1 / n


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_azimuths_are_equally_far_apart(count):
    cameras = Views(count=count).sample(seeded())
    assert len(cameras) == count
    torch.testing.assert_close(cameras.azimuth.diff(), torch.full((count - 1,), 2 * math.pi / count))


def test_every_number_is_uniform_in_its_range():
    cameras = draws(700)
    assert_uniform(torch.stack([c.azimuth[0] for c in cameras]), 0, 2 * math.pi)
    assert_uniform(torch.cat([c.elevation for c in cameras]), math.radians(-10), math.radians(50))
    assert_uniform(torch.cat([c.distance for c in cameras]), 2, 4)
    assert all((c.fov_y == math.radians(35)).all() for c in cameras)


def test_views_of_a_step_have_heights_and_distances_of_their_own():
    """Uncorrelated between the views of a step: within five standard errors of zero."""
    cameras = draws(700)
    for name in ("elevation", "distance"):
        matrix = torch.corrcoef(torch.stack([getattr(c, name) for c in cameras]).T)
        assert matrix[~torch.eye(3, dtype=torch.bool)].abs().max() < 5 / math.sqrt(700)


def test_cameras_stand_where_views_says():
    """At their distance, looking at the origin."""
    cameras = VIEWS.sample(seeded())
    torch.testing.assert_close(cameras.position.norm(dim=-1), cameras.distance)
    _, directions = cameras.rays(1, 1)
    torch.testing.assert_close(directions[:, 0, 0] * cameras.distance[:, None], -cameras.position, atol=1e-6, rtol=1e-6)


def test_same_generator_same_cameras():
    first, second, other = (VIEWS.sample(seeded(seed)) for seed in (3, 3, 4))
    for name in (f.name for f in fields(Cameras)):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.azimuth, other.azimuth)
