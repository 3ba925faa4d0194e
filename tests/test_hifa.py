"""HiFA against DDIM by hand under a Gaussian, where every step is a multiplication."""

import math

import pytest
import torch
from known_prior import SCHEDULES, STD, Gauss, Known, at, gradient, means, normal, seeded, shown, told

from threed.distill.hifa import HiFA
from threed.distill.prior import from_pixels
from threed.distill.score import noised
from threed.distill.sds import SDS

SCALE = 3.0


def denoised(mean, z_t, t, steps, schedule):
    """z - alpha mean is multiplied by (a a' s^2 + b b') / (a^2 s^2 + b^2) in a step; the last one tells the clean."""
    times = torch.linspace(t, 0, steps + 1, dtype=torch.float64)
    a, b = SCHEDULES[schedule](times)
    spread = a**2 * STD**2 + b**2
    deviation = z_t - a[0] * mean
    for k in range(steps - 1):
        deviation = deviation * (a[k] * a[k + 1] * STD**2 + b[k] * b[k + 1]) / spread[k]
    return mean + a[steps - 1] * STD**2 / spread[steps - 1] * deviation


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("t", "steps"), [(0.9, 1), (0.9, 4), (0.3, 3), (0.98, 10)])
def test_latents_and_image_are_led_to_the_denoised_picture(t, steps, schedule):
    """w (z - clean) to the latents, w image_weight (x - decode(clean)) to the image, each by itself."""
    prior, latents, (positive, null) = Known(schedule=schedule), normal(3, 3, 4, 4), means(2)
    loss = at(HiFA, t, scale=SCALE, steps=steps, image_weight=0.2)
    given = shown(latents.requires_grad_(), told(positive, null))
    given.image.detach_().requires_grad_()
    losses = loss(prior, None, given, 0.0, seeded())
    found = torch.autograd.grad(sum(losses.values()), [latents, given.image])
    generator = seeded()
    loss.timestep(0.0, generator)
    z_t = noised(prior, latents, t, generator).z_t
    clean = denoised(null + SCALE * (positive - null), z_t, t, steps, schedule)
    g = Gauss.at(t, schedule)
    torch.testing.assert_close(found[0] * 3, g.a * g.b * (latents - clean), rtol=0, atol=1e-9)
    exact = 0.2 * g.a * g.b * (given.image - from_pixels(clean))
    torch.testing.assert_close(found[1] * 3, exact, rtol=0, atol=1e-9)
    assert list(losses) == ["hifa", "hifa_image"]


def test_one_step_without_the_image_is_score_distillation():
    x, conditions = normal(3, 3, 4, 4), told(*means(2))
    one = gradient(at(HiFA, 0.6, steps=1, image_weight=0.0), Known(), x, conditions)
    torch.testing.assert_close(one, gradient(at(SDS, 0.6), Known(), x, conditions), rtol=0, atol=1e-12)


def test_of_pixels_the_images_share_is_a_quarter_of_its_weight():
    x, conditions = normal(3, 3, 4, 4), told(*means(2))
    without, with_image = (gradient(at(HiFA, 0.6, image_weight=w), Known(), x, conditions) for w in (0.0, 0.8))
    torch.testing.assert_close(with_image, 1.2 * without, rtol=0, atol=1e-12)


def test_more_steps_leave_less_of_the_mean_and_more_of_the_render():
    """One step answers with the posterior mean, many with a picture as wide as the prior: |clean - m| / |z_t - a m|."""
    mean, z_t, t = torch.zeros(3, 4, 4).double(), normal(1, 3, 4, 4), 0.9
    g = Gauss.at(t)
    width = [float(denoised(mean, z_t, t, n, "cosine").std() / z_t.std()) for n in (1, 4, 1000)]
    assert width[0] == pytest.approx(float(g.a * STD**2 / (g.a**2 * STD**2 + g.b**2)))
    assert width[0] < width[1] < width[2]
    assert width[2] == pytest.approx(STD / math.sqrt(g.a**2 * STD**2 + g.b**2), rel=0.01)


def test_timesteps_fall_with_the_square_root_of_progress_and_are_not_drawn():
    """t = t_max - (t_max - t_min) sqrt(progress)."""
    for progress in (0.0, 0.04, 0.25, 0.49, 1.0):
        expected = 0.98 - (0.98 - 0.3) * math.sqrt(progress)
        for seed in range(3):
            assert HiFA().timestep(progress, seeded(seed)) == pytest.approx(expected, abs=1e-15)


def test_at_least_one_step():
    with pytest.raises(ValueError, match="steps is 0; a picture is denoised in one step or more"):
        HiFA(steps=0)
