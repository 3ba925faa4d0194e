"""Materials with all textures: written and read back to the byte, foreign files made sense of, mistakes named."""

import io
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial

from threed.exporters import export, glb, report
from threed.exporters.unwrap import unwrap
from threed.renderers import gltf
from threed.renderers import read as reading
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import read

FLAT = (128, 128, 255)


def random_material(height, width):
    generator = torch.Generator().manual_seed(0)
    colour, shine = torch.rand(height, width, 5, generator=generator).split([3, 2], dim=-1)
    normal = torch.randn(height, width, 3, generator=generator) * torch.tensor([1, 1, 0]) + torch.tensor([0.0, 0, 1])
    return Material(colour, roughness_metallic=shine, normal=torch.nn.functional.normalize(normal, dim=-1))


@pytest.fixture(scope="module")
def asset():
    shape = trimesh.creation.icosphere(2)
    mesh = Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(np.array(shape.faces)))
    return Asset("barrel", mesh, *unwrap(mesh, 64), random_material(64, 64))


def picture(*rows):
    return Image.fromarray(np.array(rows, np.uint8))


def noise(size, seed=0, **kwargs):
    return picture(*np.random.default_rng(seed).integers(0, 256, (size, size, 3), **kwargs))


def sheet(x=0.0, uv_scale=1.0, **material):
    """A square that faces +Z, its lower left corner at x; trimesh's v runs up."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    visual = TextureVisuals(corners[:, :2] * uv_scale, material=PBRMaterial(**material))
    return trimesh.Trimesh(corners + np.array([x, 0, 0]), [[0, 1, 2], [0, 2, 3]], process=False, visual=visual)


def loaded(tmp_path, *meshes):
    trimesh.Scene(meshes).export(tmp_path / "it.glb")
    return read(tmp_path / "it.glb")


def at(asset, point, texture):
    """The texel of the picture that lies under a point of a sheet."""
    corner = asset.mesh.corners[..., :2]
    for triangle, uv in zip(corner, asset.uvs[asset.uv_faces], strict=True):
        s, t = torch.linalg.solve((triangle[1:] - triangle[0]).T, torch.tensor(point) - triangle[0])
        if s >= 0 and t >= 0 and s + t <= 1:
            u, v = uv[0] + s * (uv[1] - uv[0]) + t * (uv[2] - uv[0])
            return texture[int(v * texture.shape[0]), int(u * texture.shape[1])]
    raise AssertionError(f"no sheet under {point}")


def pictures(data):
    """The decoded images of a GLB."""
    size = struct.unpack("<I", data[12:16])[0]
    tree, binary = json.loads(data[20 : 20 + size]), data[28 + size :]
    views = [tree["bufferViews"][image["bufferView"]] for image in tree["images"]]
    return [np.asarray(Image.open(io.BytesIO(binary[v["byteOffset"] :][: v["byteLength"]]))) for v in views]


def test_what_is_written_is_read_and_written_again(asset, tmp_path):
    export(asset, tmp_path / "barrel.glb")
    again = read(tmp_path / "barrel.glb")
    report.verify(again)
    for name in ("base_color", "roughness_metallic"):
        found, told = getattr(again.material, name), getattr(asset.material, name)
        assert torch.equal((found * 255).round(), (told * 255).round())
    torch.testing.assert_close(again.material.normal, asset.material.normal, atol=1 / 255 + 1e-6, rtol=0)
    first, second = (pictures(glb.encode(x)) for x in (asset, again))
    assert len(first) == 3
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    export(again, tmp_path / "again.glb")
    assert torch.equal(read(tmp_path / "again.glb").material.normal, again.material.normal)


def test_numbers_without_a_texture_are_kept(asset, tmp_path):
    plain = replace(asset, material=Material(asset.material.base_color, roughness=0.75, metallic=0.25))
    export(plain, tmp_path / "plain.glb")
    material = read(tmp_path / "plain.glb").material
    assert (material.roughness, material.metallic) == (0.75, 0.25)
    assert material.roughness_metallic is None
    assert material.normal is None


def test_factors_multiply_and_are_one_where_gltf_leaves_them_out(tmp_path):
    shine = noise(8)
    told = torch.from_numpy(np.array(shine)[..., 1:]) / 255
    for given, factors in (({}, (1, 1)), ({"roughnessFactor": 0.5, "metallicFactor": 0.25}, (0.5, 0.25))):
        asset = loaded(tmp_path, sheet(baseColorTexture=noise(8, 1), metallicRoughnessTexture=shine, **given))
        torch.testing.assert_close(asset.material.roughness_metallic, told * torch.tensor(factors))
    assert loaded(tmp_path, sheet(baseColorTexture=noise(8, 1))).material.metallic == 1
    assert loaded(tmp_path, sheet(baseColorTexture=noise(8, 1), metallicFactor=7.0)).material.metallic == 1


def test_textures_take_the_size_of_the_base_colour(tmp_path):
    asset = loaded(
        tmp_path, sheet(baseColorTexture=noise(8), normalTexture=noise(32), metallicRoughnessTexture=noise(4))
    )
    assert asset.material.base_color.shape == asset.material.normal.shape == (8, 8, 3)
    assert asset.material.roughness_metallic.shape == (8, 8, 2)
    report.verify(asset, watertight=False)


def test_a_plain_colour_under_a_normal_map_keeps_its_layout(tmp_path):
    red = np.array([255, 0, 0, 255], np.uint8)
    asset = loaded(tmp_path, sheet(baseColorFactor=red, normalTexture=picture([FLAT, (218, 128, 218)])))
    assert (asset.material.base_color == torch.tensor([1.0, 0, 0])).all()
    for x, slope in ((0.25, 0.0), (0.75, 0.707)):
        assert at(asset, (x, 0.4), asset.material.normal)[0].item() == pytest.approx(slope, abs=0.01)


def test_normals_that_are_none_are_mended(tmp_path):
    """Half a length is stretched, black and what looks inward is flat; rounding alone is left."""
    rows = picture([(192, 128, 192), (0, 0, 0), (255, 128, 100), (204, 189, 209)])
    normal = loaded(tmp_path, sheet(baseColorTexture=noise(1).resize((4, 1)), normalTexture=rows)).material.normal[0]
    torch.testing.assert_close(normal[0], torch.tensor([0.706, 0.004, 0.706]), atol=0.01, rtol=0)
    assert normal[1].tolist() == normal[2].tolist() == [0, 0, 1]
    torch.testing.assert_close(normal[3], torch.tensor([204, 189, 209]) / 127.5 - 1)
    assert normal[3].norm() != 1


def test_several_materials_share_every_texture(tmp_path):
    """A shiny sheet, a bumpy tiled one, and a plain box: each keeps its own, under one layout."""
    coin = {"baseColorTexture": noise(8), "metallicRoughnessTexture": picture([(0, 51, 255)]), "metallicFactor": 0.8}
    bark = {"baseColorTexture": noise(8, 1), "normalTexture": picture([(218, 128, 218)]), "roughnessFactor": 0.6}
    box = trimesh.creation.box((1, 1, 1)).apply_translation([9, 0, 0])
    box.visual = TextureVisuals(material=PBRMaterial(roughnessFactor=0.4, metallicFactor=0.0))
    asset = loaded(tmp_path, sheet(0, **coin), sheet(2, uv_scale=3.0, **bark), box)
    report.verify(asset, watertight=False)
    material = asset.material
    flat, front = ((asset.mesh.corners[:, :, 2] == z).all(1) for z in (0, 0.5))
    assert (flat.sum(), front.sum()) == (4, 2)
    sheets = replace(asset, mesh=Mesh(asset.mesh.vertices, asset.mesh.faces[flat]), uv_faces=asset.uv_faces[flat])
    for x, shine, slope in ((0.5, (0.2, 0.8), 0.0), (2.5, (0.6, 1.0), 0.71)):
        torch.testing.assert_close(at(sheets, (x, 0.3), material.roughness_metallic), torch.tensor(shine))
        assert at(sheets, (x, 0.3), material.normal)[0].item() == pytest.approx(slope, abs=0.01)
    uv = asset.uvs[asset.uv_faces[front]].reshape(-1, 2)
    height, width = material.base_color.shape[:2]
    texels = material.roughness_metallic[(uv[:, 1] * height).long(), (uv[:, 0] * width).long()]
    torch.testing.assert_close(texels, torch.tensor([0.4, 0.0]).expand_as(texels))


def test_different_numbers_become_a_texture(tmp_path):
    red, blue = (np.array(colour, np.uint8) for colour in ((255, 0, 0, 255), (0, 0, 255, 255)))
    first = sheet(0, baseColorFactor=red, roughnessFactor=0.2, metallicFactor=1.0)
    asset = loaded(tmp_path, first, sheet(2, baseColorFactor=blue, roughnessFactor=0.9, metallicFactor=0.0))
    for x, shine in ((0.5, (0.2, 1.0)), (2.5, (0.9, 0.0))):
        torch.testing.assert_close(at(asset, (x, 0.3), asset.material.roughness_metallic), torch.tensor(shine))
    assert asset.material.normal is None


def test_beside_vertex_colours_the_mean_of_the_shine_is_kept(tmp_path, monkeypatch):
    def coloured(path):
        found = gltf.document(path)
        green = (replace(each, colours=np.tile([0.0, 1, 0], (len(each.vertices), 1))) for each in found.primitives)
        return replace(found, primitives=tuple(green))

    monkeypatch.setitem(reading.FORMATS, ".glb", coloured)
    shine = picture([(0, 0, 255), (0, 102, 255)])
    material = loaded(tmp_path, sheet(metallicRoughnessTexture=shine, normalTexture=noise(2))).material
    assert (material.base_color == torch.tensor([0.0, 1, 0])).all()
    texels = material.roughness_metallic
    torch.testing.assert_close(texels, torch.tensor([0.2, 1]).expand_as(texels))
    torch.testing.assert_close(material.normal, torch.tensor([0.0, 0, 1]).expand_as(material.normal))


def test_colours_without_a_material_are_rough_and_not_metallic(tmp_path):
    shape = sheet()
    shape.visual = ColorVisuals(shape, vertex_colors=np.tile([0, 255, 0, 255], (4, 1)))
    material = loaded(tmp_path, shape).material
    assert (material.roughness, material.metallic, material.roughness_metallic) == (1, 0, None)


def test_large_textures_are_reduced(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_TEXELS", 16)
    asset = loaded(tmp_path, sheet(normalTexture=noise(64), metallicRoughnessTexture=noise(32)))
    assert asset.material.normal.shape == (16, 16, 3)
    assert asset.material.roughness_metallic.shape == (16, 16, 2)
    report.verify(asset, watertight=False)


def test_a_broken_picture_is_named_with_a_remedy(asset, tmp_path):
    path = tmp_path / "cut.glb"
    export(asset, path)
    data = bytearray(path.read_bytes())
    size = struct.unpack("<I", data[12:16])[0]
    views = json.loads(data[20 : 20 + size])["bufferViews"]
    start = 28 + size + views[-1]["byteOffset"]
    data[start + 60 : start + views[-1]["byteLength"]] = bytes(views[-1]["byteLength"] - 60)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cut.glb.*cannot be parsed .*image.*; export it again"):
        read(path)


def test_verify_names_what_is_wrong_with_a_material(asset):
    report.verify(asset)
    good = asset.material
    flat = torch.tensor([0.0, 0, 1]).expand(64, 64, 3)
    wrong = {
        "has roughness 1.5; use a number within 0 and 1": replace(good, roughness=1.5),
        "has metallic -0.1; use": replace(good, metallic=-0.1),
        "has metallic nan; use": replace(good, metallic=float("nan")),
        "not finite": replace(good, normal=flat * float("inf")),
        "roughness and metallic from 0 to 1.5, not within 0 and 1": replace(
            good, roughness_metallic=torch.tensor([0, 1.5]).expand(64, 64, 2)
        ),
        "normal map of lengths from 1 to 1.05, not 1; normalise": replace(
            good, normal=torch.cat([flat[:32], 1.05 * flat[32:]])
        ),
        r"points into the surface \(z -0.8\); write it in tangent space": replace(
            good, normal=torch.tensor([0.6, 0, -0.8]).expand(64, 64, 3)
        ),
    }
    for message, material in wrong.items():
        with pytest.raises(ValueError, match=f"'barrel' .*{message}"):
            report.verify(replace(asset, material=material))


@pytest.mark.parametrize(("name", "shape"), [("roughness_metallic", (64, 64, 3)), ("normal", (32, 64, 3))])
def test_verify_names_shapes_that_do_not_fit(asset, name, shape):
    material = replace(asset.material)
    object.__setattr__(material, name, torch.ones(shape))  # past the annotations, which the tests enforce
    with pytest.raises(ValueError, match=rf"a {name} texture of shape \({shape[0]}, 64, 3\), not \(64, 64, .\); bake"):
        report.verify(replace(asset, material=material))
