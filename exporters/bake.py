"""Fields become textures: every texel asks the field at its own point of the surface.

Row 0 of a texture is v = 0. The centre of the texel in column i is at u = (i + 0.5) / texture_size. Texels off the
charts repeat the nearest one that is on, so neither filters nor mip-maps bring in a foreign colour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional

from threed.renderers.mesh import Material, Mesh
from threed.renderers.ops import ops
from threed.renderers.tangents import corner_tangents, tangent_from_world
from threed.renderers.torch_ops import Fragments

Colour = Callable[[Float[Tensor, "N 3"], Float[Tensor, "N 3"]], Float[Tensor, "N 3"]]

# A texel that the surface only grazes takes its point from beside its centre. Steps in texels, the centre first.
STEPS = [(0.0, 0.0), (-0.45, -0.45), (0.45, 0.45), (-0.45, 0.45), (0.45, -0.45)]
LOWEST = 0.01  # z of a normal in tangent space; glTF has no room for those that point into the surface


@dataclass(frozen=True)
class Look:
    """What a field says of points of a surface, where it says it; colours and numbers as in `mesh.Material`."""

    base_color: Float[Tensor, "N 3"]
    roughness_metallic: Float[Tensor, "N 2"] | None = None
    normal: Float[Tensor, "N 3"] | None = None  # in the world, of any length


@dataclass(frozen=True)
class Texels:
    """The surface under a texture: the texels that any triangle touches, in reading order."""

    covered: Bool[Tensor, "H W"]
    points: Float[Tensor, "N 3"]  # metres
    normals: Float[Tensor, "N 3"]  # unit, interpolated
    tangents: Float[Tensor, "N 4"]  # interpolated, see `tangents`


def bake(
    mesh: Mesh,
    uvs: Float[Tensor, "T 2"],
    uv_faces: Int[Tensor, "F 3"],
    colour: Colour,
    texture_size: int,
    chunk: int = 1 << 17,
) -> Float[Tensor, "H W 3"]:
    """Display sRGB in [0, 1]; `colour` takes points in metres and unit normals, at most `chunk` at once.

    Raises ValueError when the layout touches no texel.
    """
    look = lambda points, normals: Look(colour(points, normals))  # noqa: E731
    return bake_material(mesh, uvs, uv_faces, look, texture_size, chunk).base_color


@torch.no_grad()
def bake_material(
    mesh: Mesh,
    uvs: Float[Tensor, "T 2"],
    uv_faces: Int[Tensor, "F 3"],
    look: Callable[[Float[Tensor, "N 3"], Float[Tensor, "N 3"]], Look],
    texture_size: int,
    chunk: int = 1 << 17,
) -> Material:
    """All textures that `look` has values for, from one question a point; otherwise as `bake`.

    A normal that points into the smooth surface is raised until it grazes it.
    """
    surface = texels(mesh, uvs, uv_faces, texture_size)
    nearest = nearest_covered(surface.covered)
    pieces = zip(surface.points.split(chunk), surface.normals.split(chunk), strict=True)
    looks = [look(points, normals) for points, normals in pieces]
    base_color = torch.cat([x.base_color for x in looks]).clamp(0, 1)
    shine = [x.roughness_metallic for x in looks if x.roughness_metallic is not None]
    bumps = [x.normal for x in looks if x.normal is not None]
    return Material(
        base_color.to(surface.points)[nearest],
        roughness_metallic=torch.cat(shine).clamp(0, 1).to(surface.points)[nearest] if shine else None,
        normal=_normal_map(torch.cat(bumps).to(surface.points), surface)[nearest] if bumps else None,
    )


@torch.no_grad()
def texels(mesh: Mesh, uvs: Float[Tensor, "T 2"], uv_faces: Int[Tensor, "F 3"], texture_size: int) -> Texels:
    """The point of the surface under each texel, and its frame."""
    backend = ops(uvs.device)
    layouts = (_clip_from_uv(uvs - uvs.new_tensor(step) / texture_size) for step in STEPS)
    found = reduce(_first, (backend.rasterize(clip, uv_faces, texture_size, texture_size) for clip in layouts))
    covered = found.face[0] >= 0
    attributes = torch.cat([mesh.vertices, mesh.vertex_normals], dim=-1)
    points, normals = backend.interpolate(attributes, mesh.faces, found)[0][covered].split(3, dim=-1)
    tangents = corner_tangents(mesh, uvs, uv_faces).reshape(-1, 4)
    corners = torch.arange(len(tangents), device=tangents.device).view(-1, 3)
    tangents = backend.interpolate(tangents, corners, found)[0][covered]
    return Texels(covered, points, functional.normalize(normals, dim=-1), tangents)


def nearest_covered(covered: Bool[Tensor, "H W"]) -> Int[Tensor, "H W"]:
    """The number of the nearest covered texel, in reading order. Raises ValueError when there is none."""
    if not covered.any():
        raise ValueError("no texel is covered; unwrap the mesh, or use a larger texture")
    rows, columns = distance_transform_edt(~covered.cpu().numpy(), return_distances=False, return_indices=True)
    number = covered.reshape(-1).cumsum(0).view(covered.shape) - 1
    return number[torch.from_numpy(rows).to(covered.device).long(), torch.from_numpy(columns).to(covered.device).long()]


def _normal_map(normals: Float[Tensor, "N 3"], surface: Texels) -> Float[Tensor, "N 3"]:
    """World normals in the tangent space of their texels."""
    vectors = tangent_from_world(functional.normalize(normals, dim=-1), surface.normals, surface.tangents)
    return functional.normalize(torch.cat([vectors[:, :2], vectors[:, 2:].clamp(min=LOWEST)], dim=-1), dim=-1)


def _clip_from_uv(uvs: Float[Tensor, "T 2"]) -> Float[Tensor, "1 T 4"]:
    """The layout as a flat drawing in clip space, whose y grows upward."""
    u, v = uvs.unbind(-1)
    return torch.stack([u * 2 - 1, 1 - v * 2, torch.zeros_like(u), torch.ones_like(u)], dim=-1)[None]


def _first(one: Fragments, other: Fragments) -> Fragments:
    """What `one` sees, and what `other` sees where `one` sees nothing."""
    seen = one.face >= 0
    return Fragments(
        torch.where(seen, one.face, other.face),
        torch.where(seen[..., None], one.barycentric, other.barycentric),
        torch.where(seen, one.depth, other.depth),
    )
