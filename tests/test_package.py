"""From any mesh to what an engine wants: mended, closed, simplified with its look kept, with levels and colliders."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import ConvexHull

from threed.cli import main
from threed.exporters import ENCODERS, collider, export, glb, gltf, report
from threed.exporters.closed import closed
from threed.exporters.package import Wanted, packed, power_of_two
from threed.exporters.presets import PRESETS
from threed.exporters.repair import repaired
from threed.exporters.transfer import Nearest, closest, refitted, samples
from threed.exporters.unwrap import unwrap
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import colliders, opened, read


def meshed(shape):
    return Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))


def painted(shape, size=128, name="it"):
    """A shape whose texture says where each texel lies: its colour is its place in the box."""
    from threed.exporters.bake import bake

    mesh = shape if isinstance(shape, Mesh) else meshed(shape)
    uvs, uv_faces = unwrap(mesh, size)
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    texture = bake(mesh, uvs, uv_faces, lambda points, _: (points - low) / (high - low), size)
    return Asset(name, mesh, uvs, uv_faces, Material(texture, roughness=0.75))


def pieces(*meshes):
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    faces = torch.cat([m.faces + int(start) for m, start in zip(meshes, starts, strict=False)])
    return Mesh(torch.cat([m.vertices for m in meshes]), faces)


def plain(mesh):
    return Asset("it", mesh, torch.full((1, 2), 0.5), torch.zeros_like(mesh.faces), Material(torch.ones(4, 4, 3)))


@pytest.fixture(scope="module")
def ball():
    return painted(trimesh.creation.icosphere(4))


def seen(asset):
    return surface.render(asset, orbit(4), 64, 64)


def test_double_flat_and_turned_triangles_are_mended_and_said(ball):
    broken = replace(
        ball,
        mesh=Mesh(
            ball.mesh.vertices,
            torch.cat([ball.mesh.faces.flip(1), ball.mesh.faces[:3], ball.mesh.faces[:1, [0, 0, 1]]]),
        ),
        uv_faces=torch.cat([ball.uv_faces.flip(1), ball.uv_faces[:4]]),
    )
    found, done = repaired(broken)
    assert done == [
        "dropped 1 triangles that had no area",
        "dropped 3 triangles that lay on another one",
        f"reversed {len(ball.mesh.faces)} triangles that faced inward",
    ]
    report.verify(found)
    torch.testing.assert_close(found.mesh.corners, ball.mesh.corners)
    torch.testing.assert_close(found.uvs[found.uv_faces], ball.uvs[ball.uv_faces])
    assert repaired(ball)[1] == []


def test_the_nearest_point_of_a_triangle_is_that_of_a_grid():
    random = torch.Generator().manual_seed(0)
    corners = torch.randn(50, 3, 3, generator=random)
    points = torch.randn(50, 3, generator=random) * 2
    weight = closest(points, corners)
    torch.testing.assert_close(weight.sum(1), torch.ones(50))
    assert (weight >= 0).all()
    away = ((corners * weight[..., None]).sum(1) - points).norm(dim=-1)
    steps = torch.linspace(0, 1, 60)
    grid = torch.tensor([[1 - a - b, a, b] for a in steps.tolist() for b in steps.tolist() if a + b <= 1 + 1e-6])
    places = (grid[:, None, :, None] * corners).sum(2)
    best = (places - points).norm(dim=-1).amin(0)
    assert (away <= best + 1e-6).all()
    assert (away >= best - 0.1).all()


def test_samples_lie_on_all_triangles_by_their_area():
    mesh = meshed(trimesh.creation.box((1, 2, 3)))
    face, weight = samples(mesh)
    assert (weight >= 0).all()
    share = face.bincount(minlength=12) / len(face)
    a, b, c = mesh.corners.unbind(1)
    area = (b - a).cross(c - a, dim=-1).norm(dim=-1)
    torch.testing.assert_close(share, area / area.sum(), atol=1e-3, rtol=0)
    middle = torch.stack([weight[face == f].mean(0) for f in range(12)])
    torch.testing.assert_close(middle, torch.full((12, 3), 1 / 3), atol=0.01, rtol=0)


def test_thin_walls_keep_the_colours_of_their_own_sides():
    """A board of a hundredth of its width, asked for from half a thickness off: above is above."""
    board = meshed(trimesh.creation.box((1, 0.01, 1)))
    nearest = Nearest.of(board)
    points = torch.tensor([[0.3, 0.001, 0.2], [0.3, -0.001, 0.2]])
    for normals, height in ((torch.tensor([[0.0, 1, 0]] * 2), 0.005), (torch.tensor([[0.0, -1, 0]] * 2), -0.005)):
        face, weight = nearest(points, normals)
        found = (board.corners[face] * weight[..., None]).sum(1)
        torch.testing.assert_close(found, points * torch.tensor([1, 0, 1]) + torch.tensor([0, height, 0]))


def test_fewer_triangles_look_the_same(ball):
    from threed.exporters.simplify import simplify
    from threed.pictures import agreement, colour_psnr

    mesh = simplify(ball.mesh, 600)
    small = refitted(ball, mesh, 128)
    assert small.material.roughness == 0.75
    report.verify(small)
    _, iou = agreement(seen(small), seen(ball))
    assert iou > 0.98
    assert colour_psnr(seen(small), seen(ball)) > 35
    detailed = refitted(ball, mesh, 128, normal_map=True)
    report.verify(detailed)
    normals = [surface.render(each, orbit(4), 64, 64, smooth=True).normal for each in (ball, detailed, small)]
    assert detailed.material.normal is not None
    assert normals[0].shape == normals[1].shape


def test_holes_are_closed_and_their_look_stays():
    ball = painted(trimesh.creation.icosphere(3))
    kept = torch.ones(len(ball.mesh.faces), dtype=torch.bool).index_fill(0, torch.tensor([5, 300]), False)
    torn = replace(ball, mesh=Mesh(ball.mesh.vertices, ball.mesh.faces[kept]), uv_faces=ball.uv_faces[kept])
    mesh, done = closed(torn)
    assert done == ["closed its holes"]
    assert mesh.is_watertight
    assert float(mesh.volume) == pytest.approx(float(ball.mesh.volume), rel=0.01)
    assert closed(ball) == (ball.mesh, [])


def test_overlapping_boxes_become_one_of_the_volume_that_they_fill():
    boxes = pieces(
        *(meshed(trimesh.creation.box((1, 1, 1)).apply_translation([x, 0.1 * x, 0.2 * x])) for x in (0, 0.5))
    )
    mesh, done = closed(plain(boxes))
    assert done == ["made overlapping parts one"]
    assert mesh.is_watertight
    assert float(mesh.volume) == pytest.approx(2 - 0.5 * 0.95 * 0.9, rel=1e-5)
    apart = pieces(*(meshed(trimesh.creation.box((1, 1, 1)).apply_translation([x, 0, 0])) for x in (0, 1.5)))
    assert closed(plain(apart)) == (apart, [])


def test_a_sheet_is_made_solid_of_voxels():
    sheet = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    mesh, done = closed(plain(sheet))
    assert "voxels" in done[0]
    assert mesh.is_watertight
    assert mesh.volume > 0
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    torch.testing.assert_close(high - low, torch.tensor([1.0, 1, 0]), atol=0.05, rtol=0)


def test_hulls_hold_what_they_are_of():
    cube = collider.hull(meshed(trimesh.creation.box((1, 2, 3)).subdivide()).vertices.numpy())
    assert (len(cube.vertices), len(cube.faces)) == (8, 12)
    assert float(cube.volume) == pytest.approx(6)
    points = np.random.default_rng(0).normal(size=(500, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    small = collider.hull(points)
    assert small.is_watertight
    assert len(small.faces) <= 64
    assert 0.75 * ConvexHull(points).volume < float(small.volume) < ConvexHull(points).volume
    with pytest.raises(ValueError, match="lie in a plane"):
        collider.hull(points * [1, 1, 0])


def test_convex_parts_follow_an_l():
    pytest.importorskip("coacd")
    boxes = pieces(
        *(meshed(trimesh.creation.box((1, 1, 1)).apply_translation([x, y, 0])) for x, y in ((0, 0), (0.9, 0), (0, 0.9)))
    )
    mesh, _ = closed(plain(boxes))
    parts = collider.convex_parts(mesh)
    assert 2 <= len(parts) <= 4
    assert all(part.is_watertight for part in parts)
    assert sum(float(part.volume) for part in parts) == pytest.approx(float(mesh.volume), rel=0.1)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 100, 181, 182, 1024, 1500])
def test_powers_of_two_are_the_nearest_by_ratio(side):
    found = power_of_two(side)
    assert found.bit_count() == 1
    assert 0.5**0.5 <= found / side <= 2**0.5


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold(ball, name):
    """Budgets, places and names, from a ball of 5,120 triangles with budgets a tenth as large."""
    preset = replace(PRESETS[name], triangles=PRESETS[name].triangles // 10)
    moved = replace(ball, mesh=ball.mesh.with_vertices(ball.mesh.vertices + 3))
    package = packed(moved, Wanted(preset, ".glb", "ball", height=0.5))
    levels = ["ball.glb", *(f"ball_lod{i + 1}.glb" for i in range(len(preset.lods)))]
    assert [*package.assets] == levels
    faces = [len(each.mesh.faces) for each in package.assets.values()]
    assert faces[0] <= preset.triangles
    for share, count in zip(preset.lods, faces[1:], strict=True):
        assert count <= faces[0] * share + 1
    for each in package.assets.values():
        low, high = each.mesh.vertices.amin(0), each.mesh.vertices.amax(0)
        foot = -0.25 if preset.pivot == "centre" else 0.0
        torch.testing.assert_close(torch.stack([low[1], high[1]]), torch.tensor([foot, foot + 0.5]), atol=0.02, rtol=0)
        torch.testing.assert_close((low + high)[[0, 2]], torch.zeros(2), atol=0.02, rtol=0)
        assert each.mesh.is_watertight
    assert packed(moved, Wanted(preset, ".glb", "ball", height=0.5)).files == package.files


def test_there_are_as_many_levels_as_become_simpler():
    package = packed(plain(meshed(trimesh.creation.box())), Wanted(PRESETS["godot"], ".glb", "box"))
    assert [*package.assets] == ["box.glb"]


def test_occlusion_makes_itself_room_and_goes_with_all_levels(tmp_path):
    preset = replace(PRESETS["godot"], lods=(0.5,))
    package = packed(
        plain(meshed(trimesh.creation.icosphere(2))), Wanted(preset, ".glb", "ball", texels=64, occlusion=True)
    )
    assert package.done[:2] == ["unwrapped it: its layout had no room for occlusion", "baked an occlusion map"]
    for each in package.assets.values():
        assert each.material.occlusion.min() > 0.95


def test_colliders_go_by_the_names_that_engines_look_for(ball, tmp_path):
    for preset, pattern in (("godot", "ball_00-convcolonly"), ("unreal", "UCX_ball_00")):
        package = packed(ball, Wanted(PRESETS[preset], ".glb", "ball", lods=False))
        (tmp_path / "ball.glb").write_bytes(package.files["ball.glb"])
        names = [each.name for each in opened(tmp_path / "ball.glb").primitives]
        assert names == ["ball", pattern]
        assert len(read(tmp_path / "ball.glb").mesh.faces) == len(ball.mesh.faces)
    package = packed(ball, Wanted(PRESETS["unity"], ".glb", "ball", lods=False, collider="hull"))
    assert [*package.files] == ["ball.glb", "ball_collider.glb"]
    package = packed(ball, Wanted(PRESETS["godot"], ".obj", "ball", lods=False, collider="hull"))
    assert {"ball.obj", "ball_collider.obj"} <= package.files.keys()


def box(size, middle=(0, 0, 0)):
    return meshed(trimesh.creation.box(size).apply_translation(middle))


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("godot", ("new_00-convcolonly", "new_01-convcolonly", "new_02-colonly")),
        ("unreal", ("UCX_new_00", "UBX_new_01", "UCX_new_02")),
    ],
)
def test_colliders_of_its_own_are_kept_in_their_places(preset, names, ball, tmp_path):
    """Two that are convex, and an L that is not: its hull, for the engine that takes nothing else."""
    bent = pieces(box((2, 0.5, 2)), box((0.5, 2, 2), (-0.75, 0.75, 0)))
    own = {"old_00-convcolonly": box((1, 2, 3)), "UBX_old_1": box((1, 1, 1), (2, 0, 0)), "old-colonly": bent}
    export(ball, tmp_path / "plain.glb")
    (tmp_path / "old.glb").write_bytes(glb.encode(ball, own))
    arguments = ["--preset", preset, "--height", "0.5", "--output", str(tmp_path / "new.glb")]
    assert main(["export", str(tmp_path / "old.glb"), *arguments, "--no-lods"]) == 0
    found = colliders(tmp_path / "new.glb")
    assert tuple(found) == names
    low, high = ball.mesh.vertices.amin(0), ball.mesh.vertices.amax(0)
    scale = 0.5 / (high[1] - low[1])
    ground = torch.stack([(low + high)[0] / 2, low[1], (low + high)[2] / 2])
    for (name, mesh), old in zip(found.items(), own.values(), strict=True):
        hulled = name == "UCX_new_02"
        expected = (old.vertices - ground) * scale
        if not hulled:
            torch.testing.assert_close(mesh.corners, expected[old.faces], atol=1e-6, rtol=0)
        assert float(mesh.volume) == pytest.approx(
            ConvexHull(expected).volume if hulled else float(Mesh(expected, old.faces).volume), rel=1e-4
        )
    assert main(["export", str(tmp_path / "old.glb"), *arguments, "--no-lods", "--collider", "hull"]) == 0
    made = (tmp_path / "new.glb").read_bytes()
    assert main(["export", str(tmp_path / "plain.glb"), *arguments, "--no-lods"]) == 0
    assert (tmp_path / "new.glb").read_bytes() == made
    assert main(["export", str(tmp_path / "old.glb"), *arguments, "--no-lods", "--collider", "none"]) == 0
    assert colliders(tmp_path / "new.glb") == {}


def test_colliders_stand_beside_it_where_an_engine_has_no_name_for_them(ball, tmp_path):
    package = packed(ball, Wanted(PRESETS["web"], ".glb", "ball"), {"UCX_ball": box((1, 2, 3))})
    assert [*package.files] == ["ball.glb", "ball_collider.glb"]
    assert package.done == ["kept its 1 collider"]
    (tmp_path / "it.glb").write_bytes(package.files["ball_collider.glb"])
    assert float(read(tmp_path / "it.glb").mesh.volume) == pytest.approx(6)


def test_prints_are_in_millimetres_and_stand_on_their_plate(ball, tmp_path):
    tall = painted(trimesh.creation.box((0.1, 0.3, 0.2)))
    package = packed(tall, Wanted(PRESETS["print"], ".stl", "box"))
    (tmp_path / "box.stl").write_bytes(package.files["box.stl"])
    box = trimesh.load(tmp_path / "box.stl")
    np.testing.assert_allclose(box.bounds, [[-50, -100, 0], [50, 100, 300]], atol=1e-3)
    assert box.is_watertight
    assert box.volume == pytest.approx(6e6, rel=1e-4)


def test_prints_are_judged_in_their_own_unit_and_axes(ball, tmp_path, capsys):
    """Taken for an engine's, a metre of millimetres is a kilometre that lies on its side."""
    export(ball, tmp_path / "ball.glb")
    for suffix in (".obj", ".ply", ".stl"):
        made = tmp_path / f"print{suffix}"
        assert main(["export", str(tmp_path / "ball.glb"), "--preset", "print", "--output", str(made)]) == 0
        assert main(["check", str(made), "--preset", "print", "--json"]) == 0
        (told,) = json.loads("[" + capsys.readouterr().out.partition("\n[\n")[2])
        assert told["figures"]["size"] == pytest.approx([2, 2, 2], abs=1e-2)
        assert {x["name"] for x in told["findings"]} <= {"uvs-missing"}
        assert main(["check", str(made)]) == 1


