"""Fewer triangles, the same solid, by quadric edge collapses (Garland and Heckbert 1997)."""

from __future__ import annotations

import warnings

import fast_simplification
import numpy as np
import torch

from threed.exporters.clean import clean
from threed.renderers.mesh import Mesh


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """At most `faces` triangles, closed and facing outward where `mesh` is, within 5 % of its volume.

    Handles and bodies are kept, unless the budget has no room for them. Where it has no room for a closed surface
    either, it grows until it has, and a warning says so. Raises ValueError for a budget below a tetrahedron's four.
    """
    if faces < 4:
        raise ValueError(f"cannot simplify to {faces} triangles; a closed surface needs at least 4")
    topology, budget = _topology(mesh), faces
    while budget < len(mesh.faces):
        tries = [_collapsed(mesh, budget, aggressiveness) for aggressiveness in (5, 7)]
        tries = [x for x in tries if len(x.faces) <= budget and _as_solid(x, mesh)]
        if tries:
            if budget > faces:
                warnings.warn(f"kept {len(tries[0].faces)} triangles: {faces} would tear the surface", stacklevel=2)
            return next((x for x in tries if _topology(x) == topology), tries[0])
        budget += max(budget // 4, 2)
    if len(mesh.faces) > faces:
        warnings.warn(f"kept all {len(mesh.faces)} triangles: {faces} would tear the surface", stacklevel=2)
    return mesh


def _collapsed(mesh: Mesh, faces: int, aggressiveness: int) -> Mesh:
    points, triangles = fast_simplification.simplify(
        mesh.vertices.detach().cpu().numpy(), mesh.faces.cpu().numpy(), target_count=faces, agg=aggressiveness
    )
    smaller = Mesh(torch.from_numpy(points).to(mesh.vertices), torch.from_numpy(triangles).to(mesh.faces))
    if not mesh.is_watertight:
        return smaller
    try:
        # Collapses may leave two triangles back to back, or a pinch; cleaning takes these off.
        return clean(smaller, smallest=1e-4, smoothing=0)
    except ValueError:  # nothing solid was left
        return smaller


def _as_solid(smaller: Mesh, mesh: Mesh) -> bool:
    if not mesh.is_watertight:  # and so has no volume
        return len(smaller.faces) > 0 and bool(smaller.vertices.isfinite().all())
    near = (smaller.volume - mesh.volume).abs() <= 0.05 * mesh.volume.abs()  # false where it is not finite
    return bool(near) and smaller.is_watertight


def _topology(mesh: Mesh) -> int:
    """Euler's number: vertices - edges + faces, on closed surfaces 2 (bodies - handles)."""
    faces = mesh.faces.cpu().numpy()
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    count = len(np.unique(edges[:, 0] * len(mesh.vertices) + edges[:, 1]))
    return len(np.unique(faces)) - count + len(faces)
