"""What each place wants of an asset, as data; figures and where they come from are in docs/export.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """glTF fixes metres and +Y up; `unit` and `up` hold for formats that fix neither: OBJ, PLY, STL."""

    name: str
    triangles: int  # at most
    texels: int  # along a side of a texture, at most
    suffix: str  # of the format that it takes best
    lods: tuple[float, ...] = ()  # triangles of the files beside the asset, as shares of its own
    collider: str | None = None  # what its mesh is called, where the engine finds one by its name
    watertight: bool = False  # whether it takes nothing else
    lit: bool = True  # whether it is drawn at all, so that normals matter
    pivot: str = "ground"  # where the origin is: ground (under the middle), centre, or keep
    unit: float = 1.0  # of lengths, in units a metre
    up: str = "y"


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("web", triangles=50_000, texels=2048, suffix=".glb"),
        Preset("godot", 50_000, 2048, ".glb", lods=(0.5, 0.25, 0.1), collider="{name}_{number:02d}-convcolonly"),
        Preset("unity", 50_000, 2048, ".glb", lods=(0.5, 0.25, 0.1)),
        Preset("unreal", 50_000, 2048, ".glb", lods=(0.5, 0.25, 0.1), collider="UCX_{name}_{number:02d}"),
        Preset("roblox", 20_000, 1024, ".glb", watertight=True, pivot="centre"),
        Preset("print", 1_000_000, 2048, ".stl", watertight=True, lit=False, unit=1000.0, up="z"),
    )
}
