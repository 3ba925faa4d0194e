"""fit under analytic priors: it arrives, it resumes to the very bit, and it survives or refuses what goes wrong."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from threed import train
from threed.distill.anneal import Anneal
from threed.distill.gaussian import Gaussian
from threed.distill.prior import Pictures, Prediction
from threed.distill.sds import SDS
from threed.errors import Failure
from threed.mesh_regularizers import laplacian, normal_consistency
from threed.nerf import NeRF, NeRFConfig
from threed.recipe import Recipe, Stage, Terms
from threed.recipes import RECIPES
from threed.regularizers import orientation, z_variance
from threed.renderers.camera import orbit
from threed.renderers.ops import HashGrid
from threed.renderers.volume import Render
from threed.run import Request, Run
from threed.solid import Solid, SolidConfig
from threed.tets import TetConfig, TetScene
from threed.train import ATTEMPTS, background, contact_sheet, fit, seeded, terms, trouble
from threed.views import Views

SIZE = 12
CONFIG = NeRFConfig(
    grid=HashGrid(levels=2, coarsest=4, finest=8),
    resolution=SIZE,
    samples=16,
    occupancy=12,
    shape_rate=0.09,
    colour_rate=0.03,
)
STAGE = Stage(
    name="coarse",
    scene=CONFIG,
    steps=14,
    views=Views(count=2),
    kinds=("albedo", "normal"),
    loss=SDS(scale=1.0, weight="clean"),
    terms=Terms(sparsity=Anneal(0.1), opacity=Anneal(0.0, 0.2)),
)
REQUEST = Request("a ball", Recipe("tiny", "for tests", stages=(STAGE,)), seed=5)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """A checkpoint every four steps."""
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 4)


@dataclass
class Scripted:
    """A Gaussian prior that is asked once a step and does as the script says: step by step, counted from 0."""

    script: dict = None  # asked for the n-th time: what to do instead
    always_from: int = 10**9  # from here on, not a number
    asked: int = -1
    image_size: int = SIZE
    kinds: tuple = ("albedo", "shaded", "normal")

    def __post_init__(self):
        grey = torch.full((3, SIZE, SIZE), 0.3)
        self.prior = Gaussian(grey, 0.5 * torch.ones_like(grey))

    def alpha_sigma(self, t):
        return self.prior.alpha_sigma(t)

    def encode(self, image):
        return self.prior.encode(image)

    def decode(self, latents):
        return self.prior.decode(latents)

    def conditions(self, prompt, negative, pictures):
        return self.prior.conditions(prompt, negative, pictures)

    def denoise(self, z_t, t, condition):
        self.asked += 1
        if action := (self.script or {}).get(self.asked):
            return action(z_t)
        if self.asked >= self.always_from:
            return not_a_number(z_t)
        return self.prior.denoise(z_t, t, condition)


def not_a_number(z_t):
    broken = torch.full_like(z_t, torch.nan)
    return Prediction(broken, broken)


def power_cut(z_t):
    raise KeyboardInterrupt


def nerf(seed=0):
    return NeRF(CONFIG, seeded(seed))


def fitted(folder, prior=None, stage=STAGE, scene=None, request=REQUEST):
    scene = scene or nerf()
    with Run.create(folder, request, resume=True) as run:
        fit(scene, stage, prior or Scripted(), request, run)
    return scene


def last_checkpoint(folder):
    return max((folder / "checkpoints").glob("*.safetensors")).read_bytes()


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def notes(folder):
    return (folder / "log.txt").read_text()


def assert_equal_states(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted fit: its folder and its scene."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "CHECKPOINT_EVERY", 4)
        return folder, fitted(folder)


@pytest.mark.parametrize("interrupted", [1, 4, 6, 11, 13])
def test_resumed_it_ends_bit_equal(whole, tmp_path, interrupted):
    """Cut off within any step, go on in a process that knows nothing but the folder."""
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path, Scripted({interrupted: power_cut}))
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path, Scripted({1: power_cut}), scene=nerf(seed=1))
    assert_equal_states(fitted(tmp_path, scene=nerf(seed=2)), whole[1])
    assert last_checkpoint(tmp_path) == last_checkpoint(whole[0])
    assert metrics(tmp_path) == metrics(whole[0])


def test_finished_it_stays_as_it_is(whole, tmp_path):
    """Resuming after the last step asks the prior nothing."""
    fitted(tmp_path)
    prior = Scripted(always_from=0)
    assert_equal_states(fitted(tmp_path, prior, scene=nerf(seed=1)), whole[1])
    assert prior.asked == -1


def test_same_seed_same_bytes_and_another_seed_others(whole, tmp_path):
    assert_equal_states(fitted(tmp_path / "again"), whole[1])
    other = fitted(tmp_path / "other", request=replace(REQUEST, seed=6))
    assert not torch.equal(other.render(orbit(2)).alpha, whole[1].render(orbit(2)).alpha)


def test_what_is_logged(whole):
    """A line a step with every loss, one in log.txt for the stage, and the pictures of a step, a row a kind."""
    folder, _ = whole
    records = metrics(folder)
    assert [record["step"] for record in records] == list(range(1, STAGE.steps + 1))
    assert {record["stage"] for record in records} == {"coarse"}
    assert set(records[0]) == {"stage", "step", "sds", "sparsity"}  # a weight of zero costs nothing
    assert all(set(record) == {"stage", "step", "sds", "sparsity", "opacity"} for record in records[1:])
    assert "coarse: 14 of 14 steps" in notes(folder)
    assert Image.open(folder / "progress.png").size == (2 * (3 * SIZE + 8) + 8, 2 * (3 * SIZE + 8) + 8)


def test_arrives_at_the_only_picture_there_is(tmp_path):
    """A prior that knows one picture, all pixels of one grey: the object, darker at first, takes its colour."""
    wanted = Gaussian(torch.full((3, SIZE, SIZE), 0.5), torch.zeros(3, SIZE, SIZE))
    stage = replace(STAGE, steps=80, kinds=("albedo",), white_background=1.0, terms=Terms())
    scene = fitted(tmp_path, wanted, stage)
    with torch.no_grad():
        render = scene.render(orbit(4))
        shown = Pictures(orbit(4), ("albedo",), torch.ones(3)).of(render)
    assert render.alpha.mean() > 0.05
    inside = shown[render.alpha[..., 0] > 0.99]
    assert (inside - 0.75).abs().mean() < 0.05  # latents of 0.5 in [-1, 1]; it began 0.25 away


@pytest.mark.parametrize("broken", [1, 5, 13, 14])
def test_one_step_that_is_not_a_number_is_survived(tmp_path, whole, broken):
    """Back to the last checkpoint, on with other noise; the steps before it stay what they were."""
    prior = Scripted({broken: not_a_number})
    scene = fitted(tmp_path, prior)
    sound = broken - broken % 4
    assert f"coarse, step {broken}: the loss 'sds' is not finite; going back to step {sound}" in notes(tmp_path)
    assert prior.asked + 1 == STAGE.steps + 1 + broken - sound + 1  # the last state is looked at as well
    assert all(value.isfinite().all() for value in scene.state_dict().values())
    assert [record["step"] for record in metrics(tmp_path)] == list(range(1, STAGE.steps + 1))
    assert metrics(tmp_path)[:sound] == metrics(whole[0])[:sound]
    assert metrics(tmp_path)[sound]["sds"] != metrics(whole[0])[sound]["sds"]


def test_a_recovered_run_resumes_bit_equal(tmp_path):
    """The attempt that a run is at survives with it."""
    expected = fitted(tmp_path / "whole", Scripted({5: not_a_number}))
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", Scripted({5: not_a_number, 9: power_cut}))
    assert_equal_states(fitted(tmp_path / "cut", scene=nerf(seed=1)), expected)


@pytest.mark.parametrize(("first", "tried"), [(0, 1), (6, ATTEMPTS)])
def test_never_a_number_again_ends_in_failure(tmp_path, first, tried):
    """After all attempts; at once where there is nothing to go back to. What was sound is still there."""
    with pytest.raises(Failure, match=r"the loss 'sds' is not finite, . times now; try another --seed or prompt"):
        fitted(tmp_path, Scripted(always_from=first))
    assert notes(tmp_path).count("going back") == tried - 1
    with Run.create(tmp_path, REQUEST, resume=True) as run:
        state = run.latest()
    if first == 0:
        assert state is None
    else:
        assert state["step"] == 4
        assert all(value.isfinite().all() for value in state["scene"].values())


class Fog(torch.nn.Module):
    """A scene of one alpha for all pixels: its parameter's sigmoid, or the next of `fates` while there are any."""

    def __init__(self, fates=()):
        super().__init__()
        self.logit = torch.nn.Parameter(torch.zeros(()))
        self.fates = list(fates)

    def render(self, cameras, size=None, generator=None):
        given = self.fates.pop(0) if self.fates else None
        alpha = self.logit.sigmoid() if given is None else self.logit * 0 + given
        one = alpha.expand(len(cameras), SIZE, SIZE, 1)
        three = one.expand(-1, -1, -1, 3)
        return Render(three, three, one, one, three)

    def param_groups(self):
        return [{"params": [self.logit], "lr": 0.01}]

    def after_step(self, step, generator):
        pass


