"""GLB: its bytes parsed by hand, read back by independent readers, and the reports and errors around the writers."""

import json
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from io import BytesIO

import assimp_py
import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from PIL import Image

from threed.exporters import ENCODERS, export, files, glb, place, report
from threed.exporters.bake import bake
from threed.exporters.clean import clean
from threed.exporters.simplify import simplify
from threed.exporters.unwrap import unwrap
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.tangents import corner_tangents


def finished(shape, size=64, faces=400):
    """The whole chain on a raw surface."""
    raw = Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(np.array(shape.faces)))
    mesh = simplify(clean(raw), faces)
    uvs, uv_faces = unwrap(mesh, size)
    texture = bake(mesh, uvs, uv_faces, lambda points, normals: 0.5 + 0.3 * points, size)
    return Asset("barrel", mesh, uvs, uv_faces, Material(texture, roughness=0.75))


@pytest.fixture(scope="module")
def asset():
    return finished(trimesh.creation.icosphere(4))


@pytest.fixture(scope="module")
def shiny(asset):
    """The same with all textures."""
    generator, size = torch.Generator().manual_seed(0), asset.material.base_color.shape[:2]
    normal = torch.nn.functional.normalize(
        torch.rand(*size, 3, generator=generator) + torch.tensor([-0.5, -0.5, 1]), dim=-1
    )
    shine = torch.rand(*size, 2, generator=generator)
    return replace(asset, material=replace(asset.material, roughness_metallic=shine, normal=normal))


