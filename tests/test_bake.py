"""Baking: the surface under each texel in closed form, analytic colours found again, gutters filled."""

import math

import numpy as np
import pytest
import torch
import trimesh

from threed.exporters.bake import LOWEST, Look, bake, bake_material, nearest_covered, texels
from threed.exporters.report import verify
from threed.exporters.unwrap import unwrap
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.tangents import world_from_tangent

SIZE = 256


def meshed(shape):
    return Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(np.array(shape.faces)))


def waves(points, normals):
    """A colour field of slope at most 1.5 a metre."""
    del normals
    return 0.5 + 0.5 * torch.sin(3 * points + torch.tensor([0.0, 1.0, 2.0]))


def square(size):
    """Two triangles in the plane z = 0 whose layout is the part [0.25, 0.75]^2 of the texture, v down."""
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    uvs = torch.stack([0.25 + vertices[:, 0] / 2, 0.75 - vertices[:, 1] / 2], dim=-1)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    return Mesh(vertices, faces), uvs, faces, size


def sampled(texture, uvs):
    """Bilinear filtering, texel centres at +0.5."""
    size = texture.shape[0]
    x, y = (uvs * size - 0.5).clamp(0, size - 1).unbind(-1)
    column, row = x.long().clamp(max=size - 2), y.long().clamp(max=size - 2)
    s, t = (x - column)[:, None], (y - row)[:, None]
    above = texture[row, column] * (1 - s) + texture[row, column + 1] * s
    below = texture[row + 1, column] * (1 - s) + texture[row + 1, column + 1] * s
    return above * (1 - t) + below * t


def test_points_under_texel_centres_have_a_closed_form():
    mesh, uvs, uv_faces, size = square(64)
    surface = texels(mesh, uvs, uv_faces, size)
    centre = (torch.arange(size) + 0.5) / size
    inside = ((centre > 0.25) & (centre < 0.75)).float()
    assert torch.equal(surface.covered, torch.outer(inside, inside).bool())
    expected = torch.stack(torch.broadcast_tensors(2 * centre[None] - 0.5, 1.5 - 2 * centre[:, None]), dim=-1)
    torch.testing.assert_close(surface.points[:, :2], expected[surface.covered], atol=1e-5, rtol=0)
    count = len(surface.points)
    torch.testing.assert_close(surface.normals, torch.tensor([[0.0, 0, 1]]).expand(count, 3))
    torch.testing.assert_close(surface.tangents, torch.tensor([[1.0, 0, 0, 1]]).expand(count, 4))


def test_a_texel_that_is_only_grazed_is_covered():
    """A layout that ends 0.2 texels short of the centres around it still owns those texels."""
    mesh, uvs, uv_faces, size = square(64)
    grown = 0.5 + (uvs - 0.5) * (32.6 / 32)
    assert texels(mesh, grown, uv_faces, size).covered.sum() == 34**2
    thin = torch.stack([uvs[:, 0], 0.5 + (uvs[:, 1] - 0.5) * 0.5 / 32 + 0.5 / 64], dim=-1)
    assert texels(mesh, thin - 0.4 / 64, uv_faces, size).covered.sum() >= 32


@pytest.mark.parametrize("shape", [trimesh.creation.icosphere(3), trimesh.creation.torus(0.7, 0.3)])
def test_an_analytic_colour_is_found_again_on_the_surface(shape):
    mesh = meshed(shape)
    uvs, uv_faces = unwrap(mesh, SIZE)
    texture = bake(mesh, uvs, uv_faces, waves, SIZE)
    assert texture.shape == (SIZE, SIZE, 3)
    generator = torch.Generator().manual_seed(0)
    face = torch.randint(len(mesh.faces), (20000,), generator=generator)
    weights = torch.distributions.Dirichlet(torch.ones(3)).sample((1,)).new_empty(20000, 3)
    weights = torch.nn.functional.normalize(weights.exponential_(generator=generator), p=1, dim=-1)
    points = (weights[:, :, None] * mesh.corners[face]).sum(1)
    error = (sampled(texture, (weights[:, :, None] * uvs[uv_faces[face]]).sum(1)) - waves(points, None)).abs()
    texel = math.sqrt(shape.area / 0.4) / SIZE  # metres, at a layout that uses 40 % of the texture
    assert error.max() < 1.5 * 1.5 * texel
    assert error.mean() < 0.1 * 1.5 * texel


def test_normals_are_unit_and_point_outward():
    mesh = meshed(trimesh.creation.icosphere(4))
    uvs, uv_faces = unwrap(mesh, SIZE)
    seen = []

    def colour(points, normals):
        seen.append((points, normals))
        return torch.ones_like(points)

    assert torch.equal(bake(mesh, uvs, uv_faces, colour, SIZE, chunk=1000), torch.ones(SIZE, SIZE, 3))
    assert max(len(points) for points, _ in seen) == 1000
    points, normals = (torch.cat(x) for x in zip(*seen, strict=True))
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(len(normals)))
    torch.testing.assert_close(normals, torch.nn.functional.normalize(points, dim=-1), atol=0.01, rtol=0)
    assert points.norm(dim=-1).min() > 0.995


