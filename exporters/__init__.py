"""From a raw surface to a file that engines open: one verb a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from threed.exporters import glb, obj
from threed.renderers.mesh import Asset

WRITERS: dict[str, Callable[[Asset, Path], None]] = {".glb": glb.write, ".obj": obj.write}


def export(asset: Asset, path: Path | str) -> None:
    """Write `asset` in the format that the suffix of `path` names. Raises ValueError for an unknown one, OSError."""
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"cannot write {path.suffix!r}; use one of {sorted(WRITERS)}")
    WRITERS[path.suffix.lower()](asset, path)


def place(asset: Asset, height: float) -> Asset:
    """Stand the asset on the ground: `height` metres tall, centred in x and z, its lowest point at y = 0."""
    vertices = asset.mesh.vertices
    low, high = vertices.amin(0), vertices.amax(0)
    if not height > 0 or not high[1] > low[1]:
        raise ValueError(f"cannot scale {float(high[1] - low[1])} to a height of {height}; both must be above 0")
    ground = vertices.new_tensor([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    placed = (vertices - ground) * (height / (high[1] - low[1]))
    return replace(asset, mesh=asset.mesh.with_vertices(placed))
