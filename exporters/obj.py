"""Wavefront OBJ with its own NAME.mtl and NAME.png beside it, so that several assets share a folder.

OBJ counts from 1 and its v grows upward from the lower left corner; axes and units are the project's.
"""

from __future__ import annotations

from pathlib import Path

import torch

from threed.exporters import files
from threed.exporters.glb import unit_normals
from threed.renderers.mesh import Asset


def write(asset: Asset, path: Path) -> None:
    """The picture and the material first: whoever sees the OBJ finds what it names. Raises OSError."""
    texture, material = path.with_suffix(".png"), path.with_suffix(".mtl")
    files.write(texture, files.png(asset.material.base_color))
    files.write(material, encode_material(asset, texture.name).encode())
    files.write(path, encode(asset, material.name).encode())


def encode(asset: Asset, material_file: str) -> str:
    """Welded positions and normals, UVs of their own, corners as v/vt/vn."""
    name = _word(asset.name)
    uvs = torch.stack([asset.uvs[:, 0], 1 - asset.uvs[:, 1]], dim=-1)
    lines = [f"mtllib {material_file}", f"o {name}"]
    for key, rows in (("v", asset.mesh.vertices), ("vt", uvs), ("vn", unit_normals(asset.mesh))):
        lines += [" ".join([key, *(f"{x:.9g}" for x in row)]) for row in rows.tolist()]  # 9 digits tell float32 apart
    lines += [f"usemtl {name}", "s 1"]
    corners = zip((asset.mesh.faces + 1).tolist(), (asset.uv_faces + 1).tolist(), strict=True)
    lines += ["f " + " ".join(f"{v}/{vt}/{v}" for v, vt in zip(*face, strict=True)) for face in corners]
    return "\n".join(lines) + "\n"


def encode_material(asset: Asset, texture_file: str) -> str:
    """The texture at full strength, diffuse only: Kd multiplies the picture, and a shine would be added to it."""
    return f"newmtl {_word(asset.name)}\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 1\nmap_Kd {texture_file}\n"


def _word(name: str) -> str:
    """OBJ ends a name at a space."""
    return "_".join(name.split()) or "asset"
