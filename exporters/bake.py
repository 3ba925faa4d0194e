"""A colour field becomes a texture: every texel asks the field at its own point of the surface.

Row 0 of the texture is v = 0. The centre of the texel in column i is at u = (i + 0.5) / texture_size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from threed.renderers.mesh import Mesh
from threed.renderers.ops import ops
from threed.renderers.torch_ops import Fragments

Colour = Callable[[Float[Tensor, "N 3"], Float[Tensor, "N 3"]], Float[Tensor, "N 3"]]

# A texel that the surface only grazes takes its point from beside its centre. Steps in texels, the centre first.
STEPS = [(0.0, 0.0), (-0.45, -0.45), (0.45, 0.45), (-0.45, 0.45), (0.45, -0.45)]


def bake(
    mesh: Mesh,
    uvs: Float[Tensor, "T 2"],
    uv_faces: Int[Tensor, "F 3"],
    colour: Colour,
    texture_size: int,
    chunk: int = 1 << 17,
) -> Float[Tensor, "H W 3"]:
    """Display sRGB in [0, 1]; `colour` takes points in metres and unit normals, at most `chunk` at once.

    Texels off the charts repeat the nearest one that is on, so neither filters nor mip-maps bring in a foreign colour.
    """
    points, normals, covered = surface_points(mesh, uvs, uv_faces, texture_size)
    with torch.no_grad():
        pieces = zip(points[covered].split(chunk), normals[covered].split(chunk), strict=True)
        colours = torch.cat([colour(p, n).clamp(0, 1) for p, n in pieces])
    texture = points.new_zeros(texture_size, texture_size, 3)
    texture[covered] = colours.to(texture)
    return dilate(texture, covered)


def surface_points(
    mesh: Mesh, uvs: Float[Tensor, "T 2"], uv_faces: Int[Tensor, "F 3"], texture_size: int
) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W 3"], Bool[Tensor, "H W"]]:
    """The point of the surface and its unit normal under each texel, and which texels any triangle touches."""
    backend = ops(uvs.device)
    attributes = torch.cat([mesh.vertices, mesh.vertex_normals], dim=-1).detach()
    layouts = (_clip_from_uv(uvs.detach() - uvs.new_tensor(step) / texture_size) for step in STEPS)
    found = reduce(_first, (backend.rasterize(clip, uv_faces, texture_size, texture_size) for clip in layouts))
    points, normals = backend.interpolate(attributes, mesh.faces, found)[0].split(3, dim=-1)
    covered = found.face[0] >= 0
    return points, torch.nn.functional.normalize(normals, dim=-1), covered


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


def dilate(texture: Float[Tensor, "H W C"], covered: Bool[Tensor, "H W"]) -> Float[Tensor, "H W C"]:
    """Every texel that is not covered repeats the nearest one that is. Raises ValueError when none is."""
    if not covered.any():
        raise ValueError("no texel is covered; unwrap the mesh, or use a larger texture")
    rows, columns = distance_transform_edt(~covered.cpu().numpy(), return_distances=False, return_indices=True)
    return texture[
        torch.from_numpy(rows).to(texture.device).long(), torch.from_numpy(columns).to(texture.device).long()
    ]
