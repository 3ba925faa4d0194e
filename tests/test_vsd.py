"""Variational score distillation: particles end as the prior's own distribution, where SDS has them collapse.

Under a Gaussian prior N(m, s^2) and an adapter that knows the particles, a particle's mean motion at timestep t is zero
where the particles are N(m, s^2) themselves; with a = alpha, b = sigma, that of SDS is b^2 (x - m) / (a^2 s^2 + b^2).
"""

import math
from dataclasses import dataclass

import pytest
import tiny_prior
import torch
from test_sds import NOTHING, STD, alpha_sigma, gaussian, normal, seeded, shown
from torch import nn

from threed.distill.anneal import Anneal
from threed.distill.embedded import Embedded
from threed.distill.gaussian import Gaussian, Mixture
from threed.distill.prior import Pictures, cosine
from threed.distill.score import Noised
from threed.distill.sds import SDS
from threed.distill.vsd import BSD, VSD, cleaned, lesson
from threed.renderers.camera import orbit

FIXED = {"scale": 1.0, "t_min": Anneal(0.5), "t_max": Anneal(0.5)}


class Believer(nn.Module):
    """An adapter that believes its pictures to be Gaussian: it learns their mean and spread, element by element."""

    def __init__(self, mean, std, rate=0.0):
        super().__init__()
        self.mean, self.log_std, self.rate = nn.Parameter(mean.clone()), nn.Parameter(std.log()), rate

    alpha_sigma = staticmethod(cosine)

    def denoise(self, z_t, t, condition):
        return Gaussian(self.mean, self.log_std.exp()).denoise(z_t, t, condition)

    def param_groups(self):
        return [{"params": list(self.parameters()), "lr": self.rate}]


@dataclass(frozen=True)
class Adaptable(Gaussian):
    """A Gaussian prior with such adapters."""

    def adapter(self, rank, rate, seed):
        return Believer(self.mean, self.std, rate)


def adaptable():
    return Adaptable(**vars(gaussian()))


class Parrot:
    """The exact score of particles: a mixture of points, which follows them."""

    alpha_sigma = staticmethod(cosine)

    def know(self, particles):
        self.points = Mixture(particles, torch.full_like(particles, 1e-3), torch.ones(len(particles)).double())

    def denoise(self, z_t, t, condition):
        return self.points.denoise(z_t, t, condition)


@pytest.mark.parametrize("weight", ["sigma2", "uniform", "clean"])
def test_gradient_is_the_difference_of_both_noises(weight):
    """w(t) (noise_hat - noise_hat_adapter), sample by sample, with the noise gone from it."""
    prior, x = adaptable(), normal(4, 3, 4, 4, seed=2)
    adapter = Believer(normal(3, 4, 4, seed=9), torch.full((3, 4, 4), 0.3).double())
    found = gradient_of("vsd", VSD(weight=weight, **FIXED), prior, adapter, x)
    a, b = alpha_sigma(0.5)
    noise = torch.randn(x.shape, generator=after_a_draw())
    z_t, t = a * x + b * noise, torch.full((4,), 0.5).double()
    w = {"sigma2": b**2, "uniform": 1.0, "clean": b / a}[weight]
    expected = w * (prior.denoise(z_t, t, None).noise - adapter.denoise(z_t, t, None).noise)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def after_a_draw():
    """The generator as it is once the timestep has been drawn."""
    generator = seeded()
    torch.rand(1, generator=generator)
    return generator


def gradient_of(name, loss, prior, learned, latents, progress=0.0):
    """What every picture receives from the loss of this name; the others leave the pictures alone."""
    latents = latents.clone().requires_grad_()
    losses = loss(prior, learned, shown(latents), progress, seeded())
    for other in losses.keys() - {name}:
        assert torch.autograd.grad(losses[other], latents, retain_graph=True, allow_unused=True)[0] is None
    return torch.autograd.grad(losses[name], latents)[0] * len(latents)


