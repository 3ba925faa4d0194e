"""A solid in its own colours: a closed surface on a tetrahedral grid, painted by a hash grid, drawn as triangles.

The second half of coarse to fine (Lin et al. 2022, Magic3D, arXiv 2211.10440, section 4.2): what begins as the surface
of a soft volume becomes crisp, because triangles hide what lies behind them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from threed.isosurface import CHUNK, Volume, surface_colour
from threed.renderers import surface
from threed.renderers.camera import Cameras
from threed.renderers.mesh import Mesh
from threed.renderers.ops import HashGrid, ops
from threed.renderers.volume import Render
from threed.tets import TetConfig, TetScene

PAINTING_STEPS, PAINTING_POINTS, PAINTING_RATE = 150, 1 << 13, 0.05


@dataclass(frozen=True)
class SolidConfig:
    tets: TetConfig = field(default_factory=lambda: TetConfig(resolution=40))
    grid: HashGrid = field(default_factory=lambda: HashGrid(levels=5, coarsest=8, finest=128))
    resolution: int = 64  # pixels a side of the pictures that the prior sees
    supersample: int = 2  # samples along a side of a pixel
    colour_rate: float = 0.01  # learning rate; those of the surface are in `tets`


class Solid(nn.Module):
    """A surface, and albedo(x) = sigmoid(colour(x)) around it; colour is a sum over the levels of its grid."""

    def __init__(self, config: SolidConfig, tets: TetScene) -> None:
        """Grey."""
        super().__init__()
        self.config, self.tets = config, tets
        self.colour = nn.Parameter(torch.zeros(config.grid.size, 3))

    @classmethod
    def from_volume(cls, volume: Volume, threshold: float, config: SolidConfig, generator: torch.Generator) -> Solid:
        """The solid where a volume is denser than `threshold`, in the volume's colours. Raises ValueError for none."""
        solid = cls(config, TetScene.from_field(volume, threshold, config.tets))
        solid.paint(volume, generator)
        return solid

    def continued(self, config: SolidConfig) -> Solid:
        """The same solid, to be optimised at other rates. Raises ValueError for a configuration of other shapes."""
        solid = Solid(config, self.tets.continued(config.tets))
        if solid.colour.shape != self.colour.shape:
            raise ValueError("a solid goes on with the grid of colours that it has; change the recipe's stages")
        solid.load_state_dict(self.state_dict())
        return solid

    @property
    def bound(self) -> float:
        """Metres, half the side of the cube."""
        return self.config.tets.bound

    def albedo(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Display sRGB in [0, 1]."""
        grid, cube = self.config.grid, (points / self.bound + 1) / 2
        encoded = ops(points.device).hash_encode(cube, self.colour, grid)
        return torch.sigmoid(encoded.unflatten(1, (grid.levels, -1)).sum(1))

    def surface(self) -> Mesh:
        return self.tets.mesh()

    def render(self, cameras: Cameras, size: int | None = None, generator: torch.Generator | None = None) -> Render:
        """Square pictures of `size` pixels; nothing about them is random."""
        del generator
        size, mesh = size or self.config.resolution, self.surface()
        render = surface.render(mesh, cameras, size, size, self.config.supersample, smooth=True, albedo=self.albedo)
        return replace(render, mesh=mesh)

    def param_groups(self) -> list[dict[str, Any]]:
        return [*self.tets.param_groups(), {"params": [self.colour], "lr": self.config.colour_rate}]

    def after_step(self, step: int, generator: torch.Generator) -> None:
        """Nothing follows the surface."""

    def paint(self, volume: Volume, generator: torch.Generator) -> None:
        """Fit the colours to what can be seen of a volume, at the vertices of the surface and beside them."""
        mesh = self.surface()
        seen, points, normals = surface_colour(volume), mesh.vertices.detach(), mesh.vertex_normals.detach()
        pieces = zip(points.split(CHUNK), normals.split(CHUNK), strict=True)
        with torch.no_grad():
            colours = torch.cat([seen(*piece) for piece in pieces])
        optimizer = torch.optim.Adam([self.colour], lr=PAINTING_RATE, betas=(0.9, 0.99))
        spread = self.config.tets.cell
        for _ in range(PAINTING_STEPS):
            some = torch.randint(len(points), (PAINTING_POINTS,), generator=generator)
            depth = spread * (2 * torch.rand(PAINTING_POINTS, 1, generator=generator) - 1)
            error = self.albedo(points[some] + depth * normals[some]) - colours[some]
            optimizer.zero_grad(set_to_none=True)
            error.square().mean().backward()
            optimizer.step()
