"""Cleaning and simplifying: solids of known volume and topology, spoiled on purpose."""

import math

import fast_simplification
import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from threed.exporters.clean import clean, winding_number
from threed.exporters.simplify import simplify
from threed.renderers.mesh import Mesh


def meshed(shape):
    return Mesh(torch.tensor(np.array(shape.vertices), dtype=torch.float32), torch.tensor(np.array(shape.faces)))


def sphere(detail=3, radius=1.0, centre=(0.0, 0.0, 0.0)):
    shape = trimesh.creation.icosphere(detail, radius)
    shape.apply_translation(centre)
    return meshed(shape)


def torus_of(major, minor):
    return meshed(trimesh.creation.torus(1.0, 0.4, major_sections=major, minor_sections=minor))


def torus():
    return torus_of(64, 32)


def joined(*meshes):
    offsets = np.cumsum([0] + [len(m.vertices) for m in meshes])
    faces = torch.cat([m.faces + int(o) for m, o in zip(meshes, offsets, strict=False)])
    return Mesh(torch.cat([m.vertices for m in meshes]), faces)


def reverse(mesh):
    return Mesh(mesh.vertices, mesh.faces.flip(1))


def area(mesh):
    a, b, c = mesh.corners.unbind(1)
    return float((b - a).cross(c - a, dim=-1).norm(dim=-1).sum() / 2)


def euler(mesh):
    """2 for a sphere, 0 for a torus, the sum for several."""
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False).euler_number


def assert_solid(mesh, volume, rel=1e-5, number=2):
    assert mesh.is_watertight
    assert float(mesh.volume) == pytest.approx(volume, rel=rel)
    assert euler(mesh) == number
    assert len(mesh.faces.unique()) == len(mesh.vertices)


@pytest.mark.parametrize(("shape", "number"), [(sphere(), 2), (torus(), 0)])
def test_a_clean_solid_stays_itself(shape, number):
    result = clean(shape, smoothing=0)
    assert_solid(result, float(shape.volume), number=number)
    assert area(result) == pytest.approx(area(shape), rel=1e-6)
    assert len(result.faces) == len(shape.faces)
    distance, partner = cKDTree(result.corners.mean(1)).query(shape.corners.mean(1))
    assert distance.max() < 1e-6
    assert len(np.unique(partner)) == len(shape.faces)


def test_smoothing_takes_noise_and_keeps_volume():
    shape = sphere(4)
    noise = 0.02 * torch.randn(len(shape.vertices), 1, generator=torch.Generator().manual_seed(0))
    noisy = shape.with_vertices(shape.vertices * (1 + noise))
    smooth = clean(noisy)
    assert_solid(smooth, float(noisy.volume))
    assert smooth.vertices.norm(dim=1).std() < 0.5 * noise.std()
    assert abs(area(smooth) - 4 * math.pi) < 0.3 * abs(area(noisy) - 4 * math.pi)


def test_floaters_go_and_large_bodies_stay():
    large, second, floater = sphere(), sphere(3, 0.6, (3, 0, 0)), sphere(2, 0.2, (0, 3, 0))
    assert_solid(clean(joined(floater, large), smoothing=0), float(large.volume))
    both = clean(joined(floater, large, second), smoothing=0)
    assert_solid(both, float(large.volume + second.volume), number=4)
    kept = clean(joined(floater, large), smallest=0.005, smoothing=0)
    assert_solid(kept, float(large.volume + floater.volume), number=4)


@pytest.mark.parametrize("inner", [sphere(3, 0.5), reverse(sphere(3, 0.5))])
def test_what_another_body_hides_is_dropped(inner):
    assert_solid(clean(joined(sphere(), inner), smoothing=0), float(sphere().volume))


def test_a_body_that_pokes_out_is_kept():
    outer, poking = sphere(), sphere(3, 0.5, (0.8, 0, 0))
    assert_solid(clean(joined(outer, poking), smoothing=0), float(outer.volume + poking.volume), number=4)


@pytest.mark.parametrize("shape", [sphere(), torus()])
def test_inside_out_is_turned(shape):
    assert_solid(clean(reverse(shape), smoothing=0), float(shape.volume), number=euler(shape))


@pytest.mark.parametrize("seed", range(4))
def test_flipped_triangles_are_turned_back(seed):
    shape = torus()
    flipped = torch.rand(len(shape.faces), generator=torch.Generator().manual_seed(seed)) < 0.3
    faces = torch.where(flipped[:, None], shape.faces.flip(1), shape.faces)
    result = clean(Mesh(shape.vertices, faces), smoothing=0)
    assert_solid(result, float(shape.volume), number=0)
    assert len(result.faces) == len(shape.faces)


