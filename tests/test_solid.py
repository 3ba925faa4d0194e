"""A solid that is painted and drawn as triangles: its gradients, its colours, and what it becomes under known views."""

import math
from dataclasses import replace

import pytest
import torch
import trimesh

from threed.distill.prior import Pictures
from threed.paint import PaintConfig
from threed.pictures import agreement
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Mesh
from threed.renderers.ops import HashGrid
from threed.solid import Solid, SolidConfig
from threed.start import VoxelField
from threed.tets import TetConfig, TetScene
from threed.train import Scene
from threed.views import Views

CONFIG = SolidConfig(
    tets=TetConfig(resolution=20),
    paint=PaintConfig(HashGrid(levels=3, coarsest=6, finest=24), rate=0.03),
    resolution=32,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ellipsoid(radii: tuple[float, float, float] = (0.5, 0.7, 0.4), config: SolidConfig = CONFIG) -> Solid:
    return Solid(config, TetScene.from_ellipsoid(radii, config.tets))


def bands(points: torch.Tensor) -> torch.Tensor:
    """Red and blue halves that blend."""
    share = torch.sigmoid(8 * points[:, 1:2])
    return share * torch.tensor([0.8, 0.2, 0.1]) + (1 - share) * torch.tensor([0.1, 0.3, 0.7])


def ball(dtype: torch.dtype) -> Mesh:
    solid = trimesh.creation.icosphere(3, 0.6)
    return Mesh(torch.tensor(solid.vertices, dtype=dtype), torch.tensor(solid.faces))


@pytest.mark.parametrize("motion", ["along x", "toward the camera", "taller", "sheared"])
@pytest.mark.parametrize("picture", ["rgb", "albedo", "alpha", "depth", "normal"])
def test_what_is_seen_moves_as_finite_differences_say(picture: str, motion: str) -> None:
    """The slope of a weighted sum of pixels as a ball is moved or bent, against pictures of 36 samples a pixel without
    antialiasing: within 5 % of the sum of the slopes of all pixels, which nearly cancel each other.
    """
    mesh = ball(torch.float64)
    still = mesh.vertices
    way = {
        "along x": torch.tensor([1.0, 0, 0], dtype=torch.float64).expand_as(still),
        "toward the camera": torch.tensor([0, 0.2, 1.0], dtype=torch.float64).expand_as(still),
        "taller": still * torch.tensor([0, 1.0, 0], dtype=torch.float64),
        "sheared": still[:, [1]] * torch.tensor([1.0, 0, 0], dtype=torch.float64),
    }[motion]
    cameras = Cameras(*torch.tensor([[0.3], [0.2], [3.0], [math.radians(40)]], dtype=torch.float64))
    x = torch.linspace(-1, 1, 48, dtype=torch.float64)  # smooth weights: those of white noise would see noise
    weights = (2 * x[:, None] + x[None] + 1).sin()[..., None] / 48**2

    def seen(amount: torch.Tensor, supersample: int) -> torch.Tensor:
        moved = mesh.with_vertices(still + amount * way)
        render = surface.render(
            moved, cameras, 48, 48, supersample, smooth=True, albedo=lambda points: bands(points.float()).double()
        )
        return getattr(render, picture)[0] * weights

    amount = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(seen(amount, 2).sum(), amount)
    with torch.no_grad():
        step = torch.tensor(0.02, dtype=torch.float64)
        expected = (seen(step, 6) - seen(-step, 6)) / (2 * step)
    assert slope.item() == pytest.approx(expected.sum().item(), abs=0.05 * expected.abs().sum().item())


def test_an_unmoved_surface_looks_the_same_but_for_its_outline() -> None:
    """That its vertices want a gradient changes no pixel but those along silhouettes."""
    mesh, cameras = ball(torch.float32), orbit(2)
    plain = surface.render(mesh, cameras, 48, 48, smooth=True, albedo=bands)
    moving = surface.render(
        mesh.with_vertices(mesh.vertices.clone().requires_grad_()), cameras, 48, 48, smooth=True, albedo=bands
    )
    inside = (plain.alpha == 1) & (moving.alpha == 1)
    assert inside.sum() > 800
    for name in ("rgb", "albedo", "depth", "normal"):
        one, other = getattr(plain, name), getattr(moving, name).detach()
        torch.testing.assert_close(one * inside, other * inside, atol=1e-5, rtol=0)
    assert (plain.alpha - moving.alpha.detach()).abs().mean() < 0.01


def test_it_is_a_scene_and_says_what_it_shows() -> None:
    solid = ellipsoid()
    assert isinstance(solid, Scene)
    render = solid.render(orbit(2))
    assert render.rgb.shape == (2, 32, 32, 3)
    assert render.mesh
    assert render.mesh.is_watertight
    assert render.rays is None
    assert solid.render(orbit(1), 12).alpha.shape == (1, 12, 12, 1)


def test_it_takes_the_colours_of_a_volume() -> None:
    """Of a field of known albedo: at its surface, the hash grid shows the same."""

    class Ball:
        bound, thresholds = 1.0, (8.0,)

        def density(self, x):
            return 8 * torch.exp((0.6 - x.norm(dim=-1)) * 20)

        def __call__(self, x):
            from threed.renderers.volume import Sample

            return Sample(self.density(x), bands(x), torch.nn.functional.normalize(x, dim=-1))

        def render(self, cameras):
            raise NotImplementedError

    solid = Solid.from_volume(Ball(), 8.0, CONFIG, seeded())
    points = solid.surface().vertices.detach()
    torch.testing.assert_close(points.norm(dim=-1), torch.full((len(points),), 0.6), atol=0.01, rtol=0)
    assert (solid.paint(points) - bands(points)).abs().max() < 0.1
    assert (solid.paint(points) - bands(points)).abs().mean() < 0.02


def test_known_views_make_it_what_they_show() -> None:
    """An ellipsoid becomes a ball of two colours, by its pictures alone."""
    truth, solid = ball(torch.float32), ellipsoid()
    optimizer = torch.optim.Adam(solid.param_groups(), betas=(0.9, 0.99))

    def pictures(cameras: Cameras, size: int = 32) -> surface.Render:
        return surface.render(truth, cameras, size, size, smooth=True, albedo=bands)

    def score() -> tuple[float, float]:
        with torch.no_grad():
            return agreement(solid.render(orbit(5), 64), pictures(orbit(5), 64))

    before = score()
    for step in range(40):
        generator = seeded(step)
        cameras = Views().sample(generator)
        shown = Pictures(cameras, ("albedo", "normal"), torch.rand(3, generator=generator))
        loss = (shown.of(solid.render(cameras)) - shown.of(pictures(cameras))).square().sum() / len(shown)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = score()
    assert before[1] < 0.8
    assert after[0] > 24
    assert after[1] > 0.95
    assert solid.surface().is_watertight
    assert solid.surface().volume > 0


def test_it_goes_on_at_other_rates_and_only_at_those() -> None:
    solid = ellipsoid()
    with torch.no_grad():
        solid.paint.colour.uniform_(-1, 1, generator=seeded(1))
    still = replace(
        CONFIG,
        tets=replace(CONFIG.tets, distance_rate=0.0, deformation_rate=0.0),
        paint=replace(CONFIG.paint, rate=0.1),
    )
    other = solid.continued(still)
    assert [group["lr"] for group in other.param_groups()] == [0.0, 0.0, 0.1]
    assert torch.equal(other.render(orbit(1)).rgb, solid.render(orbit(1)).rgb)
    with pytest.raises(ValueError, match="change the rates alone"):
        solid.continued(replace(CONFIG, tets=replace(CONFIG.tets, resolution=24)))
    with pytest.raises(ValueError, match="the grid and the finish that it has"):
        solid.continued(replace(CONFIG, paint=PaintConfig(HashGrid(levels=2))))


def test_nothing_inside_is_an_empty_picture() -> None:
    solid = ellipsoid()
    with torch.no_grad():
        solid.tets.sdf.fill_(1.0)
    render = solid.render(orbit(2))
    assert render.alpha.sum() == 0
    render.alpha.sum().backward()


def test_the_volume_that_a_text_begins_as_becomes_solid() -> None:
    """Voxels of a box, as a start has them: the same silhouettes, and their colours."""
    from threed.renderers.voxels import Voxels

    axis = (torch.arange(16) + 0.5) / 16 - 0.5
    distance = (torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).abs().amax(0) - 0.3) * 16
    voxels = Voxels(distance.clamp(-3, 3), torch.tensor([0.7, 0.4, 0.2]).expand(16, 16, 16, 3))
    field = VoxelField(voxels)
    solid = Solid.from_volume(field, field.thresholds[0], CONFIG, seeded())
    with torch.no_grad():
        one, other = field.render(orbit(4), 48), solid.render(orbit(4), 48)
    assert agreement(other, one)[1] > 0.93
    inside = (one.alpha > 0.99) & (other.alpha > 0.99)
    assert ((other.albedo - one.albedo).abs() * inside).max() < 0.03
