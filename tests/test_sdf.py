"""The SDF: closed forms of its density and its pictures, exact slopes, and what it learns of known shapes."""

import math
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from threed import checkpoint
from threed.errors import Mistake
from threed.isosurface import Volume, best, extract, isosurface, sampled
from threed.pictures import silhouette_iou
from threed.regularizers import eikonal
from threed.renderers.camera import orbit
from threed.renderers.ops import HashGrid
from threed.renderers.voxels import TRUNCATION, Voxels
from threed.sdf import SDF, SDFConfig, imitate, imitate_voxels, laplace
from threed.start import VoxelField
from threed.train import Scene

SMALL = replace(SDFConfig(), grid=HashGrid(levels=3, coarsest=4, finest=16), resolution=24, samples=48, occupancy=24)
TINY = replace(SMALL, grid=HashGrid(levels=2, coarsest=2, finest=4))
GREY = torch.tensor([0.2, 0.5, 0.9])


@pytest.fixture
def few(monkeypatch):
    """A quarter of the points to imitate something at."""
    monkeypatch.setattr("threed.sdf.IMITATION_POINTS", 1 << 12)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def learned(config, spread=0.3):
    """An SDF in float64 that looks like nothing in particular."""
    sdf = SDF(config, seeded()).double()
    with torch.no_grad():
        for parameter in (sdf.shape, sdf.colour):
            parameter.copy_(spread * torch.randn(parameter.shape, generator=seeded(1)))
    return sdf


def points(count, bound=1.0):
    return (torch.rand(count, 3, generator=seeded(2), dtype=torch.float64) * 2 - 1) * 0.95 * bound


def ball(radius):
    return lambda x: (x.norm(dim=-1) - radius, GREY.expand_as(x))


def torus(large, small):
    def target(x):
        ring = torch.stack([x[:, [0, 2]].norm(dim=-1) - large, x[:, 1]], dim=-1)
        return ring.norm(dim=-1) - small, GREY.expand_as(x)

    return target


def genus(mesh):
    """Of a closed surface in one piece."""
    vertices, edges, triangles = len(mesh.vertices), len(mesh.faces) * 3 // 2, len(mesh.faces)
    return 1 - (vertices - edges + triangles) // 2


def test_is_a_volume_and_a_scene():
    sdf = SDF(TINY, seeded())
    assert isinstance(sdf, Volume)
    assert isinstance(sdf, Scene)


@pytest.mark.parametrize("beta", [0.003, 0.05, 1.0])
def test_density_is_the_share_inside_of_a_laplace_distribution(beta):
    """Half of the most at 0, the most deep inside, none far outside, and ever less on the way."""
    beta, distance = torch.tensor(beta).double(), torch.linspace(-2, 2, 401).double()
    density = laplace(distance, beta)
    torch.testing.assert_close(density, torch.distributions.Laplace(0.0, beta).cdf(-distance) / beta)
    torch.testing.assert_close(density + laplace(-distance, beta), (1 / beta).expand(401))
    assert laplace(torch.zeros(1).double(), beta).item() == 1 / (2 * beta)
    assert laplace(torch.tensor([-1e9, 1e9]).double(), beta).tolist() == [1 / beta, 0]
    assert (density.diff() <= 0).all()
    assert (density >= 0).all()


