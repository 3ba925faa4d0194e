"""Regularizers of pictures, rays and fields against closed forms, and at the ends of their range."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from threed.regularizers import displaced, eikonal, opacity, orientation, smoothness, sparsity, z_variance
from threed.renderers import torch_ops
from threed.renderers.ops import Packed

TERMS = pytest.mark.parametrize("term", [sparsity, opacity])


def pictures(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def rays(*depths: list[float], length: float = 0.1) -> Packed:
    """A ray for each list, with a sample at each of these depths."""
    counts = torch.tensor([len(each) for each in depths], dtype=torch.int64)
    middle = double(*(z for each in depths for z in each))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return Packed(starts, torch.arange(len(depths)).repeat_interleave(counts), middle - length / 2, middle + length / 2)


def test_sparsity_grows_from_a_tenth():
    assert sparsity(pictures(0.0)).item() == pytest.approx(0.1)
    assert sparsity(pictures(1.0)).item() == pytest.approx(math.sqrt(1.01))
    assert sparsity(pictures(0.0, 1.0)).item() == pytest.approx((0.1 + math.sqrt(1.01)) / 2)


def test_opacity_is_the_entropy_of_a_coin():
    assert opacity(pictures(0.5)).item() == pytest.approx(math.log(2))
    assert opacity(pictures(0.2)).item() == pytest.approx(-0.2 * math.log(0.2) - 0.8 * math.log(0.8))
    assert opacity(pictures(0.2)).item() == pytest.approx(opacity(pictures(0.8)).item())


def test_opacity_leads_to_the_nearer_end():
    """d/da of the entropy is log((1 - a) / a): descending it empties pixels below one half and fills those above."""
    alpha = pictures(0.1, 0.4, 0.6, 0.9).requires_grad_()
    (slope,) = torch.autograd.grad(opacity(alpha), alpha)
    torch.testing.assert_close(slope, ((1 - alpha) / alpha).log().detach() / 4)


@TERMS
def test_slopes(term):
    alpha = torch.rand(2, 3, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.98 + 0.01
    assert torch.autograd.gradcheck(term, alpha.requires_grad_())


@TERMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_finite_at_the_ends(term, dtype):
    tiny = torch.finfo(dtype).tiny
    alpha = pictures(0.0, tiny, 1e-4, 1 - 1e-4, 1.0).to(dtype).requires_grad_()
    value = term(alpha)
    (slope,) = torch.autograd.grad(value, alpha)
    assert value.isfinite()
    assert value >= 0
    assert slope.isfinite().all()


@TERMS
def test_is_a_mean_over_all_pixels(term):
    alpha = torch.rand(3, 4, 5, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(term(alpha), torch.stack([term(one[None]) for one in alpha]).mean())


def test_orientation_of_one_sample():
    """w cos^2 of the angle between a normal and the ray, where that is sharp, and 0 where the normal faces the ray."""
    packed, along = rays([1.0]), double([0.0, 0.0, -1.0])
    for degrees in (0, 30, 60, 89, 91, 120, 180):
        angle = math.radians(degrees)
        normal = double([math.sin(angle), 0.0, -math.cos(angle)])
        expected = 0.7 * max(0.0, math.cos(angle)) ** 2
        assert orientation(double(0.7), normal, along, packed).item() == pytest.approx(expected)


def test_orientation_is_a_sum_along_and_a_mean_over_rays():
    packed = rays([1.0, 1.5, 2.0], [], [3.0])
    directions = functional.normalize(random(3, 3), dim=-1)
    normal, weights = functional.normalize(random(4, 3, seed=1), dim=-1), double(0.1, 0.2, 0.3, 0.9)
    by_hand = [
        w * max(0.0, float(n @ directions[r])) ** 2 for w, n, r in zip(weights, normal, [0, 0, 0, 2], strict=True)
    ]
    assert sum(by_hand) > 0.01
    assert orientation(weights, normal, directions, packed).item() == pytest.approx(float(sum(by_hand)) / 3)


def test_orientation_turns_a_normal_toward_the_camera():
    normal, along = double([0.6, 0.0, 0.8], [0.6, 0.0, -0.8]).requires_grad_(), double([0.0, 0.0, 1.0])
    (slope,) = torch.autograd.grad(orientation(double(0.5, 0.5), normal, along, rays([1.0, 2.0])), normal)
    torch.testing.assert_close(slope, double([0, 0, 2 * 0.5 * 0.8], [0, 0, 0]))


def test_z_variance_of_two_spikes():
    """p (1 - p) gap^2, whatever alpha is and wherever they stand."""
    for alpha, p, near, gap in [(1.0, 0.5, 1.0, 2.0), (0.6, 0.25, 50.0, 0.5), (0.51, 0.9, 0.1, 0.01)]:
        weights = double(alpha * p, alpha * (1 - p))
        assert z_variance(weights, rays([near, near + gap])).item() == pytest.approx(p * (1 - p) * gap**2)


def test_z_variance_of_a_uniform_piece():
    """n middles over a length L: L^2 (1 - 1/n^2) / 12."""
    count, length = 7, 1.4
    middles = [3 + length * (k + 0.5) / count for k in range(count)]
    cost = z_variance(torch.full((count,), 0.9 / count).double(), rays(middles))
    assert cost.item() == pytest.approx(length**2 * (1 - count**-2) / 12)


def test_z_variance_of_a_haze():
    """Light ends in a uniform density as waiting does: a geometric distribution, of variance near 1 / density^2."""
    density, step = 4.0, 0.05
    packed = rays([step * (k + 0.5) for k in range(400)], length=step)
    weights = torch_ops.composite(torch.full((400,), density).double(), torch.zeros(400, 1).double(), packed)[3]
    q = math.exp(-density * step)
    assert z_variance(weights, packed).item() == pytest.approx(step**2 * q / (1 - q) ** 2)
    assert z_variance(weights, packed).item() == pytest.approx(density**-2, rel=0.01)


def test_z_variance_is_the_mean_over_the_rays_that_meet_a_surface():
    packed = rays([1.0, 3.0], [], [1.0, 9.0], [2.0, 2.5, 3.0], [5.0])
    weights = double(0.4, 0.4, 0.2, 0.2, 0.2, 0.4, 0.2, 1.0)  # the third ray is a haze of alpha 0.4
    assert z_variance(weights, packed).item() == pytest.approx((1.0 + 0.125 + 0.0) / 3)
    assert z_variance(weights / 10, packed).item() == 0


def test_z_variance_is_a_square_of_metres_and_does_not_see_where():
    depths = (random(20).abs() + 1).cumsum(0)
    weights = random(20, seed=1).abs() / 10
    cost = z_variance(weights, rays(depths.tolist()))
    torch.testing.assert_close(z_variance(weights, rays((3 * depths).tolist())), 9 * cost)
    torch.testing.assert_close(z_variance(weights, rays((depths + 1000).tolist())), cost)


def test_z_variance_of_a_thin_surface_far_away_in_single_precision():
    """A difference of squares would have an error of 0.1 here."""
    near = torch.tensor([1000.0, 1000.125])
    packed = Packed(torch.tensor([0, 2]), torch.zeros(2, dtype=torch.int64), near, near)
    assert z_variance(torch.tensor([0.3, 0.6]), packed).item() == pytest.approx(2 / 9 * 0.125**2, rel=1e-2)


def test_z_variance_does_not_shrink_the_object():
    """Fading a whole ray changes nothing; of two equal spikes, any weight moved to one helps."""
    weights = double(0.3, 0.3).requires_grad_()
    (slope,) = torch.autograd.grad(z_variance(weights, rays([1.0, 2.0])), weights)
    assert (slope * weights).sum().item() == pytest.approx(0, abs=1e-15)
    weights = double(0.2, 0.6).requires_grad_()
    (slope,) = torch.autograd.grad(z_variance(weights, rays([1.0, 2.0])), weights)
    assert slope[0] > 0 > slope[1]


def test_eikonal_of_a_distance_and_of_its_multiples():
    """(k - 1)^2 for k times a signed distance, here a sphere's, by autograd."""
    x = random(50, 3).requires_grad_()
    (slope,) = torch.autograd.grad((x.norm(dim=-1) - 0.5).sum(), x)
    assert eikonal(slope).item() == pytest.approx(0, abs=1e-30)
    for scale in (-1.0, 0.0, 0.5, 3.0):
        assert eikonal(scale * slope).item() == pytest.approx((abs(scale) - 1) ** 2)
    assert eikonal(torch.cat([slope, 3 * slope])).item() == pytest.approx(2.0)


