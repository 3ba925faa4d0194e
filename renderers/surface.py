"""Surface rendering: a textured mesh becomes the same kind of pictures as a volume.

A pixel is the mean of supersample x supersample samples on a regular lattice inside it (a box filter); every picture
is multiplied by alpha. Normals are those of the faces, or smooth; seen from behind, they are turned round.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.renderers.camera import Cameras
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.ops import ops
from threed.renderers.volume import Render

AMBIENT = 0.45  # the light that reaches every side
TOWARD_LIGHT = (-0.3, 0.5, 1.0)  # camera space: the lamp stands above the viewer's left shoulder
CLAY = 0.8  # the albedo of a mesh without a texture


def render(
    surface: Asset | Mesh, cameras: Cameras, height: int, width: int, supersample: int = 2, smooth: bool = False
) -> Render:
    """Pictures of a surface; differentiable to its texture. A mesh alone looks like light grey clay."""
    views = [_view(surface, cameras[i : i + 1], height, width, supersample, smooth) for i in range(len(cameras))]
    rgb, albedo, alpha, depth, normal = torch.cat(views).split([3, 3, 1, 1, 3], dim=-1)
    return Render(rgb, albedo, alpha, depth, normal)


def headlight(normal: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 1"]:
    """The share of light that camera-space unit normals send back: ambient + (1 - ambient) max(0, n . l)."""
    toward = functional.normalize(normal.new_tensor(TOWARD_LIGHT), dim=0)
    return AMBIENT + (1 - AMBIENT) * (normal @ toward).clamp(min=0)[..., None]


def _view(
    surface: Asset | Mesh, camera: Cameras, height: int, width: int, supersample: int, smooth: bool
) -> Float[Tensor, "1 H W 11"]:
    """rgb, albedo, alpha, depth and normal of one view, side by side."""
    mesh = surface.mesh if isinstance(surface, Asset) else surface
    primitives = ops(mesh.vertices.device)
    clip = functional.pad(mesh.vertices, (0, 1), value=1.0) @ camera.clip_from_world(width / height).mT
    fragments = primitives.rasterize(clip, mesh.faces, height * supersample, width * supersample)
    covered = fragments.face >= 0
    face = fragments.face[covered].long()

    if isinstance(surface, Asset):
        uv = primitives.interpolate(surface.uvs, surface.uv_faces, fragments)[covered]
        albedo = primitives.texture(surface.material.base_color, uv)
    else:
        albedo = clip.new_full((len(face), 3), CLAY)

    toward = ((camera.position - mesh.corners[:, 0]) * mesh.face_normals).sum(-1, keepdim=True)
    side = torch.where(toward < 0, -1.0, 1.0).to(clip)  # -1 for faces seen from behind
    if smooth:
        normal = primitives.interpolate(mesh.vertex_normals @ camera.rotation[0], mesh.faces, fragments)[covered]
        normal = functional.normalize(normal, dim=-1) * side[face]
    else:
        normal = (mesh.face_normals * side @ camera.rotation[0])[face]

    points = primitives.interpolate(mesh.vertices, mesh.faces, fragments)[covered]
    depth = (points - camera.position).norm(dim=-1, keepdim=True)
    shown = torch.cat([albedo * headlight(normal), albedo, torch.ones_like(depth), depth, normal], dim=-1)
    samples = shown.new_zeros(*covered.shape, shown.shape[-1])
    samples[covered] = shown
    return functional.avg_pool2d(samples.movedim(-1, 1), supersample).movedim(1, -1)