def test_an_untrained_adapter_leaves_nothing_to_change():
    prior = adaptable()
    found = gradient_of("vsd", VSD(**FIXED), prior, VSD().init(prior, 0), normal(4, 3, 4, 4))
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_particles_with_an_exact_score_become_the_prior_and_those_of_sds_its_mode():
    """256 numbers, far from the prior at first. SDS at rate r leaves the variance r c^2 / (k (2 - r k)), VSD s^2."""
    prior = Gaussian(torch.tensor([[[0.4]]]).double(), torch.tensor([[[STD]]]).double())
    times = {"scale": 1.0, "weight": "clean", "t_min": Anneal(0.3), "t_max": Anneal(0.3)}
    rate, ends = 0.2, {}
    for loss, adapter in ((VSD(**times), Parrot()), (SDS(**times), None)):
        x, generator = 0.1 * normal(256, 1, 1, 1, seed=3) - 1.5, seeded(4)
        for _ in range(300):
            if adapter:
                adapter.know(x)
            latents = x.clone().requires_grad_()
            value = loss(prior, adapter, shown(latents), 0.0, generator)[loss.name]
            x = x - rate * len(x) * torch.autograd.grad(value, latents)[0]
        ends[loss.name] = x.flatten()
    a, b = alpha_sigma(0.3)
    k, c = b**2 / (a**2 * STD**2 + b**2), a * b * STD**2 / (a**2 * STD**2 + b**2)
    left = (rate * c**2 / (k * (2 - rate * k))).sqrt()
    error = 5 / math.sqrt(2 * 256)
    assert ends["sds"].std().item() == pytest.approx(left.item(), rel=error)
    assert left < 0.3 * STD
    assert ends["vsd"].std().item() == pytest.approx(STD, rel=error)
    assert ends["vsd"].mean().item() == pytest.approx(0.4, abs=5 * STD / math.sqrt(256))
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]).double()
    wanted = torch.distributions.Normal(0.4, STD).icdf(quantiles)
    torch.testing.assert_close(ends["vsd"].quantile(quantiles), wanted.double(), rtol=0, atol=0.15)


def test_particles_with_an_adapter_that_learns_become_the_prior():
    """Within a tenth of its spread, mean and standard deviation over all elements."""
    prior = adaptable()
    loss = VSD(scale=1.0, weight="clean", rate=0.02, t_min=Anneal(0.3), t_max=Anneal(0.3))
    x, adapter = nn.Parameter(0.1 * normal(64, 3, 4, 4, seed=3) - 1.0), loss.init(prior, 0)
    optimizer = torch.optim.Adam([{"params": [x], "lr": 0.02}, *adapter.param_groups()])
    generator = seeded(5)
    for _ in range(800):
        optimizer.zero_grad()
        sum(loss(prior, adapter, shown(x), 0.0, generator).values()).backward()
        optimizer.step()
    away = (x - prior.mean).detach()
    assert abs(away.mean()) < 0.1 * STD
    assert away.std(0).mean().item() == pytest.approx(STD, rel=0.1)


def test_lessons_are_least_where_the_adapter_knows_the_pictures():
    """The gradient to mean and spread of N(m, s^2) pictures is zero at (m, s), within five standard errors."""
    prior, generator = gaussian(), seeded(6)
    adapter = Believer(prior.mean, prior.std)
    slopes = []
    for _ in range(300):
        pictures = prior.mean + prior.std * torch.randn(8, 3, 4, 4, generator=generator)
        value = lesson(adapter, pictures, None, generator)
        slopes.append(torch.stack(torch.autograd.grad(value, list(adapter.parameters()))))
    slopes = torch.stack(slopes)
    assert (slopes.mean(0).abs() < 5 * slopes.std(0) / math.sqrt(len(slopes))).all()


@pytest.mark.parametrize("steps", [1, 4])
def test_cleaned_pictures_are_ddims(steps):
    """One step is the clean prediction itself; many approach the end of the probability flow, m + s (z - a m) / v."""
    prior, x = gaussian(), normal(2, 3, 4, 4, seed=2)
    a, b = alpha_sigma(0.6)
    seen = Noised(x, torch.full((2,), 0.6).double(), x, a.expand(2, 1, 1, 1), b.expand(2, 1, 1, 1))
    found = cleaned(prior, seen, NOTHING, 1.0, steps)
    if steps == 1:
        torch.testing.assert_close(found, prior.denoise(x, seen.t, None).clean)
    exact = prior.mean + prior.std * (x - a * prior.mean) / (a**2 * prior.std**2 + b**2).sqrt()
    assert (found - exact).abs().max() < (0.6 if steps == 1 else 0.15) * (x - prior.mean).abs().max()


