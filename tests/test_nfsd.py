"""Noise-free score distillation between Gaussians: the same direction as score distillation, without its noise."""

import pytest
import torch
from known_prior import STD, Gauss, Known, assert_mean, assert_variance, at, gradient, means, normal, told

from threed.distill.nfsd import NFSD
from threed.distill.sds import SDS

SCALE, PICTURES = 7.5, 4000


def one():
    """A render, and the means of a prompt and of null."""
    return normal(3, 3, 4, 4, seed=1)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_from_the_threshold_on_no_noise_is_left(t):
    """b^2 / (a^2 s^2 + b^2) (negative - null + scale (null - positive)), sample by sample."""
    positive, null, negative = means(3)
    conditions, x = told(positive, null, negative), normal(3, 3, 4, 4)
    found = gradient(at(NFSD, t, weight="clean"), Known(), x, conditions)
    exact = Gauss.at(t).shrink() * (negative - null + SCALE * (null - positive))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize("t", [0.3, 0.7])
def test_with_a_negative_of_what_renders_look_like_it_is_the_mean_of_score_distillation(t):
    """The paper's assumption, made exact: where the negative condition means the render, NFSD = E[SDS], variance 0."""
    x, positive, null = one()
    sds = gradient(at(SDS, t, scale=SCALE), Known(), x.expand(PICTURES, 3, 4, 4), told(positive, null))
    nfsd = gradient(at(NFSD, t), Known(), x.expand(2, 3, 4, 4), told(positive, null, x))
    assert_mean(sds, nfsd[0])
    torch.testing.assert_close(nfsd[0], nfsd[1], rtol=0, atol=1e-11)
    g = Gauss.at(t)
    assert_variance(sds, (g.a * g.b * g.a * g.b * STD**2 / (g.a**2 * STD**2 + g.b**2)) ** 2)  # of w = sigma^2


@pytest.mark.parametrize("t", [0.05, 0.125, 0.19])
def test_below_the_threshold_it_is_score_distillation_with_less_noise(t):
    """The same mean. Its noise goes by b^2 / (a^2 s^2 + b^2), and that of SDS by a^2 s^2 / (a^2 s^2 + b^2)."""
    x, positive, null = one()
    g = Gauss.at(t)
    nfsd, sds = (
        gradient(
            at(loss, t, scale=SCALE, weight="uniform"),
            Known(),
            x.expand(PICTURES, 3, 4, 4),
            told(positive, null, negative),
        )
        for loss, negative in ((NFSD, null), (SDS, None))
    )
    exact = g.a / g.b * g.shrink() * (x - (null + SCALE * (positive - null)))
    assert_mean(nfsd, exact)
    assert_mean(sds, exact)
    assert_variance(nfsd, g.shrink() ** 2)
    assert_variance(sds, (1 - g.shrink()) ** 2)
    assert nfsd.var() < sds.var()


def test_the_negative_is_not_heard_below_the_threshold_nor_in_the_prompts_direction():
    positive, null, negative, other = means(4)
    x = normal(3, 3, 4, 4)
    for t, same in ((0.19, True), (0.21, False)):
        found = [gradient(at(NFSD, t), Known(), x, told(positive, null, n)) for n in (negative, other)]
        assert torch.equal(*found) == same
    low, high = (gradient(at(NFSD, 0.5, scale=s), Known(), x, told(positive, null, negative)) for s in (1.0, 2.0))
    again = [gradient(at(NFSD, 0.5, scale=s), Known(), x, told(positive, null, other)) for s in (1.0, 2.0)]
    torch.testing.assert_close(high - low, again[1] - again[0], rtol=0, atol=1e-11)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match='nfsd needs a negative prompt; give one, such as --negative "blurry'):
        gradient(NFSD(), Known(), normal(3, 3, 4, 4), told(*means(2)))
    with pytest.raises(ValueError, match=r"rescale is 0\.5, and nfsd compares no contrasts"):
        NFSD(rescale=0.5)
    with pytest.raises(ValueError, match=r"quiet is 200; give a time in \[0, 1\]"):
        NFSD(quiet=200)
