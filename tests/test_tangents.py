"""Tangents: closed forms on planes and spheres, a brute-force twin, and frames that lead there and back."""

import math

import numpy as np
import pytest
import torch
import trimesh

from threed.exporters.unwrap import unwrap
from threed.renderers.mesh import Mesh
from threed.renderers.tangents import corner_tangents, frames, mirrored, tangent_from_world, world_from_tangent

# A square that faces +Z.
SQUARE = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]]))
COLUMNS = 96  # of the globe


def globe(u_scale, rows=48, columns=COLUMNS):
    """A unit sphere with welded positions whose u is the longitude (eastward) and v the angle from the north pole."""
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    polar, longitude = np.pi * v, 2 * np.pi * (u % 1)
    points = np.stack([np.sin(polar) * np.sin(longitude), np.cos(polar), np.sin(polar) * np.cos(longitude)], axis=-1)
    index = np.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    uv_faces = np.concatenate([np.stack([a, b, c], -1)[:-1].reshape(-1, 3), np.stack([a, c, d], -1)[1:].reshape(-1, 3)])
    welded, new = np.unique(points.reshape(-1, 3).round(9), axis=0, return_inverse=True)
    mesh = Mesh(torch.tensor(welded).float(), torch.tensor(new.reshape(-1)[uv_faces]))
    uvs = torch.tensor(np.stack([u * u_scale, v], -1).reshape(-1, 2)).float()
    return mesh, uvs, torch.tensor(uv_faces)


def unwrapped(shape):
    mesh = Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(np.array(shape.faces)))
    return mesh, *unwrap(mesh, 128)


@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0, -1.3])
@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_a_plane_has_a_closed_form(angle, flip):
    """u = (cos a, sin a) . p, v grows to its right: the gradient of u is the tangent; a flip turns it and the sign."""
    cos, sin = math.cos(angle), math.sin(angle)
    layout = torch.tensor([[flip * cos, flip * sin], [sin, -cos]])
    uvs = 0.5 + 0.3 * SQUARE.vertices[:, :2] @ layout.T
    expected = torch.tensor([flip * cos, flip * sin, 0, flip]).expand(2, 3, 4)
    torch.testing.assert_close(corner_tangents(SQUARE, uvs, SQUARE.faces), expected)
    assert mirrored(uvs, SQUARE.faces).tolist() == [flip < 0] * 2


def test_shear_keeps_the_direction_in_which_u_grows_along_constant_v():
    layout = torch.tensor([[1.0, 0.5], [0.0, -1.0]])
    uvs = SQUARE.vertices[:, :2] @ layout.T
    expected = torch.tensor([1.0, 0, 0, 1]).expand(2, 3, 4)  # along it v is constant and u grows
    torch.testing.assert_close(corner_tangents(SQUARE, uvs, SQUARE.faces), expected)


@pytest.mark.parametrize("u_scale", [1.0, -1.0])
def test_on_a_globe_the_tangent_points_east_and_the_bitangent_north(u_scale):
    mesh, uvs, uv_faces = globe(u_scale)
    assert mesh.is_watertight
    assert mesh.volume > 0
    tangents = corner_tangents(mesh, uvs, uv_faces)
    points = mesh.corners
    temperate = points[..., 1].abs() < 0.8
    ring = torch.nn.functional.normalize(points[..., [0, 2]], dim=-1)
    east = torch.stack([ring[..., 1], torch.zeros_like(ring[..., 0]), -ring[..., 0]], dim=-1)
    north = points.cross(east, dim=-1)
    found = frames(mesh.vertex_normals[mesh.faces], tangents)[temperate]
    half_a_column = math.pi / COLUMNS  # what is missing beyond the seam turns the mean by less
    torch.testing.assert_close(found[:, 0], u_scale * east[temperate], atol=half_a_column, rtol=0)
    torch.testing.assert_close(found[:, 1], north[temperate], atol=half_a_column, rtol=0)
    assert (tangents[..., 3] == u_scale).all()


def test_halves_that_share_their_uvs_mirrored_do_not_share_tangents():
    """A square whose two triangles, left and right of its diagonal, show the same half of the picture."""
    uvs, uv_faces = torch.tensor([[0.0, 1], [1, 1], [1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 1]])
    right, up = torch.tensor([1.0, 0, 0, 1]), torch.tensor([0.0, 1, 0, -1])
    expected = torch.stack([right.expand(3, 4), up.expand(3, 4)])
    torch.testing.assert_close(corner_tangents(SQUARE, uvs, uv_faces), expected)


