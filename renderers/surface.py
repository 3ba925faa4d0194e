"""Surface rendering: a textured mesh becomes the same kind of pictures as a volume.

A pixel is the mean of supersample x supersample samples on a regular lattice inside it (a box filter); every picture
is multiplied by alpha. Normals are those of the faces, or smooth; seen from behind, they are turned round.

Where the vertices want a gradient, it is that of what is seen along the rays through the samples, which stay in place,
and of the outline, which `antialias` moves over them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from threed.renderers.camera import Cameras
from threed.renderers.light import Light
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.ops import ops
from threed.renderers.shading import Finished, Shading, shading
from threed.renderers.topology import Edges
from threed.renderers.torch_ops import Fragments
from threed.renderers.volume import Render, again

CLAY = 0.8  # the albedo of a mesh without a texture
GRAZING = 1e-3  # the least cosine between a ray and a normal at which the point that it meets has a gradient

Albedo = Callable[[Float[Tensor, "N 3"]], Float[Tensor, "N C"]]  # points of the world to display sRGB, and latents


def render(
    surface: Asset | Mesh,
    cameras: Cameras,
    height: int,
    width: int,
    supersample: int = 2,
    smooth: bool = False,
    albedo: Albedo | None = None,
    light: Light | None = None,
    finish: Finished | None = None,
    deferred: bool = False,
) -> Render:
    """Pictures of a surface, differentiable to its textures, to what paints it, and to its vertices.

    `albedo` paints a mesh, and `finish` says how it shines; a mesh alone looks like light grey clay. What `albedo` says
    beyond three channels, display sRGB in [0, 1], are latents. Without a `light`,
    a lamp at the viewer's shoulder multiplies the albedo; with one, `rgb` has what it makes of the whole material,
    normal map included. `deferred`, the gradient is worked out view by view, each of which is drawn again for that.
    """
    mesh = surface.mesh if isinstance(surface, Asset) else surface
    outline = ops(mesh.faces.device).edges(mesh.faces) if mesh.vertices.requires_grad else None
    paint, lit = _paint(surface, albedo), shading(surface, light, finish)
    normals, views = _normals(surface, mesh, smooth), []
    for i in range(len(cameras)):
        size = height * supersample, width * supersample
        draw = partial(again, _view) if deferred else _view
        samples = draw(mesh, paint, lit, cameras[i : i + 1], *size, normals, outline)
        views.append(functional.avg_pool2d(samples.movedim(-1, 1), supersample).movedim(1, -1))
    shown, latents = torch.cat(views).tensor_split([11], dim=-1)
    rgb, flat, alpha, depth, normal = shown.split([3, 3, 1, 1, 3], dim=-1)
    found = Render(rgb, flat, alpha, depth, normal, latents=latents if latents.shape[-1] else None)
    return replace(found, mesh=mesh, edges=outline) if outline else found


def _paint(surface: Asset | Mesh, albedo: Albedo | None) -> Callable[[Fragments, Tensor, Tensor], Tensor]:
    """The albedo of what is seen, out of fragments, which of them are covered, and their points."""
    if albedo:
        return lambda fragments, covered, points: albedo(points)
    if isinstance(surface, Mesh):
        return lambda fragments, covered, points: torch.full_like(points, CLAY)
    primitives = ops(surface.uvs.device)

    def textured(fragments: Fragments, covered: Tensor, points: Tensor) -> Tensor:
        uv = primitives.interpolate(surface.uvs, surface.uv_faces, fragments)[covered]
        return primitives.texture(surface.material.base_color, uv)

    return textured


def _view(
    mesh: Mesh,
    paint: Callable[[Fragments, Tensor, Tensor], Tensor],
    lit: Shading,
    camera: Cameras,
    height: int,
    width: int,
    normals: Callable[[Cameras, Fragments, Tensor], Tensor],
    outline: Edges | None,
) -> Float[Tensor, "1 H W C"]:
    """rgb, albedo, alpha, depth, normal and any latents of one view, side by side, a sample a pixel."""
    primitives = ops(mesh.vertices.device)
    clip = functional.pad(mesh.vertices, (0, 1), value=1.0) @ camera.clip_from_world(width / height).mT
    fragments = primitives.rasterize(clip, mesh.faces, height, width)
    covered = fragments.face >= 0
    if outline:
        fragments = _met(mesh, camera, fragments, covered)
    points = primitives.interpolate(mesh.vertices, mesh.faces, fragments)[covered]
    normal = normals(camera, fragments, covered)
    depth = (points - camera.position).norm(dim=-1, keepdim=True)
    albedo, latents = paint(fragments, covered, points).tensor_split([3], dim=-1)
    rgb = lit(camera, fragments, covered, points, normal, albedo)
    shown = torch.cat([rgb, albedo, torch.ones_like(depth), depth, normal, latents], dim=-1)
    samples = shown.new_zeros(*covered.shape, shown.shape[-1]).index_put((covered,), shown)
    return primitives.antialias(samples, clip, fragments, outline) if outline else samples


def _met(mesh: Mesh, camera: Cameras, fragments: Fragments, covered: Bool[Tensor, "1 H W"]) -> Fragments:
    """The same, with barycentrics that follow the triangles, as their planes meet the rays through the samples."""
    height, width = covered.shape[1:]
    origin, directions = (each[covered] for each in camera.rays(height, width))
    a, b, c = mesh.vertices[mesh.faces[fragments.face[covered].long()]].unbind(1)
    area = (b - a).cross(c - a, dim=-1)  # along the normal, twice as long as the area
    size = area.square().sum(-1)
    along = (directions * area).sum(-1)
    steep = along.square() > GRAZING**2 * size
    way = ((a - origin) * area).sum(-1) / torch.where(steep, along, 1)
    point = origin + way[:, None] * directions
    opposite = [((q - p).cross(point - p, dim=-1) * area).sum(-1) for p, q in ((b, c), (c, a))]
    moving = torch.stack(opposite, dim=-1) / torch.where(steep, size, 1)[:, None]
    still = fragments.barycentric[covered]
    # The value stays the rasterizer's, which is never outside the triangle.
    followed = torch.where(steep[:, None], still + moving - moving.detach(), still)
    return replace(fragments, barycentric=fragments.barycentric.index_put((covered,), followed))


def _normals(surface: Asset | Mesh, mesh: Mesh, smooth: bool) -> Callable[[Cameras, Fragments, Tensor], Tensor]:
    """Camera-space unit normals of what one camera sees, on its side: those of the faces, or smooth ones."""
    facing = mesh.face_normals
    start, outward = mesh.vertices.detach()[mesh.faces[:, 0]], facing.detach()
    directions, corners = _smoothed(surface) if smooth else (facing, None)

    def seen(camera: Cameras, fragments: Fragments, covered: Tensor) -> Tensor:
        toward = ((camera.position - start) * outward).sum(-1, keepdim=True)
        side = torch.where(toward < 0, -1.0, 1.0).to(outward)
        face = fragments.face[covered].long()
        if corners is None:
            return (facing * side @ camera.rotation[0])[face]
        between = ops(face.device).interpolate(directions @ camera.rotation[0], corners, fragments)
        return functional.normalize(between[covered], dim=-1) * side[face]

    return seen


def _smoothed(surface: Asset | Mesh) -> tuple[Float[Tensor, "N 3"], Int[Tensor, "F 3"]]:
    """Unit normals and those of each face's corners: an asset's as it is exported, with its edges; of a mesh, which may
    still move, one a vertex.
    """
    if isinstance(surface, Mesh):
        return surface.vertex_normals, surface.faces
    normals = surface.normals.reshape(-1, 3)
    return normals, torch.arange(len(normals), device=normals.device).view(-1, 3)
