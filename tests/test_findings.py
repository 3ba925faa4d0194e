"""Findings: meshes made broken on purpose, one defect each, and the sound ones beside them that have none."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from threed import check_cli
from threed.cli import main
from threed.errors import Mistake
from threed.exporters import defects, export, findings
from threed.exporters.findings import check, worst
from threed.exporters.presets import PRESETS
from threed.exporters.unwrap import overlap as unwrap_overlap
from threed.exporters.unwrap import unwrap
from threed.renderers.document import Document, Primitive, Skin
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import opened
from threed.renderers.topology import edges


def primitive(shape, **changes):
    """A shape on the ground, with all that a file can have of it: smooth normals, and a layout without overlap."""
    shape = shape.copy().apply_translation([0, -shape.bounds[0][1], 0])
    mesh = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
    uvs, uv_faces = unwrap(mesh, 256)
    corner = mesh.faces.reshape(-1)
    made = Primitive(
        "it",
        np.array(shape.vertices)[corner],
        np.arange(len(corner)).reshape(-1, 3),
        uvs[uv_faces.reshape(-1)].double().numpy(),
        mesh.vertex_normals[corner].double().numpy(),
        None,
        None,
        Skin(color=Image.new("RGB", (64, 64))),
    )
    return replace(made, **changes)


BALL = trimesh.creation.icosphere(3, 0.5)


@pytest.fixture(scope="module")
def ball():
    return primitive(BALL)


def names(*primitives, preset=None, **kwargs):
    document = Document(tuple(primitives), linear=True, **kwargs)
    return {each.name: each.severity for each in check(document, PRESETS[preset] if preset else None)}


def moved(each, **kwargs):
    return replace(each, **{key: change(getattr(each, key)) for key, change in kwargs.items()})


def test_a_sound_mesh_has_no_findings(ball):
    assert names(ball) == {}
    assert worst([]) == 0
    for name in PRESETS:
        assert names(ball, preset=name) == {}


def test_every_defect_is_found_alone(ball):
    def first(values, value):
        return np.concatenate([np.full_like(values[:1], value), values[1:]])

    broken = {
        "not-finite": moved(ball, normals=lambda x: first(x, np.nan)),
        "out-of-range": moved(ball, faces=lambda f: np.concatenate([f, [[0, 1, len(ball.vertices)]]])),
        "degenerate": moved(ball, faces=lambda f: np.concatenate([f, [[0, 0, 1]]])),
        "duplicate": moved(ball, faces=lambda f: np.concatenate([f, f[:1]])),
        "open": moved(ball, faces=lambda f: f[1:]),
        "inside-out": moved(ball, faces=lambda f: f[:, ::-1], normals=np.negative),
        "uvs-missing": replace(ball, uvs=None, skin=Skin()),
        "uvs-outside": moved(ball, uvs=lambda uv: uv * 3),
        "normals-missing": replace(ball, normals=None),
        "normals-not-unit": moved(ball, normals=lambda n: n * 0.9),
        "normals-inward": moved(ball, normals=np.negative),
        "tangents-missing": replace(ball, skin=Skin(bumps=Image.new("RGB", (64, 64)))),
        "textures-odd": replace(ball, skin=Skin(color=Image.new("RGB", (100, 64)))),
        "textures-huge": replace(ball, skin=Skin(color=Image.new("RGB", (4096, 4096)))),
        "pivot": moved(ball, vertices=lambda v: v + np.array([1, 0, 0])),
        "scale": moved(ball, vertices=lambda v: v * 1000),
    }
    for name, each in broken.items():
        assert names(each).keys() == {name}, name


def test_nothing_to_see_is_an_error(ball):
    assert names() == names(replace(ball, faces=ball.faces[:0])) == {"empty": "error"}
    assert (
        names(replace(ball, name="UCX_it_00")) == names(replace(ball, name="it_00-convcolonly")) == {"empty": "error"}
    )


def test_one_of_two_balls_inside_out_shows_its_back(ball):
    far = moved(ball, vertices=lambda v: v + np.array([3, 0, 0]), faces=lambda f: f[:, ::-1], normals=np.negative)
    assert names(ball, far).keys() >= {"turned", "parts", "draw-calls"}
    message = next(x.message for x in check(Document((ball, far), linear=True)) if x.name == "turned")
    assert message == f"{len(ball.faces)} of {2 * len(ball.faces)} triangles show their back side"
    cavity = moved(ball, vertices=lambda v: v * 0.5 + np.array([0, 0.25, 0]), faces=lambda f: f[:, ::-1])
    assert "turned" not in names(ball, replace(cavity, normals=-cavity.normals))


def test_three_leaves_of_a_book_crowd_their_edge(ball):
    leaves = [[0, 1, 2], [1, 0, 3], [0, 1, 4]]
    corners = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1]], float)
    book = Primitive("book", corners, np.array(leaves), None, None, None, None, Skin())
    assert names(book)["crowded"] == "warning"
    assert names(book, preset="roblox")["crowded"] == names(book, preset="print")["open"] == "error"


def test_needles_are_slivers(ball):
    needles = moved(ball, vertices=lambda v: v * [1, 1000, 1])
    assert "slivers" in names(needles)


def test_overlaps_and_uneven_layouts(ball):
    half = np.arange(len(ball.uvs))[:, None] < len(ball.uvs) // 2
    twice = replace(ball, uvs=np.where(half, 1 - ball.uvs, ball.uvs))
    assert names(twice).keys() == {"uvs-overlapping"}
    sheet = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0, 0], [2, 1, 0]], float)
    faces = np.array([[0, 1, 2], [0, 2, 3], [1, 4, 5], [1, 5, 2]])
    uvs = np.array([[0, 0], [0.9, 0], [0.9, 0.9], [0, 0.9], [1, 0], [1, 0.9]])
    uneven = Primitive("sheet", sheet, faces, uvs, None, None, None, Skin(color=Image.new("RGB", (8, 8))))
    assert findings.density_ratio(uneven) == pytest.approx(3)  # sqrt(0.81 / 0.09), squares of a square metre each
    squeezed = replace(uneven, uvs=np.where(uvs > 0.9, 0.92, uvs))
    assert findings.uneven_density([squeezed]).name == "uneven-density"
    assert findings.uneven_density([uneven]) is None


def test_layouts_on_top_of_themselves_a_thousand_times_take_no_time(ball):
    """A file whose list of primitives was repeated; one of needles, each as long as the texture."""
    started = time.process_time()
    faces = torch.arange(1000 * len(ball.uvs)).view(-1, 3)
    assert unwrap_overlap(torch.from_numpy(ball.uvs).float().repeat(1000, 1), faces, 1024) > 100
    ends = torch.rand(300_000, 2, generator=torch.Generator().manual_seed(0))
    needles = torch.stack([ends, 1 - ends, ends + 1e-6], dim=1).clamp(0, 1)
    unwrap_overlap(needles.view(-1, 2), torch.arange(900_000).view(-1, 3), 1024)
    assert time.process_time() - started < 30


def test_budgets_and_extensions(ball):
    shape = trimesh.creation.icosphere(6, 0.5)
    vertices = np.array(shape.vertices)
    heavy = Primitive("it", vertices, np.array(shape.faces), None, 2 * vertices, None, None, Skin())
    assert len(heavy.faces) == 81920
    message = next(x.message for x in check(Document((heavy,), linear=True)) if x.name == "budget")
    assert "roblox (20,000)" in message
    assert "print" not in message
    assert names(heavy, preset="roblox")["budget"] == "error"
    assert "budget" not in names(heavy, preset="print")
    assert names(ball, extensions=("KHR_mesh_quantization",)) == {"extensions": "warning"}


def meshed(shape):
    return Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))


def test_any_mixture_of_directions_comes_out_outward():
    """Faces of a ball, a torus and an open cup, turned at random, each body with a side of its own to show."""
    cup = trimesh.creation.icosphere(3)
    cup.update_faces(cup.triangles_center[:, 1] < 0.5)
    cup.remove_unreferenced_vertices()
    random = np.random.default_rng(0)
    for shape in (trimesh.creation.icosphere(2), trimesh.creation.torus(1, 0.3), cup):
        mesh = meshed(shape)
        for share in (0.1, 0.9, 1.0):
            wrong = torch.from_numpy(random.random(len(mesh.faces)) < share)
            mixed = Mesh(mesh.vertices, torch.where(wrong[:, None], mesh.faces.flip(1), mesh.faces))
            assert torch.equal(defects.turned(mixed, edges(mixed.faces)), wrong)


def test_a_moebius_strip_has_no_side_to_show():
    count = 12
    turn = np.arange(count) * 2 * np.pi / count
    rows = [
        np.stack(
            [
                (1 + s * np.cos(turn / 2)) * np.cos(turn),
                s * np.sin(turn / 2),
                (1 + s * np.cos(turn / 2)) * np.sin(turn),
            ],
            1,
        )
        for s in (-0.3, 0.3)
    ]
    near, far = np.arange(count), np.arange(count) + count
    after = [np.append(near[1:], count), np.append(far[1:], 0)]  # once around, the sides have changed places
    faces = np.concatenate([np.stack([near, after[0], far], 1), np.stack([after[0], after[1], far], 1)])
    strip = Mesh(torch.tensor(np.concatenate(rows)).float(), torch.tensor(faces))
    assert not defects.turned(strip, edges(strip.faces)).any()


def test_holes_are_counted_and_thinness_is_that_of_closed_forms():
    ball = meshed(trimesh.creation.icosphere(3))
    away = torch.tensor([0, 400, 900])
    kept = torch.ones(len(ball.faces), dtype=torch.bool).index_fill(0, away, False)
    assert defects.holes(edges(ball.faces)) == 0
    assert defects.holes(edges(ball.faces[kept])) == 3
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.5, 3**0.5 / 2, 0], [0.5, 0.25, 0], [0.5, 0, 0]])
    thin = defects.thinness(Mesh(points, torch.tensor([[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 0, 0]])))
    torch.testing.assert_close(thin, torch.tensor([3**0.5 / 2, 0.25, 0, 0]).double(), atol=1e-6, rtol=0)


@pytest.fixture
def files(tmp_path):
    mesh = meshed(BALL)
    asset = Asset(
        "ball",
        mesh.with_vertices(mesh.vertices + torch.tensor([0, 0.5, 0])),
        *unwrap(mesh, 64),
        Material(torch.rand(64, 64, 3)),
    )
    export(asset, tmp_path / "good.glb")
    export(
        replace(asset, mesh=Mesh(asset.mesh.vertices, asset.mesh.faces[1:]), uv_faces=asset.uv_faces[1:]),
        tmp_path / "open.obj",
    )
    export(
        replace(asset, mesh=Mesh(asset.mesh.vertices, asset.mesh.faces.flip(1)), uv_faces=asset.uv_faces.flip(1)),
        tmp_path / "turned.gltf",
    )
    (tmp_path / "broken.glb").write_bytes(b"glTF")
    (tmp_path / "nothing.glb").write_bytes(b"")
    return tmp_path


def test_exit_codes_follow_the_worst_finding(files, capsys):
    for name, code, told in (
        ("good.glb", 0, "nothing to find fault with"),
        ("open.obj", 1, "warning it is not watertight: 3 open edges around 1 hole (close them"),
        ("turned.gltf", 2, "error   it is inside out (reverse its faces"),
        ("broken.glb", 2, "broken.glb' cannot be parsed"),
        ("nothing.glb", 2, "nothing.glb' cannot be parsed (there is no glTF in it"),
        ("missing.glb", 2, "there is no file"),
    ):
        assert main(["check", str(files / name)]) == code
        assert told in capsys.readouterr().out
    assert main(["check", str(files / "good.glb"), str(files / "open.obj")]) == 1
    assert main(["check", str(files / "open.obj"), "--preset", "print"]) == 2
    assert main(["check"]) == 2
    assert main(["check", str(files / "good.glb"), "--preset", "webb"]) == 2
    assert "did you mean 'web'" in capsys.readouterr().err


def test_json_has_figures_and_findings(files, capsys):
    assert main(["check", str(files / "good.glb"), str(files / "broken.glb"), "--json"]) == 2
    good, broken = json.loads(capsys.readouterr().out)
    assert good["findings"] == []
    assert good["figures"]["triangles"] == len(BALL.faces)
    assert good["figures"]["size"] == pytest.approx([1, 1, 1], abs=1e-3)
    assert good["figures"]["textures"] == [[64, 64]]
    assert good["figures"]["bytes"] == (files / "good.glb").stat().st_size
    assert [x["name"] for x in broken["findings"]] == ["unreadable"]


def test_a_run_folder_stands_for_its_asset(files):
    (files / "run").mkdir()
    (files / "good.glb").rename(files / "run" / "asset.glb")
    assert main(["check", str(files / "run")]) == 0
    assert len(opened(check_cli.mesh_of(files / "run")).primitives) == 1
    with pytest.raises(Mistake, match="unknown preset"):
        check_cli.preset_of("gameboy")
