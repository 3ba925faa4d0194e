"""The NeRF: its normals are its density's own slope, every parameter learns, and it starts as a ball."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from threed.nerf import NeRF, NeRFConfig
from threed.pictures import silhouette_iou
from threed.renderers.camera import orbit
from threed.renderers.ops import HashGrid
from threed.renderers.volume import Field
from threed.train import Scene

SMALL = replace(NeRFConfig(), grid=HashGrid(levels=3, coarsest=4, finest=12), resolution=24, samples=24, occupancy=24)
TINY = replace(SMALL, grid=HashGrid(levels=2, coarsest=2, finest=4))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def learned(config, bound=1.0, spread=1.0):
    """A NeRF in float64 that looks like nothing in particular."""
    nerf = NeRF(replace(config, bound=bound), seeded()).double()
    with torch.no_grad():
        for parameter in nerf.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=seeded(1)))
    return nerf


def points(count, bound=1.0):
    return (torch.rand(count, 3, generator=seeded(2), dtype=torch.float64) * 2 - 1) * 0.95 * bound


def test_is_a_field_and_a_scene():
    nerf = NeRF(TINY, seeded())
    assert isinstance(nerf, Field)
    assert isinstance(nerf, Scene)


@pytest.mark.parametrize("bound", [1.0, 1.7])
def test_normals_are_minus_the_normalised_slope_of_the_density(bound):
    nerf, x, h = learned(SMALL, bound), points(200, bound), 1e-6
    taps = torch.cat([torch.eye(3), -torch.eye(3)]).double() * h
    with torch.no_grad():
        density = nerf.density((x[None] + taps[:, None]).reshape(-1, 3)).reshape(2, 3, -1)
        slope = ((density[0] - density[1]) / (2 * h)).T
        torch.testing.assert_close(nerf(x).normal, -functional.normalize(slope, dim=-1), atol=1e-6, rtol=0)


def test_density_is_what_forward_says():
    nerf, x = learned(SMALL), points(200)
    assert torch.equal(nerf.density(x), nerf(x).density)


def test_normals_are_finite_at_the_very_centre():
    """Where the ball has no direction; gradients, too."""
    nerf = NeRF(SMALL, seeded())
    sample = nerf(torch.zeros(1, 3))
    parts = sample.density, sample.albedo, sample.normal
    gradients = torch.autograd.grad(sum(part.sum() for part in parts), list(nerf.parameters()))
    assert all(part.isfinite().all() for part in (*parts, *gradients))


def test_gradients_of_everything_by_finite_differences():
    nerf, x = learned(TINY, spread=0.3), points(6)
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in nerf.named_parameters()), strict=True)

    def sample(*parameters):
        found = functional_call(nerf, dict(zip(names, parameters, strict=True)), x)
        return found.density, found.albedo, found.normal

    assert torch.autograd.gradcheck(sample, values, fast_mode=True)


def test_normals_alone_teach_the_shape():
    """A loss on normals reaches every parameter that the density hangs on, and by the right amount."""
    nerf, x = learned(TINY, spread=0.3), points(6)
    parameters = list(nerf.parameters())
    by_density = torch.autograd.grad(nerf.density(x).sum(), parameters, allow_unused=True)
    shape = [p for p, slope in zip(parameters, by_density, strict=True) if slope is not None]
    assert shape
    names = [name for name, p in nerf.named_parameters() if any(p is q for q in shape)]

    def normals(*values):
        return functional_call(nerf, dict(zip(names, values, strict=True)), x).normal

    values = tuple(p.detach().requires_grad_() for p in shape)
    assert torch.autograd.gradcheck(normals, values)
    for slope in torch.autograd.grad(normals(*values)[:, 0].sum(), values):
        assert slope.abs().max() > 1e-3


def test_every_parameter_learns_from_pictures():
    """And every parameter is in exactly one of the groups that are optimised."""
    nerf = NeRF(SMALL, seeded())
    render = nerf.render(orbit(2))
    groups = [p for group in nerf.param_groups() for p in group["params"]]
    assert sorted(map(id, groups)) == sorted(map(id, nerf.parameters()))
    for gradient in torch.autograd.grad(render.albedo.sum() + render.normal[..., 0].sum(), groups):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_same_generator_same_bytes():
    def pictures(seed):
        nerf = NeRF(SMALL, seeded(seed))
        render = nerf.render(orbit(3), generator=seeded(seed))
        render.normal.square().sum().backward()
        learned = [p.grad for p in nerf.parameters() if p.grad is not None]
        shown = [render.rgb, render.albedo, render.alpha, render.depth, render.normal]
        return shown + learned

    first, second, other = pictures(3), pictures(3), pictures(4)
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], other[0])


def test_state_dict_is_all_there_is():
    """Another NeRF with this one's state draws the same picture: the occupancy belongs to it."""
    first, second = learned(SMALL).float(), NeRF(SMALL, seeded(9))
    for step in range(16):
        first.after_step(step, seeded(step))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.render(orbit(2)).normal, second.render(orbit(2)).normal)


def test_starts_as_a_grey_ball_of_the_promised_radius():
    """A logit of zero on the sphere; its silhouette ends where the light along a grazing ray is halved."""
    config, cameras = replace(SMALL, samples=96, resolution=64), orbit(4)
    nerf, outward = NeRF(config, seeded()), functional.normalize(torch.randn(100, 3, generator=seeded()), dim=-1)
    sample = nerf(outward * config.start_radius)
    density = config.peak * functional.softplus(torch.zeros(100))
    torch.testing.assert_close(sample.density, density, rtol=1e-3, atol=0)
    torch.testing.assert_close(sample.normal, outward, rtol=0, atol=1e-2)
    torch.testing.assert_close(sample.albedo, torch.full((100, 3), 0.5), rtol=0, atol=1e-3)

    miss, along = torch.linspace(0, 1, 1001), torch.linspace(-1, 1, 1001)
    radius = (miss[:, None] ** 2 + along**2).sqrt()
    depth = config.peak * functional.softplus(config.start_slope * (config.start_radius - radius)).mean(1) * 2
    edge = miss[depth > torch.tensor(2.0).log()].max()
    origins, directions = cameras.rays(64, 64)
    missed_by = (origins.square().sum(-1) - (origins * directions).sum(-1) ** 2).sqrt()[..., None]
    with torch.no_grad():
        alpha = nerf.render(cameras).alpha
    assert silhouette_iou(alpha, (missed_by < edge).float()) > 0.95


def test_occupancy_follows_the_object():
    """Taught a ball elsewhere, the NeRF shows it whole again once its grid has followed; before, it was cut away."""
    nerf, centre, generator = NeRF(SMALL, seeded()), torch.tensor([0.65, 0.4, 0.0]), seeded(1)
    optimizer = torch.optim.Adam(nerf.parameters(), lr=0.1)
    for _ in range(150):
        x = torch.rand(2000, 3, generator=generator) * 2 - 1
        wanted = 40.0 * ((x - centre).norm(dim=-1) < 0.3)
        loss = functional.mse_loss(1 - (-0.1 * nerf.density(x)).exp(), 1 - (-0.1 * wanted).exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    everywhere = NeRF(SMALL, seeded())
    everywhere.load_state_dict(nerf.state_dict())
    everywhere.occupancy.occupied.fill_(True)
    with torch.no_grad():
        whole = everywhere.render(orbit(4)).alpha
        cut = nerf.render(orbit(4)).alpha
        for step in range(9):
            nerf.after_step(step, seeded(step))
        followed = nerf.render(orbit(4)).alpha
    assert (whole - cut).abs().max() > 0.5
    assert (whole - followed).abs().max() < 2e-3
