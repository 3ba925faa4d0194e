"""Ambient occlusion: how much of the sky above a surface nothing else covers.

1 in the open, 0 where nothing gets in: the share of a hemisphere, weighted by the cosine to the normal, from which a
point is seen (Landis 2002, "Production-ready global illumination"). The asset is looked at from DIRECTIONS sides,
evenly spread, and a point is seen from one where the depth map there has nothing nearer.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.exporters.bake import nearest_covered, texels
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.ops import ops

DIRECTIONS = 256
PIXELS = 512  # along a side of a depth map
LIFT = 1.5  # pixels that points are lifted off their own surface


def shaded(asset: Asset) -> Asset:
    """With an occlusion map of its own shape, in texels of its other textures. Raises ValueError for a palette."""
    height, width = asset.material.base_color.shape[:2]
    if height != width:
        raise ValueError(f"the texture is {width} x {height}; unwrap it onto a square one")
    surface = texels(asset.mesh, asset.uvs, asset.uv_faces, width)
    found = occlusion(asset.mesh, surface.points, surface.normals)
    return replace(
        asset, material=replace(asset.material, occlusion=found[nearest_covered(surface.covered)][..., None])
    )


@torch.no_grad()
def occlusion(
    mesh: Mesh, points: Float[Tensor, "N 3"], normals: Float[Tensor, "N 3"], directions: int = DIRECTIONS
) -> Float[Tensor, "N"]:
    """At points of a surface and their unit normals."""
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    middle, radius = (low + high) / 2, (high - low).norm() / 2 * 1.01
    lifted = (points + normals * (LIFT * 2 * radius / PIXELS) - middle) / radius
    vertices = (mesh.vertices - middle) / radius
    seen, total = points.new_zeros(len(points)), points.new_zeros(len(points))
    for toward in sphere(directions).to(points):
        cosine = (normals @ toward).clamp(min=0)
        total += cosine
        seen += cosine * _visible(vertices, mesh, lifted, toward)
    return seen / total.clamp(min=1e-6)


def _visible(
    vertices: Float[Tensor, "V 3"], mesh: Mesh, points: Float[Tensor, "N 3"], toward: Float[Tensor, "3"]
) -> Float[Tensor, "N"]:
    """1 where nothing lies between a point and an eye far away, in a world of radius 1."""
    aside = functional.one_hot(toward.abs().argmin(), 3).to(toward)
    right = functional.normalize(aside.cross(toward, dim=0), dim=0)
    frame = torch.stack([right, toward.cross(right, dim=0), -toward])  # depth grows away from the eye
    clip = functional.pad(vertices @ frame.T, (0, 1), value=1.0)[None]
    depth = ops(vertices.device).rasterize(clip, mesh.faces, PIXELS, PIXELS)
    map_ = torch.where(depth.face >= 0, depth.depth, torch.inf)
    x, y, z = (points @ frame.T).unbind(-1)
    column, row = (((a + 1) * (PIXELS / 2)).long().clamp(0, PIXELS - 1) for a in (x, -y))
    return (z <= map_[0, row, column]).to(points)


def sphere(count: int) -> Float[Tensor, "N 3"]:
    """Directions spread evenly, on a Fibonacci spiral."""
    number = torch.arange(count, dtype=torch.float64) + 0.5
    z, turn = 1 - 2 * number / count, number * math.pi * (1 + 5**0.5)
    flat = (1 - z * z).sqrt()
    return torch.stack([flat * turn.cos(), z, flat * turn.sin()], dim=-1)
