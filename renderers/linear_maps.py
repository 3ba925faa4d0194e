"""The hash encoding and all its derivatives, out of three linear maps that a backend has.

Corner c of a point's cell has the trilinear weight w_c(x), or, along a direction u of the unit cube, the slope of that
weight u . dw_c/dx:

    gather   e = sum_c w_c table_c           the encoding, and (with slopes) J u
    scatter  table_c += w_c g                its transpose, the gradient with respect to the table
    slope    J^T v = sum_c (dw_c/dx) (table_c . v)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from threed.renderers.ops import HashGrid


@dataclass(frozen=True)
class LinearMaps:
    gather: Callable[[Tensor, Tensor | None, Tensor, HashGrid], Tensor]  # x, u or None, table
    scatter: Callable[[Tensor, Tensor | None, Tensor, HashGrid], Tensor]  # x, u or None, g
    slope: Callable[[Tensor, Tensor, Tensor, HashGrid], Tensor]  # x, table, v


class Encode(Function):
    """e of x and the table; differentiable twice."""

    @staticmethod
    def forward(ctx: Any, maps: LinearMaps, x: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.maps, ctx.grid = maps, grid
        return maps.gather(x, None, table, grid)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, table = ctx.saved_tensors
        _, to_x, to_table, _ = ctx.needs_input_grad
        return (
            None,
            Slope.apply(ctx.maps, x, table, g, ctx.grid) if to_x else None,
            Scatter.apply(ctx.maps, x, g, ctx.grid) if to_table else None,
            None,
        )


class Scatter(Function):
    """The gradient with respect to the table, of x and g."""

    @staticmethod
    def forward(ctx: Any, maps: LinearMaps, x: Tensor, g: Tensor, grid: HashGrid) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.maps, ctx.grid = maps, grid
        return maps.scatter(x, None, g, grid)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        x, g = ctx.saved_tensors
        _, to_x, to_g, _ = ctx.needs_input_grad
        return (
            None,
            Slope.apply(ctx.maps, x, h, g, ctx.grid) if to_x else None,
            Encode.apply(ctx.maps, x, h, ctx.grid) if to_g else None,
            None,
        )


class Slope(Function):
    """J(x)^T v of the table and v; a constant in x."""

    @staticmethod
    def forward(ctx: Any, maps: LinearMaps, x: Tensor, table: Tensor, v: Tensor, grid: HashGrid) -> Tensor:
        ctx.save_for_backward(x, table, v)
        ctx.maps, ctx.grid = maps, grid
        return maps.slope(x, table, v, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        x, table, v = ctx.saved_tensors
        _, _, to_table, to_v, _ = ctx.needs_input_grad
        return (
            None,
            None,
            ctx.maps.scatter(x, u, v, ctx.grid) if to_table else None,
            ctx.maps.gather(x, u, table, ctx.grid) if to_v else None,
            None,
        )
