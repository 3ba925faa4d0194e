"""Silhouettes that are smooth and differentiable: the readable reference.

Triangles end abruptly at their outline, so a picture of them has no gradient there. Here every silhouette edge that
passes between the centres of two adjacent pixels mixes their colours by where it passes, as analytic antialiasing does
(Laine et al. 2020, arXiv 2011.03277). But edges look for their pixels, not pixels for an edge of the triangle that
they see, so that an outline of triangles smaller than a pixel keeps its gradient.

An edge is a silhouette where all its faces lie on one side of it. Steep edges mix pixels of a row, the others pixels of
a column, where they cross the line through the centres. The pixel on the side of the faces is the near one. An edge is
in sight if the pixels show different faces, the far one lies behind the edge, and the near one is closer in depth to
the edge than to the far one (else it sees past a sheet thinner than a pixel). The nearest edge of a pair wins.

Points on the picture are homogeneous, (x, y, z, w): x/w pixels to the right, y/w pixels down, z/w the depth. Lines and
crossings of such points need no division by w, so an end of an edge may lie behind the camera.

What gets no gradient: lines where surfaces intersect or meet the near plane, and edges in the outer half of the border
pixels, whose other side no pixel shows.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from threed.renderers.topology import Edges
from threed.renderers.torch_ops.raster import Fragments


def antialias(
    colour: Float[Tensor, "B H W C"], clip: Float[Tensor, "B V 4"], fragments: Fragments, edges: Edges
) -> Float[Tensor, "B H W C"]:
    """The picture with mixed pixels along silhouettes; differentiable to the colours and the clip-space vertices.

    A mixed pixel stays within the range of the colours that it mixes. Clip z gets no gradient.
    """
    points = on_picture(clip, *colour.shape[1:3])
    views = zip(colour, points, fragments.face, fragments.depth.double(), strict=True)
    return torch.stack([_antialias(*view, edges) for view in views])


def on_picture(clip: Float[Tensor, "B V 4"], height: int, width: int) -> Float[Tensor, "B V 4"]:
    """Homogeneous points on the picture, in float64."""
    x, y, z, w = clip.double().unbind(-1)
    return torch.stack([(x + w) * (width / 2), (w - y) * (height / 2), z, w], dim=-1)


def _antialias(
    colour: Float[Tensor, "H W C"],
    points: Float[Tensor, "V 4"],
    face: Int32[Tensor, "H W"],
    depth: Float[Tensor, "H W"],
    edges: Edges,
) -> Float[Tensor, "H W C"]:
    row, left, across = _mixtures(points, face, depth, edges, ties=True)
    column, top, down = _mixtures(points[:, [1, 0, 2, 3]], face.T, depth.T, edges, ties=False)
    pixel = torch.arange(face.numel(), device=face.device).view(face.shape)
    first = torch.cat([pixel[row, left], pixel[top, column]])
    second = torch.cat([pixel[row, left + 1], pixel[top + 1, column]])

    share = torch.cat([across, down]).to(colour)
    into, other = torch.where(share > 0, first, second), torch.where(share > 0, second, first)
    share = torch.where(share > 0, share, -share)
    total = share.new_zeros(face.numel()).index_add(0, into, share)
    share = share / total.clamp(min=1)[into]  # a speck has edges on all sides, each of which may take half of it
    flat = colour.flatten(0, 1)
    return flat.index_add(0, into, share[:, None] * (flat[other] - flat[into])).view(colour.shape)


def _mixtures(
    points: Float[Tensor, "V 4"], face: Int32[Tensor, "H W"], depth: Float[Tensor, "H W"], edges: Edges, ties: bool
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"], Float[Tensor, "N"]]:
    """Row and left column of the pixels that edges mix along rows, and how much colour moves to the left by it.

    That is 1/2 for an edge through the left centre, -1/2 for one through the right: the left pixel's share of the right
    colour, or less the right pixel's share of the left one.
    """
    edge, row, right = _visible(points.detach(), face, depth, edges, ties)
    start, end = points[edges.ends[edge]].unbind(1)
    return row, right - 1, right - 0.5 - _meet(start, end, row)[0]


def _visible(
    points: Tensor, face: Tensor, depth: Tensor, edges: Edges, ties: bool
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"], Int[Tensor, "N"]]:
    """The silhouettes that pass between two centres of a row in sight: edge, row and right column."""
    side, line = _silhouettes(points, edges)
    steep = (line[:, 0].abs() >= line[:, 1].abs()) if ties else (line[:, 0].abs() > line[:, 1].abs())
    edge = (steep & (side != 0)).nonzero()[:, 0]
    start, end = points[edges.ends[edge]].unbind(1)
    candidate, row = _cross(start, end, face.shape[0]).nonzero().unbind(1)
    edge = edge[candidate]
    x, z, ahead = _meet(start[candidate], end[candidate], row)
    inside = ahead & (x > 0) & (x <= face.shape[1] - 1) & (z >= -1)
    edge, row, x, z = edge[inside], row[inside], x[inside], z[inside]

    right = x.ceil().long()  # a centre on an edge belongs to its right or lower side, by the top-left rule
    near = torch.where(side[edge] * line[edge, 0] > 0, right, right - 1)
    far = 2 * right - 1 - near
    seen = (face[row, near] != face[row, far]) & (depth[row, far] > z)
    seen &= depth[row, near] - z < (depth[row, far] - z) / 2
    edge, row, right, z = edge[seen], row[seen], right[seen], z[seen]

    pair = row * face.shape[1] + right
    nearest = z.new_full((face.numel(),), torch.inf).scatter_reduce(0, pair, z, "amin")
    first = z == nearest[pair]
    winner = edge.new_full((face.numel(),), len(side)).scatter_reduce(0, pair[first], edge[first], "amin")
    first = first & (edge == winner[pair])
    return edge[first], row[first], right[first]


def _silhouettes(points: Tensor, edges: Edges) -> tuple[Int[Tensor, "E"], Float[Tensor, "E 3"]]:
    """On which side of each edge all its faces lie (1 or -1; 0 if on both, or none has an area), and its line.

    A line holds the points with a x + b y + c w = 0; the side is the sign of that expression.
    """
    (ax, ay, _, aw), (bx, by, _, bw) = (points[end].unbind(-1) for end in edges.ends.unbind(1))
    line = torch.stack([ay * bw - aw * by, aw * bx - ax * bw, ax * by - ay * bx], dim=-1)
    owner = torch.arange(len(line), device=points.device).repeat_interleave(edges.starts.diff())
    a, b, c = line[owner].unbind(-1)
    x, y, _, w = points[edges.opposite].unbind(-1)
    beyond = a * x + b * y + c * w
    sign = (beyond > 0).long() - (beyond < 0).long()
    none = sign.new_zeros(len(line))
    return none.scatter_reduce(0, owner, sign, "amax") + none.scatter_reduce(0, owner, sign, "amin"), line


def _cross(start: Float[Tensor, "K 4"], end: Float[Tensor, "K 4"], height: int) -> Bool[Tensor, "K H"]:
    """Whether edges cross the lines through the centres of the rows; half-open, so that a chain crosses once."""
    centre = torch.arange(height, device=start.device) + 0.5
    above, below = (point[:, 1:2] - centre * point[:, 3:] < 0 for point in (start, end))
    return above != below


def _meet(
    start: Float[Tensor, "N 4"], end: Float[Tensor, "N 4"], row: Int[Tensor, "N"]
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"], Bool[Tensor, "N"]]:
    """Where edges cross rows: x in pixels from the centre of the first, z/w, and whether that is before the camera."""
    (ax, ay, az, aw), (bx, by, bz, bw) = start.unbind(-1), end.unbind(-1)
    p, q = ay - (row + 0.5) * aw, by - (row + 0.5) * bw
    w = aw * q - bw * p
    return (ax * q - bx * p) / w - 0.5, (az * q - bz * p) / w, (w > 0) == (q > p)
