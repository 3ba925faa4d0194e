"""What is wrong with a mesh file, or odd about it, each with its remedy; every finding is a function of its own.

An error means that engines refuse the file or show it wrongly, a warning that some do or that work with it will go
wrong, a note that it may be meant. Shares are of the number or the area of what is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from threed.exporters import defects
from threed.exporters.presets import PRESETS, Preset
from threed.exporters.unwrap import OVERLAP, overlap
from threed.renderers.document import Document, Primitive
from threed.renderers.mesh import UNIT_SLACK, Mesh
from threed.renderers.read import joined, welded
from threed.renderers.topology import Edges, edges

SEVERITIES = ("note", "warning", "error")
SLIVER = 0.01  # height over the longest side
MANY = 0.01  # of the triangles
UNEVEN = 4.0  # how many times as many texels a metre as elsewhere
TALL, SMALL = 100.0, 0.01  # metres, beyond which the unit is in doubt
LARGEST = 2048  # texels a side
OFF = 0.02  # of the size: how far from the ground or the middle is off it
UNTIGHT = {"open", "crowded", "turned"}
PAINT = 1024  # texels a side, at which overlaps are measured


@dataclass(frozen=True)
class Finding:
    severity: str  # one of SEVERITIES
    name: str  # of the kind, for programs
    message: str
    remedy: str


@dataclass(frozen=True)
class Surface:
    """All triangles of a file that are to be seen, welded."""

    mesh: Mesh
    sound: Mesh  # without triangles that have no area or are there twice
    edges: Edges  # of those

    @staticmethod
    def of(primitives: Sequence[Primitive]) -> Surface:
        vertices, faces = welded(primitives)
        mesh = Mesh(torch.from_numpy(vertices), torch.from_numpy(faces))
        sound = Mesh(mesh.vertices, mesh.faces[~(collapsed(mesh) | defects.repeated(mesh))])
        return Surface(mesh, sound, edges(sound.faces))


def collapsed(mesh: Mesh) -> Tensor:
    """Triangles that are a line or a point."""
    return defects.thinness(mesh) < defects.NO_AREA


def check(document: Document, preset: Preset | None = None) -> list[Finding]:
    """All findings, the worst first; with a preset, what it does not take is an error."""
    seen = [each for each in document.primitives if not each.is_collider]
    usable = [each for each in seen if is_usable(each)]
    found = [empty(seen), not_finite(seen), out_of_range(seen), extensions(document.extensions)]
    if usable:
        surface = Surface.of(usable)
        found += [tangents_missing(usable)] if document.tangents else []
        found += [*shape_findings(surface), *look_findings(usable), pivot(surface.mesh), scale(surface.mesh)]
        found += [budget(len(surface.mesh.faces), preset)]
    real = [x for x in found if x is not None]
    if preset and not preset.lit:
        real = [x for x in real if x.name != "normals-missing"]
    if preset and preset.watertight:
        real = [replace(x, severity="error") if x.name in UNTIGHT else x for x in real]
    return sorted(real, key=lambda x: -SEVERITIES.index(x.severity))


def shape_findings(surface: Surface) -> list[Finding | None]:
    found = [degenerate(surface.mesh), duplicate(surface.mesh), slivers(surface.mesh)]
    if len(surface.sound.faces) == 0:
        return found
    return [*found, open_edges(surface.edges), crowded_edges(surface.edges), turned(surface), parts(surface)]


def look_findings(primitives: Sequence[Primitive]) -> list[Finding | None]:
    single = draw_calls, uvs_missing, uvs_outside, uvs_overlapping, uneven_density
    normals = normals_missing, normals_not_unit, normals_inward
    return [*(judge(primitives) for judge in (*single, *normals)), *textures(primitives)]


def is_usable(each: Primitive) -> bool:
    """Whether it has triangles at all, between vertices that are there and finite."""
    finite = all(x is None or np.isfinite(x).all() for x in (each.vertices, each.uvs, each.colours))
    inside = len(each.faces) > 0 and each.faces.min() >= 0 and each.faces.max() < len(each.vertices)
    return finite and bool(inside)


def worst(findings: Iterable[Finding]) -> int:
    """0 where nothing is worse than a note, 1 for warnings, 2 for errors."""
    return max((SEVERITIES.index(x.severity) for x in findings), default=0)


def empty(primitives: Sequence[Primitive]) -> Finding | None:
    if any(len(each.faces) for each in primitives):
        return None
    return Finding("error", "empty", "there are no triangles", "export a triangle mesh")


def not_finite(primitives: Sequence[Primitive]) -> Finding | None:
    arrays = [x for each in primitives for x in (each.vertices, each.uvs, each.normals, each.tangents, each.colours)]
    count = sum(int((~np.isfinite(x)).any(1).sum()) for x in arrays if x is not None)
    if not count:
        return None
    return Finding("error", "not-finite", f"{count} vertices have values that are not finite", "export it again")


def out_of_range(primitives: Sequence[Primitive]) -> Finding | None:
    count = sum(int(((x.faces < 0) | (x.faces >= len(x.vertices))).any(1).sum()) for x in primitives)
    if not count:
        return None
    return Finding("error", "out-of-range", f"{count} triangles name vertices that are not there", "export it again")


def degenerate(mesh: Mesh) -> Finding | None:
    count = int(collapsed(mesh).sum())
    if not count:
        return None
    return Finding("warning", "degenerate", f"{count} triangles have no area", "threed export drops them")


def duplicate(mesh: Mesh) -> Finding | None:
    count = int((defects.repeated(mesh) & ~collapsed(mesh)).sum())
    if not count:
        return None
    return Finding("warning", "duplicate", f"{count} triangles lie on another one", "threed export drops them")


def slivers(mesh: Mesh) -> Finding | None:
    thin = defects.thinness(mesh)
    count = int(((thin < SLIVER) & (thin >= defects.NO_AREA)).sum())
    if count <= MANY * len(mesh.faces):
        return None
    message = f"{count} triangles are a hundred times as long as high; they shade and bake badly"
    return Finding("note", "slivers", message, "remesh it")


def open_edges(edges: Edges) -> Finding | None:
    count = int(edges.border.sum())
    if not count:
        return None
    holes = defects.holes(edges)
    message = f"it is not watertight: {count} open edges around {holes} {'hole' if holes == 1 else 'holes'}"
    return Finding("warning", "open", message, "close them, or threed export --watertight")


def crowded_edges(edges: Edges) -> Finding | None:
    count = int(defects.crowded(edges).sum())
    if not count:
        return None
    message = f"{count} edges are shared by more than two triangles"
    return Finding("warning", "crowded", message, "split them, or threed export --watertight")


def turned(surface: Surface) -> Finding | None:
    """Faces that show their back side, of which `defects.turned` tells."""
    wrong = defects.turned(surface.sound, surface.edges)
    count = int(wrong.sum())
    if count == len(wrong):
        return Finding("error", "inside-out", "it is inside out", "reverse its faces, as threed export does")
    if not count:
        return None
    message = f"{count} of {len(wrong)} triangles show their back side"
    return Finding("error", "turned", message, "reverse them, as threed export does")


def parts(surface: Surface) -> Finding | None:
    count = int(defects.bodies(surface.edges, len(surface.sound.faces)).max()) + 1
    if count == 1:
        return None
    return Finding("note", "parts", f"it consists of {count} loose parts", "join them if it is meant to be one")


def draw_calls(primitives: Sequence[Primitive]) -> Finding | None:
    looks = len({id(each.skin) for each in primitives})
    if len(primitives) == 1:
        return None
    message = f"{len(primitives)} meshes with {looks} materials take {len(primitives)} draw calls"
    return Finding("note", "draw-calls", message, "threed export makes them one")


def uvs_missing(primitives: Sequence[Primitive]) -> Finding | None:
    without = [each for each in primitives if each.uvs is None]
    if not without:
        return None
    if any(pictures(each) for each in without):
        return Finding("error", "uvs-missing", "there are textures but no UVs to put them on", "unwrap it")
    return Finding("note", "uvs-missing", "it has no UVs, so nothing can be painted on it", "unwrap it")


def uvs_outside(primitives: Sequence[Primitive]) -> Finding | None:
    given = [each.uvs[each.faces] for each in primitives if each.uvs is not None]
    if not given:
        return None
    low, high = min(x.min() for x in given), max(x.max() for x in given)
    if low >= -1e-3 and high <= 1 + 1e-3:
        return None
    message = f"UVs go from {low:.3g} to {high:.3g}, so the texture repeats; it cannot share an atlas"
    return Finding("warning", "uvs-outside", message, "threed export lays the repeats out")


def uvs_overlapping(primitives: Sequence[Primitive]) -> Finding | None:
    """Within each material: what two of them put on the same place is on two pictures."""
    shares = []
    for each in joined(primitives):
        if each.uvs is not None and not uvs_outside([each]):
            shares.append(
                overlap(torch.from_numpy(each.uvs).float(), torch.from_numpy(np.ascontiguousarray(each.faces)), PAINT)
            )
    share = max(shares, default=0.0)
    if share <= OVERLAP:
        return None
    message = f"{share:.0%} of the UV layout lies on top of the rest: no light map, no painting"
    return Finding("note", "uvs-overlapping", message, "meant for palettes and mirrored parts; else unwrap it again")


def uneven_density(primitives: Sequence[Primitive]) -> Finding | None:
    ratio = max((density_ratio(each) for each in primitives if each.uvs is not None and each.skin.color), default=1.0)
    if ratio <= UNEVEN:
        return None
    message = f"parts of it have {ratio:.0f} times as many texels a metre as others"
    return Finding("note", "uneven-density", message, "unwrap it again")


def density_ratio(each: Primitive) -> float:
    """Between the tenth and the ninetieth percentile of the area, texels along a metre; 1 where that says nothing."""
    assert each.uvs is not None
    faces = torch.from_numpy(np.ascontiguousarray(each.faces))
    places = each.vertices, np.pad(each.uvs, ((0, 0), (0, 1)))
    space, flat = (Mesh(torch.from_numpy(x), faces).areas.numpy() for x in places)
    told = (space > 0) & (flat > 0)
    if space[told].sum() < 0.5 * space.sum() or not told.any():
        return 1.0  # a palette: its UVs have no extent
    density, weight = np.sqrt(flat[told] / space[told]), space[told]
    order = np.argsort(density)
    rank = np.cumsum(weight[order]) / weight.sum()
    low, high = (density[order][min(np.searchsorted(rank, q), len(order) - 1)] for q in (0.1, 0.9))
    return float(high / low)


def normals_missing(primitives: Sequence[Primitive]) -> Finding | None:
    if all(each.normals is not None for each in primitives):
        return None
    message = "it has no normals: most engines show it with flat facets"
    return Finding("warning", "normals-missing", message, "threed export writes them")


def normals_not_unit(primitives: Sequence[Primitive]) -> Finding | None:
    given = [each.normals for each in primitives if each.normals is not None and np.isfinite(each.normals).all()]
    count = sum(int((np.abs(np.linalg.norm(x, axis=1) - 1) > UNIT_SLACK).sum()) for x in given)
    if not count:
        return None
    return Finding(
        "error", "normals-not-unit", f"{count} normals are not of length 1", "threed export writes them anew"
    )


def normals_inward(primitives: Sequence[Primitive]) -> Finding | None:
    """Corners whose normal points to the back side of their triangle."""
    against = total = 0
    for each in primitives:
        if each.normals is not None:
            a, b, c = np.moveaxis(each.vertices[each.faces], 1, 0)
            facing = np.cross(b - a, c - a)[:, None] * each.normals[each.faces]
            against, total = against + int((facing.sum(-1) < 0).sum()), total + each.faces.size
    if against <= MANY * total:
        return None
    message = f"{against / total:.0%} of the normals point to the back side of their triangle; they light up wrongly"
    return Finding("warning", "normals-inward", message, "threed export writes them anew")


def tangents_missing(primitives: Sequence[Primitive]) -> Finding | None:
    if all(each.tangents is not None for each in primitives if each.skin.bumps):
        return None
    message = "there is a normal map but no tangents: engines make up their own, not always those it was baked with"
    return Finding("warning", "tangents-missing", message, "threed export writes them")


def pictures(each: Primitive) -> list[Image.Image]:
    skin = each.skin
    return [x for x in (skin.color, skin.shine, skin.bumps, skin.occlusion) if x is not None]


def textures(primitives: Sequence[Primitive]) -> Iterator[Finding]:
    """Their sizes, and how many a material has."""
    sizes = sorted({picture.size for each in primitives for picture in pictures(each)})
    odd = [f"{w} x {h}" for w, h in sizes if w.bit_count() != 1 or h.bit_count() != 1]
    huge = [f"{w} x {h}" for w, h in sizes if max(w, h) > LARGEST]
    if odd:
        message = f"textures of {', '.join(odd[:4])} are no powers of two; engines resize them or leave out mip-maps"
        yield Finding("note", "textures-odd", message, "resize them, as threed export does")
    if huge:
        message = f"textures of {', '.join(huge[:4])} are larger than {LARGEST}; phones run out of memory"
        yield Finding("warning", "textures-huge", message, "threed export reduces them")


def pivot(mesh: Mesh) -> Finding | None:
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    size = float((high - low).max())
    middle = (low + high) / 2
    aside = float(middle[[0, 2]].norm())
    if size == 0 or (aside <= OFF * size and min(abs(float(low[1])), abs(float(middle[1]))) <= OFF * size):
        return None
    x, y, z = (float(value) for value in (middle[0], low[1], middle[2]))
    message = (
        f"the origin is neither under its middle nor in it: the middle of its foot is at ({x:.3g}, {y:.3g}, {z:.3g})"
    )
    return Finding("note", "pivot", message, "threed export stands it on the ground")


def scale(mesh: Mesh) -> Finding | None:
    size = float((mesh.vertices.amax(0) - mesh.vertices.amin(0)).max())
    if SMALL <= size <= TALL:
        return None
    message = f"its longest side is {size:.3g} m; it may be in another unit than metres"
    return Finding("warning", "scale", message, "threed export --height METRES")


def budget(triangles: int, preset: Preset | None) -> Finding | None:
    if preset:
        if triangles <= preset.triangles:
            return None
        message = f"{triangles:,} triangles are more than {preset.name}'s {preset.triangles:,}"
        return Finding("error", "budget", message, f"threed export --preset {preset.name}")
    over = [f"{x.name} ({x.triangles:,})" for x in PRESETS.values() if triangles > x.triangles]
    if not over:
        return None
    message = f"{triangles:,} triangles are more than the budget of {', '.join(over)}"
    return Finding("note", "budget", message, "threed export --preset NAME simplifies it")


def extensions(required: Sequence[str]) -> Finding | None:
    if not required:
        return None
    message = f"it cannot be opened without {', '.join(required)}, which not all engines know"
    return Finding("warning", "extensions", message, "threed export writes it plain")