def test_slope_of_the_density_even_at_distance_0():
    """d density / d distance there is -1 / (2 beta^2), from either side."""
    distance = torch.tensor([-1e6, -0.3, -0.01, 0.0, 0.02, 0.4, 1e6], dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(laplace, (distance, beta))
    (slope,) = torch.autograd.grad(laplace(distance, beta).sum(), distance)
    assert slope[3].item() == pytest.approx(-1 / (2 * 0.07**2))


def test_begins_as_a_ball_exactly():
    sdf, x = SDF(SMALL, seeded()).double(), points(300)
    torch.testing.assert_close(sdf.distance(x), x.norm(dim=-1) - SMALL.start_radius, rtol=0, atol=1e-15)
    torch.testing.assert_close(sdf(x).normal, functional.normalize(x, dim=-1), rtol=0, atol=1e-15)
    assert eikonal(sdf.slope(x)).item() < 1e-30
    assert sdf.beta.item() == pytest.approx(SMALL.beta)
    assert torch.equal(sdf(x).albedo, torch.full_like(x, 0.5))


@pytest.mark.parametrize("bound", [1.0, 1.7])
def test_slopes_and_normals_are_those_of_the_distance(bound):
    sdf, x, h = learned(replace(SMALL, bound=bound)), points(200, bound), 1e-6
    taps = torch.cat([torch.eye(3), -torch.eye(3)]).double() * h
    with torch.no_grad():
        distance = sdf.distance((x[None] + taps[:, None]).reshape(-1, 3)).reshape(2, 3, -1)
        slope = ((distance[0] - distance[1]) / (2 * h)).T
        torch.testing.assert_close(sdf.slope(x), slope, atol=1e-7, rtol=0)
        torch.testing.assert_close(sdf(x).normal, functional.normalize(slope, dim=-1), atol=1e-6, rtol=0)


def test_a_level_counts_in_its_cells():
    """A table of ones moves the surface inward by a cell of every level."""
    sdf, x = SDF(replace(TINY, bound=1.5), seeded()).double(), points(50)
    torch.nn.init.ones_(sdf.shape)
    cells = sum(2 * 1.5 / scale for scale in TINY.grid.scales)
    torch.testing.assert_close(sdf.distance(x), x.norm(dim=-1) - 0.5 + cells)


def test_gradients_of_everything_by_finite_differences():
    sdf, x = learned(TINY), points(6)
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in sdf.named_parameters()), strict=True)

    def sample(*parameters):
        found = functional_call(sdf, dict(zip(names, parameters, strict=True)), x)
        return found.density, found.albedo, found.normal

    assert torch.autograd.gradcheck(sample, values, fast_mode=True)


