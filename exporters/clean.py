"""A raw surface becomes a closed, outward, smooth solid.

Surfaces are pairs of arrays here: vertices [V 3] in metres, float64, and faces [F 3], int64, counter-clockwise seen
from outside. A directed edge (a, b) belongs to the triangle that runs from a to b; on a closed surface its twin (b, a)
belongs to the neighbour.
"""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array, diags_array
from scipy.sparse.csgraph import connected_components

from threed.renderers.mesh import Mesh

Vertices = Float[np.ndarray, "_ 3"]
Faces = Int[np.ndarray, "_ 3"]


def clean(mesh: Mesh, smallest: float = 0.02, smoothing: int = 10) -> Mesh:
    """The visible solid bodies of a surface: welded, closed, facing outward, smoothed at constant volume.

    Bodies below the share `smallest` of the largest one's volume are dropped, and so is what lies inside another body.
    Raises ValueError for coordinates that are not finite and when no solid body is left.
    """
    if not mesh.vertices.isfinite().all():
        raise ValueError("the surface has coordinates that are not finite; extract it from a finite field")
    if len(mesh.faces) == 0:
        raise ValueError("the surface has no triangles; extract it at a lower threshold")
    vertices = mesh.vertices.detach().cpu().double().numpy()
    faces = mesh.faces.cpu().numpy()
    vertices, faces = _welded(vertices, faces)
    faces = _manifold(vertices, faces)
    vertices, faces = _closed(vertices, faces)
    faces = _bodies(vertices, faces, smallest)
    vertices, faces = _referenced(vertices, faces)
    vertices = _smoothed(vertices, faces, smoothing)
    return Mesh(torch.from_numpy(vertices).to(mesh.vertices), torch.from_numpy(faces).to(mesh.faces))


def _welded(vertices: Vertices, faces: Faces) -> tuple[Vertices, Faces]:
    """Merge vertices closer than a millionth of the size; drop triangles that collapse or repeat."""
    size = np.ptp(vertices, axis=0).max()
    _, first, new = np.unique(np.round(vertices / (size * 1e-6 or 1)), axis=0, return_index=True, return_inverse=True)
    faces = new.reshape(-1)[faces]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(1)]
    # The smallest index first, so that equal triangles are equal rows.
    turned = (faces.argmin(1, keepdims=True) + np.arange(3)) % 3
    faces = np.unique(np.take_along_axis(faces, turned, axis=1), axis=0)
    # Two triangles back to back enclose nothing.
    _, sheet, count = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True)
    return vertices[first], faces[count[sheet.reshape(-1)] == 1]


def _directed(faces: Faces) -> Int[np.ndarray, "_ 2"]:
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def _manifold(vertices: Vertices, faces: Faces) -> Faces:
    """Turn neighbours the same way round, then drop triangles that still share a directed edge."""
    repeated = _repeated(faces)
    if repeated.any():
        surface = trimesh.Trimesh(vertices, faces, process=False)
        trimesh.repair.fix_winding(surface)
        faces = np.array(surface.faces)
        repeated = _repeated(faces)
    return faces[~repeated]


def _repeated(faces: Int[np.ndarray, "F 3"]) -> Bool[np.ndarray, "F"]:
    _, edge, count = np.unique(_directed(faces), axis=0, return_inverse=True, return_counts=True)
    return np.any((count[edge.reshape(-1)] > 1).reshape(3, -1), axis=0)


def _closed(vertices: Vertices, faces: Faces) -> tuple[Vertices, Faces]:
    """Close every hole with a fan around its centroid."""
    edges = _directed(faces)
    forward, backward = (e[:, 0] * len(vertices) + e[:, 1] for e in (edges, edges[:, ::-1]))
    onward: dict[int, list[int]] = {}
    for a, b in edges[~np.isin(forward, backward)].tolist():
        onward.setdefault(b, []).append(a)  # the missing twin runs the other way
    centres: list[np.ndarray] = []
    fans: list[np.ndarray] = []
    for loop in _loops(onward):
        centre = np.full(len(loop), len(vertices) + len(centres))
        centres.append(vertices[loop].mean(0))
        fans.append(np.stack([loop, np.roll(loop, -1), centre], axis=1))
    return np.concatenate([vertices, *np.reshape(centres, (-1, 1, 3))]), np.concatenate([faces, *fans])


