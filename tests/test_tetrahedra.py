"""Tilings, the surface through them, and the solid made of both: counted, against brute force, and on known shapes."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull

from threed.tetrahedra import SIDES, SNAP, TetGrid, march, tile
from threed.tets import unsigned_distance

SPHERE, ELLIPSOID = (0.6, 0.6, 0.6), (0.7, 0.45, 0.55)
TORUS = 0.55, 0.24


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cube(resolution):
    return torch.ones((resolution,) * 3, dtype=torch.bool)


def some_cells(resolution, seed=0):
    return torch.rand((resolution,) * 3, generator=seeded(seed)) < 0.4


def six_volumes(corners):
    """Of tetrahedra "T 4 3", signed."""
    return torch.linalg.det(corners[:, 1:] - corners[:, :1])


def faces_of(grid):
    """All faces of all tetrahedra, each with how many of them it belongs to."""
    each = torch.cat([grid.tetrahedra[:, [i for i in range(4) if i != left_out]] for left_out in range(4)])
    return torch.unique(each.sort(dim=-1).values.long(), dim=0, return_counts=True)


@pytest.mark.parametrize("cells", [cube(1), cube(2), cube(5), some_cells(5)], ids=["one", "eight", "125", "some"])
def test_tetrahedra_tile_without_gap_or_overlap(cells):
    """All turned alike, face to face, and as large together as they should be."""
    grid = tile(cells, bound=2.0)
    volumes = six_volumes(grid.vertices[grid.tetrahedra.long()].double()) / 6
    assert volumes.min() > 0
    faces, count = faces_of(grid)
    assert set(count.tolist()) == {1, 2}
    outer = faces[count == 1].unique()
    assert grid.border[outer].all()
    if cells.all():
        assert volumes.sum().item() == pytest.approx(4.0**3, rel=1e-6)
        on_cube = (grid.vertices.abs() == 2.0).any(-1)
        assert torch.equal(on_cube.nonzero()[:, 0], outer)
        assert torch.equal(on_cube, grid.border)


@pytest.mark.parametrize("cells", [cube(3), some_cells(4)], ids=["all", "some"])
def test_every_point_of_an_occupied_cell_lies_in_one_tetrahedron(cells):
    grid = tile(cells, bound=1.0)
    points = 2 * torch.rand(200, 3, generator=seeded(), dtype=torch.float64) - 1
    corners = grid.vertices[grid.tetrahedra.long()].double()
    shape = torch.linalg.inv((corners[:, 1:] - corners[:, :1]).mT)
    rest = torch.einsum("tij,ntj->nti", shape, points[:, None] - corners[:, 0])
    around = ((rest > 0).all(-1) & (rest.sum(-1) < 1)).sum(-1)
    here = cells[tuple(((points + 1) / 2 * len(cells)).long().T)]
    assert (around[here] == 1).all()
    assert around.max() == 1


@pytest.mark.parametrize("cells", [cube(2), some_cells(5)], ids=["all", "some"])
def test_edges_are_all_edges_once(cells):
    grid = tile(cells, bound=1.0)
    of_each = grid.tetrahedra[:, torch.tensor(SIDES)].sort(dim=-1).values
    assert torch.equal(grid.edges[grid.sides.long()], of_each)
    assert torch.equal(grid.edges.unique(dim=0), of_each.reshape(-1, 2).unique(dim=0))
    assert len(grid.edges) == len(grid.edges.unique(dim=0))


def test_tetrahedra_are_as_described():
    """Inside: twelve to a cell, edges of 1 and sqrt(3)/2 cells, dihedral angles of 60 and 90 degrees."""
    grid = tile(cube(8), bound=4.0)  # cells of 1 metre, at places that floats hold exactly
    corners = grid.vertices[grid.tetrahedra.long()].double()
    corners = corners[~(corners.abs() == 4.0).any(-1).any(-1)]
    ends = corners[:, torch.tensor(SIDES)]
    lengths = (ends[:, :, 1] - ends[:, :, 0]).norm(dim=-1).sort(dim=-1).values
    torch.testing.assert_close(lengths, lengths.new_tensor([0.75**0.5] * 4 + [1.0] * 2).expand_as(lengths))
    outward = torch.linalg.inv(corners[:, 1:] - corners[:, :1])  # columns: slopes of three barycentric coordinates
    slopes = torch.nn.functional.normalize(torch.cat([outward, -outward.sum(-1, keepdim=True)], dim=-1), dim=1)
    cosines = -(slopes.mT @ slopes)[:, *torch.triu_indices(4, 4, 1)]
    angles = cosines.clamp(-1, 1).acos().rad2deg().sort(dim=-1).values
    torch.testing.assert_close(angles, angles.new_tensor([60.0] * 4 + [90.0] * 2).expand_as(angles))


def single(corners):
    """A grid of one tetrahedron."""
    sides = torch.tensor(SIDES, dtype=torch.int32)
    order, all_six = torch.arange(4, dtype=torch.int32)[None], torch.arange(6, dtype=torch.int32)[None]
    return TetGrid(corners, order, sides, all_six, torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize("inside", list(product([False, True], repeat=4)))
def test_every_case_is_the_plane_cut_of_the_tetrahedron(inside):
    """The distances are linear in it: their zero is a plane polygon, which the triangles cover, facing outward."""
    generator = seeded(16)
    corners = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    corners = corners if six_volumes(corners[None]) > 0 else corners.flip(0)
    size = torch.rand(4, generator=generator, dtype=torch.float64) * 0.8 + 0.2
    distance = torch.where(torch.tensor(inside), -size, size)
    slope = torch.linalg.solve(corners[1:] - corners[0], distance[1:] - distance[0])
    mesh = march(single(corners), distance, corners)
    cuts = [
        (corners[a] * distance[b] - corners[b] * distance[a]) / (distance[b] - distance[a])
        for a, b in SIDES
        if inside[a] != inside[b]
    ]
    assert len(mesh.vertices) == len(cuts)
    if not cuts:
        assert mesh.faces.shape == (0, 3)
        return
    torch.testing.assert_close(mesh.vertices, torch.stack(cuts))
    a, b, c = mesh.corners.unbind(1)
    areas = (b - a).cross(c - a, dim=-1) / 2 @ (slope / slope.norm())
    assert (areas > 0).all()
    across = torch.linalg.svd(slope[None]).Vh[1:]
    polygon = ConvexHull((torch.stack(cuts) @ across.T).numpy())
    assert areas.sum().item() == pytest.approx(polygon.volume, rel=1e-9)


def test_gradients():
    """Of positions and distances, in double precision, through a cut of many tetrahedra."""
    grid = tile(cube(2), bound=1.0)
    positions = (grid.vertices.double() + 0.1 * torch.rand(len(grid.vertices), 3, generator=seeded())).requires_grad_()
    distance = torch.rand(len(grid.vertices), generator=seeded(1), dtype=torch.float64) - 0.4
    distance = distance.sign() * (distance.abs() + 0.05)
    assert torch.autograd.gradcheck(lambda s, x: march(grid, s, x).vertices, (distance.requires_grad_(), positions))


def assert_closed(mesh):
    """A closed, oriented 2-manifold: edges in pairs, one ring of triangles around every vertex, none of no area."""
    assert mesh.is_watertight
    assert torch.equal(mesh.faces.unique(), torch.arange(len(mesh.vertices)))
    corner = torch.arange(mesh.faces.numel()).reshape(-1, 3)
    start, end = mesh.faces, mesh.faces.roll(-1, dims=1)
    forth, back = (start * len(mesh.vertices) + end).reshape(-1), (end * len(mesh.vertices) + start).reshape(-1)
    here, there = forth.argsort(), back.argsort()  # the same edge from both sides: what starts here ends there
    links = torch.cat(
        [
            torch.stack([corner.reshape(-1)[here], corner.roll(-1, dims=1).reshape(-1)[there]]),
            torch.stack([corner.roll(-1, dims=1).reshape(-1)[here], corner.reshape(-1)[there]]),
        ],
        dim=1,
    ).numpy()
    rings, _ = connected_components(coo_array((np.ones(links.shape[1]), links), shape=(corner.numel(),) * 2))
    assert rings == len(mesh.vertices)


def test_a_vertex_on_the_surface_can_leave_it():
    """Its distance of exactly 0 has the slope of a little more, and the triangles around it have an area."""
    grid = tile(cube(4), bound=1.0)
    distance = grid.vertices[:, 0].clone().requires_grad_()  # the plane x = 0, full of vertices
    mesh = march(grid, distance, grid.vertices)
    assert mesh.corners.var(dim=1).sum(-1).min() > 0
    assert mesh.vertices[:, 0].abs().max() <= SNAP * 0.5
    mesh.vertices[:, 0].sum().backward()
    on_plane = grid.vertices[:, 0] == 0
    assert (distance.grad[on_plane] < 0).all()  # farther outside, the surface moves back


@pytest.mark.parametrize("unit", [1e-20, 1e-3, 1e3, 1e30])
def test_the_unit_of_distance_does_not_matter(unit):
    grid = tile(cube(3), bound=1.0)
    distance = torch.randn(len(grid.vertices), generator=seeded())
    scaled = march(grid, distance * unit, grid.vertices).vertices
    torch.testing.assert_close(scaled, march(grid, distance, grid.vertices).vertices)


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e38])
def test_slopes_are_finite_at_the_ends_of_the_numbers(size):
    grid = tile(cube(3), bound=1.0)
    sign = torch.randn(len(grid.vertices), generator=seeded()).sign()
    distance = (sign * size).requires_grad_()
    vertices = march(grid, distance, grid.vertices).vertices
    vertices.sum().backward()
    assert vertices.abs().max() <= 1
    assert distance.grad.isfinite().all()


def ellipsoid(radii):
    def level(x):
        scaled = x / x.new_tensor(radii)
        return scaled.norm(dim=-1) - 1

    return level


def torus(x):
    return torch.stack([x[:, [0, 2]].norm(dim=-1) - TORUS[0], x[:, 1]], dim=-1).norm(dim=-1) - TORUS[1]


def on_ellipsoid(radii, count=3000):
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=seeded()), dim=-1) * torch.tensor(radii)


def on_torus(count=3000):
    a, b = (2 * torch.pi * torch.rand(2, count, generator=seeded())).unbind()
    away = TORUS[0] + TORUS[1] * b.cos()
    return torch.stack([away * a.cos(), TORUS[1] * b.sin(), away * a.sin()], dim=-1)


KNOWN = {
    "sphere": (ellipsoid(SPHERE), on_ellipsoid(SPHERE), 4 / 3 * np.pi * np.prod(SPHERE), 2),
    "ellipsoid": (ellipsoid(ELLIPSOID), on_ellipsoid(ELLIPSOID), 4 / 3 * np.pi * np.prod(ELLIPSOID), 2),
    "torus": (torus, on_torus(), 2 * np.pi**2 * TORUS[0] * TORUS[1] ** 2, 0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_solids(name):
    """Closed, of the right genus; half the cell, a quarter of the error, in volume and both ways between surfaces."""
    level, on_surface, volume, euler = KNOWN[name]
    volumes, gaps = [], []
    for resolution in (12, 24, 48):
        grid = tile(cube(resolution), bound=1.0)
        mesh = march(grid, level(grid.vertices), grid.vertices)
        assert_closed(mesh)
        assert len(mesh.vertices) - len(mesh.faces) // 2 == euler
        volumes.append(abs(mesh.volume.item() - volume))
        middle = mesh.corners.mean(1)
        there, back = unsigned_distance(on_surface, mesh, 1.0), level(middle).abs()
        gaps.append(max(there.max().item(), back.max().item()))
        assert (level(middle + 0.01 * mesh.face_normals) > level(middle - 0.01 * mesh.face_normals)).all()
    for errors in (volumes, gaps):
        assert all(1.7 < np.log2(coarse / fine) < 2.4 for coarse, fine in pairwise(errors)), errors
