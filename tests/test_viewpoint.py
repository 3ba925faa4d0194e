"""From where a picture was taken: known renders come back with their cameras, and with their place in the frame."""

import math
from dataclasses import replace

import pytest
import torch
import trimesh

from threed.cutout import Cutout, framed
from threed.exporters.bake import bake
from threed.exporters.unwrap import unwrap
from threed.photograph import Photograph
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import normalised
from threed.viewpoint import Viewpoint, agreement, estimate, placed

SIZE = 256


def colours(points, normals):
    del normals
    return (0.5 + 0.4 * points).clamp(0, 1)


@pytest.fixture(scope="module")
def asset():
    """A lopsided thing: a box with a tower on its right and a nose in front."""
    boxes = ((1.0, 0.6, 0.7), (0, 0, 0)), ((0.3, 0.7, 0.3), (0.35, 0.6, 0)), ((0.3, 0.2, 0.4), (-0.2, 0, 0.5))
    parts = [trimesh.creation.box(extents, trimesh.transformations.translation_matrix(at)) for extents, at in boxes]
    made = trimesh.util.concatenate(parts)
    mesh = normalised(Mesh(torch.tensor(made.vertices).float(), torch.tensor(made.faces)))
    uvs, uv_faces = unwrap(mesh, SIZE)
    return Asset("thing", mesh, uvs, uv_faces, Material(bake(mesh, uvs, uv_faces, colours, SIZE)))


def taken(asset, azimuth, elevation, fov=40.0, size=200):
    """A picture of it, cut out and framed; its light is dimmer than the asset's colours."""
    camera = Viewpoint(azimuth, elevation, fov).camera
    seen = surface.render(asset, camera, size, size)
    rgb = 0.8 * seen.albedo[0] / seen.alpha[0].clamp(min=1e-3)
    return framed(Photograph(rgb, seen.alpha[0], ""), seen.alpha[0, ..., 0])


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 15), (-33, 5), (27, 38), (41, -11)])
def test_the_camera_of_a_render(asset, azimuth, elevation):
    cutout = taken(asset, azimuth, elevation)
    found = estimate(asset, cutout)
    assert found.azimuth == pytest.approx(azimuth, abs=3)
    assert found.elevation == pytest.approx(elevation, abs=3)
    _, iou = agreement(asset, cutout, found)
    assert iou > 0.95


def test_agreement_counts_the_light(asset):
    """In its light of 0.8 an asset looks like its picture; without, each is as far off as the light takes away."""
    cutout, seen = taken(asset, 20, 30), Viewpoint(20.0, 30.0)
    seen = placed(asset, cutout, seen)
    lit, iou = agreement(asset, cutout, seen, light=0.8)
    plain, same = agreement(asset, cutout, seen)
    look = seen.of(asset, 256)
    assert iou == same
    assert lit > 30
    assert plain == pytest.approx(-10 * math.log10((0.2 * look.albedo).square().mean()), abs=0.5)


def test_what_was_told_stays(asset):
    found = estimate(asset, taken(asset, 20, 30, fov=20), elevation=30.0, fov=20.0)
    assert (found.elevation, found.fov) == (30.0, 20.0)
    assert found.azimuth == pytest.approx(20, abs=2)


def test_a_ball_is_seen_from_the_front():
    """From anywhere it looks the same: nothing speaks against the usual."""
    made = trimesh.creation.icosphere(3, 1.0)
    mesh = Mesh(torch.tensor(made.vertices).float(), torch.tensor(made.faces))
    uvs, uv_faces = unwrap(mesh, 64)
    ball = Asset("ball", mesh, uvs, uv_faces, Material(torch.full((64, 64, 3), 0.5)))
    found = estimate(ball, taken(ball, 30, 40))
    assert abs(found.azimuth) <= 10
    assert abs(found.elevation - 15) <= 10


def test_the_default_camera_is_that_of_the_training_pictures():
    camera, usual = Viewpoint(0.0, 15.0).camera, orbit(1)
    for name in ("azimuth", "elevation", "distance", "fov_y"):
        torch.testing.assert_close(getattr(camera, name), getattr(usual, name))
    far = Viewpoint(0.0, 0.0, fov=10.0).camera
    ball = [math.tan(math.asin(1 / float(c.distance))) / math.tan(float(c.fov_y) / 2) for c in (camera, far)]
    assert ball[0] == pytest.approx(ball[1], abs=1e-5)
    assert isinstance(far, Cameras)


def test_a_picture_is_placed_where_the_viewpoint_says():
    picture = torch.zeros(64, 64, 1)
    picture[28:36, 28:36] = 1
    placed = Viewpoint(0.0, 0.0, zoom=2.0, right=0.25, down=-0.5).placed(Cutout(picture.expand(-1, -1, 3), picture), 64)
    rows, columns, _ = torch.nonzero(placed.alpha > 0.5).T
    assert (rows.min(), rows.max()) == (16 - 8, 16 + 7)
    assert (columns.min(), columns.max()) == (40 - 8, 40 + 7)
    same = replace(Viewpoint(0.0, 0.0)).placed(Cutout(picture.expand(-1, -1, 3), picture), 64)
    torch.testing.assert_close(same.alpha, picture, atol=1e-5, rtol=0)
