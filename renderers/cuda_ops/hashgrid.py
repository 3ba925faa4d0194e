"""Multi-resolution hash encoding on CUDA; `torch_ops.hashgrid` states the layout.

The three maps of `linear_maps` make it and all its derivatives. Gradients of the table are summed by atomic additions,
in an order that may differ from run to run; all else is the same every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from threed.renderers.cuda_ops.launch import launch
from threed.renderers.linear_maps import Encode, LinearMaps, Slope
from threed.renderers.ops import HashGrid


def hash_encode(x: Float[Tensor, "N 3"], table: Float[Tensor, "P F"], grid: HashGrid) -> Float[Tensor, "N LF"]:
    """The F features of each of the L levels, side by side; trilinear, and differentiable twice."""
    return Encode.apply(MAPS, x, table, grid)


def hash_gradient(
    x: Float[Tensor, "N 3"], table: Float[Tensor, "P F"], v: Float[Tensor, "N LF"], grid: HashGrid
) -> Float[Tensor, "N 3"]:
    """J(x)^T v with J the slope of `hash_encode`; differentiable in `table` and `v`, a constant in x."""
    return Slope.apply(MAPS, x, table, v, grid)


def _gather(x: Tensor, u: Tensor | None, table: Tensor, grid: HashGrid) -> Tensor:
    encoded, geometry = table.new_empty(len(x), grid.levels * table.shape[1]), _geometry(grid, x.dtype, x.device)
    rows, features = grid.levels, table.shape[1]
    launch("hashgrid", "gather", len(x), x, u, *_aligned(table), *geometry, encoded, rows=rows, FEATURES=features)
    return encoded


def _scatter(x: Tensor, u: Tensor | None, g: Tensor, grid: HashGrid) -> Tensor:
    rows, features = grid.levels, g.shape[1] // grid.levels
    table, geometry = g.new_zeros(grid.size, features), _geometry(grid, x.dtype, x.device)
    launch("hashgrid", "scatter", len(x), x, u, *_aligned(g), *geometry, table, rows=rows, FEATURES=features)
    return table


def _slope(x: Tensor, table: Tensor, v: Tensor, grid: HashGrid) -> Tensor:
    slope = torch.empty_like(x, memory_format=torch.contiguous_format)
    geometry, features = _geometry(grid, x.dtype, x.device), table.shape[1]
    launch("hashgrid", "slope", len(x), x, *_aligned(table, v), *geometry, grid.levels, slope, FEATURES=features)
    return slope


MAPS = LinearMaps(_gather, _scatter, _slope)


def _aligned(*tensors: Tensor) -> Iterator[Tensor]:
    """Tensors whose features may be read several at a time; a part of another one may have to be copied."""
    return (each.clone() if each.data_ptr() % 16 else each for each in tensors)


@cache
def _geometry(grid: HashGrid, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Scales, resolutions and offsets of the levels, moved to a device once."""
    scales = torch.tensor(grid.scales, dtype=dtype, device=device)
    return scales, torch.tensor(grid.resolutions, device=device), torch.tensor(grid.offsets, device=device)
