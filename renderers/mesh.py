"""Triangle meshes and textured assets.

Faces wind counter-clockwise seen from outside. `uvs` follow glTF: u right, v down, (0, 0) the upper left texel corner.
Positions are welded; UVs are indexed per corner (`uv_faces`), so seams cost no duplicate positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

CREASE = 40.0  # degrees: neighbours that turn by more have an edge between them
UNIT_SLACK = 0.01  # how far from 1 a normal map's lengths may be; 8 bits a component leave up to sqrt(3) / 255


@dataclass(frozen=True)
class Mesh:
    vertices: Float[Tensor, "V 3"]  # metres
    faces: Int[Tensor, "F 3"]  # int64

    @property
    def corners(self) -> Float[Tensor, "F 3 3"]:
        # Not vertices[faces], whose gradients threads sum in any order, and in twice the time.
        return self.vertices.index_select(0, self.faces.reshape(-1)).view(-1, 3, 3)

    @property
    def face_normals(self) -> Float[Tensor, "F 3"]:
        """Unit normals; zero where a triangle has no area."""
        return torch.nn.functional.normalize(self._area_vectors(), dim=-1)

    @property
    def areas(self) -> Float[Tensor, "F"]:
        return self._area_vectors().norm(dim=-1) / 2

    @property
    def vertex_normals(self) -> Float[Tensor, "V 3"]:
        """Unit normals, the area-weighted mean of the faces around a vertex."""
        total = torch.zeros_like(self.vertices)
        total = total.index_add(0, self.faces.reshape(-1), self._area_vectors().repeat_interleave(3, dim=0))
        return torch.nn.functional.normalize(total, dim=-1)

    @property
    def corner_normals(self) -> Float[Tensor, "F 3 3"]:
        """Unit normals, corner by corner: the area-weighted mean of the faces around that turn by less than CREASE.

        Where no edge is near they are those of the vertex, and so they are at corners of faces without an area.
        """
        (own, other), facing = self._meeting(), self.face_normals
        alike = (facing[own // 3] * facing[other // 3]).sum(-1) > math.cos(math.radians(CREASE))
        corners = self.faces.numel()
        total = self.vertices.new_zeros(corners, 3).index_add(
            0, own, self._area_vectors().index_select(0, other // 3) * alike[:, None]
        )
        sharp = torch.zeros(corners, dtype=torch.bool, device=own.device).index_fill(0, own[~alike], True)
        smooth = self.vertex_normals.index_select(0, self.faces.reshape(-1))
        found = torch.nn.functional.normalize(total, dim=-1)
        return torch.where((sharp & (found.norm(dim=-1) > 0.5))[:, None], found, smooth).view(-1, 3, 3)

    def _meeting(self) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]]:
        """All pairs of corners, counted through the faces, that share a vertex; each with itself, too."""
        vertex = self.faces.reshape(-1)
        count = vertex.bincount(minlength=len(self.vertices))
        order = vertex.argsort(stable=True)
        partners = count[vertex[order]]  # of each corner, in that order
        first = (count.cumsum(0) - count)[vertex[order]]
        begin = partners.cumsum(0) - partners
        place = torch.arange(int(partners.sum()), device=vertex.device) - begin.repeat_interleave(partners)
        return order.repeat_interleave(partners), order[first.repeat_interleave(partners) + place]

    @property
    def volume(self) -> Float[Tensor, ""]:
        """Signed volume by the divergence theorem; positive when a closed surface faces outward."""
        a, b, c = self.corners.unbind(1)
        return (a * b.cross(c, dim=-1)).sum() / 6

    @property
    def is_watertight(self) -> bool:
        """Every edge belongs to exactly two triangles that run along it in opposite directions."""
        edges = torch.cat([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        forward = edges[:, 0] * len(self.vertices) + edges[:, 1]
        backward = edges[:, 1] * len(self.vertices) + edges[:, 0]
        unique = torch.unique(forward)
        return len(edges) > 0 and len(unique) == len(edges) and bool(torch.equal(unique, torch.unique(backward)))

    def with_vertices(self, vertices: Float[Tensor, "V 3"]) -> Mesh:
        return replace(self, vertices=vertices)

    def _area_vectors(self) -> Float[Tensor, "F 3"]:
        a, b, c = self.corners.unbind(1)
        return (b - a).cross(c - a, dim=-1)


@dataclass(frozen=True)
class Material:
    """glTF 2.0's metallic-roughness material (section 3.9.2) with its normal map; all textures are of one size.

    In files the numbers multiply the texture of roughness and metallic; here that has been done already, and the
    numbers stand for the whole surface where there is no such texture.
    """

    base_color: Float[Tensor, "H W 3"]  # display sRGB in [0, 1], as the PNG stores it
    roughness: float = 1.0
    metallic: float = 0.0
    roughness_metallic: Float[Tensor, "H W 2"] | None = None  # linear, each in [0, 1]; green and blue in glTF's PNG
    normal: Float[Tensor, "H W 3"] | None = None  # unit vectors in tangent space, x right, y up, z > 0; see `tangents`
    occlusion: Float[Tensor, "H W 1"] | None = None  # linear, the share of ambient light that arrives


@dataclass(frozen=True)
class Asset:
    """What leaves the program: one mesh, one material, one name."""

    name: str
    mesh: Mesh
    uvs: Float[Tensor, "T 2"]
    uv_faces: Int[Tensor, "F 3"]  # int64, indices into `uvs`, corner by corner beside `mesh.faces`
    material: Material

    @property
    def normals(self) -> Float[Tensor, "F 3 3"]:
        """Unit normals that it is shaded with, corner by corner: smooth under a normal map, which has edges itself."""
        if self.material.normal is not None:
            return self.mesh.vertex_normals[self.mesh.faces]
        return self.mesh.corner_normals
