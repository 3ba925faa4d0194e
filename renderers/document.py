"""What a mesh file says, before anything is made of it: triangles with one material each, in the world.

Files are not trusted. How much is read of them is bounded, the files that they name lie inside their folder, and
whatever is broken about them raises one ValueError that names the file and the remedy.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

MOST_BYTES = 256 * 2**20  # of a file, and of all that it names
MOST_FACES = 2_000_000
MOST_PRIMITIVES = 10_000
MOST_PIXELS = 2**27  # of all pictures together: eight of 4096 a side
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "TGA")
# Godot's suffixes and Unreal's prefixes of meshes that nobody sees.
COLLIDER = re.compile(r"^U(CX|BX|SP|CP)_|-(conv)?col(only)?$")


class NotInstalled(ValueError):
    """A package that this file wants is not there; `extra` is what of the project brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'needs the package {package}; pip install "threed-assets[{extra}]"')


@dataclass(frozen=True)
class Skin:
    """What of a file's material is used; pictures are RGB, at their own sizes."""

    color: Image.Image | None = None  # display sRGB
    factor: tuple[float, float, float] = (1.0, 1.0, 1.0)  # multiplies it; linear in glTF, display sRGB elsewhere
    shine: Image.Image | None = None  # green is roughness, blue metallic
    roughness: float = 1.0  # multiplies it
    metallic: float = 0.0
    bumps: Image.Image | None = None  # normals
    occlusion: Image.Image | None = None  # red


@dataclass(frozen=True)
class Primitive:
    """Triangles of one material, as a file has them; what it leaves out is None."""

    name: str
    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    uvs: Float[np.ndarray, "V 2"] | None  # u right, v down
    normals: Float[np.ndarray, "V 3"] | None
    tangents: Float[np.ndarray, "V 4"] | None
    colours: Float[np.ndarray, "V 3"] | None  # multiply; linear in glTF, display sRGB elsewhere
    skin: Skin

    @property
    def is_collider(self) -> bool:
        """Whether its name says that it is there to be bumped into, not to be seen."""
        return bool(COLLIDER.search(self.name))


@dataclass(frozen=True)
class Document:
    """A mesh file's content."""

    primitives: tuple[Primitive, ...]
    linear: bool  # whether factors and vertex colours are linear light
    name: str = ""  # of the one thing that is to be seen in it
    extensions: tuple[str, ...] = ()  # that it requires
    bytes: int = 0  # of the file
    tangents: bool = True  # whether its format has them


@dataclass
class Folder:
    """The files beside a mesh file, as far as they may be read: inside its folder, and not too much altogether."""

    path: Path
    left: int = field(default_factory=lambda: MOST_BYTES)
    pixels: int = field(default_factory=lambda: MOST_PIXELS)
    _pictures: dict[bytes, Image.Image] = field(default_factory=dict)

    def read(self, name: str) -> bytes:
        """Raises ValueError for a file that is elsewhere, missing or too large."""
        root = self.path.resolve()
        path = (root / name.replace("\\", "/")).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"it names {name!r}, which is outside its folder")
        if not path.is_file():
            raise ValueError(f"it names {name!r}, which is not there")
        self.left -= path.stat().st_size
        if self.left < 0:
            raise ValueError(f"the files that it names are larger than {MOST_BYTES >> 20} MiB together")
        return path.read_bytes()

    def picture(self, content: bytes) -> Image.Image:
        """Decoded, the same content once. Raises ValueError for what is no picture, broken or too large."""
        if content not in self._pictures:
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                self.spend(picture)
                self._pictures[content] = picture.convert("RGB")
        return self._pictures[content]

    def spend(self, picture: Image.Image) -> None:
        """Raises ValueError for one picture too many or too large, before it is decoded."""
        size = picture.width * picture.height
        self.pixels -= size
        if size > MOST_PIXELS // 2 or self.pixels < 0:
            raise ValueError(
                f"its pictures have more than {MOST_PIXELS >> 21} megapixels each or {MOST_PIXELS >> 20} together"
            )


def placed(primitive: Primitive, matrix: Float[np.ndarray, "4 4"]) -> Primitive:
    """Moved into the world; normals and tangents stay as long as they were."""
    if (matrix == np.eye(4)).all():
        return primitive  # where -0 stays what it is
    linear = matrix[:3, :3]
    mirrored = np.linalg.det(linear) < 0
    normals, tangents = primitive.normals, primitive.tangents
    if tangents is not None:
        sign = -tangents[:, 3:] if mirrored else tangents[:, 3:]
        tangents = np.concatenate([_turned(tangents[:, :3], linear.T), sign], axis=1)
    return replace(
        primitive,
        vertices=primitive.vertices @ linear.T + matrix[:3, 3],
        faces=primitive.faces[:, ::-1].copy() if mirrored else primitive.faces,
        normals=None if normals is None else _turned(normals, np.linalg.pinv(linear)),
        tangents=tangents,
    )


def _turned(vectors: Float[np.ndarray, "V 3"], matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "V 3"]:
    moved = vectors @ matrix
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return moved / np.where(length > 0, length, 1) * np.linalg.norm(vectors, axis=1, keepdims=True)


def share(number: object) -> float:
    """Within 0 and 1."""
    return min(1.0, max(0.0, float(number)))  # type: ignore[arg-type]
