"""Wavefront OBJ with its own NAME.mtl and NAME.png beside it, so that several assets share a folder.

OBJ counts from 1 and its v grows upward from the lower left corner; axes and units are the project's. Roughness,
metallic and the normal map have pictures of their own, which MTL's extension for physically based rendering names
(map_Pr, map_Pm, norm); programs that do not know it show the base colour.
"""

from __future__ import annotations

from pathlib import Path

import torch

from threed.exporters import files
from threed.exporters.glb import unit_normals
from threed.renderers.mesh import Asset, Material
from threed.renderers.names import plain_word

SUFFIXES = {"map_Kd": "", "map_Pr": "_roughness", "map_Pm": "_metallic", "norm": "_normal"}


def encode_files(asset: Asset, name: str) -> dict[str, bytes]:
    """The files' bytes by their names, `name` being that of the OBJ, which comes last.

    The others are called by `plain_word`.
    """
    stem, found = plain_word(Path(name).stem), pictures(asset.material)
    names = {key: f"{stem}{SUFFIXES[key]}.png" for key in found}
    material = f"{stem}.mtl"
    return {names[key]: content for key, content in found.items()} | {
        material: encode_material(asset, names).encode(),
        name: encode(asset, material).encode(),
    }


def encode(asset: Asset, material_file: str) -> str:
    """Welded positions, UVs and normals of their own, corners as v/vt/vn."""
    name = plain_word(asset.name)
    uvs = torch.stack([asset.uvs[:, 0], 1 - asset.uvs[:, 1]], dim=-1)
    normals, normal_faces = unit_normals(asset).reshape(-1, 3).unique(dim=0, return_inverse=True)
    lines = [f"mtllib {material_file}", f"o {name}"]
    for key, rows in (("v", asset.mesh.vertices), ("vt", uvs), ("vn", normals)):
        lines += [" ".join([key, *(f"{x:.9g}" for x in row)]) for row in rows.tolist()]  # 9 digits tell float32 apart
    lines += [f"usemtl {name}", "s 1"]
    indices = torch.stack([asset.mesh.faces, asset.uv_faces, normal_faces.view(-1, 3)], dim=-1) + 1
    lines += ["f " + " ".join("/".join(map(str, corner)) for corner in face) for face in indices.tolist()]
    return "\n".join(lines) + "\n"


def encode_material(asset: Asset, textures: dict[str, str]) -> str:
    """The textures at full strength, diffuse only: Kd multiplies the picture, and a shine would be added to it."""
    lines = [f"newmtl {plain_word(asset.name)}", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "d 1", "illum 1"]
    return "\n".join(lines + [f"{key} {name}" for key, name in textures.items()]) + "\n"


def pictures(material: Material) -> dict[str, bytes]:
    """The textures as PNGs, by what MTL calls them."""
    found = {"map_Kd": files.png(material.base_color)}
    if material.roughness_metallic is not None:
        for key, channel in zip(("map_Pr", "map_Pm"), material.roughness_metallic.split(1, dim=-1), strict=True):
            found[key] = files.png(channel.expand(-1, -1, 3))
    if material.normal is not None:
        # Not map_Bump, which half of all programs take for heights.
        found["norm"] = files.normal_png(material.normal)
    return found
