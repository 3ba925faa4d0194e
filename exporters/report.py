"""What an asset is made of, and whether it may leave the house."""

from __future__ import annotations

import torch
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from threed.renderers.mesh import Asset


def measure(asset: Asset) -> dict[str, object]:
    """Figures for a report, as plain numbers: metres, square and cubic metres, texels, shares of the texture."""
    mesh = asset.mesh
    return {
        "triangles": len(mesh.faces),
        "vertices": len(mesh.vertices),
        "watertight": mesh.is_watertight,
        "volume": float(mesh.volume),
        "area": float(_areas(mesh.corners).sum()),
        "bounds": [mesh.vertices.amin(0).tolist(), mesh.vertices.amax(0).tolist()],
        "texture_size": list(asset.material.base_color.shape[:2]),
        "charts": _count_charts(asset.uv_faces),
        "texel_use": float(_areas(_lifted(asset)).sum()),
    }


def verify(asset: Asset, watertight: bool = True) -> None:
    """Raises ValueError, naming the remedy, for an asset that an engine would refuse or show wrongly."""
    mesh, colour = asset.mesh, asset.material.base_color
    if len(mesh.faces) == 0 or colour.numel() == 0:
        raise ValueError(
            f"{asset.name!r} has {len(mesh.faces)} triangles and {colour.numel()} texels; nothing to write"
        )
    if not all(bool(x.isfinite().all()) for x in (mesh.vertices, asset.uvs, colour)):
        raise ValueError(f"{asset.name!r} has values that are not finite; resume from an earlier checkpoint")
    for what, index, count in (("faces", mesh.faces, len(mesh.vertices)), ("uv_faces", asset.uv_faces, len(asset.uvs))):
        if index.shape != mesh.faces.shape or index.min() < 0 or index.max() >= count:
            raise ValueError(
                f"{asset.name!r} has {what} outside 0..{count - 1} or not one for each corner; unwrap again"
            )
    if asset.uvs.min() < 0 or asset.uvs.max() > 1:
        span = (float(asset.uvs.min()), float(asset.uvs.max()))
        raise ValueError(f"{asset.name!r} has UVs from {span[0]:g} to {span[1]:g}, not within 0 and 1; unwrap again")
    if watertight and not mesh.is_watertight:
        raise ValueError(f"{asset.name!r} is not watertight; clean the surface before unwrapping it")
    if mesh.is_watertight and mesh.volume <= 0:
        raise ValueError(f"{asset.name!r} is inside out (volume {float(mesh.volume):g}); reverse its faces")


def _areas(corners: Tensor) -> Tensor:
    """Of triangles [F 3 3]."""
    a, b, c = corners.unbind(1)
    return (b - a).cross(c - a, dim=-1).norm(dim=-1) / 2


def _lifted(asset: Asset) -> Tensor:
    """The UV layout as triangles [F 3 3] in the plane z = 0."""
    return torch.nn.functional.pad(asset.uvs, (0, 1))[asset.uv_faces]


def _count_charts(uv_faces: Int[Tensor, "F 3"]) -> int:
    """Pieces of the layout that share no UV."""
    used, corner = uv_faces.cpu().unique(return_inverse=True)
    a, b = torch.cat([corner[:, [0, 1]], corner[:, [1, 2]]]).numpy().T
    links = coo_array((torch.ones(len(a)).numpy(), (a, b)), shape=(len(used), len(used)))
    return int(connected_components(links, directed=False)[0])
