"""Where cameras stand while a scene is optimised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from threed.renderers.camera import Cameras


@dataclass(frozen=True)
class Views:
    """Cameras at equal steps around the object from a random azimuth, every one at its own elevation."""

    count: int = 4
    elevation: tuple[float, float] = (-5.0, 30.0)  # degrees, drawn uniformly
    distance: tuple[float, float] = (3.0, 3.2)  # metres, drawn uniformly
    fov_y: float = 40.0  # degrees

    def sample(self, generator: torch.Generator) -> Cameras:
        def uniform(low: float, high: float, count: int) -> torch.Tensor:
            return low + (high - low) * torch.rand(count, generator=generator)

        step = 2 * math.pi / self.count
        azimuth = uniform(0.0, 2 * math.pi, 1) + step * torch.arange(self.count)
        low, high = (math.radians(degrees) for degrees in self.elevation)
        fov_y = torch.full((self.count,), math.radians(self.fov_y))
        return Cameras(azimuth, uniform(low, high, self.count), uniform(*self.distance, self.count), fov_y)
