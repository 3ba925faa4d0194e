"""Score distillation against closed forms.

For pictures z ~ N(m, s^2) the mean over the noise of the step at timestep t is known: with a = alpha, b = sigma,

    E[x - clean_hat] = b^2 (x - m) / (a^2 s^2 + b^2),        Var[x - clean_hat] = (a b s^2 / (a^2 s^2 + b^2))^2,

and guidance between two such priors of equal s moves m to null + scale * (positive - null).
"""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from threed.distill.anneal import Anneal
from threed.distill.gaussian import Gaussian, ViewOracle
from threed.distill.prior import Conditions, cosine, guided
from threed.distill.score import Shown, pull
from threed.distill.sds import SDS

NOTHING = Conditions(positive=None, null=None)
WEIGHTS = {
    "sigma2": lambda a, b: a * b,
    "uniform": lambda a, b: a / b,
    "clean": lambda a, b: torch.ones_like(a),
    "fantasia3d": lambda a, b: a**2 * b,
}
STD = 0.7


@dataclass
class Watched:
    """A Gaussian prior that keeps what it was asked and what it said."""

    prior: Gaussian
    t: list = field(default_factory=list)
    z_t: list = field(default_factory=list)
    said: list = field(default_factory=list)

    kinds: tuple = ("albedo",)
    image_size: int = 4

    def alpha_sigma(self, t):
        return self.prior.alpha_sigma(t)

    def encode(self, image):
        return self.prior.encode(image)

    def decode(self, latents):
        return self.prior.decode(latents)

    def conditions(self, prompt, negative, pictures):
        return NOTHING

    def denoise(self, z_t, t, condition):
        assert not torch.is_grad_enabled()
        self.t.append(t)
        self.z_t.append(z_t)
        self.said.append(self.prior.denoise(z_t, t, condition))
        return self.said[-1]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def gaussian(size=4):
    return Gaussian(normal(3, size, size, seed=1), torch.full((3, size, size), STD, dtype=torch.float64))


def alpha_sigma(t):
    """Of one timestep, as 0-d float64 tensors."""
    return (a[0] for a in cosine(torch.tensor([t], dtype=torch.float64)))


def at(t, **settings):
    """SDS at one timestep, without guidance."""
    return SDS(**{"scale": 1.0, "t_min": Anneal(t), "t_max": Anneal(t), **settings})


def shown(latents, conditions=NOTHING):
    image = (latents.movedim(1, -1) + 1) / 2
    return Shown(latents, conditions, image if image.shape[-1] == 3 else image[..., :1].expand(-1, -1, -1, 3))


def gradient(loss, prior, latents, conditions=NOTHING, progress=0.0, generator=None):
    """What every picture receives: P times the gradient of the mean over P pictures."""
    latents = latents.clone().requires_grad_()
    (value,) = loss(prior, None, shown(latents, conditions), progress, generator or seeded()).values()
    return torch.autograd.grad(value, latents)[0] * len(latents)


def shrink(a, b):
    """b^2 / (a^2 s^2 + b^2): the share of x - m that a step sees."""
    return b**2 / (a**2 * STD**2 + b**2)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("t", [0.125, 0.5, 0.875])
def test_mean_gradient_at_a_timestep(weight, t):
    """Within five standard errors, which are below 3 % of the gradient's own size; so is its spread."""
    prior, x, pictures = gaussian(), normal(3, 4, 4, seed=2), 20_000
    seen = gradient(at(t, weight=weight), prior, x.expand(pictures, 3, 4, 4))
    a, b = alpha_sigma(t)
    scale = WEIGHTS[weight](a, b) * shrink(a, b)
    exact = scale * (x - prior.mean)
    spread = scale * a * STD**2 / b
    error = spread / math.sqrt(pictures)
    assert error < 0.03 * exact.std()
    assert ((seen.mean(0) - exact).abs() < 5 * error).all()
    torch.testing.assert_close(seen.std(0), spread.expand(3, 4, 4), atol=0, rtol=5 / math.sqrt(2 * pictures))


