"""Any surface becomes a watertight solid, by the gentlest way: as it is, with its holes closed, or from voxels."""

from __future__ import annotations

import manifold3d
import numpy as np
import torch

from threed.exporters import defects
from threed.exporters.clean import clean
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.topology import edges
from threed.renderers.voxels import voxelise

VOXELS = 96  # along a side, of the last way
SMALLEST = 1e-4  # of the largest body's volume: what is dropped as dust
MOST_BODIES = 500  # that are united
SAME, KEPT = 0.02, 0.7  # how far sides of the box may move, of its longest; how much of the area must stay


def closed(asset: Asset) -> tuple[Mesh, list[str]]:
    """A watertight surface that faces outward, its bodies made one where they overlap; and what was done, in words.

    Raises ValueError for what encloses nothing and cannot be seen either.
    """
    mesh, done = asset.mesh, list[str]()
    if not (mesh.is_watertight and mesh.volume > 0):
        try:
            mesh = clean(mesh, smallest=SMALLEST, smoothing=0)
            done.append("closed its holes")
        except ValueError:  # nothing solid is there: sheets, perhaps
            mesh = asset.mesh
        if not (mesh.is_watertight and mesh.volume > 0 and _like(mesh, asset.mesh)):
            mesh = _from_voxels(asset)
            done = [f"made it solid anew, of {VOXELS} voxels a side: its surface had too many gaps to be closed"]
    one = _united(mesh)
    if one is not None:
        done.append("made overlapping parts one")
        mesh = one
    return mesh, done


def _like(mesh: Mesh, other: Mesh) -> bool:
    """Whether it still fills the same box and has most of the area."""
    boxes = [torch.stack([x.vertices[x.faces].amin((0, 1)), x.vertices[x.faces].amax((0, 1))]) for x in (mesh, other)]
    size = (boxes[1][1] - boxes[1][0]).max()
    return bool((boxes[0] - boxes[1]).abs().max() <= SAME * size) and bool(mesh.areas.sum() >= KEPT * other.areas.sum())


def _from_voxels(asset: Asset) -> Mesh:
    low, high = asset.mesh.vertices.amin(0), asset.mesh.vertices.amax(0)
    solid = clean(voxelise(asset, VOXELS).mesh(), smallest=SMALLEST, smoothing=3)
    return solid.with_vertices(solid.vertices * (high - low).max() + (low + high) / 2)


def _united(mesh: Mesh) -> Mesh | None:
    """All bodies as one solid (manifold3d); None where there is one, very many, or where they do not touch or unite."""
    body = defects.bodies(edges(mesh.faces), len(mesh.faces))
    count = int(body.max()) + 1
    if not 1 < count <= MOST_BODIES or not _boxes_meet(mesh, body):
        return None
    solids = [_manifold(mesh, mesh.faces[body == number]) for number in range(count)]
    if any(solid.status() != manifold3d.Error.NoError or solid.volume() <= 0 for solid in solids):
        return None  # cavities among them
    before = sum(solid.volume() for solid in solids)
    united = manifold3d.Manifold.batch_boolean(solids, manifold3d.OpType.Add)
    if united.volume() > before * (1 - 1e-6):
        return None
    found = united.to_mesh()
    vertices = torch.from_numpy(np.array(found.vert_properties[:, :3])).to(mesh.vertices)
    one = Mesh(vertices, torch.from_numpy(np.array(found.tri_verts)).long())
    return one if one.is_watertight and one.volume > 0 and len(vertices.unique(dim=0)) == len(vertices) else None


def _boxes_meet(mesh: Mesh, body: torch.Tensor) -> bool:
    lows, highs = defects.boxes(mesh.corners, body)
    order = lows[:, 0].argsort()
    lows, highs = lows[order], highs[order]
    return any(
        bool(((lows[i + 1 :] <= highs[i]) & (highs[i + 1 :] >= lows[i])).all(1).any()) for i in range(len(lows) - 1)
    )


def _manifold(mesh: Mesh, faces: torch.Tensor) -> manifold3d.Manifold:
    used, index = faces.unique(return_inverse=True)
    points = mesh.vertices[used].float().numpy()
    return manifold3d.Manifold(manifold3d.Mesh(points, index.numpy().astype(np.uint32)))
