"""What light makes of the material of a surface, where a camera sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
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


@dataclass(frozen=True)
class Finish:
    """What beside their albedo makes points of a surface look as they do under a light."""

    roughness: Float[Tensor, "N 1"]  # glTF's, in [0, 1]
    metallic: Float[Tensor, "N 1"]  # in [0, 1]
    bump: Float[Tensor, "N 3"]  # in the world, see `bent`


Finished = Callable[[Float[Tensor, "N 3"]], Finish]  # of points of the world


def shading(surface: Asset | Mesh, light: Light | None, finish: Finished | None = None) -> Shading:
    """Of a lamp at the viewer's shoulder that multiplies the albedo; or of a light, with the whole of the material.

    `finish` stands for the material, if any. A mesh without either is as rough as can be, and no metal.
    """
    if light is None:
        return lambda camera, fragments, covered, points, normal, albedo: albedo * headlight(normal)
    if finish:
        return _finished(surface.mesh if isinstance(surface, Asset) else surface, finish, light)
    gloss, normals = _gloss(surface), _normals(surface)

    def lit(
        camera: Cameras, fragments: Fragments, covered: Tensor, points: Tensor, normal: Tensor, albedo: Tensor
    ) -> Tensor:
        normal = normals(normal @ camera.rotation[0].mT, fragments, covered)
        view = functional.normalize(camera.position - points, dim=-1)
        return light.shade(Points(normal, view, albedo, *gloss(normal, fragments, covered)))

    return lit


def bent(normal: Float[Tensor, "*P 3"], bump: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 3"]:
    """Unit normals tilted by the part of `bump` that lies in the surface, which is x and y over z of a normal map.

    They stay on their side of the surface, and need no tangents: what is tilted is a vector of the world.
    """
    return functional.normalize(normal + bump - (bump * normal).sum(-1, keepdim=True) * normal, dim=-1)


def _finished(mesh: Mesh, finish: Finished, light: Light) -> Shading:
    def lit(
        camera: Cameras, fragments: Fragments, covered: Tensor, points: Tensor, normal: Tensor, albedo: Tensor
    ) -> Tensor:
        found, normal = finish(points), normal @ camera.rotation[0].mT
        outward = mesh.face_normals[fragments.face[covered].long()]
        behind = (outward * normal).sum(-1, keepdim=True) < 0
        normal = bent(normal, torch.where(behind, -1.0, 1.0) * found.bump)  # what is a dent here is a bump there
        view = functional.normalize(camera.position - points, dim=-1)
        return light.shade(Points(normal, view, albedo, found.roughness, found.metallic))

    return lit


def _gloss(surface: Asset | Mesh) -> Callable[[Tensor, Fragments, Tensor], tuple[Tensor, Tensor]]:
    """Roughness and metallic."""
    if isinstance(surface, Asset) and (picture := surface.material.roughness_metallic) is not None:

        def found(normal: Tensor, fragments: Fragments, covered: Tensor) -> tuple[Tensor, Tensor]:
            roughness, metallic = _looked_up(surface, picture, fragments, covered).split(1, dim=-1)
            return roughness, metallic

        return found
    rough, metal = (surface.material.roughness, surface.material.metallic) if isinstance(surface, Asset) else (1.0, 0.0)
    return lambda normal, fragments, covered: (
        torch.full_like(normal[:, :1], rough),
        torch.full_like(normal[:, :1], metal),
    )


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