def _loops(onward: dict[int, list[int]]) -> list[list[int]]:
    """Simple cycles through all edges of a graph in which every vertex has as many ways out as in."""
    loops = []
    for start in sorted(onward):
        path = [start]
        while onward[path[-1]]:
            here = onward[path[-1]].pop()
            if here in path:  # cut the cycle off where holes touch, so that each gets a fan of its own
                loops.append(path[path.index(here) :])
                del path[path.index(here) + 1 :]
            else:
                path.append(here)
    return loops


def _bodies(vertices: Vertices, faces: Faces, smallest: float) -> Faces:
    """The large bodies, each facing outward, without those that another one hides."""
    a, b = _directed(faces).T
    _, body = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(len(vertices),) * 2), directed=False)
    body = body[faces[:, 0]]
    volume = np.bincount(body, weights=_tetrahedra(vertices[faces]), minlength=1)
    size = np.abs(volume)
    if size.max() <= 1e-9 * np.ptp(vertices, axis=0).max() ** 3:
        raise ValueError(f"no solid body is left of {len(faces)} triangles; extract the surface at a lower threshold")
    kept: list[Faces] = []
    for index in np.argsort(-size, kind="stable"):
        if size[index] < smallest * size.max():
            break
        piece = faces[body == index]
        piece = piece if volume[index] > 0 else piece[:, ::-1]
        seen = vertices[np.unique(piece)]
        extremes = np.concatenate([seen[seen.argmin(0)], seen[seen.argmax(0)]])
        if not any((winding_number(extremes, vertices[other]) > 0.5).all() for other in kept):
            kept.append(piece)
    return np.concatenate(kept)


def _tetrahedra(corners: Float[np.ndarray, "F 3 3"]) -> Float[np.ndarray, "F"]:
    """Signed volumes spanned with the origin."""
    return np.linalg.det(corners) / 6


def winding_number(points: Float[np.ndarray, "N 3"], corners: Float[np.ndarray, "F 3 3"]) -> Float[np.ndarray, "N"]:
    """1 inside a closed outward surface, 0 outside: solid angle over 4 pi (Van Oosterom and Strackee 1983, Eq. 8)."""
    turns = []
    for point in points:
        a, b, c = np.moveaxis(corners - point, 1, 0)
        la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
        triple = (a * np.cross(b, c)).sum(1)
        below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        turns.append(np.arctan2(triple, below).sum() / (2 * np.pi))
    return np.array(turns)


def _referenced(vertices: Vertices, faces: Faces) -> tuple[Vertices, Faces]:
    used, new = np.unique(faces, return_inverse=True)
    return vertices[used], new.reshape(-1, 3)


def _smoothed(vertices: Vertices, faces: Faces, iterations: int) -> Vertices:
    """Taubin 1995, "A signal processing approach to fair surface design", section 3; then scaled back to its volume."""
    a, b = _directed(faces).T
    neighbours = coo_array((np.ones(len(a)), (a, b)), shape=(len(vertices),) * 2).tocsr()
    mean = diags_array(1 / neighbours.sum(1)) @ neighbours
    volume = _tetrahedra(vertices[faces]).sum()
    smooth = vertices
    for step in [0.5, -0.53] * iterations:  # shrink, then inflate a little more: low frequencies stay
        smooth = smooth + step * (mean @ smooth - smooth)
    centre = smooth.mean(0)
    scale = np.cbrt(volume / _tetrahedra(smooth[faces]).sum())
    return centre + (smooth - centre) * scale
