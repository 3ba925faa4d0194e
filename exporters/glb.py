"""glTF 2.0 binary: one node, one mesh, one material, its textures inside, no extension.

glTF's axes, units and UVs are the project's own (+Y up, front +Z, metres, v down), so numbers are written as they are.
The same asset gives the same bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from threed.exporters import files
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.tangents import corner_tangents, mirrored

UNSIGNED_SHORT, UNSIGNED_INT, FLOAT = 5123, 5125, 5126
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071
NONE: Mapping[str, Mesh] = MappingProxyType({})
IMAGES = {
    "baseColorTexture": "",
    "metallicRoughnessTexture": "_metallic_roughness",
    "normalTexture": "_normal",
    "occlusionTexture": "_occlusion",
}


def write(asset: Asset, path: Path) -> None:
    """Raises OSError where `path` cannot be written."""
    files.write(path, encode(asset))


def encode_files(asset: Asset, name: str, colliders: Mapping[str, Mesh] = NONE) -> dict[str, bytes]:
    return {name: encode(asset, colliders)}


def encode(asset: Asset, colliders: Mapping[str, Mesh] = NONE) -> bytes:
    """The file's bytes: a header, a JSON chunk, a binary chunk (glTF 2.0 specification, section 4.4).

    Colliders are nodes beside the asset's, by name, without material, normals and UVs.
    """
    return bound(*parts(asset, colliders))


def bound(tree: dict[str, Any], blobs: list[bytes], images: dict[str, bytes]) -> bytes:
    """One file of what `parts` gives."""
    size = sum(map(len, blobs))
    views: list[dict[str, object]] = tree["bufferViews"]
    for image, content in zip(tree.get("images", []), images.values(), strict=True):
        image |= {"bufferView": len(views), "mimeType": "image/png"}
        views.append({"buffer": 0, "byteOffset": size, "byteLength": len(content)})
        blobs.append(padded(content))
        size += len(blobs[-1])
    tree["buffers"] = [{"byteLength": size}]
    chunks = [(b"JSON", padded(compact(tree), b" ")), (b"BIN\0", b"".join(blobs))]
    body = b"".join(struct.pack("<I4s", len(chunk), kind) + chunk for kind, chunk in chunks)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def parts(asset: Asset, colliders: Mapping[str, Mesh] = NONE) -> tuple[dict[str, Any], list[bytes], dict[str, bytes]]:
    """The scene's tree, whose images have no place yet, what its buffer views are of, and the pictures."""
    corner, indices = split(asset)
    attributes = {name: x[corner] for name, x in corner_attributes(asset).items()}
    images = pictures(asset.material)
    tree = _tree(asset, list(attributes), list(images))
    tree |= {"accessors": [], "bufferViews": []}
    blobs: list[bytes] = []
    _add(tree, blobs, indices, attributes)
    for name, mesh in colliders.items():
        first = len(tree["accessors"])
        _add(tree, blobs, mesh.faces, {"POSITION": mesh.vertices})
        tree["scenes"][0]["nodes"].append(len(tree["nodes"]))
        tree["nodes"].append({"name": name, "mesh": len(tree["meshes"])})
        tree["meshes"].append({"name": name, "primitives": [{"attributes": {"POSITION": first + 1}, "indices": first}]})
    return tree, blobs, images


def _add(tree: dict[str, Any], blobs: list[bytes], faces: Tensor, attributes: Mapping[str, Tensor]) -> None:
    """Triangles, as an accessor and a view of the indices and of each attribute."""
    short = len(attributes["POSITION"]) < 65535  # 65535 is reserved: it restarts primitives
    index = faces.cpu().numpy().astype("<u2" if short else "<u4").reshape(-1)
    arrays = {"indices": index} | {name: x.detach().cpu().float().numpy() for name, x in attributes.items()}
    for name, array in arrays.items():
        accessor: dict[str, object] = {
            "bufferView": len(tree["bufferViews"]),
            "componentType": FLOAT if name != "indices" else UNSIGNED_SHORT if short else UNSIGNED_INT,
            "count": len(array),
            "type": "SCALAR" if name == "indices" else f"VEC{array.shape[1]}",
        }
        if name == "POSITION":
            accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        blob = array.astype("<f4").tobytes() if name != "indices" else array.tobytes()
        view = {"buffer": 0, "byteOffset": sum(map(len, blobs)), "byteLength": len(blob)}
        tree["accessors"].append(accessor)
        tree["bufferViews"].append(view | {"target": ELEMENT_ARRAY_BUFFER if name == "indices" else ARRAY_BUFFER})
        blobs.append(padded(blob))