def parsed(data):
    """The JSON tree, and its accessors as arrays, from the bytes alone."""
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack("<I4s", data[12:20])
    assert kind == b"JSON"
    assert size % 4 == 0
    tree, rest = json.loads(data[20 : 20 + size]), data[20 + size :]
    size, kind = struct.unpack("<I4s", rest[:8])
    assert kind == b"BIN\0"
    assert tree["buffers"] == [{"byteLength": size}]
    assert len(rest) == 8 + size
    views = [rest[8 + v["byteOffset"] :][: v["byteLength"]] for v in tree["bufferViews"]]
    assert all(v["byteOffset"] % 4 == 0 for v in tree["bufferViews"])
    types, width = {5123: "<u2", 5125: "<u4", 5126: "<f4"}, {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
    arrays = []
    for a in tree["accessors"]:
        array = np.frombuffer(views[a["bufferView"]], types[a["componentType"]]).reshape(-1, width[a["type"]])
        assert len(array) == a["count"]
        arrays.append(array)
    return tree, arrays, views


def corners(asset):
    """What a viewer draws: position and UV at the corners [F 3 5]."""
    return torch.cat([asset.mesh.corners, asset.uvs[asset.uv_faces]], dim=-1).numpy()


def test_bytes_hold_the_asset(asset):
    tree, (indices, positions, normals, uvs), views = parsed(glb.encode(asset))
    indices = indices.reshape(-1, 3)
    drawn = np.concatenate([positions[indices], uvs[indices]], axis=-1)
    np.testing.assert_array_equal(drawn, corners(asset))
    np.testing.assert_array_equal(normals[indices], asset.normals.numpy())
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    pixels = np.asarray(Image.open(BytesIO(views[4])))
    np.testing.assert_array_equal(pixels, (asset.material.base_color * 255).round().byte().numpy())
    assert len(np.unique(np.concatenate([positions, normals, uvs], axis=1), axis=0)) == len(positions)
    assert tree["accessors"][1]["min"] == positions.min(0).tolist()
    assert tree["accessors"][1]["max"] == positions.max(0).tolist()


def test_the_tree_is_one_of_each_and_named(asset):
    tree, _, _ = parsed(glb.encode(asset))
    for key in ("scenes", "nodes", "meshes", "materials", "textures", "samplers", "images"):
        assert len(tree[key]) == 1
    assert {tree[key][0]["name"] for key in ("nodes", "meshes", "materials", "images")} == {"barrel"}
    assert tree["asset"] == {"version": "2.0", "generator": "threed"}
    (primitive,) = tree["meshes"][0]["primitives"]
    assert primitive["attributes"].keys() == {"POSITION", "NORMAL", "TEXCOORD_0"}
    material = tree["materials"][0]
    assert material["doubleSided"] is False
    assert material["pbrMetallicRoughness"] == {
        "baseColorTexture": {"index": 0},
        "metallicFactor": 0.0,
        "roughnessFactor": 0.75,
    }
    assert [v.get("target") for v in tree["bufferViews"]] == [34963, 34962, 34962, 34962, None]
    assert tree["nodes"][0].keys() == {"name", "mesh"}
    assert not {"extensionsRequired", "extensionsUsed", "extras"} & tree.keys()


PLAIN = (
    '{"asset":{"version":"2.0","generator":"threed"},"scene":0,"scenes":[{"nodes":[0]}],'
    '"nodes":[{"name":"sheet","mesh":0}],"meshes":[{"name":"sheet","primitives":[{"attributes":'
    '{"POSITION":1,"NORMAL":2,"TEXCOORD_0":3},"indices":0,"material":0}]}],"materials":[{"name":"sheet",'
    '"pbrMetallicRoughness":{"baseColorTexture":{"index":0},"metallicFactor":0.25,"roughnessFactor":0.5},'
    '"doubleSided":false}],"textures":[{"sampler":0,"source":0}],'
    '"samplers":[{"magFilter":9729,"minFilter":9987,"wrapS":33071,"wrapT":33071}],'
    '"images":[{"name":"sheet","bufferView":4,"mimeType":"image/png"}],'
    '"accessors":[{"bufferView":0,"componentType":5123,"count":3,"type":"SCALAR"},'
    '{"bufferView":1,"componentType":5126,"count":3,"type":"VEC3","min":[0.0,0.0,0.0],"max":[1.0,1.0,0.0]},'
    '{"bufferView":2,"componentType":5126,"count":3,"type":"VEC3"},'
    '{"bufferView":3,"componentType":5126,"count":3,"type":"VEC2"}],'
    '"bufferViews":[{"buffer":0,"byteOffset":0,"byteLength":6,"target":34963},'
    '{"buffer":0,"byteOffset":8,"byteLength":36,"target":34962},'
    '{"buffer":0,"byteOffset":44,"byteLength":36,"target":34962},'
    '{"buffer":0,"byteOffset":80,"byteLength":24,"target":34962},'
    '{"buffer":0,"byteOffset":104,"byteLength":%d}],"buffers":[{"byteLength":%d}]}'
)


def padded(blob, filler=b"\0"):
    return blob + filler * (-len(blob) % 4)


def test_a_plain_material_is_written_byte_by_byte_as_it_always_was():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0]])
    face = torch.tensor([[0, 1, 2]])
    sheet = Asset("sheet", Mesh(corners, face), corners[:, :2], face, Material(torch.full((2, 2, 3), 0.5), 0.5, 0.25))
    picture = files.png(sheet.material.base_color)
    arrays = [[0, 1, 2], corners.reshape(-1).tolist(), [0, 0, 1] * 3, corners[:, :2].reshape(-1).tolist()]
    kinds = ("<3H", "<9f", "<9f", "<6f")
    binary = b"".join(padded(struct.pack(kind, *array)) for kind, array in zip(kinds, arrays, strict=True))
    binary += padded(picture)
    tree = padded((PLAIN % (len(picture), len(binary))).encode(), b" ")
    chunks = struct.pack("<I4s", len(tree), b"JSON") + tree + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    assert glb.encode(sheet) == struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def packed(material):
    """The pictures of a material with all textures, as glTF's pixels, by name."""
    full = torch.ones_like(material.base_color[..., :1])
    values = {
        "baseColorTexture": material.base_color,
        "metallicRoughnessTexture": torch.cat([full, material.roughness_metallic], dim=-1),
        "normalTexture": material.normal / 2 + 0.5,
    }
    return {name: (x * 255).round().byte().numpy() for name, x in values.items()}


