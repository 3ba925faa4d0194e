"""Marching and compositing of ragged rays, in plain PyTorch.

Distances are metres along a ray from its origin; density is per metre.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from threed.renderers.ops import Packed

PARALLEL = 1e-12  # a direction's component below this never leaves its slab


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
    enter, leave = crossing(origins, directions, bound)
    lowest = (enter / step - shift).floor()
    count = int(((leave - enter).amax() / step).ceil()) + 2 if (leave > enter).any() else 0
    cuts = (lowest[:, None] + torch.arange(count + 1, device=origins.device) + shift[:, None]) * step
    near, far = cuts[:, :-1].maximum(enter[:, None]), cuts[:, 1:].minimum(leave[:, None])
    inside = in_occupied(origins[:, None], directions[:, None], (near + far) / 2, occupied, bound)
    ray, piece = (inside & (far > near)).nonzero(as_tuple=True)
    starts = functional.pad(torch.bincount(ray, minlength=len(origins)).cumsum(0), (1, 0))
    return Packed(starts, ray, near[ray, piece], far[ray, piece])


def crossing(
    origins: Float[Tensor, "R 3"], directions: Float[Tensor, "R 3"], bound: float
) -> tuple[Float[Tensor, "R"], Float[Tensor, "R"]]:
    """Where rays enter and leave the cube [-bound, bound]^3; those that miss it leave before they enter."""
    inverse = 1 / torch.where(directions.abs() < PARALLEL, PARALLEL, directions)
    first, second = (-bound - origins) * inverse, (bound - origins) * inverse
    return torch.minimum(first, second).amax(-1).clamp(min=0), torch.maximum(first, second).amin(-1)


def in_occupied(
    origins: Float[Tensor, "*#P 3"],
    directions: Float[Tensor, "*#P 3"],
    distance: Float[Tensor, "*P"],
    occupied: Bool[Tensor, "G G G"],
    bound: float,
) -> Bool[Tensor, "*P"]:
    """Whether the point at that distance lies in an occupied cell; outside the cube, whether the nearest one is."""
    cells = len(occupied)
    corner, along = (origins / bound + 1) * (cells / 2), directions / bound * (cells / 2)  # in units of cells
    i, j, k = (corner + along * distance[..., None]).long().clamp(0, cells - 1).unbind(-1)
    return occupied[i, j, k]


def composite(
    density: Float[Tensor, "N"], values: Float[Tensor, "N C"], packed: Packed
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R"], Float[Tensor, "R"], Float[Tensor, "N"]]:
    """Front-to-back compositing (Max 1995): values times weights summed along each ray, alpha, depth, and the weights.

    w_i = T_i (1 - exp(-density_i length_i)); depth is the sum of w_i middle_i, not divided by alpha.
    """
    weights = _transmittance(density, packed) * opacity(density, packed)
    summands = torch.cat([values, torch.ones_like(values[:, :1]), packed.middle[:, None]], dim=-1)
    total = summands.new_zeros(len(packed.starts) - 1, summands.shape[-1])
    total = total.index_add(0, packed.ray, summands * weights[:, None])
    return total[:, :-2], total[:, -2], total[:, -1], weights


def opacity(density: Float[Tensor, "N"], packed: Packed) -> Float[Tensor, "N"]:
    """The share of the light reaching a sample that it stops: 1 - exp(-density length)."""
    return -torch.expm1(-density * (packed.far - packed.near))


@torch.no_grad()
def transmittance(density: Float[Tensor, "N"], packed: Packed) -> Float[Tensor, "N"]:
    """The share of light that reaches each sample, without a gradient."""
    return _transmittance(density, packed)


def _transmittance(density: Float[Tensor, "N"], packed: Packed) -> Float[Tensor, "N"]:
    """T_i = exp(-sum of density_j length_j over the samples of the ray before i)."""
    # Doubles, because a ray's sum is a difference of sums over all rays.
    thickness = (density * (packed.far - packed.near)).double()
    before = thickness.cumsum(0) - thickness
    before = before - functional.pad(before, (0, 1))[packed.starts[:-1]][packed.ray]
    return torch.exp(-before).to(density)
