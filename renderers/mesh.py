"""Triangle meshes and textured assets.

Faces wind counter-clockwise seen from outside. `uvs` follow glTF: u right, v down, (0, 0) the upper left texel corner.
Positions are welded; UVs are indexed per corner (`uv_faces`), so seams cost no duplicate positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNIT_SLACK = 0.01  # how far from 1 a normal map's lengths may be; 8 bits a component leave up to sqrt(3) / 255


@dataclass(frozen=True)
class Mesh:
    vertices: Float[Tensor, "V 3"]  # metres
    faces: Int[Tensor, "F 3"]  # int64

    @property
    def corners(self) -> Float[Tensor, "F 3 3"]:
        return self.vertices[self.faces]

    @property
    def face_normals(self) -> Float[Tensor, "F 3"]:
        """Unit normals; zero where a triangle has no area."""
        return torch.nn.functional.normalize(self._area_vectors(), dim=-1)

    @property
    def vertex_normals(self) -> Float[Tensor, "V 3"]:
        """Unit normals, the area-weighted mean of the faces around a vertex."""
        total = torch.zeros_like(self.vertices)
        total = total.index_add(0, self.faces.reshape(-1), self._area_vectors().repeat_interleave(3, dim=0))
        return torch.nn.functional.normalize(total, dim=-1)

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


@dataclass(frozen=True)
class Asset:
    """What leaves the program: one mesh, one material, one name."""

    name: str
    mesh: Mesh
    uvs: Float[Tensor, "T 2"]
    uv_faces: Int[Tensor, "F 3"]  # int64, indices into `uvs`, corner by corner beside `mesh.faces`
    material: Material
