"""Analytic priors against the definition they come from: scores by autograd, posterior means by simulation."""

import math

import jaxtyping
import pytest
import torch
from torch.distributions import Normal

from threed.distill.gaussian import Gaussian, Mixture, ViewOracle
from threed.distill.prior import (
    Conditions,
    Pictures,
    Prediction,
    asked,
    cosine,
    from_pixels,
    guide,
    guided,
    perpendicular,
    pixels,
    prediction_from,
)
from threed.renderers.camera import orbit

KINDS = ("noise", "clean", "velocity", "flow")
NOTHING = Conditions(positive=None, null=None)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian():
    return Gaussian(mean=normal(3, 4, 4, seed=1), std=0.1 + uniform(3, 4, 4, seed=2))


def mixture():
    weights = torch.tensor([0.2, 0.5, 0.3]).double()
    return Mixture(normal(3, 3, 4, 4, seed=3), 0.3 + uniform(3, 3, 4, 4, seed=4), weights)


def assert_same(found, expected):
    torch.testing.assert_close(found.clean, expected.clean)
    torch.testing.assert_close(found.noise, expected.noise)


def log_density(prior, z_t, t):
    """log p(z_t), summed over pictures; every component of z_t is normal with variance alpha^2 std^2 + sigma^2."""
    alpha, sigma = (a[:, None, None, None, None] for a in prior.alpha_sigma(t))
    means, stds, weights = (
        (prior.mean[None], prior.std[None], torch.ones(1).double())
        if isinstance(prior, Gaussian)
        else (prior.means, prior.stds, prior.weights)
    )
    each = Normal(alpha * means, (alpha**2 * stds**2 + sigma**2).sqrt()).log_prob(z_t[:, None]).sum(dim=(2, 3, 4))
    return (each + weights.log()).logsumexp(dim=1).sum()


@pytest.mark.parametrize("prior", [gaussian(), mixture()], ids=["gaussian", "mixture"])
def test_predicted_noise_is_the_score(prior):
    """Tweedie: noise = -sigma grad log p(z_t)."""
    t = torch.tensor([0.02, 0.3, 0.6, 0.97], dtype=torch.float64)
    z_t = normal(4, 3, 4, 4, seed=5).requires_grad_()
    (score,) = torch.autograd.grad(log_density(prior, z_t, t), z_t)
    sigma = prior.alpha_sigma(t)[1][:, None, None, None]
    torch.testing.assert_close(prior.denoise(z_t, t, None).noise, -sigma * score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prior", [gaussian(), mixture()], ids=["gaussian", "mixture"])
def test_prediction_adds_up_to_what_was_seen(prior):
    t = torch.tensor([0.1, 0.9], dtype=torch.float64)
    z_t = normal(2, 3, 4, 4)
    alpha, sigma = (a[:, None, None, None] for a in prior.alpha_sigma(t))
    found = prior.denoise(z_t, t, None)
    torch.testing.assert_close(alpha * found.clean + sigma * found.noise, z_t)


def test_posterior_mean_by_simulation():
    """One-pixel pictures: the mean of the clean values whose noised value fell near z_t."""
    prior = Mixture(
        means=torch.tensor([-1.0, 0.5]).double().view(2, 1, 1, 1),
        stds=torch.tensor([0.2, 0.5]).double().view(2, 1, 1, 1),
        weights=torch.tensor([1.0, 3.0]).double(),
    )
    t = torch.tensor([0.5], dtype=torch.float64)
    alpha, sigma = prior.alpha_sigma(t)
    count = 2_000_000
    which = (uniform(count, seed=6) < 0.75).long()
    clean = prior.means.flatten()[which] + prior.stds.flatten()[which] * normal(count, seed=7)
    seen = alpha * clean + sigma * normal(count, seed=8)
    for value in (-1.0, -0.3, 0.4, 1.2):
        near = clean[(seen - value).abs() < 0.01]
        expected = prior.denoise(torch.full((1, 1, 1, 1), value).double(), t, None).clean.item()
        assert abs(near.mean().item() - expected) < 5 * near.std().item() / math.sqrt(len(near)) + 0.005


def test_mixture_of_one_is_the_gaussian():
    one = gaussian()
    t, z_t = torch.tensor([0.2, 0.8], dtype=torch.float64), normal(2, 3, 4, 4)
    many = Mixture(one.mean[None], one.std[None], torch.tensor([7.0]).double())
    assert_same(many.denoise(z_t, t, None), one.denoise(z_t, t, None))


def test_mixture_stays_finite_far_away():
    far = mixture().denoise(torch.full((1, 3, 4, 4), 1e4).double(), torch.tensor([0.01]).double(), None)
    assert far.clean.isfinite().all()


def painted(cameras, kinds, background, size):
    """Pictures that differ: red tells the kind, green the azimuth, blue the background."""
    red = torch.arange(len(kinds)).repeat_interleave(len(cameras)) / len(kinds)
    green = (cameras.azimuth / 7).repeat(len(kinds))
    color = torch.stack([red, green, background[2].expand_as(red)], dim=-1)
    return color[:, None, None].expand(-1, size, size, -1)


def test_oracle_is_the_gaussian_of_the_true_pictures():
    oracle = ViewOracle(painted, std=0.2, image_size=4)
    pictures = Pictures(orbit(3), ("albedo", "normal"), torch.tensor([0.1, 0.2, 0.9]))
    conditions = oracle.conditions("ignored", "ignored", pictures)
    assert conditions.negative is None
    truth = painted(pictures.cameras, pictures.kinds, pictures.background, 4)
    t = torch.full((6,), 0.7)
    z_t = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = oracle.denoise(z_t, t, conditions.positive)
    for p in range(6):
        alone = Gaussian(pixels(truth[p : p + 1])[0], torch.full((3, 4, 4), 0.2))
        torch.testing.assert_close(found.clean[p : p + 1], alone.denoise(z_t[p : p + 1], t[:1], None).clean)
    assert_same(oracle.denoise(z_t, t, conditions.null), found)


def test_oracle_refuses_pictures_of_another_shape():
    oracle = ViewOracle(lambda cameras, kinds, background, size: torch.zeros(1, size, size, 3), image_size=4)
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4, 3\); return \(2, 4, 4, 3\)"):
        oracle.conditions("", "", Pictures(orbit(2), ("albedo",), torch.ones(3)))


