"""Mesh regularizers against the angles and radii of known solids, a loop over edges, and a noisy sphere."""

import math

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from threed.mesh_regularizers import laplacian, normal_consistency
from threed.renderers import topology
from threed.renderers.mesh import Mesh

TERMS = pytest.mark.parametrize("term", [normal_consistency, laplacian])
FOLD = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, 0, 0]], dtype=torch.float64)


def solid(vertices: list, radius: float = 1.0) -> Mesh:
    """The convex hull of the vertices, scaled to this radius."""
    hull = trimesh.convex.convex_hull(np.array(vertices, dtype=float))
    points = torch.tensor(np.array(hull.vertices))
    return Mesh(points * radius / points.norm(dim=1).max(), torch.tensor(np.array(hull.faces)))


def icosahedron(radius: float = 1.0) -> Mesh:
    return solid(trimesh.creation.icosahedron().vertices, radius)


def sphere(subdivisions: int, noise: float = 0.0) -> Mesh:
    """Of one metre, with noise of this standard deviation on every coordinate."""
    shape = trimesh.creation.icosphere(subdivisions)
    vertices, generator = torch.tensor(np.array(shape.vertices)), torch.Generator().manual_seed(0)
    moved = vertices + noise * torch.randn(vertices.shape, generator=generator).double()
    return Mesh(moved, torch.tensor(np.array(shape.faces)))


