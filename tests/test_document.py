"""Readers before files that nobody can trust: broken, lying, endless, climbing out of their folder."""

import base64
import io
import json
import struct
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from threed.exporters import export
from threed.renderers import document, gltf, trimeshes
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import opened, read

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4")


def tree(**changes):
    """A triangle as glTF, its numbers in a data URI."""
    content = CORNERS.tobytes() + np.array([0, 1, 2, 0], "<u2").tobytes()
    uri = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
    whole = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": 36},
            {"buffer": 0, "byteOffset": 36, "byteLength": 6},
        ],
        "buffers": [{"byteLength": len(content), "uri": uri}],
    }
    return whole | changes


def written(path, content):
    path.write_text(json.dumps(content) if isinstance(content, dict) else content)
    return path


def changed(key, index, **values):
    """The tree with other values in one of its lists."""
    whole = tree()
    whole[key][index] |= values
    return whole


def test_the_plain_triangle_is_read(tmp_path):
    (found,) = opened(written(tmp_path / "a.gltf", tree())).primitives
    np.testing.assert_array_equal(found.vertices, CORNERS)
    np.testing.assert_array_equal(found.faces, [[0, 1, 2]])
    assert (found.uvs, found.normals, found.tangents, found.colours) == (None,) * 4


BROKEN = {
    "a node below itself": (changed("nodes", 0, children=[0]), "below itself"),
    "a node below two others": (
        tree(nodes=[{"children": [2]}, {"children": [2]}, {"mesh": 0}], scenes=[{"nodes": [0, 1]}]),
        "below two others",
    ),
    "a cycle of two": (tree(nodes=[{"children": [1]}, {"children": [0], "mesh": 0}]), "below itself"),
    "a mesh that counts from the end": (changed("nodes", 0, mesh=-1), "there is no -1 among its meshes"),
    "a count beyond memory": (changed("accessors", 0, count=10**12), "numbers"),
    "a count beyond the view": (changed("accessors", 0, count=4), "do not fit"),
    "a negative count": (changed("accessors", 1, count=-3), "a count is -3"),
    "zeros without end": (
        tree(
            accessors=[{"componentType": 5126, "count": 10**10, "type": "VEC3"}],
            meshes=[{"primitives": [{"attributes": {"POSITION": 0}}]}],
        ),
        "triangles",
    ),
    "a view beyond its buffer": (changed("bufferViews", 0, byteLength=10**9), "ends after its buffer"),
    "a negative offset": (changed("bufferViews", 0, byteOffset=-4), "a byteOffset is -4"),
    "a stride beyond its view": (changed("bufferViews", 0, byteStride=2**40), "do not fit"),
    "a buffer that is shorter": (changed("buffers", 0, byteLength=10**9), "bytes of 1000000000"),
    "a buffer outside": (changed("buffers", 0, uri="../secret.bin"), "outside its folder"),
    "a buffer outside, encoded": (changed("buffers", 0, uri="%2e%2e/secret.bin"), "outside its folder"),
    "a buffer at the root": (changed("buffers", 0, uri="/etc/passwd"), "outside its folder"),
    "a buffer behind backslashes": (changed("buffers", 0, uri="..\\secret.bin"), "outside its folder"),
    "a buffer on the network": (changed("buffers", 0, uri="http://example.com/a.bin"), "not there"),
    "a device": (changed("buffers", 0, uri="link"), "outside its folder"),
    "an extension": (
        tree(extensionsRequired=["EXT_meshopt_compression"]),
        "EXT_meshopt_compression, which is not read",
    ),
    "another version": (tree(asset={"version": "1.0"}), "glTF '1.0'"),
    "a list for an object": (tree(nodes=[[]]), "cannot be parsed"),
    "infinity": (json.dumps(tree()).replace("36", "Infinity", 1), "Infinity is no JSON"),
    "a nest without bottom": ("[" * 200_000, "cannot be parsed"),
    "a number without end": ('{"asset": ' + "9" * 100_000 + "}", "cannot be parsed"),
    "values without end": ("[" + "1," * 2**21 + "1]", "more than 2097152 values"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_trees_are_refused_with_a_reason(what, tmp_path):
    content, message = BROKEN[what]
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(100))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret.bin")
    path = written(tmp_path / "in" / "a.gltf", content)
    with pytest.raises(ValueError, match=r"(?s)a\.gltf' cannot be parsed \(.*\); export it again") as caught:
        opened(path)
    assert message in str(caught.value)


def test_one_mesh_placed_a_million_times_is_refused_before_it_is_copied(tmp_path, monkeypatch):
    many = tree(nodes=[{"mesh": 0}] * 300, scenes=[{"nodes": list(range(300))}])
    path = written(tmp_path / "a.gltf", many)
    assert len(opened(path).primitives) == 300
    monkeypatch.setattr(gltf, "MOST_PRIMITIVES", 299)
    with pytest.raises(ValueError, match="more than 299 parts"):
        opened(path)
    monkeypatch.setattr(gltf, "MOST_PRIMITIVES", 300)
    monkeypatch.setattr(gltf, "MOST_FACES", 299)
    with pytest.raises(ValueError, match="more than 299 triangles"):
        opened(path)


def test_a_deep_tree_of_nodes_is_walked_without_recursion(tmp_path):
    depth = 20_000
    nodes = [{"children": [i + 1], "translation": [0, 0, 1e-4]} for i in range(depth)] + [{"mesh": 0}]
    (found,) = opened(written(tmp_path / "a.gltf", tree(nodes=nodes))).primitives
    np.testing.assert_allclose(found.vertices[:, 2], 2)


def png_of(width, height):
    """A picture of zeros that is small only as long as nobody unpacks it."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, rows = zlib.compressobj(9), b""
    for _ in range(height):
        rows += packer.compress(bytes(1 + width // 8))
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows + packer.flush()) + chunk(b"IEND", b"")


def pictured(*contents):
    """A triangle under several pictures."""
    uris = ["data:image/png;base64," + base64.b64encode(x).decode() for x in contents]
    return tree(
        images=[{"uri": uri} for uri in uris],
        textures=[{"source": i} for i in range(len(uris))],
        materials=[{"pbrMetallicRoughness": {"baseColorTexture": {"index": i}}} for i in range(len(uris))],
        meshes=[
            {"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "material": i} for i in range(len(uris))]}
        ],
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_that_unpack_to_too_much_are_refused_packed(tmp_path, monkeypatch):
    bomb = png_of(16000, 8000)
    assert len(bomb) < 100_000
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match="its pictures have more than 64 megapixels each or 128 together"):
        opened(written(tmp_path / "a.gltf", pictured(bomb)))


def test_many_small_bombs_are_counted_together_and_the_same_one_once(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "MOST_PIXELS", 2000)
    same = written(tmp_path / "same.gltf", pictured(*[png_of(40, 8)] * 9))
    assert len(opened(same).primitives) == 9
    with pytest.raises(ValueError, match="megapixels"):
        opened(written(tmp_path / "many.gltf", pictured(*(png_of(40, rows) for rows in range(2, 20)))))


def test_parts_that_share_a_texture_hold_it_once(tmp_path):
    """A hundred nodes under one texture of 512 texels would be a hundred of them."""
    picture = io.BytesIO()
    Image.new("RGB", (512, 512), "red").save(picture, "PNG")
    whole = pictured(picture.getvalue())
    uv = {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC2"}
    whole["accessors"].append(uv)
    whole["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = 2
    whole |= {
        "nodes": [{"mesh": 0, "translation": [i, 0, 0]} for i in range(100)],
        "scenes": [{"nodes": list(range(100))}],
    }
    asset = read(written(tmp_path / "a.gltf", whole))
    assert len(asset.mesh.faces) == 100
    assert asset.material.base_color.shape == (512, 512, 3)


def test_transforms_mirror_and_turn(tmp_path):
    half = 0.5**0.5
    node = {"mesh": 0, "scale": [-2, 1, 1], "rotation": [0, 0, half, half], "translation": [5, 0, 0]}
    (found,) = opened(written(tmp_path / "a.gltf", tree(nodes=[node]))).primitives
    np.testing.assert_allclose(found.vertices, [[5, 0, 0], [5, -2, 0], [4, 0, 0]], atol=1e-12)
    np.testing.assert_array_equal(found.faces, [[2, 1, 0]])
    columns = [0, -2, 0, 0, -1, 0, 0, 0, 0, 0, 1, 0, 5, 0, 0, 1]
    (same,) = opened(written(tmp_path / "b.gltf", tree(nodes=[{"mesh": 0, "matrix": columns}]))).primitives
    np.testing.assert_allclose(same.vertices, found.vertices, atol=1e-12)


def test_strips_fans_and_vertices_without_indices(tmp_path):
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], "<f4").tobytes()
    uri = "data:;base64," + base64.b64encode(square).decode()
    base = {
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"}],
        "bufferViews": [{"buffer": 0, "byteLength": 48}],
        "buffers": [{"byteLength": 48, "uri": uri}],
    }
    for mode, expected in ((5, [[0, 1, 2], [2, 1, 3]]), (6, [[0, 1, 2], [0, 2, 3]]), (4, [[0, 1, 2]])):
        meshes = [{"primitives": [{"attributes": {"POSITION": 0}, "mode": mode}]}]
        (found,) = opened(written(tmp_path / "a.gltf", tree(meshes=meshes, **base))).primitives
        np.testing.assert_array_equal(found.faces, expected)


def test_quantized_strided_and_sparse_numbers(tmp_path):
    """Shorts that mean -1 to 1, eight bytes apart, one of which is replaced."""
    shorts = np.zeros((3, 4), "<i2")
    shorts[:, :3] = [[-32767, 0, 0], [32767, 0, 0], [0, 32767, 0]]
    content = shorts.tobytes() + np.array([2], "<u2").tobytes() + b"\0\0" + np.array([0, 0, -32768, 0], "<i2").tobytes()
    uri = "data:;base64," + base64.b64encode(content).decode()
    views = [
        {"byteLength": 24, "byteStride": 8},
        {"byteOffset": 24, "byteLength": 2},
        {"byteOffset": 28, "byteLength": 6},
    ]
    accessor = {"bufferView": 0, "componentType": 5122, "count": 3, "type": "VEC3", "normalized": True}
    sparse = {"count": 1, "indices": {"bufferView": 1, "componentType": 5123}, "values": {"bufferView": 2}}
    whole = tree(
        accessors=[accessor | {"sparse": sparse}],
        bufferViews=[{"buffer": 0} | view for view in views],
        buffers=[{"byteLength": len(content), "uri": uri}],
        meshes=[{"primitives": [{"attributes": {"POSITION": 0}}]}],
        extensionsRequired=["KHR_mesh_quantization"],
    )
    found = opened(written(tmp_path / "a.gltf", whole))
    np.testing.assert_allclose(found.primitives[0].vertices, [[-1, 0, 0], [1, 0, 0], [0, 0, -1]])
    assert found.extensions == ("KHR_mesh_quantization",)


def test_moved_textures_move_the_uvs(tmp_path):
    """The specification's own example: the lower left quarter, turned."""
    move = {"offset": [0, 1], "rotation": np.pi / 2, "scale": [0.5, 0.5]}
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    whole = pictured(picture.getvalue())
    texture = whole["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    texture["extensions"] = {"KHR_texture_transform": move}
    whole["accessors"].append({"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC2"})
    whole["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = 2
    (found,) = opened(written(tmp_path / "a.gltf", whole)).primitives
    told = CORNERS.reshape(-1)[:6].reshape(3, 2)
    np.testing.assert_allclose(found.uvs, np.stack([0.5 * told[:, 1], 1 - 0.5 * told[:, 0]], axis=1), atol=1e-7)


def test_a_glb_cut_anywhere_is_refused(tmp_path):
    shape = trimesh.creation.box()
    mesh = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
    export(
        Asset("a", mesh, torch.rand(1, 2), torch.zeros_like(mesh.faces), Material(torch.rand(4, 4, 3))),
        tmp_path / "a.glb",
    )
    content = (tmp_path / "a.glb").read_bytes()
    for end in range(0, len(content) - 1, 97):
        (tmp_path / "cut.glb").write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"cut\.glb' cannot be parsed"):
            opened(tmp_path / "cut.glb")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mtllib ../secret.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", None),
        ("mtllib /etc/passwd\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", None),
        ("v 0 0\nv 1 0\nv 0 1\nf 1 2 3\n", "cannot be parsed"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "cannot be parsed"),
    ],
)
def test_odd_objs_are_read_or_refused_in_one_way(content, message, tmp_path, monkeypatch):
    """What lies outside the folder is never opened."""
    (tmp_path / "secret.mtl").write_text("newmtl a\nKd 1 0 0\n")
    (tmp_path / "in").mkdir()
    path = written(tmp_path / "in" / "a.obj", content)
    reads, plain = [], document.Path.read_bytes
    monkeypatch.setattr(document.Path, "read_bytes", lambda self: reads.append(self) or plain(self))
    if message:
        with pytest.raises(ValueError, match=message):
            read(path)
    else:
        assert len(read(path).mesh.faces) == 1
    assert reads == [path]


def test_a_ply_that_ends_before_its_faces_is_refused(tmp_path):
    head = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    head += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    whole = head + "0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    assert len(read(written(tmp_path / "a.ply", whole)).mesh.faces) == 1
    with pytest.raises(ValueError, match=r"a\.ply' cannot be parsed"):
        read(written(tmp_path / "a.ply", whole[:-30]))


def test_lines_are_counted_before_they_are_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(trimeshes, "MOST_FACES", 10)
    monkeypatch.setattr(trimesh, "load_scene", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(ValueError, match="more than 10 triangles"):
        opened(written(tmp_path / "a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n" + "f 1 2 3\n" * 11))


def test_primitives_are_data():
    it = document.Primitive(
        "UCX_a_00", CORNERS.astype(float), np.array([[0, 1, 2]]), None, None, None, None, document.Skin()
    )
    assert it.is_collider
    assert replace(it, name="a-col").is_collider
    assert replace(it, name="a_00-convcolonly").is_collider
    assert not replace(it, name="protocol").is_collider
    assert sys.getrecursionlimit() < 20_000