def test_bootstrapped_gradient_is_the_difference_of_both_adapters():
    prior, x = adaptable(), normal(4, 3, 4, 4, seed=2)
    loss = BSD(weight="clean", **FIXED)
    pair = loss.init(prior, 0)
    nn.init.normal_(pair.booted.mean, generator=seeded(7))
    nn.init.normal_(pair.renders.mean, generator=seeded(8))
    found = gradient_of("bsd", loss, prior, pair, x)
    a, b = alpha_sigma(0.5)
    z_t, t = a * x + b * torch.randn(x.shape, generator=after_a_draw()), torch.full((4,), 0.5).double()
    expected = pair.renders.denoise(z_t, t, None).clean - pair.booted.denoise(z_t, t, None).clean
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-9)


def test_the_bootstrapped_adapter_learns_crisp_pictures_in_the_first_part_of_every_cycle():
    prior, x = adaptable(), normal(4, 3, 4, 4, seed=2)
    loss = BSD(cycles=4, part=0.5, **FIXED)
    pair = loss.init(prior, 0)
    learns = [
        progress / 16 for progress in range(16) if "bootstrap" in loss(prior, pair, shown(x), progress / 16, seeded())
    ]
    assert learns == [p / 16 for p in range(16) if p % 4 < 2]
    pair.booted.log_std.data.fill_(0.0)
    value = loss(prior, pair, shown(x), 0.0, seeded())["bootstrap"]
    assert value > 0
    renders, booted = list(pair.renders.parameters()), list(pair.booted.parameters())
    assert all(slope is None for slope in torch.autograd.grad(value, renders, retain_graph=True, allow_unused=True))
    assert any(slope.abs().max() > 0 for slope in torch.autograd.grad(value, booted))


def test_a_prior_without_adapters_is_refused():
    for loss in (VSD(), BSD()):
        with pytest.raises(ValueError, match="a Gaussian has no adapter, which this loss trains; use another loss"):
            loss.init(gaussian(), 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior") / "tiny"
    tiny_prior.write(folder)
    return Embedded.load(folder, dtype=torch.float32)


def asked(prior):
    pictures = Pictures(orbit(2), ("albedo", "normal"), torch.ones(3))
    return torch.randn(4, 3, 16, 16, generator=seeded()), torch.full((4,), 0.4), prior.conditions("a box", "", pictures)


def test_an_adapter_of_the_embedded_prior_begins_as_it_and_learns_beside_it(small):
    z_t, t, conditions = asked(small)
    before = {name: value.clone() for name, value in small.unet.state_dict().items()}
    said = small.denoise(z_t, t, conditions.positive).clean
    adapter = small.adapter(rank=2, rate=0.01, seed=3)
    torch.testing.assert_close(adapter.denoise(z_t, t, conditions.positive).clean, said, rtol=0, atol=1e-6)
    (group,) = adapter.param_groups()
    assert group["lr"] == 0.01
    assert sum(weight.numel() for weight in group["params"]) < 0.05 * sum(p.numel() for p in small.unet.parameters())
    optimizer, pictures = torch.optim.Adam(adapter.param_groups()), torch.rand(4, 3, 16, 16, generator=seeded(1))
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        values.append(lesson(adapter, pictures, conditions.positive, seeded(2)))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.95 * values[0]
    assert all(torch.equal(value, before[name]) for name, value in small.unet.state_dict().items())
    assert torch.equal(small.denoise(z_t, t, conditions.positive).clean, said)
    assert all(not p.requires_grad for p in small.unet.parameters())

    again = small.adapter(rank=2, rate=0.01, seed=4)
    again.load_state_dict(adapter.state_dict())
    answers = [one.denoise(z_t, t, conditions.positive).clean for one in (adapter, again)]
    assert torch.equal(*answers)
    assert (answers[0] - said).abs().max() > 1e-3


def test_an_adapter_is_told_the_camera(small):
    """Other cameras, other answers, once it has learned something."""
    z_t, t, conditions = asked(small)
    adapter = small.adapter(rank=2, rate=0.01, seed=3)
    with torch.no_grad():
        for weight in adapter.weights.values():
            weight.copy_(torch.randn(weight.shape, generator=seeded(5)))
    turned = small.conditions("a box", "", Pictures(orbit(2, elevation=0.7), ("albedo", "normal"), torch.ones(3)))
    one, other = (adapter.denoise(z_t, t, c.positive).clean for c in (conditions, turned))
    own = small.denoise(z_t, t, turned.positive).clean - small.denoise(z_t, t, conditions.positive).clean
    assert ((other - one) - own).abs().max() > 1e-3  # more than what the prior itself says differently


def test_same_seed_same_adapter(small):
    first, second, other = (small.adapter(2, 0.01, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
