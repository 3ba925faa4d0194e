"""glTF 2.0 in several files: NAME.gltf, NAME.bin and a PNG for each texture, as `glb` has them in one.

The others are named after the first, so that several assets share a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from threed.exporters import glb
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.names import plain_word


def encode_files(asset: Asset, name: str, colliders: Mapping[str, Mesh] = glb.NONE) -> dict[str, bytes]:
    """The files' bytes by their names, `name` being that of the glTF, which comes last."""
    tree, blobs, images = glb.parts(asset, colliders)
    stem = plain_word(Path(name).stem)
    found = {f"{stem}{glb.IMAGES[key]}.png": content for key, content in images.items()}
    for image, file in zip(tree["images"], found, strict=True):
        image["uri"] = file
    binary = b"".join(blobs)
    tree["buffers"] = [{"byteLength": len(binary), "uri": f"{stem}.bin"}]
    return found | {f"{stem}.bin": binary, name: glb.compact(tree)}
