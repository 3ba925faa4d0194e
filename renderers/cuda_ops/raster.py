"""Triangles to pixels on CUDA; `torch_ops.raster` states the rules, and its faces are these.

Depths are compared in single precision, also those of float64 vertices. The gradients of attributes are summed by
atomic additions, in an order that may differ from run to run; all else is the same every time.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from threed.renderers.cuda_ops.launch import launch
from threed.renderers.torch_ops.raster import LARGEST, Fragments, screen_triangles

MOST_FACES = 2**31 - 1  # that 32 bits number


@torch.no_grad()
def rasterize(clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], height: int, width: int) -> Fragments:
    """The nearest triangle at every pixel. Raises IndexError for faces between missing vertices."""
    if len(faces) > MOST_FACES:
        raise ValueError(f"{len(faces)} faces; at most {MOST_FACES} can be drawn at once")
    clip, faces = clip.contiguous(), faces.long().contiguous()
    face = torch.empty(len(clip), height, width, dtype=torch.int32, device=clip.device)
    barycentric, depth = clip.new_empty(*face.shape, 2), clip.new_empty(face.shape)
    points, partial = _snapped(clip, faces, height, width)
    keys = torch.full(face.shape, -1, dtype=torch.int64, device=clip.device)
    for b, view in enumerate(clip):
        whole = points[b], faces, torch.arange(len(faces), device=faces.device)
        screen = screen_triangles(view.double(), faces, height, width) if partial[b] else whole
        _draw(view, faces, *screen, keys[b])
        size = height, width
        launch("raster", "resolve", height * width, view, faces, keys[b], *size, face[b], barycentric[b], depth[b])
    return Fragments(face, barycentric, depth)


def _snapped(clip: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, list[bool]]:
    """Vertices in 1/256 pixel, and which views have a face that needs to be clipped."""
    views, vertices, _ = clip.shape
    points = torch.empty(views, vertices, 2, dtype=torch.int64, device=clip.device)
    tame = torch.empty(views, vertices, dtype=torch.bool, device=clip.device)
    flags = torch.zeros(2, views, dtype=torch.bool, device=clip.device)
    launch("raster", "snap", vertices, clip, height, width, float(LARGEST), points, tame, rows=views)
    launch("raster", "examine", len(faces), faces, tame, vertices, *flags, rows=views)
    partial, missing = flags.tolist()
    if any(missing):
        raise IndexError(f"faces of vertices {int(faces.min())} to {int(faces.max())}, and there are {vertices}")
    return points, partial


def _draw(view: Tensor, faces: Tensor, points: Tensor, triangles: Tensor, owners: Tensor, keys: Tensor) -> None:
    """Keep the least key of every pixel of a view."""
    counts = torch.empty(len(triangles), dtype=torch.int64, device=view.device)
    launch("raster", "count_tiles", len(triangles), points, triangles, *keys.shape, counts)
    if len(triangles):
        ends = counts.cumsum(0)
        given = view, faces, points, triangles, owners, ends, len(triangles)
        launch("raster", "draw", int(ends[-1]), *given, *keys.shape, keys)


def interpolate(
    attribute: Float[Tensor, "V C"] | Float[Tensor, "B V C"], faces: Int[Tensor, "F 3"], fragments: Fragments
) -> Float[Tensor, "B H W C"]:
    """Vertex attributes at the pixels, 0 where there is no surface; differentiable to them and the barycentrics."""
    attribute = attribute.expand(len(fragments.face), -1, -1)
    return _Interpolate.apply(attribute, fragments.barycentric, fragments.face, faces.long())


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attribute: Tensor, barycentric: Tensor, face: Tensor, faces: Tensor) -> Tensor:
        ctx.save_for_backward(attribute, barycentric, face, faces)
        views, vertices, channels = attribute.shape
        out = attribute.new_empty(*face.shape, channels)
        given = attribute, barycentric, face, faces, vertices, channels
        launch("raster", "interpolate", face[0].numel() if views else 0, *given, out, rows=views)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        attribute, barycentric, face, faces = ctx.saved_tensors
        views, vertices, channels = attribute.shape
        wanted = ctx.needs_input_grad[0]
        to_attribute = torch.zeros_like(attribute, memory_format=torch.contiguous_format) if wanted else None
        to_barycentric = torch.empty_like(barycentric, memory_format=torch.contiguous_format)
        given = attribute, barycentric, face, faces, vertices, channels, gradient, to_attribute, to_barycentric
        launch("raster", "interpolate_backward", face[0].numel() if views else 0, *given, rows=views)
        return to_attribute, to_barycentric, None, None


@torch.no_grad()
def screen_derivatives(
    attribute: Float[Tensor, "A C"],
    attribute_faces: Int[Tensor, "F 3"],
    clip: Float[Tensor, "B V 4"],
    faces: Int[Tensor, "F 3"],
    fragments: Fragments,
) -> Float[Tensor, "B H W C 2"]:
    """How an interpolated attribute changes by a pixel to the right and down, exactly; 0 where there is no surface.

    The attribute may have its own vertices, as texture coordinates have along seams. Without a gradient.
    """
    (views, height, width), channels = fragments.face.shape, attribute.shape[1]
    out = attribute.new_empty(views, height, width, channels, 2)
    given = attribute, attribute_faces.long(), clip, faces.long(), fragments.face
    sizes = clip.shape[1], height, width, channels
    launch("raster", "screen_derivatives", height * width, *given, *sizes, out, rows=views)
    return out
