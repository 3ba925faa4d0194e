"""A solid in its own colours: a closed surface on a tetrahedral grid, painted by a hash grid, drawn as triangles.

The second half of coarse to fine (Lin et al. 2022, Magic3D, arXiv 2211.10440, section 4.2): what begins as the surface
of a soft volume becomes crisp, because triangles hide what lies behind them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from threed.isosurface import CHUNK, Volume, surface_colour
from threed.paint import Paint, PaintConfig
from threed.renderers.camera import Cameras
from threed.renderers.mesh import Mesh
from threed.renderers.volume import Render
from threed.tets import TetConfig, TetScene


@dataclass(frozen=True)
class SolidConfig:
    tets: TetConfig = field(default_factory=lambda: TetConfig(resolution=40))
    paint: PaintConfig = field(default_factory=PaintConfig)
    start_radius: float = 0.5  # metres: with nothing to begin from, a ball
    resolution: int = 64  # pixels a side of the pictures that the prior sees
    supersample: int = 2  # samples along a side of a pixel
    deferred: bool = False  # whether pictures are drawn again, piece by piece, for their gradient: in less memory


class Solid(nn.Module):
    """A surface and the paint on it, optimised together."""

    def __init__(self, config: SolidConfig, tets: TetScene) -> None:
        """Grey."""
        super().__init__()
        self.config, self.tets = config, tets
        self.paint = Paint(config.paint, config.tets.bound)

    @classmethod
    def from_volume(cls, volume: Volume, threshold: float, config: SolidConfig, generator: torch.Generator) -> Solid:
        """The solid where a volume is denser than `threshold`, in the volume's colours. Raises ValueError for none."""
        solid = cls(config, TetScene.from_field(volume, threshold, config.tets))
        mesh, seen = solid.surface(), surface_colour(volume)
        points, normals = mesh.vertices.detach(), mesh.vertex_normals.detach()
        pieces = zip(points.split(CHUNK), normals.split(CHUNK), strict=True)
        with torch.no_grad():
            albedo = torch.cat([seen(*piece) for piece in pieces])
        solid.paint.teach(points, normals, albedo, config.tets.cell, generator)
        return solid

    def continued(self, config: SolidConfig) -> Solid:
        """The same solid, to be optimised at other rates. Raises ValueError for a configuration of other shapes."""
        solid = Solid(config, self.tets.continued(config.tets))
        solid.paint = self.paint.continued(config.paint)
        return solid

    @property
    def bound(self) -> float:
        """Metres, half the side of the cube."""
        return self.config.tets.bound

    def surface(self) -> Mesh:
        return self.tets.mesh()

    def render(self, cameras: Cameras, size: int | None = None, generator: torch.Generator | None = None) -> Render:
        """Square pictures of `size` pixels; nothing about them is random."""
        del generator
        size, mesh = size or self.config.resolution, self.surface()
        return self.paint.drawn(mesh, cameras, size, self.config.supersample, True, self.config.deferred)

    def param_groups(self) -> list[dict[str, Any]]:
        return [*self.tets.param_groups(), *self.paint.param_groups()]

    def after_step(self, step: int, generator: torch.Generator) -> None:
        """Nothing follows the surface."""
