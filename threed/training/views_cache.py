"""What every asset of a collection looks like from around, rendered once and kept on disk.

Arrays of bytes, a row an asset: `albedo.npy` (V 3 H W), `normal.npy` (V 3 H W), `alpha.npy` (V H W), all multiplied by
alpha, so that any plain background can be put behind them; a camera-space normal n is kept as (n + 1) / 2.
`colours.npy` (S 3) has the albedo of points spread evenly over the surface, `cameras.npy` (V 4) float32: azimuth,
elevation, distance, field of view. Objects are centred on their bounding box, their farthest vertex at radius 1.
No shaded pictures: whoever wants them lights albedo by normal, differently every time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from threed.errors import Mistake
from threed.log import Log
from threed.renderers import surface
from threed.renderers.camera import Cameras
from threed.renderers.mesh import Asset
from threed.renderers.ops import ops
from threed.renderers.read import normalised
from threed.training import cache
from threed.training.cache import FEWEST
from threed.training.collection import Item

AT_ONCE = 4  # views, after which the time is looked at


@dataclass(frozen=True)
class Shots:
    """Which pictures are taken of an asset; changing any of it renders everything anew."""

    stage: ClassVar[str] = "render"

    views: int = 24  # at equal steps of azimuth, jittered within; a multiple of 4, for groups a quarter turn apart
    size: int = 64  # pixels a side
    elevation: tuple[float, float] = (-15.0, 45.0)  # degrees, drawn uniformly
    distance: tuple[float, float] = (3.0, 3.2)  # metres, drawn uniformly
    fov_y: float = 40.0  # degrees
    supersample: int = 3  # samples along a side of a pixel
    colours: int = 64  # points of the surface whose albedo is kept
    most_triangles: int = 500_000
    most_seconds: float = 60.0  # for one asset
    seed: int = 0

    def cameras(self, place: int) -> Cameras:
        """Those of the asset in this place of the collection."""
        random = np.random.default_rng((self.seed, place))
        azimuth = (np.arange(self.views) + random.random(self.views)) * (2 * math.pi / self.views)
        elevation = np.radians(random.uniform(*self.elevation, self.views))
        distance = random.uniform(*self.distance, self.views)
        fov_y = np.full(self.views, math.radians(self.fov_y))
        return Cameras(*(torch.from_numpy(a.astype(np.float32)) for a in (azimuth, elevation, distance, fov_y)))

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name, type and shape of what is kept of one asset."""
        return {
            "albedo": ("uint8", (self.views, 3, self.size, self.size)),
            "normal": ("uint8", (self.views, 3, self.size, self.size)),
            "alpha": ("uint8", (self.views, self.size, self.size)),
            "colours": ("uint8", (self.colours, 3)),
            "cameras": ("float32", (self.views, 4)),
        }

    def rows(self, path: Path, place: int) -> tuple[np.ndarray, ...]:
        return photograph(path, place, self)


@dataclass(frozen=True)
class Cache:
    """The pictures of A assets."""

    captions: tuple[tuple[str, ...], ...]  # of every asset at least one
    albedo: UInt8[Tensor, "A V 3 H W"]
    normal: UInt8[Tensor, "A V 3 H W"]
    alpha: UInt8[Tensor, "A V H W"]
    colours: UInt8[Tensor, "A S 3"]  # display sRGB
    cameras: Float[Tensor, "A V 4"]  # azimuth, elevation (radians), distance (metres), fov_y (radians)
    skipped: dict[str, str]  # the names of assets that cannot be used, and why

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str) -> Cache:
        """The same, its pictures in this device's memory."""
        moved = {name: getattr(self, name).to(device) for name in ("albedo", "normal", "alpha")}
        return replace(self, **moved)


def build(
    items: Iterable[Item],
    folder: Path,
    log: Log,
    shots: Shots | None = None,
    workers: int | None = None,
    fewest: int = FEWEST,
) -> Cache:
    """`cache.build` of pictures; raises Mistake also for views that are no multiple of 4."""
    shots = shots or Shots()
    if shots.views % 4:
        raise Mistake(f"views is {shots.views}; use a multiple of 4, so that groups stand a quarter turn apart")
    found = cache.build(items, folder, log, shots, workers, fewest)
    return Cache(found.captions, skipped=found.skipped, **found.arrays)


def photograph(path: Path, place: int, shots: Shots) -> tuple[np.ndarray, ...]:
    """What is kept of one asset, in the order of `Shots.arrays`.

    Raises ValueError for files that are broken, empty, too large or too slow to draw.
    """
    asset = cache.sound(path, shots.most_triangles)
    asset = replace(asset, mesh=normalised(asset.mesh))
    cameras, begun, views = shots.cameras(place), time.monotonic(), []
    for index in range(0, len(cameras), AT_ONCE):
        try:
            views.append(
                surface.render(asset, cameras[index : index + AT_ONCE], shots.size, shots.size, shots.supersample)
            )
        except Exception as error:  # one of thousands of files shall not end the work on all others
            raise ValueError(f"{str(path)!r} cannot be drawn ({error}); export it again") from error
        if time.monotonic() - begun > shots.most_seconds:
            raise ValueError(f"{str(path)!r} takes more than {shots.most_seconds:g} s to draw; simplify it first")
    albedo, normal, alpha = (
        torch.cat([getattr(view, name) for view in views]).movedim(-1, 1) for name in ("albedo", "normal", "alpha")
    )
    if not alpha.any():
        raise ValueError(f"{str(path)!r} cannot be seen; export it again with its full geometry")
    colours = surface_colours(asset, shots.colours, np.random.default_rng((shots.seed, place, 1)))
    angles = torch.stack([getattr(cameras, field.name) for field in fields(cameras)], dim=1)
    return _bytes(albedo), _bytes((normal + alpha) / 2), _bytes(alpha[:, 0]), _bytes(colours), angles.numpy()


def surface_colours(asset: Asset, count: int, random: np.random.Generator) -> Float[Tensor, "N 3"]:
    """The albedo at `count` points, spread over the surface by area."""
    a, b, c = asset.mesh.corners.double().unbind(1)
    area = (b - a).cross(c - a, dim=-1).norm(dim=-1).cumsum(0)
    places = (torch.arange(count) + torch.from_numpy(random.random(count))) / count * area[-1]
    face = torch.searchsorted(area, places, right=True).clamp(max=len(area) - 1)
    u, v = torch.from_numpy(random.random((2, count, 1))).float()
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    first, second, third = asset.uvs[asset.uv_faces[face]].unbind(1)
    uv = first + u * (second - first) + v * (third - first)
    return ops(uv.device).texture(asset.material.base_color, uv)


def _bytes(values: Float[Tensor, "*S"]) -> UInt8[np.ndarray, "*S"]:
    return (values.clamp(0, 1) * 255).round().byte().numpy()
