"""What holds for every distillation loss, whatever it is."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from known_prior import Known, gradient, means, normal, seeded, shown, told

from threed.distill.anneal import Anneal
from threed.distill.csd import CSD
from threed.distill.hifa import HiFA
from threed.distill.ism import ISM
from threed.distill.nfsd import NFSD
from threed.distill.prior import Conditions, Prior
from threed.distill.score import Loss, noised
from threed.distill.sdi import SDI
from threed.distill.sds import SDS
from threed.distill.sjc import SJC

LOSSES = {
    "sds": SDS(scale=7.5),
    "mvdream": SDS(scale=50.0, rescale=0.5, weight="clean"),
    "csd": CSD(),
    "nfsd": NFSD(),
    "nfsd, quiet": NFSD(t_min=Anneal(0.05), t_max=Anneal(0.19)),
    "sjc": SJC(scale=7.5, draws=2),
    "sjc, unreduced": SJC(scale=7.5, reduced=False),
    "hifa": HiFA(scale=7.5),
    "sdi": SDI(),
    "ism": ISM(),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def conditions():
    """With a negative, and led aside from a fourth condition."""
    positive, null, negative, other = means(4)
    return replace(told(positive, null, negative), aside=(((other, 0.7), torch.tensor([0.0, 0.5, 2.0]).double()),))


@every_loss
def test_it_keeps_the_contract(loss):
    assert isinstance(loss, Loss)
    assert isinstance(Known(), Prior)
    assert loss.init(Known(), seed=0) is None
    assert hash(loss) == hash(replace(loss))
    losses = loss(Known(), None, shown(normal(3, 3, 4, 4), conditions()), 0.5, torch.Generator())
    assert next(iter(losses)) == loss.name
    assert all(value.shape == () for value in losses.values())


def test_an_inversion_takes_as_much_as_is_given_back():
    """Whatever the guidance scale, unless it is told otherwise."""
    x, told_all = normal(3, 3, 4, 4), conditions()
    for scale in (2.0, 7.5):
        plain, same, other = (
            gradient(SDI(scale=scale, **more), Known(), x, told_all, 0.3)
            for more in ({}, {"inversion_scale": -scale}, {"inversion_scale": -scale - 1})
        )
        assert torch.equal(plain, same)
        assert not torch.equal(plain, other)


@every_loss
@pytest.mark.parametrize("schedule", ["cosine", "straight"])
def test_the_same_gradient_whatever_the_network_predicts(loss, schedule):
    """Noise, clean pictures, velocity, flow; on the cosine schedule and on that of flow matching."""
    x, told_all = normal(3, 3, 4, 4), conditions()
    clean, *others = (
        gradient(loss, Known(kind, schedule), x, told_all, progress=0.3)
        for kind in ("clean", "noise", "velocity", "flow")
    )
    assert clean.isfinite().all()
    assert clean.norm() > 0
    for other in others:
        torch.testing.assert_close(other, clean, rtol=1e-7, atol=1e-9)


@every_loss
def test_same_generator_same_bytes_and_others_differ(loss):
    x, told_all = normal(3, 3, 4, 4), conditions()
    first, again, other = (
        gradient(loss, Known(), x, told_all, 0.3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_loss
def test_every_weight_is_a_factor(loss):
    """The four weights of a loss at one timestep differ by one number."""
    at = replace(loss, t_min=Anneal(0.15), t_max=Anneal(0.15))
    x, told_all = normal(3, 3, 4, 4), conditions()
    clean, *others = (
        gradient(replace(at, weight=weight), Known(), x, told_all)
        for weight in ("clean", "sigma2", "uniform", "fantasia3d")
    )
    a, b = (each.item() for each in Known().alpha_sigma(torch.tensor([0.15], dtype=torch.float64)))
    for other, factor in zip(others, (a * b, a / b, a**2 * b), strict=True):
        torch.testing.assert_close(other, factor * clean, rtol=1e-9, atol=1e-12)


@every_loss
def test_pictures_of_a_prior_that_sees_them_one_by_one_do_not_touch_each_other(loss):
    """Another second picture changes the second gradient alone; the mean over pictures is what a loss is."""
    x, told_all = normal(3, 3, 4, 4), conditions()
    changed = x.clone()
    changed[1] += 1
    one, other = (gradient(loss, Known(), each, told_all, 0.3) for each in (x, changed))
    kept = torch.tensor([0, 2])
    assert torch.equal(one[kept], other[kept])


@every_loss
def test_being_led_aside_moves_it_only_where_there_is_a_weight(loss):
    """No loss knows of Perp-Neg; the first picture's weight is 0."""
    x, told_all = normal(3, 3, 4, 4), conditions()
    led, plain = (gradient(loss, Known(), x, c, 0.3) for c in (told_all, replace(told_all, aside=())))
    torch.testing.assert_close(led[0], plain[0], rtol=0, atol=1e-10)
    assert all((led - plain)[1:].flatten(1).norm(dim=1) > 1e-3)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_finite_at_the_ends_of_time(loss, dtype):
    for t, progress in product((0.11, 0.999), (0.0, 1.0)):
        at = replace(loss, t_min=Anneal(t), t_max=Anneal(t))
        told_all = Conditions(*((m.to(dtype), 0.01) for m in means(3)))
        found = gradient(at, Known(), 100 * normal(3, 3, 4, 4).to(dtype), told_all, progress)
        assert found.dtype == dtype
        assert found.isfinite().all()


def test_mvdreams_reconstruction_loss_has_the_gradient_of_sds():
    """0.5 |x - sg(clean_hat)|^2, with the contrast rescaled by a half (arXiv 2308.16512): all by hand, by autograd."""
    prior, generator = Known("velocity"), seeded()
    loss = replace(LOSSES["mvdream"], t_min=Anneal(0.6), t_max=Anneal(0.6))
    x, heard = normal(3, 3, 4, 4).requires_grad_(), told(*means(2))
    with torch.no_grad():
        seen = noised(prior, x, loss.timestep(0.0, generator), generator)
        with_prompt, without = (prior.denoise(seen.z_t, seen.t, c).clean for c in (heard.positive, heard.null))
        pushed = without + 50 * (with_prompt - without)
        for p in range(3):
            pushed[p] *= 0.5 + 0.5 * with_prompt[p].std() / pushed[p].std()
    reconstruction = 0.5 * (x - pushed).square().sum()
    (exact,) = torch.autograd.grad(reconstruction, x)
    torch.testing.assert_close(gradient(loss, prior, x.detach(), heard), exact, rtol=0, atol=1e-11)
