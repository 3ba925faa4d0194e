"""glTF 2.0, read strictly: `document` follows the specification's section 3, and every number in a file is checked.

Bones, animations, cameras, lights and opacity are left out, and so are points and lines. Of the extensions, quantized
attributes, geometry that Draco compressed (`draco`), moved and WebP textures, and the diffuse colours of
specular-glossiness materials are read; a file that needs others is refused.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import Float, Int, Num
from PIL import Image

from threed.renderers import draco
from threed.renderers.document import MOST_FACES, MOST_PRIMITIVES, Document, Folder, Primitive, Skin, placed, share

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
NEEDED = ("POSITION", "NORMAL", "TANGENT", "TEXCOORD_0", "COLOR_0")
TRIANGLES, STRIP, FAN = 4, 5, 6
SPECULAR = "KHR_materials_pbrSpecularGlossiness"
READABLE = {
    "KHR_mesh_quantization",
    "KHR_texture_transform",
    "EXT_texture_webp",
    "KHR_materials_unlit",
    SPECULAR,
    draco.EXTENSION,
}
MOST_NUMBERS = 2**26  # in all attributes together
MOST_VALUES = 2**21  # in JSON, each of which takes some hundred bytes
JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942

Tree = dict[str, Any]


def document(path: Path) -> Document:
    """The triangles of the file's scene. Raises whatever a malformed file makes the parser trip over."""
    content = path.read_bytes()
    tree, binary = chunks(content) if content[:4] == b"glTF" else (_parsed(content), None)
    if str(tree["asset"]["version"]).split(".")[0] != "2":
        raise ValueError(f"it is of glTF {tree['asset']['version']!r}, not 2.0")
    return _Reader(tree, binary, Folder(path.parent)).document(len(content))


def chunks(content: bytes) -> tuple[Tree, bytes | None]:
    """The tree of a GLB, and its binary chunk (section 4.4). Raises ValueError."""
    version, length = struct.unpack_from("<II", content, 4)
    if version != 2 or length > len(content):
        raise ValueError(f"its header says version {version} and {length} bytes; it has {len(content)}")
    found, offset = dict[int, bytes](), 12
    while offset + 8 <= length:
        size, kind = struct.unpack_from("<II", content, offset)
        if offset + 8 + size > length:
            raise ValueError("a chunk ends after the file")
        found.setdefault(kind, content[offset + 8 : offset + 8 + size])
        offset += 8 + size
    return _parsed(found[JSON_CHUNK]), found.get(BINARY_CHUNK)


def _parsed(content: bytes) -> Tree:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    if sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"its JSON has more than {MOST_VALUES} values")
    try:
        tree = json.loads(content.decode("utf-8-sig"), parse_constant=refuse)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"there is no glTF in it: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError("its JSON is no object")
    return tree


def _item(tree: Tree, key: str, index: object) -> Any:
    """One of the tree's lists by its number, which must not count from the end."""
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(tree.get(key, [])):
        raise ValueError(f"there is no {index!r} among its {key}")
    return tree[key][index]


