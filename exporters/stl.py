"""STL, binary: triangles and nothing else. The format has no unit; numbers are written as they are."""

from __future__ import annotations

import numpy as np

from threed.renderers.mesh import Asset

TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def encode_files(asset: Asset, name: str) -> dict[str, bytes]:
    return {name: encode(asset)}


def encode(asset: Asset) -> bytes:
    triangles = np.zeros(len(asset.mesh.faces), TRIANGLE)
    triangles["normal"] = asset.mesh.face_normals.detach().cpu().numpy()
    triangles["corners"] = asset.mesh.corners.detach().cpu().numpy()
    header = b"binary STL".ljust(80)  # not "solid", with which those in text begin
    return header + np.uint32(len(triangles)).astype("<u4").tobytes() + triangles.tobytes()
