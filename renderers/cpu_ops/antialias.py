"""Differentiable silhouettes with numba: the time is that of copying the picture and of one look at every edge.

Which edges mix which pixels is decided as in `torch_ops.antialias`, in the same float64 operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from threed.renderers.cpu_ops.launch import kernel, launch
from threed.renderers.topology import Edges
from threed.renderers.torch_ops.antialias import on_picture
from threed.renderers.torch_ops.raster import Fragments


def antialias(
    colour: Float[Tensor, "B H W C"], clip: Float[Tensor, "B V 4"], fragments: Fragments, edges: Edges
) -> Float[Tensor, "B H W C"]:
    """The picture with mixed pixels along silhouettes; differentiable to the colours and the clip-space vertices.

    A mixed pixel stays within the range of the colours that it mixes. Clip z gets no gradient. Raises ValueError where
    the shapes disagree and IndexError for an edge between missing vertices.
    """
    if colour.shape[:3] != fragments.face.shape or len(clip) != len(colour):
        raise ValueError(f"{len(clip)} views and colours {tuple(colour.shape)} of {tuple(fragments.face.shape)} pixels")
    if len(edges.ends) and int(edges.ends.max()) >= clip.shape[1]:
        raise IndexError(f"an edge of vertex {int(edges.ends.max())} among {clip.shape[1]} vertices")
    return _Antialias.apply(colour, on_picture(clip, *colour.shape[1:3]), fragments, edges)


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, colour: Tensor, points: Tensor, fragments: Fragments, edges: Edges) -> Tensor:
        out = colour.clone(memory_format=torch.contiguous_format)
        mixtures = []
        for b in range(len(colour)):
            pair, edge = _visible(points[b], fragments.face[b], fragments.depth[b], edges)
            total = torch.empty(len(pair), dtype=points.dtype)
            launch(_mix, colour[b], points[b], edges.ends, pair, edge, total, out[b])
            mixtures += [pair, edge, total]
        ctx.save_for_backward(colour, points, out, edges.ends, *mixtures)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        colour, points, out, ends, *mixtures = ctx.saved_tensors
        to_colour = gradient.clone(memory_format=torch.contiguous_format)
        to_points = torch.zeros_like(points, memory_format=torch.contiguous_format)
        for b in range(len(colour)):
            view = colour[b], points[b], ends, *mixtures[3 * b : 3 * b + 3], out[b], gradient[b]
            launch(_mix_backward, *view, to_colour[b], to_points[b])
        return to_colour, to_points, None, None


def _visible(points: Tensor, face: Tensor, depth: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """The pairs of pixels that an edge mixes, and that edge.

    A pair is its first pixel, counted row by row; pairs that are one above the other are counted after those in a row.
    """
    side = torch.empty(len(edges.ends), dtype=torch.int8)
    launch(_silhouettes, points, edges.ends, edges.starts, edges.opposite, side)
    slot = torch.full((2 * face.numel(),), -1, dtype=torch.int32)
    pair, edge = torch.empty(2, 2 * face.numel(), dtype=torch.long)  # only as much of it is touched as there are edges
    nearest, count = points.new_empty(2 * face.numel()), torch.zeros(1, dtype=torch.long)
    launch(_search, points, edges.ends, side, face, depth, slot, pair, edge, nearest, count)
    return pair[: int(count)].clone(), edge[: int(count)].clone()


@kernel(parallel=True)
def _silhouettes(points, ends, starts, opposite, side):
    """On which side of each edge all its faces lie, or 0; see the reference."""
    for e in prange(len(ends)):
        a, b, c = _line(points, ends[e, 0], ends[e, 1])
        lowest, highest = 0, 0
        for n in range(starts[e], starts[e + 1]):
            k = opposite[n]
            beyond = a * points[k, 0] + b * points[k, 1] + c * points[k, 3]
            if beyond > 0:
                highest = 1
            elif beyond < 0:
                lowest = -1
        side[e] = lowest + highest


@kernel()
def _line(points, i, j):
    ax, ay, aw, bx, by, bw = points[i, 0], points[i, 1], points[i, 3], points[j, 0], points[j, 1], points[j, 3]
    return ay * bw - aw * by, aw * bx - ax * bw, ax * by - ay * bx


@kernel()
def _search(points, ends, side, face, depth, slot, pair, edge, nearest, count):
    """Give every pair of pixels to the nearest edge between them that is in sight."""
    for e in range(len(ends)):
        if side[e] == 0:
            continue
        i, j = ends[e]
        a, b, _ = _line(points, i, j)
        along = 0 if abs(a) >= abs(b) else 1  # the axis of the pairs; the edge crosses lines of pixels along it
        near_is_second = side[e] * (b if along else a) > 0
        first, last = _lines(points, i, j, 1 - along, face.shape[along])
        for line in range(first, last + 1):
            p, q = _across(points, i, 1 - along, line), _across(points, j, 1 - along, line)
            if (p < 0) == (q < 0):
                continue
            place, z, w = _meet(points, i, j, along, p, q)
            if (w > 0) != (q > p) or not (place > 0 and place <= face.shape[1 - along] - 1 and z >= -1):
                continue
            second = int(np.ceil(place))
            near, far = (second, second - 1) if near_is_second else (second - 1, second)
            if not _in_sight(face, depth, along, line, near, far, z):
                continue
            cell = _cell(face.shape, along, line, second - 1)
            n = slot[cell]
            if n < 0:
                n = count[0]
                slot[cell], pair[n] = n, cell
                count[0] += 1
            elif z >= nearest[n]:  # edges come in order, so the first of equal depth stays
                continue
            edge[n], nearest[n] = e, z


@kernel()
def _lines(points, i, j, axis, size):
    """The first and last line of pixel centres that an edge may cross: all if an end is behind the camera."""
    if not (points[i, 3] > 0 and points[j, 3] > 0):
        return 0, size - 1
    a, b = points[i, axis] / points[i, 3], points[j, axis] / points[j, 3]
    if not np.isfinite(a - b):
        return 0, -1
    # One line more on either side than the quotients, which are rounded, say.
    return int(min(max(min(a, b) - 1.5, 0.0), size)), int(max(min(max(a, b) + 0.5, size - 1.0), -1.0))


@kernel()
def _across(points, i, axis, line):
    """How far a vertex is beyond a line of pixel centres, times w."""
    return points[i, axis] - (line + 0.5) * points[i, 3]


@kernel()
def _meet(points, i, j, along, p, q):
    """Where an edge crosses a line: pixels from the first centre, z/w, and w, to be multiplied by the sign of q - p."""
    w = points[i, 3] * q - points[j, 3] * p
    place = (points[i, along] * q - points[j, along] * p) / w - 0.5
    return place, (points[i, 2] * q - points[j, 2] * p) / w, w


@kernel()
def _in_sight(face, depth, along, line, near, far, z):
    if along == 0:
        (y, x), (v, u) = (line, near), (line, far)
    else:
        (y, x), (v, u) = (near, line), (far, line)
    behind = np.float64(depth[v, u]) - z
    return face[y, x] != face[v, u] and behind > 0 and np.float64(depth[y, x]) - z < behind / 2


@kernel()
def _cell(shape, along, line, first):
    return line * shape[1] + first if along == 0 else (shape[0] + first) * shape[1] + line


@kernel()
def _mixture(points, i, j, cell, height, width):
    """How much colour an edge moves, into which pixel and from which; and its axis, line and place."""
    along, here = cell // (height * width), cell % (height * width)
    there = here + (width if along else 1)
    first, line = (here // width, here % width) if along else (here % width, here // width)
    p, q = _across(points, i, 1 - along, line), _across(points, j, 1 - along, line)
    place = _meet(points, i, j, along, p, q)[0]
    share = first + 0.5 - place
    into, other = (here, there) if share > 0 else (there, here)
    return abs(share), into, other, along, line, place


@kernel()
def _mix(colour, points, ends, pair, edge, total, out):
    """Add to a copy of the colours what every edge moves; `total` is what all edges move into the same pixel."""
    height, width, channels = colour.shape
    colour, out = colour.reshape(-1, channels), out.reshape(-1, channels)
    sums = np.zeros(height * width)
    for n in range(len(pair)):
        share, into, _, _, _, _ = _mixture(points, ends[edge[n], 0], ends[edge[n], 1], pair[n], height, width)
        sums[into] += share
    for n in range(len(pair)):
        share, into, other, _, _, _ = _mixture(points, ends[edge[n], 0], ends[edge[n], 1], pair[n], height, width)
        total[n] = sums[into]
        share /= max(total[n], 1.0)
        for c in range(channels):
            out[into, c] += share * (colour[other, c] - colour[into, c])


@kernel()
def _mix_backward(colour, points, ends, pair, edge, total, out, gradient, to_colour, to_points):
    """Add to a copy of the gradient what it is to the other pixels of the mixtures and to the ends of the edges."""
    height, width, channels = colour.shape
    colour, out = colour.reshape(-1, channels), out.reshape(-1, channels)
    gradient, to_colour = gradient.reshape(-1, channels), to_colour.reshape(-1, channels)
    for n in range(len(pair)):
        i, j = ends[edge[n]]
        share, into, other, along, line, place = _mixture(points, i, j, pair[n], height, width)
        full, scale = total[n] >= 1, 1 / max(total[n], 1.0)
        to_share = 0.0
        for c in range(channels):
            g = gradient[into, c] * scale
            to_colour[other, c] += share * g
            to_colour[into, c] -= share * g
            # Where the shares are made to sum to one, more of one colour is less of the whole mixture.
            to_share += g * (colour[other, c] - (out[into, c] if full else colour[into, c]))
        _move(points, i, j, along, line, place, -to_share if into < other else to_share, to_points)


@kernel()
def _move(points, i, j, along, line, place, gradient, to_points):
    """The gradient of the place (x q - x' p) / (w q - w' p), with p = y - line w and q = y' - line w', to the ends."""
    p, q = _across(points, i, 1 - along, line), _across(points, j, 1 - along, line)
    g = gradient / _meet(points, i, j, along, p, q)[2]
    x = place + 0.5
    for k, across, other in ((i, q, j), (j, -p, i)):
        turn = 1 if k == i else -1
        to_line = turn * g * (x * points[other, 3] - points[other, along])
        to_points[k, along] += g * across
        to_points[k, 1 - along] += to_line
        to_points[k, 3] -= g * across * x + to_line * (line + 0.5)