def test_smoothness_of_a_linear_field():
    """E |a . e| over Gaussian steps is |a| spread sqrt(2 / pi), channel by channel."""
    x, slopes, spread = random(100_000, 3), random(3, 4, seed=1), 0.01
    here, nearby = (points @ slopes + 7 for points in (x, displaced(x, spread, seeded())))
    expected = spread * math.sqrt(2 / math.pi) * slopes.norm(dim=0).sum().item()
    assert smoothness(here, nearby).item() == pytest.approx(expected, rel=0.01)


def test_smoothness_of_a_step():
    """Points that change sides cost the height, once for each channel; others nothing."""
    here = torch.zeros(8, 3).double()
    nearby = here.index_add(0, torch.tensor([2, 5]), double([0.5, -0.5, 0.0], [1.0, 0.0, 0.0]))
    assert smoothness(here, here).item() == 0
    assert smoothness(here, nearby).item() == pytest.approx(2 / 8)
    assert smoothness(nearby, here).item() == pytest.approx(2 / 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_displaced_is_seeded_and_keeps_its_kind(dtype):
    x = torch.ones(5, 3, dtype=dtype)
    torch.testing.assert_close(displaced(x, 0.1, seeded(3)), displaced(x, 0.1, seeded(3)), rtol=0, atol=0)
    torch.testing.assert_close(displaced(x, 0.2, seeded(3)) - x, 2 * (displaced(x, 0.1, seeded(3)) - x))
    assert displaced(x, 0.1, seeded(3)).dtype == dtype


def test_slopes_of_rays_and_fields():
    packed, directions = rays([1.0, 1.2, 1.7], [], [2.0, 4.0], [1.0]), functional.normalize(random(4, 3), dim=-1)
    weights, normal = double(0.3, 0.2, 0.4, 0.3, 0.3, 0.2).requires_grad_(), random(6, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, n: orientation(w, n, directions, packed), (weights, normal))
    assert torch.autograd.gradcheck(lambda w: z_variance(w, packed), weights)
    assert torch.autograd.gradcheck(eikonal, normal)
    assert torch.autograd.gradgradcheck(eikonal, normal)  # a slope is itself a gradient
    assert torch.autograd.gradcheck(smoothness, (normal, random(6, 3, seed=2).requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rays_and_fields_are_finite_at_the_ends(dtype):
    """No light at all, weights of nothing, and slopes of 0."""
    packed = rays([1.0, 2.0], [3.0])
    packed = Packed(packed.starts, packed.ray, packed.near.to(dtype), packed.far.to(dtype))
    directions, normal = torch.eye(3, dtype=dtype)[:2], torch.zeros(3, 3, dtype=dtype, requires_grad=True)
    weights = torch.tensor([0.0, torch.finfo(dtype).tiny, 1.0], dtype=dtype, requires_grad=True)
    for cost in (z_variance(weights, packed), orientation(weights, normal, directions, packed), eikonal(normal)):
        slopes = torch.autograd.grad(cost, (weights, normal), allow_unused=True)
        assert cost.isfinite()
        assert cost.dtype == dtype
        assert all(slope.isfinite().all() for slope in slopes if slope is not None)


def test_nothing_costs_nothing():
    """Rays that miss everything, no rays, no points."""
    none, points = torch.zeros(0), torch.zeros(0, 3)
    for packed in (rays([], []), rays()):
        directions = torch.ones(len(packed.starts) - 1, 3)
        empty = Packed(packed.starts, packed.ray, none, none)
        assert z_variance(none, empty).item() == 0
        assert orientation(none, points, directions, empty).item() == 0
    assert eikonal(points).item() == 0
    assert smoothness(points, points).item() == 0
