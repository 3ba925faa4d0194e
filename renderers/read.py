"""Mesh files become assets: GLB, glTF and OBJ, with everything in them gathered into one mesh and one material.

Files are not trusted: what is too large, empty, broken or not finite raises ValueError. glTF's colour factors and
vertex colours are linear, OBJ's are taken as display sRGB; textures are display sRGB in both. Opacity is ignored.
Roughness, metallic and normal maps are glTF's alone; pictures of another size than the base colour's take that size,
normals as if at scale 1. Where a base colour comes from vertices, a normal map is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from trimesh.visual import ColorVisuals
from trimesh.visual.material import PBRMaterial

from threed.renderers.colour import linear_from_srgb, srgb_from_linear
from threed.renderers.mesh import UNIT_SLACK, Asset, Material, Mesh

SUFFIXES = (".glb", ".gltf", ".obj")
MOST_BYTES = 256 * 2**20
MOST_FACES = 2_000_000
MOST_TEXELS = 2048  # along a side of one texture; larger ones are reduced
SWATCH = 4  # texels along a side of a plain colour
GUTTER = 2  # texels between textures, copies of their borders
UPWARD = np.array([0, 0, 1], np.float32)  # a normal map that changes nothing


@dataclass(frozen=True)
class Part:
    """One mesh of a file with a texture of its own; UVs as in `mesh`, within [0, 1]."""

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    uvs: Float[np.ndarray, "T 2"]
    uv_faces: Int[np.ndarray, "F 3"]
    image: Float[np.ndarray, "H W C"]  # display sRGB; then, if any part has one, roughness, metallic and normal


@dataclass(frozen=True)
class Skin:
    """What of a file's material is used; pictures are RGB, at their own sizes."""

    color: Image.Image | None  # display sRGB
    factor: Float[np.ndarray, "3"]  # multiplies it
    shine: Image.Image | None  # green is roughness, blue metallic
    roughness: float  # multiplies it
    metallic: float
    bumps: Image.Image | None  # normals


def read(path: Path | str) -> Asset:
    """The whole content of a mesh file; its positions are welded. Raises ValueError for files that cannot be used."""
    path = Path(path)
    meshes = _meshes(path)
    skins = [_skin(getattr(mesh.visual, "material", None)) for mesh in meshes]
    shines = any(skin.shine for skin in skins) or len({(skin.roughness, skin.metallic) for skin in skins}) > 1
    bumpy = any(skin.bumps for skin in skins)
    linear = path.suffix.lower() != ".obj"
    parts = [_part(mesh, skin, linear, shines or bumpy) for mesh, skin in zip(meshes, skins, strict=True)]
    atlas, uvs = _atlas(parts)
    vertices, new = np.unique(np.concatenate([part.vertices for part in parts]), axis=0, return_inverse=True)
    faces = new.reshape(-1)[_stacked([part.faces for part in parts], [len(part.vertices) for part in parts])]
    uv_faces = _stacked([part.uv_faces for part in parts], [len(part.uvs) for part in parts])
    solid = (faces != np.roll(faces, 1, axis=1)).all(1)  # welding may close a triangle up
    return Asset(
        path.stem,
        Mesh(torch.from_numpy(vertices).float(), torch.from_numpy(faces[solid])),
        torch.from_numpy(uvs).float(),
        torch.from_numpy(uv_faces[solid]),
        Material(
            _tensor(atlas[..., :3]),
            roughness=skins[0].roughness,
            metallic=skins[0].metallic,
            roughness_metallic=_tensor(atlas[..., 3:5]) if shines else None,
            normal=_tensor(_unit(atlas[..., 5:])) if bumpy else None,
        ),
    )


def normalised(mesh: Mesh) -> Mesh:
    """Centred on its bounding box, the farthest vertex at radius 1; raises ValueError for a mesh without extent."""
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    centred = mesh.vertices - (low + high) / 2
    radius = centred.norm(dim=-1).max()
    if radius == 0:
        raise ValueError("the mesh is a single point; export it again with its full geometry")
    return mesh.with_vertices(centred / radius)


