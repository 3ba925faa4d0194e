"""Differentiable silhouettes on CUDA; `torch_ops.antialias` says which edges mix which pixels.

The gradients of vertices are summed by atomic additions of float64, in an order that may differ from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from threed.renderers.cuda_ops.launch import launch
from threed.renderers.topology import Edges
from threed.renderers.torch_ops.antialias import on_picture
from threed.renderers.torch_ops.raster import Fragments

NONE = 2**31 - 1  # no edge, in 32 bits


def antialias(
    colour: Float[Tensor, "B H W C"], clip: Float[Tensor, "B V 4"], fragments: Fragments, edges: Edges
) -> Float[Tensor, "B H W C"]:
    """The picture with mixed pixels along silhouettes; differentiable to the colours and the clip-space vertices.

    A mixed pixel stays within the range of the colours that it mixes. Clip z gets no gradient. Raises ValueError where
    the shapes disagree and IndexError for an edge between missing vertices.
    """
    if colour.shape[:3] != fragments.face.shape or len(clip) != len(colour):
        raise ValueError(f"{len(clip)} views and colours {tuple(colour.shape)} of {tuple(fragments.face.shape)} pixels")
    if len(edges.ends) >= NONE:
        raise ValueError(f"{len(edges.ends)} edges; fewer than {NONE} can be drawn at once")
    if len(edges.ends) and int(edges.ends.max()) >= clip.shape[1]:
        raise IndexError(f"an edge of vertex {int(edges.ends.max())} among {clip.shape[1]} vertices")
    return _Antialias.apply(colour, on_picture(clip, *colour.shape[1:3]), fragments, edges)


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, colour: Tensor, points: Tensor, fragments: Fragments, edges: Edges) -> Tensor:
        winner = _visible(points, fragments, edges)
        total = points.new_empty(fragments.face.shape)
        out = torch.empty_like(colour, memory_format=torch.contiguous_format)
        sizes = points.shape[1], *colour.shape[1:]
        given = colour, points, edges.ends, winner, *sizes, total, out
        launch("antialias", "mix", _pixels(colour), *given, rows=len(colour))
        ctx.save_for_backward(colour, points, edges.ends, winner, total, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        colour, points, ends, winner, total, out = ctx.saved_tensors
        to_colour = torch.empty_like(colour, memory_format=torch.contiguous_format)
        to_points = torch.zeros_like(points, memory_format=torch.contiguous_format)
        sizes = points.shape[1], *colour.shape[1:]
        given = colour, points, ends, winner, *sizes, total, out, gradient, to_colour, to_points
        launch("antialias", "mix_backward", _pixels(colour), *given, rows=len(colour))
        return to_colour, to_points, None, None


def _visible(points: Tensor, fragments: Fragments, edges: Edges) -> Tensor:
    """The edge that every pair of pixels is mixed by: int32 [B 2 H W], pairs in a row and pairs one above the other."""
    (views, height, width), (_, vertices, _) = fragments.face.shape, points.shape
    new = torch.empty(0, device=points.device)
    side = new.new_empty(views, len(edges.ends), dtype=torch.int8)
    nearest = new.new_full((views, 2, height, width), -1, dtype=torch.int64)  # above all depths
    winner = new.new_full(nearest.shape, NONE, dtype=torch.int32)
    count, depth = len(edges.ends), fragments.depth
    lines = edges.ends, edges.starts, edges.opposite
    launch("antialias", "silhouettes", count, points, *lines, vertices, side, rows=views)
    given = depth, points, edges.ends, side, fragments.face, vertices, height, width, nearest
    for edge in (None, winner):
        launch("antialias", "search", count, *given, edge, rows=views)
    return winner


def _pixels(colour: Tensor) -> int:
    return colour.shape[1] * colour.shape[2]
