"""PLY, binary little-endian: welded positions in the project's axes and metres, with their colours.

There is no place in it for a texture that all programs look at; each vertex has the colour that the texture has there.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from threed.renderers.mesh import Asset
from threed.renderers.ops import ops

VERTEX = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")] + [(c, "u1") for c in ("red", "green", "blue")]
KINDS = {"<f4": "float", "u1": "uchar"}


def encode_files(asset: Asset, name: str) -> dict[str, bytes]:
    return {name: encode(asset)}


def encode(asset: Asset) -> bytes:
    mesh = asset.mesh
    vertices = np.zeros(len(mesh.vertices), VERTEX)
    colours = (vertex_colours(asset).clamp(0, 1) * 255).round()
    for values, names in (
        (torch.cat([mesh.vertices, mesh.vertex_normals], dim=1), "x y z nx ny nz"),
        (colours, "red green blue"),
    ):
        for name, column in zip(names.split(), values.detach().cpu().unbind(1), strict=True):
            vertices[name] = column.numpy()
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces.cpu().numpy()
    header = ["ply", "format binary_little_endian 1.0", "comment metres, +Y up", f"element vertex {len(vertices)}"]
    header += [f"property {KINDS[kind]} {name}" for name, kind in VERTEX]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    return "\n".join([*header, ""]).encode() + vertices.tobytes() + faces.tobytes()


def vertex_colours(asset: Asset) -> Float[Tensor, "V 3"]:
    """Display sRGB: the mean of what the texture has at the corners around each vertex."""
    corner = asset.mesh.faces.reshape(-1)
    shown = ops(asset.uvs.device).texture(asset.material.base_color, asset.uvs[asset.uv_faces.reshape(-1)])
    total = asset.mesh.vertices.new_zeros(len(asset.mesh.vertices), 3).index_add(0, corner, shown)
    return total / corner.bincount(minlength=len(total)).clamp(min=1)[:, None]