def _meshes(path: Path) -> list[trimesh.Trimesh]:
    """The triangle meshes of a file, in the world; all of it checked."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot read {str(path)!r}; use one of {list(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}; check the path")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{str(path)!r} is larger than {MOST_BYTES >> 20} MiB; simplify it first")
    try:
        scene = trimesh.load_scene(path, process=False)
        placed = [scene.geometry[scene.graph[node][1]] for node in scene.graph.nodes_geometry]
        count = sum(len(part.faces) for part in placed if isinstance(part, trimesh.Trimesh))
        # Counted before they are copied: a small file can place one mesh any number of times.
        parts = scene.dump() if count <= MOST_FACES else []
    except Exception as error:  # whatever a malformed file makes the parser trip over
        raise ValueError(f"{str(path)!r} cannot be parsed ({error}); export it again") from error
    if count > MOST_FACES:
        raise ValueError(f"{str(path)!r} has more than {MOST_FACES} triangles; simplify it first")
    meshes = [part for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not meshes:
        raise ValueError(f"{str(path)!r} has no triangles; export a triangle mesh")
    for mesh in meshes:
        uv = getattr(mesh.visual, "uv", None)
        if not np.isfinite(mesh.vertices).all() or (uv is not None and not np.isfinite(uv).all()):
            raise ValueError(f"{str(path)!r} has coordinates that are not finite; export it again")
        if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
            raise ValueError(f"{str(path)!r} has triangles between vertices it does not have; export it again")
    return meshes


def _part(mesh: trimesh.Trimesh, skin: Skin, linear: bool, detailed: bool) -> Part:
    """A mesh with its texture, or with a palette of its plain colours."""
    vertices, faces = np.asarray(mesh.vertices, float), np.asarray(mesh.faces, np.int64)
    colours, uv = _vertex_colours(mesh), getattr(mesh.visual, "uv", None)
    # Beside vertex colours, only a picture of the base colour is worth the UVs.
    picture = skin.color or (None if colours is not None else skin.shine or skin.bumps)
    if picture is not None and uv is not None and len(uv) == len(vertices):
        image = np.asarray(skin.color or Image.new("RGB", picture.size, "white"), np.float32) / 255
        if (skin.factor != 1).any():
            image = _dimmed(image, skin.factor) if linear else image * skin.factor
        image = _detailed(image, skin) if detailed else image
        return Part(vertices, faces, *_tiled(np.asarray(uv, float) * [1, -1] + [0, 1], faces, image))
    shade = np.tile(skin.factor, (len(faces), 1)) if colours is None else colours[faces].mean(1) * skin.factor
    uvs, uv_faces, image = _palette(_dimmed(np.ones(3), shade) if linear else shade)
    if detailed:
        mean = skin.shine and skin.shine.resize((1, 1), Image.Resampling.BOX)
        image = _detailed(image, replace(skin, shine=mean, bumps=None))
    return Part(vertices, faces, uvs, uv_faces, image)


def _skin(material: Any) -> Skin:
    if not isinstance(material, PBRMaterial):
        picture, colour = _picture(getattr(material, "image", None)), getattr(material, "diffuse", None)
        # MTL writers leave any Kd beside a picture.
        return Skin(picture, _factor(None if picture else colour), None, roughness=1.0, metallic=0.0, bumps=None)
    return Skin(
        _picture(material.baseColorTexture),
        _factor(material.baseColorFactor),
        _picture(material.metallicRoughnessTexture),
        roughness=_share(material.roughnessFactor),
        metallic=_share(material.metallicFactor),
        bumps=_picture(material.normalTexture),
    )


def _picture(picture: Image.Image | None) -> Image.Image | None:
    """At most as large as textures may be."""
    if picture is None:
        return None
    picture = picture.convert("RGB")
    picture.thumbnail((MOST_TEXELS, MOST_TEXELS))
    return picture


def _factor(colour: Any) -> Float[np.ndarray, "3"]:
    return np.ones(3) if colour is None else np.asarray(colour, float)[:3] / 255


def _share(number: float | None) -> float:
    """A number within 0 and 1, which is 1 where glTF leaves it out."""
    return 1.0 if number is None else min(1.0, max(0.0, number))


def _detailed(image: Float[np.ndarray, "H W 3"], skin: Skin) -> Float[np.ndarray, "H W 8"]:
    """The image with roughness, metallic and normals beside its colours."""
    size = image.shape[1::-1]
    shine = np.asarray((skin.shine or Image.new("RGB", (1, 1), "white")).resize(size), np.float32)[..., 1:] / 255
    normal = np.asarray(skin.bumps.resize(size), np.float32) / 255 * 2 - 1 if skin.bumps else UPWARD
    factors = np.array([skin.roughness, skin.metallic], np.float32)
    return np.concatenate([image, shine * factors, np.broadcast_to(normal, image.shape)], axis=-1)


def _unit(normals: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """Unit vectors that point out of the surface; those that 8 bits have rounded stay as they are."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.where(np.abs(length - 1) > UNIT_SLACK, normals / length.clip(min=1e-6), normals)
    return np.where(normals[..., 2:] > 0, normals, UPWARD)


def _vertex_colours(mesh: trimesh.Trimesh) -> Float[np.ndarray, "V 3"] | None:
    look = mesh.visual
    if isinstance(look, ColorVisuals):
        colours = look.vertex_colors if look.defined else None
    else:
        colours = getattr(look, "vertex_attributes", {}).get("color")
    if colours is None:
        return None
    colours = np.asarray(colours)[:, :3]
    return colours / (np.iinfo(colours.dtype).max if colours.dtype.kind == "u" else 1.0)


def _tiled(
    uv: Float[np.ndarray, "V 2"], faces: Int[np.ndarray, "F 3"], image: Float[np.ndarray, "H W C"]
) -> tuple[Float[np.ndarray, "T 2"], Int[np.ndarray, "F 3"], Float[np.ndarray, "H2 W2 C"]]:
    """UVs within [0, 1] on a picture that repeats as often as one triangle asks for, up to eight times."""
    slack = 1e-3
    if uv.min() >= -slack and uv.max() <= 1 + slack:
        return uv.clip(0, 1), faces, image
    corners = uv[faces]
    corners -= np.floor(corners.min(1, keepdims=True) + slack)
    repeats = np.ceil(corners.max((0, 1)) - slack).clip(1, 8).astype(int)
    step = max(1, max(repeats[::-1] * image.shape[:2]) // MOST_TEXELS)
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