@pytest.mark.parametrize("seed", range(4))
def test_holes_are_closed(seed):
    """Holes of one triangle and of many, some of which touch in a vertex."""
    shape = sphere(4)
    kept = torch.rand(len(shape.faces), generator=torch.Generator().manual_seed(seed)) > 0.1
    kept &= shape.corners.mean(1)[:, 1] < 0.9
    result = clean(Mesh(shape.vertices, shape.faces[kept]), smoothing=0)
    cap = math.pi / 3 * 0.1**2 * 2.9
    assert result.is_watertight
    assert 4 / 3 * math.pi - 2 * cap < result.volume < 4 / 3 * math.pi


def test_soup_repeats_slivers_and_strays_are_welded():
    shape = sphere()
    vertices = torch.cat([shape.corners.reshape(-1, 3), torch.full((1, 3), 9.0)])
    faces = torch.arange(3 * len(shape.faces)).reshape(-1, 3)
    repeats, slivers, sheet = faces[:40].roll(1, dims=1), faces[:40, [0, 0, 1]], faces[100:101].flip(1)
    result = clean(Mesh(vertices, torch.cat([faces, repeats, slivers])), smoothing=0)
    assert_solid(result, float(shape.volume))
    assert len(result.vertices) == len(shape.vertices)
    # A triangle and its back enclose nothing: both go, and the hole is closed again.
    assert_solid(clean(Mesh(vertices, torch.cat([faces, sheet])), smoothing=0), float(shape.volume))


def test_an_edge_shared_by_four_triangles_is_cut():
    """Two cubes that touch along an edge."""
    cube = trimesh.creation.box((1, 1, 1))
    left, right = meshed(cube), meshed(cube.copy().apply_translation((1, 1, 0)))
    result = clean(joined(left, right), smoothing=0)
    assert result.is_watertight
    assert float(result.volume) == pytest.approx(2, rel=0.35)


def test_errors_name_the_remedy():
    shape = sphere(1)
    broken = shape.with_vertices(shape.vertices.clone().index_fill_(0, torch.tensor([3]), float("nan")))
    with pytest.raises(ValueError, match="not finite; extract it from a finite field"):
        clean(broken)
    with pytest.raises(ValueError, match="no triangles; extract it at a lower threshold"):
        clean(Mesh(shape.vertices, shape.faces[:0]))
    with pytest.raises(ValueError, match=r"no solid body is left of .* lower threshold"):
        clean(Mesh(shape.vertices * torch.tensor([1.0, 1.0, 0.0]), shape.faces))


def test_winding_number_is_one_inside_and_zero_outside():
    points = np.array([[0, 0, 0], [0.4, 0.3, -0.4], [0.6, 0, 0], [9, 9, 9.0]])
    corners = np.array(trimesh.creation.box((1, 1, 1)).triangles)
    np.testing.assert_allclose(winding_number(points, corners), [1, 1, 0, 0], atol=1e-12)


@pytest.mark.parametrize(("shape", "number"), [(sphere(5), 2), (torus(), 0)])
def test_simplify_keeps_the_solid(shape, number):
    result = simplify(shape, 600)
    assert 500 < len(result.faces) <= 600
    assert_solid(result, float(shape.volume), rel=0.02, number=number)
    assert area(result) == pytest.approx(area(shape), rel=0.02)


def test_simplify_takes_off_the_fins_of_noisy_surfaces():
    """A rough isosurface, on which plain quadric collapses leave edges with four triangles."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, 40)] * 3, indexing="ij"))
    noise = 0.03 * np.random.default_rng(0).normal(size=grid.shape[1:])
    surface = marching_cubes(np.linalg.norm(grid, axis=0) - 1 + noise, 0, spacing=[2.4 / 39] * 3)
    shape = clean(Mesh(torch.from_numpy(surface[0].copy()), torch.from_numpy(surface[1].astype(int))), smoothing=2)
    torn = []
    for budget in (300, 1000, 3000):
        plain = fast_simplification.simplify(shape.vertices.numpy(), shape.faces.numpy(), target_count=budget, agg=5)
        torn.append(not Mesh(*map(torch.from_numpy, plain)).is_watertight)
        result = simplify(shape, budget)
        assert 0.9 * budget < len(result.faces) <= budget
        assert result.is_watertight
        assert float(result.volume) == pytest.approx(float(shape.volume), rel=0.02)
    assert any(torn)


def test_simplify_says_when_the_budget_would_tear():
    with pytest.warns(UserWarning, match=r"kept \d+ triangles: 4 would tear the surface"):
        result = simplify(torus_of(24, 12), 4)
    assert_solid(result, float(torus_of(24, 12).volume), rel=0.05, number=0)
    tetrahedron = meshed(trimesh.convex.convex_hull(np.vstack([np.zeros(3), np.eye(3)])))
    assert simplify(tetrahedron, 4) is tetrahedron
    with pytest.raises(ValueError, match="cannot simplify to 3 triangles"):
        simplify(tetrahedron, 3)


def test_the_same_input_gives_the_same_surface():
    shape = joined(sphere(4), sphere(3, 0.5, (2, 0, 0)))
    first, second = (simplify(clean(shape), 500) for _ in range(2))
    assert torch.equal(first.vertices, second.vertices)
    assert torch.equal(first.faces, second.faces)
