"""Recipes of more than one stage, and those that begin with a mesh, under a prior that knows the object."""

import json
from dataclasses import replace

import pytest
import torch
from test_pipeline import NERF, RECIPE, REQUEST, assert_same_bytes, box, made
from truth import SOLIDS, oracle

from threed.distill.anneal import Anneal
from threed.distill.sds import SDS
from threed.errors import Mistake
from threed.exporters import export
from threed.exporters.unwrap import has_room, unwrap
from threed.overpaint import Overpaint
from threed.paint import Paint, PaintConfig, Painted, PaintedConfig, scattered
from threed.pictures import agreement
from threed.pipeline import begun
from threed.recipe import Stage, Terms
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Material
from threed.renderers.ops import HashGrid
from threed.renderers.read import normalised, read
from threed.sdf import SDFConfig
from threed.solid import SolidConfig
from threed.tets import TetConfig
from threed.train import Scene
from threed.views import Views

GRID = HashGrid(levels=3, coarsest=6, finest=24)
LOSS = SDS(scale=1.0, weight="clean")
FINE = Stage(
    name="fine",
    scene=SolidConfig(TetConfig(resolution=16), PaintConfig(GRID, rate=0.03), resolution=32),
    steps=16,
    views=Views(count=2),
    kinds=("albedo", "normal"),
    loss=LOSS,
)
PAINT = replace(FINE, name="paint", scene=PaintedConfig(PaintConfig(GRID, rate=0.1), resolution=32), steps=30)
TWO = replace(REQUEST, recipe=replace(RECIPE, stages=(replace(RECIPE.stages[0], steps=24), FINE)))


class Interrupted(Exception):
    """The power went."""


class Impatient:
    """A prior that knows the box, and is cut off after so many questions."""

    def __init__(self, questions: int) -> None:
        self.prior, self.left = box(), questions

    def __getattr__(self, name):
        return getattr(self.prior, name)

    def denoise(self, z_t, t, condition):
        if self.left == 0:
            raise Interrupted
        self.left -= 1
        return self.prior.denoise(z_t, t, condition)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, made(folder, box(), TWO)


def seen(asset, cameras=None):
    return surface.render(replace(asset, mesh=normalised(asset.mesh)), cameras or orbit(6, elevation=0.2), 64, 64)


def test_coarse_to_fine_ends_as_the_object(whole):
    psnr, iou = agreement(seen(whole[1]), seen(SOLIDS["box"]()))
    assert iou > 0.88
    assert psnr > 17
    assert whole[1].mesh.is_watertight


@pytest.mark.parametrize("questions", [25, 33])
def test_cut_off_in_the_second_stage_and_resumed_the_bytes_are_equal(whole, tmp_path, questions):
    """Before the first checkpoint of the second stage, and within it; `test_pipeline` does so in the first."""
    with pytest.raises(Interrupted):
        made(tmp_path, Impatient(questions), TWO)
    made(tmp_path, box(), TWO)
    assert_same_bytes(tmp_path, whole[0])


def test_a_solid_goes_on_in_another_stage(whole, tmp_path):
    """Geometry first, then colours alone: what moved before stays where it is."""
    tets = replace(FINE.scene.tets, distance_rate=0.0, deformation_rate=0.0)
    colours = replace(FINE, name="colours", scene=replace(FINE.scene, tets=tets), steps=4, kinds=("albedo",))
    three = replace(TWO.recipe, stages=(*TWO.recipe.stages, colours))
    asset = made(tmp_path, box(), replace(TWO, recipe=three))
    assert torch.equal(asset.mesh.vertices, whole[1].mesh.vertices)
    assert not torch.equal(asset.material.base_color, whole[1].material.base_color)


def test_a_signed_distance_is_distilled_and_becomes_the_object(tmp_path):
    """From nothing and from voxels; its eikonal term is in the metrics."""
    scene = SDFConfig(grid=GRID, resolution=32, samples=32, occupancy=24)
    stage = replace(RECIPE.stages[0], scene=scene, terms=Terms(eikonal=Anneal(20.0)))
    asset = made(tmp_path / "nothing", box(), replace(REQUEST, recipe=replace(RECIPE, stages=(stage,))))
    assert agreement(seen(asset), seen(SOLIDS["box"]()))[1] > 0.85
    assert '"eikonal"' in (tmp_path / "nothing" / "metrics.jsonl").read_text()
    source = tmp_path / "box.glb"
    export(SOLIDS["box"](), source)
    recipe = replace(RECIPE, start=str(source), stages=(replace(stage, steps=2),))
    asset = made(tmp_path / "voxels", box(), replace(REQUEST, recipe=recipe))
    assert agreement(seen(asset), seen(SOLIDS["box"]()))[1] > 0.9


