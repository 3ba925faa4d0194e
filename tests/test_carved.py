"""How far a glance is trusted: its outline decides."""

import pytest
import torch

from threed.carved import beliefs, coloured, trust, usual
from threed.cutout import Cutout
from threed.distill.angles import Angles, AnglesConfig, Belief
from threed.renderers.voxels import TRUNCATION, Voxels
from threed.training.angles import write
from threed.viewpoint import Viewpoint


def ball(radius=9.0, side=24):
    axis = torch.arange(side) - (side - 1) / 2
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    return coloured(Voxels((points.norm(dim=-1) - radius).clamp(-TRUNCATION, TRUNCATION), 0.05 * points.abs()))


def test_a_painted_surface_is_at_radius_1_in_the_voxels_colours():
    thing = ball()
    assert thing.mesh.vertices.norm(dim=-1).max().item() == pytest.approx(1)
    found = thing.albedo(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.45, 0.025, 0.025], [0.025, 0.225, 0.025]]), atol=0.02, rtol=0)


def test_trust_goes_by_the_outline():
    """All in a ball whose picture is a disc, less in one whose picture is a bar, none where it is thin."""
    seen, found = Viewpoint(0.0, 15.0), []
    disc = seen.of(ball(), 96).alpha[0]
    for height in (96, 52, 6):
        alpha = disc.clone()
        alpha[: 48 - height // 2] = 0
        alpha[48 + height // 2 :] = 0
        cutout = Cutout(alpha.expand(-1, -1, 3) * 0.5, alpha)
        found.append(trust(ball(), cutout, seen))
    assert found[0] == 1
    assert 0 < found[1] < 1
    assert found[2] == 0


def test_what_is_not_trusted_is_the_usual():
    seen = Viewpoint(-40.0, 55.0, zoom=1.2)
    assert usual(seen, 1.0, tilted=True) == seen
    assert usual(seen, 0.0, tilted=True) == Viewpoint(0.0, 15.0, zoom=1.2)
    assert usual(seen, 0.5, tilted=True) == Viewpoint(-20.0, 35.0, zoom=1.2)
    assert usual(seen, 0.5, tilted=False) == Viewpoint(-20.0, 55.0, zoom=1.2)


def belief(column, row):
    """Sure of these bins."""
    return Belief(
        *(torch.full([bins], -30.0).index_fill(0, torch.tensor([at]), 0) for bins, at in ((18, column), (16, row)))
    )


def test_what_is_not_trusted_is_what_is_believed():
    believed = belief(12, 9)  # the middles of bins
    assert believed.middle == pytest.approx((17.5, 27.5))
    seen = Viewpoint(-40.0, 55.0, zoom=1.2)
    assert usual(seen, 0.0, True, believed) == Viewpoint(*believed.middle, zoom=1.2)
    assert usual(seen, 1.0, True, believed) == seen
    assert usual(seen, 0.0, False, believed) == Viewpoint(believed.middle[0], 55.0, zoom=1.2)


def test_a_prior_without_angles_believes_nothing(tmp_path):
    picture = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert beliefs(tmp_path, picture) is None
    write(tmp_path, Angles(AnglesConfig(size=16, width=8)))
    assert beliefs(tmp_path, picture).azimuth.exp().sum().item() == pytest.approx(1)
