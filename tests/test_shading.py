"""Materials under a light, pixel by pixel: furnaces, flat and tilted normal maps, textures against numbers."""

import math
from dataclasses import replace

import pytest
import torch
import trimesh
from torch.nn import functional

from threed.exporters.unwrap import unwrap
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.environment import Environment
from threed.renderers.light import Headlight, Points, furnace
from threed.renderers.mesh import Asset, Material, Mesh

SIZE = 32


def ball():
    made = trimesh.creation.icosphere(3, 0.9)
    mesh = Mesh(torch.tensor(made.vertices).float(), torch.tensor(made.faces))
    return Asset("ball", mesh, *unwrap(mesh, 128), Material(torch.full((8, 8, 3), 1.0)))


def square(normal=None, roughness_metallic=None):
    """One metre that faces +Z, its picture upright: u along +X, v downward."""
    vertices = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    uvs = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    colour = torch.tensor([0.7, 0.5, 0.3]).expand(4, 4, 3)
    return Asset("square", Mesh(vertices, faces), uvs, faces, Material(colour, 0.4, 0.6, roughness_metallic, normal))


def sky():
    """Different light from everywhere."""
    return Environment.from_texels(torch.rand(16, 32, 3, generator=torch.Generator().manual_seed(0)) ** 2 * 2)


def shown(asset, light, cameras=None, **options):
    cameras = cameras or orbit(1, elevation=0.0)
    return surface.render(asset, cameras, SIZE, SIZE, supersample=1, light=light, **options)


@pytest.mark.parametrize(("roughness", "metallic"), [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_a_white_ball_in_a_white_furnace_cannot_be_seen(roughness, metallic):
    """Dielectrics lose no light, and neither does a mirror."""
    asset = replace(ball(), material=Material(torch.ones(8, 8, 3), roughness, metallic))
    render = shown(asset, furnace(torch.full((3,), 0.5)))
    inside = render.alpha[..., 0] == 1
    grey = render.rgb[inside]
    expected = 1.055 * 0.5 ** (1 / 2.4) - 0.055
    assert (grey - expected).abs().max() < (0.02 if metallic else 2e-3)
    assert torch.equal(render.albedo[inside], torch.ones_like(grey))


def test_every_pixel_is_what_the_light_says_of_its_point():
    """By hand, from the square's own normal, the ray, and the material's numbers."""
    camera = Cameras(*(torch.tensor([x]) for x in (0.3, 0.2, 2.0, math.radians(40))))
    asset, light = square(), sky()
    render = shown(asset, light, camera)
    inside = render.alpha[0, ..., 0] == 1
    _, directions = camera.rays(SIZE, SIZE)
    count = int(inside.sum())
    points = Points(
        torch.tensor([0.0, 0, 1]).expand(count, 3),
        -directions[0][inside],
        torch.tensor([0.7, 0.5, 0.3]).expand(count, 3),
        torch.full((count, 1), 0.4),
        torch.full((count, 1), 0.6),
    )
    torch.testing.assert_close(render.rgb[0][inside], light.shade(points), rtol=0, atol=1e-4)


def test_textures_stand_for_numbers():
    numbers = torch.tensor([0.4, 0.6]).expand(4, 4, 2)
    flat = torch.tensor([0.0, 0, 1]).expand(4, 4, 3)
    plain, textured = shown(square(), sky()), shown(square(flat, numbers), sky())
    torch.testing.assert_close(textured.rgb, plain.rgb, rtol=0, atol=1e-5)
    smooth = shown(ball(), sky(), smooth=True)
    bumped = shown(replace(ball(), material=replace(ball().material, normal=flat)), sky())
    torch.testing.assert_close(bumped.rgb, smooth.rgb, rtol=0, atol=1e-4)


@pytest.mark.parametrize("behind", [False, True])
def test_a_tilted_normal_map_tilts_the_surface(behind):
    """x of the map is +X of the square, y is +Y; seen from behind the surface is inside out."""
    tilted = functional.normalize(torch.tensor([0.5, -0.3, 1.0]), dim=0)
    camera = orbit(2, elevation=0.0)[int(behind) : int(behind) + 1]
    render = shown(square(tilted.expand(4, 4, 3)), sky(), camera)
    inside = render.alpha[0, ..., 0] == 1
    _, directions = camera.rays(SIZE, SIZE)
    count = int(inside.sum())
    assert count > 100
    points = Points(
        (-tilted if behind else tilted).expand(count, 3),
        -directions[0][inside],
        torch.tensor([0.7, 0.5, 0.3]).expand(count, 3),
        torch.full((count, 1), 0.4),
        torch.full((count, 1), 0.6),
    )
    torch.testing.assert_close(render.rgb[0][inside], sky().shade(points), rtol=0, atol=1e-4)
    flat = shown(square(), sky(), camera)
    assert torch.equal(render.normal, flat.normal)  # the pictures of normals are those of the surface


def test_a_headlight_is_what_there_is_without_a_light():
    camera = orbit(3)[1:2]
    asset = replace(ball(), material=Material(torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0))))
    plain, same = shown(asset, None, camera), shown(asset, Headlight(camera.rotation[0]), camera)
    torch.testing.assert_close(same.rgb, plain.rgb, rtol=0, atol=1e-5)


def test_gradients_reach_every_texture():
    """Against finite differences of the mean brightness, in the direction of one random change of each."""
    generator = torch.Generator().manual_seed(0)
    colour, gloss = torch.rand(4, 4, 3, generator=generator), torch.rand(4, 4, 2, generator=generator) * 0.8 + 0.1
    bumps = functional.normalize(torch.randn(4, 4, 3, generator=generator) * 0.2 + torch.tensor([0.0, 0, 1]), dim=-1)
    textures = [each.double() for each in (colour, gloss, bumps)]
    light = furnace(torch.ones(3, dtype=torch.float64))
    light = replace(light, coefficients=light.coefficients + 0.1 * torch.rand(9, 3, generator=generator).double())
    camera = Cameras(*(torch.tensor([x], dtype=torch.float64) for x in (0.3, 0.2, 2.0, math.radians(40))))

    def brightness(*textures):
        base, shine, normal = textures
        asset = square()
        mesh = asset.mesh.with_vertices(asset.mesh.vertices.double())
        material = Material(base, roughness_metallic=shine, normal=normal)
        asset = replace(asset, mesh=mesh, uvs=asset.uvs.double(), material=material)
        return (0.3 * surface.render(asset, camera, 12, 12, supersample=1, light=light).rgb).mean()

    changes = [torch.randn(each.shape, generator=generator).double() for each in textures]
    wanted = [each.clone().requires_grad_() for each in textures]
    slopes = torch.autograd.grad(brightness(*wanted), wanted)
    for index, (slope, change) in enumerate(zip(slopes, changes, strict=True)):
        ends = []
        for sign in (1, -1):
            moved = [*textures]
            moved[index] = textures[index] + sign * 1e-4 * change
            ends.append(brightness(*moved).item())
        assert (slope * change).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=0.02, abs=1e-7)
