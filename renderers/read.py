"""Mesh files become assets, with everything in them gathered into one mesh and one material.

Files are not trusted: what is too large, empty, broken or not finite raises ValueError. glTF's colour factors and
vertex colours are linear, those of OBJ and PLY are taken as display sRGB; textures are display sRGB in all. Opacity is
ignored, and so are colliders. Roughness, metallic, normal and occlusion maps are glTF's alone; pictures of another size
than the base colour's take that size, normals as if at scale 1. Where a base colour comes from vertices, a normal map
is left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from threed.renderers import gltf, trimeshes, usd
from threed.renderers.colour import linear_from_srgb, srgb_from_linear
from threed.renderers.document import MOST_BYTES, Document, NotInstalled, Primitive, Skin
from threed.renderers.mesh import UNIT_SLACK, Asset, Material, Mesh

FORMATS = {
    ".glb": gltf.document,
    ".gltf": gltf.document,
    ".obj": trimeshes.document,
    ".ply": trimeshes.document,
    ".stl": trimeshes.document,
    ".usdz": usd.document,
}
SUFFIXES = tuple(FORMATS)
MOST_TEXELS = 2048  # along a side of one texture; larger ones are reduced
MOST_LARGE = 4  # textures that may be so large; more of them are reduced to as many texels
SWATCH = 4  # texels along a side of a plain colour
GUTTER = 2  # texels between textures, copies of their borders
UPWARD = np.array([0, 0, 1], np.float32)  # a normal map that changes nothing


@dataclass(frozen=True)
class Part:
    """What of a file has a texture of its own; UVs as in `mesh`, within [0, 1]."""

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    uvs: Float[np.ndarray, "T 2"]
    uv_faces: Int[np.ndarray, "F 3"]
    image: Float[np.ndarray, "H W C"]  # display sRGB; then, if any has one, roughness, metallic, normal, occlusion


def read(path: Path | str) -> Asset:
    """The whole content of a mesh file; its positions are welded. Raises ValueError for files that cannot be used.

    It is called as glTF calls the one thing in the file, otherwise as the file. What `exporters` write as glTF gives
    the same bytes when it is read and written again, with its `colliders`; textures of more than MOST_TEXELS do not.
    """
    path = Path(path)
    found = opened(path)
    return gathered(usable(found, path), found.linear, found.name or path.stem)


def colliders(path: Path | str) -> dict[str, Mesh]:
    """What of a mesh file is there to be bumped into, by name. Raises ValueError as `read` does."""
    path = Path(path)
    found = [each for each in opened(path).primitives if each.is_collider and len(each.faces)]
    checked(found, path)
    groups = defaultdict[str, list[Primitive]](list)
    for each in found:
        groups[each.name].append(each)
    bodies = {name: group[0] if len(group) == 1 else _together(group) for name, group in groups.items()}
    return {name: Mesh(torch.from_numpy(x.vertices).float(), torch.from_numpy(x.faces)) for name, x in bodies.items()}


def opened(path: Path | str) -> Document:
    """A mesh file as it is. Raises ValueError for one that is missing, unknown, too large or cannot be parsed."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot read {str(path)!r}; use one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}; check the path")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{str(path)!r} is larger than {MOST_BYTES >> 20} MiB; simplify it first")
    try:
        return FORMATS[path.suffix.lower()](path)
    except NotInstalled as error:
        raise ValueError(f"{str(path)!r} {error}") from error
    except Exception as error:  # whatever a malformed file makes the parser trip over
        raise ValueError(f"{str(path)!r} cannot be parsed ({error}); export it again") from error


def usable(document: Document, path: Path) -> list[Primitive]:
    """What there is to see. Raises ValueError where there is nothing, or where it is not finite."""
    found = [each for each in document.primitives if len(each.faces) and not each.is_collider]
    if not found:
        raise ValueError(f"{str(path)!r} has no triangles; export a triangle mesh")
    checked(found, path)
    return found


def checked(primitives: Sequence[Primitive], path: Path) -> None:
    """Raises ValueError where numbers are not finite or point nowhere."""
    for each in primitives:
        if not all(x is None or np.isfinite(x).all() for x in (each.vertices, each.uvs, each.colours)):
            raise ValueError(f"{str(path)!r} has coordinates that are not finite; export it again")
        if each.faces.min() < 0 or each.faces.max() >= len(each.vertices):
            raise ValueError(f"{str(path)!r} has triangles between vertices it does not have; export it again")


