"""Normals of meshes: smooth where neighbours turn little, split along edges, against a twin that loops."""

import math
from dataclasses import replace

import numpy as np
import torch
import trimesh

from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import CREASE, Asset, Material, Mesh


def meshed(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))


def prism(sides: int) -> Mesh:
    return meshed(trimesh.creation.cylinder(0.5, 1.0, sections=sides))


def twin(mesh: Mesh) -> torch.Tensor:
    """Corner by corner, in loops."""
    corners = mesh.corners
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    unit = area / area.norm(dim=-1, keepdim=True)
    found = torch.zeros(len(mesh.faces), 3, 3)
    for face, vertices in enumerate(mesh.faces.tolist()):
        for corner, vertex in enumerate(vertices):
            for other in range(len(mesh.faces)):
                if vertex in mesh.faces[other] and unit[face] @ unit[other] > math.cos(math.radians(CREASE)):
                    found[face, corner] += area[other]
    return found / found.norm(dim=-1, keepdim=True)


def test_corner_normals_are_those_of_the_loops():
    random = torch.Generator().manual_seed(0)
    ball = meshed(trimesh.creation.icosphere(1))
    bumpy = ball.with_vertices(ball.vertices * (1 + 0.5 * torch.rand(len(ball.vertices), 1, generator=random)))
    for mesh in (bumpy, prism(6), prism(24)):
        torch.testing.assert_close(mesh.corner_normals, twin(mesh), atol=1e-5, rtol=0)


def test_a_box_is_flat_and_a_ball_is_smooth():
    box, ball = meshed(trimesh.creation.box()), meshed(trimesh.creation.icosphere(3))
    torch.testing.assert_close(box.corner_normals, box.face_normals[:, None].expand(-1, 3, -1))
    assert torch.equal(ball.corner_normals, ball.vertex_normals[ball.faces])


def test_a_cylinder_is_round_between_sharp_rims():
    mesh = prism(24)
    normals, side = mesh.corner_normals, mesh.face_normals[:, 2].abs() < 0.5
    torch.testing.assert_close(normals[~side], mesh.face_normals[~side][:, None].expand(-1, 3, -1))
    around = torch.nn.functional.normalize(mesh.corners[side] * torch.tensor([1.0, 1.0, 0.0]), dim=-1)
    assert (normals[side] * around).sum(-1).min() > 0.99


def test_an_asset_is_drawn_with_its_edges_and_under_a_normal_map_without():
    box = meshed(trimesh.creation.box())
    uvs, corners = torch.zeros(1, 2), torch.zeros_like(box.faces)
    asset = Asset("box", box, uvs, corners, Material(torch.ones(2, 2, 3)))
    drawn, flat = (surface.render(asset, orbit(8)[1:2], 32, 32, smooth=smooth) for smooth in (True, False))
    torch.testing.assert_close(drawn.normal, flat.normal)
    bent = torch.tensor([0.0, 0.0, 1.0]).expand(2, 2, 3)
    assert torch.equal(asset.normals, box.corner_normals)
    mapped = replace(asset, material=replace(asset.material, normal=bent))
    assert torch.equal(mapped.normals, box.vertex_normals[box.faces])
