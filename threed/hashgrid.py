"""Values on a hash grid whose levels add up: what all scenes keep their colours and shapes in."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from threed.renderers.ops import HashGrid, ops


def cube(x: Float[Tensor, "N 3"], bound: float) -> Float[Tensor, "N 3"]:
    """Points of [-bound, bound]^3 metres as the primitives want them, in [0, 1]^3."""
    return (x / bound + 1) / 2


def summed(x: Float[Tensor, "N 3"], table: Float[Tensor, "P F"], grid: HashGrid, bound: float) -> Float[Tensor, "N F"]:
    """F numbers at points in [-bound, bound]^3 metres: the sum over the levels of the grid, each trilinear."""
    encoded = ops(x.device).hash_encode(cube(x, bound), table, grid)
    return encoded.unflatten(1, (grid.levels, -1)).sum(1)
