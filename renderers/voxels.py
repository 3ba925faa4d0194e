"""Voxels: how far from an object's surface every point of a lattice lies, and the colour of the surface nearest to it.

The lattice has G^3 voxels, indexed [x, y, z]; the object is centred on its bounding box, the longest side of which
is `span(G)` voxels long. Distances are in voxels, negative inside, cut at TRUNCATION; colours are display sRGB.

What cannot be seen from any of 42 sides is inside: open sheets, flipped faces and objects of many parts need no repair,
and surfaces that only another surface can see do not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt, label
from skimage.measure import marching_cubes
from torch import Tensor
from torch.nn import functional

from threed.renderers.mesh import Asset, Mesh
from threed.renderers.nearest import tree
from threed.renderers.ops import ops

MARGIN = 1.5  # voxels between the object and the border of the lattice, at least
COARSE = 32  # voxels a side: finer lattices keep this one's share of margin, and so lie on it
TRUNCATION = 3.0  # voxels
THICKNESS = 0.4  # voxels by which surfaces are moved outward, so that blades and leaves survive
SHEET = 0.55  # the same where there is nothing behind them: between two layers of voxels, a sheet is in both
CORE, REACH = 0.5, 2.2  # voxels: there is something behind a surface where what lies so deep inside is so near
PIXELS_A_VOXEL = 3  # of the depth maps
MOST_POINTS = 60_000  # of the surface; more in lattices finer than COARSE, as many times as they are finer


@dataclass(frozen=True)
class Voxels:
    distance: Float[Tensor, "G G G"]  # voxels, within [-TRUNCATION, TRUNCATION], negative inside
    colour: Float[Tensor, "G G G 3"]  # display sRGB of the nearest point of the surface

    @property
    def pitch(self) -> float:
        """The side of a voxel, where the longest side of the object's bounding box is 1."""
        return 1 / span(len(self.distance))

    @property
    def occupied(self) -> Bool[Tensor, "G G G"]:
        return self.distance < 0

    def points(self, places: Int[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Where voxels of the lattice lie, in the frame of `mesh`."""
        return (places - (len(self.distance) - 1) / 2) * self.pitch

    def mesh(self) -> Mesh:
        """The closed, outward surface at distance 0, at the pitch above; raises ValueError where there is none."""
        padded = functional.pad(self.distance, (1,) * 6, value=TRUNCATION).numpy()
        if not padded.min() < 0:
            raise ValueError("no voxel is inside the object")
        vertices, faces, _, _ = marching_cubes(padded, 0.0)
        centred = (torch.from_numpy(vertices.copy()).float() - (len(padded) - 1) / 2) * self.pitch
        mesh = Mesh(centred, torch.from_numpy(faces.astype(np.int64)))
        return mesh if mesh.volume > 0 else Mesh(centred, mesh.faces.flip(1))

    def at(self, points: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N 3"]]:
        """Distance, in voxels, and colour at points in the frame of `mesh`, trilinear.

        Beyond the lattice's outermost voxels the distance grows by the way to them.
        """
        found = self.between(torch.cat([self.distance[..., None], self.colour], dim=-1), points)
        beyond = (points.abs() - self.pitch * (len(self.distance) - 1) / 2).clamp(min=0).norm(dim=-1) / self.pitch
        return found[:, 0] + beyond, found[:, 1:]

    def finer(self, resolution: int) -> Voxels:
        """The same object in more voxels, trilinear."""
        distance, colour = self.at(lattice(resolution))
        distance = (distance * (span(resolution) / span(len(self.distance)))).clamp(-TRUNCATION, TRUNCATION)
        return Voxels(distance.view((resolution,) * 3), colour.view(*(resolution,) * 3, 3))

    @property
    def parts(self) -> int:
        """How many pieces are solid, those that touch at a corner being one."""
        return int(label(self.occupied.numpy(), np.ones((3, 3, 3)))[1])

    def between(self, values: Float[Tensor, "G G G C"], points: Float[Tensor, "N 3"]) -> Float[Tensor, "N C"]:
        """Trilinear at points in the frame of `mesh`; beyond the outermost voxels, what these have."""
        grid = (points / (self.pitch * len(values) / 2))[None, None, None]
        channels = values.permute(3, 2, 1, 0)[None]
        return functional.grid_sample(channels, grid, padding_mode="border", align_corners=False)[0, :, 0, 0].T


def span(resolution: int) -> float:
    """Voxels along the longest side of an object."""
    return resolution - 2 * MARGIN * max(1.0, resolution / COARSE)


def lattice(resolution: int) -> Float[Tensor, "V 3"]:
    """The voxels' middles in the frame of `Voxels.mesh`, x slowest."""
    axis = (torch.arange(resolution) - (resolution - 1) / 2) / span(resolution)
    return torch.cartesian_prod(axis, axis, axis)


def voxelise(asset: Asset, resolution: int, seed: int = 0) -> Voxels:
    """Look at the asset from all sides; raises ValueError when nothing of it can be seen."""
    low, high = asset.mesh.vertices.amin(0), asset.mesh.vertices.amax(0)
    size = (high - low).max()
    if not size > 0:
        raise ValueError("the mesh is a single point; export it again with its full geometry")
    vertices = (asset.mesh.vertices - (low + high) / 2) / size * span(resolution)  # in voxels
    centres = torch.arange(resolution) - (resolution - 1) / 2
    lattice = torch.cartesian_prod(centres, centres, centres)
    points, colours, seen = [], [], torch.zeros(len(lattice), dtype=torch.bool)
    for frame in frames():
        found, colour, visible = _look(asset, vertices, lattice, frame, resolution)
        points.append(found)
        colours.append(colour)
        seen |= visible
    surface, colour = torch.cat(points), torch.cat(colours)
    if len(surface) == 0:
        raise ValueError("no triangle of the mesh has an area")
    if len(surface) > (most := MOST_POINTS * max(1, resolution // COARSE)):
        some = torch.randperm(len(surface), generator=torch.Generator().manual_seed(seed))[:most]
        surface, colour = surface[some], colour[some]
    far, nearest = _nearest(surface, lattice, resolution)
    distance = torch.where(seen, far, -far)
    thin = _thin(surface, lattice[distance < -CORE])
    distance = distance - torch.where(thin[nearest], SHEET, THICKNESS)
    shape = (resolution,) * 3
    return Voxels(
        distance.clamp(-TRUNCATION, TRUNCATION).reshape(shape),
        colour[nearest].reshape(*shape, 3),
    )


def _nearest(
    surface: Float[Tensor, "N 3"], lattice: Float[Tensor, "L 3"], resolution: int
) -> tuple[Float[Tensor, "L"], Int[Tensor, "L"]]:
    """Distance and index of the point of the surface nearest to every voxel; beyond TRUNCATION, roughly the nearest.

    Far away a tree of points must look at nearly all of them; there the nearest point of the nearest voxel will do.
    """
    cells = (surface + resolution / 2).long().clamp(0, resolution - 1)
    touched = np.zeros((resolution,) * 3, bool)
    touched[tuple(cells.T.numpy())] = True
    steps, voxel = distance_transform_edt(~touched, return_indices=True)
    near = steps.reshape(-1) <= TRUNCATION + 3**0.5
    distance, index = np.full(near.shape, np.inf, np.float32), np.zeros(near.shape, np.int64)
    distance[near], index[near] = tree(surface.numpy()).query(lattice.numpy()[near])
    of_nearest_voxel = index[np.ravel_multi_index(tuple(voxel), touched.shape).reshape(-1)]
    return torch.from_numpy(distance), torch.from_numpy(np.where(near, index, of_nearest_voxel))


def _thin(surface: Float[Tensor, "N 3"], core: Float[Tensor, "C 3"]) -> Bool[Tensor, "N"]:
    """Where the surface has nothing of the core behind it."""
    if len(core) == 0:
        return torch.ones(len(surface), dtype=torch.bool)
    distance, _ = tree(core.numpy()).query(surface.numpy(), distance_upper_bound=REACH)
    return torch.from_numpy(np.isinf(distance))


@cache
def frames() -> Float[Tensor, "42 3 3"]:
    """Right, up and toward the viewer, as rows: the vertices of an icosahedron cut once."""
    golden = (1 + 5**0.5) / 2
    corners = [[0, a, b * golden] for a in (-1, 1) for b in (-1, 1)]
    vertices = torch.tensor([[*np.roll(corner, turn)] for turn in range(3) for corner in corners]).float()
    middles = (vertices[:, None] + vertices)[torch.cdist(vertices, vertices).sub(2).abs() < 1e-3]
    toward = functional.normalize(torch.cat([vertices, middles.unique(dim=0)]), dim=-1)
    # No direction is parallel to this one, so that every view has a right-hand side.
    right = functional.normalize(torch.tensor([0.3, 0.9, 0.31]).expand_as(toward).cross(toward, dim=-1), dim=-1)
    return torch.stack([right, toward.cross(right, dim=-1), toward], dim=1)


def _look(
    asset: Asset, vertices: Tensor, lattice: Tensor, frame: Float[Tensor, "3 3"], resolution: int
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"], Bool[Tensor, "L"]]:
    """One orthographic view: the points of the surface it sees, their colours, and which of the lattice it sees."""
    primitives = ops(vertices.device)
    reach = resolution * 3**0.5 / 2  # voxels from the centre to a corner
    side = int(2 * reach * PIXELS_A_VOXEL)
    toward_viewer = frame * frame.new_tensor([1, 1, -1])[:, None] / reach
    clip = functional.pad(vertices @ toward_viewer.T, (0, 1), value=1.0)[None]
    fragments = primitives.rasterize(clip, asset.mesh.faces, side, side)
    row, column = (fragments.face[0] >= 0).nonzero(as_tuple=True)
    # On the triangle, which what is at the pixel's centre may miss by far where it is seen nearly edge-on.
    points = primitives.interpolate(vertices, asset.mesh.faces, fragments)[0, row, column]
    uv = primitives.interpolate(asset.uvs, asset.uv_faces, fragments)[0, row, column]
    colours = primitives.texture(asset.material.base_color, uv)
    # The nearest surface within a pixel around: beside a steep one, a point must be clear of it to count as seen.
    nearest = -functional.max_pool2d(-fragments.depth, 3, stride=1, padding=1)[0]
    x, y, z = (lattice @ toward_viewer.T).unbind(-1)
    column, row = (((a + 1) * (side / 2)).long().clamp(0, side - 1) for a in (x, -y))
    return points, colours, z < nearest[row, column]