def gathered(primitives: Sequence[Primitive], linear: bool, name: str) -> Asset:
    """One mesh, its positions welded in the order in which they first come, and one material."""
    merged = joined(primitives)
    skins = [each.skin for each in merged]
    shines = any(skin.shine for skin in skins) or len({(skin.roughness, skin.metallic) for skin in skins}) > 1
    bumpy, dim = (any(getattr(skin, key) for skin in skins) for key in ("bumps", "occlusion"))
    textured = sum(1 for skin in skins if skin.color or skin.shine or skin.bumps or skin.occlusion)
    side = int(MOST_TEXELS / max(1, math.sqrt(textured / MOST_LARGE)))
    parts = [_part(each, linear, shines or bumpy or dim, side) for each in merged]
    atlas, uvs = _atlas(parts)
    vertices, faces = welded(merged)
    uv_faces = _stacked([part.uv_faces for part in parts], [len(part.uvs) for part in parts])
    solid = (faces != np.roll(faces, 1, axis=1)).all(1)  # welding may close a triangle up
    return Asset(
        name,
        Mesh(torch.from_numpy(vertices).float(), torch.from_numpy(faces[solid])),
        torch.from_numpy(uvs).float(),
        torch.from_numpy(uv_faces[solid]),
        Material(
            _tensor(atlas[..., :3]),
            roughness=skins[0].roughness,
            metallic=skins[0].metallic,
            roughness_metallic=_tensor(atlas[..., 3:5]) if shines else None,
            normal=_tensor(_unit(atlas[..., 5:8])) if bumpy else None,
            occlusion=_tensor(atlas[..., 8:]) if dim else None,
        ),
    )


def joined(primitives: Sequence[Primitive]) -> list[Primitive]:
    """One for all that look alike, so that a texture which many share is there once."""
    alike = defaultdict[tuple[int, bool, bool], list[Primitive]](list)
    for each in primitives:
        alike[id(each.skin), each.uvs is None, each.colours is None].append(each)
    return [group[0] if len(group) == 1 else _together(group) for group in alike.values()]


def _together(group: list[Primitive]) -> Primitive:
    first = group[0]
    return replace(
        first,
        vertices=np.concatenate([each.vertices for each in group]),
        faces=_stacked([each.faces for each in group], [len(each.vertices) for each in group]),
        uvs=None if first.uvs is None else np.concatenate([each.uvs for each in group]),
        colours=None if first.colours is None else np.concatenate([each.colours for each in group]),
        normals=None,
        tangents=None,
    )