def test_stages_that_do_not_follow_each_other_are_named():
    with pytest.raises(ValueError, match="a PaintedConfig cannot begin as None; change the recipe's stages"):
        begun(PAINT.scene, None, REQUEST)


def test_a_surface_without_a_start_is_a_ball():
    surface = begun(FINE.scene, None, REQUEST).surface()
    torch.testing.assert_close(
        surface.vertices.norm(dim=-1), torch.full((len(surface.vertices),), 0.5), atol=0.01, rtol=0
    )
    assert surface.is_watertight


def unwrapped(name):
    """A solid whose UVs have room for a texture."""
    solid = SOLIDS[name]()
    uvs, uv_faces = unwrap(solid.mesh, 128)
    return replace(solid, uvs=uvs, uv_faces=uv_faces, material=Material(torch.full((128, 128, 3), 0.5)))


def test_a_mesh_in_new_colours_keeps_its_triangles_and_uvs(tmp_path):
    """A grey box learns the two colours of the oracle's."""
    source = tmp_path / "grey.glb"
    export(unwrapped("box"), source)
    recipe = replace(RECIPE, start=str(source), stages=(PAINT,))
    asset = made(tmp_path / "run", box(), replace(REQUEST, recipe=recipe))
    before, after = read(source), read(tmp_path / "run" / "asset.glb")
    assert torch.equal(after.mesh.faces, before.mesh.faces)
    torch.testing.assert_close(after.uvs[after.uv_faces], before.uvs[before.uv_faces])
    torch.testing.assert_close(normalised(after.mesh).vertices, normalised(before.mesh).vertices, atol=1e-5, rtol=0)
    psnr, iou = agreement(seen(asset), seen(SOLIDS["box"]()))
    assert iou > 0.99
    assert psnr > 25
    assert agreement(seen(before), seen(SOLIDS["box"]()))[0] < 18


def test_a_palette_gets_room(tmp_path):
    """Where all of a colour share a texel, the mesh is unwrapped again; its triangles stay."""
    source = tmp_path / "palette.glb"
    export(SOLIDS["chair"](), source)
    before = read(source)
    assert not has_room(before.uvs, before.uv_faces, 128)
    recipe = replace(RECIPE, start=str(source), stages=(replace(PAINT, steps=2),))
    asset = made(tmp_path / "run", oracle(SOLIDS["chair"](), 32, std=0.1), replace(REQUEST, recipe=recipe))
    assert len(asset.mesh.faces) == len(before.mesh.faces)
    assert has_room(asset.uvs, asset.uv_faces, 128)


def test_an_asset_that_is_inside_out_is_refused_before_the_work(tmp_path):
    solid = unwrapped("box")
    turned = replace(solid, mesh=replace(solid.mesh, faces=solid.mesh.faces.flip(1)), uv_faces=solid.uv_faces.flip(1))
    source = tmp_path / "turned.glb"
    export(turned, source)
    recipe = replace(RECIPE, start=str(source), stages=(PAINT,))
    with pytest.raises(Mistake, match=r"cannot paint '.*turned.glb': .* is inside out"):
        made(tmp_path / "run", Impatient(0), replace(REQUEST, recipe=recipe))


def test_room_for_a_texture():
    solid = unwrapped("torus")
    assert has_room(solid.uvs, solid.uv_faces, 256)
    assert not has_room(solid.uvs * 0.1, solid.uv_faces, 256)  # too little
    twice = torch.cat([solid.uv_faces, solid.uv_faces])
    assert not has_room(solid.uvs, twice, 256)  # every texel belongs to two triangles


def test_points_are_scattered_evenly_and_wear_the_texture():
    """On the torus: as many in a part as its area's share, and the colours of the picture there."""
    solid, count = SOLIDS["torus"](), 40_000
    points, normals, albedo = scattered(solid, count, torch.Generator().manual_seed(0))
    # Pappus: the outer half of the tube, beyond the circle of its centre, has the share 1/2 + 2r / (2 pi R).
    share = 0.5 + 0.27 / (torch.pi * 0.7)
    outer = points[:, :2].norm(dim=-1) > 0.7 / 0.97  # its farthest vertex is at radius 1
    assert outer.float().mean().item() == pytest.approx(share, abs=0.01)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(count))
    expected = solid.material.base_color.reshape(-1, 3)
    assert ((albedo[:, None] - expected).norm(dim=-1).amin(1) < 1e-4).all()
    circle = torch.nn.functional.pad(torch.nn.functional.normalize(points[:, :2], dim=-1), (0, 1)) * 0.7 / 0.97
    outward = torch.nn.functional.normalize(points - circle, dim=-1)
    assert (outward * normals).sum(-1).min() > 0.98