def compact(tree: object) -> bytes:
    """As UTF-8: Godot 3 does not put an emoji together that is escaped. Half a character becomes a question mark."""
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def split(asset: Asset) -> tuple[Int[Tensor, "S"], Int[Tensor, "F 3"]]:
    """A vertex for all corners with the same position, UV and normal: one of those corners each, and the triangles.

    Under a normal map, corners where the layout is mirrored stay apart from those where it is not.
    """
    directions, direction = unit_normals(asset).reshape(-1, 3).unique(dim=0, return_inverse=True)
    key = (asset.mesh.faces * len(asset.uvs) + asset.uv_faces) * len(directions) + direction.view(-1, 3)
    if asset.material.normal is not None:
        key = key * 2 + mirrored(asset.uvs, asset.uv_faces)[:, None]
    unique, indices = key.unique(return_inverse=True)
    corner = torch.empty_like(unique)
    corner[indices.reshape(-1)] = torch.arange(indices.numel(), device=indices.device)
    return corner, indices


def corner_attributes(asset: Asset) -> dict[str, Float[Tensor, "C _"]]:
    """glTF's vertex attributes at all corners of all faces.

    Tangents are written wherever there is a normal map: without them some engines compute MikkTSpace's, as glTF asks,
    others take derivatives in screen space, where the map was not baked, and the Khronos validator warns.
    """
    mesh, vertex, uv = asset.mesh, asset.mesh.faces.reshape(-1), asset.uv_faces.reshape(-1)
    attributes = {
        "POSITION": mesh.vertices[vertex],
        "NORMAL": unit_normals(asset).reshape(-1, 3),
        "TEXCOORD_0": asset.uvs[uv],
    }
    if asset.material.normal is not None:
        attributes["TANGENT"] = corner_tangents(mesh, asset.uvs, asset.uv_faces).reshape(-1, 4)
    return attributes


def pictures(material: Material) -> dict[str, bytes]:
    """The textures as PNGs, by what glTF calls them; the first is the base colour."""
    found = {"baseColorTexture": files.png(material.base_color)}
    shine, occlusion = material.roughness_metallic, material.occlusion
    if shine is not None:
        # Without occlusion red stays white: programs that look for it there find none.
        red = torch.ones_like(shine[..., :1]) if occlusion is None else occlusion
        found["metallicRoughnessTexture"] = files.png(torch.cat([red, shine], dim=-1))
    if material.normal is not None:
        found["normalTexture"] = files.normal_png(material.normal)
    if occlusion is not None and shine is None:
        found["occlusionTexture"] = files.png(occlusion.expand(-1, -1, 3))
    return found


def unit_normals(asset: Asset) -> Float[Tensor, "F 3 3"]:
    """Normals of unit length at every corner, as glTF demands; up, where the faces around a vertex cancel."""
    normals = asset.normals.detach()
    cancelled = normals.norm(dim=-1, keepdim=True) < 0.5
    return torch.where(cancelled, normals.new_tensor([0, 1, 0]), normals)


def _tree(asset: Asset, attributes: list[str], textures: list[str]) -> dict[str, Any]:
    """The scene without its buffers; the indices are accessor 0, the attributes follow."""
    material, place = asset.material, {name: {"index": i} for i, name in enumerate(textures)}
    surface: dict[str, object] = {
        "baseColorTexture": place["baseColorTexture"],
        "metallicFactor": material.metallic,
        "roughnessFactor": material.roughness,
    }
    if "metallicRoughnessTexture" in place:
        shine = place["metallicRoughnessTexture"]
        surface |= {"metallicFactor": 1.0, "roughnessFactor": 1.0, "metallicRoughnessTexture": shine}
    more = {"normalTexture": place["normalTexture"]} if "normalTexture" in place else {}
    if material.occlusion is not None:
        more["occlusionTexture"] = place.get("occlusionTexture") or place["metallicRoughnessTexture"]
    primitive = {"attributes": {name: i for i, name in enumerate(attributes, 1)}, "indices": 0, "material": 0}
    sampler = {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR, "wrapS": CLAMP_TO_EDGE, "wrapT": CLAMP_TO_EDGE}
    return {
        "asset": {"version": "2.0", "generator": "threed"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": asset.name, "mesh": 0}],
        "meshes": [{"name": asset.name, "primitives": [primitive]}],
        "materials": [{"name": asset.name, "pbrMetallicRoughness": surface, "doubleSided": False} | more],
        "textures": [{"sampler": 0, "source": i} for i in range(len(textures))],
        "samplers": [sampler],
        "images": [{"name": asset.name + IMAGES[name]} for name in textures],
    }


def padded(blob: bytes, filler: bytes = b"\0") -> bytes:
    """To a multiple of four bytes, as glTF wants all that it points to."""
    return blob + filler * (-len(blob) % 4)