def welded(primitives: Sequence[Primitive]) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
    """Positions that differ, in the order in which they first come, and all faces between them."""
    points = np.concatenate([each.vertices for each in primitives])
    _, first, index = np.unique(points, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    faces = _stacked([each.faces for each in primitives], [len(each.vertices) for each in primitives])
    return points[first[order]], np.ascontiguousarray(place[index.reshape(-1)][faces])


def normalised(mesh: Mesh) -> Mesh:
    """Centred on its bounding box, the farthest vertex at radius 1; raises ValueError for a mesh without extent."""
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    centred = mesh.vertices - (low + high) / 2
    radius = centred.norm(dim=-1).max()
    if radius == 0:
        raise ValueError("the mesh is a single point; export it again with its full geometry")
    return mesh.with_vertices(centred / radius)


def _part(primitive: Primitive, linear: bool, detailed: bool, side: int) -> Part:
    """With its texture, or with a palette of its plain colours."""
    vertices, faces, skin = primitive.vertices, primitive.faces, reduced(primitive.skin, side)
    colours, factor = primitive.colours, np.array(skin.factor)
    # Beside vertex colours, only a picture of the base colour is worth the UVs.
    picture = skin.color or (None if colours is not None else skin.shine or skin.bumps or skin.occlusion)
    if picture is not None and primitive.uvs is not None:
        image = np.asarray(skin.color or Image.new("RGB", picture.size, "white"), np.float32) / 255
        if (factor != 1).any():
            image = _dimmed(image, factor) if linear else image * factor
        image = _detailed(image, skin) if detailed else image
        return Part(vertices, faces, *_tiled(primitive.uvs, faces, image, side))
    shade = np.tile(factor, (len(faces), 1)) if colours is None else colours[faces].mean(1) * factor
    uvs, uv_faces, image = _palette(_dimmed(np.ones(3), shade) if linear else shade)
    if detailed:
        mean = skin.shine and skin.shine.resize((1, 1), Image.Resampling.BOX)
        image = _detailed(image, replace(skin, shine=mean, bumps=None, occlusion=None))
    return Part(vertices, faces, uvs, uv_faces, image)


def reduced(skin: Skin, side: int) -> Skin:
    """The same with pictures of at most so many texels a side."""

    def smaller(picture: Image.Image | None) -> Image.Image | None:
        if picture is None or max(picture.size) <= side:
            return picture
        picture = picture.copy()
        picture.thumbnail((side, side))
        return picture

    return replace(
        skin,
        color=smaller(skin.color),
        shine=smaller(skin.shine),
        bumps=smaller(skin.bumps),
        occlusion=smaller(skin.occlusion),
    )


def _detailed(image: Float[np.ndarray, "H W 3"], skin: Skin) -> Float[np.ndarray, "H W 9"]:
    """The image with roughness, metallic, normals and occlusion beside its colours."""
    size = image.shape[1::-1]
    shine = np.asarray((skin.shine or Image.new("RGB", (1, 1), "white")).resize(size), np.float32)[..., 1:] / 255
    normal = np.asarray(skin.bumps.resize(size), np.float32) / 255 * 2 - 1 if skin.bumps else UPWARD
    factors = np.array([skin.roughness, skin.metallic], np.float32)
    red = np.asarray((skin.occlusion or Image.new("RGB", (1, 1), "white")).resize(size), np.float32)[..., :1] / 255
    return np.concatenate([image, shine * factors, np.broadcast_to(normal, image.shape), red], axis=-1)


def _unit(normals: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """Unit vectors that point out of the surface; those that 8 bits have rounded stay as they are."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.where(np.abs(length - 1) > UNIT_SLACK, normals / length.clip(min=1e-6), normals)
    return np.where(normals[..., 2:] > 0, normals, UPWARD)


def _tiled(
    uv: Float[np.ndarray, "V 2"], faces: Int[np.ndarray, "F 3"], image: Float[np.ndarray, "H W C"], side: int
) -> tuple[Float[np.ndarray, "T 2"], Int[np.ndarray, "F 3"], Float[np.ndarray, "H2 W2 C"]]:
    """UVs within [0, 1] on a picture that repeats as often as one triangle asks for, up to eight times."""
    slack = 1e-3
    if uv.min() >= -slack and uv.max() <= 1 + slack:
        return uv.clip(0, 1), faces, image
    corners = uv[faces]
    corners -= np.floor(corners.min(1, keepdims=True) + slack)
    repeats = np.ceil(corners.max((0, 1)) - slack).clip(1, 8).astype(int)
    step = max(1, max(repeats[::-1] * image.shape[:2]) // side)
    image = np.tile(image[::step, ::step], (repeats[1], repeats[0], 1))
    return (corners / repeats).clip(0, 1).reshape(-1, 2), np.arange(faces.size).reshape(-1, 3), image


def _palette(
    colours: Float[np.ndarray, "F 3"],
) -> tuple[Float[np.ndarray, "T 2"], Int[np.ndarray, "F 3"], Float[np.ndarray, "S S 3"]]:
    """A square of swatches, one for each colour at 8 bits, and every face at the centre of its own."""
    unique, index = np.unique(np.round(colours.clip(0, 1) * 255), axis=0, return_inverse=True)
    side = int(np.ceil(np.sqrt(len(unique))))
    cells = np.concatenate([unique, np.repeat(unique[:1], side**2 - len(unique), axis=0)]) / 255
    image = cells.reshape(side, side, 3).repeat(SWATCH, axis=0).repeat(SWATCH, axis=1)
    row, column = np.divmod(np.arange(len(unique)), side)
    uvs = np.stack([column + 0.5, row + 0.5], axis=1) / side
    return uvs, np.repeat(index.reshape(-1, 1), 3, axis=1), image


def _atlas(parts: list[Part]) -> tuple[Float[np.ndarray, "H W C"], Float[np.ndarray, "T 2"]]:
    """All textures on one picture, shelf by shelf, and all UVs on it."""
    if len(parts) == 1:
        return parts[0].image, parts[0].uvs
    framed = [np.pad(part.image, ((GUTTER, GUTTER), (GUTTER, GUTTER), (0, 0)), mode="edge") for part in parts]
    width = max(*(f.shape[1] for f in framed), int(np.sqrt(sum(f.shape[0] * f.shape[1] for f in framed))))
    places, x, y, shelf = {}, 0, 0, 0
    for index in sorted(range(len(framed)), key=lambda i: -framed[i].shape[0]):
        if x + framed[index].shape[1] > width:
            x, y, shelf = 0, y + shelf, 0
        places[index] = x, y
        x, shelf = x + framed[index].shape[1], max(shelf, framed[index].shape[0])
    atlas = np.zeros((y + shelf, width, framed[0].shape[2]), np.float32)
    uvs = []
    for index, part in enumerate(parts):
        x, y = places[index]
        atlas[y : y + framed[index].shape[0], x : x + framed[index].shape[1]] = framed[index]
        size = np.array(part.image.shape[1::-1])
        uvs.append((part.uvs * size + GUTTER + [x, y]) / [width, len(atlas)])
    return atlas, np.concatenate(uvs)


def _stacked(indices: list[Int[np.ndarray, "_ 3"]], counts: list[int]) -> Int[np.ndarray, "G 3"]:
    """Index lists one after the other, each moved past what the ones before it point into."""
    starts = np.cumsum([0, *counts[:-1]])
    return np.concatenate([index + start for index, start in zip(indices, starts, strict=True)])


def _tensor(texels: Float[np.ndarray, "H W C"]) -> Float[Tensor, "H W C"]:
    return torch.from_numpy(np.ascontiguousarray(texels, np.float32))


def _dimmed(srgb: Float[np.ndarray, "*#P 3"], factor: Float[np.ndarray, "*#P 3"]) -> Float[np.ndarray, "*#P 3"]:
    """Display sRGB whose linear light is multiplied by a factor."""
    return srgb_from_linear(linear_from_srgb(torch.from_numpy(srgb)) * torch.from_numpy(np.asarray(factor))).numpy()