def test_the_eikonal_term_teaches_the_shape():
    """Its gradient is right, and following it brings slopes to length 1."""
    sdf, x = learned(TINY), points(20)

    def cost(shape):
        return eikonal(functional_call(Slope(sdf), {"sdf.shape": shape}, x))

    assert torch.autograd.gradcheck(cost, sdf.shape.detach().requires_grad_())
    before = eikonal(sdf.slope(points(500))).item()
    optimizer = torch.optim.Adam([sdf.shape], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        eikonal(sdf.slope(points(500))).backward()
        optimizer.step()
    assert eikonal(sdf.slope(points(500))).item() < 0.1 * before


class Slope(torch.nn.Module):
    """A module whose call is the slope of an SDF."""

    def __init__(self, sdf):
        super().__init__()
        self.sdf = sdf

    def forward(self, x):
        return self.sdf.slope(x)


def test_finite_at_the_very_centre():
    """Where the ball has no direction; gradients, too."""
    sdf = SDF(SMALL, seeded())
    sample, slope = sdf(torch.zeros(1, 3)), sdf.slope(torch.zeros(1, 3))
    parts = sample.density, sample.albedo, sample.normal
    gradients = torch.autograd.grad(sum(part.sum() for part in (*parts, eikonal(slope))), list(sdf.parameters()))
    assert all(part.isfinite().all() for part in (*parts, *gradients))


def test_every_parameter_learns_from_pictures():
    """And every parameter is in exactly one of the groups that are optimised."""
    sdf = SDF(SMALL, seeded())
    render = sdf.render(orbit(2))
    groups = [p for group in sdf.param_groups() for p in group["params"]]
    assert sorted(map(id, groups)) == sorted(map(id, sdf.parameters()))
    for gradient in torch.autograd.grad(render.albedo.sum() + render.normal[..., 0].sum(), groups):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("log_beta", [-1000.0, -5.0, 3.0])
def test_beta_stays_above_its_least(log_beta):
    sdf = SDF(TINY, seeded())
    torch.nn.init.constant_(sdf.log_beta, log_beta)
    assert sdf.beta.item() == pytest.approx(TINY.least_beta + math.exp(log_beta))
    assert sdf.density(points(100).float()).isfinite().all()


@pytest.mark.parametrize("beta", [0.015, 0.05])
def test_pictures_of_the_ball(beta):
    """Alpha, depth and normals along every ray, by fine quadrature of the exact distance."""
    cameras, size, step = orbit(2), 16, 5e-4
    sdf = SDF(replace(SDFConfig(), beta=beta, samples=400), seeded())
    sdf.occupancy.occupied.fill_(True)  # else faint haze is left out
    with torch.no_grad():
        shown = sdf.render(cameras, size)
    origins, directions = (each[..., None, :].double() for each in cameras.rays(size, size))
    way = torch.arange(2.1, 4.1, step, dtype=torch.float64)
    x = origins + directions * way[:, None]
    thickness = laplace((x.norm(dim=-1) - 0.5).flatten(), torch.tensor(beta).double()).reshape(x.shape[:-1]) * step
    weights = (thickness - thickness.cumsum(-1)).exp() * -torch.expm1(-thickness)
    normal = (weights[..., None] * functional.normalize(x, dim=-1)).sum(-2)
    normal = torch.einsum("bij,bhwi->bhwj", cameras.rotation.double(), normal)
    exact = weights.sum(-1, keepdim=True), (weights * way).sum(-1, keepdim=True), normal
    found = shown.alpha, shown.depth, shown.normal
    for picture, truth, tolerance in zip(found, exact, (0.01, 0.03, 0.01), strict=True):
        torch.testing.assert_close(picture.double(), truth, rtol=0, atol=tolerance)


@pytest.mark.parametrize("beta", [0.015, 0.03])
def test_surface_is_seen_a_third_of_a_beta_inside(beta):
    """Straight on, light ends 2 (1 - exp(-1/2)) - Ein(1/2) = 0.343 betas behind distance 0, whatever beta is."""
    cameras = orbit(1)
    with torch.no_grad():
        shown = SDF(replace(SDFConfig(), beta=beta, samples=1000, occupancy=32), seeded()).render(cameras, 1)
    ein = sum((-1) ** (k + 1) * 0.5**k / (k * math.factorial(k)) for k in range(1, 15))
    behind = 2 * (1 - math.exp(-0.5)) - ein
    assert behind == pytest.approx(0.3431, abs=1e-4)
    assert shown.alpha.item() == pytest.approx(1, abs=2e-3)
    assert (shown.depth / shown.alpha).item() == pytest.approx(3.1 - 0.5 + behind * beta, abs=0.03 * beta)
    torch.testing.assert_close(shown.normal.flatten(), torch.tensor([0.0, 0.0, 1.0]), rtol=0, atol=2e-3)


def test_silhouette_ends_where_grazing_light_is_halved():
    """At log(sqrt(pi R / 2 beta) / log 2) betas outside distance 0, which is why there are several thresholds."""
    beta, cameras, size = 0.02, orbit(2), 128
    with torch.no_grad():
        alpha = SDF(replace(SDFConfig(), beta=beta, samples=200, occupancy=32), seeded()).render(cameras, size).alpha
    origins, directions = cameras.rays(size, size)
    missed = (origins.square().sum(-1) - (origins * directions).sum(-1) ** 2).sqrt()[..., None]
    edge = 0.5 + beta * math.log(math.sqrt(math.pi * 0.5 / (2 * beta)) / math.log(2))
    assert ((missed < edge - 0.1 * beta) <= (alpha > 0.5)).all()
    assert ((missed > edge + 0.1 * beta) <= (alpha < 0.5)).all()


def test_solid_is_the_ball_that_is_seen():
    """The threshold that `extract` chooses; the density of the last one is that at distance 0."""
    sdf = SDF(replace(SDFConfig(), beta=0.02, samples=96), seeded())
    assert sdf.thresholds == tuple(sorted(sdf.thresholds))
    assert sdf.thresholds[-1] == pytest.approx(1 / (2 * 0.02))
    edge = 0.5 + 0.02 * math.log(math.sqrt(math.pi * 0.5 / (2 * 0.02)) / math.log(2))
    radii = extract(sdf, grid=64, smoothing=5).vertices.norm(dim=-1)
    assert radii.mean().item() == pytest.approx(edge, abs=0.4 * 0.02)
    assert radii.std() < 0.001


def test_marching_cubes_finds_every_distance_to_second_order():
    """The density's logarithm is a line outside and bends at 0: an eighth of the error with cells of a third."""
    sdf = SDF(replace(TINY, beta=0.08), seeded())
    for offset in (0.0, 1.0, 2.0):
        threshold, errors = math.exp(-offset) / (2 * 0.08), []
        for cells in (24, 72):
            found = isosurface(sampled(sdf, cells), threshold, 1.0)
            errors.append((found.vertices.norm(dim=-1) - 0.5 - offset * 0.08).abs().max().item())
        assert errors[1] < errors[0] / 7


def test_hole_of_a_torus_is_learned_from_pictures():
    """Eight small ones, from a ball; the hole goes through the solid."""
    cameras, size, generator = orbit(8, elevation=0.7), 24, seeded()
    exact = SDF(replace(SMALL, beta=0.012, samples=96), seeded())
    exact.distance = lambda x: torus(0.5, 0.18)(x)[0]
    with torch.no_grad():
        exact.occupancy.occupied.fill_(True)
        wanted = exact.render(cameras, size).alpha
    sdf = SDF(SMALL, seeded())
    optimizer = torch.optim.Adam(sdf.param_groups(), betas=(0.9, 0.99))
    for step in range(100):
        some = torch.randperm(8, generator=generator)[:3]
        missed = functional.mse_loss(sdf.render(cameras[some], size, generator).alpha, wanted[some])
        x = 2 * torch.rand(1000, 3, generator=generator) - 1
        optimizer.zero_grad()
        (missed + 0.03 * eikonal(sdf.slope(x))).backward()
        optimizer.step()
        sdf.after_step(step, generator)
    with torch.no_grad():
        assert silhouette_iou(sdf.render(cameras, size).alpha, wanted) > 0.95
    assert genus(best(sdf, 40)[1]) == 1
    assert sdf.beta < 0.7 * SMALL.beta  # sharp pictures sharpen it


def test_occupancy_follows_the_object():
    sdf, x = SDF(TINY, seeded()), torch.tensor([[0.8, 0.0, 0.0]])
    corner = tuple(((x[0] + 1) / 2 * TINY.occupancy).long())
    assert not sdf.occupancy.occupied[corner]
    torch.nn.init.constant_(sdf.shape, -1.0)  # larger by more than a metre
    sdf.after_step(8, seeded())
    assert sdf.occupancy.occupied[corner]


def test_same_generator_same_bytes():
    def pictures(seed):
        sdf = SDF(SMALL, seeded())
        render = sdf.render(orbit(3), generator=seeded(seed))
        render.normal.square().sum().backward()
        return [render.rgb, render.alpha, render.depth, render.normal, *(p.grad for p in sdf.parameters())]

    first, second, other = pictures(3), pictures(3), pictures(4)
    assert all(a is b or torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], other[1])


