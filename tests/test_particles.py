"""Several scenes under one loss that learns, through the whole fit: they agree with the object, and resume exactly."""

from dataclasses import dataclass, replace

import pytest
import torch
from test_pipeline import NERF, REQUEST, box, made, staged
from test_stages import seen
from torch import nn
from truth import SOLIDS

from threed import particles
from threed.distill.anneal import Anneal
from threed.distill.gaussian import ViewOracle, posterior_mean
from threed.distill.prior import cosine, prediction_from
from threed.distill.vsd import VSD
from threed.errors import Mistake
from threed.nerf import NeRF
from threed.paint import PaintConfig
from threed.particles import Particles, check_room, least
from threed.pictures import agreement
from threed.pipeline import begun, shaped
from threed.renderers.camera import orbit
from threed.run import Run
from threed.sdf import SDF, SDFConfig
from threed.solid import Solid, SolidConfig
from threed.train import seeded

LOSS = VSD(scale=1.0, weight="clean", rate=0.02, t_min=Anneal(0.9, 0.3), t_max=Anneal(0.9, 0.3))
VARIATIONAL = replace(REQUEST, recipe=staged(loss=LOSS, particles=2, steps=40))


class Shade(nn.Module):
    """Believes the pictures to be the true ones, but paler by so much and spread so far around it: both are learned."""

    def __init__(self, rate):
        super().__init__()
        self.share, self.log_std, self.rate = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.0)), rate

    alpha_sigma = staticmethod(cosine)

    def denoise(self, z_t, t, condition):
        alpha, sigma = (a[:, None, None, None] for a in cosine(t))
        clean = posterior_mean(z_t, alpha, sigma, 1 - self.share * (1 - condition), self.log_std.exp())
        return prediction_from("clean", clean, z_t, *cosine(t))

    def param_groups(self):
        return [{"params": list(self.parameters()), "lr": self.rate}]


@dataclass(frozen=True)
class Adaptable(ViewOracle):
    def adapter(self, rank, rate, seed):
        return Shade(rate)


class Impatient:
    """Is cut off after so many questions."""

    def __init__(self, prior, questions):
        self.prior, self.left = prior, questions

    def __getattr__(self, name):
        return getattr(self.prior, name)

    def denoise(self, z_t, t, condition):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.prior.denoise(z_t, t, condition)


def knowing():
    return Adaptable(**vars(box()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, made(folder, knowing(), VARIATIONAL)


def test_the_first_particle_ends_as_the_object(whole):
    assert agreement(seen(whole[1]), seen(SOLIDS["box"]()))[1] > 0.8
    assert '"adapter"' in (whole[0] / "metrics.jsonl").read_text()


def test_scenes_and_adapter_go_on_where_they_were_cut_off(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, Impatient(knowing(), 27), VARIATIONAL)
    made(tmp_path, knowing(), VARIATIONAL)
    for name in ("asset.glb", "preview.png"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


def test_a_step_changes_one_particle_and_all_get_their_turn():
    both = Particles([NeRF(NERF, seeded(k)) for k in range(2)])
    optimizer, generator, turns = torch.optim.Adam(both.param_groups()), seeded(1), []
    for step in range(12):
        before = [scene.colour.detach().clone() for scene in both.scenes]
        optimizer.zero_grad(set_to_none=True)
        both.render(orbit(1), 8, generator).rgb.sum().backward()
        optimizer.step()
        both.after_step(step, generator)
        changed = [not torch.equal(a, scene.colour) for a, scene in zip(before, both.scenes, strict=True)]
        assert changed.count(True) == 1
        turns.append(changed.index(True))
    assert both.steps.tolist() == [turns.count(0), turns.count(1)]
    assert min(both.steps.tolist()) > 2


def test_without_a_generator_the_first_is_shown():
    both = Particles([NeRF(NERF, seeded(k)) for k in range(2)])
    both.render(orbit(1), 8, seeded(3))
    shown = both.render(orbit(1), 8)
    assert torch.equal(shown.rgb, both.scenes[0].render(orbit(1), 8).rgb)


def test_more_particles_than_the_memory_holds_are_refused(monkeypatch, tmp_path):
    values = sum(p.numel() for p in NeRF(NERF, seeded(0)).parameters())
    monkeypatch.setattr(particles, "total_memory", lambda: 3.5 * values * 16 / particles.SHARE)
    check_room(values, 3)
    with pytest.raises(Mistake, match=r"4 particles of 0\.\d million numbers do not fit; use at most 3"):
        check_room(values, 4)
    request = replace(REQUEST, recipe=staged(loss=LOSS, particles=4))
    with Run.create(tmp_path, request) as run, pytest.raises(Mistake, match="use at most 3"):
        shaped(request, run, knowing())


@pytest.mark.parametrize("scene", [NERF, SDFConfig(), SolidConfig(), SolidConfig(paint=PaintConfig(finish=True))])
def test_what_a_scene_takes_is_known_before_there_is_one(scene):
    """Exactly; of a solid, but for the surface itself."""
    made = begun(scene, None, REQUEST)
    surface = made.tets if isinstance(made, Solid) else nn.Module()
    extra = isinstance(made, SDF) + sum(p.numel() for p in surface.parameters())  # and how soft a distance is
    assert least(scene) == sum(p.numel() for p in made.parameters()) - extra
