"""Fewer triangles, the same solid: quadric edge collapses (Garland and Heckbert 1997)."""

from __future__ import annotations

import warnings

import fast_simplification
import torch

from threed.exporters.clean import clean
from threed.renderers.mesh import Mesh


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """At most `faces` triangles with the topology of `mesh`, closed and facing outward where `mesh` is.

    Where the budget would tear or fold the surface, the budget grows until it does not, and a warning says so.
    Raises ValueError for a budget below the four triangles of a tetrahedron.
    """
    if faces < 4:
        raise ValueError(f"cannot simplify to {faces} triangles; a closed surface needs at least 4")
    budget = faces
    while budget < len(mesh.faces):
        # Low aggressiveness collapses strictly in order of error, but may stop early.
        for aggressiveness in (3, 5, 7):
            smaller = _collapsed(mesh, budget, aggressiveness)
            if len(smaller.faces) <= budget and _same_solid(smaller, mesh):
                if budget > faces:
                    warnings.warn(f"kept {len(smaller.faces)} triangles: {faces} would tear the surface", stacklevel=2)
                return smaller
        budget += max(budget // 4, 2)
    if len(mesh.faces) > faces:
        warnings.warn(f"kept all {len(mesh.faces)} triangles: {faces} would tear the surface", stacklevel=2)
    return mesh


def _collapsed(mesh: Mesh, faces: int, aggressiveness: int) -> Mesh:
    points, triangles = fast_simplification.simplify(
        mesh.vertices.detach().cpu().numpy(), mesh.faces.cpu().numpy(), target_count=faces, agg=aggressiveness
    )
    smaller = Mesh(torch.from_numpy(points).to(mesh.vertices), torch.from_numpy(triangles).to(mesh.faces))
    # Collapses may leave two triangles back to back; cleaning takes such fins off.
    return clean(smaller, smoothing=0) if mesh.is_watertight else smaller


def _same_solid(smaller: Mesh, mesh: Mesh) -> bool:
    """As closed, as finite and as outward, with as many bodies less handles (Euler's number)."""
    return bool(
        smaller.vertices.isfinite().all()
        and smaller.is_watertight >= mesh.is_watertight
        and _euler(smaller) == _euler(mesh)
        and smaller.volume * mesh.volume > 0
    )


def _euler(mesh: Mesh) -> int:
    """Vertices - edges + faces."""
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(dim=1).values
    return len(mesh.faces.unique()) - len(edges.unique(dim=0)) + len(mesh.faces)