def test_every_format_brings_the_shape_back(ball, tmp_path):
    for suffix in ENCODERS:
        if suffix == ".usdz" and find_spec("pxr") is None:
            continue
        export(ball, tmp_path / f"ball{suffix}")
        again = read(tmp_path / f"ball{suffix}")
        assert again.mesh.is_watertight
        torch.testing.assert_close(again.mesh.corners, ball.mesh.corners, atol=1e-6, rtol=0)
    colours = trimesh.load(tmp_path / "ball.ply", process=False).visual.vertex_colors[:, :3] / 255
    expected = (ball.mesh.vertices + 1) / 2
    np.testing.assert_allclose(colours, expected, atol=0.03)


def full(size=128):
    """A material with all maps, whose texels have nothing to do with one another."""
    dice = torch.rand(size, size, 9, generator=torch.Generator().manual_seed(0))
    normal = torch.nn.functional.normalize(dice[..., :3] + torch.tensor([-0.5, -0.5, 1]), dim=-1)
    color, shine, dim = dice[..., 3:6], dice[..., 6:8], dice[..., 8:]
    return Material(color, roughness_metallic=shine, normal=normal, occlusion=dim)


@pytest.mark.parametrize("without", ["nothing", "roughness_metallic", "normal", "occlusion"])
def test_gltf_keeps_its_bytes(without, ball, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "again").mkdir()
    material = full() if without == "nothing" else replace(full(), **{without: None})
    sharp = painted(trimesh.creation.box())
    assets = ball, sharp, replace(ball, material=material), replace(sharp, material=material)
    for number, asset in enumerate(assets):
        for suffix in (".glb", ".gltf"):
            # What a file is called is one thing, what is in it another.
            export(replace(asset, name="a barrel"), tmp_path / f"first/{number}{suffix}")
            export(read(tmp_path / f"first/{number}{suffix}"), tmp_path / f"again/{number}{suffix}")
    assert len([*(tmp_path / "first").iterdir()]) > 2 * len(assets)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(("preset", "suffix"), [("godot", ".glb"), ("unreal", ".gltf")])
