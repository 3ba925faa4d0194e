"""What physics bumps into: a convex hull of few triangles, or several that follow the shape."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import ConvexHull, QhullError

from threed.exporters.simplify import simplify
from threed.renderers.mesh import Mesh

CORNERS = 34  # of a hull, at most: 64 triangles
PARTS = 16  # hulls, at most
COARSE = 2000  # triangles of what is cut into convex parts
CONCAVE = 0.08  # how far parts may be from convex, as CoACD measures it


def hull(points: Float[np.ndarray, "N 3"], corners: int = CORNERS) -> Mesh:
    """The convex hull of at most so many of the points, each the one farthest from the hull of those before it.

    Faces outward. What it leaves out is nowhere farther from it than the next corner would be. Raises ValueError for
    points in a plane.
    """
    points = np.unique(np.asarray(points, float), axis=0)
    try:
        points = points[np.sort(ConvexHull(points).vertices)]
        taken = _first(points)
        while len(taken) < min(corners, len(points)):
            planes = ConvexHull(points[taken]).equations
            away = (points @ planes[:, :3].T + planes[:, 3]).max(1)
            if away.max() <= 1e-6 * np.ptp(points, axis=0).max():
                break
            taken.append(int(away.argmax()))
        found = ConvexHull(points[sorted(taken)])
    except QhullError as error:
        raise ValueError("the points lie in a plane, so their hull is no solid; leave the collider out") from error
    vertices, faces = points[sorted(taken)], found.simplices
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    inward = (np.cross(b - a, c - a) * found.equations[:, :3]).sum(1) < 0
    faces = np.where(inward[:, None], faces[:, ::-1], faces)
    used, index = np.unique(faces, return_inverse=True)
    order = np.lexsort(index.reshape(-1, 3).T[::-1])
    return Mesh(torch.from_numpy(vertices[used]).float(), torch.from_numpy(index.reshape(-1, 3)[order]).long())


def _first(points: Float[np.ndarray, "N 3"]) -> list[int]:
    """Four of them that span a solid, far apart."""
    first = [int(points[:, 0].argmin())]
    away = points - points[first[0]]
    first.append(int(np.linalg.norm(away, axis=1).argmax()))
    across = np.cross(away, away[first[1]])
    first.append(int(np.linalg.norm(across, axis=1).argmax()))
    first.append(int(np.abs(away @ np.cross(away[first[1]], away[first[2]])).argmax()))
    return first


def convex_parts(mesh: Mesh, seed: int = 0) -> list[Mesh]:
    """Hulls that follow a closed surface (CoACD: Wei et al. 2022, arXiv 2205.02961), the largest first.

    Raises ValueError without the package coacd, and for surfaces that are not closed.
    """
    try:
        import coacd
    except ImportError as error:
        raise ValueError('there is no package coacd; pip install "threed-assets[colliders]", or use a hull') from error
    if not mesh.is_watertight:
        raise ValueError("the surface is not watertight, so it has no convex parts; use a hull, or --watertight")
    coarse = simplify(mesh, COARSE)
    coacd.set_log_level("error")
    solid = coacd.Mesh(coarse.vertices.double().numpy(), coarse.faces.int().numpy())
    found = coacd.run_coacd(
        solid,
        threshold=CONCAVE,
        max_convex_hull=PARTS,
        preprocess_mode="off",
        resolution=1000,
        mcts_iterations=60,
        mcts_nodes=10,
        seed=seed,
    )
    hulls = [hull(np.asarray(vertices)) for vertices, _ in found]
    return sorted(hulls, key=lambda each: -float(each.volume))