def test_bytes_hold_all_textures(shiny):
    tree, (indices, positions, normals, uvs, tangents), views = parsed(glb.encode(shiny))
    (primitive,) = tree["meshes"][0]["primitives"]
    assert primitive["attributes"] == {"POSITION": 1, "NORMAL": 2, "TEXCOORD_0": 3, "TANGENT": 4}
    (material,) = tree["materials"]
    surface = material.pop("pbrMetallicRoughness")
    assert (surface.pop("metallicFactor"), surface.pop("roughnessFactor")) == (1, 1)
    assert material == {"name": "barrel", "doubleSided": False, "normalTexture": {"index": 2}}
    assert surface == {"baseColorTexture": {"index": 0}, "metallicRoughnessTexture": {"index": 1}}
    assert tree["textures"] == [{"sampler": 0, "source": i} for i in range(3)]
    for image, expected in zip(tree["images"], packed(shiny.material).values(), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(views[image["bufferView"]]))), expected)
    assert len({image["name"] for image in tree["images"]}) == 3
    assert [v.get("target") for v in tree["bufferViews"]] == [34963, *[34962] * 4, None, None, None]
    indices = indices.reshape(-1, 3)
    np.testing.assert_array_equal(np.concatenate([positions[indices], uvs[indices]], axis=-1), corners(shiny))
    expected = corner_tangents(shiny.mesh, shiny.uvs, shiny.uv_faces).numpy()
    np.testing.assert_array_equal(tangents[indices], expected)
    np.testing.assert_allclose(np.linalg.norm(tangents[:, :3], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose((tangents[:, :3] * normals).sum(1), 0, atol=1e-5)


def test_textures_come_one_by_one(shiny):
    full = shiny.material
    for material, names in (
        (replace(full, normal=None), ["baseColorTexture", "metallicRoughnessTexture"]),
        (replace(full, roughness_metallic=None), ["baseColorTexture", "normalTexture"]),
    ):
        tree, arrays, _ = parsed(glb.encode(replace(shiny, material=material)))
        look = tree["materials"][0]
        surface = look.pop("pbrMetallicRoughness")
        assert [name for name in (*surface, *look) if name.endswith("Texture")] == names
        assert surface["roughnessFactor"] == (1 if material.roughness_metallic is not None else 0.75)
        assert surface["metallicFactor"] == (1 if material.roughness_metallic is not None else 0)
        assert len(arrays) == (4 if material.normal is None else 5)


def test_vertices_between_mirrored_halves_are_split_for_their_tangents():
    """A butterfly whose wings share one half of the texture, and the UVs along its body."""
    mesh = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    uvs, uv_faces = torch.tensor([[0.0, 1], [1, 1], [0, 0]]), torch.tensor([[0, 1, 2], [0, 2, 1]])
    plain = Asset("butterfly", mesh, uvs, uv_faces, Material(torch.rand(4, 4, 3)))
    assert parsed(glb.encode(plain))[0]["accessors"][1]["count"] == 4
    bumps = torch.tensor([0.0, 0, 1]).expand(4, 4, 3)
    bumpy = replace(plain, material=replace(plain.material, normal=bumps))
    tree, (indices, positions, _, shown, tangents), _ = parsed(glb.encode(bumpy))
    assert tree["accessors"][1]["count"] == 6
    indices = indices.reshape(-1, 3)
    np.testing.assert_array_equal(np.concatenate([positions[indices], shown[indices]], axis=-1), corners(bumpy))
    np.testing.assert_array_equal(tangents[indices[0]], [[1, 0, 0, 1]] * 3)
    np.testing.assert_array_equal(tangents[indices[1]], [[-1, 0, 0, -1]] * 3)


def test_other_readers_find_all_textures(shiny, tmp_path):
    path, expected = tmp_path / "a.glb", packed(shiny.material)
    export(shiny, path)
    material = trimesh.load(path, process=False).geometry["barrel"].visual.material
    document = pygltflib.GLTF2().load(path)
    look = document.materials[0]
    infos = (
        look.pbrMetallicRoughness.baseColorTexture,
        look.pbrMetallicRoughness.metallicRoughnessTexture,
        look.normalTexture,
    )
    for (name, pixels), info in zip(expected.items(), infos, strict=True):
        np.testing.assert_array_equal(np.asarray(getattr(material, name)), pixels)
        image = document.images[document.textures[info.index].source]
        view = document.bufferViews[image.bufferView]
        content = document.binary_blob()[view.byteOffset :][: view.byteLength]
        np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(content))), pixels)
    assert (material.roughnessFactor, material.metallicFactor) == (1, 1)


