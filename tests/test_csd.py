"""Classifier score distillation between Gaussians: what is left of it, exactly."""

import pytest
import torch
from known_prior import Gauss, Known, assert_mean, assert_variance, at, gradient, means, normal, seeded, told

from threed.distill.csd import CSD
from threed.distill.prior import Conditions
from threed.distill.sds import SDS

T = (0.1, 0.5, 0.9)


@pytest.mark.parametrize("t", T)
def test_between_gaussians_of_one_width_it_is_their_shift_whatever_the_noise(t):
    """scale b^2 / (a^2 s^2 + b^2) (null - positive): the render is not in it, and neither is the noise."""
    positive, null = means(2)
    loss, exact = at(CSD, t, weight="clean", scale=3.0), 3 * Gauss.at(t).shrink() * (null - positive)
    for seed in range(3):
        found = gradient(loss, Known(), normal(3, 3, 4, 4, seed=seed), told(positive, null), generator=seeded(seed))
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", T)
def test_mean_and_variance_between_gaussians_of_different_widths(t):
    """E clean_i = (b^2 m_i + a^2 s_i^2 x) / (a^2 s_i^2 + b^2); the noise goes by the difference of their slopes."""
    (positive, null, x), pictures = normal(3, 3, 4, 4, seed=1), 4000
    conditions = Conditions((positive, 0.3), (null, 1.2))
    seen = gradient(at(CSD, t, weight="clean"), Known(), x.expand(pictures, 3, 4, 4), conditions)
    a, b = (Gauss.at(t).a, Gauss.at(t).b)
    slope = {s: a * s**2 / (a**2 * s**2 + b**2) for s in (0.3, 1.2)}
    exact = (1 - a * slope[1.2]) * null - (1 - a * slope[0.3]) * positive + a * (slope[1.2] - slope[0.3]) * x
    assert_mean(seen, exact)
    assert_variance(seen, (b * (slope[1.2] - slope[0.3])) ** 2)


def test_it_is_what_guidance_adds():
    """SDS at scale 1 + CSD = SDS at scale 2, noise by noise: the paper's decomposition."""
    conditions, x = told(*means(2)), normal(3, 3, 4, 4)
    one, two = (gradient(at(SDS, 0.5, scale=scale), Known(), x, conditions) for scale in (1.0, 2.0))
    torch.testing.assert_close(two - one, gradient(at(CSD, 0.5), Known(), x, conditions), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("scale", "repel"), [(1.0, 1.0), (1.0, 0.5), (3.0, 0.0)])
def test_a_negative_repels(scale, repel):
    """scale noise(prompt) + (repel - scale) noise(null) - repel noise(negative)."""
    positive, null, negative = means(3)
    g, x = Gauss.at(0.5), normal(3, 3, 4, 4)
    found = gradient(at(CSD, 0.5, weight="clean", scale=scale, repel=repel), Known(), x, told(positive, null, negative))
    exact = -g.shrink() * (scale * positive + (repel - scale) * null - repel * negative)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_equal_weights_put_the_negative_in_the_place_of_null():
    positive, null, negative = means(3)
    both, instead = (
        gradient(at(CSD, 0.5, scale=2.0, repel=2.0), Known(), normal(3, 3, 4, 4), conditions)
        for conditions in (told(positive, null, negative), told(positive, negative))
    )
    torch.testing.assert_close(both, instead, rtol=0, atol=1e-12)


def test_a_contrast_to_keep_is_refused():
    with pytest.raises(ValueError, match=r"rescale is 0\.5, and csd compares no contrasts; leave it at 0"):
        CSD(rescale=0.5)
    with pytest.raises(ValueError, match="the guidance scale is -1"):
        CSD(scale=-1.0)
