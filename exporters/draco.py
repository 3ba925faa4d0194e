"""GLB whose geometry is compressed (KHR_draco_mesh_compression): a fraction of the bytes, for programs that decode it.

Numbers are rounded to grids: positions to 2^14 steps along the longest side of the asset, UVs to 2^14 across those that
it uses, normals to 10 bits an angle; tangents, which the library cannot round, stay as they are. Corners that shared a
position still do, so that what was closed stays closed. Textures are those of the plain file, to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Num

from threed.exporters import glb
from threed.renderers.draco import EXTENSION
from threed.renderers.gltf import COMPONENTS, WIDTHS
from threed.renderers.mesh import Asset, Mesh

POSITION_BITS, UV_BITS, NORMAL_BITS = 14, 14, 10
LEVEL = 7  # of effort, 0 to 10; more took longer for larger files
TANGENT = 0  # its number in the stream
KINDS = {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 3, "TANGENT": 4}  # Draco's numbers of what attributes mean


def encode(asset: Asset, colliders: Mapping[str, Mesh] = glb.NONE) -> bytes:
    """The file's bytes. Raises ValueError without the package DracoPy."""
    tree, blobs, images = glb.parts(asset, colliders)
    arrays = [numbers(accessor, blob) for accessor, blob in zip(tree["accessors"], blobs, strict=True)]
    tree |= {"bufferViews": [], "extensionsUsed": [EXTENSION], "extensionsRequired": [EXTENSION]}
    payloads: list[bytes] = []
    for mesh in tree["meshes"]:
        (primitive,) = mesh["primitives"]
        place = primitive["attributes"]
        payload = compressed(arrays[primitive["indices"]], {name: arrays[index] for name, index in place.items()})
        streamed = describe(payload, tree["accessors"], primitive)
        primitive["extensions"] = {EXTENSION: {"bufferView": len(payloads), "attributes": streamed}}
        view = {"buffer": 0, "byteOffset": sum(map(len, payloads)), "byteLength": len(payload)}
        tree["bufferViews"].append(view)
        payloads.append(glb.padded(payload))
    return glb.bound(tree, payloads, images)


def numbers(accessor: Mapping[str, Any], blob: bytes) -> Num[np.ndarray, "N C"]:
    """What a plain accessor says its buffer view has."""
    width = WIDTHS[accessor["type"]]
    return np.frombuffer(blob, COMPONENTS[accessor["componentType"]], accessor["count"] * width).reshape(-1, width)


def compressed(indices: Integer[np.ndarray, "K 1"], attributes: Mapping[str, Float[np.ndarray, "V _"]]) -> bytes:
    """A Draco stream of triangles."""
    try:
        import DracoPy
    except ImportError as error:
        raise ValueError('there is no package DracoPy; pip install "threed-assets[compress]"') from error
    wide = {name: array.astype(np.float64) for name, array in attributes.items()}
    stream: bytes = DracoPy.encode(
        wide["POSITION"],
        indices.reshape(-1, 3),
        quantization_bits=POSITION_BITS,
        compression_level=LEVEL,
        tex_coord=wide.get("TEXCOORD_0"),
        normals=wide.get("NORMAL"),
        tex_coord_quantization_bits=UV_BITS,
        normal_quantization_bits=NORMAL_BITS,
        generic_attributes={TANGENT: attributes["TANGENT"]} if "TANGENT" in attributes else None,
    )
    return stream


def describe(stream: bytes, accessors: list[dict[str, Any]], primitive: dict[str, Any]) -> dict[str, int]:
    """Make the accessors say what a decoder will find, and return the numbers of the attributes in the stream."""
    import DracoPy

    found = DracoPy.decode(stream)
    indices = accessors[primitive["indices"]]
    indices["count"] = found.faces.size
    kinds = {each["attribute_type"]: each for each in found.attributes}
    for name, index in primitive["attributes"].items():
        accessors[index]["count"] = len(found.points)
        if name == "POSITION":
            accessors[index] |= {"min": found.points.min(0).tolist(), "max": found.points.max(0).tolist()}
    for index in (primitive["indices"], *primitive["attributes"].values()):
        del accessors[index]["bufferView"]
    return {name: kinds[KINDS[name]]["unique_id"] for name in primitive["attributes"]}
