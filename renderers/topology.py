"""Which faces share which edges: a fact of the faces alone, sorted once and handed to all who ask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Edges:
    """The undirected edges of a mesh, each once; the sides starts[e] to starts[e + 1] of faces run along edge e."""

    ends: Int[Tensor, "E 2"]  # vertices, int64, the lower first
    starts: Int[Tensor, "S"]  # int64, S = E + 1
    face: Int[Tensor, "N"]  # int64, whose side it is; N = 3F
    opposite: Int[Tensor, "N"]  # int64, the vertex of that face beyond the edge
    forward: Bool[Tensor, "N"]  # the face runs from the lower end to the higher one

    @property
    def border(self) -> Bool[Tensor, "E"]:
        """Where one face ends and no other begins."""
        return self.starts.diff() == 1

    @property
    def pairs(self) -> Int[Tensor, "P 2"]:
        """The faces of edges that exactly two run along, in opposite directions: neighbours on one surface."""
        first = self.starts[:-1][self.starts.diff() == 2]
        first = first[self.forward[first] != self.forward[first + 1]]
        return torch.stack([self.face[first], self.face[first + 1]], dim=-1)


@torch.no_grad()
def edges(faces: Int[Tensor, "F 3"]) -> Edges:
    """The edges of faces of any winding, any number of which may meet: one sort, to be kept with the faces."""
    faces = faces.long()
    start, end = faces.roll(-1, 1).reshape(-1), faces.roll(-2, 1).reshape(-1)
    lower, upper = torch.minimum(start, end), torch.maximum(start, end)
    stride = int(faces.max()) + 1 if len(faces) else 1
    key, side = (lower * stride + upper).sort(stable=True)  # side 3f + k of face f is the one beyond its corner k
    counts = key.unique_consecutive(return_counts=True)[1]
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    first = side[starts[:-1]]
    ends = torch.stack([lower[first], upper[first]], dim=-1)
    return Edges(ends, starts, side // 3, faces.reshape(-1)[side], (start < end)[side])
