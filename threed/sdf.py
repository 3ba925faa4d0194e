"""A hash-grid signed distance, rendered as a volume: VolSDF (Yariv et al. 2021, arXiv 2106.12052) without a network.

The cube is [-bound, bound]^3 metres; the object lives in its unit ball. Distances are in metres, negative inside;
density is per metre, albedo display sRGB. Distance and albedo are sums over the levels of a multi-resolution hash grid,
the distance on top of a sphere's: a table of zeros is that sphere exactly, and its slope is one look-up. What a level
adds to the distance is counted in its cells, so that a step of the optimiser tilts the surface alike at every level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from threed.errors import Mistake
from threed.hashgrid import cube, summed
from threed.regularizers import eikonal
from threed.renderers import volume
from threed.renderers.camera import Cameras
from threed.renderers.occupancy import Occupancy
from threed.renderers.ops import HashGrid, ops
from threed.renderers.volume import Render, Sample
from threed.renderers.voxels import Voxels

# Betas outside distance 0 at which its silhouette may end: a grazing ray is long in the haze there. A ball of radius R
# hides half of the light at log(sqrt(pi R / 2 beta) / log 2) betas.
OFFSETS = (3.0, 2.5, 2.0, 1.5, 1.0, 0.5, 0.0)
IMITATION_STEPS, IMITATION_POINTS, IMITATION_RATE = 150, 1 << 14, 0.05
IMITATION_EIKONAL = 0.003  # square metres
EIKONAL_POINTS = 1 << 13  # at which a step asks how long the slope is
SURE = 2.0  # voxels: a distance up to this is none that was truncated

Target = Callable[[Tensor], tuple[Tensor, Tensor]]  # "N 3" metres to "N" metres and "N 3" display sRGB


@dataclass(frozen=True)
class SDFConfig:
    grid: HashGrid = field(default_factory=lambda: HashGrid(levels=4, coarsest=8, finest=64))
    bound: float = 1.0  # metres, half the side of the cube
    samples: int = 64  # steps along a side of the cube
    resolution: int = 64  # pixels a side of the pictures that the prior sees
    deferred: bool = False  # whether pictures are drawn again, piece by piece, for their gradient: in less memory
    occupancy: int = 64  # cells along a side of the occupancy grid
    start_radius: float = 0.5  # metres: every run starts from a ball
    beta: float = 0.05  # metres: how soft its surface is at first
    least_beta: float = 0.01  # metres: and how sharp it may become
    distance_rate: float = 0.03  # learning rates: cells of each level
    colour_rate: float = 0.01
    beta_rate: float = 0.04  # shares of what beta has above its least

    def __post_init__(self) -> None:
        if not 0 < self.start_radius < self.bound < math.inf:
            raise Mistake(f"a start_radius of {self.start_radius} m; use one between 0 and the bound, {self.bound} m")
        if not 0 < self.least_beta < self.beta < math.inf:
            raise Mistake(f"a beta of {self.beta} m; use one above least_beta, {self.least_beta} m, and that above 0")
        for name in ("samples", "resolution", "occupancy"):
            if getattr(self, name) < 1:
                raise Mistake(f"{name} is {getattr(self, name)}; use 1 or more")
        for name in ("distance_rate", "colour_rate", "beta_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise Mistake(f"{name} is {getattr(self, name)}; use 0, which keeps it as it is, or a little more")


class SDF(nn.Module):
    """distance(x) = |x| - radius + shape(x), sigma(x) = laplace(distance(x), beta), albedo(x) = sigmoid(colour(x))."""

    def __init__(self, config: SDFConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.shape = nn.Parameter(torch.zeros(config.grid.size, 1))
        self.colour = nn.Parameter(torch.zeros(config.grid.size, 3))
        self.log_beta = nn.Parameter(torch.tensor(config.beta - config.least_beta).log())
        self.occupancy = Occupancy(config.occupancy, config.bound)
        self.occupancy.update(self.density, generator)

    @property
    def bound(self) -> float:
        """Metres, half the side of the cube."""
        return self.config.bound

    @property
    def beta(self) -> Float[Tensor, ""]:
        """Metres: the scale of the surface's softness, above its least by construction."""
        return self.config.least_beta + self.log_beta.exp()

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The densities, per metre, at a few betas outside and at distance 0, where it is 1 / (2 beta)."""
        beta = self.beta.item()
        return tuple(math.exp(-offset) / (2 * beta) for offset in OFFSETS)

    def forward(self, x: Float[Tensor, "N 3"]) -> Sample:
        """Density, albedo and the outward unit normal, along the slope of the distance."""
        normal = functional.normalize(self.slope(x), dim=-1, eps=1e-6)
        return Sample(self.density(x), self.albedo(x), normal)

    def density(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Per metre."""
        return laplace(self.distance(x), self.beta)

    def distance(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Metres, negative inside; as true a distance as its slope is long."""
        encoded = ops(x.device).hash_encode(cube(x, self.bound), self.shape, self.config.grid)
        return x.norm(dim=-1) - self.config.start_radius + encoded @ self._cells

    def albedo(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Display sRGB."""
        return torch.sigmoid(summed(x, self.colour, self.config.grid, self.bound))

    def slope(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """d distance / dx, metres per metre; differentiable in the parameters, a constant in x."""
        cells = self._cells.expand(len(x), -1)
        slope = ops(x.device).hash_gradient(cube(x, self.bound), self.shape, cells, self.config.grid)
        return functional.normalize(x, dim=-1) + slope / (2 * self.config.bound)

    def render(self, cameras: Cameras, size: int | None = None, generator: torch.Generator | None = None) -> Render:
        """Square pictures of `size` pixels; the generator, if any, jitters the samples and asks for slopes anywhere."""
        size, step = size or self.config.resolution, 2 * self.config.bound / self.config.samples
        render = volume.render(self, cameras, size, size, self.occupancy, step, generator, self.config.deferred)
        if generator is None:
            return render
        anywhere = (2 * torch.rand(EIKONAL_POINTS, 3, generator=generator).to(self.shape) - 1) * self.bound
        return replace(render, slope=self.slope(anywhere))

    def param_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [self.shape], "lr": self.config.distance_rate},
            {"params": [self.colour], "lr": self.config.colour_rate},
            {"params": [self.log_beta], "lr": self.config.beta_rate},
        ]

    def after_step(self, step: int, generator: torch.Generator) -> None:
        """Let the occupancy grid follow the density."""
        if step % 8 == 0:
            self.occupancy.update(self.density, generator)

    @property
    def _cells(self) -> Float[Tensor, "L"]:
        """The side of each level's cells, in metres."""
        return 2 * self.config.bound / self.shape.new_tensor(self.config.grid.scales)


