"""USDZ: a scene in USD's text format and its PNGs in one archive, as Apple's AR Quick Look and USD's programs open it.

The archive is a ZIP without compression, the scene first, in which every file begins at a multiple of 64 bytes (the
USDZ specification of OpenUSD). The material is a UsdPreviewSurface. Axes and units are the project's, +Y up and metres;
v counts from the lower edge of a texture.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from threed.exporters import glb
from threed.renderers.mesh import Asset, Material

ALIGNMENT = 64  # bytes
HEADER = 30  # bytes that a ZIP has before each file, without its name and padding
PADDING = 0x1986  # what OpenUSD calls it in a ZIP's list of extra fields
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the earliest that a ZIP knows
NUMBERS = dict.fromkeys(("roughness", "metallic", "occlusion"), "float")
TYPES = {"diffuseColor": "color3f", "normal": "normal3f"} | NUMBERS

SCENE = """#usda 1.0
(
    defaultPrim = "{root}"
    metersPerUnit = 1
    upAxis = "Y"
)

def Xform "{root}" (
    displayName = {name}
    kind = "component"
)
{{
    def Mesh "Mesh" (
        prepend apiSchemas = ["MaterialBindingAPI"]
    )
    {{
        float3[] extent = {extent}
        int[] faceVertexCounts = {counts}
        int[] faceVertexIndices = {indices}
        rel material:binding = </{root}/Material>
        normal3f[] normals = {normals} (
            interpolation = "vertex"
        )
        point3f[] points = {points}
        texCoord2f[] primvars:st = {uvs} (
            interpolation = "vertex"
        )
        uniform token subdivisionScheme = "none"
    }}

    def Material "Material"
    {{
        token outputs:surface.connect = </{root}/Material/Surface.outputs:surface>

        def Shader "Surface"
        {{
            uniform token info:id = "UsdPreviewSurface"
            {inputs}
            token outputs:surface
        }}

        def Shader "Coordinates"
        {{
            uniform token info:id = "UsdPrimvarReader_float2"
            string inputs:varname = "st"
            float2 outputs:result
        }}
{textures}
    }}
}}
"""
TEXTURE = """
        def Shader "{name}"
        {{
            uniform token info:id = "UsdUVTexture"
            float4 inputs:bias = {bias}
            asset inputs:file = @{file}@
            float4 inputs:scale = {scale}
            token inputs:sourceColorSpace = "{space}"
            float2 inputs:st.connect = </{root}/Material/Coordinates.outputs:result>
            token inputs:wrapS = "clamp"
            token inputs:wrapT = "clamp"
            {outputs}
        }}"""


def encode_files(asset: Asset, name: str) -> dict[str, bytes]:
    return {name: encode(asset)}


def encode(asset: Asset) -> bytes:
    """The file's bytes, which are the same for the same asset."""
    pictures = glb.pictures(asset.material)
    files = {f"{shader_name(key)}.png": content for key, content in pictures.items()}
    return archived({"asset.usda": scene(asset, list(pictures)).encode()} | files)


def archived(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, FIRST_DAY)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # Unix, on every system
            gap = -(stream.tell() + HEADER + len(name) + 4) % ALIGNMENT
            entry.extra = PADDING.to_bytes(2, "little") + gap.to_bytes(2, "little") + bytes(gap)
            archive.writestr(entry, content)
    return stream.getvalue()


def scene(asset: Asset, textures: list[str]) -> str:
    """In USD's text; the vertices are those of the GLB, one for all corners that are alike."""
    corner, indices = glb.split(asset)
    found = {name: x[corner].detach().cpu().double().numpy() for name, x in glb.corner_attributes(asset).items()}
    points, root = found["POSITION"], identifier(asset.name)
    used = {key: channels(key, asset.material) for key in textures}
    plain = {"roughness": asset.material.roughness, "metallic": asset.material.metallic}
    inputs = {f"{TYPES[name]} inputs:{name}": f" = {value:.9g}" for name, value in plain.items()}
    for key, names in used.items():
        for channel, name in names.items():
            inputs.pop(f"{TYPES[name]} inputs:{name}", None)
            source = f"</{root}/Material/{shader_name(key)}.outputs:{channel}>"
            inputs[f"{TYPES[name]} inputs:{name}.connect"] = f" = {source}"
    return SCENE.format(
        root=root,
        name=quoted(asset.name),
        extent=listed([points.min(0), points.max(0)]),
        counts=[3] * len(indices),
        indices=indices.reshape(-1).tolist(),
        normals=listed(found["NORMAL"]),
        points=listed(points),
        uvs=listed(found["TEXCOORD_0"] * [1, -1] + [0, 1]),
        inputs="\n            ".join(name + value for name, value in inputs.items()),
        textures="\n".join(texture(key, names, root) for key, names in used.items()),
    )


def channels(key: str, material: Material) -> dict[str, str]:
    """What the channels of one of glTF's textures are to a UsdPreviewSurface."""
    if key == "metallicRoughnessTexture":
        return ({} if material.occlusion is None else {"r": "occlusion"}) | {"g": "roughness", "b": "metallic"}
    return {
        "baseColorTexture": {"rgb": "diffuseColor"},
        "normalTexture": {"rgb": "normal"},
        "occlusionTexture": {"r": "occlusion"},
    }[key]


def texture(key: str, names: Mapping[str, str], root: str) -> str:
    bumps = key == "normalTexture"  # whose bytes are vectors
    return TEXTURE.format(
        name=shader_name(key),
        root=root,
        file=f"{shader_name(key)}.png",
        bias="(-1, -1, -1, 0)" if bumps else "(0, 0, 0, 0)",
        scale="(2, 2, 2, 1)" if bumps else "(1, 1, 1, 1)",
        space="sRGB" if key == "baseColorTexture" else "raw",
        outputs="\n            ".join(f"float{'3' if each == 'rgb' else ''} outputs:{each}" for each in names),
    )


def shader_name(key: str) -> str:
    """Of a texture: BaseColor, MetallicRoughness, Normal, Occlusion."""
    return key[0].upper() + key.removesuffix("Texture")[1:]


def listed(rows: Float[np.ndarray, "N C"] | list[Float[np.ndarray, "C"]]) -> str:
    """Tuples of numbers, with the nine digits that tell one float32 from the next."""
    return "[" + ", ".join("(" + ", ".join(f"{x:.9g}" for x in row.tolist()) + ")" for row in rows) + "]"


def identifier(name: str) -> str:
    """What all of USD's readers take as a name: Latin letters, digits and lines, no digit first."""
    return re.sub(r"\A(?=[0-9])", "_", re.sub(r"[^A-Za-z0-9_]", "_", name)) or "asset"


def quoted(name: str) -> str:
    printable = "".join(letter if letter.isprintable() else " " for letter in name)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
