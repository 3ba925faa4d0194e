"""An asset becomes the files that one place wants: mended, in its budget, with levels of detail and colliders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from threed.exporters import ENCODERS, closed, draco, glb, gltf
from threed.exporters.collider import convex_parts, hull
from threed.exporters.occlusion import shaded
from threed.exporters.presets import Preset
from threed.exporters.repair import repaired
from threed.exporters.report import verify
from threed.exporters.simplify import simplify
from threed.exporters.transfer import refitted
from threed.exporters.unwrap import MOST_FACES, has_room
from threed.renderers.document import COLLIDER, Document, placed
from threed.renderers.mesh import Asset, Material, Mesh

SMALLEST_TEXTURE, PLAIN_TEXTURE = 64, 512  # texels a side: of the last level; of what had a palette only
LARGEST_TEXTURE = 4096  # of a level or a new layout whose charts fit on nothing smaller
BARE = ".stl"  # the format without a look
UNITLESS = {".obj", ".ply", ".stl"}  # formats that fix neither axes nor unit
NAMED = {".glb": glb.encode_files, ".gltf": gltf.encode_files}  # formats in which colliders go by their names
COMPRESSED = {"draco": draco.encode}  # GLB, for programs that have a decoder
COLLIDERS = ("none", "hull", "parts")
CONCAVE = ("-col", "-colonly")  # names of shapes that need not be convex
Z_UP = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # from +Y up; the front is then on -Y


@dataclass(frozen=True)
class Wanted:
    """What is to be made of an asset."""

    preset: Preset
    suffix: str  # of the file
    name: str  # of the asset and its files
    height: float | None = None  # metres; None: as tall as it is
    triangles: int | None = None  # at most; None: what the preset has
    texels: int | None = None  # along a side of a new or larger texture; None: what it had, or the preset's most
    lods: bool = True
    collider: str | None = None  # one of COLLIDERS; None: its own, else a hull where the preset has a name for it
    watertight: bool | None = None  # None: where the preset asks for it
    normal_map: bool = False  # bake the shape that simplification takes away
    occlusion: bool = False  # bake an occlusion map of each file
    compress: str | None = None  # one of COMPRESSED: beside each GLB another one


@dataclass(frozen=True)
class Package:
    """Files by their names, the main one first, and what was done to make them, in words."""

    files: dict[str, bytes]
    assets: dict[str, Asset]
    done: list[str]


def packed(asset: Asset, wanted: Wanted, own: Mapping[str, Mesh] = glb.NONE) -> Package:
    """Everything that is to be written, of an asset and the colliders it has of its own, by their names.

    Raises ValueError for what cannot be made fit.
    """
    main, place, done = fitted(replace(asset, name=wanted.name), wanted)
    verify(main, watertight=wants_watertight(wanted))
    bodies, more = colliders(main, wanted, {name: place(mesh) for name, mesh in own.items()})
    done += more
    assets = {f"{wanted.name}{wanted.suffix}": main}
    for level in levels(main, wanted) if wanted.lods else ():
        assets[f"{level.name}{wanted.suffix}"] = level
        done.append(f"made {level.name}{wanted.suffix} of {len(level.mesh.faces)} triangles")
    found = dict[str, bytes]()
    apart = wanted.preset.collider is None or wanted.suffix not in NAMED
    for name, level in assets.items():
        named = bodies if level is main and not apart else {}
        found |= encoded(oriented(level, wanted), name, named)
        if wanted.compress:
            small = f"{Path(name).stem}_{wanted.compress}{wanted.suffix}"
            found[small] = COMPRESSED[wanted.compress](level, named)
            done.append(f"made {small}, {len(found[small]) / len(found[name]):.0%} as large as {name}")
    if bodies and apart:
        found |= encoded_colliders(list(bodies.values()), main, wanted)
    return Package(found, assets, done)


def wants_watertight(wanted: Wanted) -> bool:
    return wanted.preset.watertight if wanted.watertight is None else wanted.watertight


def fitted(asset: Asset, wanted: Wanted) -> tuple[Asset, Callable[[Mesh], Mesh], list[str]]:
    """Mended, closed if it must be, within the budgets, in its place; how it got there, and what was done, in words."""
    found, done = repaired(asset)
    mesh, shaping = reshaped(found, wanted)
    found, painting = dressed(found, mesh, wanted)
    place = placement(found, wanted)
    return replace(found, mesh=place(found.mesh)), place, done + shaping + painting


def reshaped(asset: Asset, wanted: Wanted) -> tuple[Mesh, list[str]]:
    """Closed if it must be, and of few enough triangles; the same mesh where there was nothing to do."""
    mesh, done = closed.closed(asset) if wants_watertight(wanted) else (asset.mesh, [])
    budget = wanted.triangles or wanted.preset.triangles
    if wanted.suffix != BARE and (mesh is not asset.mesh or len(mesh.faces) > budget):
        budget = min(budget, MOST_FACES)  # it will be unwrapped
    if len(mesh.faces) > budget:
        before, mesh = len(mesh.faces), quietly(mesh, budget)
        done = [*done, f"simplified {before} triangles to {len(mesh.faces)}"]
    return mesh, done


def dressed(asset: Asset, mesh: Mesh, wanted: Wanted) -> tuple[Asset, list[str]]:
    """The look of the asset on a mesh that may be its own, in textures that the preset takes."""
    if wanted.suffix == BARE:
        return bare(asset, mesh), []
    found, done = asset, list[str]()
    if mesh is not asset.mesh:
        found = roomy(asset, mesh, texture_size(asset.material, wanted), wanted.normal_map)
        texels = len(found.material.base_color)
        done.append(f"unwrapped it and baked its look onto {texels} x {texels} texels")
    elif (material := resized(asset.material, wanted)) is not asset.material:
        height, width = material.base_color.shape[:2]
        found = replace(asset, material=material)
        done.append(f"resized its textures to {width} x {height}")
    if (wanted.occlusion or asset.material.occlusion is not None) and found.material.occlusion is None:
        height, width = found.material.base_color.shape[:2]
        if height != width or not has_room(found.uvs, found.uv_faces, width):
            found = roomy(found, found.mesh, texture_size(found.material, wanted), wanted.normal_map)
            done.append("unwrapped it: its layout had no room for occlusion")
        found = shaded(found)
        done.append("baked an occlusion map")
    return found, done


def bare(asset: Asset, mesh: Mesh) -> Asset:
    """Another shape without a look, for a format that has none."""
    grey = Material(torch.full((4, 4, 3), 0.5))
    return replace(asset, mesh=mesh, uvs=torch.full((1, 2), 0.5), uv_faces=torch.zeros_like(mesh.faces), material=grey)


def quietly(mesh: Mesh, budget: int) -> Mesh:
    """Simplified; where the budget would tear it, it keeps more, and what is written says how many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return simplify(mesh, budget)


