"""An object out of one picture without a prior: what the recipes of `threed image` have to beat.

Both are told where the camera stood, which a recipe has to guess: what they lack is knowledge of objects alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.ndimage import distance_transform_edt
from scipy.sparse.linalg import spsolve
from torch import Tensor
from torch.nn import functional

from threed.exporters.bake import Look, bake_material
from threed.exporters.clean import clean
from threed.exporters.simplify import simplify
from threed.exporters.unwrap import unwrap
from threed.mesh_regularizers import laplacian
from threed.overpaint import projected
from threed.paint import PaintConfig
from threed.recipe import AssetSettings
from threed.renderers.camera import Cameras
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.projection import Projection
from threed.renderers.voxels import TRUNCATION, Voxels
from threed.solid import Solid, SolidConfig
from threed.tets import TetConfig, TetScene
from threed.train import seeded

LATTICE, OUTLINE = 128, 128  # voxels, and pixels of the outline, a side
STEPS, SIZE = 50, 64  # of the fit, and pixels a side of its pictures
SMOOTH = 3e-3  # weight of the Laplacian, in square cells, beside mean squares over pixels

Paint = Callable[[Float[Tensor, "N 3"]], Float[Tensor, "N 3"]]


@dataclass(frozen=True)
class Reference:
    """A picture of an object at radius 1, and the one camera that took it."""

    camera: Cameras
    rgb: Float[Tensor, "S S 3"]  # display sRGB times alpha
    alpha: Float[Tensor, "S S 1"]

    def reduced(self, size: int) -> Reference:
        both = torch.cat([self.rgb, self.alpha], dim=-1).movedim(-1, 0)[None]
        small = functional.interpolate(both, (size, size), mode="area")[0].movedim(0, -1)
        return Reference(self.camera, *small.split([3, 1], dim=-1))

    def sampled(self, picture: Float[Tensor, "H W K"], points: Float[Tensor, "N 3"]) -> Float[Tensor, "N K"]:
        """What is at the places in this camera's picture where points of the world are seen, hidden or not."""
        clip = functional.pad(points, (0, 1), value=1.0) @ self.camera.clip_from_world()[0].mT
        where = clip[:, :2] / clip[:, 3:] * clip.new_tensor([1.0, -1.0])
        channels = picture.movedim(-1, 0)[None]
        found = functional.grid_sample(channels, where[None, None], padding_mode="border", align_corners=False)
        return found[0, :, 0].mT


def extruded(reference: Reference) -> Asset:
    """The outline inflated to both sides, and the picture on the front and, mirrored, on the back."""
    small = reference.reduced(OUTLINE)
    camera, inside = small.camera, small.alpha[..., 0].numpy() > 0.5
    pixel = float(2 * (camera.fov_y / 2).tan() * camera.distance / OUTLINE)  # metres, at the object
    depth = torch.from_numpy(inflated(inside)).float()[..., None] * pixel
    axis = torch.linspace(-1, 1, LATTICE)
    points = torch.cartesian_prod(axis, axis, axis)
    cell = 2 / (LATTICE - 1)
    away = (points @ camera.rotation[0, :, 2]).abs() - small.sampled(depth, points)[:, 0]
    distance = (away / cell).clamp(-TRUNCATION, TRUNCATION).reshape((LATTICE,) * 3)
    voxels = Voxels(distance, torch.zeros(*distance.shape, 3))
    mesh = voxels.mesh()
    colours = torch.from_numpy(spread(reference.rgb.numpy(), reference.alpha[..., 0].numpy()))
    return baked(
        mesh.with_vertices(mesh.vertices * cell / voxels.pitch), lambda points: reference.sampled(colours, points)
    )