def laplace(distance: Float[Tensor, "N"], beta: Float[Tensor, ""]) -> Float[Tensor, "N"]:
    """Density, per metre, of a distance: 1 / beta times a Laplace distribution's share inside (VolSDF, equation 2)."""
    outside = (-distance.clamp(min=0) / beta).exp() / 2
    inside = 1 - (distance.clamp(max=0) / beta).exp() / 2
    return torch.where(distance < 0, inside, outside) / beta


def imitate(sdf: SDF, target: Target, generator: torch.Generator, sure: float = math.inf) -> None:
    """Fit the SDF to a distance and a colour, point by point: what an optimisation then begins from.

    Distances beyond `sure` metres, as truncated ones are, are only known to lie there. Between, the slope has length 1.
    """
    optimizer = torch.optim.Adam([sdf.shape, sdf.colour], lr=IMITATION_RATE, betas=(0.9, 0.99))
    for _ in range(IMITATION_STEPS):
        x = (2 * torch.rand(IMITATION_POINTS, 3, generator=generator) - 1) * sdf.bound
        with torch.no_grad():
            wanted, albedo = target(x)
        known, distance = wanted.clamp(-sure, sure), sdf.distance(x)
        low, high = known.where(wanted > -sure, -math.inf), known.where(wanted < sure, math.inf)
        missed = (distance - distance.detach().clamp(low, high)).square().mean()
        colour = (sdf.albedo(x) - albedo).square().mean()
        optimizer.zero_grad(set_to_none=True)
        (missed + IMITATION_EIKONAL * eikonal(sdf.slope(x)) + colour).backward()
        optimizer.step()
    sdf.occupancy.update(sdf.density, generator)


def imitate_voxels(sdf: SDF, voxels: Voxels, radius: float, generator: torch.Generator) -> None:
    """The same for voxels, whose distances are truncated; what is at `radius` in their frame comes to a metre."""
    voxel = voxels.pitch / radius  # metres

    def target(x: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N 3"]]:
        distance, colour = voxels.at(x * radius)
        return distance * voxel, colour

    imitate(sdf, target, generator, sure=SURE * voxel)
