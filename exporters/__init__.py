"""From a raw surface to a file that engines open: one verb a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from threed.exporters import files, glb, gltf, obj, ply, stl, usdz
from threed.renderers.mesh import Asset

# The bytes of a file by its name, after those of the files that it names: whoever sees it finds them.
ENCODERS: dict[str, Callable[[Asset, str], dict[str, bytes]]] = {
    ".glb": glb.encode_files,
    ".gltf": gltf.encode_files,
    ".obj": obj.encode_files,
    ".ply": ply.encode_files,
    ".stl": stl.encode_files,
    ".usdz": usdz.encode_files,
}


def export(asset: Asset, path: Path | str) -> None:
    """Write `asset` in the format that the suffix of `path` names. Raises ValueError for an unknown one, OSError."""
    path = Path(path)
    if path.suffix.lower() not in ENCODERS:
        raise ValueError(f"cannot write {path.suffix!r}; use one of {sorted(ENCODERS)}")
    for name, content in ENCODERS[path.suffix.lower()](asset, path.name).items():
        files.write(path.with_name(name), content)


def place(asset: Asset, height: float) -> Asset:
    """Stand the asset on the ground: `height` metres tall, centred in x and z, its lowest point at y = 0."""
    vertices = asset.mesh.vertices
    low, high = vertices.amin(0), vertices.amax(0)
    if not height > 0 or not high[1] > low[1]:
        raise ValueError(f"cannot scale {float(high[1] - low[1])} to a height of {height}; both must be above 0")
    ground = vertices.new_tensor([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    placed = (vertices - ground) * (height / (high[1] - low[1]))
    return replace(asset, mesh=asset.mesh.with_vertices(placed))
