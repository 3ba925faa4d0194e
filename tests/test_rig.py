"""Cameras that a prior always draws: where they stand, how they frame, and which are refused."""

import math
from dataclasses import replace

import pytest
import torch

from threed.distill.rig import Rig
from threed.renderers.camera import framing, orbit
from threed.viewpoint import Viewpoint

FIXED = Rig((30.0, 90.0, -150.0), (20.0, -10.0, 20.0), 30.0)
BESIDE = replace(FIXED, relative=True)
LEVEL = replace(BESIDE, level=True)


@pytest.mark.parametrize(("rig", "raised"), [(FIXED, 0.0), (BESIDE, 12.0), (LEVEL, 0.0)])
def test_a_rig_stands_as_single_viewpoints_do(rig, raised):
    found = rig.cameras(math.radians(-25), math.radians(12))
    assert len(found) == len(rig) == 3
    for place, (azimuth, elevation) in enumerate(zip(rig.azimuth, rig.elevation, strict=True)):
        wanted = Viewpoint(azimuth - 25, elevation + raised, 30.0).camera
        torch.testing.assert_close(found[place : place + 1].position, wanted.position)
        assert found.fov_y[place] == wanted.fov_y


@pytest.mark.parametrize("fov", [5.0, 30.0, 90.0])
def test_any_lens_shows_a_ball_as_large(fov):
    """What its outline fills of half the frame is that of the orbit."""
    half, distance = math.radians(fov) / 2, framing(math.radians(fov))
    filled = math.tan(math.asin(1 / distance)) / math.tan(half)
    assert filled == pytest.approx(math.tan(math.asin(1 / 3.1)) / math.tan(math.radians(20)))
    assert framing(math.radians(40)) == pytest.approx(float(orbit(1).distance))


def test_cameras_of_others_are_refused():
    seen = Viewpoint(-25.0, 12.0).camera
    found = BESIDE.cameras(float(seen.azimuth), float(seen.elevation))
    BESIDE.check(replace(found, azimuth=found.azimuth + 2 * math.pi), seen)  # a whole turn is none
    others = [found[:2], found[torch.tensor([1, 0, 2])], orbit(3), replace(found, distance=found.distance + 1)]
    for each in (*others, FIXED.cameras(float(seen.azimuth), float(seen.elevation))):
        with pytest.raises(ValueError, match="draws 3 views from its own cameras and no others"):
            BESIDE.check(each, seen)
    with pytest.raises(ValueError, match="2 azimuths and 1 elevations"):
        Rig((0.0, 1.0), (0.0,), 30.0)