@pytest.mark.parametrize(("alpha", "problem"), [(0.0, "the volume is empty"), (1.0, "the volume fills the pictures")])
def test_an_emptied_or_filled_volume_is_noticed(tmp_path, alpha, problem):
    scene = fitted(tmp_path / "once", scene=Fog([None] * 6 + [alpha]))
    assert f"coarse, step 6: {problem}; going back to step 4 and on with other noise" in notes(tmp_path / "once")
    assert 0.4 < scene.logit.sigmoid() < 0.6
    with pytest.raises(Failure, match=rf"coarse, step 6: {problem}, 3 times now"):
        fitted(tmp_path / "always", scene=Fog([None] * 6 + [alpha, None, None] * ATTEMPTS))


def test_trouble_names_the_first_loss_that_is_not_finite():
    render = Fog().render(orbit(1))
    good, bad = torch.tensor(1.0), torch.tensor(torch.inf)
    assert trouble({"sds": good, "sparsity": good}, [render]) is None
    assert trouble({"sds": good, "sparsity": bad}, [render]) == "the loss 'sparsity' is not finite"


def test_terms_are_weighted_by_progress():
    render = Fog().render(orbit(1))
    weights = Terms(sparsity=Anneal(2.0, 0.0), opacity=Anneal(0.0, 4.0))
    half = terms(weights, render, 0.5)
    assert half["sparsity"].item() == pytest.approx((0.25 + 0.01) ** 0.5)
    assert half["opacity"].item() == pytest.approx(2 * torch.tensor(2.0).log().item())
    assert set(terms(weights, render, 0.0)) == {"sparsity"}
    assert set(terms(weights, render, 1.0)) == {"opacity"}


