"""Surface rendering and mesh files: closed forms, exact cubes, and round trips through files."""

import math
import re

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch.nn import functional
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from threed.exporters import export
from threed.renderers import gltf, light, surface
from threed.renderers import read as reading
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import normalised, read


def mesh_from(shape, dtype=torch.float32):
    return Mesh(torch.tensor(np.array(shape.vertices), dtype=dtype), torch.tensor(np.array(shape.faces)))


def front(distance, fov_y, dtype=torch.float32):
    return Cameras(*torch.tensor([[0.0], [0.0], [distance], [fov_y]], dtype=dtype))


def coloured(mesh, colour):
    """An asset of one plain colour."""
    picture = torch.tensor(colour, dtype=mesh.vertices.dtype).expand(4, 4, 3)
    uv_faces = torch.zeros_like(mesh.faces)
    return Asset("thing", mesh, mesh.vertices.new_full((1, 2), 0.5), uv_faces, Material(picture))


def test_a_cube_from_the_front_is_exact():
    """At 90 degrees and distance 1.5 the front of a unit cube covers the middle quarter of the picture exactly."""
    colour = (64 / 255, 128 / 255, 200 / 255)
    asset = coloured(mesh_from(trimesh.creation.box((1, 1, 1)), torch.float64), colour)
    render = surface.render(asset, front(1.5, math.pi / 2, torch.float64), 32, 32)
    alpha = torch.zeros(1, 32, 32, 1, dtype=torch.float64)
    alpha[:, 8:24, 8:24] = 1
    assert torch.equal(render.alpha, alpha)
    assert torch.equal((render.albedo * 255).round(), alpha * torch.tensor([64.0, 128.0, 200.0]))
    torch.testing.assert_close(render.normal, alpha * torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    lit = light.AMBIENT + (1 - light.AMBIENT) / math.sqrt(sum(x * x for x in light.TOWARD_LIGHT))
    torch.testing.assert_close(render.rgb, render.albedo * lit)
    secant = 1 / front(1.5, math.pi / 2, torch.float64).rays(64, 64)[1][..., 2:].neg()
    expected = functional.avg_pool2d(secant.movedim(-1, 1), 2).movedim(1, -1) * alpha
    torch.testing.assert_close(render.depth, expected)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160)])
def test_a_sphere_has_the_area_and_the_normals_of_its_closed_form(height, width):
    """Its outline is the cone with sin = r/d around the axis: a circle of radius tan, in units of half the height."""
    distance, fov_y = 3.1, math.radians(40)
    mesh = mesh_from(trimesh.creation.icosphere(5))
    cameras = Cameras(*torch.tensor([[1.1], [0.4], [distance], [fov_y]]))
    render = surface.render(mesh, cameras, height, width, smooth=True)
    radius = height / 2 / math.tan(fov_y / 2) / math.sqrt(distance**2 - 1)
    assert render.alpha.sum().item() == pytest.approx(math.pi * radius**2, rel=2e-3)

    origin, direction = cameras.rays(height, width)
    along = -(origin * direction).sum(-1, keepdim=True)
    depth = along - (along**2 - distance**2 + 1).clamp(min=0).sqrt()
    inner = (render.alpha == 1) & (along**2 - distance**2 + 1 > 0.05)
    normal = (origin + depth * direction) @ cameras.rotation[0]
    assert inner.sum() > 0.8 * math.pi * radius**2
    torch.testing.assert_close(render.depth[inner], depth[inner], atol=4e-3, rtol=0)
    torch.testing.assert_close(
        render.normal[inner.expand_as(normal)], normal[inner.expand_as(normal)], atol=5e-3, rtol=0
    )


def test_supersampling_is_a_box_filter():
    asset = coloured(mesh_from(trimesh.creation.icosphere(2)), (0.2, 0.5, 0.9))
    fine = surface.render(asset, orbit(2), 60, 36, supersample=1)
    coarse = surface.render(asset, orbit(2), 20, 12, supersample=3)
    for name in ("rgb", "albedo", "alpha", "depth", "normal"):
        pooled = functional.avg_pool2d(getattr(fine, name).movedim(-1, 1), 3).movedim(1, -1)
        torch.testing.assert_close(getattr(coarse, name), pooled)


