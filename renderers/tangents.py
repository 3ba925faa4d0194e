"""Tangent space: the frame on a surface in which a normal map is written.

The tangent points where u grows, the bitangent up in the picture (where v falls, see `mesh`), the normal out of the
surface, as glTF 2.0 has it (sections 3.7.2.1 and 3.9.3). Tangents have four components: a unit vector and the sign of
the bitangent, which is sign * normal x tangent; the sign is -1 where the layout shows the surface mirrored.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from threed.renderers.mesh import Mesh


@torch.no_grad()
def corner_tangents(mesh: Mesh, uvs: Float[Tensor, "T 2"], uv_faces: Int[Tensor, "F 3"]) -> Float[Tensor, "F 3 4"]:
    """Tangents perpendicular to the vertex normals, by MikkTSpace's rule (Mikkelsen 2008), which glTF names.

    A corner takes the mean over the faces around its vertex that share its UV and its sign, weighted by their angles
    there. Unlike MikkTSpace, faces that touch in that vertex alone count too. Where the layout has no area to tell the
    direction from, the tangent is any perpendicular one.
    """
    normals = mesh.vertex_normals[mesh.faces]
    to_next, to_last = mesh.corners.roll(-1, 1) - mesh.corners, mesh.corners.roll(1, 1) - mesh.corners
    angle = (_tangential(to_next, normals) * _tangential(to_last, normals)).sum(-1, keepdim=True).clamp(-1, 1).acos()
    v = uvs[uv_faces][..., 1:]
    grows = (v[:, 2] - v[:, 0]) * to_next[:, 0] - (v[:, 1] - v[:, 0]) * to_last[:, 0]
    grows = functional.normalize(grows * _turn(uvs, uv_faces).sign()[:, None], dim=-1)
    grows = _tangential(grows[:, None].expand_as(normals), normals)

    flipped = mirrored(uvs, uv_faces)[:, None]
    place = uvs.unique(dim=0, return_inverse=True)[1]  # by value: a seam in the indices alone is none
    key = (mesh.faces * len(uvs) + place[uv_faces]) * 2 + flipped
    unique, group = key.unique(return_inverse=True)
    total = normals.new_zeros(len(unique), 3).index_add(0, group.reshape(-1), (angle * grows).reshape(-1, 3))
    sign = torch.where(flipped, -1.0, 1.0).to(normals).expand(-1, 3)
    return torch.cat([_unit(total[group], normals), sign[..., None]], dim=-1)


def mirrored(uvs: Float[Tensor, "T 2"], uv_faces: Int[Tensor, "F 3"]) -> Bool[Tensor, "F"]:
    """Faces that the picture shows as if seen from behind."""
    return _turn(uvs, uv_faces) > 0  # v grows downward


def frames(normals: Float[Tensor, "*P 3"], tangents: Float[Tensor, "*P 4"]) -> Float[Tensor, "*P 3 3"]:
    """Orthonormal frames on unit normals, in rows: tangent, bitangent, normal.

    Tangents that were interpolated between corners are made perpendicular to the normals again.
    """
    tangent = _unit(_tangential(tangents[..., :3], normals), normals)
    bitangent = tangents[..., 3:].sign() * normals.cross(tangent, dim=-1)
    return torch.stack([tangent, bitangent, normals], dim=-2)


def world_from_tangent(
    vectors: Float[Tensor, "*P 3"], normals: Float[Tensor, "*P 3"], tangents: Float[Tensor, "*P 4"]
) -> Float[Tensor, "*P 3"]:
    """What a normal map says, in the space of `normals` and `tangents`; (0, 0, 1) is the normal itself."""
    return (frames(normals, tangents) * vectors[..., None]).sum(-2)


def tangent_from_world(
    vectors: Float[Tensor, "*P 3"], normals: Float[Tensor, "*P 3"], tangents: Float[Tensor, "*P 4"]
) -> Float[Tensor, "*P 3"]:
    """The inverse of `world_from_tangent`."""
    return (frames(normals, tangents) * vectors[..., None, :]).sum(-1)


def _turn(uvs: Float[Tensor, "T 2"], uv_faces: Int[Tensor, "F 3"]) -> Float[Tensor, "F"]:
    """Twice the signed area of the triangles in the layout."""
    a, b, c = uvs[uv_faces].unbind(1)
    return (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]


def _tangential(vectors: Float[Tensor, "*P 3"], normals: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 3"]:
    """Unit vectors along the part of `vectors` that is perpendicular to unit normals; zero where there is none."""
    return functional.normalize(vectors - (vectors * normals).sum(-1, keepdim=True) * normals, dim=-1)


def _unit(vectors: Float[Tensor, "*P 3"], normals: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 3"]:
    """Unit vectors along `vectors`; where those are zero, any that is perpendicular to the normal."""
    axis = functional.one_hot(normals.abs().argmin(-1), 3).to(normals)
    lost = (vectors == 0).all(-1, keepdim=True)
    return torch.where(lost, _tangential(axis, normals), functional.normalize(vectors, dim=-1))
