"""Marching and compositing by nerfacc (Li et al. 2023, arXiv 2305.04966, MIT), single precision.

It has the samples of all rays in one list as well, and for each ray where its own start and how many they are. Its rays
march in whole steps, from a near plane of each ray on, and keep a step whose middle lies in an occupied cell. Steps at
the border of the cube are cut there by the contract of `march`, and it is the middle of what is left that counts. So it
is asked for more: all steps within reach of an occupied cell, or of one outside; what is too much is left out here.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from threed.renderers.ops import Packed
from threed.renderers.torch_ops.packed import crossing, in_occupied

__all__ = ["composite", "march", "transmittance"]


@torch.no_grad()
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
    import nerfacc

    shift = origins.new_zeros(len(origins)) if jitter is None else jitter
    enter, leave = crossing(origins, directions, bound)
    first = ((enter / step - shift).floor() + shift) * step
    cell = 2 * bound / len(occupied)
    reach = math.floor(step / 2 / cell) + 1  # cells: what is left of a step is as far from its middle as half a step
    padded = functional.pad(occupied.float(), (reach,) * 6)
    grown = functional.max_pool3d(padded[None], 2 * reach + 1, stride=1, padding=reach).bool()
    box = origins.new_tensor([[-1, -1, -1, 1, 1, 1]]) * (bound + reach * cell)
    _, samples, _ = nerfacc.traverse_grids(origins, directions, grown, box, near_planes=first, step_size=step)

    ray = samples.ray_indices.long()
    piece = (samples.vals / step - shift[ray] - 0.5).round()
    near = ((piece + shift[ray]) * step).maximum(enter[ray])
    far = ((piece + 1 + shift[ray]) * step).minimum(leave[ray])
    kept = in_occupied(origins[ray], directions[ray], (near + far) / 2, occupied, bound) & (far > near)
    starts = functional.pad(torch.bincount(ray[kept], minlength=len(origins)).cumsum(0), (1, 0))
    return Packed(starts, ray[kept], near[kept], far[kept])


def composite(
    density: Float[Tensor, "N"], values: Float[Tensor, "N C"], packed: Packed
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R"], Float[Tensor, "R"], Float[Tensor, "N"]]:
    """Front-to-back compositing (Max 1995): values times weights summed along each ray, alpha, depth, and the weights.

    w_i = T_i (1 - exp(-density_i length_i)); depth is the sum of w_i middle_i, not divided by alpha.
    """
    import nerfacc

    weights, _, _ = nerfacc.render_weight_from_density(packed.near, packed.far, density, packed_info=_info(packed))
    summands = torch.cat([values, torch.ones_like(values[:, :1]), packed.middle[:, None]], dim=-1)
    total = nerfacc.accumulate_along_rays(weights, summands, packed.ray, len(packed.starts) - 1)
    return total[:, :-2], total[:, -2], total[:, -1], weights


@torch.no_grad()
def transmittance(density: Float[Tensor, "N"], packed: Packed) -> Float[Tensor, "N"]:
    """The share of light that reaches each sample, without a gradient."""
    import nerfacc

    reaching: Tensor
    reaching, _ = nerfacc.render_transmittance_from_density(packed.near, packed.far, density, packed_info=_info(packed))
    return reaching


def _info(packed: Packed) -> Tensor:
    """Where the samples of each ray start, and how many they are."""
    return torch.stack([packed.starts[:-1], packed.starts.diff()], dim=-1)