@pytest.mark.parametrize("smooth", [False, True])
def test_surfaces_seen_from_behind_turn_their_normals(smooth):
    mesh = mesh_from(trimesh.creation.icosphere(2))
    inside_out = Mesh(mesh.vertices, mesh.faces.flip(1))
    expected, found = (surface.render(m, orbit(3), 24, 24, smooth=smooth) for m in (mesh, inside_out))
    torch.testing.assert_close(found.normal, expected.normal)
    assert expected.normal[expected.alpha[..., 0] == 1][:, 2].min() > 0


def test_the_texture_gets_the_gradient_of_what_is_seen():
    """Bilinear weights sum to one, so every covered sample hands its whole share back to the texture."""
    asset = coloured(mesh_from(trimesh.creation.box((1, 1, 1))), (0.5, 0.5, 0.5))
    picture = torch.full((4, 4, 3), 0.5, requires_grad=True)
    asset = Asset("box", asset.mesh, asset.uvs, asset.uv_faces, Material(picture))
    render = surface.render(asset, orbit(2), 16, 16)
    render.albedo[..., 1].sum().backward()
    assert picture.grad is not None
    torch.testing.assert_close(picture.grad.sum((0, 1)), torch.tensor([0.0, render.alpha.sum().item(), 0.0]))


def quadrants(size=8):
    """Red and green above, blue and white below."""
    picture = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    picture[:half, :half, 0], picture[:half, half:, 1], picture[half:, :half, 2] = 255, 255, 255
    picture[half:, half:] = 255
    return picture


def poster(picture, uv_scale=1.0):
    """A square that faces +Z, 2 metres wide, with an upright picture; trimesh's v runs up."""
    vertices = [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float) * uv_scale
    material = PBRMaterial(baseColorTexture=Image.fromarray(picture), roughnessFactor=0.75, metallicFactor=0.25)
    return trimesh.Trimesh(
        vertices, [[0, 1, 2], [0, 2, 3]], process=False, visual=TextureVisuals(uv, material=material)
    )


def seen_from_front(asset, height=1.0):
    """The albedo of a poster that fills a 16 x 16 picture, as bytes."""
    render = surface.render(asset, front(height, math.pi / 2), 16, 16)
    return (render.albedo[0] * 255).round().int()


def corner_colours(picture):
    return [picture[row, column].tolist() for row, column in ((2, 2), (2, 13), (13, 2), (13, 13))]


UPRIGHT = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


def test_a_textured_glb_is_read_whole_and_upright(tmp_path):
    path = tmp_path / "poster.glb"
    poster(quadrants()).export(path)
    asset = read(path)
    assert asset.name == "geometry_0"  # as trimesh calls it
    assert torch.equal((asset.material.base_color * 255).byte(), torch.from_numpy(quadrants()))
    assert (asset.material.roughness, asset.material.metallic) == (0.75, 0.25)
    assert len(asset.mesh.vertices) == 4
    assert corner_colours(seen_from_front(asset)) == UPRIGHT


@pytest.mark.parametrize("suffix", ["glb", "gltf", "obj"])
def test_what_the_exporters_write_is_read_back(tmp_path, suffix):
    sphere = mesh_from(trimesh.creation.icosphere(1))
    uvs = torch.rand(len(sphere.faces) * 3, 2, generator=torch.Generator().manual_seed(0))
    picture = torch.randint(0, 256, (16, 8, 3), generator=torch.Generator().manual_seed(1)) / 255
    asset = Asset("ball", sphere, uvs, torch.arange(len(uvs)).view(-1, 3), Material(picture))
    path = tmp_path / f"ball.{suffix}"
    export(asset, path)
    again = read(path)
    assert len(again.mesh.vertices) == len(sphere.vertices)
    assert torch.equal((again.material.base_color * 255).round(), (picture * 255).round())
    torch.testing.assert_close(again.mesh.corners, sphere.corners, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.uvs[again.uv_faces], uvs[asset.uv_faces], atol=1e-5, rtol=0)


