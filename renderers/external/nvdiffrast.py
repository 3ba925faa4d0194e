"""Rasterizing, interpolation and textures by nvdiffrast (Laine et al. 2020, arXiv 2011.03277), single precision.

Written from its documentation. Clip space is OpenGL's for both, yet row 0 of its pictures is the bottom, so that y
changes its sign on the way in; triangles are drawn from both sides. Its pictures have u, v, z/w and the number of the
triangle plus one, all 0 where there is none. (u, v) weigh the first two corners of a triangle, as here. Numbers are
kept as floats, which tell 2^24 of them apart. Texture coordinates are alike: u along a row, v from row 0 on.

It snaps vertices to a lattice of its own: pixels whose centre lies nearly on an edge may see another triangle. Its
antialiasing is not taken: it mixes pixels by edges of the triangles that they see, this project's by all silhouettes,
and where triangles are about as small as pixels little is left of its gradient. Level-of-detail look-ups in pictures
whose sides are no powers of two, which it refuses, are the project's own.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from threed.renderers.ops import own
from threed.renderers.torch_ops import Fragments, Mipmap
from threed.renderers.torch_ops.texture import single_level

__all__ = ["interpolate", "rasterize", "texture"]

MOST_FACES = 2**24 - 1  # that floats number from 1 on
BOUNDARIES = {"clamp": "clamp", "repeat": "wrap"}


@torch.no_grad()
def rasterize(clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], height: int, width: int) -> Fragments:
    """The nearest triangle at every pixel. Raises IndexError for faces between missing vertices."""
    if not len(clip) or not len(faces):
        return own(clip.device).rasterize(clip, faces, height, width)
    if len(faces) > MOST_FACES:
        raise ValueError(f"{len(faces)} faces; nvdiffrast draws at most {MOST_FACES} at once")
    low, high = int(faces.min()), int(faces.max())
    if low < 0 or high >= clip.shape[1]:
        raise IndexError(f"faces of vertices {low} to {high}, and there are {clip.shape[1]}")
    import nvdiffrast.torch as dr

    upright = clip.float() * clip.new_tensor([1, -1, 1, 1], dtype=torch.float32)
    seen, _ = dr.rasterize(_context(clip.device), upright.contiguous(), faces.int().contiguous(), (height, width))
    u, v, depth, number = seen.unbind(-1)
    face = number.round().int() - 1
    return Fragments(face, torch.stack([u, v], dim=-1), torch.where(face < 0, 1, depth))


def interpolate(
    attribute: Float[Tensor, "V C"] | Float[Tensor, "B V C"], faces: Int[Tensor, "F 3"], fragments: Fragments
) -> Float[Tensor, "B H W C"]:
    """Vertex attributes at the pixels, 0 where there is no surface; differentiable to them and the barycentrics."""
    if not fragments.face.numel() or not len(faces):
        return own(attribute.device).interpolate(attribute, faces, fragments)
    import nvdiffrast.torch as dr

    number = (fragments.face + 1).to(fragments.depth)
    seen = torch.cat([fragments.barycentric, fragments.depth[..., None], number[..., None]], dim=-1)
    attribute = attribute if attribute.dim() == 3 else attribute[None]  # one for all views
    found: Tensor
    found, _ = dr.interpolate(attribute.contiguous(), seen, faces.int().contiguous())
    return found


def texture(
    image: Float[Tensor, "Ht Wt C"] | Mipmap,
    uv: Float[Tensor, "*P 2"],
    wrap: Literal["clamp", "repeat"] = "clamp",
    lod: Float[Tensor, "*#P"] | None = None,
) -> Float[Tensor, "*P C"]:
    """Bilinear look-up, in the picture itself or, at a level of detail, in its mipmap: trilinear.

    Levels below 0 are the picture, those above the last the last. Differentiable to the picture, `uv` and `lod`. Who
    looks up the same picture often hands on its mipmap.
    """
    size = image.sizes[0] if isinstance(image, Mipmap) else image.shape[:2]
    if not uv.numel() or (lod is not None and any(each.bit_count() != 1 for each in size)):
        return own(uv.device).texture(image, uv, wrap, lod)
    import nvdiffrast.torch as dr

    if isinstance(image, Tensor):
        image = single_level(image) if lod is None else own(uv.device).mipmap(image)
    first, *smaller = (level[None].contiguous() for level in image.levels)
    how: dict[str, Any] = {"filter_mode": "linear"}
    if lod is not None and smaller:
        level = torch.where(lod > 0, lod, 0).clamp(max=len(smaller)).expand(uv.shape[:-1])
        how = {"filter_mode": "linear-mipmap-linear", "mip": smaller, "mip_level_bias": level.reshape(1, 1, -1)}
    found = dr.texture(first, uv.reshape(1, 1, -1, 2), boundary_mode=BOUNDARIES[wrap], **how)
    return found.view(*uv.shape[:-1], first.shape[-1])


@cache
def _context(device: torch.device) -> Any:
    """What it draws with, kept because making one takes long."""
    import nvdiffrast.torch as dr

    return dr.RasterizeCudaContext(device=device)