def test_terms_ask_volumes_and_surfaces_what_they_know():
    """Weights times the regularizers of the same rays and the same mesh; each refuses what has none."""
    volume = NeRF(CONFIG, seeded(1)).render(orbit(2), generator=seeded(2))
    tets = TetConfig(resolution=8)
    solid = Solid(SolidConfig(tets, resolution=SIZE), TetScene.from_ellipsoid((0.5, 0.6, 0.7), tets)).render(orbit(2))
    of_volume = Terms(orientation=Anneal(2.0), z_variance=Anneal(3.0))
    of_surface = Terms(normal_consistency=Anneal(2.0), laplacian=Anneal(3.0))
    found, rays = terms(of_volume, volume, 0.0), volume.rays
    torch.testing.assert_close(
        found["orientation"], 2 * orientation(rays.weights, rays.normal, rays.directions, rays.packed)
    )
    torch.testing.assert_close(found["z_variance"], 3 * z_variance(rays.weights, rays.packed))
    assert found["z_variance"] > 0
    found = terms(of_surface, solid, 0.0)
    torch.testing.assert_close(found["normal_consistency"], 2 * normal_consistency(solid.mesh))
    torch.testing.assert_close(found["laplacian"], 3 * laplacian(solid.mesh))
    assert found["laplacian"] > 0
    with pytest.raises(ValueError, match="terms of surfaces; leave them out for a volume"):
        terms(of_surface, volume, 0.0)
    with pytest.raises(ValueError, match="terms of volumes; leave them out for a surface"):
        terms(of_volume, solid, 0.0)


def test_generators_of_different_numbers_are_independent():
    """Also where the numbers would add up, or their bits run into each other."""
    numbers = [(seed, attempt, step) for seed in range(6) for attempt in range(3) for step in range(30)]
    draws = torch.stack([torch.randn(64, generator=seeded(*three)) for three in numbers])
    assert torch.equal(draws[7], torch.randn(64, generator=seeded(*numbers[7])))
    likeness = torch.corrcoef(draws)[~torch.eye(len(numbers), dtype=torch.bool)]
    assert likeness.abs().max() < 0.75  # about 146,000 pairs: six standard errors of 1 / sqrt(64)
    assert likeness.mean().abs() < 0.002


def test_backgrounds_are_white_as_often_as_asked():
    stage, count = replace(STAGE, white_background=0.3), 2000
    colours = torch.stack([background(stage, seeded(0, 0, step)) for step in range(count)])
    white = (colours == 1).all(-1)
    assert white.float().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / count) ** 0.5)
    assert colours[~white].mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 4200) ** 0.5)


def test_contact_sheet_has_a_row_a_kind():
    """Two kinds of three views, every pixel three wide; the first of the second row is the fourth picture."""
    shown = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 4, 4, 3)
    sheet = Image.open(io.BytesIO(contact_sheet(shown, columns=3)))
    assert sheet.size == (3 * (12 + 8) + 8, 2 * (12 + 8) + 8)
    assert sheet.getpixel((8 + 5, 8 + 20 + 5)) == (153, 153, 153)


def test_the_recipes_fit_their_priors():
    """Every recipe that optimises asks for kinds of pictures that analytic priors know; the others have a start."""
    for recipe in RECIPES.values():
        assert recipe.stages or recipe.start != "sphere"
        for stage in recipe.stages:
            assert stage.kinds
            assert set(stage.kinds) <= set(Scripted().kinds)


def test_every_path_of_a_run_lies_in_its_folder(whole):
    assert {path.name for path in Path(whole[0]).iterdir()} == {
        "recipe.json",
        "metrics.jsonl",
        "log.txt",
        "progress.png",
        "checkpoints",
    }