def test_levels_and_colliders_keep_their_bytes(preset, suffix, ball, tmp_path):
    wanted = Wanted(PRESETS[preset], suffix, "ball", triangles=200, texels=128)
    package = packed(replace(ball, material=full()), replace(wanted, preset=replace(wanted.preset, lods=(0.5,))))
    for name, content in package.files.items():
        (tmp_path / name).write_bytes(content)
    encode = {".glb": glb.encode_files, ".gltf": gltf.encode_files}[suffix]
    again = {}
    for name in package.assets:
        again |= encode(read(tmp_path / name), name, colliders(tmp_path / name))
    assert again == package.files
    assert len(package.assets) == 2
    assert len(colliders(tmp_path / f"ball{suffix}")) == 1


def test_the_command_writes_all_and_says_so(ball, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    export(
        replace(ball, mesh=Mesh(ball.mesh.vertices, ball.mesh.faces.flip(1)), uv_faces=ball.uv_faces.flip(1)),
        tmp_path / "run" / "asset.glb",
    )
    assert main(["export", "run", "--preset", "godot", "--faces", "1000"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    levels = {f"run-godot{x}.glb" for x in ("", "_lod1", "_lod2", "_lod3")}
    assert names == {"run", "run-godot_report.json"} | levels
    told = json.loads((tmp_path / "run-godot_report.json").read_text())
    assert told["done"][0] == f"reversed {len(ball.mesh.faces)} triangles that faced inward"
    assert "simplified 5120 triangles to 1000" in told["done"]
    assert {each["file"] for each in told["check"]} == levels
    assert not [x for each in told["check"] for x in each["findings"] if x["severity"] != "note"]
    assert "reversed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["none.glb"], "there is no mesh 'none.glb'"),
        (["it.glb", "--preset", "godott"], "unknown preset 'godott'; did you mean 'godot'?"),
        (["it.glb", "--output", "it.fbx"], "must end with one of .glb, .gltf, .obj, .ply, .stl, .usdz"),
        (["it.glb", "--output", "it.glb"], "--output would replace 'it.glb'"),
        (["it.glb", "--output", "x" * 220 + ".glb"], "bytes too long"),
        (["it.glb", "--faces", "3"], "--faces is 3; it must lie between 4 and 2000000"),
        (["it.glb", "--texture-size", "100"], "power of two"),
        (["it.glb", "--collider", "box"], "unknown collider 'box'"),
        (["bad.glb"], "cannot be parsed"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(flags, message, ball, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export(ball, tmp_path / "it.glb")
    (tmp_path / "bad.glb").write_bytes(b"glTF")
    before = sorted(tmp_path.iterdir())
    assert main(["export", *flags]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["椅子", "🪑 стул", 'it\'s "quoted" & <odd>', "  a%20b#c?d", "é" * 60])
def test_odd_names_go_out_and_come_back(name, ball, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(ball, tmp_path / "it.glb")
    for suffix in (".glb", ".gltf", ".obj"):
        assert main(["export", "it.glb", "--output", f"out/{name}{suffix}"]) == 0
        assert main(["check", f"out/{name}{suffix}"]) == 0
        assert len(read(tmp_path / "out" / f"{name}{suffix}").material.base_color) == 128
    tree = json.loads((tmp_path / "out" / f"{name}.gltf").read_bytes())
    for uri in (tree["buffers"][0]["uri"], tree["images"][0]["uri"]):
        assert not set(uri) & {*" %#?&<>\"'"}  # which readers would have to undo, and not all do
        assert (tmp_path / "out" / uri).is_file()
        assert uri.encode() in (tmp_path / "out" / f"{name}.gltf").read_bytes()