def test_chunks_change_nothing_and_colours_are_clamped():
    mesh = meshed(trimesh.creation.icosphere(2))
    uvs, uv_faces = unwrap(mesh, 64)
    bright = lambda points, normals: 3 * points + normals  # noqa: E731
    whole, pieces = (bake(mesh, uvs, uv_faces, bright, 64, chunk) for chunk in (10**6, 77))
    assert torch.equal(whole, pieces)
    assert whole.min() == 0
    assert whole.max() == 1


def test_filters_and_mip_maps_bring_in_no_foreign_colour():
    """A dark and a light half: nothing else, anywhere on the texture."""
    mesh = meshed(trimesh.creation.icosphere(3))
    uvs, uv_faces = unwrap(mesh, SIZE)
    texture = bake(mesh, uvs, uv_faces, lambda points, normals: 0.25 + 0.5 * (points[:, :1] > 0).expand(-1, 3), SIZE)
    assert set(texture.unique().tolist()) == {0.25, 0.75}


def test_dilation_repeats_the_nearest_covered_texel():
    generator = torch.Generator().manual_seed(0)
    texture, covered = torch.rand(17, 23, 3, generator=generator), torch.rand(17, 23, generator=generator) < 0.03
    filled = texture[covered][nearest_covered(covered)]
    assert torch.equal(filled[covered], texture[covered])
    sources = covered.nonzero().double()
    distance = torch.cdist(torch.cartesian_prod(torch.arange(17), torch.arange(23)).double(), sources)
    for pixel, row in zip(filled.reshape(-1, 3), distance, strict=True):
        nearest = sources[row <= row.min() + 1e-9].long()  # several, where they tie
        assert any(torch.equal(pixel, texture[y, x]) for y, x in nearest.tolist())
    with pytest.raises(ValueError, match="no texel is covered"):
        nearest_covered(torch.zeros_like(covered))


def test_the_same_input_gives_the_same_texture():
    mesh = meshed(trimesh.creation.icosphere(3))
    uvs, uv_faces = unwrap(mesh, SIZE)
    assert torch.equal(bake(mesh, uvs, uv_faces, waves, SIZE), bake(mesh, uvs, uv_faces, waves, SIZE))


def dented(points, normals):
    """All that a field can say, on a surface that ripples."""
    ripple = 0.2 * torch.sin(40 * points.roll(1, -1))
    return Look(waves(points, normals), 1.4 * waves(points, normals)[:, :2] - 0.2, 3 * (normals + ripple))


@pytest.mark.parametrize("shape", [trimesh.creation.icosphere(3), trimesh.creation.torus(0.7, 0.3)])
def test_all_fields_are_baked_at_the_same_points(shape):
    """A normal map, seen through the frames of the texels, is the field's own normals again."""
    mesh = meshed(shape)
    uvs, uv_faces = unwrap(mesh, SIZE)
    surface, asked = texels(mesh, uvs, uv_faces, SIZE), []

    def look(points, normals):
        asked.append(len(points))
        return dented(points, normals)

    material = bake_material(mesh, uvs, uv_faces, look, SIZE, chunk=5000)
    assert sum(asked) == len(surface.points)
    assert torch.equal(material.base_color, bake(mesh, uvs, uv_faces, waves, SIZE))
    said = dented(surface.points, surface.normals)
    covered = surface.covered
    assert torch.equal(material.roughness_metallic[covered], said.roughness_metallic.clamp(0, 1))
    assert said.roughness_metallic.min() < 0
    seen = world_from_tangent(material.normal[covered], surface.normals, surface.tangents)
    torch.testing.assert_close(seen, said.normal / said.normal.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0)
    assert material.normal[covered][:, :2].abs().max() > 0.1
    verify(Asset("it", mesh, uvs, uv_faces, material))


def test_smooth_normals_make_a_flat_map():
    mesh = meshed(trimesh.creation.icosphere(3))
    uvs, uv_faces = unwrap(mesh, 64)
    material = bake_material(mesh, uvs, uv_faces, lambda p, n: Look(p, normal=n), 64)
    torch.testing.assert_close(material.normal, torch.tensor([0.0, 0, 1]).expand(64, 64, 3))
    assert material.roughness_metallic is None


def test_a_normal_map_is_upright_and_never_points_inward():
    """Right in the world is red on the square, up is green; what looks back is raised until it grazes."""
    mesh, uvs, uv_faces, size = square(64)
    for told, expected in (((0.6, 0.0, 0.8), (0.6, 0.0, 0.8)), ((0.0, 0.6, 0.8), (0.0, 0.6, 0.8))):
        look = lambda p, n, told=told: Look(p, normal=torch.tensor(told).expand_as(p))  # noqa: E731
        found = bake_material(mesh, uvs, uv_faces, look, size).normal
        torch.testing.assert_close(found, torch.tensor(expected).expand(size, size, 3))
    inward = lambda p, n: Look(p, normal=torch.tensor([1.0, 0, -1]).expand_as(p))  # noqa: E731
    found = bake_material(mesh, uvs, uv_faces, inward, size).normal
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(size, size))
    assert 0 < found[..., 2].min() <= found[..., 2].max() < 2 * LOWEST
