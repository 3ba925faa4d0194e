"""Tetrahedral grids, and the differentiable surface through them (marching tetrahedra, Doi and Koide 1991).

Distances are signed, negative inside and 0 outside, in metres like positions. Tetrahedra are positively oriented: seen
from the fourth vertex, the first three run clockwise. Indices of a grid are int32, those of a mesh int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from threed.renderers.mesh import Mesh

SIDES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # the ends of a tetrahedron's six edges
# The sides on which the triangles that separate inside from outside have their corners, counter-clockwise seen from
# outside, for every set of inner vertices: vertex i adds 2^i to the row's number. One inner or one outer vertex is cut
# off by one triangle, two and two are separated by a quadrilateral; -1 stands for no triangle.
TRIANGLES = (
    (-1, -1, -1, -1, -1, -1),
    (0, 1, 2, -1, -1, -1),
    (0, 4, 3, -1, -1, -1),
    (1, 2, 4, 1, 4, 3),
    (1, 3, 5, -1, -1, -1),
    (2, 0, 3, 2, 3, 5),
    (0, 4, 5, 0, 5, 1),
    (2, 4, 5, -1, -1, -1),
    (2, 5, 4, -1, -1, -1),
    (0, 1, 5, 0, 5, 4),
    (3, 0, 2, 3, 2, 5),
    (1, 5, 3, -1, -1, -1),
    (1, 3, 4, 1, 4, 2),
    (0, 3, 4, -1, -1, -1),
    (0, 2, 1, -1, -1, -1),
    (-1, -1, -1, -1, -1, -1),
)
SNAP = 1e-3  # of an edge: the surface keeps so far from the vertices of the grid, at least


@dataclass(frozen=True)
class TetGrid:
    """Tetrahedra that meet face to face, with their edges, each once."""

    vertices: Float[Tensor, "N 3"]  # metres
    tetrahedra: Int[Tensor, "T 4"]
    edges: Int[Tensor, "E 2"]
    sides: Int[Tensor, "T 6"]  # of every tetrahedron, as rows of `edges`, in the order of SIDES
    border: Bool[Tensor, "N"]  # all vertices of faces that have a tetrahedron on one side only, and maybe some more


def tile(occupied: Bool[Tensor, "R R R"], bound: float) -> TetGrid:
    """The part of a body-centred cubic tiling of the cube [-bound, bound]^3 around the occupied ones of its R^3 cells.

    Its vertices are the corners and the centres of cells. Around each face of the cubic lattice lie four tetrahedra,
    spanned by an edge of the face and the centres of the two cells that share it. All are alike and nearly regular:
    edges of 1 and 0.87 cells, dihedral angles of 60 and 90 degrees. (Kuhn's six to a cube have edges of 1 to 1.73 and
    angles of 45; five to a cube are of two kinds, mirrored from cube to cube.) So a surface is cut much alike whichever
    way it faces, and vertices have the most room to move before a tetrahedron turns inside out.

    Faces of occupied cells are kept. Where a face lies on the cube's surface, the centre of the cell beyond is replaced
    by the face's own, so that all cells occupied tile the cube exactly. A vertex is on the border where one of the
    cells that it touches is not occupied.
    """
    cells = functional.pad(occupied, (1,) * 6)
    lattice = _Lattice(2 * len(cells))
    families = [family for axis in range(3) for family in _around_faces(cells, axis, lattice)]
    points = torch.cat([centre[:, None] + centre.new_tensor(shape) for centre, shape in families])
    used = cells.new_zeros(lattice.side**3)
    used[points.view(-1)] = True
    number = used.cumsum(0, dtype=torch.int32) - 1
    place = used.view((lattice.side,) * 3).nonzero()
    inner = cells.new_zeros((lattice.side,) * 3)
    inner[1::2, 1::2, 1::2] = cells
    inner[2::2, 2::2, 2::2] = functional.max_pool3d(1.0 - cells[None].float(), 2, stride=1)[0] == 0
    edges, sides = _edges(families, number, lattice.number(place), lattice.steps)
    vertices = ((place - 2) / len(occupied) - 1).clamp(-1, 1) * bound
    return TetGrid(vertices, number[points], edges, sides, ~inner.view(-1)[used])


Family = tuple[Int[Tensor, "_"], tuple[int, int, int, int]]  # tetrahedra alike: a point of each, the way to its corners


@dataclass(frozen=True)
class _Lattice:
    """The corners of cells, at even places, and their centres, at odd ones: counted in half cells, and numbered."""

    side: int

    @property
    def strides(self) -> tuple[int, int, int]:
        return self.side**2, self.side, 1

    @property
    def steps(self) -> tuple[int, ...]:
        """From a point to its seven neighbours of a greater number; every edge is one of them."""
        x, y, z = self.strides
        return 2 * x, 2 * y, 2 * z, x + y + z, x + y - z, x - y + z, x - y - z

    def number(self, places: Int[Tensor, "L 3"]) -> Int[Tensor, "L"]:
        return (places * places.new_tensor(self.strides)).sum(-1)


def _around_faces(cells: Bool[Tensor, "P P P"], axis: int, lattice: _Lattice) -> list[Family]:
    """The tetrahedra around all faces of occupied cells that are normal to an axis."""
    ahead, right, up = (lattice.strides[(axis + turn) % 3] for turn in range(3))
    centre = lattice.number(2 * (cells | cells.roll(-1, axis)).nonzero() + 1)
    ring = (ahead - right - up, ahead + right - up, ahead + right + up, ahead - right + up)
    return [(centre, (ring[corner - 1], ring[corner], 0, 2 * ahead)) for corner in range(4)]


def _edges(
    families: list[Family], number: Int[Tensor, "L"], points: Int[Tensor, "N"], steps: tuple[int, ...]
) -> tuple[Int[Tensor, "E 2"], Int[Tensor, "T 6"]]:
    """All edges, and those of every tetrahedron. An edge is known by its first end and its step: nothing is sorted."""
    known = []
    for centre, shape in families:
        ends = [sorted((shape[a], shape[b])) for a, b in SIDES]
        first = number[centre[:, None] + centre.new_tensor([low for low, _ in ends])]
        known.append(first * len(steps) + first.new_tensor([steps.index(high - low) for low, high in ends]))
    names = torch.cat(known)
    used = torch.zeros(len(points) * len(steps), dtype=torch.bool, device=number.device)
    used[names.view(-1).long()] = True
    (name,) = used.nonzero(as_tuple=True)
    first = name // len(steps)
    second = number[points[first] + points.new_tensor(steps)[name % len(steps)]]
    sides = (used.cumsum(0, dtype=torch.int32) - 1).index_select(0, names.view(-1)).view(-1, 6)
    return torch.stack([first.int(), second], dim=-1), sides


def march(grid: TetGrid, distance: Float[Tensor, "N"], positions: Float[Tensor, "N 3"]) -> Mesh:
    """The surface at distance 0, facing outward, with the grid's vertices moved to `positions` (Shen et al. 2021,
    arXiv 2111.04276, section 3.2: v = (v_a s_b - v_b s_a) / (s_b - s_a) on every edge whose ends differ in sign).

    Differentiable in both. Whatever the distances: where the border is outside, the surface is a closed, oriented
    2-manifold. A face of two tetrahedra is crossed by one line or none, which both of them have, in opposite
    directions; and the tetrahedra around an edge with an inner end form one ring, and so do the triangles around the
    vertex on it.
    """
    inside = distance < 0
    bits = inside.byte().index_select(0, grid.tetrahedra.view(-1)).view(-1, 4)
    number = bits[:, 0] | bits[:, 1] << 1 | bits[:, 2] << 2 | bits[:, 3] << 3
    (crossed,) = ((number > 0) & (number < 15)).nonzero(as_tuple=True)
    corners = torch.tensor(TRIANGLES, device=distance.device)[number[crossed].long()]
    sides = grid.sides.index_select(0, crossed).long().gather(1, corners.clamp(min=0))[corners >= 0]
    cut = torch.zeros(len(grid.edges), dtype=torch.bool, device=distance.device)
    cut[sides] = True
    faces = (cut.cumsum(0) - 1).index_select(0, sides).reshape(-1, 3)
    first, second = grid.edges[cut].long().unbind(-1)
    inner = torch.where(inside[first], first, second)
    outer = first + second - inner
    share = _share(distance.index_select(0, inner), distance.index_select(0, outer), distance)[:, None]
    start, end = positions.index_select(0, inner), positions.index_select(0, outer)
    return Mesh(start + share * (end - start), faces)


def _share(inner: Float[Tensor, "V"], outer: Float[Tensor, "V"], distance: Float[Tensor, "N"]) -> Float[Tensor, "V"]:
    """How far along the way from inside to outside the distance is 0."""
    # Differences below the rounding of the largest distance mean nothing, and their slopes would be without bounds.
    real = torch.finfo(distance.dtype)
    noise = (distance.detach().abs().max() * real.eps).clamp(min=real.tiny / real.eps)
    share = -inner / torch.maximum(outer - inner, noise)
    # Around a vertex at distance 0, triangles would have no area. The slope stays that of the crossing itself, or such
    # a vertex could never leave 0.
    return share + (share.clamp(SNAP, 1 - SNAP) - share).detach()
