"""Compressed GLBs: the same triangles within the grid that they are rounded to, in a file that says what it needs."""

import json
import struct
import sys
from dataclasses import replace

import DracoPy
import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import KDTree
from test_package import box, full, painted

from threed import export_cli
from threed.cli import main
from threed.exporters import draco, export, glb
from threed.exporters.package import Wanted, packed
from threed.exporters.presets import PRESETS
from threed.renderers.gltf import chunks
from threed.renderers.mesh import Mesh
from threed.renderers.read import colliders, opened, read

HULL = {"it_00-convcolonly": box((1, 2, 3))}


@pytest.fixture(scope="module")
def ball():
    return replace(painted(trimesh.creation.icosphere(3)), material=full())


@pytest.fixture(scope="module")
def small(ball):
    return draco.encode(ball, HULL)


def decoded(content):
    """The tree, and of each mesh its triangles and its attributes."""
    tree, binary = chunks(content)
    found = []
    for mesh in tree["meshes"]:
        (primitive,) = mesh["primitives"]
        said = primitive["extensions"][draco.EXTENSION]
        view = tree["bufferViews"][said["bufferView"]]
        stream = DracoPy.decode(binary[view["byteOffset"] :][: view["byteLength"]])
        numbers = {each["unique_id"]: each["data"] for each in stream.attributes}
        found.append((primitive, stream.faces, {name: numbers[key] for name, key in said["attributes"].items()}))
    return tree, found


def test_the_same_triangles_come_back_within_the_grid(ball, small, tmp_path):
    (tmp_path / "it.glb").write_bytes(glb.encode(ball, HULL))
    _, found = decoded(small)
    for plain, (_, faces, attributes) in zip(opened(tmp_path / "it.glb").primitives, found, strict=True):
        assert len(faces) == len(plain.faces)
        corners = plain.vertices[plain.faces]
        # A decoder may begin a triangle at any of its corners.
        turned = KDTree(np.concatenate([np.roll(corners, turn, axis=1) for turn in range(3)]).reshape(-1, 9))
        _, index = turned.query(attributes["POSITION"][faces].reshape(-1, 9))
        turn, face = np.divmod(index, len(faces))
        assert sorted(face) == list(range(len(faces)))
        same = np.take_along_axis(plain.faces[face], (np.arange(3) - turn[:, None]) % 3, axis=1)
        for name, bits in (("POSITION", draco.POSITION_BITS), ("TEXCOORD_0", draco.UV_BITS)):
            old = plain.vertices if name == "POSITION" else plain.uvs
            if old is not None:
                step = np.ptp(old, axis=0).max() / (2**bits - 1)
                assert np.abs(attributes[name][faces] - old[same]).max() < 0.51 * step
        if plain.normals is not None:
            np.testing.assert_array_equal(attributes["TANGENT"][faces], plain.tangents[same].astype(np.float32))
            np.testing.assert_allclose(np.linalg.norm(attributes["NORMAL"], axis=1), 1, atol=1e-6)
            assert (attributes["NORMAL"][faces] * plain.normals[same]).sum(-1).min() > np.cos(np.radians(0.3))


def test_what_was_closed_stays_closed(small):
    _, ((_, faces, attributes), _) = decoded(small)
    points, index = np.unique(attributes["POSITION"], axis=0, return_inverse=True)
    mesh = Mesh(torch.from_numpy(points), torch.from_numpy(index.reshape(-1)[faces].astype(np.int64)))
    assert mesh.is_watertight
    assert mesh.volume > 0


def test_what_was_compressed_is_read(ball, small, tmp_path):
    """Each number as DracoPy has it; by the test above these are within the grid."""
    (tmp_path / "small.glb").write_bytes(small)
    _, found = decoded(small)
    for read_, (_, faces, attributes) in zip(opened(tmp_path / "small.glb").primitives, found, strict=True):
        np.testing.assert_array_equal(read_.faces, faces)
        names = {"POSITION": "vertices", "NORMAL": "normals", "TEXCOORD_0": "uvs", "TANGENT": "tangents"}
        for name, key in names.items():
            np.testing.assert_array_equal(getattr(read_, key), attributes.get(name))
    again = read(tmp_path / "small.glb")
    assert again.mesh.is_watertight
    assert (again.name, len(again.mesh.vertices)) == ("it", len(ball.mesh.vertices))
    bits = replace(ball.material, base_color=(ball.material.base_color * 255).round() / 255)
    torch.testing.assert_close(again.material.base_color, bits.base_color)
    assert {*colliders(tmp_path / "small.glb")} == {*HULL}
    draco_again = draco.encode(again, colliders(tmp_path / "small.glb"))
    assert abs(len(draco_again) / len(small) - 1) < 0.02


