"""A solid on a tetrahedral grid: what it starts from, that nothing breaks it, and that it can be led elsewhere."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tetrahedra import ELLIPSOID, SPHERE, assert_closed, cube, ellipsoid, seeded, six_volumes, some_cells, torus

from threed.errors import Mistake
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.nearest import tree
from threed.renderers.volume import Sample
from threed.renderers.voxels import voxelise
from threed.start import VoxelField
from threed.tetrahedra import march, tile
from threed.tets import TRUNCATION, TetConfig, TetScene, unsigned_distance

SCALES = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-12, -1e-12, 1.0, -1.0, 3e37, -3e37])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(SCALES, min_size=2, max_size=10), st.floats(0.1, 1))
def test_any_distances_give_a_closed_surface(seed, values, share):
    """Also zeros of both signs, and the smallest and largest numbers; slopes stay finite."""
    cells = torch.rand(4, 4, 4, generator=seeded(seed)) < share
    scene = TetScene(TetConfig(resolution=4, deformation=0.24), cells)
    generator, size = seeded(seed), (len(scene.sdf),)
    picked = torch.tensor(values)[torch.randint(len(values), size, generator=generator)]
    noise = torch.randn(size, generator=generator)
    with torch.no_grad():
        scene.sdf.copy_(torch.where(torch.rand(size, generator=generator) < 0.3, noise, picked))
        scene.deformation.copy_(3 * torch.randn(*size, 3, generator=generator))
    mesh = scene.mesh()
    if not (scene.distance < 0).any():
        assert mesh.faces.shape == (0, 3)
        return
    assert_closed(mesh)
    assert mesh.with_vertices(mesh.vertices.double()).volume > 0
    mesh.vertices.square().sum().backward()
    assert scene.sdf.grad.isfinite().all()
    assert scene.deformation.grad.isfinite().all()


def test_a_scene_is_the_ellipsoid_it_starts_from():
    """With the distances of the ellipsoid, up to the truncation; only what counts is a parameter, and it comes back."""
    config = TetConfig(resolution=32)
    scene = TetScene.from_ellipsoid(SPHERE, config)
    mesh = scene.mesh()
    assert_closed(mesh)
    assert mesh.volume.item() == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.01)
    assert (mesh.vertices.norm(dim=-1) - 0.6).abs().max() < 0.05 * config.cell
    true = (scene.vertices.norm(dim=-1) - 0.6).clamp(-TRUNCATION * config.cell, TRUNCATION * config.cell)
    torch.testing.assert_close(scene.distance.detach(), true, atol=0.06 * config.cell, rtol=0)
    assert set(scene.state_dict()) == {"sdf", "deformation"}
    other = TetScene.from_ellipsoid(SPHERE, config)
    with torch.no_grad():
        scene.deformation.normal_(generator=seeded())
        scene.sdf.add_(0.1)
    other.load_state_dict(scene.state_dict())
    torch.testing.assert_close(other.mesh().vertices, scene.mesh().vertices, atol=0, rtol=0)


def test_distance_to_a_mesh_is_the_least_over_all_triangles():
    """Brute force: points spread densely over every triangle. Also where triangles are slivers of a tiny area."""
    grid = tile(cube(10), bound=1.0)
    mesh = march(grid, ellipsoid((0.6, 0.45, 0.6))(grid.vertices), grid.vertices)
    points = torch.cat([grid.vertices[::3], 1.6 * torch.rand(300, 3, generator=seeded()) - 0.8])
    a, b = torch.cartesian_prod(torch.linspace(0, 1, 15), torch.linspace(0, 1, 15)).unbind(-1)
    spread = (torch.stack([1 - a, a * (1 - b), a * b], dim=-1) @ mesh.corners).reshape(-1, 3)
    brute, _ = tree(spread.numpy()).query(points.numpy())
    found = unsigned_distance(points, mesh, reach=0.25).numpy()
    assert found.max() == 0.25
    assert (found <= brute.clip(max=0.25) + 1e-6).all()
    far = brute.clip(0.01, 0.25)  # what the density of the points misses counts least there
    assert (found.clip(0.01) > far - 0.01).all()


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_culling_changes_nothing_where_the_solid_is(margin):
    culled, whole = (TetScene.from_level(torus, TetConfig(resolution=24, margin=each)) for each in (margin, np.inf))
    assert len(culled.tetrahedra) < (0.5 if margin == 0 else 0.8) * len(whole.tetrahedra)
    assert len(whole.tetrahedra) == 12 * 24**3 + 12 * 24**2
    ours, theirs = culled.mesh(), whole.mesh()
    assert torch.equal(ours.faces.unique(), theirs.faces.unique())
    torch.testing.assert_close(by_place(ours), by_place(theirs), atol=1e-6, rtol=0)


def by_place(mesh):
    """Triangles as corners, in an order of their own."""
    middle = mesh.corners.detach().double().mean(1)
    return mesh.corners.detach()[(middle @ middle.new_tensor([1.0, 3.7, 11.3])).argsort()].sort(dim=1).values


@pytest.mark.parametrize("limit", [0.0, 0.1, 0.2, 0.24, 0.25])
def test_no_deformation_turns_a_tetrahedron_inside_out(limit):
    """The volume is linear in each coordinate, so that it is least where all are extreme: 4096 cases, all of them.

    It falls to nothing at a quarter of a cell, and not before: the bound is sharp.
    """
    extreme = torch.cartesian_prod(*[torch.tensor([-limit, limit], dtype=torch.float64)] * 12).reshape(-1, 4, 3)
    grid = tile(cube(4), bound=2.0)
    corners = grid.vertices[grid.tetrahedra.long()].double()
    inner = corners[(corners.abs() < 2).all(-1).all(-1)]
    for tetrahedron in inner[::23]:
        least = six_volumes(tetrahedron + extreme).min().item()
        assert least == pytest.approx((1 - 4 * limit) ** 2 / 2, abs=1e-12)


@pytest.mark.parametrize("cells", [cube(5), some_cells(6)], ids=["all", "some"])
def test_no_parameters_turn_a_tetrahedron_inside_out(cells):
    """At the cube's surface and along the border too."""
    scene = TetScene(TetConfig(resolution=len(cells), deformation=0.249), cells)
    for seed in range(40):
        with torch.no_grad():
            scene.deformation.copy_(1e3 * torch.randn(scene.deformation.shape, generator=seeded(seed)).sign())
        assert six_volumes(scene.positions[scene.tetrahedra.long()].double()).min() > 0
    assert torch.equal(scene.positions[scene.border], scene.vertices[scene.border])
    moved = (scene.positions - scene.vertices)[~scene.border].abs() / scene.config.cell
    torch.testing.assert_close(moved, torch.full_like(moved, 0.249))