def levels(main: Asset, wanted: Wanted) -> Iterator[Asset]:
    """Levels of detail: fewer triangles, and a texture half as large for each level, as long as there are fewer.

    They are unwrapped anew, because quadric collapses do not respect the seams of a layout. Raises ValueError.
    """
    before = len(main.mesh.faces)
    for number, share in enumerate(wanted.preset.lods, 1):
        mesh = quietly(main.mesh, max(4, round(len(main.mesh.faces) * share)))
        if len(mesh.faces) >= before:
            return
        before = len(mesh.faces)
        level = roomy(main, mesh, max(SMALLEST_TEXTURE, texture_size(main.material, wanted) >> number))
        level = shaded(level) if main.material.occlusion is not None else level
        verify(level, watertight=wants_watertight(wanted))
        yield replace(level, name=f"{wanted.name}_lod{number}")


def roomy(asset: Asset, mesh: Mesh, side: int, normal_map: bool = False) -> Asset:
    """`refitted` onto a texture of so many texels a side, or the next that its charts fit on. Raises ValueError."""
    while True:
        try:
            return refitted(asset, mesh, side, normal_map)
        except ValueError:
            if side >= LARGEST_TEXTURE or len(mesh.faces) > MOST_FACES:
                raise
            side *= 2


def texture_size(material: Material, wanted: Wanted) -> int:
    """Of a new texture: as many texels as before, in a power of two, and enough where there was but a palette."""
    if wanted.texels:
        return wanted.texels
    return min(wanted.preset.texels, max(PLAIN_TEXTURE, *(power_of_two(x) for x in material.base_color.shape[:2])))


def power_of_two(side: int) -> int:
    """The nearest one, by ratio."""
    lower = 1 << (side.bit_length() - 1)
    return lower if side * side <= 2 * lower * lower else 2 * lower


def resized(material: Material, wanted: Wanted) -> Material:
    """Textures in powers of two that the preset takes; the same where they are."""
    most = min(wanted.texels or wanted.preset.texels, wanted.preset.texels)
    old = material.base_color.shape[:2]
    size = tuple(min(most, power_of_two(side)) for side in old)
    if size == tuple(old):
        return material

    def scaled(texels: torch.Tensor) -> torch.Tensor:
        planes = texels.permute(2, 0, 1)[None]
        return functional.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)[0].permute(
            1, 2, 0
        )

    shine, normal, dim = material.roughness_metallic, material.normal, material.occlusion
    return replace(
        material,
        base_color=scaled(material.base_color).clamp(0, 1),
        roughness_metallic=None if shine is None else scaled(shine).clamp(0, 1),
        occlusion=None if dim is None else scaled(dim).clamp(0, 1),
        normal=None if normal is None else functional.normalize(scaled(normal), dim=-1),
    )


