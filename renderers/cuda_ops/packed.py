"""Marching and compositing of ragged rays on CUDA, one thread a ray; `torch_ops.packed` states the conventions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from threed.renderers.cuda_ops.launch import launch
from threed.renderers.ops import Packed
from threed.renderers.torch_ops.packed import PARALLEL


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
    rays = len(origins), origins, directions, shift, occupied, len(occupied), bound, step, PARALLEL
    counts = torch.empty(len(origins), dtype=torch.int64, device=origins.device)
    first = torch.empty_like(counts)
    launch("packed", "count_pieces", *rays, counts, first)
    starts = functional.pad(counts.cumsum(0), (1, 0))
    near = origins.new_empty(int(starts[-1]))
    far, ray = torch.empty_like(near), starts.new_empty(len(near))
    launch("packed", "fill_pieces", *rays, starts, first, ray, near, far)
    return Packed(starts, ray, near, far)


def composite(
    density: Float[Tensor, "N"], values: Float[Tensor, "N C"], packed: Packed
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R"], Float[Tensor, "R"], Float[Tensor, "N"]]:
    """Front-to-back compositing (Max 1995): values times weights summed along each ray, alpha, depth, and the weights.

    w_i = T_i (1 - exp(-density_i length_i)); depth is the sum of w_i middle_i, not divided by alpha.
    """
    return _Composite.apply(density, values, packed)


@torch.no_grad()
def transmittance(density: Float[Tensor, "N"], packed: Packed) -> Float[Tensor, "N"]:
    """The share of light that reaches each sample, without a gradient."""
    reaching, rays = density.new_empty(len(density)), len(packed.starts) - 1
    launch("packed", "transmittance", rays, density, packed.starts, packed.near, packed.far, reaching)
    return reaching


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, values: Tensor, packed: Packed) -> tuple[Tensor, ...]:
        rays, channels = len(packed.starts) - 1, values.shape[1]
        alpha, depth = density.new_empty(rays), density.new_empty(rays)
        weights, accumulated = density.new_empty(len(density)), values.new_empty(rays, channels)
        piece = packed.starts, packed.near, packed.far
        launch("packed", "weigh", rays, density, *piece, alpha, depth, weights)
        launch("packed", "accumulate", rays * channels, values, weights, packed.starts, channels, accumulated)
        ctx.save_for_backward(values, weights, *piece)
        return accumulated, alpha, depth, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weights, *piece = ctx.saved_tensors
        to_density = torch.empty_like(weights)
        to_values = torch.empty_like(values, memory_format=torch.contiguous_format)
        given = values, weights, *piece, values.shape[1], *gradients
        launch("packed", "composite_backward", len(piece[0]) - 1, *given, to_density, to_values)
        return to_density, to_values, None
