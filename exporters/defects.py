"""What can be wrong with a surface, face by face and edge by edge.

A body is what hangs together by edges. It is closed when each of its edges belongs to exactly two faces, whichever way
these run. Vertices are to be welded: faces touch where they share indices, not where they are near.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from threed.exporters.clean import winding_number
from threed.renderers.mesh import Mesh
from threed.renderers.topology import Edges

NO_AREA = 1e-7  # thinness of triangles that are a line
MOST_CAVITIES = 200  # bodies that face inward; of more than these, none is asked whether it lies inside another one
ROUND = 0.01  # of a ball's isoperimetric quotient, from which on an open body has an inside


def thinness(mesh: Mesh) -> Float[Tensor, "F"]:
    """The height of each triangle over its longest side: 0.87 where the sides are equal, 0 where it is a line."""
    a, b, c = mesh.corners.double().unbind(1)
    longest = torch.stack([(b - a).norm(dim=-1), (c - b).norm(dim=-1), (a - c).norm(dim=-1)]).amax(0)
    doubled = (b - a).cross(c - a, dim=-1).norm(dim=-1)
    return torch.where(longest > 0, doubled / (longest**2).clamp(min=1e-300), 0.0)


def repeated(mesh: Mesh) -> Bool[Tensor, "F"]:
    """Triangles between three vertices that an earlier one has already, whichever way round."""
    _, group = mesh.faces.sort(dim=1).values.unique(dim=0, return_inverse=True)
    first = torch.full((len(mesh.faces),), len(mesh.faces), dtype=torch.int64)
    number = torch.arange(len(mesh.faces))
    first = first.scatter_reduce(0, group, number, "amin")
    return number != first[group]


def crowded(edges: Edges) -> Bool[Tensor, "E"]:
    """Edges that more than two faces share."""
    return edges.starts.diff() > 2


def holes(edges: Edges) -> int:
    """Pieces of the border: as many as there are holes, where none of them touch."""
    ends = edges.ends[edges.border].numpy()
    if len(ends) == 0:
        return 0
    vertices, index = np.unique(ends, return_inverse=True)
    a, b = index.reshape(-1, 2).T
    return _components(a, b, len(vertices))[0]


def bodies(edges: Edges, faces: int) -> Int[Tensor, "F"]:
    """The number of the body of each face."""
    first = edges.face[edges.starts[:-1]].repeat_interleave(edges.starts.diff())
    return torch.from_numpy(_components(edges.face.numpy(), first.numpy(), faces)[1]).long()


def turned(mesh: Mesh, edges: Edges) -> Bool[Tensor, "F"]:
    """Faces to be reversed so that each body runs one way round, and outward where it has an inside.

    A body that lies inside another one may face inward: it is a cavity. Bodies with one side only stay as they are.
    """
    body = bodies(edges, len(mesh.faces))
    turn, one_sided = _against(edges, body)
    corners = mesh.corners.double()
    corners = torch.where(turn[:, None, None], corners.flip(1), corners)
    count = int(body.max()) + 1
    volume, area = _sizes(corners, edges, body, count)
    inward = (volume < 0) & (36 * math.pi * volume**2 > ROUND * area**3)
    suspects, limits = inward.nonzero()[:, 0].tolist(), boxes(corners, body)
    for each in suspects if len(suspects) <= MOST_CAVITIES else ():
        inward[each] = not _within(corners, body, limits, each)
    flat = (36 * math.pi * volume**2 <= ROUND * area**3)[body]
    # Where a body has no inside, the side that most of it shows stays.
    share = torch.zeros(count).index_add(0, body, turn.float()) / torch.bincount(body, minlength=count)
    inward = torch.where(flat, share[body] > 0.5, inward[body])
    return (turn ^ inward) & ~one_sided


def _against(edges: Edges, body: Int[Tensor, "F"]) -> tuple[Bool[Tensor, "F"], Bool[Tensor, "F"]]:
    """Faces that run the other way round than the first face of their body, and those of bodies with one side only.

    A graph of all faces, each as it is and reversed: what fits along an edge is linked, and a surface that has two
    sides falls into two halves.
    """
    faces = len(body)
    first = edges.starts[:-1][edges.starts.diff() == 2]
    one, other = edges.face[first], edges.face[first + 1]
    same = edges.forward[first] == edges.forward[first + 1]
    a = torch.cat([one, one + faces])
    b = torch.cat([other + faces * same, other + faces * ~same])
    half = torch.from_numpy(_components(a.numpy(), b.numpy(), 2 * faces)[1]).long()
    kept, reverse = half[:faces], half[faces:]
    # Bodies fall into several such pieces where more than two faces meet; each piece has a first face of its own.
    piece = torch.minimum(kept, reverse)
    against = kept > reverse
    one_sided = torch.zeros(int(body.max()) + 1, dtype=torch.bool).index_fill(0, body[kept == reverse], True)[body]
    return against ^ _of_first(against, piece), one_sided


def _of_first(values: Bool[Tensor, "F"], group: Int[Tensor, "F"]) -> Bool[Tensor, "F"]:
    """The value that the first of its group has."""
    number = torch.arange(len(group))
    first = torch.full((int(group.max()) + 1,), len(group)).scatter_reduce(0, group, number, "amin")
    return values[first[group]]


def _sizes(
    corners: Float[Tensor, "F 3 3"], edges: Edges, body: Int[Tensor, "F"], count: int
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Signed volume and area of each body; open ones are closed by a fan around the middle of their border."""
    border = edges.face[edges.starts[:-1][edges.border]]
    centre = torch.zeros(count, 3, dtype=corners.dtype).index_add(0, body[border], corners[border].mean(1))
    centre = centre / torch.bincount(body[border], minlength=count).clamp(min=1)[:, None]
    a, b, c = (corners - centre[body][:, None]).unbind(1)
    volume = torch.zeros(count, dtype=corners.dtype).index_add(0, body, (a * b.cross(c, dim=-1)).sum(-1) / 6)
    doubled = (b - a).cross(c - a, dim=-1).norm(dim=-1)
    return volume, torch.zeros(count, dtype=corners.dtype).index_add(0, body, doubled / 2)


def boxes(corners: Float[Tensor, "F 3 3"], body: Int[Tensor, "F"]) -> tuple[Float[Tensor, "B 3"], Float[Tensor, "B 3"]]:
    """The lowest and the highest corner of the box around each body."""
    index, none = body[:, None].expand(-1, 3), corners.new_full((int(body.max()) + 1, 3), math.inf)
    lows = none.scatter_reduce(0, index, corners.amin(1), "amin")
    return lows, (-none).scatter_reduce(0, index, corners.amax(1), "amax")


def _within(
    corners: Float[Tensor, "F 3 3"],
    body: Int[Tensor, "F"],
    limits: tuple[Float[Tensor, "B 3"], Float[Tensor, "B 3"]],
    each: int,
) -> bool:
    """Whether a body lies inside another one; `limits` are the boxes of all."""
    lows, highs = limits
    around = ((lows <= lows[each]) & (highs >= highs[each])).all(1)
    around[each] = False
    point = corners[body == each][0, :1].numpy()
    inside = (corners[body == other].numpy() for other in around.nonzero()[:, 0].tolist())
    return any(abs(winding_number(point, other)[0]) > 0.5 for other in inside)


def _components(a: Int[np.ndarray, "L"], b: Int[np.ndarray, "L"], count: int) -> tuple[int, Int[np.ndarray, "N"]]:
    links = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    number, label = connected_components(links, directed=False)
    return int(number), label