def test_cosine_is_variance_preserving_and_falls():
    t = torch.linspace(0.001, 0.999, 100, dtype=torch.float64)
    alpha, sigma = cosine(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert (alpha.diff() < 0).all()
    middle = cosine(torch.tensor([0.496], dtype=torch.float64))  # (0.496 + 0.008) / 1.008 = 1/2
    torch.testing.assert_close(middle[0], middle[1])


def test_pixels_are_minus_one_to_one_channels_first():
    image = torch.tensor([0.0, 0.5, 1.0]).expand(1, 2, 2, 3)
    assert pixels(image).amin(dim=(2, 3)).tolist() == [[-1.0, 0.0, 1.0]]


def test_a_picture_comes_back_from_its_latents():
    image = uniform(2, 4, 5, 3)
    torch.testing.assert_close(from_pixels(pixels(image)), image, rtol=0, atol=1e-15)
    for prior in (gaussian(), mixture(), ViewOracle(painted)):
        torch.testing.assert_close(prior.decode(prior.encode(image)), image, rtol=0, atol=1e-15)


def outputs(clean, noise, alpha, sigma):
    return {"noise": noise, "clean": clean, "velocity": alpha * noise - sigma * clean, "flow": noise - clean}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["preserving", "straight"])
def test_every_prediction_type_recovers_noise_and_clean(kind, schedule):
    clean, noise = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    alpha, sigma = cosine(t) if schedule == "preserving" else (1 - t, t)
    a, s = alpha[:, None, None, None], sigma[:, None, None, None]
    found = prediction_from(kind, outputs(clean, noise, a, s)[kind], a * clean + s * noise, alpha, sigma)
    assert_same(found, Prediction(noise=noise, clean=clean))


def test_unknown_prediction_type_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which would refuse it first
    one = torch.ones(1)
    with pytest.raises(ValueError, match="unknown prediction type 'score'; use one of 'noise'"):
        prediction_from("score", torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2), one, one)


class Told:
    """A prior whose clean picture is the condition itself."""

    kinds, image_size = ("albedo",), 4
    alpha_sigma, encode, decode = staticmethod(cosine), staticmethod(pixels), staticmethod(from_pixels)

    def conditions(self, prompt, negative, pictures):
        return NOTHING

    def denoise(self, z_t, t, condition):
        return prediction_from("clean", condition, z_t, *cosine(t))