@pytest.mark.parametrize("weight", ["sigma2", "clean"])  # that of a timestep is proven of all
def test_mean_gradient_over_uniform_timesteps(weight):
    """The integral over t in [0.2, 0.9] by the midpoint rule; timesteps are drawn step by step."""
    prior, x, steps = gaussian(), normal(3, 4, 4, seed=2), 3000
    loss, generator = SDS(scale=1.0, t_min=Anneal(0.2), t_max=Anneal(0.9), weight=weight), seeded(3)
    seen = torch.stack([gradient(loss, prior, x[None], generator=generator)[0] for _ in range(steps)])
    t = 0.2 + 0.7 * (torch.arange(10_000).double() + 0.5) / 10_000
    a, b = cosine(t)
    exact = (WEIGHTS[weight](a, b) * shrink(a, b)).mean() * (x - prior.mean)
    error = seen.std(0) / math.sqrt(steps)
    assert error.mean() < 0.06 * exact.std()
    assert ((seen.mean(0) - exact).abs() < 5 * error).all()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_gradient_is_equation_3(weight):
    """w(t) (noise_hat - noise), sample by sample."""
    prior, x = Watched(gaussian()), normal(4, 3, 4, 4, seed=2)
    found = gradient(at(0.5, weight=weight), prior, x)
    a, b = alpha_sigma(0.5)
    noise = (prior.z_t[0] - a * x) / b
    w = {"sigma2": b**2, "uniform": 1.0, "clean": b / a, "fantasia3d": a * b**2}[weight]
    torch.testing.assert_close(found, w * (prior.said[0].noise - noise), rtol=1e-9, atol=1e-12)


def test_clean_weight_gives_the_difference_to_the_clean_picture_exactly():
    prior, x = Watched(gaussian()), normal(4, 3, 4, 4, seed=2)
    assert torch.equal(gradient(at(0.25, weight="clean"), prior, x), x - prior.said[0].clean)


def test_descending_reaches_the_mean():
    """x' = x - r (k (x - m) + c noise) settles at m with variance r c^2 / (k (2 - r k)), element by element."""
    prior, rate = gaussian(size=32), 0.5
    x, generator, loss = normal(8, 3, 32, 32, seed=2), seeded(4), at(0.5, weight="clean")
    for _ in range(40):
        x = x - rate * gradient(loss, prior, x, generator=generator)
    a, b = alpha_sigma(0.5)
    k, c = shrink(a, b), a * b * STD**2 / (a**2 * STD**2 + b**2)
    variance = rate * c**2 / (k * (2 - rate * k))
    away = x - prior.mean
    count = away.numel()
    assert abs(away.mean()) < 5 * (variance / count).sqrt()
    assert away.square().mean().item() == pytest.approx(variance.item(), rel=5 * math.sqrt(2 / count))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 20.0])
def test_guidance_moves_the_optimum(scale):
    """With two Gaussians of equal width, the mean becomes null + scale * (positive - null); a negative is a null."""
    positive, null, other = (normal(4, 3, 8, 8, seed=seed) for seed in (5, 6, 7))
    oracle = ViewOracle(picture=lambda *_: pytest.fail("no picture is needed"), std=0.0)
    for negative in (None, other):
        optimum = (null if negative is None else negative) * (1 - scale) + scale * positive
        conditions, x = Conditions(positive, null, negative), normal(4, 3, 8, 8, seed=8)
        found = gradient(at(0.5, weight="clean", scale=scale), oracle, x, conditions)
        torch.testing.assert_close(found, x - optimum, rtol=1e-9, atol=1e-9)
        again = gradient(at(0.5, scale=scale), oracle, optimum, conditions)
        torch.testing.assert_close(again, torch.zeros_like(again), rtol=0, atol=1e-9)


def test_guidance_between_wide_gaussians():
    """The expected gradient points to the shifted mean, of whatever width: within five standard errors."""
    x, positive, null = (normal(3, 4, 4, seed=seed) for seed in (2, 5, 6))
    pictures, scale = 20_000, 7.5
    oracle = ViewOracle(picture=lambda *_: pytest.fail("no picture is needed"), std=STD)
    seen = gradient(
        at(0.5, weight="clean", scale=scale), oracle, x.expand(pictures, 3, 4, 4), Conditions(positive, null)
    )
    exact = shrink(*alpha_sigma(0.5)) * (x - (null + scale * (positive - null)))
    assert ((seen.mean(0) - exact).abs() < 5 * seen.std(0) / math.sqrt(pictures)).all()


