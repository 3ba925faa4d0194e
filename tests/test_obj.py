"""OBJ: parsed here line by line, and read back by independent readers."""

from dataclasses import replace

import assimp_py
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from threed.exporters import export, glb, obj
from threed.exporters.unwrap import unwrap
from threed.renderers.mesh import Asset, Material, Mesh


@pytest.fixture(scope="module")
def asset():
    shape = trimesh.creation.icosphere(2)
    mesh = Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(np.array(shape.faces)))
    uvs, uv_faces = unwrap(mesh, 64)
    colour = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    return Asset("wooden barrel", mesh, uvs, uv_faces, Material(colour))


@pytest.fixture
def path(asset, tmp_path):
    export(asset, tmp_path / "barrel.obj")
    return tmp_path / "barrel.obj"


def lines(path):
    return [line.split() for line in path.read_text().splitlines()]


def corners(asset):
    """Position, UV with v up, and normal at the corners [F 3 8]."""
    uvs = asset.uvs[asset.uv_faces] * torch.tensor([1, -1]) + torch.tensor([0, 1])
    return torch.cat([asset.mesh.corners, uvs, glb.unit_normals(asset)], dim=-1).numpy()


def test_lines_hold_the_asset(asset, path):
    rows = {key: [x[1:] for x in lines(path) if x[0] == key] for key in ("v", "vt", "vn", "f")}
    v, vt, vn = (np.array(rows[key], dtype=np.float32) for key in ("v", "vt", "vn"))
    np.testing.assert_array_equal(v, asset.mesh.vertices.numpy())
    index = np.array([[corner.split("/") for corner in face] for face in rows["f"]], dtype=int) - 1
    drawn = np.concatenate([v[index[..., 0]], vt[index[..., 1]], vn[index[..., 2]]], axis=-1)
    np.testing.assert_array_equal(drawn, corners(asset))


def test_material_and_picture_share_the_name(asset, path):
    assert sorted(p.name for p in path.parent.iterdir()) == ["barrel.mtl", "barrel.obj", "barrel.png"]
    assert ["mtllib", "barrel.mtl"] in lines(path)
    assert ["o", "wooden_barrel"] in lines(path)
    assert ["usemtl", "wooden_barrel"] in lines(path)
    material = {key: values for key, *values in lines(path.with_suffix(".mtl"))}
    assert material["newmtl"] == ["wooden_barrel"]
    assert material["Kd"] == ["1", "1", "1"]
    assert material["Ks"] == ["0", "0", "0"]
    assert material["illum"] == ["1"]
    assert material["map_Kd"] == ["barrel.png"]
    pixels = np.asarray(Image.open(path.with_suffix(".png")))
    np.testing.assert_array_equal(pixels, (asset.material.base_color * 255).round().byte().numpy())


def test_trimesh_reads_the_same(asset, path):
    shape = trimesh.load(path, process=False, force="mesh")
    drawn = np.concatenate([shape.triangles, shape.visual.uv[shape.faces]], axis=-1)
    np.testing.assert_allclose(drawn, corners(asset)[..., :5], atol=1e-6)
    np.testing.assert_array_equal(
        np.asarray(shape.visual.material.image), np.asarray(Image.open(path.with_suffix(".png")))
    )


def test_assimp_reads_the_same(asset, path):
    scene = assimp_py.import_file(str(path), assimp_py.Process_Triangulate)
    (mesh,) = scene.meshes
    positions = np.array(mesh.vertices).reshape(-1, 3)
    uvs = np.array(mesh.texcoords[0]).reshape(len(positions), -1)[:, :2]
    normals = np.array(mesh.normals).reshape(-1, 3)
    drawn = np.concatenate([positions, uvs, normals], axis=1)[np.array(mesh.indices).reshape(-1, 3)]
    np.testing.assert_allclose(drawn, corners(asset), atol=1e-6)


def test_two_assets_share_a_folder(asset, path):
    export(asset, path.with_name("keg.obj"))
    assert len(list(path.parent.iterdir())) == 6
    assert ["mtllib", "keg.mtl"] in lines(path.with_name("keg.obj"))


def test_the_same_asset_gives_the_same_bytes(asset, path):
    before = [p.read_bytes() for p in sorted(path.parent.iterdir())]
    export(asset, path)
    assert [p.read_bytes() for p in sorted(path.parent.iterdir())] == before


def test_every_texture_has_a_picture_of_its_own(asset, tmp_path):
    generator = torch.Generator().manual_seed(1)
    shine, vectors = torch.rand(64, 64, 2, generator=generator), torch.randn(64, 64, 3, generator=generator)
    normal = torch.nn.functional.normalize(vectors.abs(), dim=-1)
    material = replace(asset.material, roughness_metallic=shine, normal=normal)
    export(replace(asset, material=material), tmp_path / "keg.obj")
    named = {key: values for key, *values in lines(tmp_path / "keg.mtl")}
    expected = {
        "map_Kd": ("keg.png", material.base_color),
        "map_Pr": ("keg_roughness.png", shine[..., :1].expand(-1, -1, 3)),
        "map_Pm": ("keg_metallic.png", shine[..., 1:].expand(-1, -1, 3)),
        "norm": ("keg_normal.png", (normal + 1) / 2),
    }
    for key, (name, values) in expected.items():
        assert named[key] == [name]
        pixels = np.asarray(Image.open(tmp_path / name))
        np.testing.assert_array_equal(pixels, (values * 255).round().byte().numpy())
    assert len(list(tmp_path.iterdir())) == 2 + len(expected)
    scene = trimesh.load(tmp_path / "keg.obj", process=False, force="mesh")
    np.testing.assert_array_equal(
        np.asarray(scene.visual.material.image), (material.base_color * 255).round().byte().numpy()
    )


def test_a_plain_material_is_written_as_it_always_was(asset):
    assert obj.encode_material(asset, {"map_Kd": "barrel.png"}) == (
        "newmtl wooden_barrel\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 1\nmap_Kd barrel.png\n"
    )
