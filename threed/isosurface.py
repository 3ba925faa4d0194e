"""From a soft volume to a solid: where the surface lies, and what colour it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from skimage.measure import marching_cubes
from torch import Tensor
from torch.nn import functional

from threed.exporters.clean import clean
from threed.pictures import silhouette_iou
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Mesh
from threed.renderers.volume import Field, Render

CHUNK = 1 << 17  # points at once


@runtime_checkable
class Volume(Field, Protocol):
    """A field in the cube [-bound, bound]^3 that can be seen, and made solid."""

    @property
    def bound(self) -> float:
        """Metres, half the side of the cube."""

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Densities, per metre, at one of which its surface lies; ascending."""

    def render(self, cameras: Cameras) -> Render: ...


def extract(volume: Volume, grid: int, smoothing: int) -> Mesh:
    """The closed, outward solid of `best`, cleaned; `smoothing` is the number of Taubin iterations.

    Raises ValueError when no threshold leaves anything solid.
    """
    return clean(best(volume, grid)[1], smoothing=smoothing)


def best(volume: Volume, grid: int) -> tuple[float, Mesh]:
    """The threshold whose solid has the silhouettes that agree best with the volume's, and that solid.

    `grid` is the number of cells along a side. Raises ValueError when no threshold leaves anything solid.
    """
    density = sampled(volume, grid)
    surfaces = {threshold: isosurface(density, threshold, volume.bound) for threshold in volume.thresholds}
    solids = [(threshold, solid) for threshold, solid in surfaces.items() if solid is not None]
    if not solids:
        raise ValueError(f"its density stays below {volume.thresholds[0]} per metre everywhere; use more --steps")
    if len(volume.thresholds) == 1:
        return solids[0]
    cameras = orbit(8)
    with torch.no_grad():
        soft = volume.render(cameras)
    size = soft.alpha.shape[1]

    def agreement(found: tuple[float, Mesh]) -> float:
        return silhouette_iou(surface.render(found[1], cameras, size, size, supersample=1).alpha, soft.alpha)

    return max(solids, key=agreement)


@torch.no_grad()
def sampled(volume: Volume, grid: int) -> Float[Tensor, "X Y Z"]:
    """Density at the (grid + 1)^3 vertices of a lattice over the cube."""
    axis = torch.linspace(-volume.bound, volume.bound, grid + 1)
    points = torch.cartesian_prod(axis, axis, axis)
    return torch.cat([volume.density(p) for p in points.split(CHUNK)]).reshape((grid + 1,) * 3)


def isosurface(density: Float[Tensor, "X Y Z"], threshold: float, bound: float) -> Mesh | None:
    """Marching cubes, closed where the object touches the cube; None where nothing crosses the threshold."""
    # The logarithm is nearly linear across the surface, so that edges are cut where the density is, not halfway.
    level = functional.pad(density.clamp(min=1e-6).log(), (1,) * 6, value=float(np.log(1e-6))).numpy()
    if not level.min() < np.log(threshold) < level.max():
        return None
    spacing = 2 * bound / (len(density) - 1)
    vertices, faces, _, _ = marching_cubes(level, float(np.log(threshold)), spacing=(spacing,) * 3)
    vertices = torch.from_numpy(vertices - bound - spacing).float()
    mesh = Mesh(vertices, torch.from_numpy(faces.astype(np.int64)))
    return mesh if mesh.volume > 0 else Mesh(vertices, mesh.faces.flip(1))


def surface_colour(field: Field, depth: float = 0.08, samples: int = 8) -> Callable[[Tensor, Tensor], Tensor]:
    """What a ray along minus the normal sees of the volume, on its way through `depth` metres around the surface."""
    edges = torch.linspace(-depth / 2, depth / 2, samples + 1)
    middle, length = (edges[1:] + edges[:-1]) / 2, depth / samples

    def colour(points: Float[Tensor, "N 3"], normals: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        ways = points[:, None] - normals[:, None] * middle[:, None]
        sample = field(ways.reshape(-1, 3))
        opacity = 1 - (-sample.density.reshape(-1, samples) * length).exp()
        clear = functional.pad((1 - opacity).cumprod(dim=1)[:, :-1], (1, 0), value=1.0)
        weights = opacity * clear + 1e-6
        return (weights[..., None] * sample.albedo.reshape(-1, samples, 3)).sum(1) / weights.sum(1, keepdim=True)

    return colour