def test_normals_agree_across_seams(asset):
    _, (_, positions, normals, _), _ = parsed(glb.encode(asset))
    _, first, position = np.unique(positions, axis=0, return_index=True, return_inverse=True)
    assert len(first) == len(asset.mesh.vertices) < len(positions)
    np.testing.assert_array_equal(normals, normals[first][position.reshape(-1)])


@pytest.mark.parametrize(("count", "component"), [(65534, 5123), (65535, 5125)])
def test_indices_grow_to_32_bits_when_16_do_not_do(count, component, monkeypatch):
    """65535 itself restarts primitives, so the largest index in 16 bits is 65533 here: one vertex less than 65535."""
    faces = torch.arange(count // 3 * 3).reshape(-1, 3)
    faces = torch.cat([faces, torch.tensor([[0, 1, count - 1]])]) if count % 3 else faces
    used = faces.unique()
    faces = torch.searchsorted(used, faces)
    vertices = torch.rand(len(used), 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(glb, "unit_normals", lambda asset: torch.tensor([0.0, 1, 0]).expand(len(faces), 3, 3))
    filler = Asset("x", Mesh(vertices, faces), vertices[:, :2], faces, Material(torch.zeros(1, 1, 3)))
    tree, arrays, _ = parsed(glb.encode(filler))
    assert tree["accessors"][0]["componentType"] == (5123 if len(used) < 65535 else 5125) == component
    np.testing.assert_array_equal(arrays[1][arrays[0].reshape(-1, 3)], vertices[faces].numpy())


def test_every_normal_is_unit():
    """Two triangles back to back have their own; one without an area has none, and looks up."""
    mesh = Mesh(torch.eye(3), torch.tensor([[0, 1, 2], [2, 1, 0], [1, 1, 1]]))
    asset = Asset("x", mesh, torch.zeros(1, 2), torch.zeros_like(mesh.faces), Material(torch.zeros(1, 1, 3)))
    front = torch.full((3,), 3**-0.5)
    expected = torch.stack([front, -front, torch.tensor([0.0, 1, 0])])[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(glb.unit_normals(asset), expected)


def test_trimesh_reads_the_same(asset, tmp_path):
    export(asset, tmp_path / "a.glb")
    shape = trimesh.load(tmp_path / "a.glb", process=False).geometry["barrel"]
    drawn = np.concatenate([shape.triangles, shape.visual.uv[shape.faces]], axis=-1)
    drawn[..., 4] = 1 - drawn[..., 4]  # trimesh's v grows upward
    np.testing.assert_allclose(drawn, corners(asset), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(shape.visual.material.baseColorTexture), texture_bytes(asset))
    assert shape.visual.material.roughnessFactor == 0.75
    shape.merge_vertices(merge_tex=True, merge_norm=True)
    assert shape.is_watertight
    assert shape.volume == pytest.approx(float(asset.mesh.volume), rel=1e-5)


def texture_bytes(asset):
    return (asset.material.base_color * 255).round().byte().numpy()


def test_pygltflib_reads_the_same(asset, tmp_path):
    export(asset, tmp_path / "a.glb")
    document = pygltflib.GLTF2().load(tmp_path / "a.glb")
    attributes, blob = document.meshes[0].primitives[0].attributes, document.binary_blob()
    shown = []
    for index, kind in ((0, "<u2"), (attributes.POSITION, "<f4"), (attributes.TEXCOORD_0, "<f4")):
        accessor = document.accessors[index]
        view = document.bufferViews[accessor.bufferView]
        shown.append(np.frombuffer(blob[view.byteOffset :][: view.byteLength], kind).reshape(accessor.count, -1))
    indices, positions, uvs = shown
    drawn = np.concatenate([positions, uvs], axis=1)[indices.reshape(-1, 3)]
    np.testing.assert_array_equal(drawn, corners(asset))


def test_assimp_reads_the_same(asset, tmp_path):
    export(asset, tmp_path / "a.glb")
    scene = assimp_py.import_file(str(tmp_path / "a.glb"), assimp_py.Process_Triangulate)
    (mesh,) = scene.meshes
    indices = np.array(mesh.indices).reshape(-1, 3)
    positions = np.array(mesh.vertices).reshape(-1, 3)
    uvs = np.array(mesh.texcoords[0]).reshape(len(positions), -1)[:, :2] * [1, -1] + [0, 1]
    drawn = np.concatenate([positions, uvs], axis=1)[indices]
    np.testing.assert_allclose(drawn, corners(asset), atol=1e-6)
    assert mesh.name == "barrel"


VALIDATE = """
const validator = require('gltf-validator'), bytes = new Uint8Array(require('fs').readFileSync(process.argv[1]));
validator.validateBytes(bytes, {writeTimestamp: false}).then(report => console.log(JSON.stringify(report)));
"""


@pytest.mark.parametrize("name", ["asset", "shiny"])
def test_the_khronos_validator_finds_nothing(name, request, tmp_path):
    """Needs node, and the npm package gltf-validator where node finds it (NODE_PATH)."""
    node = shutil.which("node")
    probe = node and subprocess.run(
        [node, "-e", "require.resolve('gltf-validator')"], capture_output=True, cwd=tmp_path
    )
    if not probe or probe.returncode:
        pytest.skip("node or gltf-validator is not installed")
    asset = request.getfixturevalue(name)
    export(asset, tmp_path / "a.glb")
    done = subprocess.run([node, "-e", VALIDATE, tmp_path / "a.glb"], capture_output=True, cwd=tmp_path, check=True)
    found = json.loads(done.stdout)
    assert found["issues"]["messages"] == []
    assert found["info"]["totalTriangleCount"] == len(asset.mesh.faces)


def test_the_same_asset_gives_the_same_bytes():
    first, second = (finished(trimesh.creation.torus(0.7, 0.3)) for _ in range(2))
    assert glb.encode(first) == glb.encode(second)
    shine, normal = torch.full((64, 64, 2), 0.5), torch.tensor([0.0, 0.6, 0.8]).expand(64, 64, 3)
    first, second = (
        replace(x, material=replace(x.material, roughness_metallic=shine, normal=normal)) for x in (first, second)
    )
    assert glb.encode(first) == glb.encode(second)


def test_greys_keep_their_bytes():
    greys = (torch.arange(256.0) / 255).reshape(16, 16, 1).expand(-1, -1, 3)
    pixels = np.asarray(Image.open(BytesIO(files.png(greys))))
    assert pixels[..., 0].reshape(-1).tolist() == list(range(256))
    assert Image.open(BytesIO(files.png(greys))).mode == "RGB"


def test_a_file_appears_whole_or_not_at_all(asset, tmp_path, monkeypatch):
    path = tmp_path / "a.glb"
    path.write_bytes(b"old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            export(asset, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.glb"]
    assert path.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError):
        export(asset, tmp_path / "missing" / "a.glb")
    export(asset, path)
    assert path.read_bytes() == glb.encode(asset)


def test_an_unknown_suffix_names_the_known_ones(asset, tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot write '.fbx'; use one of \['.glb', '.gltf', '.obj', '.ply', '.stl', '.usdz'\]"
    ):
        export(asset, tmp_path / "a.fbx")
    assert ENCODERS.keys() == {".glb", ".gltf", ".obj", ".ply", ".stl", ".usdz"}


def test_placed_on_the_ground(asset):
    moved = replace(asset, mesh=asset.mesh.with_vertices(asset.mesh.vertices * 3 + torch.tensor([5.0, -2, 1])))
    vertices = place(moved, 1.7).mesh.vertices
    low, high = vertices.amin(0), vertices.amax(0)
    torch.testing.assert_close(low[1], torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(high[1], torch.tensor(1.7))
    torch.testing.assert_close(low[[0, 2]], -high[[0, 2]], atol=1e-5, rtol=0)
    ratio = (high - low) / (asset.mesh.vertices.amax(0) - asset.mesh.vertices.amin(0))
    torch.testing.assert_close(ratio, ratio[1].expand(3))
    with pytest.raises(ValueError, match="to a height of 0"):
        place(asset, 0.0)


def test_figures_of_a_cube():
    """Two metres wide, six charts of one square each, on a layout that they use 6 * 0.2^2 of."""
    box = trimesh.creation.box((2, 2, 2))
    mesh = Mesh(torch.tensor(box.vertices, dtype=torch.float32), torch.tensor(np.array(box.faces)))
    uvs, uv_faces = [], []
    for face, normal in zip(mesh.faces.tolist(), np.array(box.face_normals), strict=True):
        side = int(np.abs(normal).argmax()) + 3 * int(normal.max() > 0.5)
        plane = np.delete(np.array(mesh.vertices[face]), int(np.abs(normal).argmax()), axis=1)
        uv_faces.append([4 * side + int(p[0] > 0) + 2 * int(p[1] > 0) for p in plane])
    for side in range(6):
        uvs += [(0.3 * (side % 3) + x, 0.5 * (side // 3) + y) for y in (0, 0.2) for x in (0, 0.2)]
    cube = Asset("cube", mesh, torch.tensor(uvs), torch.tensor(uv_faces), Material(torch.zeros(32, 16, 3)))
    figures = report.measure(cube)
    assert json.loads(json.dumps(figures)) == figures
    assert figures.pop("volume") == pytest.approx(8)
    assert figures.pop("area") == pytest.approx(24)
    assert figures.pop("texel_use") == pytest.approx(0.24)
    assert figures == {
        "triangles": 12,
        "vertices": 8,
        "watertight": True,
        "bounds": [[-1, -1, -1], [1, 1, 1]],
        "texture_size": [32, 16],
        "charts": 6,
    }


def test_verify_names_what_is_wrong_and_the_remedy(asset):
    report.verify(asset)
    mesh = asset.mesh
    opened = replace(asset, mesh=Mesh(mesh.vertices, mesh.faces[1:]), uv_faces=asset.uv_faces[1:])
    report.verify(opened, watertight=False)
    wrong = {
        "not watertight; clean": opened,
        "0 triangles": replace(asset, mesh=Mesh(mesh.vertices, mesh.faces[:0])),
        "0 texels": replace(asset, material=Material(torch.zeros(0, 0, 3))),
        "not finite; resume": replace(asset, uvs=asset.uvs * float("nan")),
        "UVs from .* to .*, not within 0 and 1; unwrap": replace(asset, uvs=asset.uvs * 1.5),
        "has uv_faces outside": replace(asset, uv_faces=asset.uv_faces + 1),
        "has faces outside": replace(asset, mesh=Mesh(mesh.vertices[:-1], mesh.faces)),
        "inside out .*reverse": replace(asset, mesh=Mesh(mesh.vertices, mesh.faces.flip(1))),
    }
    for message, broken in wrong.items():
        with pytest.raises(ValueError, match=f"'barrel'.*{message}"):
            report.verify(broken)


def test_the_chain_keeps_the_shape():
    """An icosphere and a torus from raw surface to verified asset: area, volume, the hole."""
    for shape, number in ((trimesh.creation.icosphere(4), 2), (trimesh.creation.torus(0.7, 0.3), 0)):
        done = finished(shape, size=128, faces=800)
        report.verify(done)
        figures = report.measure(done)
        assert figures["triangles"] <= 800
        assert figures["volume"] == pytest.approx(shape.volume, rel=0.02)
        assert figures["area"] == pytest.approx(shape.area, rel=0.02)
        assert trimesh.Trimesh(done.mesh.vertices, done.mesh.faces, process=False).euler_number == number
