"""Volume rendering and the occupancy grid, against closed forms."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from threed.renderers import volume
from threed.renderers.camera import Cameras, orbit
from threed.renderers.occupancy import Occupancy
from threed.renderers.volume import Render, Sample

PICTURES = ("rgb", "albedo", "alpha", "depth", "normal")


@dataclass(frozen=True)
class Solid:
    """Constant density and colour where `inside`."""

    inside: Callable[[Tensor], Tensor]
    sigma: float

    def density(self, x: Tensor) -> Tensor:
        return self.sigma * self.inside(x).to(x)

    def __call__(self, x: Tensor) -> Sample:
        color = x.new_tensor([0.2, 0.5, 0.9]).expand_as(x)
        return Sample(self.density(x), color, torch.nn.functional.normalize(x, dim=-1))


def ball(radius: float, sigma: float) -> Solid:
    return Solid(lambda x: x.norm(dim=-1) < radius, sigma)


def full(bound: float = 1.0, resolution: int = 8) -> Occupancy:
    occupancy = Occupancy(resolution, bound)
    occupancy.occupied = torch.ones_like(occupancy.occupied)
    return occupancy


def chord(cameras: Cameras, size: int, radius: float) -> Tensor:
    """The length of every pixel's ray within a ball around the origin."""
    origins, directions = cameras.rays(size, size)
    nearest = (origins * directions).sum(-1)
    return 2 * (radius**2 - origins.square().sum(-1) + nearest**2).clamp(min=0).sqrt()[..., None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("generator", [None, seeded()], ids=["centred", "jittered"])
def test_a_full_cube_is_exact_at_any_step(device: torch.device, generator: torch.Generator | None) -> None:
    """Constant density: alpha = 1 - exp(-sigma length), colour times alpha, whatever the step."""
    cameras = orbit(1, elevation=0.0, distance=3.0).to(device)
    got = volume.render(
        Solid(lambda x: torch.ones_like(x[:, 0]), 0.7), cameras, 1, 1, full().to(device), 0.37, generator
    )
    alpha = 1 - math.exp(-0.7 * 2)
    torch.testing.assert_close(got.alpha.flatten().cpu(), torch.tensor([alpha]))
    torch.testing.assert_close(got.rgb.flatten().cpu(), alpha * torch.tensor([0.2, 0.5, 0.9]))


def test_depth_of_a_slab() -> None:
    """Under the exponential law: the integral of t sigma exp(-sigma (t - 2)) over the cube's 2 to 4 metres."""
    sigma, length = 1.3, 2.0
    slab, alpha = Solid(lambda x: torch.ones_like(x[:, 0]), sigma), 1 - math.exp(-sigma * length)
    exact = 2 + 1 / sigma - math.exp(-sigma * length) * (2 + length + 1 / sigma)
    for step in (0.2, 0.1, 0.05):
        got = volume.render(slab, orbit(1, 0.0, 3.0), 1, 1, full(), step)
        # A piece's light comes from before its middle, by sigma step^2 / 12 in the mean.
        assert got.depth.item() - exact == pytest.approx(sigma * step**2 / 12 * alpha, rel=0.02)


def test_a_ball_converges_to_its_chords() -> None:
    cameras, exact = orbit(3), 1 - torch.exp(-4 * chord(orbit(3), 16, 0.6))
    errors = [
        (volume.render(ball(0.6, 4.0), cameras, 16, 16, full(), step).alpha - exact).abs().mean().item()
        for step in (0.1, 0.02, 0.004)
    ]
    assert errors[2] < 3e-4
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_normals_are_in_camera_space() -> None:
    """The middle of a ball faces the camera (+Z), its right edge right (+X), its top up (+Y), from every side."""
    got = volume.render(ball(0.8, 500.0), orbit(4), 33, 33, full(), 0.005)
    normal = got.normal / got.alpha.clamp(min=1e-6)
    torch.testing.assert_close(normal[:, 16, 16], torch.tensor([0.0, 0.0, 1.0]).expand(4, 3), atol=0.02, rtol=0)
    assert (normal[:, 16, 24, 0] > 0.5).all()
    assert (normal[:, 8, 16, 1] > 0.5).all()
    assert (got.alpha[:, 0, 0] == 0).all()


def test_hidden_samples_change_nothing_to_be_seen() -> None:
    """What is dropped lies where less than a thousandth of the light arrives."""
    opaque = volume.render(ball(0.6, 30.0), orbit(2), 16, 16, full(), 0.03)
    exact = 1 - torch.exp(-30 * chord(orbit(2), 16, 0.55))
    assert (opaque.alpha > exact - 1.1e-3).all()
    assert opaque.alpha.max() <= 1


def test_over_a_background() -> None:
    alpha = torch.tensor([0.25, 1.0]).reshape(2, 1, 1, 1)
    color = torch.full((2, 1, 1, 3), 0.1)
    picture = Render(color, color, alpha, alpha, color)
    torch.testing.assert_close(picture.over(torch.tensor([1.0, 0.0, 0.4]))[0, 0, 0], torch.tensor([0.85, 0.1, 0.4]))
    each = picture.over(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    torch.testing.assert_close(each, color)


def test_gradients_reach_the_field() -> None:
    """d alpha / d sigma of a ball is the chord times the light that passes."""
    sigma = torch.tensor(2.0, requires_grad=True)

    class Learned:
        def density(self, x: Tensor) -> Tensor:
            return sigma * (x.norm(dim=-1) < 0.5)

        def __call__(self, x: Tensor) -> Sample:
            return Sample(self.density(x), x * sigma, x)

    got = volume.render(Learned(), orbit(2), 9, 9, full(), 0.002)
    length = chord(orbit(2), 9, 0.5)
    (gradient,) = torch.autograd.grad(got.alpha.sum(), sigma)
    assert gradient.item() == pytest.approx((length * torch.exp(-2 * length)).sum().item(), rel=2e-3)


def test_occupancy_starts_as_the_ball() -> None:
    occupancy = Occupancy(32, 1.5)
    volume_share = occupancy.occupied.float().mean().item()
    assert math.pi / 6 < volume_share < math.pi / 6 * (1 + 2 / 16) ** 3
    assert occupancy.cell == pytest.approx(3 / 32)
    assert not occupancy.occupied[0, 0, 0]
    assert occupancy.occupied[0, 16, 16]


def test_occupancy_keeps_every_dense_cell_and_its_neighbours() -> None:
    occupancy, dense = Occupancy(16, 1.0), torch.zeros(16, 16, 16)
    dense[torch.randint(16, (5,), generator=seeded()), 3, torch.randint(16, (5,), generator=seeded(1))] = 50.0

    def density(x: Tensor) -> Tensor:
        i, j, k = ((x + 1) * 8).long().unbind(-1)  # cells are indexed [x, y, z]
        return dense[i, j, k]

    occupancy.update(density, seeded())
    expected = torch.zeros(16, 16, 16, dtype=torch.bool)
    for cell in dense.nonzero().tolist():
        expected[tuple(slice(max(c - 1, 0), c + 2) for c in cell)] = True
    assert torch.equal(occupancy.occupied, expected)


def test_occupancy_threshold_and_decay() -> None:
    """A cell is opaque from 1 - exp(-sigma cell) = threshold; what vanished fades by the decay."""
    occupancy = Occupancy(4, 1.0, threshold=0.3, decay=0.5)
    edge = -math.log(0.7) / 0.5
    for sigma, expected in ((edge * 1.01, True), (0.0, False)):
        occupancy.update(lambda x, sigma=sigma: torch.full_like(x[:, 0], sigma), seeded())
        assert occupancy.occupied.all().item() is expected
    torch.testing.assert_close(occupancy.density, torch.full((4, 4, 4), edge * 1.01 / 2))


def test_rendering_with_the_grid_equals_rendering_without() -> None:
    occupancy, field = Occupancy(24, 1.0), ball(0.5, 8.0)
    for _ in range(3):
        occupancy.update(field.density, seeded())
    assert occupancy.occupied.float().mean() < 0.25
    with_grid = volume.render(field, orbit(3), 24, 24, occupancy, 1 / 32, seeded())
    without = volume.render(field, orbit(3), 24, 24, full(), 1 / 32, seeded())
    for name in PICTURES:
        torch.testing.assert_close(getattr(with_grid, name), getattr(without, name), atol=1e-6, rtol=1e-6)


def test_same_seed_same_bytes_and_a_checkpoint() -> None:
    field, first, second = ball(0.5, 8.0), Occupancy(16, 1.0), Occupancy(16, 1.0)
    first.update(field.density, seeded())
    second.load_state_dict(first.state_dict())
    pictures = [volume.render(field, orbit(2), 12, 12, grid, 0.05, seeded(3)) for grid in (first, second)]
    for name in PICTURES:
        assert torch.equal(getattr(pictures[0], name), getattr(pictures[1], name))