def test_repeating_textures_are_laid_out(tmp_path):
    path = tmp_path / "tiles.glb"
    poster(quadrants(), uv_scale=2.0).export(path)
    asset = read(path)
    assert asset.uvs.min() >= 0
    assert asset.uvs.max() <= 1
    picture = seen_from_front(asset)
    assert [picture[row, column].tolist() for row, column in ((1, 1), (1, 6), (6, 1), (6, 6))] == UPRIGHT
    assert torch.equal(picture[1:7, 1:7], picture[9:15, 9:15])


def test_several_materials_share_one_texture(tmp_path):
    """Factors are linear in glTF: 55 of 255 is the display byte 128; node transforms are applied."""
    plain = trimesh.creation.box((1, 1, 1))
    plain.visual = TextureVisuals(material=PBRMaterial(baseColorFactor=np.array([1.0, 55 / 255, 0.0, 1.0])))
    scene = trimesh.Scene()
    scene.add_geometry(poster(quadrants()), transform=trimesh.transformations.scale_matrix(0.5))
    scene.add_geometry(plain, transform=trimesh.transformations.translation_matrix([0, 0, -0.6]))
    path = tmp_path / "both.glb"
    scene.export(path)
    asset = read(path)
    assert len(asset.mesh.faces) == 14
    picture = seen_from_front(asset)  # the poster, half as large, hides the box behind it
    assert [picture[row, column].tolist() for row, column in ((5, 5), (5, 10), (10, 5), (10, 10))] == UPRIGHT
    assert picture[:4].max() == 0
    side = surface.render(asset, orbit(4)[1:2], 16, 16).albedo[0]
    assert (side[8, 12] * 255).round().tolist() == [255, 128, 0]


def test_vertex_colours_become_a_palette(tmp_path):
    shape = trimesh.creation.box((2, 2, 0.001))
    shape.visual = trimesh.visual.ColorVisuals(shape, vertex_colors=np.tile([0, 255, 0, 255], (8, 1)))
    path = tmp_path / "green.glb"
    shape.export(path)
    assert seen_from_front(read(path), height=1.0005)[8, 8].tolist() == [0, 255, 0]


def test_normalised_touches_the_unit_sphere():
    mesh = normalised(
        Mesh(torch.tensor([[1.0, 2.0, 3.0], [5.0, 2.0, 3.0], [1.0, 5.0, 3.0]]), torch.tensor([[0, 1, 2]]))
    )
    assert mesh.vertices.norm(dim=-1).max().item() == pytest.approx(1)
    torch.testing.assert_close(mesh.vertices.amin(0), -mesh.vertices.amax(0))
    with pytest.raises(ValueError, match="single point; export it again"):
        normalised(Mesh(torch.ones(3, 3), torch.tensor([[0, 1, 2]])))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.fbx", b"", "use one of .glb, .gltf, .obj, .ply, .stl, .usdz"),
        ("a.glb", None, "there is no file"),
        ("a.glb", b"not a mesh at all", "cannot be parsed"),
        ("a.gltf", b"{", "cannot be parsed"),
        ("a.obj", b"", "export"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "export"),
        ("a.obj", b"v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "not finite; export it again"),
    ],
)
def test_unusable_files_are_named_with_a_remedy(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(path)
    assert name in str(caught.value)


def test_files_and_meshes_that_are_too_large_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "poster.glb"
    poster(quadrants()).export(path)
    monkeypatch.setattr(gltf, "MOST_FACES", 1)
    with pytest.raises(ValueError, match=r"poster.glb.*more than 1 triangles; simplify it"):
        read(path)
    monkeypatch.setattr(reading, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"poster.glb.*larger than 0 MiB; simplify it first"):
        read(path)