def placement(asset: Asset, wanted: Wanted) -> Callable[[Mesh], Mesh]:
    """What brings an asset, and all that belongs to it, to its height and its origin to where the preset has it."""
    low, high = asset.mesh.vertices.amin(0), asset.mesh.vertices.amax(0)
    scale = torch.ones_like(low[1])
    if wanted.height is not None:
        if not high[1] > low[1]:
            raise ValueError(f"{asset.name!r} is flat, so it has no height to be scaled to; leave --height out")
        scale = wanted.height / (high[1] - low[1])
    middle = (low + high) / 2
    ground = torch.stack([middle[0], low[1], middle[2]])
    origin = {"ground": ground, "centre": middle, "keep": torch.zeros_like(low)}[wanted.preset.pivot]
    return lambda mesh: mesh.with_vertices((mesh.vertices - origin) * scale)


def oriented(asset: Asset, wanted: Wanted) -> Asset:
    """In the preset's axes and unit, where the format does not fix them."""
    preset = wanted.preset
    if wanted.suffix not in UNITLESS or (preset.up, preset.unit) == ("y", 1.0):
        return asset
    turn = Z_UP if preset.up == "z" else torch.eye(3)
    return replace(
        asset, mesh=asset.mesh.with_vertices(asset.mesh.vertices @ turn.to(asset.mesh.vertices).T * preset.unit)
    )


def righted(document: Document, suffix: str, preset: Preset) -> Document:
    """What a file says, in metres and with +Y up, if it is as `oriented` writes it for the preset."""
    if suffix not in UNITLESS:
        return document
    turn = Z_UP if preset.up == "z" else torch.eye(3)
    matrix = np.eye(4)
    matrix[:3, :3] = turn.T.numpy() / preset.unit
    return replace(document, primitives=tuple(placed(each, matrix) for each in document.primitives))


def colliders(asset: Asset, wanted: Wanted, own: Mapping[str, Mesh]) -> tuple[dict[str, Mesh], list[str]]:
    """What physics bumps into, by the names that the engine knows, and a word about it."""
    if own and wanted.collider is None:
        return kept(own, wanted)
    kind = wanted.collider or ("hull" if wanted.preset.collider and wanted.suffix in NAMED else "none")
    if kind == "none":
        return {}, []
    try:
        found = (
            [hull(asset.mesh.vertices[asset.mesh.faces.unique()].numpy())]
            if kind == "hull"
            else convex_parts(asset.mesh)
        )
    except ValueError:
        if wanted.collider:
            raise
        return {}, ["left out the collider: it is flat"]
    triangles = sum(len(each.faces) for each in found)
    return {collider_name(wanted, number): body for number, body in enumerate(found)}, [
        f"added a collider of {len(found)} convex {'part' if len(found) == 1 else 'parts'}, {triangles} triangles"
    ]


def kept(own: Mapping[str, Mesh], wanted: Wanted) -> tuple[dict[str, Mesh], list[str]]:
    """An asset's own colliders under new names.

    What an engine's names say of a shape (Unreal's UBX_, Godot's -colonly) they go on saying to the same engine. To
    another one it is convex: the hull stands for what need not have been.
    """
    found, hulls = dict[str, Mesh](), 0
    for number, (old, mesh) in enumerate(own.items()):
        name = collider_name(wanted, number)
        told, said = (match.group() if (match := COLLIDER.search(each)) else "" for each in (name, old))
        if told and told.startswith("-") == said.startswith("-"):
            name = COLLIDER.sub(said, name)
        elif told and said in CONCAVE:
            mesh, hulls = hull(mesh.vertices.numpy()), hulls + 1
        found[name] = mesh
    count = f"{len(found)} {'collider' if len(found) == 1 else 'colliders'}"
    return found, [f"kept its {count}" + (f", {hulls} as a convex hull" if hulls else "")]


def collider_name(wanted: Wanted, number: int) -> str:
    return (wanted.preset.collider or "{name}_collider_{number:02d}").format(name=wanted.name, number=number)


def encoded_colliders(bodies: list[Mesh], like: Asset, wanted: Wanted) -> dict[str, bytes]:
    """In a file of their own, as an asset in one colour."""
    counts = [len(body.vertices) for body in bodies]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    faces = torch.cat([body.faces + start for body, start in zip(bodies, starts, strict=True)])
    mesh = Mesh(torch.cat([body.vertices for body in bodies]), faces)
    name = f"{wanted.name}_collider"
    asset = bare(replace(like, name=name), mesh)
    return encoded(oriented(asset, wanted), f"{name}{wanted.suffix}", {})


def encoded(asset: Asset, name: str, named: dict[str, Mesh]) -> dict[str, bytes]:
    """The bytes of a file, and of those that it names, which come first."""
    suffix = Path(name).suffix
    return NAMED[suffix](asset, name, named) if named else ENCODERS[suffix](asset, name)
