"""OBJ with its MTL, PLY and STL, parsed by trimesh; the files that they name come out of `Folder`."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float
from PIL import Image
from trimesh.visual import ColorVisuals

from threed.renderers.document import MOST_FACES, MOST_PRIMITIVES, Document, Folder, Primitive, Skin

logging.getLogger("trimesh").addHandler(logging.NullHandler())  # what it finds wrong is said in one line, not here


class _Beside(trimesh.resolvers.Resolver):  # type: ignore[misc]
    """What trimesh asks for files."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def get(self, name: str) -> bytes:
        return self.folder.read(name.strip())

    def keys(self) -> list[str]:
        return []

    def namespaced(self, namespace: str) -> _Beside:
        raise ValueError(f"there is no folder {namespace!r} to look into")

    def write(self, name: str, data: object) -> None:
        raise ValueError(f"nothing is written to {name!r}")


def document(path: Path) -> Document:
    """All triangles of the file. Raises whatever a malformed file makes the parser trip over."""
    content, folder = path.read_bytes(), Folder(path.parent)
    # Counted before they are parsed, which takes ten times the memory.
    if content.count(b"\nf") > MOST_FACES or content.count(b"\nv") > 3 * MOST_FACES:
        raise ValueError(f"it has more than {MOST_FACES} triangles; simplify it")
    scene = trimesh.load_scene(
        io.BytesIO(content), file_type=path.suffix.lower()[1:], resolver=_Beside(folder), process=False
    )
    meshes = [(name, mesh) for name, mesh in scene.geometry.items() if isinstance(mesh, trimesh.Trimesh)]
    if len(meshes) > MOST_PRIMITIVES:
        raise ValueError(f"it has more than {MOST_PRIMITIVES} parts; join them")
    if sum(len(mesh.faces) for _, mesh in meshes) > MOST_FACES:
        raise ValueError(f"it has more than {MOST_FACES} triangles; simplify it")
    skins = {id(material): _skin(material, folder) for material in (_material(mesh) for _, mesh in meshes)}
    found = tuple(_primitive(name, mesh, skins[id(_material(mesh))]) for name, mesh in meshes)
    return Document(found, linear=False, bytes=len(content))


def _material(mesh: trimesh.Trimesh) -> Any:
    return getattr(mesh.visual, "material", None)


def _primitive(name: str, mesh: trimesh.Trimesh, skin: Skin) -> Primitive:
    vertices, uvs = _rows(mesh.vertices, float), getattr(mesh.visual, "uv", None)
    given = uvs is not None and len(uvs) == len(vertices)
    normals = mesh._cache.cache.get("vertex_normals")  # those of the file: trimesh computes them only when asked
    return Primitive(
        name,
        vertices,
        _rows(mesh.faces, np.int64),
        np.asarray(uvs, float)[:, :2] * [1, -1] + [0, 1] if given else None,
        _rows(normals, float) if normals is not None and len(normals) == len(vertices) else None,
        None,
        _colours(mesh),
        skin,
    )


def _rows(values: Any, kind: type) -> Any:
    """Threes of numbers, which trimesh does not make sure of."""
    found: np.ndarray = np.asarray(values, kind)
    if found.ndim != 2 or found.shape[1] != 3:
        raise ValueError(f"it has rows of shape {found.shape}, not of three numbers each")
    return found


def _skin(material: Any, folder: Folder) -> Skin:
    picture, colour = getattr(material, "image", None), getattr(material, "diffuse", None)
    if picture is not None:
        return Skin(color=_bounded(picture, folder))  # MTL writers leave any Kd beside a picture
    if colour is None:
        return Skin()
    red, green, blue = (float(x) / 255 for x in np.asarray(colour)[:3])
    return Skin(factor=(red, green, blue))


def _bounded(picture: Image.Image, folder: Folder) -> Image.Image:
    folder.spend(picture)
    return picture.convert("RGB")


def _colours(mesh: trimesh.Trimesh) -> Float[np.ndarray, "V 3"] | None:
    look = mesh.visual
    if isinstance(look, ColorVisuals):
        colours = look.vertex_colors if look.defined else None
    else:
        colours = getattr(look, "vertex_attributes", {}).get("color")
    if colours is None:
        return None
    colours = np.asarray(colours)[:, :3]
    return colours / (np.iinfo(colours.dtype).max if colours.dtype.kind == "u" else 1.0)