def test_state_dict_is_all_there_is(tmp_path):
    """Another SDF with this one's state, by way of a checkpoint, draws the same pictures: occupancy and beta, too."""
    first, second = learned(SMALL).float(), SDF(SMALL, seeded(9))
    torch.nn.init.constant_(first.log_beta, -4.0)
    for step in range(16):
        first.after_step(step, seeded(step))
    checkpoint.save(tmp_path / "state.safetensors", first.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path / "state.safetensors"))
    one, other = first.render(orbit(2)), second.render(orbit(2))
    for name in ("rgb", "alpha", "depth", "normal"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert first.thresholds == second.thresholds


@pytest.mark.usefixtures("few")
def test_imitates_a_torus():
    sdf, target = SDF(SMALL, seeded()), torus(0.5, 0.2)
    imitate(sdf, target, seeded(1))
    x = points(20000).float()
    wanted, _ = target(x)
    near = wanted.abs() < 0.1
    with torch.no_grad():
        error, slope = (sdf.distance(x) - wanted)[near], sdf.slope(x[near]).norm(dim=-1)
        assert error.square().mean().sqrt() < 0.01
        assert (slope - 1).abs().mean() < 0.1
        torch.testing.assert_close(sdf.albedo(x), GREY.expand_as(x), rtol=0, atol=0.02)
    assert genus(isosurface(sampled(sdf, 48), sdf.thresholds[-1], 1.0)) == 1
    assert sdf.beta.item() == pytest.approx(SMALL.beta)


@pytest.mark.usefixtures("few")
def test_what_is_only_known_to_be_far_stays_free():
    """Of a distance truncated at 10 cm, the sign and the surface are kept and the slope has length 1 beyond, too."""

    def truncated(x):
        distance, colour = torus(0.5, 0.2)(x)
        return distance.clamp(-0.1, 0.1), colour

    sdf, x = SDF(SMALL, seeded()), points(20000).float()
    imitate(sdf, truncated, seeded(1), sure=0.1)
    wanted = torus(0.5, 0.2)(x)[0]
    with torch.no_grad():
        found = sdf.distance(x)
        far = wanted > 0.2
        assert (found[far] > 0.09).float().mean() > 0.99
        assert (found - wanted)[wanted.abs() < 0.08].square().mean().sqrt() < 0.012
        assert (sdf.slope(x[far]).norm(dim=-1) - 1).abs().mean() < 0.15


@pytest.mark.usefixtures("few")
def test_imitates_voxels():
    """A ball that reaches radius 1, red above and blue below."""
    axis = torch.arange(24) - 11.5
    lattice = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    red, blue = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9])
    distance = (lattice.norm(dim=-1) - 8).clamp(-TRUNCATION, TRUNCATION)
    field = VoxelField(Voxels(distance, torch.where(lattice[..., 1:2] > 0, red, blue)))
    sdf = SDF(SMALL, seeded())
    imitate_voxels(sdf, field.voxels, field.radius.item(), seeded(1))
    outward = functional.normalize(torch.randn(500, 3, generator=seeded(3)), dim=-1)
    with torch.no_grad():
        sample = sdf(outward)
        for radius in (0.85, 1.0, 1.1):
            found = sdf.distance(outward[outward.abs().amax(-1) < 0.85] * radius)
            assert (found - (radius - 1)).abs().mean() < 0.02
    assert (sample.normal * outward).sum(-1).mean() > 0.98
    above, below = outward[:, 1] > 0.2, outward[:, 1] < -0.2
    assert (sample.albedo[above, 0] > 0.7).all()
    assert (sample.albedo[below, 2] > 0.7).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"start_radius": 1.2}, r"a start_radius of 1.2 m; use one between 0 and the bound, 1.0 m"),
        ({"start_radius": -0.1}, r"a start_radius of -0.1 m"),
        ({"bound": math.nan}, r"the bound, nan m"),
        ({"beta": 0.005}, r"a beta of 0.005 m; use one above least_beta, 0.01 m, and that above 0"),
        ({"least_beta": 0.0}, r"least_beta, 0.0 m, and that above 0"),
        ({"beta": math.inf}, r"a beta of inf m"),
        ({"samples": 0}, r"samples is 0; use 1 or more"),
        ({"resolution": -3}, r"resolution is -3; use 1 or more"),
        ({"occupancy": 0}, r"occupancy is 0; use 1 or more"),
        ({"distance_rate": -0.1}, r"distance_rate is -0.1; use 0, which keeps it as it is, or a little more"),
        ({"beta_rate": math.nan}, r"beta_rate is nan"),
    ],
)
def test_configurations_that_cannot_be(wrong, says):
    with pytest.raises(Mistake, match=says):
        SDFConfig(**wrong)
