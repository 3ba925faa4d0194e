"""Marching and compositing of ragged rays on the CPU, one thread a ray; `torch_ops.packed` states the conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numba import prange
from torch import Tensor
from torch.nn import functional

from threed.renderers.cpu_ops.launch import kernel, launch
from threed.renderers.ops import Packed
from threed.renderers.torch_ops.packed import PARALLEL, opacity


def march(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    occupied: Bool[Tensor, "G G G"],
    bound: float,
    step: float,
    jitter: Float[Tensor, "R"] | None = None,
) -> Packed:
    """The pieces of rays inside the cube [-bound, bound]^3 whose middle lies in an occupied cell; no gradient.

    A ray is cut at (k + jitter) step for every integer k, and where it enters and leaves the cube; directions are unit.
    """
    shift = origins.new_zeros(len(origins)) if jitter is None else jitter
    lattice = origins.new_tensor([bound, step, PARALLEL])
    counts = torch.empty(len(origins), dtype=torch.int64)
    first = torch.empty_like(counts)
    launch(_count, origins, directions, shift, occupied, lattice, counts, first)
    starts = functional.pad(counts.cumsum(0), (1, 0))
    near = origins.new_empty(int(starts[-1]))
    far, ray = torch.empty_like(near), starts.new_empty(len(near))
    launch(_fill, origins, directions, shift, occupied, lattice, starts, first, ray, near, far)
    return Packed(starts, ray, near, far)


def composite(
    density: Float[Tensor, "N"], values: Float[Tensor, "N C"], packed: Packed
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R"], Float[Tensor, "R"], Float[Tensor, "N"]]:
    """Front-to-back compositing (Max 1995): values times weights summed along each ray, alpha, depth, and the weights.

    w_i = T_i (1 - exp(-density_i length_i)); depth is the sum of w_i middle_i, not divided by alpha.
    """
    return _Composite.apply(density, values, packed)


def transmittance(density: Float[Tensor, "N"], packed: Packed) -> Float[Tensor, "N"]:
    """The share of light that reaches each sample, without a gradient."""
    reaching = density.new_empty(len(density))
    launch(_transmittance, opacity(density, packed), packed.starts, reaching)
    return reaching


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, values: Tensor, packed: Packed) -> tuple[Tensor, ...]:
        rays = len(packed.starts) - 1
        accumulated = values.new_empty(rays, values.shape[1])
        alpha, depth = density.new_empty(rays), density.new_empty(rays)
        weights = density.new_empty(len(density))
        piece = packed.starts, packed.near, packed.far
        launch(_composite, opacity(density, packed), values, *piece, accumulated, alpha, depth, weights)
        ctx.save_for_backward(values, weights, *piece)
        return accumulated, alpha, depth, weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weights, *piece = ctx.saved_tensors
        to_density = torch.empty_like(weights)
        to_values = torch.empty_like(values, memory_format=torch.contiguous_format)
        launch(_composite_backward, values, weights, *piece, *gradients, to_density, to_values)
        return to_density, to_values, None


@kernel(parallel=True)
def _count(origins, directions, shift, occupied, lattice, counts, first):
    for r in prange(len(origins)):
        enter, leave = _span(origins[r], directions[r], lattice)
        k, near, far = _next(np.int64(0), origins[r], directions[r], shift[r], occupied, lattice, enter, leave)
        counts[r], first[r] = 0, k
        while far > near:
            counts[r] += 1
            k, near, far = _next(k + 1, origins[r], directions[r], shift[r], occupied, lattice, enter, leave)


@kernel(parallel=True)
def _fill(origins, directions, shift, occupied, lattice, starts, first, ray, near, far):
    for r in prange(len(origins)):
        enter, leave = _span(origins[r], directions[r], lattice)
        k = first[r]
        for n in range(starts[r], starts[r + 1]):
            k, near[n], far[n] = _next(k, origins[r], directions[r], shift[r], occupied, lattice, enter, leave)
            ray[n] = r
            k += 1


@kernel()
def _span(origin, direction, lattice):
    """Where a ray enters the cube and where it leaves it."""
    real, bound, parallel = lattice.dtype.type, lattice[0], lattice[2]
    enter, leave = real(0), real(np.inf)
    for axis in range(3):
        slope = parallel if abs(direction[axis]) < parallel else direction[axis]
        inverse = real(1) / slope
        first, second = (-bound - origin[axis]) * inverse, (bound - origin[axis]) * inverse
        enter, leave = max(enter, min(first, second)), min(leave, max(first, second))
    return enter, leave


@kernel()
def _next(k, origin, direction, shift, occupied, lattice, enter, leave):
    """The first piece from the k-th on whose middle is occupied: its k, near and far; near = far if none is."""
    real, bound, step = lattice.dtype.type, lattice[0], lattice[1]
    cells, half = len(occupied), real(len(occupied)) / real(2)
    x, y, z = (
        (origin[0] / bound + real(1)) * half,
        (origin[1] / bound + real(1)) * half,
        (origin[2] / bound + real(1)) * half,
    )
    dx, dy, dz = direction[0] / bound * half, direction[1] / bound * half, direction[2] / bound * half
    lowest = np.floor(enter / step - shift)
    while True:
        near = max((lowest + real(k) + shift) * step, enter)
        far = min((lowest + real(k + 1) + shift) * step, leave)
        if near >= leave:
            return k, leave, leave
        middle = (near + far) / real(2)
        i, j, m = _clamp(x + dx * middle, cells), _clamp(y + dy * middle, cells), _clamp(z + dz * middle, cells)
        if occupied[i, j, m] and far > near:
            return k, near, far
        k += 1


@kernel()
def _clamp(coordinate, cells):
    """The cell of a coordinate in units of cells."""
    return min(max(int(coordinate), 0), cells - 1)


@kernel(parallel=True)
def _transmittance(opacity, starts, reaching):
    for r in prange(len(starts) - 1):
        light = opacity.dtype.type(1)
        for n in range(starts[r], starts[r + 1]):
            reaching[n] = light
            light -= light * opacity[n]


@kernel(parallel=True)
def _composite(opacity, values, starts, near, far, accumulated, alpha, depth, weights):
    real, channels = opacity.dtype.type, values.shape[1]
    for r in prange(len(starts) - 1):
        accumulated[r] = real(0)
        light, distance = real(1), real(0)
        for n in range(starts[r], starts[r + 1]):
            weight = light * opacity[n]
            light -= weight
            weights[n] = weight
            distance += weight * (near[n] + far[n]) / real(2)
            for c in range(channels):
                accumulated[r, c] += weight * values[n, c]
        alpha[r], depth[r] = real(1) - light, distance


@kernel(parallel=True)
def _composite_backward(
    values, weights, starts, near, far, to_accumulated, to_alpha, to_depth, to_weights, to_density, to_values
):
    """With q the gradient of a weight, that of density_i length_i is T_(i+1) q_i - sum over j > i of w_j q_j."""
    real, channels = values.dtype.type, values.shape[1]
    for r in prange(len(starts) - 1):
        light = real(1)
        for n in range(starts[r], starts[r + 1]):
            light -= weights[n]
        behind = real(0)
        for n in range(starts[r + 1] - 1, starts[r] - 1, -1):
            q = to_weights[n] + to_alpha[r] + to_depth[r] * (near[n] + far[n]) / real(2)
            for c in range(channels):
                q += to_accumulated[r, c] * values[n, c]
                to_values[n, c] = to_accumulated[r, c] * weights[n]
            to_density[n] = (light * q - behind) * (far[n] - near[n])
            behind += weights[n] * q
            light += weights[n]
