"""Multi-resolution hash encoding (Müller et al. 2022, arXiv 2201.05989, section 3), in plain PyTorch.

Positions lie in the unit cube and are clamped to it. Tables are laid out as tiny-cuda-nn lays them out: level l puts
x at p = x scale + 1/2 and interpolates between the vertices floor(p) and floor(p) + 1. Vertex (i, j, k) is entry
i + j res + k res^2 where the level's res^3 vertices fit, else i ^ j 2654435761 ^ k 805459861; both modulo its size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from threed.renderers.ops import HashGrid


def hash_encode(x: Float[Tensor, "N 3"], table: Float[Tensor, "P F"], grid: HashGrid) -> Float[Tensor, "N LF"]:
    """The F features of each of the L levels, side by side; trilinear, and differentiable twice."""
    encoded = []
    for level, (scale, resolution) in enumerate(zip(grid.scales, grid.resolutions, strict=True)):
        position = x.clamp(0, 1) * scale + 0.5
        lower = position.detach().floor()
        fraction, vertices = position - lower, table[grid.offsets[level] : grid.offsets[level + 1]]
        weights, entries = [], []
        for corner in product((0, 1), repeat=3):
            upper = torch.tensor(corner, device=x.device)
            weights.append(torch.where(upper == 1, fraction, 1 - fraction).prod(-1))
            entries.append(_entry(lower.long() + upper, resolution, len(vertices)))
        encoded.append(torch.einsum("nc,ncf->nf", torch.stack(weights, 1), vertices[torch.stack(entries, 1)]))
    return torch.cat(encoded, dim=-1)


def hash_gradient(
    x: Float[Tensor, "N 3"], table: Float[Tensor, "P F"], v: Float[Tensor, "N LF"], grid: HashGrid
) -> Float[Tensor, "N 3"]:
    """J(x)^T v with J the slope of `hash_encode`; differentiable in `table` and `v`, a constant in x."""
    return slope(hash_encode, x, table, v, grid)


def slope(
    encode: Callable[[Tensor, Tensor, HashGrid], Tensor], x: Tensor, table: Tensor, v: Tensor, grid: HashGrid
) -> Float[Tensor, "N 3"]:
    """The same of any encoding that is differentiable twice."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(encode(x, table, grid), x, v, create_graph=True)
    return gradient if torch.is_grad_enabled() else gradient.detach()


def _entry(vertex: Int[Tensor, "N 3"], resolution: int, size: int) -> Int[Tensor, "N"]:
    i, j, k = vertex.unbind(-1)
    if resolution**3 <= size:
        return (i + j * resolution + k * resolution**2) % size
    # 64-bit products agree with the 32-bit hash in their low bits, and only those survive the modulo.
    return (i ^ (j * 2654435761) ^ (k * 805459861)) % size
