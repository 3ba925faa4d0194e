"""The look of one surface on another that lies nearly on it: for fewer triangles, closed holes, a new layout.

Every texel of the new layout asks for the nearest point of the old surface that faces the same way, so that thin walls
keep the colours of their own sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from threed.exporters.bake import Look, bake_material
from threed.exporters.unwrap import unwrap
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.nearest import tree
from threed.renderers.ops import ops
from threed.renderers.tangents import corner_tangents, world_from_tangent

SAMPLES = 200_000  # of the old surface, about
FACING = 0.05  # of its size, that a quarter turn of the normal counts as much as
CANDIDATES = 4


def refitted(asset: Asset, mesh: Mesh, texture_size: int, normal_map: bool = False) -> Asset:
    """The look of `asset` on `mesh`, on a layout of its own; with a normal map if it has one or it is asked for.

    Occlusion is left out: it is the shape's, not the paint's. Raises ValueError when the charts do not fit the texture.
    """
    uvs, uv_faces = unwrap(mesh, texture_size)
    material = bake_material(mesh, uvs, uv_faces, look_of(asset, normal_map), texture_size)
    shine = asset.material.roughness_metallic is not None
    numbers = Material(material.base_color) if shine else asset.material
    material = replace(material, roughness=numbers.roughness, metallic=numbers.metallic)
    return replace(asset, mesh=mesh, uvs=uvs, uv_faces=uv_faces, material=material)


def look_of(asset: Asset, normal_map: bool = False) -> Callable[[Float[Tensor, "N 3"], Float[Tensor, "N 3"]], Look]:
    """What an asset looks like at the points of its surface that are nearest to others, which face the same way."""
    nearest, material = Nearest.of(asset.mesh), asset.material
    tangents = corner_tangents(asset.mesh, asset.uvs, asset.uv_faces) if material.normal is not None else None
    normals = asset.normals

    def look(points: Float[Tensor, "N 3"], facing: Float[Tensor, "N 3"]) -> Look:
        face, weight = nearest(points, facing)
        at = lambda corners: (corners[face] * weight[..., None]).sum(1)  # noqa: E731
        uv, read = at(asset.uvs[asset.uv_faces]), ops(points.device).texture
        shine = None if material.roughness_metallic is None else read(material.roughness_metallic, uv)
        normal = functional.normalize(at(normals), dim=-1) if normal_map or tangents is not None else None
        if normal is not None and tangents is not None and material.normal is not None:
            normal = world_from_tangent(functional.normalize(read(material.normal, uv), dim=-1), normal, at(tangents))
        return Look(read(material.base_color, uv), shine, normal)

    return look


@dataclass(frozen=True)
class Nearest:
    """Points of a surface, of which the nearest ones tell on which triangles to look."""

    mesh: Mesh
    face: Int[Tensor, "S"]  # of each sample
    places: KDTree
    sides: KDTree  # of places and normals
    reach: float  # metres, of a unit normal in `sides`

    @staticmethod
    def of(mesh: Mesh) -> Nearest:
        """Raises ValueError for a surface without area."""
        face, weight = samples(mesh)
        points = (mesh.corners[face] * weight[..., None]).sum(1)
        reach = FACING * float((mesh.vertices.amax(0) - mesh.vertices.amin(0)).max())
        sides = torch.cat([points, reach * mesh.face_normals[face]], dim=-1)
        return Nearest(mesh, face, tree(sides[:, :3].numpy()), tree(sides.numpy()), reach)

    def __call__(
        self, points: Float[Tensor, "N 3"], normals: Float[Tensor, "N 3"]
    ) -> tuple[Int[Tensor, "N"], Float[Tensor, "N 3"]]:
        """The triangle, and where on it, in barycentric coordinates."""
        _, index = self.places.query(points.numpy(), k=1)
        candidates = self.face[torch.from_numpy(index)][:, None].repeat(1, CANDIDATES)
        behind = (self.mesh.face_normals[candidates[:, 0]] * normals).sum(-1) < 0.5
        if behind.any():
            asked = torch.cat([points[behind], self.reach * normals[behind]], dim=-1)
            _, index = self.sides.query(asked.numpy(), k=min(CANDIDATES, self.sides.n))
            found = self.face[torch.from_numpy(np.asarray(index).reshape(len(asked), -1))]
            candidates[behind] = found[:, torch.arange(CANDIDATES) % found.shape[1]]
        best = torch.full((len(points),), torch.inf)
        face, weight = candidates[:, 0].clone(), points.new_zeros(len(points), 3)
        for column in candidates.unbind(1):
            place = closest(points, self.mesh.corners[column])
            away = ((self.mesh.corners[column] * place[..., None]).sum(1) - points).norm(dim=-1)
            away = away + self.reach * (self.mesh.face_normals[column] - normals).norm(dim=-1)
            nearer = away < best
            best, face = torch.where(nearer, away, best), torch.where(nearer, column, face)
            weight = torch.where(nearer[:, None], place, weight)
        return face, weight


def samples(mesh: Mesh) -> tuple[Int[Tensor, "S"], Float[Tensor, "S 3"]]:
    """Triangles by their area, at least once each, and points on them, evenly spread (Roberts's R2 sequence)."""
    area = mesh.areas.double()
    if not area.sum() > 0:
        raise ValueError("the surface has no area; export it again with its full geometry")
    count = (area / area.sum() * SAMPLES).ceil().long().clamp(min=1)
    face = torch.arange(len(count)).repeat_interleave(count)
    number = torch.arange(len(face)) - (count.cumsum(0) - count)[face]
    plastic = 1.32471795724474602596
    steps = torch.tensor([1 / plastic, 1 / plastic**2], dtype=torch.float64)
    uv = (1 / 3 + number[:, None].double() * steps) % 1  # the first in the middle
    uv = torch.where(uv.sum(1, keepdim=True) > 1, 1 - uv, uv)
    return face, torch.cat([1 - uv.sum(1, keepdim=True), uv], dim=1).to(mesh.vertices)


def closest(points: Float[Tensor, "N 3"], corners: Float[Tensor, "N 3 3"]) -> Float[Tensor, "N 3"]:
    """Barycentric coordinates of the nearest point of a triangle each: inside, or else on the nearest side."""
    a, b, c = corners.unbind(1)
    normal = (b - a).cross(c - a, dim=-1)
    square = (normal * normal).sum(-1, keepdim=True)
    opposite = [(c - b).cross(points - b, dim=-1), (a - c).cross(points - c, dim=-1), (b - a).cross(points - a, dim=-1)]
    inside = torch.cat([(x * normal).sum(-1, keepdim=True) for x in opposite], dim=1) / square.clamp(min=1e-30)
    sides, away = [], []
    for i, (start, end) in enumerate(((a, b), (b, c), (c, a))):
        along = end - start
        share = ((points - start) * along).sum(-1) / (along * along).sum(-1).clamp(min=1e-30)
        share = share.clamp(0, 1)[:, None]
        places = [torch.zeros_like(share)] * 3
        places[i], places[(i + 1) % 3] = 1 - share, share
        sides.append(torch.cat(places, dim=1))
        away.append((start + share * along - points).norm(dim=-1))
    pick = torch.stack(away).argmin(0)
    side = torch.stack(sides)[pick, torch.arange(len(points))]
    proper = (inside >= 0).all(1, keepdim=True) & (square > 0)
    return torch.where(proper, inside, side)