def test_rescale_keeps_the_contrast_of_the_positive_prediction():
    x, positive, null = (normal(2, 3, 8, 8, seed=seed) for seed in (2, 5, 6))
    oracle = ViewOracle(picture=lambda *_: pytest.fail("no picture is needed"), std=0.0)
    loss = at(0.5, weight="clean", scale=5.0, rescale=0.7)
    found = x - gradient(loss, oracle, x, Conditions(positive, null))
    torch.testing.assert_close(found, guided(positive, null, 5.0, 0.7), rtol=1e-9, atol=1e-9)
    contrast = (x - gradient(replace(loss, rescale=1.0), oracle, x, Conditions(positive, null))).std(dim=(1, 2, 3))
    torch.testing.assert_close(contrast, positive.std(dim=(1, 2, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pictures", [1, 2, 4, 8])
def test_pull_passes_the_gradient_exactly(dtype, pictures):
    """Also where the usual 0.5 mse(z, (z - g).detach()) loses it: g a thousandth of z, g / P still a normal float16."""
    latents = normal(pictures, 4, 8, 8).to(dtype).requires_grad_()
    wanted = normal(pictures, 4, 8, 8, seed=1)
    wanted = (wanted.sign() * (1 + wanted.abs()) * 1e-3).to(dtype)
    (found,) = torch.autograd.grad(pull(latents, wanted), latents)
    assert torch.equal(found * pictures, wanted)
    if dtype in {torch.bfloat16, torch.float16}:
        usual = 0.5 * (latents - (latents - wanted).detach()).square().sum()
        (lost,) = torch.autograd.grad(usual, latents)
        assert (lost - wanted).abs().mean() > 0.05 * wanted.abs().mean()


def test_timesteps_stay_within_their_annealed_bounds_and_fill_them():
    prior, x, generator = Watched(gaussian()), normal(4, 3, 4, 4), seeded(5)
    loss = SDS(scale=1.0, t_min=Anneal(0.5, 0.02), t_max=Anneal(0.98, 0.5, until=0.5))
    for progress, low, high in ((0.0, 0.5, 0.98), (0.25, 0.38, 0.74), (1.0, 0.02, 0.5)):
        prior.t.clear()
        for _ in range(500):
            loss(prior, None, shown(x), progress, generator)
        t = torch.stack(prior.t)
        assert (t == t[:, :1]).all()  # all pictures of a step share theirs
        drawn = ((t[:, 0] - low) / (high - low)).sort().values
        assert drawn[0] >= -1e-6
        assert drawn[-1] <= 1 + 1e-6
        # Kolmogorov-Smirnov: the chance of more than 1.95 / sqrt(n) is a thousandth.
        assert (drawn - torch.arange(500) / 500).abs().max() < 1.95 / math.sqrt(500)


def test_same_generator_same_bytes():
    prior, x, loss = gaussian(), normal(4, 3, 4, 4), SDS(scale=7.5)
    first, second, other = (gradient(loss, prior, x, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_sds_learns_nothing():
    assert SDS().init(gaussian(), seed=0) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, "the guidance scale is -1.0; give a number from 0 on"),
        ({"scale": math.nan}, "the guidance scale is nan"),
        ({"rescale": 1.5}, r"rescale is 1.5; give a number in \[0, 1\]"),
        ({"t_min": Anneal(0.6), "t_max": Anneal(0.9, 0.5)}, r"drawn from \[0.6, 0.5\] when progress is 1"),
        ({"t_max": Anneal(1.0)}, r"drawn from \[0.02, 1\] when progress is 0; they lie between 0 and 1"),
        ({"t_min": Anneal(0.0)}, r"drawn from \[0, 0.98\]"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SDS(**settings)


def test_unknown_weight_is_refused():
    with pytest.raises(ValueError, match="unknown weight 'cosine'; use one of 'sigma2'"):
        gradient(at(0.5, weight="cosine"), gaussian(), normal(1, 3, 4, 4))
