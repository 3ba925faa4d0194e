"""A hash-grid NeRF: density and albedo at every point of a cube, rendered as a volume.

The cube is [-bound, bound]^3 metres; the object lives in its unit ball. Density is per metre, albedo display sRGB.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from threed.renderers import volume
from threed.renderers.camera import Cameras
from threed.renderers.occupancy import Occupancy
from threed.renderers.ops import HashGrid, ops
from threed.renderers.volume import Render, Sample


@dataclass(frozen=True)
class NeRFConfig:
    grid: HashGrid = field(default_factory=HashGrid)
    hidden: int = 32  # width of the one hidden layer
    bound: float = 1.0  # metres, half the side of the cube
    samples: int = 64  # steps along a side of the cube
    resolution: int = 64  # pixels a side of the pictures that the prior sees
    occupancy: int = 48  # cells along a side of the occupancy grid
    start_radius: float = 0.5  # metres: every run starts from a soft ball
    start_slope: float = 10.0  # fall of its logit, per metre
    peak: float = 20.0  # density at logit 1, roughly: sigma = peak * softplus(logit)
    learning_rate: float = 0.01


class NeRF(nn.Module):
    """sigma(x) = peak softplus(logit(x)) with logit = network(x) + ball(x); the same network gives the albedo."""

    def __init__(self, config: NeRFConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        encoded = config.grid.levels * config.grid.features
        table = (torch.rand(config.grid.size, config.grid.features, generator=generator) - 0.5) * 2e-4
        self.table = nn.Parameter(table)
        self.inner = nn.Parameter(torch.randn(encoded, config.hidden, generator=generator) * (2 / encoded) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(config.hidden))
        self.outer = nn.Parameter(torch.randn(config.hidden, 4, generator=generator) * config.hidden**-0.5)
        self.occupancy = Occupancy(config.occupancy, config.bound)

    def forward(self, x: Float[Tensor, "N 3"]) -> Sample:
        """Density, albedo and the outward unit normal: minus the slope of the logit, by the chain rule."""
        primitives, cube = ops(x.device), (x / self.config.bound + 1) / 2
        encoded = primitives.hash_encode(cube, self.table, self.config.grid)
        before = encoded @ self.inner + self.bias
        output = functional.softplus(before) @ self.outer
        ball, ball_slope = self._ball(x)
        through = (torch.sigmoid(before) * self.outer[:, 0]) @ self.inner.T
        slope = primitives.hash_gradient(cube, self.table, through, self.config.grid) / (2 * self.config.bound)
        normal = -functional.normalize(slope + ball_slope, dim=-1, eps=1e-6)
        return Sample(self._density(output[:, 0] + ball), torch.sigmoid(output[:, 1:]), normal)

    def density(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Per metre."""
        encoded = ops(x.device).hash_encode((x / self.config.bound + 1) / 2, self.table, self.config.grid)
        output = functional.softplus(encoded @ self.inner + self.bias) @ self.outer[:, 0]
        return self._density(output + self._ball(x)[0])

    def render(self, cameras: Cameras, size: int | None = None, generator: torch.Generator | None = None) -> Render:
        """Square pictures of `size` pixels; the generator, if any, jitters the samples along the rays."""
        size, step = size or self.config.resolution, 2 * self.config.bound / self.config.samples
        return volume.render(self, cameras, size, size, self.occupancy, step, generator)

    def param_groups(self) -> list[dict]:
        rate = self.config.learning_rate
        return [
            {"params": [self.table], "lr": rate},
            {"params": [self.inner, self.bias, self.outer], "lr": rate},
        ]

    @torch.no_grad()
    def after_step(self, step: int, generator: torch.Generator) -> None:
        """Let the occupancy grid follow the density."""
        if step % 8 == 0:
            self.occupancy.update(self.density, generator)

    def _density(self, logit: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return self.config.peak * functional.softplus(logit)

    def _ball(self, x: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N 3"]]:
        """The logit of the ball that every run starts from, and its slope (Magic3D's density bias, 2211.10440)."""
        radius = x.norm(dim=-1)
        logit = self.config.start_slope * (self.config.start_radius - radius)
        return logit, -self.config.start_slope * x / radius.clamp(min=1e-6)[:, None]
