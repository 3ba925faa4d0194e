"""Multi-resolution hash encoding on the CPU; `torch_ops.hashgrid` states the layout.

The three maps of `linear_maps` make it and all its derivatives. Points are taken in blocks. For each level a block's
corners are worked out first, in loops that vectorise, then looked up; arrays of positions and directions are therefore
held axis by axis, [3, N]. In `scatter` every level belongs to one thread, so that sums have one order whatever the
number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numba import prange
from torch import Tensor

from threed.renderers.cpu_ops.launch import kernel, launch
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


BLOCK = 256  # points whose corners are worked out at a time, in the innermost cache


def _gather_all(x: Tensor, u: Tensor | None, table: Tensor, grid: HashGrid) -> Tensor:
    encoded = table.new_empty(len(x), grid.levels * table.shape[1])
    launch(_gather, x.T, None if u is None else u.T, table, *_geometry(x, grid), encoded)
    return encoded


def _scatter_all(x: Tensor, u: Tensor | None, g: Tensor, grid: HashGrid) -> Tensor:
    table = g.new_zeros(grid.size, g.shape[1] // grid.levels)
    launch(_scatter, x.T, None if u is None else u.T, g, *_geometry(x, grid), table)
    return table


def _slope_all(x: Tensor, table: Tensor, v: Tensor, grid: HashGrid) -> Tensor:
    slope = x.new_zeros(3, len(x))
    launch(_slope, x.T, table, v, *_geometry(x, grid), slope)
    return slope.T.contiguous()


MAPS = LinearMaps(_gather_all, _scatter_all, _slope_all)


def _geometry(x: Tensor, grid: HashGrid) -> tuple[Tensor, Tensor, Tensor, int]:
    levels = x.new_tensor(grid.scales), torch.tensor(grid.resolutions), torch.tensor(grid.offsets)
    return *levels, torch.get_num_threads()


@kernel(parallel=True)
def _gather(x, u, table, scales, resolutions, offsets, threads, encoded):
    for thread in prange(threads):
        start, stop = _share(thread, threads, x.shape[1])
        _gather_points(start, stop, x, u, table, scales, resolutions, offsets, encoded)


@kernel(fastmath=True)
def _gather_points(start, stop, x, u, table, scales, resolutions, offsets, encoded):
    (fraction, entry, weight), features = _block(scales), table.shape[1]
    for first in range(start, stop, BLOCK):
        last = min(first + BLOCK, stop)
        for level in range(len(scales)):
            vertices = table[offsets[level] : offsets[level + 1]]
            _locate(x, first, last, scales[level], resolutions[level], len(vertices), fraction, entry)
            _weigh(x, u, first, last, scales[level], fraction, weight)
            for n in range(last - first):
                e, w = _eight(entry, n), _eight(weight, n)
                for f in range(features):
                    total = w[0] * vertices[e[0], f]
                    for corner in range(1, 8):
                        total += w[corner] * vertices[e[corner], f]
                    encoded[first + n, level * features + f] = total


@kernel(parallel=True)
def _scatter(x, u, g, scales, resolutions, offsets, threads, table):
    for thread in prange(threads):
        _scatter_levels(thread, threads, x, u, g, scales, resolutions, offsets, table)


@kernel(fastmath=True)
def _scatter_levels(thread, threads, x, u, g, scales, resolutions, offsets, table):
    (fraction, entry, weight), features = _block(scales), table.shape[1]
    for first in range(0, x.shape[1], BLOCK):
        last = min(first + BLOCK, x.shape[1])
        for level in range(thread, len(scales), threads):
            vertices = table[offsets[level] : offsets[level + 1]]
            _locate(x, first, last, scales[level], resolutions[level], len(vertices), fraction, entry)
            _weigh(x, u, first, last, scales[level], fraction, weight)
            for n in range(last - first):
                e, w = _eight(entry, n), _eight(weight, n)
                for f in range(features):
                    incoming = g[first + n, level * features + f]
                    for corner in range(8):
                        vertices[e[corner], f] += w[corner] * incoming


@kernel(parallel=True)
def _slope(x, table, v, scales, resolutions, offsets, threads, slope):
    for thread in prange(threads):
        start, stop = _share(thread, threads, x.shape[1])
        _slope_points(start, stop, x, table, v, scales, resolutions, offsets, slope)


@kernel(fastmath=True)
def _slope_points(start, stop, x, table, v, scales, resolutions, offsets, slope):
    (fraction, entry, pulled), features = _block(scales), table.shape[1]
    for first in range(start, stop, BLOCK):
        last = min(first + BLOCK, stop)
        for level in range(len(scales)):
            vertices = table[offsets[level] : offsets[level + 1]]
            _locate(x, first, last, scales[level], resolutions[level], len(vertices), fraction, entry)
            for n in range(last - first):
                e = _eight(entry, n)
                for corner in range(8):
                    pulled[corner, n] = 0
                for f in range(features):
                    incoming = v[first + n, level * features + f]
                    for corner in range(8):
                        pulled[corner, n] += incoming * vertices[e[corner], f]
            _add_slopes(x, first, last, scales[level], fraction, pulled, slope)


@kernel(fastmath=True)
def _add_slopes(x, first, last, scale, fraction, pulled, slope):
    """Along each axis the difference across the cell, interpolated along the other two."""
    for n in range(last - first):
        a, b, c = fraction[0, n], fraction[1, n], fraction[2, n]
        p0, p1, p2, p3, p4, p5, p6, p7 = _eight(pulled, n)
        one = type(a)(1)
        along_x = (one - b) * ((one - c) * (p4 - p0) + c * (p5 - p1)) + b * ((one - c) * (p6 - p2) + c * (p7 - p3))
        along_y = (one - a) * ((one - c) * (p2 - p0) + c * (p3 - p1)) + a * ((one - c) * (p6 - p4) + c * (p7 - p5))
        along_z = (one - a) * ((one - b) * (p1 - p0) + b * (p3 - p2)) + a * ((one - b) * (p5 - p4) + b * (p7 - p6))
        slope[0, first + n] += _rate(x[0, first + n], scale) * along_x
        slope[1, first + n] += _rate(x[1, first + n], scale) * along_y
        slope[2, first + n] += _rate(x[2, first + n], scale) * along_z


@kernel()
def _share(thread, threads, count):
    """A thread's points: whole blocks, so that a point's sums are vectorised alike whatever the number of threads."""
    blocks = (count + BLOCK - 1) // BLOCK
    return blocks * thread // threads * BLOCK, min(blocks * (thread + 1) // threads * BLOCK, count)


@kernel()
def _block(like):
    """Room for the fractions, table entries and weights of a block of points, one row an axis or corner."""
    return np.empty((3, BLOCK), like.dtype), np.empty((8, BLOCK), np.uint32), np.empty((8, BLOCK), like.dtype)


@kernel(fastmath=True)
def _locate(x, first, last, scale, resolution, size, fraction, entry):
    """The table entries of the corners of each point's cell, x slowest, and where in the cell the point lies."""
    real, vertex = x.dtype.type, np.empty((3, BLOCK), np.int32)
    for axis in range(3):
        for n in range(last - first):
            position = min(max(x[axis, first + n], real(0)), real(1)) * scale + real(0.5)
            vertex[axis, n] = np.int32(position)
            fraction[axis, n] = position - real(vertex[axis, n])
    y, z, entries, mask = np.int32(resolution), np.int32(resolution**2), np.int32(size), np.uint32(size - 1)
    for corner in range(8):
        right, up, front = corner >> 2, corner >> 1 & 1, corner & 1
        for n in range(last - first):
            i, j, k = vertex[0, n] + right, vertex[1, n] + up, vertex[2, n] + front
            if resolution**3 <= size:  # less than twice the size, so that a subtraction does for the modulo
                row = np.int32(i + j * y + k * z)
                entry[corner, n] = np.uint32(row if row < entries else row - entries)
            else:  # a hashed level has 2^n entries, so that a mask does
                entry[corner, n] = np.uint32(i ^ j * 2654435761 ^ k * 805459861) & mask