class Ball:
    """A soft volume whose density falls exponentially across its surface."""

    def __init__(self, radius, centre=(0.0, 0.0, 0.0)):
        self.radius, self.centre = radius, torch.tensor(centre)

    def density(self, x):
        return 10 * (40 * (self.radius - (x - self.centre).norm(dim=-1))).clamp(max=20).exp()

    def __call__(self, x):
        return Sample(self.density(x), torch.ones_like(x), torch.ones_like(x))


def test_a_soft_volume_becomes_its_surface():
    """Where the density is the threshold, at distances in metres rather than in logarithms of density."""
    config = TetConfig(resolution=32, bound=1.2)
    scene = TetScene.from_field(Ball(0.5, (0.1, 0.2, 0.0)), 10.0, config)
    mesh = scene.mesh()
    assert_closed(mesh)
    gap = (mesh.vertices - torch.tensor([0.1, 0.2, 0.0])).norm(dim=-1) - 0.5
    assert gap.abs().max() < 0.05 * config.cell
    thinner = TetScene.from_field(Ball(0.5), 10 * np.exp(-4.0), config).mesh()
    assert (thinner.vertices.norm(dim=-1) - 0.6).abs().max() < 0.05 * config.cell


def test_a_solid_is_closed_where_it_touches_the_cube():
    mesh = TetScene.from_field(Ball(3.0), 10.0, TetConfig(resolution=12)).mesh()
    assert_closed(mesh)
    assert mesh.volume.item() == pytest.approx(8, rel=0.02)
    assert mesh.vertices.abs().max() <= 1


def test_an_open_mesh_becomes_a_solid():
    """A box without its lid, from a user: voxels give it walls, which the grid keeps, being finer than they are."""
    box = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    sides = [(axis, side) for axis, side in product(range(3), (-1, 1)) if (axis, side) != (1, 1)]
    triangles = torch.tensor(list(combinations(range(8), 3)))  # four to a side, so that some lie on others
    lidless = triangles[torch.stack([(box[triangles, axis] == side).all(-1) for axis, side in sides]).any(0)]
    texel = Material(torch.full((1, 1, 3), 0.5))
    asset = Asset("box", Mesh(box, lidless), torch.full((1, 2), 0.5), torch.zeros_like(lidless), texel)
    field = VoxelField(voxelise(asset, 24))
    mesh = TetScene.from_field(field, field.thresholds[0], TetConfig(resolution=48)).mesh()
    assert_closed(mesh)
    assert mesh.vertices.norm(dim=-1).max().item() == pytest.approx(1, abs=0.05)
    assert len(mesh.vertices) - len(mesh.faces) // 2 == 2


def test_what_cannot_become_a_solid_is_refused():
    config = TetConfig(resolution=8)
    with pytest.raises(ValueError, match=r"nothing is inside at 8 cells a side; use more, or a lower threshold"):
        TetScene.from_field(Ball(0.5), 1e10, config)
    with pytest.raises(ValueError, match=r"not finite"):
        TetScene.from_level(lambda x: torch.full_like(x[:, 0], torch.nan), config)
    with pytest.raises(Mistake, match=r"radii of \(0.5, 1.5, 0.5\) m; use three between 0 and 1.0"):
        TetScene.from_ellipsoid((0.5, 1.5, 0.5), config)
    with pytest.raises(Mistake, match=r"a deformation of 0.25 cells turns tetrahedra inside out; stay below 0.25"):
        TetConfig(deformation=0.25)
    for wrong in ({"resolution": 0}, {"bound": 0.0}, {"margin": -1.0}, {"bound": np.nan}):
        with pytest.raises(Mistake, match=r"use a resolution and a bound above 0"):
            TetConfig(**wrong)


def test_vertices_lead_a_ball_to_another_shape():
    """Adam on where the vertices are: a ball becomes an ellipsoid, to a tenth of a cell and 1 % of its volume."""
    config = TetConfig(resolution=16, margin=0.3)
    scene = TetScene.from_ellipsoid((0.5, 0.5, 0.5), config)
    optimizer = torch.optim.Adam(scene.param_groups(), betas=(0.9, 0.99))
    for _ in range(100):
        optimizer.zero_grad()
        ellipsoid(ELLIPSOID)(scene.mesh().vertices).square().mean().backward()
        optimizer.step()
    mesh = scene.mesh()
    assert_closed(mesh)
    assert ellipsoid(ELLIPSOID)(mesh.vertices).abs().max() < 0.1 * config.cell
    assert mesh.volume.item() == pytest.approx(4 / 3 * np.pi * np.prod(ELLIPSOID), rel=0.01)
