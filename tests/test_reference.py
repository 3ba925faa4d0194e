"""What a picture asks of a scene: closed forms, slopes by finite differences, and fits that arrive at the picture."""

import math
from dataclasses import replace

import pytest
import torch
from test_train import CONFIG, SIZE, Fog, Scripted, assert_equal_states, last_checkpoint, metrics, nerf, notes
from torch.nn import functional

from threed import train
from threed.distill.anneal import Anneal
from threed.errors import Failure
from threed.nerf import NeRF
from threed.recipe import Recipe, Reference, Stage, distilled
from threed.recipes import RECIPES
from threed.reference import Target, belief, facing, outline, photometric, reference_terms, relative_depth
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.run import Request, Run
from threed.solid import Solid, SolidConfig
from threed.tets import TetConfig, TetScene
from threed.train import fit, seeded
from threed.views import Views

WEIGHTS = Reference(every=1, resolution=SIZE)
STAGE = Stage("reference", CONFIG, 14, Views(count=2), ("albedo",), None, reference=WEIGHTS)
REQUEST = Request("a ball", Recipe("tiny", "for tests", stages=(STAGE,)), seed=5)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 4)


def random(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def unit(*shape, seed=0):
    return functional.normalize(random(*shape, seed=seed) - 0.5, dim=-1)


def half(size=6):
    """A picture whose left half is the object."""
    alpha = torch.zeros(size, size, 1, dtype=torch.float64)
    alpha[:, : size // 2] = 1
    return alpha


def test_colours_and_outlines_are_mean_squares():
    wanted = random(4, 5, 3)
    assert photometric(wanted, wanted) == 0
    assert photometric(wanted + 0.3, wanted).item() == pytest.approx(0.09)
    assert outline(half() * 0.5, half()).item() == pytest.approx(0.25 / 2)
    assert outline(1 - half(), half()) == 1


def test_depth_knows_neither_scale_nor_offset():
    """0 for any rising line of the depth that is wanted, 2 for any falling one; what lies outside does not matter."""
    wanted = random(6, 6, 1)
    for scale, correlation in ((1.0, 1), (7.5, 1), (-0.2, -1)):
        seen = torch.where(half() > 0, scale * wanted + 3, random(6, 6, 1, seed=9))
        assert relative_depth(seen, wanted, half()).item() == pytest.approx(1 - correlation, abs=1e-9)
    x, y = random(6, 6, 1, seed=1), random(6, 6, 1, seed=2)
    there = half()[..., 0] > 0
    expected = torch.corrcoef(torch.stack([x[there][:, 0], y[there][:, 0]]))[0, 1]
    assert relative_depth(x, y, half()).item() == pytest.approx(1 - expected.item())


def test_depth_that_is_flat_correlates_with_nothing():
    flat, tilted = torch.full((6, 6, 1), 3.0, dtype=torch.float64, requires_grad=True), random(6, 6, 1)
    for one, other in ((flat, tilted), (tilted, flat)):
        found = relative_depth(one, other, half())
        assert found == 1
    (slope,) = torch.autograd.grad(relative_depth(flat, tilted, half()), flat)
    assert (slope == 0).all()
    assert relative_depth(tilted, tilted, torch.zeros(6, 6, 1, dtype=torch.float64)) == 0


def test_normals_are_compared_by_their_angle():
    wanted = unit(6, 6, 3)
    assert facing(0.2 * wanted, wanted, half()).item() == pytest.approx(0, abs=1e-9)
    assert facing(-wanted, wanted, half()).item() == pytest.approx(2)
    assert facing(0 * wanted, wanted, half()).item() == 1
    turned = torch.stack([wanted[..., 1], -wanted[..., 0], 0 * wanted[..., 2]], dim=-1)
    assert facing(turned, wanted, half()).item() == pytest.approx(1)  # a right angle
    assert facing(-wanted, wanted, 0 * half()) == 0


def test_normals_count_as_they_are_believed_and_the_worst_are_dropped():
    """Of five pixels, one is off by a right angle and counts twice; of ten, the two farthest off are left out."""
    alpha, wanted = torch.ones(1, 5, 1, dtype=torch.float64), unit(1, 5, 3)
    turned = torch.stack([wanted[..., 1], -wanted[..., 0], 0 * wanted[..., 2]], dim=-1)
    seen = torch.where(torch.arange(5)[None, :, None] == 0, turned, wanted)
    counts = torch.tensor([2.0, 1.0, 0.5, 0.0, 1.0], dtype=torch.float64)[None, :, None]
    assert facing(seen, wanted, alpha, counts).item() == pytest.approx(2 / 4.5)
    assert facing(seen, wanted, alpha, counts, dropped=0.2).item() == pytest.approx(2 / 4.5)  # one of four stays
    assert facing(seen, wanted, alpha, counts, dropped=0.25).item() == pytest.approx(0, abs=1e-9)
    assert facing(seen, wanted, alpha, 0 * counts, dropped=0.2) == 0
    angles = torch.arange(10, dtype=torch.float64).flip(0) / 10
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand(1, 10, 3)
    tilted = torch.stack([angles.sin(), angles.cos(), 0 * angles], dim=-1)[None]
    found = facing(tilted, up, torch.ones(1, 10, 1, dtype=torch.float64), dropped=0.2)
    assert found.item() == pytest.approx((1 - angles.sort().values[:8].cos()).mean().item())


def test_normals_are_believed_as_they_face_their_rays():
    """At the middle of the picture exp 1 for what faces the camera, exp of the cosine else, nothing from behind."""
    size, tilt = 3, 0.7
    toward = torch.tensor([[0.0, 0.0, 1.0], [math.sin(tilt), 0.0, math.cos(tilt)], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    found = belief(toward[:, None, None].expand(4, size, size, 3), orbit(4, elevation=0.3))[:, 1, 1, 0]
    torch.testing.assert_close(found, torch.tensor([math.e, math.exp(math.cos(tilt)), 0.0, 0.0]))
    # The ray to the right leans over to the right: a normal turned as far to the left faces it.
    half = math.atan(math.tan(math.radians(20)) * 2 / 3)
    leaning = torch.tensor([-math.sin(half), 0.0, math.cos(half)]).expand(1, size, size, 3)
    assert belief(leaning, orbit(1))[0, 1, 2, 0].item() == pytest.approx(math.e)


def test_several_views_count_by_their_weights():
    """The mean over all; each term only of those that know it."""
    weights = Reference(Anneal(2.0), Anneal(0.0), normal=Anneal(5.0), dropped=0.2)
    render = Fog().render(orbit(2))
    up = torch.tensor([0.0, 1.0, 0.0]).expand(SIZE, SIZE, 3)
    first, second = replace(target(), weight=0.2), target(colour=(0.1, 0.2, 0.9), normal=up)
    second = replace(second, belief=torch.rand(SIZE, SIZE, 1, generator=seeded(2)))
    found = reference_terms(weights, render, [first, second], 0.0)
    colours = [photometric(render.albedo[k], each.rgb) for k, each in enumerate((first, second))]
    torch.testing.assert_close(found["reference_rgb"], 2 * (0.2 * colours[0] + colours[1]) / 2)
    apart = facing(render.normal[1], up, second.alpha, second.belief, 0.2)
    torch.testing.assert_close(found["reference_normal"], 5 * apart / 2)


@pytest.mark.parametrize(
    ("term", "channels"),
    [
        (lambda x: photometric(x, random(4, 4, 3, seed=5)), 3),
        (lambda x: outline(x, random(4, 4, 1, seed=5)), 1),
        (lambda x: relative_depth(x, random(4, 4, 1, seed=5), half(4)), 1),
        (lambda x: facing(x, unit(4, 4, 3, seed=5), half(4)), 3),
        (lambda x: facing(x, unit(4, 4, 3, seed=5), half(4), random(4, 4, 1, seed=6), 0.2), 3),
    ],
    ids=["photometric", "outline", "relative_depth", "facing", "believed"],
)
def test_slopes(term, channels):
    x = random(4, 4, channels, seed=3) + 0.1
    assert torch.autograd.gradcheck(term, x.requires_grad_())


def target(size=SIZE, colour=(0.9, 0.4, 0.1), depth=None, normal=None):
    """An ellipsoid of one colour, from above the front."""
    solid = TetScene.from_ellipsoid((0.7, 0.4, 0.5), TetConfig(resolution=16)).mesh()
    camera = orbit(1)
    alpha = surface.render(solid, camera, size, size, 4).alpha[0].detach()
    return Target(camera, alpha * torch.tensor(colour), alpha, depth, normal)


def test_terms_are_weighted_and_asked_only_where_the_target_knows():
    wanted = target()
    render = Fog().render(orbit(1))
    weights = Reference(Anneal(2.0), Anneal(0.0, 4.0), Anneal(3.0), Anneal(5.0))
    found = reference_terms(weights, render, [wanted], 0.5)
    assert set(found) == {"reference_rgb", "reference_mask"}
    torch.testing.assert_close(found["reference_rgb"], 2 * photometric(render.albedo[0], wanted.rgb))
    torch.testing.assert_close(found["reference_mask"], 2 * outline(render.alpha[0], wanted.alpha))
    assert set(reference_terms(weights, render, [wanted], 0.0)) == {"reference_rgb"}
    up = torch.tensor([0.0, 1.0, 0.0]).expand(SIZE, SIZE, 3)
    seen = replace(
        render, alpha=wanted.alpha[None] * 0.8, depth=wanted.alpha[None] * 0.8 * (3 + wanted.rgb[None, ..., :1])
    )
    knowing = replace(wanted, depth=torch.rand(SIZE, SIZE, 1, generator=seeded()), normal=up)
    found = reference_terms(weights, seen, [knowing], 0.0)
    assert set(found) == {"reference_rgb", "reference_depth", "reference_normal"}
    distance = seen.depth[0] / seen.alpha[0].clamp(min=0.5)
    torch.testing.assert_close(found["reference_depth"], 3 * relative_depth(distance, knowing.depth, wanted.alpha))
    torch.testing.assert_close(found["reference_normal"], 5 * facing(seen.normal[0], up, wanted.alpha))


def fitted(folder, stage=STAGE, scene=None, wanted=None, prior=None):
    scene = scene or nerf()
    with Run.create(folder, REQUEST, resume=True) as run:
        fit(scene, stage, prior, REQUEST, run, target=wanted or target(stage.reference.resolution))
    return scene


def solid():
    config = SolidConfig(TetConfig(resolution=16, margin=0.5), resolution=SIZE)
    return Solid(config, TetScene.from_ellipsoid((0.5,) * 3, config.tets))


@pytest.mark.parametrize("make", [nerf, solid])
def test_a_volume_and_a_surface_become_what_the_picture_shows(make, tmp_path):
    """A ball becomes an ellipsoid to one camera, and takes its colour, without any prior."""
    wanted = target(24)
    stage = replace(STAGE, steps=60, reference=replace(WEIGHTS, resolution=24))
    before = make()
    scene = fitted(tmp_path, stage, make(), wanted)
    for name, factor in (("alpha", 0.15), ("albedo", 0.15)):
        with torch.no_grad():
            seen, was = (getattr(each.render(wanted.camera, 24), name)[0] for each in (scene, before))
        there = wanted.alpha if name == "alpha" else wanted.rgb
        assert (seen - there).square().mean() < factor * (was - there).square().mean()


@pytest.mark.parametrize("interrupted", [1, 6, 13])
def test_interrupted_it_ends_bit_equal(interrupted, tmp_path, monkeypatch):
    whole = fitted(tmp_path / "whole")
    stopped, count = nerf(), 0
    render = stopped.render

    def cut(*arguments):
        nonlocal count
        count += 1
        if count > interrupted:
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(stopped, "render", cut)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", scene=stopped)
    assert_equal_states(fitted(tmp_path / "cut", scene=nerf(seed=1)), whole)
    assert last_checkpoint(tmp_path / "cut") == last_checkpoint(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert set(metrics(tmp_path / "whole")[0]) == {"stage", "step", "reference_rgb", "reference_mask"}


def test_beside_distillation_it_is_seen_every_so_often(tmp_path):
    """The prior is asked every step, the picture every third; both losses move the scene."""
    stage = replace(STAGE, loss=RECIPES["refined"].stages[0].loss, reference=replace(WEIGHTS, every=3))
    fitted(tmp_path, stage, prior=Scripted())
    seen = [{"reference_mask", "sds"} <= set(record) for record in metrics(tmp_path)]
    assert seen == [step % 3 == 0 for step in range(stage.steps)]
    assert all("sds" in record for record in metrics(tmp_path))


def test_a_scene_that_vanishes_from_the_picture_is_rolled_back(tmp_path):
    scene = fitted(tmp_path / "once", scene=Fog([None] * 6 + [0.0]))
    assert "reference, step 6: the volume is empty; going back to step 4" in notes(tmp_path / "once")
    assert 0.0 < scene.logit.sigmoid() < 1.0
    with pytest.raises(Failure, match="reference, step 6: the volume fills the pictures, 3 times now"):
        fitted(tmp_path / "always", scene=Fog([None] * 6 + [1.0, None, None] * train.ATTEMPTS))


def test_a_stage_without_any_aim_is_refused():
    with pytest.raises(ValueError, match="stage 'reference' has steps without any aim"):
        replace(STAGE, reference=None)
    with pytest.raises(ValueError, match="steps without any aim"):
        replace(STAGE, reference=replace(WEIGHTS, every=2))
    with pytest.raises(ValueError, match="has a reference, which one scene alone"):
        replace(STAGE, particles=2)
    with pytest.raises(ValueError, match="is never seen; use every from 1"):
        Reference(every=0)
    with pytest.raises(ValueError, match="use drawn from 0, and dropped from 0 to below 1"):
        Reference(dropped=1.0)
    with pytest.raises(ValueError, match="distils nothing"):
        distilled(REQUEST.recipe, "csd", None, None)


def test_a_reference_without_a_picture_is_refused(tmp_path):
    with Run.create(tmp_path, REQUEST) as run, pytest.raises(ValueError, match="has a reference and no picture"):
        fit(NeRF(CONFIG, seeded(1)), STAGE, None, REQUEST, run)


def test_some_of_the_drawn_views_every_step(tmp_path):
    """Other ones from step to step, beside the picture when it is due; alone where there is none."""
    stage = replace(STAGE, steps=40, reference=replace(WEIGHTS, every=2, drawn=2))
    views = [replace(target(), camera=orbit(5)[k : k + 1]) for k in range(5)]
    seen = []
    fog = Fog()
    fog_render = fog.render

    def render(cameras, size, generator):
        seen.append(cameras.azimuth.tolist())
        return fog_render(cameras, size, generator)

    fog.render = render
    for step in range(40):
        train.referred(fog, stage, target() if step < 20 else None, views, step, seeded(step))
    assert [len(each) for each in seen] == [3, 2] * 10 + [2] * 20
    drawn = [each[-2:] for each in seen]
    assert all(len(set(each)) == 2 for each in drawn)
    assert {azimuth for each in drawn for azimuth in each} == set(orbit(5).azimuth.tolist())
    assert replace(STAGE, reference=replace(WEIGHTS, every=2, drawn=1)).loss is None