def test_guidance_convention():
    positive, null, negative, z_t = (normal(2, 3, 4, 4, seed=s) for s in range(4))
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)

    def clean(scale, conditions):
        found = guide(Told(), z_t, t, conditions, scale)
        alpha, sigma = (a[:, None, None, None] for a in cosine(t))
        torch.testing.assert_close(alpha * found.clean + sigma * found.noise, z_t)
        return found.clean

    torch.testing.assert_close(clean(0.0, Conditions(positive, null)), null)
    assert torch.equal(clean(1.0, Conditions(positive, null)), positive)
    torch.testing.assert_close(clean(4.0, Conditions(positive, null)), 4 * positive - 3 * null)
    torch.testing.assert_close(clean(4.0, Conditions(positive, null, negative)), 4 * positive - 3 * negative)


def test_perpendicular_is_orthogonal_and_what_is_left_is_parallel():
    x, direction = normal(5, 3, 4, 4), normal(5, 3, 4, 4, seed=1)
    direction[4] = 0
    across = perpendicular(x, direction)
    assert ((across * direction).sum(dim=(1, 2, 3)).abs() < 1e-13 * x.flatten(1).norm(dim=1)).all()
    along = (x - across)[:4].flatten(1)
    cosine = torch.nn.functional.cosine_similarity(along, direction[:4].flatten(1))
    torch.testing.assert_close(cosine.abs(), torch.ones(4).double(), rtol=0, atol=1e-15)
    assert torch.equal(across[4], x[4])  # nothing is parallel to no direction


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_guidance_is_led_aside_across_what_was_asked_for(scale):
    """null + scale * (delta - sum_i w_i perp_i), each picture by its own weights; it moves across delta alone."""
    positive, null, first, second, z_t = (normal(3, 3, 4, 4, seed=s) for s in range(5))
    weights = torch.tensor([0.0, 0.5, 2.0]).double(), torch.tensor([0.0, 1.0, 0.1]).double()
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    plain = Conditions(positive, null)
    led = Conditions(positive, null, aside=((first, weights[0]), (second, weights[1])))
    found, expected = (guide(Told(), z_t, t, conditions, scale).clean for conditions in (led, plain))
    delta = (positive - null).flatten(1)
    for p in range(3):
        moved = torch.zeros(48).double()
        for other, weight in zip((first, second), weights, strict=True):
            other = (other - null).flatten(1)[p]
            moved -= weight[p] * (other - (other @ delta[p]) / (delta[p] @ delta[p]) * delta[p])
        torch.testing.assert_close((found - expected)[p].flatten(), scale * moved, rtol=0, atol=1e-13)
        assert abs(moved @ delta[p]) < 1e-13


def test_guidance_led_aside_with_no_weight_or_from_what_was_asked_for_is_plain():
    positive, null, other, z_t = (normal(2, 3, 4, 4, seed=s) for s in range(4))
    t, none, much = torch.tensor([0.2, 0.8]).double(), torch.zeros(2).double(), torch.full((2,), 9.0).double()
    plain = guide(Told(), z_t, t, Conditions(positive, null), 4.0)
    assert_same(guide(Told(), z_t, t, Conditions(positive, null, aside=((other, none),)), 4.0), plain)
    assert_same(guide(Told(), z_t, t, Conditions(positive, null, aside=((positive, much),)), 4.0), plain)


def test_a_negative_stands_in_for_null_beside_what_is_led_aside_from():
    positive, null, negative, other, z_t = (normal(2, 3, 4, 4, seed=s) for s in range(5))
    t, aside = torch.tensor([0.2, 0.8]).double(), ((other, torch.ones(2).double()),)
    led = asked(Told(), z_t, t, Conditions(positive, null, negative, aside))
    torch.testing.assert_close(led, asked(Told(), z_t, t, Conditions(positive, negative, aside=aside)))


def test_full_rescale_keeps_the_contrast_of_every_picture():
    positive, null = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    pushed = guided(positive, null, 5.0, 0.0)
    kept = guided(positive, null, 5.0, 1.0)
    torch.testing.assert_close(kept.std(dim=(1, 2, 3)), positive.std(dim=(1, 2, 3)))
    torch.testing.assert_close(guided(positive, null, 5.0, 0.7), 0.7 * kept + 0.3 * pushed)


def test_rescale_leaves_pictures_of_one_colour():
    flat = torch.full((1, 3, 4, 4), 0.5)
    torch.testing.assert_close(guided(flat, flat, 3.0, 0.7), flat)


def test_guidance_changes_nothing_where_text_says_nothing():
    prior, t, z_t = gaussian(), torch.tensor([0.4], dtype=torch.float64), normal(1, 3, 4, 4)
    assert_same(guide(prior, z_t, t, NOTHING, 100.0), prior.denoise(z_t, t, None))
