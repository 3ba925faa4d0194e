"""Views first: what a prior that knows the object draws of it, what that asks of a scene, and what is made of it."""

import json
from dataclasses import dataclass, field, replace

import pytest
import tiny_novel_views
import torch
from test_pipeline import RECIPE, REQUEST, assert_same_bytes, made
from torch.nn import functional
from truth import SOLIDS, oracle

from threed import paint
from threed.distill.anneal import Anneal
from threed.distill.embedded import Reference as Shown
from threed.distill.gaussian import ViewOracle
from threed.distill.hub.checkpoint import found
from threed.distill.hub.novel_view import load
from threed.distill.prior import Pictures
from threed.distill.rig import Rig
from threed.distill.sample import FIRST
from threed.drawn import Outlines, covered, draw, kept, rigged, targets
from threed.errors import Failure, Mistake
from threed.multi_view import multi_view
from threed.novel_view import novel_view
from threed.paint import PaintConfig
from threed.pictures import agreement, psnr, silhouette_iou
from threed.recipe import Drawn, Reference, Stage, Terms
from threed.recipes import RECIPES
from threed.reference import Target
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.ops import HashGrid
from threed.renderers.read import normalised
from threed.run import Run
from threed.single_view import single_view
from threed.solid import Solid, SolidConfig
from threed.tets import TetConfig, TetScene
from threed.train import seeded
from threed.views import Views

SIZE = 40
SIX = Rig((30.0, 90.0, 150.0, 210.0, 270.0, 330.0), (20.0, -10.0) * 3, fov=40.0)
HOW = Drawn(SIX, ("albedo", "normal"), steps=4, scale=1.0, first=FIRST)
GRID = HashGrid(levels=3, coarsest=6, finest=48)
STAGE = Stage(
    "fit",
    SolidConfig(
        TetConfig(resolution=24, margin=0.25, distance_rate=0.1), PaintConfig(GRID, rate=0.03), resolution=SIZE
    ),
    steps=24,
    views=Views(),
    kinds=("albedo",),
    loss=None,
    terms=Terms(normal_consistency=Anneal(10.0)),
    reference=Reference(normal=Anneal(1000.0), resolution=SIZE, drawn=3, dropped=0.2),
)
REQUEST = replace(REQUEST, recipe=replace(RECIPE, drawn=HOW, stages=(STAGE,)))


