"""A hash-grid NeRF: density and albedo at every point of a cube, rendered as a volume.

The cube is [-bound, bound]^3 metres; the object lives in its unit ball. Density is per metre, albedo display sRGB.
Both are sums over the levels of a multi-resolution hash grid, without a network behind them: smooth and fine grids add
up, there is no network to evaluate, and the slope of the density is one look-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from threed.errors import Mistake
from threed.hashgrid import cube, summed
from threed.latents import Latents, check
from threed.renderers import volume
from threed.renderers.camera import Cameras
from threed.renderers.occupancy import Occupancy
from threed.renderers.ops import HashGrid, ops
from threed.renderers.volume import Render, Sample
from threed.sketch import Sketch

FREE = (
    "resolution",
    "samples",
    "shape_rate",
    "colour_rate",
    "latents",
    "lenience",
    "deferred",
)  # what may change in a later stage
THRESHOLDS = (2.5, 3.5, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0)  # densities, per metre


@dataclass(frozen=True)
class NeRFConfig:
    grid: HashGrid = field(default_factory=lambda: HashGrid(levels=4, coarsest=8, finest=64))
    bound: float = 1.0  # metres, half the side of the cube
    samples: int = 48  # steps along a side of the cube
    resolution: int = 64  # pixels a side of the pictures that the prior sees
    deferred: bool = False  # whether pictures are drawn again, piece by piece, for their gradient: in less memory
    occupancy: int = 64  # cells along a side of the occupancy grid
    start_radius: float = 0.5  # metres: every run starts from a soft ball
    start_slope: float = 16.0  # fall of its logit, per metre
    peak: float = 20.0  # sigma = peak * softplus(logit), per metre
    shape_rate: float = 0.06  # learning rates; a colour that settles before the shape does settles on grey
    colour_rate: float = 0.01
    latents: bool = False  # whether its colours are the prior's latents, rendered as many as the prior has of a picture
    lenience: float | None = None  # metres from the surface of its beginning within which it is free; None: anywhere

    def __post_init__(self) -> None:
        if self.lenience is not None and not 0 < self.lenience < math.inf:
            raise Mistake(f"a lenience of {self.lenience} m; use one above 0, such as 0.1, or none for a free shape")


class NeRF(nn.Module):
    """sigma(x) = peak softplus(shape(x) + ball(x)), albedo(x) = sigmoid(colour(x)).

    Where colours are latents, the albedo is what these look like.
    """

    def __init__(
        self,
        config: NeRFConfig,
        generator: torch.Generator,
        latents: Latents | None = None,  # of the prior, where its colours are
    ) -> None:
        super().__init__()
        check(config.latents, latents)
        self.config, self.latents = config, latents
        self.sketch: Sketch | None = None  # what its shape is held to
        self.shape = nn.Parameter(_nearly_zero(config.grid.size, 1, generator))
        self.colour = nn.Parameter(_nearly_zero(config.grid.size, latents.channels if latents else 3, generator))
        self.occupancy = Occupancy(config.occupancy, config.bound)
        self.occupancy.update(self.density, generator)

    @property
    def bound(self) -> float:
        """Metres, half the side of the cube."""
        return self.config.bound

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Densities, per metre, at one of which its surface lies."""
        return THRESHOLDS

    def forward(self, x: Float[Tensor, "N 3"]) -> Sample:
        """Density, albedo and the outward unit normal, against the slope of the density."""
        grid, bound = self.config.grid, self.config.bound
        every_level = self.shape.new_ones(len(x), grid.levels)
        slope = ops(x.device).hash_gradient(cube(x, bound), self.shape, every_level, grid) / (2 * bound)
        toward_centre = -self.config.start_slope * functional.normalize(x, dim=-1)
        normal = -functional.normalize(slope + toward_centre, dim=-1, eps=1e-6)
        colour = summed(x, self.colour, grid, bound)
        if self.latents is None:
            return Sample(self.density(x), torch.sigmoid(colour), normal)
        return Sample(self.density(x), self.latents(colour), normal, colour)

    def density(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Per metre. The ball is Magic3D's density bias (Lin et al. 2022, arXiv 2211.10440, section 4.1)."""
        ball = self.config.start_slope * (self.config.start_radius - x.norm(dim=-1))
        logit = summed(x, self.shape, self.config.grid, self.config.bound)[:, 0] + ball
        return self.config.peak * functional.softplus(logit)

    def render(self, cameras: Cameras, size: int | None = None, generator: torch.Generator | None = None) -> Render:
        """Square pictures of `size` pixels; the generator, if any, jitters the samples and asks what it is held to."""
        side = self.latents.side if self.latents else self.config.resolution
        size, step = size or side, 2 * self.config.bound / self.config.samples
        render = volume.render(self, cameras, size, size, self.occupancy, step, generator, self.config.deferred)
        if generator is None or self.sketch is None:
            return render
        return replace(render, sketch=self.sketch(self.density, generator))

    def continued(self, config: NeRFConfig, generator: torch.Generator) -> NeRF:
        """The same shape and colours; where these were latents, still to be taught.

        Raises ValueError for a configuration of another shape.
        """
        was = self.config
        if replace(was, **{name: getattr(config, name) for name in FREE}) != config:
            raise ValueError(f"a volume of {was} cannot go on as {config}; change {', '.join(FREE)} alone")
        nerf = NeRF(config, generator)
        with torch.no_grad():
            nerf.shape.copy_(self.shape)
            if self.latents is None:
                nerf.colour.copy_(self.colour)
        nerf.occupancy.update(nerf.density, generator)
        return nerf

    def param_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [self.shape], "lr": self.config.shape_rate},
            {"params": [self.colour], "lr": self.config.colour_rate},
        ]

    def after_step(self, step: int, generator: torch.Generator) -> None:
        """Let the occupancy grid follow the density."""
        if step % 8 == 0:
            self.occupancy.update(self.density, generator)


def _nearly_zero(rows: int, columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    """The first values of a hash grid, as in Müller et al. 2022 (arXiv 2201.05989, section 4)."""
    return (torch.rand(rows, columns, generator=generator) - 0.5) * 2e-4