def sheet(across: int, along: int, turn: bool = False) -> Mesh:
    """Unit squares, all cut by the same diagonal; where they `turn`, `across` of them close to a ring."""
    columns = across if turn else across + 1
    i, j = torch.meshgrid(torch.arange(across), torch.arange(along), indexing="ij")
    a, b = (j * columns + i).reshape(-1), (j * columns + (i + 1) % columns).reshape(-1)
    faces = torch.cat([torch.stack([a, b, b + columns], -1), torch.stack([a, b + columns, a + columns], -1)])
    k = torch.arange(columns * (along + 1))
    return Mesh(torch.stack([k % columns, k // columns, torch.zeros_like(k)], -1).double(), faces)


def tube(sides: int, rings: int, radius: float) -> Mesh:
    """Open at both ends."""
    mesh = sheet(sides, rings, turn=True)
    angle = mesh.vertices[:, 0] * 2 * math.pi / sides
    return mesh.with_vertices(torch.stack([radius * angle.cos(), radius * angle.sin(), mesh.vertices[:, 1]], -1))


def by_hand(mesh: Mesh) -> tuple[float, float]:
    """Normal consistency and Laplacian, edge by edge and vertex by vertex."""
    vertices, owners = mesh.vertices.numpy(), {}
    for f, face in enumerate(mesh.faces.tolist()):
        for k in range(3):
            owners.setdefault(frozenset((face[k], face[(k + 1) % 3])), []).append((f, face[k]))
    normal = mesh.face_normals.numpy()
    pairs = [(a, b) for (a, u), (b, v) in (each for each in owners.values() if len(each) == 2) if u != v]
    border = {vertex for edge, faces in owners.items() if len(faces) == 1 for vertex in edge}
    squares = []
    for v in range(len(vertices)):
        neighbours = [w for edge in owners if v in edge for w in edge - {v}]
        if neighbours and v not in border:
            squares.append(((vertices[neighbours].mean(0) - vertices[v]) ** 2).sum())
    return float(np.mean([1 - normal[a] @ normal[b] for a, b in pairs])), float(np.mean(squares))


def test_normal_consistency_of_the_platonic_solids():
    """1 - cos of the angle between neighbouring normals; the diagonals of a cube's squares are flat."""
    tetrahedron = solid([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
    octahedron = solid([*np.eye(3), *-np.eye(3)])
    cube = solid(trimesh.creation.box().vertices)
    assert normal_consistency(tetrahedron).item() == pytest.approx(4 / 3)
    assert normal_consistency(octahedron).item() == pytest.approx(2 / 3)
    assert normal_consistency(icosahedron()).item() == pytest.approx(1 - math.sqrt(5) / 3)
    assert normal_consistency(cube).item() == pytest.approx(12 / 18)


def test_laplacian_of_the_platonic_solids():
    """The neighbours of a vertex v average to v / sqrt 5 in an icosahedron, else to 0 and to -v / 3."""
    tetrahedron = solid([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)], radius=0.7)
    octahedron = solid([*np.eye(3), *-np.eye(3)], radius=0.7)
    assert laplacian(tetrahedron).item() == pytest.approx((0.7 * 4 / 3) ** 2)
    assert laplacian(octahedron).item() == pytest.approx(0.7**2)
    assert laplacian(icosahedron(0.7)).item() == pytest.approx((0.7 * (1 - 1 / math.sqrt(5))) ** 2)


def test_a_tube():
    """Of its edges with two faces only the upright ones turn; the mean of six neighbours is drawn in by four."""
    sides, rings, radius = 12, 5, 0.3
    turn = 1 - math.cos(2 * math.pi / sides)
    mesh = tube(sides, rings, radius)
    assert normal_consistency(mesh).item() == pytest.approx(turn * rings / (3 * rings - 1))
    assert laplacian(mesh).item() == pytest.approx((radius * turn * 4 / 6) ** 2)


def test_a_regular_plane_costs_nothing():
    flat = sheet(6, 4)
    assert normal_consistency(flat).item() == 0
    assert laplacian(flat).item() == pytest.approx(0, abs=1e-28)
    dented = flat.with_vertices(flat.vertices.index_add(0, torch.tensor([16]), torch.tensor([[0, 0, 0.5]]).double()))
    inner = 5 * 3
    assert laplacian(dented).item() == pytest.approx((0.5**2 + 6 * (0.5 / 6) ** 2) / inner)


def test_borders_are_neighbours_alone():
    """A plane may end where it likes."""
    flat = sheet(4, 4)
    vertices = flat.vertices.clone().requires_grad_()
    (slope,) = torch.autograd.grad(laplacian(flat.with_vertices(vertices)), vertices)
    assert slope.abs().max() < 1e-14
    assert laplacian(sheet(1, 1)).item() == 0  # borders only


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 3.0])
def test_two_leaves_of_a_fold(angle):
    leaf = torch.tensor([[math.cos(math.pi - angle), math.sin(math.pi - angle), 0]], dtype=torch.float64)
    mesh = Mesh(torch.cat([FOLD[:3], leaf]), torch.tensor([[0, 1, 2], [1, 0, 3]]))
    assert normal_consistency(mesh).item() == pytest.approx(1 - math.cos(angle), abs=1e-12)


@pytest.mark.parametrize(
    "faces",
    [
        pytest.param([[0, 1, 2]], id="one face"),
        pytest.param([[0, 1, 2], [1, 0, 3], [1, 0, 4]], id="three at an edge"),
        pytest.param([[0, 1, 2], [0, 1, 3]], id="wound against each other"),
    ],
)
def test_edges_that_are_no_one_surface(faces):
    vertices = FOLD.clone().requires_grad_()
    cost = normal_consistency(Mesh(vertices, torch.tensor(faces)))
    (slope,) = torch.autograd.grad(cost, vertices)
    assert cost.item() == 0
    assert (slope == 0).all()


def test_agrees_with_loops():
    """On an open mesh, irregular, with a fin along an inner edge, a face the wrong way round and an idle vertex."""
    mesh = sphere(1, noise=0.1)
    tip = torch.tensor([[0.0, 0.0, 3.0], [9.0, 9.0, 9.0]], dtype=torch.float64)
    faces = mesh.faces[4:].clone()
    faces[20] = faces[20].flip(0)
    fin = torch.cat([faces[40, :2], torch.tensor([len(mesh.vertices)])])[None]
    odd = Mesh(torch.cat([mesh.vertices, tip]), torch.cat([faces, fin]))
    consistency, umbrella = by_hand(odd)
    assert normal_consistency(odd).item() == pytest.approx(consistency)
    assert laplacian(odd).item() == pytest.approx(umbrella)


@TERMS
def test_edges_that_are_handed_on_are_not_sorted_again(term, monkeypatch):
    mesh = sphere(1, noise=0.1)
    expected, edges = term(mesh), topology.edges(mesh.faces)
    monkeypatch.setattr(topology, "edges", None)
    assert torch.equal(term(mesh, edges), expected)


@TERMS
@pytest.mark.parametrize("mesh", [sphere(1, noise=0.1), tube(5, 3, 0.4)], ids=["sphere", "tube"])
def test_slopes(term, mesh):
    vertices = (mesh.vertices + 0.01 * torch.sin(37 * mesh.vertices)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: term(mesh.with_vertices(v)), vertices)


@TERMS
def test_the_same_wherever_it_stands_and_however_it_is_listed(term):
    mesh, generator = sphere(2, noise=0.05), torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator).double()).Q
    moved = mesh.with_vertices(mesh.vertices @ turn.T + torch.tensor([1.0, -2.0, 3.0]).double())
    order = torch.randperm(len(mesh.vertices), generator=generator)
    listed = Mesh(mesh.vertices[order], order.argsort()[mesh.faces.flip(0).roll(1, 1)])
    for same in (moved, listed):
        torch.testing.assert_close(term(same), term(mesh), rtol=1e-12, atol=0)