def inflated(inside: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """Half of the thickness of what has this outline, in pixels; outside, how far away it is, negative.

    The square root of u, where -laplacian(u) = 4 inside and u = 0 outside (Sykora et al. 2014, "Ink-and-Ray"): of a
    disc that makes a ball.
    """
    index = np.where(inside, inside.cumsum().reshape(inside.shape) - 1, -1)
    index = np.pad(index, 1, constant_values=-1)
    middle = index[1:-1, 1:-1][inside]
    neighbours = [np.roll(index, turn, axis)[1:-1, 1:-1][inside] for turn in (-1, 1) for axis in (0, 1)]
    pairs = [(middle[each >= 0], each[each >= 0]) for each in neighbours]
    rows, columns = (np.concatenate(each) for each in zip(*pairs, strict=True))
    count = len(middle)
    adjacent = sparse.csc_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    found = -distance_transform_edt(~inside)
    found[inside] = np.sqrt(spsolve(4 * sparse.eye(count, format="csc") - adjacent, np.full(count, 4.0)))
    return found


def spread(rgb: Float[np.ndarray, "H W 3"], alpha: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 3"]:
    """Not multiplied by alpha; beyond the object, the colours of its nearest pixel."""
    _, nearest = distance_transform_edt(alpha < 0.9, return_indices=True)
    return (rgb / alpha.clip(1e-3)[..., None])[tuple(nearest)].clip(0, 1)


def fitted(reference: Reference) -> Asset:
    """A solid that moves until its outline and its colours are the picture's, smooth where the picture says nothing.

    Then the picture goes onto the front, as `threed image` does it.
    """
    aim = reference.reduced(SIZE)
    solid = begun(aim)
    optimizer = torch.optim.Adam(solid.param_groups(), betas=(0.9, 0.99))
    for _ in range(STEPS):
        seen = solid.render(reference.camera, SIZE)
        assert seen.mesh
        losses = (
            (seen.alpha[0] - aim.alpha).square().mean(),
            (aim.alpha * seen.albedo[0] - aim.rgb).square().mean(),
            SMOOTH * laplacian(seen.mesh, seen.edges) / solid.config.tets.cell**2,
        )
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimizer.step()
    with torch.no_grad():
        asset = baked(clean(solid.surface(), smoothing=0), solid.paint)
        picture = Projection.of(asset.mesh, reference.camera, reference.rgb[None], reference.alpha[None])
        return projected(asset, picture)


def begun(aim: Reference) -> Solid:
    """What the outline leaves of a ball as wide as the object, in the mean colour of the picture."""
    camera, inside = aim.camera, aim.alpha[..., 0].numpy() > 0.5
    pixel = float(2 * (camera.fov_y / 2).tan() * camera.distance / SIZE)  # metres, at the object
    wide = max(0.15, float(inside.any(0).sum()) * pixel / 2)
    away = distance_transform_edt(~inside) - distance_transform_edt(inside)
    outline = torch.from_numpy(away).float()[..., None] * pixel

    def level(points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        deep = (points @ camera.rotation[0, :, 2]).abs() - wide
        return torch.maximum(deep, aim.sampled(outline, points)[:, 0])

    config = SolidConfig(TetConfig(resolution=40), PaintConfig(rate=0.03))
    solid = Solid(config, TetScene.from_level(level, config.tets))
    mesh = solid.surface()
    mean = (aim.rgb.sum((0, 1)) / aim.alpha.sum()).expand_as(mesh.vertices)
    solid.paint.teach(mesh.vertices.detach(), mesh.vertex_normals.detach(), mean, 0.2, seeded(0))
    return solid


def baked(mesh: Mesh, paint: Paint) -> Asset:
    """With a texture, and as many triangles and texels as the recipes' assets have."""
    wanted = AssetSettings()
    mesh = simplify(mesh, wanted.faces)
    uvs, uv_faces = unwrap(mesh, wanted.texture_size)
    material = bake_material(mesh, uvs, uv_faces, lambda points, normals: Look(paint(points)), wanted.texture_size)
    return Asset("unaided", mesh, uvs, uv_faces, material)
