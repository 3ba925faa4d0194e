"""What light makes of the material of a surface, where a camera sees it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from threed.renderers.camera import Cameras
from threed.renderers.light import Light, Points, headlight
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.ops import ops
from threed.renderers.tangents import corner_tangents, world_from_tangent
from threed.renderers.torch_ops import Fragments

# Display sRGB of what a camera sees: out of fragments, which pixels they cover, and of those the points, the
# camera-space normals on the viewer's side, and the albedo.
Shading = Callable[[Cameras, Fragments, Tensor, Tensor, Tensor, Tensor], Tensor]


def shading(surface: Asset | Mesh, light: Light | None) -> Shading:
    """Of a lamp at the viewer's shoulder that multiplies the albedo; or of a light, with the whole of the material.

    A mesh without a material is as rough as can be, and no metal.
    """
    if light is None:
        return lambda camera, fragments, covered, points, normal, albedo: albedo * headlight(normal)
    gloss, normals = _gloss(surface), _normals(surface)

    def lit(
        camera: Cameras, fragments: Fragments, covered: Tensor, points: Tensor, normal: Tensor, albedo: Tensor
    ) -> Tensor:
        normal = normals(normal @ camera.rotation[0].mT, fragments, covered)
        view = functional.normalize(camera.position - points, dim=-1)
        return light.shade(Points(normal, view, albedo, *gloss(normal, fragments, covered)))

    return lit


def _gloss(surface: Asset | Mesh) -> Callable[[Tensor, Fragments, Tensor], tuple[Tensor, Tensor]]:
    """Roughness and metallic."""
    if isinstance(surface, Asset) and (picture := surface.material.roughness_metallic) is not None:

        def found(normal: Tensor, fragments: Fragments, covered: Tensor) -> tuple[Tensor, Tensor]:
            roughness, metallic = _looked_up(surface, picture, fragments, covered).split(1, dim=-1)
            return roughness, metallic

        return found
    numbers = (surface.material.roughness, surface.material.metallic) if isinstance(surface, Asset) else (1.0, 0.0)
    return lambda normal, fragments, covered: tuple(torch.full_like(normal[:, :1], number) for number in numbers)


def _normals(surface: Asset | Mesh) -> Callable[[Tensor, Fragments, Tensor], Tensor]:
    """Unit normals in the world, on the viewer's side: as they are, or what a normal map says of the smooth ones."""
    if not isinstance(surface, Asset) or (picture := surface.material.normal) is None:
        return lambda normal, fragments, covered: normal
    tangents = corner_tangents(surface.mesh, surface.uvs, surface.uv_faces).reshape(-1, 4)
    corners, smooth = torch.arange(len(tangents), device=tangents.device).view(-1, 3), surface.mesh.vertex_normals

    def bumped(normal: Tensor, fragments: Fragments, covered: Tensor) -> Tensor:
        primitives = ops(normal.device)
        tangent = primitives.interpolate(tangents, corners, fragments)[covered]
        outward = primitives.interpolate(smooth, surface.mesh.faces, fragments)[covered]
        outward = functional.normalize(outward, dim=-1)
        vectors = functional.normalize(_looked_up(surface, picture, fragments, covered), dim=-1)
        behind = (outward * normal).sum(-1, keepdim=True) < 0
        return torch.where(behind, -1.0, 1.0) * world_from_tangent(vectors, outward, tangent)

    return bumped


def _looked_up(asset: Asset, picture: Tensor, fragments: Fragments, covered: Tensor) -> Tensor:
    primitives = ops(picture.device)
    uv = primitives.interpolate(asset.uvs, asset.uv_faces, fragments)[covered]
    return primitives.texture(picture, uv)