def _natural(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{what} is {value!r}")
    return value


class _Reader:
    """A tree and what has been looked up in it, each thing once."""

    def __init__(self, tree: Tree, binary: bytes | None, folder: Folder) -> None:
        self.tree, self.binary, self.folder, self.numbers = tree, binary, folder, MOST_NUMBERS
        self.buffer, self.accessor = cache(self._buffer), cache(self._accessor)
        self.triangles, self.skin, self.stream = cache(self._triangles), cache(self._skin), cache(self._stream)

    def document(self, size: int) -> Document:
        required = tuple(str(name) for name in self.tree.get("extensionsRequired", []))
        if unknown := sorted({*required} - READABLE):
            raise ValueError(f"it needs {', '.join(unknown)}, which is not read here; write it without")
        placed = [
            (str(node.get("name") or mesh.get("name") or ""), primitive, matrix)
            for node, matrix in self.placed()
            for mesh in [_item(self.tree, "meshes", node["mesh"])]
            for primitive in mesh["primitives"]
            if primitive.get("mode", TRIANGLES) in (TRIANGLES, STRIP, FAN)
        ]
        if len(placed) > MOST_PRIMITIVES:
            raise ValueError(f"it has more than {MOST_PRIMITIVES} parts; join them")
        # Counted before anything is copied: a small file can place one mesh any number of times.
        if sum(map(self.count, (primitive for _, primitive, _ in placed))) > MOST_FACES:
            raise ValueError(f"it has more than {MOST_FACES} triangles; simplify it")
        found = tuple(self.primitive(*each) for each in placed)
        names = {each.name for each in found if not each.is_collider}
        return Document(found, True, names.pop() if len(names) == 1 else "", required, size)

    def placed(self) -> Iterator[tuple[Tree, Float[np.ndarray, "4 4"]]]:
        """The nodes of the scene that have a mesh, each with its place in the world."""
        nodes = self.tree.get("nodes", [])
        if "scenes" in self.tree:
            roots = _item(self.tree, "scenes", self.tree.get("scene", 0)).get("nodes", [])
        else:
            roots = sorted({*range(len(nodes))} - {child for node in nodes for child in node.get("children", [])})
        waiting, seen = [(root, np.eye(4)) for root in reversed(roots)], set[int]()
        while waiting:
            index, above = waiting.pop()
            node = _item(self.tree, "nodes", index)
            if index in seen:
                raise ValueError(f"node {index} is below itself, or below two others")
            seen.add(index)
            matrix = above @ _matrix(node)
            if "mesh" in node:
                yield node, matrix
            waiting += [(child, matrix) for child in reversed(node.get("children", []))]

    def count(self, primitive: Tree) -> int:
        """Triangles, roughly, by what the file says."""
        index = primitive["indices"] if "indices" in primitive else primitive["attributes"]["POSITION"]
        corners = _natural(_item(self.tree, "accessors", index)["count"], "a count")
        return corners // 3 if primitive.get("mode", TRIANGLES) == TRIANGLES else corners

    def primitive(self, name: str, primitive: Tree, matrix: Float[np.ndarray, "4 4"]) -> Primitive:
        found, faces = self.geometry(primitive)
        positions = found["POSITION"]
        if any(len(x) != len(positions) for x in found.values()):
            raise ValueError("its attributes have different counts")
        if faces is None:
            faces = self.triangles(primitive.get("indices"), len(positions), primitive.get("mode", TRIANGLES))
        material = primitive.get("material")
        plain = Primitive(
            name,
            _wide(positions, 3),
            faces,
            _wide(found["TEXCOORD_0"], 2) @ self.layout(material)[:, :2].T + self.layout(material)[:, 2]
            if "TEXCOORD_0" in found
            else None,
            _wide(found["NORMAL"], 3) if "NORMAL" in found else None,
            _wide(found["TANGENT"], 4) if "TANGENT" in found else None,
            found["COLOR_0"][:, :3].astype(float) if "COLOR_0" in found else None,
            Skin() if material is None else self.skin(material),
        )
        return placed(plain, matrix)

    def geometry(self, primitive: Tree) -> tuple[dict[str, Num[np.ndarray, "N C"]], Int[np.ndarray, "F 3"] | None]:
        """Its attributes, and its triangles where Draco has them; a plain copy beside is preferred."""
        attributes = {key: primitive["attributes"][key] for key in NEEDED if key in primitive["attributes"]}
        said = primitive.get("extensions", {}).get(draco.EXTENSION)
        if said is None or "bufferView" in _item(self.tree, "accessors", attributes["POSITION"]):
            return {key: self.accessor(index) for key, index in attributes.items()}, None
        faces, streamed = self.stream(said["bufferView"], self.count(primitive))
        places = said["attributes"]
        return {
            key: _normalised(streamed[places[key]], _item(self.tree, "accessors", index))
            if key in places
            else self.accessor(index)
            for key, index in attributes.items()
        }, faces

    def _stream(self, view: int, most: int) -> tuple[Int[np.ndarray, "F 3"], dict[int, Num[np.ndarray, "N C"]]]:
        """What Draco compressed into a buffer view."""
        faces, attributes = draco.decoded(self.view(view)[0], most)
        self.spend(sum(x.size for x in attributes.values()))
        return faces, attributes

    def spend(self, numbers: int) -> None:
        self.numbers -= numbers
        if self.numbers < 0:
            raise ValueError(f"it has more than {MOST_NUMBERS} numbers; simplify it")

    def _triangles(self, indices: int | None, vertices: int, mode: int) -> Int[np.ndarray, "F 3"]:
        """Of an index accessor, or of the vertices one after the other."""
        corners = np.arange(vertices) if indices is None else self.accessor(indices)[:, 0].astype(np.int64)
        if mode == TRIANGLES:
            return corners[: len(corners) // 3 * 3].reshape(-1, 3)
        if len(corners) < 3:
            return np.zeros((0, 3), np.int64)
        if mode == FAN:
            return np.stack([np.full(len(corners) - 2, corners[0]), corners[1:-1], corners[2:]], axis=1)
        strip = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
        strip[1::2] = strip[1::2, [1, 0, 2]]
        return strip

    def _buffer(self, index: int) -> bytes:
        buffer = _item(self.tree, "buffers", index)
        content = self.named(buffer["uri"]) if "uri" in buffer else self.binary
        if content is None or (index != 0 and "uri" not in buffer):
            raise ValueError(f"buffer {index} is nowhere")
        if len(content) < (length := _natural(buffer["byteLength"], "a byteLength")):
            raise ValueError(f"buffer {index} has {len(content)} bytes of {length}")
        return content[:length]

    def named(self, uri: str) -> bytes:
        """The bytes behind a URI: its own, or those of a file in the folder."""
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2], validate=True)
        return self.folder.read(unquote(uri))

    def view(self, index: object) -> tuple[bytes, int]:
        """The bytes of a buffer view, and how far apart its elements are (0: one after the other)."""
        view = _item(self.tree, "bufferViews", index)
        start = _natural(view.get("byteOffset", 0), "a byteOffset")
        end = start + _natural(view["byteLength"], "a byteLength")
        content = self.buffer(view["buffer"])
        if end > len(content):
            raise ValueError(f"buffer view {index} ends after its buffer")
        return content[start:end], _natural(view.get("byteStride", 0), "a byteStride")

    def _accessor(self, index: int) -> Num[np.ndarray, "N C"]:
        """Floats and integers, see `_normalised`."""
        said = _item(self.tree, "accessors", index)
        kind, width = COMPONENTS[said["componentType"]], WIDTHS[said["type"]]
        count = _natural(said["count"], "a count")
        self.spend(count * width)
        values = np.zeros((count, width), kind)
        if "bufferView" in said:
            values = self.elements(said["bufferView"], said.get("byteOffset", 0), count, width, kind)
        if sparse := said.get("sparse"):
            some = _natural(sparse["count"], "a count")
            at, new = sparse["indices"], sparse["values"]
            where = self.elements(at["bufferView"], at.get("byteOffset", 0), some, 1, COMPONENTS[at["componentType"]])
            values = values.copy()
            values[where[:, 0]] = self.elements(new["bufferView"], new.get("byteOffset", 0), some, width, kind)
        return _normalised(values, said)

    def elements(self, view: object, offset: object, count: int, width: int, kind: str) -> Num[np.ndarray, "N C"]:
        """Read where they are, which must be inside."""
        content, stride = self.view(view)
        size, start = np.dtype(kind).itemsize * width, _natural(offset, "a byteOffset")
        stride = stride or size
        if count and start + stride * (count - 1) + size > len(content):
            raise ValueError(f"{count} elements do not fit into buffer view {view}")
        strides = (stride, np.dtype(kind).itemsize)
        return np.ndarray((count, width), kind, content, start, strides) if count else np.zeros((0, width), kind)

    def _skin(self, index: int) -> Skin:
        said = _item(self.tree, "materials", index)
        surface = said.get("pbrMetallicRoughness", {})
        specular = said.get("extensions", {}).get(SPECULAR)
        look, factor = (
            ("baseColorTexture", "baseColorFactor") if specular is None else ("diffuseTexture", "diffuseFactor")
        )
        told = surface if specular is None else specular
        red, green, blue = (share(x) for x in told.get(factor, [1, 1, 1])[:3])
        return Skin(
            color=self.texture(told.get(look)),
            factor=(red, green, blue),
            shine=self.texture(surface.get("metallicRoughnessTexture")),
            roughness=share(surface.get("roughnessFactor", 1.0)),
            metallic=share(surface.get("metallicFactor", 1.0)) if specular is None else 0.0,
            bumps=self.texture(said.get("normalTexture")),
            occlusion=self.texture(said.get("occlusionTexture")),
        )

    def layout(self, material: int | None) -> Float[np.ndarray, "2 3"]:
        """How the textures of a material are moved over the UVs (KHR_texture_transform); the first one tells."""
        said = {} if material is None else _item(self.tree, "materials", material)
        surface = said.get("pbrMetallicRoughness", {})
        textures = surface.get("baseColorTexture"), surface.get("metallicRoughnessTexture"), said.get("normalTexture")
        first: dict[str, Any] = next((texture for texture in textures if texture), {})
        move = first.get("extensions", {}).get("KHR_texture_transform", {})
        turn = float(move.get("rotation", 0))
        cos, sin = math.cos(turn), math.sin(turn)
        across, down = (float(x) for x in move.get("scale", (1, 1)))
        u, v = (float(x) for x in move.get("offset", (0, 0)))
        return np.array([[cos * across, sin * down, u], [-sin * across, cos * down, v]])

    def texture(self, said: Tree | None) -> Image.Image | None:
        """RGB; None where there is none, or where it lies on UVs other than the first."""
        if said is None or said.get("texCoord", 0) != 0:
            return None
        texture = _item(self.tree, "textures", said["index"])
        source = texture.get("extensions", {}).get("EXT_texture_webp", texture).get("source")
        if source is None:
            return None
        image = _item(self.tree, "images", source)
        content = self.named(image["uri"]) if "uri" in image else self.view(image["bufferView"])[0]
        try:
            return self.folder.picture(content)
        except Exception as error:  # whatever a broken picture makes its decoder trip over
            raise ValueError(f"image {source} cannot be read: {error}") from error


