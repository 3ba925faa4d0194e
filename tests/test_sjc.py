"""Score Jacobian chaining against score distillation, and against the score itself."""

import math

import pytest
import torch
from known_prior import STD, Gauss, Known, assert_mean, assert_variance, at, gradient, means, normal, seeded, told

from threed.distill.prior import Conditions
from threed.distill.score import noised
from threed.distill.sds import SDS
from threed.distill.sjc import SJC


def exploding(prior, condition, y, sigma_ve):
    """D(y; sigma) as the paper has it, of a predictor of noise on the cosine schedule: y - sigma noise_hat."""
    alpha = 1 / math.sqrt(1 + sigma_ve**2)
    t = math.acos(alpha) / (math.pi / 2) * 1.008 - 0.008
    times = torch.full((len(y),), t, dtype=y.dtype)
    with torch.no_grad():
        return y - sigma_ve * prior.denoise(alpha * y, times, condition).noise


@pytest.mark.parametrize("kind", ["noise", "velocity"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_it_is_the_papers_equation_sample_by_sample(t, kind):
    """(y - D(y + sigma noise)) / sigma, by hand in the variance-exploding view; without the reduction, plus noise."""
    prior, y, (mean,) = Known(kind), normal(3, 3, 4, 4), means(1)
    noise, sigma = noised(prior, y, t, drawn(t)).noise, float(Gauss.at(t).b / Gauss.at(t).a)
    told_once = Conditions((mean, STD), (mean, STD))
    denoised = exploding(prior, (mean, STD), y + sigma * noise, sigma)
    for reduced, exact in ((True, y - denoised), (False, y + sigma * noise - denoised)):
        found = gradient(at(SJC, t, scale=1.0, reduced=reduced), prior, y, told_once)
        torch.testing.assert_close(found, exact / sigma, rtol=1e-9, atol=1e-9)


def drawn(t):
    """The generator of `gradient` after the loss has drawn its timestep."""
    generator = seeded()
    at(SJC, t).timestep(0.0, generator)
    return generator


@pytest.mark.parametrize("schedule", ["cosine", "straight"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_it_is_score_distillation_of_weight_one_sample_by_sample(t, schedule):
    prior, x, conditions = Known(schedule=schedule), normal(3, 3, 4, 4), told(*means(2))
    sjc = gradient(at(SJC, t), prior, x, conditions)
    assert torch.equal(sjc, gradient(at(SDS, t, weight="uniform"), prior, x, conditions))


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("t", [0.25, 0.75])
def test_its_mean_is_minus_the_score_times_sigma_and_its_variance_known(t, reduced):
    """Of N(m, s^2) seen through N(0, sigma^2): (y - m) sigma / (s^2 + sigma^2), sigma being that of the exploding view.

    The noise goes by s^2 / (s^2 + sigma^2), and without the reduction by sigma^2 / (s^2 + sigma^2).
    """
    (mean, y), pictures, g = normal(2, 3, 4, 4, seed=1), 4000, Gauss.at(t)
    loss = at(SJC, t, scale=1.0, reduced=reduced)
    seen = gradient(loss, Known(), y.expand(pictures, 3, 4, 4), told(mean, mean))
    sigma = g.b / g.a
    assert_mean(seen, (y - mean) * sigma / (STD**2 + sigma**2))
    assert_variance(seen, ((STD**2 if reduced else sigma**2) / (STD**2 + sigma**2)) ** 2)


def test_averaging_draws_divides_the_variance():
    (mean, y), pictures = normal(2, 3, 4, 4, seed=1), 2000
    g = Gauss.at(0.5)
    one = (1 - g.shrink()) ** 2
    for draws in (1, 4, 16):
        loss = at(SJC, 0.5, scale=1.0, draws=draws)
        seen = gradient(loss, Known(), y.expand(pictures, 3, 4, 4), told(mean, mean))
        assert_mean(seen, g.a / g.b * g.shrink() * (y - mean))
        assert_variance(seen, one / draws)


def test_at_least_one_draw():
    with pytest.raises(ValueError, match="draws is 0; perturb at least once"):
        SJC(draws=0)
