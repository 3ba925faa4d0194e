"""glTF 2.0 binary: one node, one mesh, one material, its texture inside, no extension.

glTF's axes, units and UVs are the project's own (+Y up, front +Z, metres, v down), so numbers are written as they are.
The same asset gives the same bytes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from threed.exporters import files
from threed.renderers.mesh import Asset, Mesh

UNSIGNED_SHORT, UNSIGNED_INT, FLOAT = 5123, 5125, 5126
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071


def write(asset: Asset, path: Path) -> None:
    """Raises OSError where `path` cannot be written."""
    files.write(path, encode(asset))


def encode(asset: Asset) -> bytes:
    """The file's bytes: a header, a JSON chunk, a binary chunk (glTF 2.0 specification, section 4.4)."""
    vertex, uv, indices = split(asset)
    positions = asset.mesh.vertices[vertex].detach().cpu().float().numpy()
    normals = unit_normals(asset.mesh)[vertex].cpu().float().numpy()
    uvs = asset.uvs[uv].detach().cpu().float().numpy()
    # 65535 is reserved: it restarts primitives.
    short = len(vertex) < 65535
    arrays = [indices.cpu().numpy().astype("<u2" if short else "<u4").reshape(-1)]
    arrays += [x.astype("<f4") for x in (positions, normals, uvs)]
    blobs = [x.tobytes() for x in arrays] + [files.png(asset.material.base_color)]
    targets = [ELEMENT_ARRAY_BUFFER, ARRAY_BUFFER, ARRAY_BUFFER, ARRAY_BUFFER, None]
    views, offset = [], 0
    for blob, target in zip(blobs, targets, strict=True):
        view = {"buffer": 0, "byteOffset": offset, "byteLength": len(blob)}
        views.append(view | ({"target": target} if target else {}))
        offset += len(_padded(blob, b"\0"))
    kinds = ["SCALAR", "VEC3", "VEC3", "VEC2"]
    components = [UNSIGNED_SHORT if short else UNSIGNED_INT, FLOAT, FLOAT, FLOAT]
    accessors: list[dict[str, object]] = [
        {"bufferView": i, "componentType": component, "count": len(array), "type": kind}
        for i, (array, component, kind) in enumerate(zip(arrays, components, kinds, strict=True))
    ]
    accessors[1] |= {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    tree = _tree(asset) | {"accessors": accessors, "bufferViews": views, "buffers": [{"byteLength": offset}]}
    chunks = [
        (b"JSON", _padded(json.dumps(tree, separators=(",", ":")).encode(), b" ")),
        (b"BIN\0", b"".join(_padded(blob, b"\0") for blob in blobs)),
    ]
    body = b"".join(struct.pack("<I4s", len(chunk), kind) + chunk for kind, chunk in chunks)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def split(asset: Asset) -> tuple[Int[Tensor, "S"], Int[Tensor, "S"], Int[Tensor, "F 3"]]:
    """A vertex for every pair of position and UV that meet in a corner: the indices of both, and the triangles."""
    pairs = asset.mesh.faces * len(asset.uvs) + asset.uv_faces
    unique, indices = pairs.unique(return_inverse=True)
    return unique // len(asset.uvs), unique % len(asset.uvs), indices


def unit_normals(mesh: Mesh) -> Float[Tensor, "V 3"]:
    """Smooth vertex normals of unit length everywhere, as glTF demands; up, where the faces around a vertex cancel."""
    normals = mesh.vertex_normals.detach()
    cancelled = normals.norm(dim=-1, keepdim=True) < 0.5
    return torch.where(cancelled, normals.new_tensor([0, 1, 0]), normals)


def _tree(asset: Asset) -> dict[str, object]:
    """The scene without its buffers; accessors are 0 indices, 1 positions, 2 normals, 3 UVs."""
    attributes = {"POSITION": 1, "NORMAL": 2, "TEXCOORD_0": 3}
    surface = {
        "baseColorTexture": {"index": 0},
        "metallicFactor": asset.material.metallic,
        "roughnessFactor": asset.material.roughness,
    }
    sampler = {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR, "wrapS": CLAMP_TO_EDGE, "wrapT": CLAMP_TO_EDGE}
    return {
        "asset": {"version": "2.0", "generator": "threed"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": asset.name, "mesh": 0}],
        "meshes": [{"name": asset.name, "primitives": [{"attributes": attributes, "indices": 0, "material": 0}]}],
        "materials": [{"name": asset.name, "pbrMetallicRoughness": surface, "doubleSided": False}],
        "textures": [{"sampler": 0, "source": 0}],
        "samplers": [sampler],
        "images": [{"name": asset.name, "bufferView": 4, "mimeType": "image/png"}],
    }


def _padded(blob: bytes, filler: bytes) -> bytes:
    return blob + filler * (-len(blob) % 4)
