"""An exact prior for tests of losses: conditions are Gaussians, schedules and kinds of prediction are a choice.

A condition is (mean, std): pictures drawn from N(mean, std^2), element by element. Whatever the network would predict
is made from the exact posterior first, and turned into a `Prediction` by the project's own conversion.
"""

import math
from dataclasses import dataclass

import torch

from threed.distill.anneal import Anneal
from threed.distill.gaussian import posterior_mean
from threed.distill.prior import Conditions, cosine, from_pixels, pixels, prediction_from
from threed.distill.score import Shown

STD = 0.7


def straight(t):
    """The schedule of flow matching."""
    return 1 - t, t


SCHEDULES = {"cosine": cosine, "straight": straight}


@dataclass(frozen=True)
class Known:
    kind: str = "clean"
    schedule: str = "cosine"
    image_size: int = 4
    kinds: tuple = ("albedo",)

    def alpha_sigma(self, t):
        return SCHEDULES[self.schedule](t)

    def encode(self, image):
        return pixels(image)

    def decode(self, latents):
        return from_pixels(latents)

    def conditions(self, prompt, negative, pictures):
        raise AssertionError("these tests make their own")

    def denoise(self, z_t, t, condition):
        assert not torch.is_grad_enabled()
        alpha, sigma = self.alpha_sigma(t)
        a, s = alpha[:, None, None, None], sigma[:, None, None, None]
        clean = posterior_mean(z_t, a, s, condition[0], condition[1])
        noise = (z_t - a * clean) / s
        output = {"noise": noise, "clean": clean, "velocity": a * noise - s * clean, "flow": noise - clean}[self.kind]
        return prediction_from(self.kind, output, z_t, alpha, sigma)


@dataclass(frozen=True)
class Gauss:
    """What is known at one timestep: alpha, sigma and the share of x - mean that a step sees."""

    a: torch.Tensor
    b: torch.Tensor

    @staticmethod
    def at(t, schedule="cosine"):
        return Gauss(*(each[0] for each in SCHEDULES[schedule](torch.tensor([t], dtype=torch.float64))))

    def shrink(self, std=STD):
        """b^2 / (a^2 s^2 + b^2)."""
        return self.b**2 / (self.a**2 * std**2 + self.b**2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def means(count, pictures=3, size=4):
    """Of different conditions."""
    return [normal(pictures, 3, size, size, seed=10 + k) for k in range(count)]


def told(positive, null, negative=None, std=STD):
    return Conditions((positive, std), (null, std), None if negative is None else (negative, std))


def at(loss, t, **settings):
    """A loss at one timestep."""
    return loss(**{"t_min": Anneal(t), "t_max": Anneal(t), **settings})


def shown(latents, conditions):
    return Shown(latents, conditions, from_pixels(latents))


def gradient(loss, prior, latents, conditions, progress=0.0, generator=None):
    """What every picture receives: P times the gradient of the mean over P pictures."""
    latents = latents.clone().requires_grad_()
    losses = loss(prior, None, shown(latents, conditions), progress, generator or seeded())
    return torch.autograd.grad(sum(losses.values()), latents)[0] * len(latents)


def assert_mean(seen, exact):
    """The mean over the first axis is `exact` within five standard errors."""
    error = seen.std(0) / math.sqrt(len(seen))
    assert ((seen.mean(0) - exact).abs() <= 5 * error + 1e-12).all()


def assert_variance(seen, exact):
    """The variance over the first axis, pooled over all elements, is `exact` within five standard errors."""
    found = seen.var(0).mean().item()
    assert abs(found / exact - 1) < 5 * math.sqrt(2 / seen.numel())