def test_paint_learns_what_it_is_taught_and_begins_grey():
    paint = Paint(PaintConfig(GRID), bound=1.0)
    points = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert (paint(points) == 0.5).all()
    albedo = (points + 1) / 2
    paint.teach(points, points, albedo, 0.02, torch.Generator().manual_seed(1))
    assert (paint(points) - albedo).abs().max() < 0.1


def test_a_painted_mesh_is_a_scene_that_shows_its_own_colours():
    solid = SOLIDS["barrel"]()
    solid = replace(solid, mesh=normalised(solid.mesh))
    painted = Painted(PaintedConfig(PaintConfig(HashGrid(levels=5, coarsest=8, finest=128))), solid, torch.Generator())
    assert isinstance(painted, Scene)
    cameras = orbit(3)
    with torch.no_grad():
        assert agreement(painted.render(cameras, 64), surface.render(solid, cameras, 64, 64))[0] > 27
    assert set(painted.state_dict()) == {"paint.colour"}


def test_a_nerf_cannot_follow_a_surface():
    with pytest.raises(ValueError, match="a NeRFConfig cannot begin as"):
        begun(NERF, Painted(PaintedConfig(), unwrapped("box"), torch.Generator()), REQUEST)


def test_the_command_line_edits_a_run_and_a_mesh(tmp_path):
    """`threed edit`: wrong words are refused at once, and right ones become the flags of `threed text`."""
    from threed.edit_cli import Edit, as_text

    mesh = tmp_path / "box.glb"
    export(replace(unwrapped("box"), mesh=SOLIDS["box"]().mesh), mesh)
    flags = as_text(Edit(mesh, "a purple box", change="both", steps=7))
    assert (flags["recipe"], flags["start"], flags["steps"]) == ("reshape", str(mesh), 7)
    y = SOLIDS["box"]().mesh.vertices[:, 1]
    assert flags["height"] == pytest.approx((y.max() - y.min()).item())
    for asked in (3.0, 0.0):  # the latter is refused with the other ranges
        assert as_text(Edit(mesh, "a purple box", height=asked))["height"] == asked
    (tmp_path / "asset.glb").write_bytes(mesh.read_bytes())
    assert as_text(Edit(tmp_path, "a purple box"))["recipe"] == "repaint"
    assert as_text(Edit(tmp_path, "a tall box", change="shape"))["recipe"] == "resculpt"
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.glb"
    broken.write_bytes(b"glTF")
    for asked, message in (
        (Edit(mesh, "a box", change="size"), "unknown change 'size'"),
        (
            Edit(tmp_path / "none.glb", "a box"),
            "there is no mesh .*none.glb. to edit; name a run folder that is finished, or a mesh",
        ),
        (Edit(tmp_path / "empty", "a box"), "there is no mesh .*empty.asset.glb. to edit"),
        (Edit(tmp_path, "a box", output=tmp_path), "the run to be edited; choose another folder"),
        (Edit(broken, "a box"), "broken.glb"),
    ):
        with pytest.raises(Mistake, match=message):
            as_text(asked)


def test_a_texture_is_drawn_over_on_the_triangles_that_are_there(tmp_path):
    """With a mesh to begin from and no stage, nothing but its colours changes; a run does it the same way twice."""
    source = tmp_path / "grey.glb"
    export(replace(unwrapped("barrel"), material=Material(torch.full((256, 256, 3), 0.5))), source)
    how = Overpaint(first=0.99, steps=4, scale=1.0)
    recipe = replace(RECIPE, start=str(source), stages=(), overpaint=how, asset=replace(RECIPE.asset, texture_size=256))
    request, prior = replace(REQUEST, recipe=recipe), oracle(SOLIDS["barrel"](), 64, std=0.01)
    asset, again = (made(tmp_path / name, prior, request) for name in ("one", "two"))
    before = read(source)
    assert torch.equal(asset.mesh.faces, before.mesh.faces)
    torch.testing.assert_close(asset.uvs, before.uvs)
    assert torch.equal(asset.material.base_color, again.material.base_color)
    painted = replace(asset, mesh=normalised(asset.mesh))
    cameras = orbit(6)
    wanted = surface.render(SOLIDS["barrel"](), cameras, 64, 64)
    assert agreement(surface.render(painted, cameras, 64, 64), wanted)[0] > 25
    stages = json.loads((tmp_path / "one" / "report.json").read_text())["seconds"]
    assert set(stages) == {"load", "start", "mesh", "paint", "export"}