@pytest.fixture(scope="module", autouse=True)
def hasty():
    """Colours to begin with are learned in fewer steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paint, "TEACHING_STEPS", 30)
        yield


def knowing(name="barrel"):
    return oracle(SOLIDS[name](), SIZE, std=0.02)


def pictures(name="barrel", how=HOW):
    prior = knowing(name)
    return draw(how, prior, ("", ""), rigged(how, prior, None), None, seeded(0))


@pytest.mark.parametrize("knows", [("albedo",), ("albedo", "normal", "shaded")])
def test_a_prior_that_knows_the_object_draws_it(knows):
    """All kinds that are wanted and known, kind-major, before white."""
    cameras, prior = SIX.cameras(0.0, 0.0), replace(knowing(), kinds=knows)
    found = draw(HOW, prior, ("", ""), cameras, None, seeded(0))
    asked = tuple(kind for kind in HOW.kinds if kind in knows)
    truth = Pictures(cameras, asked, torch.ones(3)).of(surface.render(SOLIDS["barrel"](), cameras, SIZE, SIZE))
    assert found.shape == (6 * len(asked), SIZE, SIZE, 3)
    assert psnr(found, truth) > 38


def test_drawn_over_something_it_begins_there():
    """A prior that believes whatever it is shown leaves it as it is; one that knows better does not."""

    @dataclass(frozen=True)
    class Credulous(ViewOracle):
        std: float = 1e3

    cameras = SIX.cameras(0.0, 0.0)
    over = surface.render(SOLIDS["box"](), cameras, SIZE, SIZE)
    shown = Pictures(cameras, HOW.kinds, torch.ones(3)).of(over)
    how = replace(HOW, first=0.05, steps=1)
    credulous = Credulous(knowing().picture, image_size=SIZE)
    kept = draw(how, credulous, ("", ""), cameras, over, seeded(0))
    assert psnr(kept, shown) > 25  # what is left is the noise of that time
    known = draw(how, knowing(), ("", ""), cameras, over, seeded(0))
    assert psnr(known, pictures()) > 35


def test_views_stand_beside_the_picture_and_a_priors_own_rig_is_taken():
    alpha = torch.ones(8, 8, 1)
    picture = Target(orbit(8, elevation=0.2)[1:2], alpha.expand(8, 8, 3), alpha)
    relative = replace(SIX, relative=True)
    assert torch.equal(rigged(HOW, knowing(), None).azimuth, SIX.cameras(0.0, 0.0).azimuth)
    beside = rigged(replace(HOW, rig=relative), knowing(), picture)
    torch.testing.assert_close(beside.azimuth.rad2deg(), torch.tensor(SIX.azimuth) + 45)
    torch.testing.assert_close(beside.elevation, torch.tensor(SIX.elevation).deg2rad() + 0.2)

    @dataclass(frozen=True)
    class Rigged(ViewOracle):
        rig: Rig | None = None

    own = rigged(HOW, Rigged(knowing().picture, rig=Rig((0.0, 180.0), (5.0, 5.0), fov=30.0)), picture)
    torch.testing.assert_close(own.azimuth.rad2deg(), torch.tensor([45.0, 225.0]))
    torch.testing.assert_close(own.fov_y.rad2deg(), torch.full((2,), 30.0))


def test_alpha_of_a_drawing():
    """That of every pixel, to a hundredth on average, before white and before another plain colour."""
    for colour in (torch.ones(3), torch.tensor([0.4, 0.5, 0.6])):
        for name in ("barrel", "chair"):
            cameras = SIX.cameras(0.0, 0.0)
            render = surface.render(SOLIDS[name](), cameras, SIZE, SIZE, 4)
            drawn = targets(Pictures(cameras, HOW.kinds, colour).of(render), cameras, HOW)
            alpha, rgb = (torch.stack([getattr(each, what) for each in drawn]) for what in ("alpha", "rgb"))
            assert silhouette_iou(alpha, render.alpha) > 0.97
            assert (alpha - render.alpha).abs().mean() < 0.01
            assert (rgb - render.albedo).abs().mean() < 0.01
            inside = render.alpha[..., 0] > 0.99
            normal = torch.stack([each.normal for each in drawn])[inside]
            true = functional.normalize(render.normal[inside], dim=-1)
            assert (normal * true).sum(-1).mean() > 0.99


def test_alpha_in_closed_form():
    """A square of one colour whose left column covers a third of its pixels."""
    apart = torch.zeros(1, 9, 9, 1)
    apart[0, 2:7, 2:7], apart[0, 2:7, 2] = 0.9, 0.3
    expected = apart / 0.9
    torch.testing.assert_close(covered(apart), expected)
    assert not covered(0.1 * torch.rand(1, 9, 9, 1)).any()  # a background that is not quite plain


def test_a_view_that_shows_nothing_is_named():
    drawn_ = pictures()
    drawn_[[2, 8]] = 1.0
    with pytest.raises(Failure, match="drew nothing in view 3 of 6; try another --seed or --prompt"):
        targets(drawn_, SIX.cameras(0.0, 0.0), HOW)
    with pytest.raises(ValueError, match="5 weights of 6 views; give one of each, or none"):
        replace(HOW, weights=(1.0,) * 5)
    with pytest.raises(ValueError, match="the albedo, or the albedo and the normals"):
        replace(HOW, kinds=("normal",))
    with pytest.raises(ValueError, match="draws nothing; use steps from 1"):
        replace(HOW, first=0.0)


def test_weights_of_views():
    weights = (1.0, 0.8, 0.2, 1.0, 0.4, 0.7)
    drawn = targets(pictures(), SIX.cameras(0.0, 0.0), replace(HOW, weights=weights))
    assert tuple(each.weight for each in drawn) == weights
    four = orbit(4)
    drawn = targets(pictures()[:4], four, replace(HOW, weights=weights))  # of a prior with another rig
    assert [each.weight for each in drawn] == [1.0] * 4


def test_the_hull_of_outlines_holds_the_object_and_little_else():
    """Every vertex is within the outlines, and twice the object is not."""
    outlines = Outlines(targets(pictures(), SIX.cameras(0.0, 0.0), HOW))
    vertices = SOLIDS["barrel"]().mesh.vertices
    assert outlines.level(vertices).max() < 1  # pixels
    assert outlines.level(2 * vertices[vertices.norm(dim=-1) > 0.5]).min() > 1
    mesh = TetScene.from_level(outlines.level, STAGE.scene.tets).mesh()
    cameras = orbit(6)
    hull, truth = (surface.render(thing, cameras, SIZE, SIZE) for thing in (mesh, SOLIDS["barrel"]()))
    assert silhouette_iou(hull.alpha, truth.alpha) > 0.9


def test_outlines_without_anything_in_common():
    """Seen from opposite sides, what is on the right is not what is on the right."""
    alpha = torch.zeros(SIZE, SIZE, 1)
    alpha[5:-5, SIZE // 2 + 4 : -4] = 1
    apart = [Target(orbit(2)[k : k + 1], alpha.expand(-1, -1, 3), alpha) for k in (0, 1)]
    with pytest.raises(Failure, match="the drawn views have nothing in common"):
        Outlines(apart).solid(STAGE.scene, seeded(0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, made(folder, knowing(), REQUEST)


def test_views_become_the_object(whole):
    """On views that were not drawn, at other elevations."""
    folder, asset = whole
    cameras = orbit(8)
    seen = surface.render(replace(asset, mesh=normalised(asset.mesh)), cameras, 96, 96)
    psnr_, iou = agreement(seen, surface.render(SOLIDS["barrel"](), cameras, 96, 96))
    assert iou > 0.93
    assert psnr_ > 20
    assert {"views.png", "views.safetensors"} <= {path.name for path in folder.iterdir()}
    named = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    fitted = {"stage", "step", "seconds", "reference_rgb", "reference_mask", "reference_normal", "normal_consistency"}
    assert set(next(each for each in named if each["stage"] == "fit")) == fitted


class Interrupted(Exception):
    """The power went."""


@dataclass(frozen=True)
class Impatient(ViewOracle):
    """Cut off after so many questions."""

    left: list = field(default_factory=lambda: [100])

    def denoise(self, z_t, t, condition):
        if self.left[0] == 0:
            raise Interrupted
        self.left[0] -= 1
        return ViewOracle.denoise(self, z_t, t, condition)


def impatient(questions):
    return Impatient(knowing().picture, 0.02, SIZE, left=[questions])


def test_interrupted_and_resumed_the_bytes_are_equal(tmp_path, monkeypatch):
    """While views are drawn, and while they are fitted to: then they are there, and the prior is not asked again."""
    request = replace(REQUEST, recipe=replace(REQUEST.recipe, stages=(replace(STAGE, steps=3),)))
    made(tmp_path / "whole", knowing(), request)
    with pytest.raises(Interrupted):
        made(tmp_path / "cut", impatient(3), request)
    assert not (tmp_path / "cut" / "views.safetensors").exists()

    def cut(*told):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Solid, "after_step", cut)
        with pytest.raises(Interrupted):
            made(tmp_path / "cut", impatient(HOW.steps), request)
    made(tmp_path / "cut", impatient(0), request)
    assert_same_bytes(tmp_path / "cut", tmp_path / "whole")
    for name in ("views.png", "views.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    torn = (tmp_path / "whole" / "views.safetensors").read_bytes()
    (tmp_path / "cut" / "views.safetensors").write_bytes(torn[:-1] + bytes([torn[-1] ^ 1]))
    with Run.create(tmp_path / "cut", request, resume=True) as run:
        assert kept(run) is None
    assert "drawing the views again" in (tmp_path / "cut" / "log.txt").read_text()


def test_checkpoints_of_others_draw_out_of_noise():
    """In more steps and pixels: MVDream four views, Zero-1-to-3 through the lens of the picture, others none."""
    four = multi_view(RECIPES["instant3d"])
    assert four.drawn.rig.azimuth == (45.0, 135.0, 225.0, 315.0)
    assert (four.drawn.scale, four.drawn.first, four.drawn.kinds) == (7.5, FIRST, ("albedo",))
    sixteen = novel_view(RECIPES["syncdreamer"], 3.0, 25.0)
    assert (len(sixteen.drawn.rig), sixteen.drawn.rig.fov, sixteen.drawn.scale) == (16, 25.0, 3.0)
    for recipe in (four, sixteen):
        assert all(stage.reference.resolution == stage.scene.resolution == 256 for stage in recipe.stages)
    with pytest.raises(Mistake, match="'instant3d' wants views that are drawn together, and this --prior draws single"):
        single_view(RECIPES["instant3d"])


def test_other_latents_than_pixels_are_drawn_and_have_no_bounds(tmp_path):
    """By Zero-1-to-3, with random weights: pictures of its size, of the kinds that it knows."""
    tiny_novel_views.write(tmp_path / "zero123")
    seen = Shown(torch.rand(1, 4, 32, 32, generator=seeded(1)), orbit(1))
    prior = load(found(f"sd:{tmp_path / 'zero123'}"), "cpu").shown(seen)
    drawn = draw(replace(HOW, steps=2), prior, ("", ""), orbit(3), None, seeded(0))
    assert drawn.shape == (3, prior.image_size, prior.image_size, 3)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