def replaced(small, change):
    """The file with other bytes for its first stream, and its indices' count."""
    tree, binary = chunks(small)
    (primitive,) = tree["meshes"][0]["primitives"]
    view = tree["bufferViews"][primitive["extensions"][draco.EXTENSION]["bufferView"]]
    start, end = view["byteOffset"], view["byteOffset"] + view["byteLength"]
    content, count = change(binary[start:end], tree["accessors"][primitive["indices"]]["count"])
    view |= {"byteOffset": len(binary), "byteLength": len(content)}
    tree["accessors"][primitive["indices"]]["count"] = count
    tree["buffers"][0]["byteLength"] = len(binary) + len(content)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text
    body += struct.pack("<I4s", len(binary) + len(content), b"BIN\0") + binary + content
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


BROKEN = {
    "more triangles than announced": (lambda stream, count: (stream, count - 3), "has 1280 triangles, and 1279 are"),
    "triangles without end": (
        lambda stream, count: (stream[:14] + b"\xff\xff\xff\xff\x0f" + stream[16:], count),
        "has 4294967295 triangles, and 1280 are",
    ),
    "a number without end": (lambda stream, count: (stream[:14] + b"\xff" * 9, count), "has no end"),
    "points": (lambda stream, count: (stream[:7] + b"\0" + stream[8:], count), "no Draco mesh"),
    "an old version": (lambda stream, count: (b"DRACO\1\1" + stream[7:], count), "no Draco mesh"),
    "half a stream": (lambda stream, count: (stream[: len(stream) // 2], count), "cannot be parsed"),
    "nothing": (lambda stream, count: (b"", count), "no Draco mesh"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_streams_are_refused(what, small, tmp_path):
    change, message = BROKEN[what]
    (tmp_path / "it.glb").write_bytes(replaced(small, change))
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "it.glb")


def test_a_plain_copy_beside_is_read_instead(ball, tmp_path):
    """Where the extension is used and not required."""
    content = glb.encode(ball)
    (tmp_path / "plain.glb").write_bytes(content)
    tree, binary = chunks(content)
    (primitive,) = tree["meshes"][0]["primitives"]
    primitive["extensions"] = {draco.EXTENSION: {"bufferView": 0, "attributes": {"POSITION": 0}}}
    tree["buffers"][0]["uri"] = "plain.bin"
    (tmp_path / "plain.bin").write_bytes(binary)
    (tmp_path / "both.gltf").write_text(json.dumps(tree | {"extensionsUsed": [draco.EXTENSION]}))
    first, second = read(tmp_path / "plain.glb"), read(tmp_path / "both.gltf")
    torch.testing.assert_close(first.mesh.vertices, second.mesh.vertices, atol=0, rtol=0)


def test_the_extra_is_named_where_it_is_missing(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    (tmp_path / "it.glb").write_bytes(small)
    assert main(["check", str(tmp_path / "it.glb")]) == 2
    assert 'needs the package DracoPy (pip install "threed-assets[compress]")' in capsys.readouterr().out


def test_the_command_judges_it(small, tmp_path, capsys):
    (tmp_path / "it.glb").write_bytes(small)
    assert main(["check", str(tmp_path / "it.glb"), "--json"]) == 1
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["figures"]["triangles"], told["figures"]["colliders"]) == (1280, 1)
    assert [each["name"] for each in told["findings"] if each["severity"] != "note"] == ["extensions"]


def test_the_tree_says_what_a_decoder_finds(ball, small):
    tree, found = decoded(small)
    assert tree["extensionsRequired"] == tree["extensionsUsed"] == ["KHR_draco_mesh_compression"]
    for primitive, faces, attributes in found:
        said = {name: tree["accessors"][index] for name, index in primitive["attributes"].items()}
        assert said.keys() == attributes.keys()
        assert all("bufferView" not in each for each in said.values())
        assert {name: each["count"] for name, each in said.items()} == {k: len(x) for k, x in attributes.items()}
        assert tree["accessors"][primitive["indices"]]["count"] == faces.size
        assert said["POSITION"]["min"] == attributes["POSITION"].min(0).tolist()
        assert said["POSITION"]["max"] == attributes["POSITION"].max(0).tolist()
    plain, binary = chunks(glb.encode(ball, HULL))
    _, squeezed = chunks(small)
    for theirs, ours in zip(plain["images"], tree["images"], strict=True):
        old, new = plain["bufferViews"][theirs["bufferView"]], tree["bufferViews"][ours["bufferView"]]
        assert binary[old["byteOffset"] :][: old["byteLength"]] == squeezed[new["byteOffset"] :][: new["byteLength"]]


def test_the_same_asset_gives_the_same_bytes_and_fewer(ball, small):
    assert draco.encode(ball, HULL) == small
    bare = replace(ball, material=replace(ball.material, normal=None))
    sizes = []
    for content in (glb.encode(bare), draco.encode(bare)):
        tree, binary = chunks(content)
        images = sum(tree["bufferViews"][image["bufferView"]]["byteLength"] for image in tree["images"])
        sizes.append(len(binary) - images)
    assert sizes[1] < sizes[0] / 7
    assert struct.unpack("<I", small[8:12])[0] == len(small)


def test_another_program_reads_it(ball, small, tmp_path):
    (tmp_path / "it.glb").write_bytes(small)
    found = trimesh.load(tmp_path / "it.glb").geometry
    assert len(found["it"].faces) == len(ball.mesh.faces)
    assert found["it"].visual.material.baseColorTexture.size == (128, 128)
    assert found["it_00-convcolonly"].volume == pytest.approx(6, rel=1e-4)


def test_the_command_writes_it_beside_the_plain_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(painted(trimesh.creation.icosphere(2)), tmp_path / "it.glb")
    arguments = ["export", "it.glb", "--preset", "godot", "--no-lods", "--output", "a.glb"]
    assert main(arguments) == 0
    plain = (tmp_path / "a.glb").read_bytes()
    assert main([*arguments, "--compress", "draco"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"it.glb", "a.glb", "a_draco.glb", "a_report.json"}
    assert (tmp_path / "a.glb").read_bytes() == plain
    small = (tmp_path / "a_draco.glb").read_bytes()
    told = json.loads((tmp_path / "a_report.json").read_text())
    assert told["done"][-1] == f"made a_draco.glb, {len(small) / len(plain):.0%} as large as a.glb"
    assert told["files"]["a_draco.glb"] == len(small)
    assert [each["file"] for each in told["check"]] == ["a.glb"]
    _, found = decoded(small)
    assert [len(faces) for _, faces, _ in found] == [320, 64]


def test_levels_have_theirs():
    wanted = Wanted(replace(PRESETS["unity"], lods=(0.5,)), ".glb", "a", texels=64, compress="draco")
    package = packed(painted(trimesh.creation.icosphere(2), 64), wanted)
    assert [*package.files] == ["a.glb", "a_draco.glb", "a_lod1.glb", "a_lod1_draco.glb"]
    assert [*package.assets] == ["a.glb", "a_lod1.glb"]
    _, ((_, faces, _),) = decoded(package.files["a_lod1_draco.glb"])
    assert len(faces) == len(package.assets["a_lod1.glb"].mesh.faces)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--compress", "drako"], "unknown compression 'drako'; did you mean 'draco'?"),
        (["--compress", "draco", "--output", "a.obj"], "--output ends with .obj; use .glb or leave it out"),
        (["--compress", "draco", "--output", "a.glb"], 'pip install "threed-assets[compress]"'),
    ],
)
def test_what_cannot_be_compressed_is_told_before_any_work(flags, message, ball, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_cli, "find_spec", lambda name: None)
    (tmp_path / "it.glb").write_bytes(b"not even read")
    assert main(["export", "it.glb", *flags]) == 2
    assert message in capsys.readouterr().err
