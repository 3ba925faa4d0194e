"""Regularizers against closed forms, and at the ends of their range."""

import math

import pytest
import torch

from threed.regularizers import opacity, sparsity

TERMS = pytest.mark.parametrize("term", [sparsity, opacity])


def pictures(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


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