@TERMS
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaling_law(term, scale, dtype):
    """An angle has no scale; the Laplacian is an area."""
    mesh = sphere(2, noise=0.05)
    cost = term(mesh.with_vertices((mesh.vertices * scale).to(dtype)))
    expected = term(mesh) * {normal_consistency: 1, laplacian: scale**2}[term]
    torch.testing.assert_close(cost.double(), expected, rtol=1e-4, atol=0)
    assert cost.dtype == dtype


@TERMS
def test_finite_where_faces_have_no_area(term):
    """Points, needles and faces that name a vertex twice; and no mesh at all."""
    mesh = sphere(1)
    flat = mesh.vertices.clone()
    flat[3] = flat[mesh.faces[0, 0]]  # points
    flat[mesh.faces[9, 1]] = flat[mesh.faces[9, [0, 2]]].mean(0)  # a needle
    faces = torch.cat([mesh.faces, torch.tensor([[5, 5, 6]])])
    vertices = flat.float().requires_grad_()
    cost = term(Mesh(vertices, faces))
    (slope,) = torch.autograd.grad(cost, vertices)
    assert cost > 0
    assert slope.isfinite().all()
    assert slope.abs().max() < 1
    assert term(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))).item() == 0


def test_laplacian_of_a_displacement_keeps_details():
    """It asks nothing of a rigid step, and as much of the same dent in any mesh of these faces."""
    rough, smooth = sphere(2, noise=0.05), sphere(2)
    step = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
    assert laplacian(rough.with_vertices((rough.vertices + step) - rough.vertices)).item() == pytest.approx(
        0, abs=1e-28
    )
    dent = torch.zeros_like(rough.vertices).index_add(0, torch.tensor([7]), step[None])
    for mesh in (rough, smooth):
        cost = laplacian(mesh.with_vertices((mesh.vertices + dent) - mesh.vertices))
        torch.testing.assert_close(cost, laplacian(smooth.with_vertices(dent)))


def descend(term, mesh: Mesh, rate: float, steps: int) -> Mesh:
    vertices = mesh.vertices.clone().requires_grad_()
    for _ in range(steps):
        (slope,) = torch.autograd.grad(term(mesh.with_vertices(vertices)), vertices)
        vertices = (vertices - rate * slope).detach().requires_grad_()
    return mesh.with_vertices(vertices.detach())


def roughness(mesh: Mesh) -> float:
    """Standard deviation of the distance to the centre, over its mean."""
    radius = (mesh.vertices - mesh.vertices.mean(0)).norm(dim=-1)
    return (radius.std() / radius.mean()).item()


def tilt(mesh: Mesh) -> float:
    """Mean angle, in degrees, between a face's normal and the direction from the centre."""
    out: Tensor = mesh.corners.mean(1) - mesh.vertices.mean(0)
    return torch.cosine_similarity(mesh.face_normals, out, dim=-1).clamp(-1, 1).acos().mean().rad2deg().item()


@pytest.mark.parametrize(("term", "rate", "steps"), [(laplacian, 160, 20), (normal_consistency, 0.2, 200)])
def test_descent_smooths_a_noisy_sphere(term, rate, steps):
    """Noise of 2 % tilts the faces by 14 degrees; a third of it stays at most, and the sphere its size."""
    noisy = sphere(3, noise=0.02)
    smooth = descend(term, noisy, rate, steps)
    assert roughness(noisy) == pytest.approx(0.02, rel=0.05)
    assert roughness(smooth) < roughness(noisy) / 3
    assert tilt(noisy) > 14
    assert tilt(smooth) < 2.5
    assert smooth.vertices.norm(dim=1).mean().item() == pytest.approx(1, abs=0.01)


@TERMS
def test_threads_sum_the_slopes_of_a_fine_mesh_in_one_order(term):
    """Ten times the same bytes, of float32 on two threads: a run that is made again is the same run."""
    noisy, threads = sphere(6, noise=0.01), torch.get_num_threads()
    vertices = noisy.vertices.float().requires_grad_()
    mesh = noisy.with_vertices(vertices)
    torch.set_num_threads(2)
    try:
        slopes = [torch.autograd.grad(term(mesh), vertices)[0] for _ in range(10)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, slopes[0]) for each in slopes)
