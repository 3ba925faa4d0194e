"""USDZ: meshes and their UsdPreviewSurfaces out of the first scene in the archive.

OpenUSD, which parses the scene (`usd_scene`), does so in a process of its own: over broken files it runs without end or
ends the process. Pictures are read here, those of the archive alone. Polygons become fans of triangles; subdivision,
animation, lights, moved textures (UsdTransform2d) and shapes other than meshes are left out. Lengths become metres, and
the axis that points up +Y.
"""

from __future__ import annotations

import io
import json
import posixpath
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from threed.renderers.document import MOST_BYTES, Document, Folder, NotInstalled, Primitive, Skin, placed, share

SCENES = (".usda", ".usdc", ".usd")
CHANNELS = ("r", "g", "b")
SPREAD = ("uvs", "normals", "colours")  # over vertices
PATIENCE = 60  # seconds for a scene


def document(path: Path) -> Document:
    """The triangles of the archive's scene. Raises whatever a malformed file makes the parser trip over."""
    if find_spec("pxr") is None:
        raise NotInstalled("usd-core", "usdz")
    archive = Archive.of(path)
    told, arrays = parsed(path)
    skins = [_skin(archive, each["numbers"], each["textures"]) for each in told["skins"]]
    found = tuple(
        _primitive(part, {key: arrays.get(f"{number}_{key}") for key in ("vertices", "faces", *SPREAD)}, skins)
        for number, part in enumerate(told["parts"])
    )
    return Document(found, True, told["name"], bytes=path.stat().st_size, tangents=False)


@dataclass(frozen=True)
class Archive:
    """What is in the file, by name; nothing outside it has one."""

    files: dict[str, bytes]
    scene: str
    folder: Folder  # which counts the pixels

    @staticmethod
    def of(path: Path) -> Archive:
        """Raises ValueError for one that is compressed, too large or without a scene (USDZ specification)."""
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(each.compress_type != zipfile.ZIP_STORED for each in entries):
                raise ValueError("its archive is compressed, which USDZ forbids")
            if sum(each.file_size for each in entries) > MOST_BYTES:
                raise ValueError(f"its files are larger than {MOST_BYTES >> 20} MiB together")
            files = {each.filename: archive.read(each) for each in entries}
        scene = next(iter(files), "")
        if not scene.lower().endswith(SCENES):
            raise ValueError(f"its archive begins with {scene!r}, which is no scene")
        return Archive(files, scene, Folder(path.parent))

    def picture(self, name: str) -> Image.Image:
        """Raises ValueError for what is not in the archive, and for what is no picture."""
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(self.scene), name))
        if inside not in self.files:
            raise ValueError(f"it names {name!r}, which is not in it")
        return self.folder.picture(self.files[inside])


def parsed(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `usd_scene` tells of a file, and its arrays. Raises ValueError with what is wrong with it."""
    command = [sys.executable, "-m", "threed.renderers.usd_scene", str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"OpenUSD was not done with it after {PATIENCE} seconds") from error
    if done.returncode:
        raise ValueError(f"OpenUSD broke down over it, with exit code {done.returncode}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as content:
        arrays = dict(content)
    told = json.loads(arrays.pop("told").tobytes())
    if "problem" in told:
        raise ValueError(told["problem"])
    return told, arrays


def _primitive(part: dict[str, Any], arrays: Mapping[str, Any], skins: list[Skin]) -> Primitive:
    uvs, skin = arrays["uvs"], part["skin"]
    plain = Primitive(
        part["name"],
        arrays["vertices"],
        arrays["faces"],
        None if uvs is None else uvs * [1, -1] + [0, 1],
        arrays["normals"],
        None,
        arrays["colours"],
        Skin() if skin is None else skins[skin],
    )
    return placed(plain, np.array(part["matrix"]))


@dataclass(frozen=True)
class Texture:
    """A picture, which channel of it is used where one is, and what multiplies its channels."""

    picture: Image.Image
    channel: int
    scale: list[float]


def _skin(archive: Archive, numbers: Mapping[str, Any], told: Mapping[str, Any]) -> Skin:
    """A UsdPreviewSurface, from its inputs that are numbers and those that are textures."""
    textures = {
        name: Texture(
            archive.picture(each["file"]),
            CHANNELS.index(each["output"]) if each["output"] in CHANNELS else 0,
            each["scale"],
        )
        for name, each in told.items()
    }
    color, normal, dim = (textures.get(name) for name in ("diffuseColor", "normal", "occlusion"))
    rough, metal = (textures.get(name) for name in ("roughness", "metallic"))
    red, green, blue = color.scale[:3] if color else numbers["diffuseColor"]
    return Skin(
        color.picture if color else None,
        (share(red), share(green), share(blue)),
        shine(rough, metal),
        share(rough.scale[rough.channel] if rough else numbers["roughness"]),
        share(metal.scale[metal.channel] if metal else numbers["metallic"]),
        normal.picture if normal else None,
        dimmed(dim) if dim else None,
    )


def dimmed(dim: Texture) -> Image.Image:
    """The occlusion in red, whatever channel it came in."""
    return Image.merge("RGB", [dim.picture.getchannel(dim.channel)] * 3) if dim.channel else dim.picture


def shine(rough: Texture | None, metal: Texture | None) -> Image.Image | None:
    """glTF's picture of both: roughness in green, metallic in blue, white where a number is all there is."""
    found = [each for each in (rough, metal) if each]
    if not found:
        return None
    if rough and metal and rough.picture is metal.picture and (rough.channel, metal.channel) == (1, 2):
        return rough.picture
    size = max(each.picture.size for each in found)
    white = Image.new("L", size, 255)
    channels = [each.picture.getchannel(each.channel).resize(size) if each else white for each in (rough, metal)]
    return Image.merge("RGB", [white, *channels])
