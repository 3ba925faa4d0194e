"""DDIM under a Gaussian prior, where every step is linear and the whole way has a closed form."""

import math

import pytest
import torch

from threed.distill.gaussian import Gaussian, ViewOracle
from threed.distill.prior import Conditions
from threed.distill.sample import FIRST, ddim, pictures
from threed.renderers.camera import orbit

MEAN, STD = 0.1, 0.2
NOTHING = Conditions(positive=None, null=None)


def prior(std=STD, size=4):
    return Gaussian(torch.full((3, size, size), MEAN), torch.full((3, size, size), std))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def start(shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def angle(t):
    return (t + 0.008) / 1.008 * math.pi / 2


def by_hand(z, steps):
    """z - alpha mean is multiplied by (alpha alpha' std^2 + sigma sigma') / (alpha^2 std^2 + sigma^2) in every step."""
    deviation = z - math.cos(angle(FIRST)) * MEAN
    for k in range(steps):
        now, then = (angle(FIRST * (1 - j / steps)) for j in (k, k + 1))
        spread = (math.cos(now) * STD) ** 2 + math.sin(now) ** 2
        if k == steps - 1:  # the last step returns what is believed in
            return MEAN + math.cos(now) * STD**2 / spread * deviation
        deviation *= (math.cos(now) * math.cos(then) * STD**2 + math.sin(now) * math.sin(then)) / spread
    return None


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_step_is_the_closed_form(steps):
    shape = (2, 3, 4, 4)
    found = ddim(prior(), NOTHING, shape, steps, 1.0, 0.0, seeded())
    torch.testing.assert_close(found, by_hand(start(shape), steps), rtol=1e-4, atol=1e-5)


def test_many_steps_follow_the_flow_to_first_order():
    """The flow keeps (z - alpha mean) / sqrt(alpha^2 std^2 + sigma^2); ten times the steps, a tenth of the error."""
    shape = (1, 3, 16, 16)

    def error(steps):
        first, last = angle(FIRST), angle(FIRST / steps)
        spread = [math.hypot(math.cos(a) * STD, math.sin(a)) for a in (first, last)]
        kept = (start(shape) - math.cos(first) * MEAN) / spread[0]
        exact = MEAN + math.cos(last) * STD**2 / spread[1] * kept
        return (ddim(prior(size=16), NOTHING, shape, steps, 1.0, 0.0, seeded()) - exact).abs().max().item()

    assert error(1000) < 3e-3
    assert 8 < error(100) / error(1000) < 12


def test_guidance_of_equal_conditions_changes_nothing():
    shape = (2, 3, 4, 4)
    plain, guided = (ddim(prior(), NOTHING, shape, 5, scale, 0.7, seeded()) for scale in (1.0, 4.0))
    torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-5)


def test_clean_latents_stay_within_their_limits():
    wild = Gaussian(torch.full((3, 4, 4), 1.5), torch.full((3, 4, 4), 0.5))
    assert ddim(wild, NOTHING, (1, 3, 4, 4), 4, 1.0, 0.0, seeded()).max() == 1
    assert ddim(wild, NOTHING, (1, 3, 4, 4), 4, 1.0, 0.0, seeded(), limit=9.0).max() > 1.2


def test_same_seed_same_bytes():
    first, again, other = (ddim(prior(), NOTHING, (1, 3, 4, 4), 3, 2.0, 0.5, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pictures_are_rows_of_kinds_from_the_cameras_asked_for():
    """An oracle that paints kind and camera into every picture, less bright to the right."""
    values = {"albedo": 0.2, "shaded": 0.5, "normal": 0.8}

    def painted(cameras, kinds, background, size):
        grey = torch.stack([values[kind] + 0.02 * cameras.azimuth for kind in kinds]).flatten()
        ramp = torch.linspace(1, 0.5, size)[:, None]
        return (grey[:, None, None, None] * ramp * background).expand(-1, size, -1, -1)

    cameras = orbit(3)
    background = torch.tensor([1.0, 0.5, 0.0])
    oracle = ViewOracle(painted, std=0.0, image_size=8)
    found = pictures(oracle, "a car", cameras, seeded(), steps=2, background=background)
    expected = painted(cameras, ("albedo", "shaded", "normal"), background, 8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    expected = painted(cameras, ("albedo", "shaded", "normal"), torch.ones(3), 8)
    torch.testing.assert_close(pictures(oracle, "a car", cameras, seeded(), steps=2), expected, rtol=0, atol=1e-3)


def test_drawing_over_begins_with_what_is_there():
    """One step from time t: the mean, and what z_t = alpha x + sigma noise says beside it; at t = 0 it is x itself."""
    there, noise = torch.full((2, 3, 4, 4), 0.6), start((2, 3, 4, 4))
    for t in (0.3, 0.8):
        alpha, sigma = math.cos(angle(t)), math.sin(angle(t))
        found = ddim(prior(), NOTHING, (2, 3, 4, 4), 1, 1.0, 0.0, seeded(), over=there, first=t)
        share = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        expected = MEAN + share * (alpha * there + sigma * noise - alpha * MEAN)
        torch.testing.assert_close(found, expected.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    nearly = ddim(prior(), NOTHING, (2, 3, 4, 4), 1, 1.0, 0.0, seeded(), over=there, first=0.0)
    torch.testing.assert_close(nearly, there, rtol=0, atol=0.06)
