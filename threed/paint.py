"""Paint on surfaces: a hash grid of albedo and, if asked for, of gloss and bumps; and a user's mesh in such paint.

With a finish, paint is what Chen et al. optimise (2023, Fantasia3D, arXiv 2303.13873, section 3.2): the whole material,
judged by what light makes of it. The lamp goes round with the cameras, so no side's shade is taken for its colour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from threed.hashgrid import summed
from threed.latents import Latents, check
from threed.renderers import surface
from threed.renderers.camera import Cameras
from threed.renderers.light import studio
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.ops import HashGrid, ops
from threed.renderers.shading import Finish, Finished
from threed.renderers.volume import Render

TEACHING_STEPS, TEACHING_POINTS, TEACHING_RATE = 150, 1 << 13, 0.05
SCATTERED = 1 << 16  # points of a mesh whose colours are learned
ROUGH, METAL = 0.7, 0.1  # what paint with a finish begins as
STEEPEST = 0.7  # of a bump along each axis of the world: at most 50 degrees in all


@dataclass(frozen=True)
class PaintConfig:
    grid: HashGrid = field(default_factory=lambda: HashGrid(levels=5, coarsest=8, finest=128))
    rate: float = 0.01  # learning rate
    latents: bool = False  # whether the colours are the prior's latents
    finish: bool = False  # whether roughness, metallic and normals are painted too, and pictures drawn under a light


class Paint(nn.Module):
    """albedo(x) = sigmoid(colour(x)) in [-bound, bound]^3 metres, colour a sum over the levels of a hash grid.

    A finish has five such sums more: roughness and metallic through a sigmoid, a bump through a hyperbolic tangent.
    Where colours are latents, the albedo is what these look like.
    """

    def __init__(self, config: PaintConfig, bound: float, latents: Latents | None = None) -> None:
        """Grey, or latents of 0; a finish is even, rather rough, and hardly a metal."""
        super().__init__()
        check(config.latents, latents)
        self.config, self.bound, self.latents = config, bound, latents
        self.colour = nn.Parameter(torch.zeros(config.grid.size, latents.channels if latents else 3))
        self.gloss = nn.Parameter(torch.zeros(config.grid.size, 5)) if config.finish else None

    def forward(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Display sRGB in [0, 1]."""
        return self.seen(points)[:, :3]

    def seen(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N C"]:
        """Display sRGB, and beside it any latents, as `surface.render` wants them."""
        colour = summed(points, self.colour, self.config.grid, self.bound)
        return torch.sigmoid(colour) if self.latents is None else torch.cat([self.latents(colour), colour], dim=-1)

    @property
    def finish(self) -> Finished | None:
        """Roughness, metallic and bump at points in metres; None for paint that is colour alone."""
        return None if self.gloss is None else self._finish

    def drawn(
        self, mesh: Mesh, cameras: Cameras, size: int, supersample: int, smooth: bool = False, deferred: bool = False
    ) -> Render:
        """Square pictures of a mesh in this paint; with a finish, under a lamp at the first viewer's shoulder."""
        light = studio(cameras.azimuth[0]) if self.finish else None
        return surface.render(mesh, cameras, size, size, supersample, smooth, self.seen, light, self.finish, deferred)

    def continued(self, config: PaintConfig) -> Paint:
        """The same paint, at another rate, and a finish begun where it had none. Raises ValueError for other grids."""
        was = self.config
        if (config.grid, config.latents) != (was.grid, was.latents) or was.finish > config.finish:
            raise ValueError("paint goes on with the grid and the finish that it has; change the recipe's stages")
        paint = Paint(config, self.bound, self.latents)
        paint.load_state_dict(paint.state_dict() | self.state_dict())
        return paint

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": self.config.rate}]

    def _finish(self, points: Float[Tensor, "N 3"]) -> Finish:
        assert self.gloss is not None
        gloss = summed(points, self.gloss, self.config.grid, self.bound)
        even = gloss.new_tensor([ROUGH, METAL]).logit()
        roughness, metallic = torch.sigmoid(gloss[:, :2] + even).split(1, dim=-1)
        return Finish(roughness, metallic, STEEPEST * gloss[:, 2:].tanh())

    def teach(
        self,
        points: Float[Tensor, "N 3"],
        normals: Float[Tensor, "N 3"],
        albedo: Float[Tensor, "N 3"],
        depth: float,
        generator: torch.Generator,
    ) -> None:
        """Fit these colours at the points, and up to `depth` metres before and behind them, along the normals."""
        optimizer = torch.optim.Adam([self.colour], lr=TEACHING_RATE, betas=(0.9, 0.99))
        for _ in range(TEACHING_STEPS):
            some = torch.randint(len(points), (TEACHING_POINTS,), generator=generator)
            away = depth * (2 * torch.rand(TEACHING_POINTS, 1, generator=generator) - 1)
            error = self(points[some] + away * normals[some]) - albedo[some]
            optimizer.zero_grad(set_to_none=True)
            error.square().mean().backward()
            optimizer.step()


@dataclass(frozen=True)
class PaintedConfig:
    paint: PaintConfig = field(default_factory=lambda: PaintConfig(rate=0.03))
    resolution: int = 64  # pixels a side of the pictures that the prior sees
    supersample: int = 2  # samples along a side of a pixel
    deferred: bool = False  # whether pictures are drawn again, piece by piece, for their gradient: in less memory


class Painted(nn.Module):
    """An asset in new colours: its triangles and its UVs stay as they are (Latent-Paint's kind, arXiv 2211.07600)."""

    bound = 1.0
    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]

    def __init__(
        self, config: PaintedConfig, asset: Asset, generator: torch.Generator, latents: Latents | None = None
    ) -> None:
        """In the asset's own colours; its farthest vertex is at radius 1, as `normalised` has it."""
        super().__init__()
        self.config, self.asset = config, asset
        self.register_buffer("vertices", asset.mesh.vertices, persistent=False)
        self.register_buffer("faces", asset.mesh.faces, persistent=False)
        self.paint = Paint(config.paint, self.bound, latents)
        self.paint.teach(*scattered(asset, SCATTERED, generator), 0.01, generator)

    def render(self, cameras: Cameras, size: int | None = None, generator: torch.Generator | None = None) -> Render:
        """Square pictures of `size` pixels; nothing about them is random."""
        del generator
        latents, mesh = self.paint.latents, Mesh(self.vertices, self.faces)
        size = size or (latents.side if latents else self.config.resolution)
        return self.paint.drawn(mesh, cameras, size, self.config.supersample, deferred=self.config.deferred)

    def param_groups(self) -> list[dict[str, Any]]:
        return self.paint.param_groups()

    def after_step(self, step: int, generator: torch.Generator) -> None:
        """The mesh stays as it is."""


def scattered(
    asset: Asset, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Points spread evenly over a surface, in metres, the unit normals of their faces, and their display sRGB."""
    mesh = asset.mesh
    a, b, c = mesh.corners.unbind(1)
    area = (b - a).cross(c - a, dim=-1).norm(dim=-1)
    face = torch.multinomial(area, count, replacement=True, generator=generator)
    u, v = torch.rand(2, count, generator=generator)
    weights = torch.stack([1 - u.sqrt(), u.sqrt() * (1 - v), u.sqrt() * v], dim=-1)[:, None]  # uniform in a triangle
    points, uvs = (weights @ corners[face] for corners in (mesh.corners, asset.uvs[asset.uv_faces]))
    albedo = ops(uvs.device).texture(asset.material.base_color, uvs[:, 0])
    return points[:, 0], mesh.face_normals[face], albedo
