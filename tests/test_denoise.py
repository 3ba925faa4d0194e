"""Bilateral means against closed forms, and solids whose lumps go while their edges stay."""

import numpy as np
import pytest
import torch
import trimesh
from scipy.sparse import csr_array

from threed.exporters.denoise import denoise
from threed.renderers.bilateral import bilateral, touching, within
from threed.renderers.mesh import Mesh


def meshed(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))


def box() -> Mesh:
    """Of sides 1, 0.6 and 0.8, in triangles of a twentieth."""
    shape = trimesh.creation.box((1, 0.6, 0.8))
    while len(shape.faces) < 4000:
        shape = shape.subdivide()
    shape.merge_vertices()
    return meshed(shape)


def lumpy(mesh: Mesh, height: float, seed: int = 0) -> Mesh:
    """With waves of random directions, a fifth of the size long, along the vertex normals."""
    random = torch.Generator().manual_seed(seed)
    ways = torch.nn.functional.normalize(torch.randn(8, 3, generator=random), dim=-1) * 2 * torch.pi / 0.25
    phases = 2 * torch.pi * torch.rand(8, generator=random)
    waves = (mesh.vertices @ ways.T + phases).sin().mean(1, keepdim=True) * 8**0.5
    return mesh.with_vertices(mesh.vertices + height * waves * mesh.vertex_normals)


def turned(mesh: Mesh, truth: Mesh) -> float:
    """Mean angle between the normals of triangles and their true ones, in degrees."""
    cosine = (mesh.face_normals * truth.face_normals).sum(-1).clamp(-1, 1)
    return float(torch.rad2deg(cosine.acos()).mean())


def test_two_unlike_values_mix_as_the_formula_says():
    values = np.array([[0.0, 0.0], [0.3, 0.4]])
    weights = csr_array(np.array([[2.0, 1.0], [3.0, 5.0]]))
    alike = np.exp(-0.25 / (2 * 0.5**2))
    expected = np.stack([alike * values[1] / (2 + alike), 5 * values[1] / (5 + 3 * alike)])
    np.testing.assert_allclose(bilateral(values, weights, 0.5, 1), expected)


def test_steps_stay_and_noise_goes():
    """A noisy step along a line: each side becomes one value, and nothing of one side reaches the other."""
    random = np.random.default_rng(0)
    clean = np.repeat([0.0, 1.0], 50)[:, None]
    near = np.abs(np.subtract.outer(np.arange(100), np.arange(100))) <= 3
    found = bilateral(clean + 0.05 * random.standard_normal((100, 1)), csr_array(near.astype(float)), 0.2, 60)
    assert np.abs(found - clean).max() < 0.06
    assert found[:50].std() < 0.01
    assert found[50:].std() < 0.01


def test_directions_stay_unit_and_those_that_cancel_stay():
    values = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0]])
    weights = csr_array(np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]))
    np.testing.assert_allclose(bilateral(values, weights, 1e9, 1, unit=True), values, atol=1e-9)


def test_triangles_touch_where_they_share_a_vertex():
    faces = np.array([[0, 1, 2], [2, 1, 3], [3, 4, 5], [6, 7, 8]])
    expected = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert (touching(faces).toarray() == expected).all()


def test_points_within_a_radius():
    points = np.array([[0, 0, 0], [1, 1, 1], [1, 1, 3], [9, 9, 9]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert (within(points, 1.8).toarray() == expected).all()


def test_a_lumpy_box_gets_its_planes_and_edges_back():
    truth = box()
    rough = lumpy(truth, 0.02)
    found = denoise(rough)
    assert turned(rough, truth) > 14
    assert turned(found, truth) < 0.55 * turned(rough, truth)
    sharp = (found.face_normals * truth.face_normals).sum(-1) > 0.9  # also in the triangles along the edges
    assert sharp.float().mean() > 0.97
    assert found.is_watertight
    assert float(found.volume) == pytest.approx(float(rough.volume), rel=1e-3)
    assert torch.equal(found.faces, rough.faces)


def test_a_ball_stays_a_ball():
    truth = meshed(trimesh.creation.icosphere(4, 0.5))
    found = denoise(truth)
    torch.testing.assert_close(found.vertices.norm(dim=-1), truth.vertices.norm(dim=-1), atol=0.01, rtol=0)
    assert torch.equal(found.vertices, denoise(truth).vertices)


def test_what_would_not_survive_is_left_alone():
    """Of a surface without volume nothing is asked."""
    flat = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 1]]))
    assert denoise(flat) is flat
