"""Even parts with edges between them where a volume has lumps: surfaces, and the lattices that have them.

The filter is that of `exporters/denoise.py`; here is how many triangles it wants, and the way back to voxels.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from threed.exporters.denoise import denoise
from threed.exporters.simplify import simplify
from threed.renderers.mesh import Mesh
from threed.renderers.nearest import tree
from threed.renderers.voxels import TRUNCATION, Voxels

SIGMA = 0.2  # how far the normals of neighbours may differ and still be made one, see exporters.denoise
FACES = 16000  # triangles of the surface that is evened: of fewer, tubes become prisms; of more, lumps stay
PLANES, WIDTH = 12, 0.5  # of triangles that tell how far a voxel is; voxels that they reach
FARTHEST = 1.5  # voxels that a surface moves


def evened(mesh: Mesh, faces: int, sigma: float = SIGMA) -> Mesh:
    """Of so many triangles at most; a sigma of 0 leaves lumps."""
    if not sigma:
        return simplify(mesh, faces)
    return simplify(denoise(simplify(mesh, FACES), sigma), faces)


def evened_voxels(voxels: Voxels) -> Voxels:
    """With an even surface, and what colours they have. Raises ValueError where nothing is solid.

    How far a voxel is from the surface, the planes of the nearest triangles say, each by its area and its nearness
    (implicit moving least squares, Kolluri 2008, eq. 1).
    """
    mesh = evened(voxels.mesh(), FACES)
    middle, normals = mesh.corners.mean(1).double(), mesh.face_normals.double()
    places = (voxels.distance.abs() < TRUNCATION).nonzero()
    points = voxels.points(places).double()
    far, nearest = map(torch.from_numpy, tree(middle.numpy()).query(points.numpy(), min(PLANES, len(middle))))
    beyond = far.square() - far[:, :1].square()
    weight = mesh.areas.double()[nearest] * (-beyond / (2 * (WIDTH * voxels.pitch) ** 2)).exp()
    height = ((points[:, None] - middle[nearest]) * normals[nearest]).sum(-1)
    found = (weight * height).sum(1) / weight.sum(1).clamp(min=1e-30) / voxels.pitch
    distance, (x, y, z) = voxels.distance.clone(), places.T
    was = distance[x, y, z]
    moved = found.to(was).clamp(was - FARTHEST, was + FARTHEST)
    distance[x, y, z] = moved.clamp(-TRUNCATION, TRUNCATION)
    return replace(voxels, distance=distance)
