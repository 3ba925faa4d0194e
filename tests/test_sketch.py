"""A mesh as a soft constraint: the cross-entropy by hand, what is inside and how far, and what it does to a run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from known_prior import normal, seeded
from test_pipeline import NERF, RECIPE, REQUEST, likeness, modelled
from truth import SOLIDS, oracle

from threed.distill.anneal import Anneal
from threed.errors import Mistake
from threed.exporters import export
from threed.exporters.clean import winding_number
from threed.pipeline import begun
from threed.recipe import Terms
from threed.renderers.camera import orbit
from threed.renderers.voxels import voxelise
from threed.sketch import LEAST, REACH, SOME, Sketch, held
from threed.start import VoxelField
from threed.train import TERMS

LENIENCE = 0.15


@pytest.fixture(scope="module")
def box():
    """Its voxels, and its sketch."""
    field = VoxelField(voxelise(SOLIDS["box"](), 32))
    return field, Sketch.of(field.voxels, field.radius.item(), 1.0, LENIENCE, seeded())


def test_the_cross_entropy_by_hand_and_its_slope():
    density = 30 * normal(50).abs().requires_grad_()
    inside, weight = (normal(50, seed=1) > 0).double(), normal(50, seed=2).abs()
    p, lifted = 1 - torch.exp(-REACH * density), 1 - torch.exp(-REACH * density - LEAST)
    exact = -(weight * (inside * lifted.log() + (1 - inside) * (1 - p).log())).mean()
    found = held(density, inside, weight)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(each, density)[0] for each in (found, exact)))
    assert torch.autograd.gradcheck(lambda d: held(d, inside, weight), density)


def test_it_is_finite_where_nothing_is_and_where_all_is():
    density = torch.tensor([0.0, 1e9, 0.0, 1e9], requires_grad=True)
    loss = held(density, torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.ones(4))
    assert loss.item() == pytest.approx((-math.log(LEAST) + REACH * 1e9) / 4, rel=1e-3)
    (slope,) = torch.autograd.grad(loss, density)
    assert slope.isfinite().all()
    assert slope[0].item() == pytest.approx(-REACH / LEAST / 4, rel=1e-3)  # there is a way out of nothing


def test_what_is_inside_is_what_winds_around(box):
    """But within a voxel of the surface, where it is free anyway."""
    _, sketch = box
    some = torch.arange(0, len(sketch.points), 16)
    winding = winding_number(sketch.points[some].double().numpy(), SOLIDS["box"]().mesh.corners.double().numpy())
    sure = sketch.weight[some] > 0.2
    assert sure.double().mean() > 0.5
    assert np.array_equal(sketch.inside[some][sure].numpy() > 0.5, winding[sure] > 0.5)


def test_weights_are_those_of_the_distance_to_a_box(box):
    _, sketch = box
    half = SOLIDS["box"]().mesh.vertices.amax(0)
    beyond = sketch.points.abs() - half
    distance = torch.where((beyond < 0).all(1), -beyond.amax(1), beyond.clamp(min=0).norm(dim=1))
    exact = 1 - (-(distance**2) / (2 * LENIENCE**2)).exp()
    assert (sketch.weight - exact).abs().mean() < 0.03  # voxels are half a voxel off, here and there
    assert sketch.weight.amin() < 0.01
    assert sketch.weight.amax() > 0.99


def test_the_mesh_itself_costs_next_to_nothing_and_a_ball_much(box):
    field, sketch = box
    ball = sketch(lambda x: 50 * (x.norm(dim=1) < 0.4).float(), seeded())
    same = sketch(field.density, seeded())
    assert same < 0.02
    assert ball > 10 * same
    asked = []
    sketch(lambda x: asked.append(len(x)) or x[:, 0] * 0, seeded())
    assert asked == [SOME]


def held_to(solid, tmp_path, weight, lenience=LENIENCE):
    """A run that begins as this solid, under a prior that believes in a torus of much the same size."""
    source = tmp_path / f"{weight}.glb"
    export(SOLIDS[solid](), source)
    scene = replace(NERF, lenience=lenience)
    stage = replace(RECIPE.stages[0], scene=scene, terms=Terms(sketch=Anneal(weight)))
    recipe = replace(RECIPE, start=str(source), stages=(stage,))
    return modelled(tmp_path / f"run-{weight}", oracle(SOLIDS["torus"](), 32, 0.1), replace(REQUEST, recipe=recipe))


def test_a_prior_that_wants_another_thing_is_held_to_the_mesh(tmp_path):
    """A torus has a hole where a box has not: with the sketch it is closed."""
    free, bound = (held_to("box", tmp_path, weight) for weight in (0.0, 3000.0))
    iou = {
        (how, what): likeness(shape, SOLIDS[what]())[1]
        for how, shape in (("free", free), ("held", bound))
        for what in ("torus", "box")
    }
    assert iou["free", "torus"] > iou["held", "torus"] + 0.05
    assert iou["held", "box"] > iou["free", "box"] + 0.05
    assert '"sketch"' in (tmp_path / "run-3000.0" / "metrics.jsonl").read_text()


def test_what_has_no_mesh_cannot_be_held():
    with pytest.raises(ValueError, match="cannot begin as None"):
        begun(replace(NERF, lenience=0.1), None, REQUEST)
    with pytest.raises(ValueError, match="sketch is a term of volumes with a lenience that began as a mesh"):
        TERMS["sketch"](begun(NERF, None, REQUEST).render(orbit(1), 8, seeded()))


@pytest.mark.parametrize("lenience", [0.0, -1.0, math.inf])
def test_a_lenience_that_is_none_is_refused(lenience):
    with pytest.raises(Mistake, match=r"a lenience of .* m; use one above 0, such as 0\.1, or none for a free shape"):
        replace(NERF, lenience=lenience)