@kernel(fastmath=True)
def _weigh(x, u, first, last, scale, fraction, weight):
    """The corners' weights, or their slopes along u."""
    for corner in range(8):
        for n in range(last - first):
            a, b, c = fraction[0, n], fraction[1, n], fraction[2, n]
            if u is None:
                weight[corner, n] = _weight(corner, a, b, c)
            else:
                dx, dy, dz = _weight_slope(corner, a, b, c)
                along = u[0, first + n] * _rate(x[0, first + n], scale) * dx
                along += u[1, first + n] * _rate(x[1, first + n], scale) * dy
                weight[corner, n] = along + u[2, first + n] * _rate(x[2, first + n], scale) * dz


@kernel(fastmath=True)
def _sides(corner, a, b, c):
    """The three factors of a corner's trilinear weight."""
    one = type(a)(1)
    return a if corner >> 2 else one - a, b if corner >> 1 & 1 else one - b, c if corner & 1 else one - c


@kernel(fastmath=True)
def _weight(corner, a, b, c):
    x, y, z = _sides(corner, a, b, c)
    return x * y * z


@kernel(fastmath=True)
def _weight_slope(corner, a, b, c):
    """The slope of a corner's weight by the fractions a, b and c."""
    x, y, z = _sides(corner, a, b, c)
    dx, dy, dz = y * z, x * z, x * y
    return dx if corner >> 2 else -dx, dy if corner >> 1 & 1 else -dy, dz if corner & 1 else -dz


@kernel(fastmath=True)
def _rate(x, scale):
    """The slope of a fraction by its coordinate: none across a face that the point was clamped to."""
    return scale if x == min(max(x, type(x)(0)), type(x)(1)) else type(x)(0)


@kernel()
def _eight(rows, n):
    return rows[0, n], rows[1, n], rows[2, n], rows[3, n], rows[4, n], rows[5, n], rows[6, n], rows[7, n]
