"""What an asset is made of, and whether it may leave the house."""

from __future__ import annotations

import torch
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from threed.renderers.mesh import UNIT_SLACK, Asset, Material, Mesh


def measure(asset: Asset) -> dict[str, object]:
    """Figures for a report, as plain numbers: metres, square and cubic metres, texels, shares of the texture."""
    mesh = asset.mesh
    return {
        "triangles": len(mesh.faces),
        "vertices": len(mesh.vertices),
        "watertight": mesh.is_watertight,
        "volume": float(mesh.volume),
        "area": float(mesh.areas.sum()),
        "bounds": [mesh.vertices.amin(0).tolist(), mesh.vertices.amax(0).tolist()],
        "texture_size": list(asset.material.base_color.shape[:2]),
        "charts": _count_charts(asset.uv_faces),
        "texel_use": float(_layout(asset).areas.sum()),
    }


def verify(asset: Asset, watertight: bool = True) -> None:
    """Raises ValueError, naming the remedy, for an asset that an engine would refuse or show wrongly."""
    mesh, textures = asset.mesh, _textures(asset.material)
    colour = textures["base_color"]
    if len(mesh.faces) == 0 or colour.numel() == 0:
        raise ValueError(
            f"{asset.name!r} has {len(mesh.faces)} triangles and {colour.numel()} texels; nothing to write"
        )
    if not all(bool(x.isfinite().all()) for x in (mesh.vertices, asset.uvs, *textures.values())):
        raise ValueError(f"{asset.name!r} has values that are not finite; resume from an earlier checkpoint")
    for what, index, count in (("faces", mesh.faces, len(mesh.vertices)), ("uv_faces", asset.uv_faces, len(asset.uvs))):
        if index.shape != mesh.faces.shape or index.min() < 0 or index.max() >= count:
            raise ValueError(
                f"{asset.name!r} has {what} outside 0..{count - 1} or not one for each corner; unwrap again"
            )
    if asset.uvs.min() < 0 or asset.uvs.max() > 1:
        span = (float(asset.uvs.min()), float(asset.uvs.max()))
        raise ValueError(f"{asset.name!r} has UVs from {span[0]:g} to {span[1]:g}, not within 0 and 1; unwrap again")
    _verify_material(asset)
    if watertight and not mesh.is_watertight:
        raise ValueError(f"{asset.name!r} is not watertight; clean the surface before unwrapping it")
    if mesh.is_watertight and mesh.volume <= 0:
        raise ValueError(f"{asset.name!r} is inside out (volume {float(mesh.volume):g}); reverse its faces")


def _verify_material(asset: Asset) -> None:
    """What `verify` asks of numbers and textures; that they are finite is known."""
    material = asset.material
    for what, number in (("roughness", material.roughness), ("metallic", material.metallic)):
        if not 0 <= number <= 1:
            raise ValueError(f"{asset.name!r} has {what} {number:g}; use a number within 0 and 1")
    for what, texture in _textures(material).items():
        shape = (*material.base_color.shape[:2], {"roughness_metallic": 2, "occlusion": 1}.get(what, 3))
        if texture.shape != shape:
            raise ValueError(
                f"{asset.name!r} has a {what} texture of shape {tuple(texture.shape)}, not {shape}; "
                "bake all textures at one size"
            )
    normal = material.normal
    for what, texels in (("roughness and metallic", material.roughness_metallic), ("occlusion", material.occlusion)):
        if texels is not None and (texels.min() < 0 or texels.max() > 1):
            span = (float(texels.min()), float(texels.max()))
            raise ValueError(
                f"{asset.name!r} has {what} from {span[0]:g} to {span[1]:g}, not within 0 and 1; clamp them"
            )
    if normal is not None:
        length, lowest = normal.norm(dim=-1), float(normal[..., 2].min())
        span = (float(length.min()), float(length.max()))
        if max(1 - span[0], span[1] - 1) > UNIT_SLACK:
            raise ValueError(
                f"{asset.name!r} has a normal map of lengths from {span[0]:g} to {span[1]:g}, not 1; normalise it"
            )
        if lowest <= 0:
            raise ValueError(
                f"{asset.name!r} has a normal map that points into the surface (z {lowest:g}); "
                "write it in tangent space, z outward"
            )


def _textures(material: Material) -> dict[str, Tensor]:
    textures = {
        "base_color": material.base_color,
        "roughness_metallic": material.roughness_metallic,
        "normal": material.normal,
        "occlusion": material.occlusion,
    }
    return {name: texture for name, texture in textures.items() if texture is not None}


def _layout(asset: Asset) -> Mesh:
    """The UV layout as a surface in the plane z = 0."""
    return Mesh(torch.nn.functional.pad(asset.uvs, (0, 1)), asset.uv_faces)


def _count_charts(uv_faces: Int[Tensor, "F 3"]) -> int:
    """Pieces of the layout that share no UV."""
    used, corner = uv_faces.cpu().unique(return_inverse=True)
    a, b = torch.cat([corner[:, [0, 1]], corner[:, [1, 2]]]).numpy().T
    links = coo_array((torch.ones(len(a)).numpy(), (a, b)), shape=(len(used), len(used)))
    return int(connected_components(links, directed=False)[0])
