"""Which cells of the cube are worth sampling (Müller et al. 2022, arXiv 2201.05989, appendix C).

The cube is [-bound, bound]^3 metres, cut into G^3 cells that are indexed [x, y, z]; density is per metre.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class Occupancy(nn.Module):
    """The greatest density seen lately in every cell, and the cells that are therefore sampled.

    Before the first update these are the cells that touch the ball of radius `bound`.
    """

    density: Float[Tensor, "G G G"]
    occupied: Bool[Tensor, "G G G"]

    def __init__(self, resolution: int, bound: float, threshold: float = 0.05, decay: float = 0.9) -> None:
        super().__init__()
        self.bound = bound  # metres, half the side of the cube
        self.threshold = threshold  # the opacity of a cell, crossed along an axis, from which it is occupied
        self.decay = decay  # what an update leaves of the density seen before
        self.register_buffer("density", torch.zeros(resolution, resolution, resolution))
        # Along each axis, the distance from the centre of the cube to the nearest point of the cell, in cells.
        nearest = ((torch.arange(resolution) - (resolution - 1) / 2).abs() - 0.5).clamp(min=0) ** 2
        self.register_buffer("occupied", nearest[:, None, None] + nearest[:, None] + nearest <= (resolution / 2) ** 2)

    @property
    def cell(self) -> float:
        """The side of a cell, in metres."""
        return 2 * self.bound / len(self.density)

    @torch.no_grad()
    def update(self, density: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
        """Look at one random point of every cell; a cell is occupied if it or one of its 26 neighbours is opaque."""
        axis = torch.arange(len(self.density), device=self.density.device)
        corners = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
        offsets = torch.rand(corners.shape, generator=generator).to(self.density.device)
        seen = density((corners + offsets) * self.cell - self.bound).reshape(self.density.shape)
        self.density = torch.maximum(self.density * self.decay, seen)
        opaque = self.density > -math.log1p(-self.threshold) / self.cell
        self.occupied = functional.max_pool3d(opaque[None].float(), 3, stride=1, padding=1)[0].bool()