def flattened(vector, normal):
    part = vector - vector @ normal * normal
    return part / np.linalg.norm(part)


def twin(mesh, uvs, uv_faces):
    """The definition, corner by corner, in double precision."""
    vertices, normals = mesh.vertices.double().numpy(), mesh.vertex_normals.double().numpy()
    faces, uv = mesh.faces.numpy(), uvs.double().numpy()[uv_faces.numpy()]
    sums, keys, signs = {}, {}, {}
    for f, corners in enumerate(faces):
        along = np.linalg.solve(
            np.stack([uv[f, 1] - uv[f, 0], uv[f, 2] - uv[f, 0]]), vertices[corners[1:]] - vertices[corners[0]]
        )
        east, south = along / np.linalg.norm(along, axis=1, keepdims=True)
        up = np.cross(vertices[corners[1]] - vertices[corners[0]], vertices[corners[2]] - vertices[corners[0]])
        signs[f] = 1.0 if np.cross(up, east) @ -south > 0 else -1.0
        for k, corner in enumerate(corners):
            n = normals[corner]
            a, b = (flattened(vertices[corners[(k + i) % 3]] - vertices[corner], n) for i in (1, 2))
            keys[f, k] = (corner, *uvs[uv_faces[f, k]].tolist(), signs[f])
            sums[keys[f, k]] = sums.get(keys[f, k], 0) + np.arccos(np.clip(a @ b, -1, 1)) * flattened(east, n)
    return np.array(
        [
            [[*(sums[keys[f, k]] / np.linalg.norm(sums[keys[f, k]])), signs[f]] for k in range(3)]
            for f in range(len(faces))
        ]
    )


def test_the_vectorised_mean_is_the_definition():
    mesh, uvs, uv_faces = unwrapped(trimesh.creation.torus(0.7, 0.3, major_sections=16, minor_sections=12))
    half = len(uv_faces) // 2
    uv_faces = torch.cat([uv_faces[:half], uv_faces[half:] + len(uvs)])
    uvs = torch.cat([uvs, uvs * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])])  # half of it mirrored
    found = corner_tangents(mesh, uvs, uv_faces).numpy()
    assert set(np.unique(found[..., 3])) == {-1.0, 1.0}
    np.testing.assert_allclose(found, twin(mesh, uvs, uv_faces), atol=2e-3)


def test_corners_with_indices_of_their_own_share_their_tangents():
    mesh, uvs, uv_faces = unwrapped(trimesh.creation.icosphere(2))
    apart = torch.arange(uv_faces.numel()).view(-1, 3)
    again = corner_tangents(mesh, uvs[uv_faces.reshape(-1)], apart)
    torch.testing.assert_close(again, corner_tangents(mesh, uvs, uv_faces))


def test_a_layout_without_area_still_has_frames():
    mesh, _, _ = unwrapped(trimesh.creation.icosphere(1))
    tangents = corner_tangents(mesh, torch.full((1, 2), 0.5), torch.zeros_like(mesh.faces))
    normals = mesh.vertex_normals[mesh.faces]
    torch.testing.assert_close(tangents[..., :3].norm(dim=-1), torch.ones(len(mesh.faces), 3))
    torch.testing.assert_close((tangents[..., :3] * normals).sum(-1), torch.zeros(len(mesh.faces), 3))
    assert (tangents[..., 3] == 1).all()


def test_frames_lead_into_the_world_and_back():
    generator = torch.Generator().manual_seed(0)
    normals, vectors = torch.nn.functional.normalize(torch.randn(2, 500, 3, generator=generator), dim=-1)
    sign = torch.randint(2, (500, 1), generator=generator) * 2.0 - 1
    tangents = torch.cat([torch.randn(500, 3, generator=generator), 0.9 * sign], dim=-1)  # as interpolation leaves them
    frame = frames(normals, tangents)
    torch.testing.assert_close(frame @ frame.mT, torch.eye(3).expand(500, 3, 3))
    torch.testing.assert_close(torch.linalg.det(frame), sign[:, 0])
    torch.testing.assert_close(frame[:, 1], sign * normals.cross(frame[:, 0], dim=-1))
    there = world_from_tangent(vectors, normals, tangents)
    torch.testing.assert_close(tangent_from_world(there, normals, tangents), vectors)
    upward = torch.tensor([0.0, 0, 1]).expand(500, 3)
    torch.testing.assert_close(world_from_tangent(upward, normals, tangents), normals)
    torch.testing.assert_close(tangent_from_world(normals, normals, tangents), upward)
    torch.testing.assert_close(world_from_tangent(upward.roll(1, -1), normals, tangents), frame[:, 0])
