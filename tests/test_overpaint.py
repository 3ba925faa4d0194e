"""Textures drawn over: under a prior that knows the object in other colours, the texture becomes those colours."""

import dataclasses
import math

import pytest
import tiny_prior
import torch
import trimesh

from threed.distill.embedded import Embedded
from threed.distill.gaussian import ViewOracle
from threed.distill.prior import Pictures, cosine
from threed.exporters.bake import bake, texels
from threed.exporters.unwrap import unwrap
from threed.overpaint import Overpaint, drawn_over, overpaint
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Material, Mesh
from threed.training.views import continued

GREY, SIZE = 0.5, 256


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def wanted(points):
    """What the prior believes in."""
    return torch.stack([0.5 + 0.4 * points[:, 0], 0.5 - 0.4 * points[:, 2], torch.full_like(points[:, 0], 0.3)], dim=1)


@pytest.fixture(scope="module")
def box():
    """A grey box whose farthest corner is at radius 1."""
    made = trimesh.creation.box((1.0, 1.2, 0.8)).subdivide()
    mesh = Mesh(torch.tensor(made.vertices).float(), torch.tensor(made.faces))
    mesh = mesh.with_vertices(mesh.vertices / mesh.vertices.norm(dim=-1).max())
    uvs, uv_faces = unwrap(mesh, SIZE)
    grey = bake(mesh, uvs, uv_faces, lambda points, normals: torch.full_like(points, GREY), SIZE)
    return Asset("box", mesh, uvs, uv_faces, Material(grey))


def oracle(asset, std, size=64):
    def picture(cameras, kinds, background, size):
        render = surface.render(asset.mesh, cameras, size, size, 4, albedo=wanted)
        return Pictures(cameras, kinds, background).of(render)

    return ViewOracle(picture, std=std, image_size=size)


def test_the_texture_becomes_what_the_prior_believes_in(box):
    """Where a camera looks squarely at it; the bottom, which none sees, keeps its own colour to the bit."""
    painted = overpaint(box, oracle(box, std=1e-3), "a box", "", Overpaint(), seeded())
    assert painted.mesh is box.mesh
    assert torch.equal(painted.uvs, box.uvs)
    ground = texels(box.mesh, box.uvs, box.uv_faces, SIZE)
    found = painted.material.base_color[ground.covered]
    across, height, deep = (ground.points / box.mesh.vertices.max(dim=0).values).unbind(1)
    bottom = (height < -0.999) & (torch.maximum(across.abs(), deep.abs()) < 0.7)
    assert bottom.sum() > 1000
    assert torch.equal(found[bottom], box.material.base_color[ground.covered][bottom])
    inner = height.abs() < 0.7
    error = (found - wanted(ground.points)).abs().max(dim=1).values
    assert error[inner].mean() < 0.01
    assert error[inner].quantile(0.95) < 0.03
    assert error[height > 0.999].mean() < 0.05


def test_how_much_remains_is_what_the_first_time_says(box):
    """Under a Gaussian prior the flow keeps (z - alpha mean) / sqrt(alpha^2 std^2 + sigma^2), whatever the noise."""
    cameras = orbit(4)
    render = surface.render(box, cameras, 64, 64, 4)
    aim = surface.render(box.mesh, cameras, 64, 64, 4, albedo=wanted).albedo
    inside = (render.alpha == 1).expand_as(aim)

    for first, std in ((0.1, 0.1), (0.3, 0.4), (0.8, 0.1)):
        how = Overpaint(first=first, steps=60, scale=1.0)
        drawn = drawn_over(render, cameras, oracle(box, std), ("", ""), how, seeded())
        before, after = (render.albedo - aim)[inside], (drawn - aim)[inside]
        alpha, sigma = (a.item() for a in cosine(torch.tensor([first])))
        left = (before * after).mean() / before.square().mean()  # in which the noise has no part
        assert left.item() == pytest.approx(alpha * std / math.hypot(alpha * std, sigma), abs=0.02)


def test_nothing_of_the_background_is_painted(box):
    render = surface.render(box, orbit(4), 64, 64, 4)
    drawn = drawn_over(render, orbit(4), oracle(box, std=0.01), ("", ""), Overpaint(), seeded())
    assert not drawn[(render.alpha == 0).expand_as(drawn)].any()
    assert (drawn <= render.alpha).all()


def test_normals_and_mask_lead_a_prior_that_takes_them(box, tmp_path, monkeypatch):
    tiny_prior.write(tmp_path)
    plain = Embedded.load(tmp_path, dtype=torch.float32)
    grown = continued(plain)
    asked = []
    whole = Embedded.conditions

    def conditions(self, *arguments, **named):
        asked.append(named.get("geometry"))
        return whole(self, *arguments, **named)

    monkeypatch.setattr(Embedded, "conditions", conditions)
    render = surface.render(box, orbit(4), 16, 16, 4)
    how = dataclasses.replace(Overpaint(), steps=2)
    for prior in (plain, grown):
        drawn = drawn_over(render, orbit(4), prior, ("a box", ""), how, seeded())
        assert torch.equal(drawn, drawn_over(render, orbit(4), prior, ("a box", ""), how, seeded()))
    assert asked[0] is None
    normal, mask = asked[2].split([3, 1], dim=1)
    assert torch.equal(mask.movedim(1, -1), render.alpha)
    inside = mask[:, 0] == 1
    torch.testing.assert_close(normal.norm(dim=1)[inside], torch.ones(int(inside.sum())))
    assert not normal.movedim(1, -1)[(render.alpha == 0).expand_as(render.normal)].any()
