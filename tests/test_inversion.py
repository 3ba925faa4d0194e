"""DDIM backwards, and the losses that live on it, under Gaussians: every step is an affine function of the render."""

import pytest
import torch
from known_prior import SCHEDULES, STD, Gauss, Known, at, gradient, means, normal, seeded, told

from threed.distill.anneal import Anneal
from threed.distill.ism import ISM
from threed.distill.prior import Conditions
from threed.distill.sample import NEARLY_CLEAN, inverted, travel
from threed.distill.sdi import SDI


def growth(t, steps, schedule="cosine"):
    """What x - m is multiplied by on the way to z_t - alpha m: alpha_0, then a factor a step."""
    a, b = SCHEDULES[schedule](torch.linspace(NEARLY_CLEAN, t, steps + 1, dtype=torch.float64))
    factors = (a[:-1] * a[1:] * STD**2 + b[:-1] * b[1:]) / (a[:-1] ** 2 * STD**2 + b[:-1] ** 2)
    return a[0] * factors.prod()


def flow(t, schedule="cosine"):
    """The same of the probability flow itself: it keeps (z_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""
    first, last = Gauss.at(NEARLY_CLEAN, schedule), Gauss.at(t, schedule)
    return first.a * torch.sqrt((last.a**2 * STD**2 + last.b**2) / (first.a**2 * STD**2 + first.b**2))


def upward(t, steps, scale, schedule="cosine"):
    """A render, the mean that guidance makes, and the render inverted."""
    prior, x, (positive, null) = Known(schedule=schedule), normal(2, 3, 4, 4), means(2, pictures=2)
    mean = null + scale * (positive - null)
    return x, mean, inverted(prior, told(positive, null), x, t, steps, scale)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scale", [-7.5, 0.0, 1.0])
@pytest.mark.parametrize(("t", "steps"), [(0.1, 1), (0.5, 3), (0.95, 10)])
def test_the_inverted_render_is_affine_in_the_render(t, steps, scale, schedule):
    x, mean, z_t = upward(t, steps, scale, schedule)
    exact = Gauss.at(t, schedule).a * mean + growth(t, steps, schedule) * (x - mean)
    torch.testing.assert_close(z_t, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.3, 0.9])
def test_many_steps_follow_the_probability_flow_to_first_order(t, schedule):
    """Ten times the steps, a tenth of the error."""

    def error(steps):
        x, mean, z_t = upward(t, steps, 1.0, schedule)
        exact = Gauss.at(t, schedule).a * mean + flow(t, schedule) * (x - mean)
        return ((z_t - exact).norm() / exact.norm()).item()

    assert error(1000) < 2e-3
    assert 8 < error(100) / error(1000) < 12


def test_up_and_down_again_ends_at_the_render_to_first_order():
    prior, x, conditions = Known(), normal(2, 3, 4, 4), told(*means(2, pictures=2))

    def error(steps):
        z_t = inverted(prior, conditions, x, 0.9, steps, 1.0)
        down = torch.linspace(0.9, NEARLY_CLEAN, steps + 1, dtype=torch.float64)
        back, _ = travel(prior, conditions, z_t, down, 1.0)
        return (back / prior.alpha_sigma(down[-1:])[0] - x).abs().max().item()

    assert error(1000) < 0.01
    assert 8 < error(100) / error(1000) < 12


def sdi_slope(t, steps):
    """Of x - m, for one mean m all the way: 1 - a s^2 / (a^2 s^2 + b^2) growth."""
    g = Gauss.at(t)
    return 1 - g.a * STD**2 / (g.a**2 * STD**2 + g.b**2) * growth(t, steps)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_sdi_is_a_slope_times_the_distance_from_the_mean_whatever_the_seed(t):
    x, (mean,) = normal(3, 3, 4, 4), means(1)
    for seed in range(2):
        found = gradient(at(SDI, t), Known(), x, told(mean, mean), generator=seeded(seed))
        torch.testing.assert_close(found, sdi_slope(t, 10) * (x - mean), rtol=0, atol=1e-9)
    at_rest = gradient(at(SDI, t), Known(), mean, told(mean, mean))
    torch.testing.assert_close(at_rest, torch.zeros_like(mean), rtol=0, atol=1e-9)


def test_sdi_between_two_gaussians_settles_where_its_affine_map_says():
    """Inverted with mean m_up and denoised with mean m_down: x - clean_hat = A (x - m_up) + B (m_up - m_down)."""
    t, steps, (positive, null), x = 0.6, 10, means(2), normal(3, 3, 4, 4)
    g = Gauss.at(t)
    up, down = (null + scale * (positive - null) for scale in (-7.5, 7.5))
    loss, conditions = at(SDI, t), told(positive, null)
    exact = sdi_slope(t, steps) * (x - up) + g.shrink() * (up - down)
    torch.testing.assert_close(gradient(loss, Known(), x, conditions), exact, rtol=0, atol=1e-8)
    rest = up - g.shrink() / sdi_slope(t, steps) * (up - down)
    for _ in range(60):
        x = x - gradient(loss, Known(), x, conditions)
    torch.testing.assert_close(x, rest, rtol=0, atol=1e-6)


def test_sdi_sees_less_of_the_distance_than_score_distillation_and_nothing_of_the_noise():
    """Where s is small against sigma both see all of it; where t is small neither sees much."""
    for t in (0.1, 0.5, 0.9):
        exact = 1 - Gauss.at(t).a * STD**2 / (Gauss.at(t).a ** 2 * STD**2 + Gauss.at(t).b ** 2) * flow(t)
        assert float(sdi_slope(t, 2000)) == pytest.approx(float(exact), abs=2e-3)
        assert 0 < sdi_slope(t, 10) < Gauss.at(t).shrink()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("t", "steps"), [(0.2, 1), (0.5, 5), (0.9, 9)])
def test_ism_is_guidance_plus_what_an_interval_changes(t, steps, schedule):
    """noise_hat at both ends by hand: (z - alpha m) sigma / (alpha^2 s^2 + sigma^2)."""
    prior, x, (positive, null), interval = Known(schedule=schedule), normal(3, 3, 4, 4), means(2), 0.06
    s, g = Gauss.at(t - interval, schedule), Gauss.at(t, schedule)
    spread_s, spread_t = (e.a**2 * STD**2 + e.b**2 for e in (s, g))
    deviation_s = growth(t - interval, steps, schedule) * (x - null)
    deviation_t = deviation_s * (s.a * g.a * STD**2 + s.b * g.b) / spread_s
    guided = null + 7.5 * (positive - null)
    after = (g.a * null + deviation_t - g.a * guided) * g.b / spread_t
    exact = after - deviation_s * s.b / spread_s
    loss = at(ISM, t, interval=interval, steps=steps, weight="uniform")
    for seed in range(2):
        found = gradient(loss, prior, x, told(positive, null), generator=seeded(seed))
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)


def test_ism_is_zero_at_the_mean_and_leads_to_it():
    (mean,), x, generator = means(1), normal(3, 3, 4, 4), seeded(1)
    loss, conditions = ISM(weight="clean"), told(mean, mean)
    found = gradient(loss, Known(), mean, conditions)
    torch.testing.assert_close(found, torch.zeros_like(mean), rtol=0, atol=1e-12)
    before = (x - mean).norm()
    for _ in range(300):
        x = x - gradient(loss, Known(), x, conditions, generator=generator)
    assert (x - mean).norm() < 0.01 * before


def test_ism_inverts_without_a_prompt():
    """Only guidance at t hears the prompt: with a zero scale the gradient is the same for all prompts."""
    x, (one, other, null) = normal(3, 3, 4, 4), means(3)
    found = [gradient(at(ISM, 0.5, scale=0.0), Known(), x, Conditions((m, STD), (null, STD))) for m in (one, other)]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SDI(steps=0), "steps is 0; the inversion takes one step or more"),
        (lambda: ISM(steps=0), "steps is 0; the inversion takes one step or more"),
        (lambda: ISM(interval=0.2), r"the interval is 0\.2; give a positive one, shorter than t_min = 0\.1"),
        (lambda: ISM(interval=0.0), r"the interval is 0\.0"),
        (lambda: ISM(t_min=Anneal(0.5, 0.04)), r"shorter than t_min = 0\.04"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