def _normalised(values: Num[np.ndarray, "N C"], accessor: Tree) -> Num[np.ndarray, "N C"]:
    """Integers as they are, or in [-1, 1] where an accessor calls them normalised (section 3.6.2)."""
    if accessor.get("normalized") and values.dtype.kind in "iu":
        return np.maximum(values / np.iinfo(values.dtype).max, -1.0)
    return values


def _matrix(node: Tree) -> Float[np.ndarray, "4 4"]:
    """From a node's space to that above it (section 3.5.2)."""
    if "matrix" in node:
        return np.array(node["matrix"], float).reshape(4, 4).T
    x, y, z, w = (float(value) for value in node.get("rotation", (0, 0, 0, 1)))
    length = math.sqrt(x * x + y * y + z * z + w * w)
    x, y, z, w = (value / length for value in (x, y, z, w)) if length > 0 else (0.0, 0.0, 0.0, 1.0)
    turn = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    found = np.eye(4)
    found[:3, :3] = np.array(turn) * np.array(node.get("scale", (1, 1, 1)), float).reshape(3)
    found[:3, 3] = np.array(node.get("translation", (0, 0, 0)), float).reshape(3)
    return found


def _wide(values: Num[np.ndarray, "N C"], width: int) -> Float[np.ndarray, "N W"]:
    if values.shape[1] != width:
        raise ValueError(f"an attribute has {values.shape[1]} numbers a vertex, not {width}")
    return values.astype(float)
