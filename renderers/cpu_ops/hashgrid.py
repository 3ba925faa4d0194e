"""Multi-resolution hash encoding on the CPU; `torch_ops.hashgrid` states the layout.

Three linear maps make the encoding and all its derivatives. Corner c of a point's cell has the trilinear weight w_c(x),
or, along a direction u of the unit cube, the slope of that weight u . dw_c/dx:

    gather   e = sum_c w_c table_c           the encoding, and (with slopes) J u
    scatter  table_c += w_c g                its transpose, the gradient with respect to the table
    slope    J^T v = sum_c (dw_c/dx) (table_c . v)

The level is the outer loop over a thread's points, so that one level's table stays in cache; in `scatter` every level
belongs to one thread, so that sums have one order.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numba import prange
from torch import Tensor
from torch.autograd.function import FunctionCtx

from threed.renderers.cpu_ops.launch import kernel, launch
from threed.renderers.ops import HashGrid


def hash_encode(x: Float[Tensor, "N 3"], table: Float[Tensor, "P F"], grid: HashGrid) -> Float[Tensor, "N LF"]:
    """The F features of each of the L levels, side by side; trilinear, and differentiable twice."""
    return _Encode.apply(x, table, grid)


def hash_gradient(
    x: Float[Tensor, "N 3"], table: Float[Tensor, "P F"], v: Float[Tensor, "N LF"], grid: HashGrid
) -> Float[Tensor, "N 3"]:
    """J(x)^T v with J the slope of `hash_encode`; differentiable in `table` and `v`, a constant in x."""
    return _Slope.apply(x, table, v, grid)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.grid = grid
        return _gather_all(x, None, table, grid)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        x, table = ctx.saved_tensors
        to_x, to_table, _ = ctx.needs_input_grad
        return (
            _Slope.apply(x, table, g, ctx.grid) if to_x else None,
            _Scatter.apply(x, g, ctx.grid) if to_table else None,
            None,
        )


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, g: Tensor, grid: HashGrid) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.grid = grid
        return _scatter_all(x, None, g, grid)

    @staticmethod
    def backward(ctx: FunctionCtx, h: Tensor) -> tuple[Tensor | None, ...]:
        x, g = ctx.saved_tensors
        to_x, to_g, _ = ctx.needs_input_grad
        return (
            _Slope.apply(x, h, g, ctx.grid) if to_x else None,
            _Encode.apply(x, h, ctx.grid) if to_g else None,
            None,
        )


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, table: Tensor, v: Tensor, grid: HashGrid) -> Tensor:
        ctx.save_for_backward(x, table, v)
        ctx.grid = grid
        slope = torch.zeros_like(x, memory_format=torch.contiguous_format)
        launch(_slope, x, table, v, *_geometry(x, grid), torch.get_num_threads(), slope)
        return slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, u: Tensor) -> tuple[Tensor | None, ...]:
        x, table, v = ctx.saved_tensors
        _, to_table, to_v, _ = ctx.needs_input_grad
        return (
            None,
            _scatter_all(x, u, v, ctx.grid) if to_table else None,
            _gather_all(x, u, table, ctx.grid) if to_v else None,
            None,
        )


def _gather_all(x: Tensor, u: Tensor | None, table: Tensor, grid: HashGrid) -> Tensor:
    encoded = table.new_empty(len(x), grid.levels * table.shape[1])
    launch(_gather, x, u, table, *_geometry(x, grid), torch.get_num_threads(), encoded)
    return encoded


def _scatter_all(x: Tensor, u: Tensor | None, g: Tensor, grid: HashGrid) -> Tensor:
    table = g.new_zeros(grid.size, g.shape[1] // grid.levels)
    launch(_scatter, x, u, g, *_geometry(x, grid), table)
    return table


def _geometry(x: Tensor, grid: HashGrid) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_tensor(grid.scales), torch.tensor(grid.resolutions), torch.tensor(grid.offsets)


@kernel(parallel=True, fastmath=True)
def _gather(x, u, table, scales, resolutions, offsets, chunks, encoded):
    features = table.shape[1]
    for chunk in prange(chunks):
        start, stop = len(x) * chunk // chunks, len(x) * (chunk + 1) // chunks
        for level in range(len(scales)):
            vertices = table[offsets[level] : offsets[level + 1]]
            for n in range(start, stop):
                entry, weight = _cell(x, u, n, scales[level], resolutions[level], len(vertices))
                for f in range(features):
                    total = weight[0] * vertices[entry[0], f]
                    total += weight[1] * vertices[entry[1], f]
                    total += weight[2] * vertices[entry[2], f]
                    total += weight[3] * vertices[entry[3], f]
                    total += weight[4] * vertices[entry[4], f]
                    total += weight[5] * vertices[entry[5], f]
                    total += weight[6] * vertices[entry[6], f]
                    total += weight[7] * vertices[entry[7], f]
                    encoded[n, level * features + f] = total


@kernel(parallel=True, fastmath=True)
def _scatter(x, u, g, scales, resolutions, offsets, table):
    features = table.shape[1]
    for level in prange(len(scales)):
        vertices = table[offsets[level] : offsets[level + 1]]
        for n in range(len(x)):
            entry, weight = _cell(x, u, n, scales[level], resolutions[level], len(vertices))
            for f in range(features):
                incoming = g[n, level * features + f]
                vertices[entry[0], f] += weight[0] * incoming
                vertices[entry[1], f] += weight[1] * incoming
                vertices[entry[2], f] += weight[2] * incoming
                vertices[entry[3], f] += weight[3] * incoming
                vertices[entry[4], f] += weight[4] * incoming
                vertices[entry[5], f] += weight[5] * incoming
                vertices[entry[6], f] += weight[6] * incoming
                vertices[entry[7], f] += weight[7] * incoming


@kernel(parallel=True, fastmath=True)
def _slope(x, table, v, scales, resolutions, offsets, chunks, slope):
    features = table.shape[1]
    one = x.dtype.type(1)
    for chunk in prange(chunks):
        start, stop = len(x) * chunk // chunks, len(x) * (chunk + 1) // chunks
        for level in range(len(scales)):
            scale, vertices = scales[level], table[offsets[level] : offsets[level + 1]]
            for n in range(start, stop):
                i, a, da = _locate(x[n, 0], scale)
                j, b, db = _locate(x[n, 1], scale)
                k, c, dc = _locate(x[n, 2], scale)
                entry = _entries(i, j, k, resolutions[level], len(vertices))
                for f in range(features):
                    t0, t1 = vertices[entry[0], f], vertices[entry[1], f]
                    t2, t3 = vertices[entry[2], f], vertices[entry[3], f]
                    t4, t5 = vertices[entry[4], f], vertices[entry[5], f]
                    t6, t7 = vertices[entry[6], f], vertices[entry[7], f]
                    value = v[n, level * features + f]
                    # Each axis: the difference across the cell, interpolated along the other two.
                    along_x = (one - b) * ((one - c) * (t4 - t0) + c * (t5 - t1))
                    along_x += b * ((one - c) * (t6 - t2) + c * (t7 - t3))
                    along_y = (one - a) * ((one - c) * (t2 - t0) + c * (t3 - t1))
                    along_y += a * ((one - c) * (t6 - t4) + c * (t7 - t5))
                    along_z = (one - a) * ((one - b) * (t1 - t0) + b * (t3 - t2))
                    along_z += a * ((one - b) * (t5 - t4) + b * (t7 - t6))
                    slope[n, 0] += value * da * along_x
                    slope[n, 1] += value * db * along_y
                    slope[n, 2] += value * dc * along_z


@kernel(fastmath=True)
def _cell(x, u, n, scale, resolution, size):
    """The table entries of the eight corners around point n, x slowest, and their weights, or with u the slopes."""
    i, a, da = _locate(x[n, 0], scale)
    j, b, db = _locate(x[n, 1], scale)
    k, c, dc = _locate(x[n, 2], scale)
    entries = _entries(i, j, k, resolution, size)
    one = x.dtype.type(1)
    a0, b0, c0 = one - a, one - b, one - c
    p00, p01, p10, p11 = b0 * c0, b0 * c, b * c0, b * c
    if u is None:
        return entries, (a0 * p00, a0 * p01, a0 * p10, a0 * p11, a * p00, a * p01, a * p10, a * p11)
    ua, ub, uc = u[n, 0] * da, u[n, 1] * db, u[n, 2] * dc
    q00, q01 = -(ub * c0 + uc * b0), uc * b0 - ub * c
    q10, q11 = ub * c0 - uc * b, ub * c + uc * b
    return entries, (
        a0 * q00 - ua * p00,
        a0 * q01 - ua * p01,
        a0 * q10 - ua * p10,
        a0 * q11 - ua * p11,
        a * q00 + ua * p00,
        a * q01 + ua * p01,
        a * q10 + ua * p10,
        a * q11 + ua * p11,
    )


@kernel(fastmath=True)
def _locate(x, scale):
    """The vertex below a coordinate, the fraction above it, and the slope of that fraction, zero outside the cube."""
    zero, one = type(scale)(0), type(scale)(1)
    position = min(max(x, zero), one) * scale + type(scale)(0.5)
    vertex = np.int64(position)
    return vertex, position - type(scale)(vertex), scale if zero <= x <= one else zero


@kernel()
def _entries(i, j, k, resolution, size):
    """The table entries of the eight corners above vertex (i, j, k), x slowest."""
    if resolution * resolution * resolution <= size:
        j0, k0 = j * resolution, k * resolution * resolution
        j1, k1 = j0 + resolution, k0 + resolution * resolution
        return (
            _wrap(i + j0 + k0, size),
            _wrap(i + j0 + k1, size),
            _wrap(i + j1 + k0, size),
            _wrap(i + j1 + k1, size),
            _wrap(i + 1 + j0 + k0, size),
            _wrap(i + 1 + j0 + k1, size),
            _wrap(i + 1 + j1 + k0, size),
            _wrap(i + 1 + j1 + k1, size),
        )
    # Hashed levels have 2^n entries: the modulo is a mask, and only the low bits of the products matter.
    j0, k0, mask = j * 2654435761, k * 805459861, size - 1
    j1, k1 = j0 + 2654435761, k0 + 805459861
    return (
        (i ^ j0 ^ k0) & mask,
        (i ^ j0 ^ k1) & mask,
        (i ^ j1 ^ k0) & mask,
        (i ^ j1 ^ k1) & mask,
        ((i + 1) ^ j0 ^ k0) & mask,
        ((i + 1) ^ j0 ^ k1) & mask,
        ((i + 1) ^ j1 ^ k0) & mask,
        ((i + 1) ^ j1 ^ k1) & mask,
    )


@kernel()
def _wrap(entry, size):
    """The entry modulo the size, for one that is less than twice the size."""
    return entry if entry < size else entry - size
