"""What is asked of any triangle mesh, whatever the prompt: pure functions, differentiable to its vertices.

Time and memory are those of one sort of the edges and a few numbers an edge; a caller who has sorted them already, to
render the same faces or for the step before, hands them on.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.renderers import topology
from threed.renderers.mesh import Mesh

THIN = 1e-3  # height over longest side below which a triangle's normal is noise, and the normal's slope has no bound


def normal_consistency(mesh: Mesh, edges: topology.Edges | None = None) -> Float[Tensor, ""]:
    """Neighbouring faces face the same way: mean 1 - cos(angle between their normals), 0 to 2, whatever the scale.

    The mean over the pairs of triangles that share an edge (as in PyTorch3D, arXiv 2007.08501); 0 where there is none.
    An edge counts where exactly two triangles run along it in opposite directions. Borders have no pair; where more
    than two meet, or two disagree about the outside, there is no one surface to be smooth. Triangles thinner than a
    thousandth of their longest side, those without area above all, count nowhere.
    """
    corners = mesh.corners
    sides = corners.roll(-1, 1) - corners
    area = sides[:, 0].cross(sides[:, 1], dim=-1)  # vectors, twice as long as the area
    with torch.no_grad():
        solid = area.norm(dim=-1) > THIN * sides.square().sum(-1).amax(-1)
        pairs = (edges or topology.edges(mesh.faces)).pairs
        pairs = pairs[solid[pairs].all(-1)]
    here, beyond = functional.normalize(area.index_select(0, pairs.reshape(-1)).view(-1, 2, 3), dim=-1, eps=0).unbind(1)
    # For unit vectors 1 - cos = |n - m|^2 / 2, which neither falls below 0 nor loses digits on flat surfaces.
    return (here - beyond).square().sum() / 2 / max(len(pairs), 1)


def laplacian(mesh: Mesh, edges: topology.Edges | None = None) -> Float[Tensor, ""]:
    """Every vertex lies amid its neighbours: mean |mean of its neighbours - v|^2 in square metres (Taubin 1995).

    The umbrella operator: every neighbour has the same weight, so it evens out the triangles too, and a flat mesh costs
    nothing only where it is regular. Vertices of borders are neighbours alone: pulled themselves, they would draw the
    border in. Vertices without a face do not count; an edge counts once, however many faces meet there.

    It is quadratic in the vertices: `laplacian(mesh.with_vertices(moved - original))` asks a mesh to keep its details
    and the spacing of its vertices instead (the differential coordinates of Sorkine et al. 2004).
    """
    edges = edges or topology.edges(mesh.faces)
    vertex, neighbour = edges.ends.reshape(-1), edges.ends.flip(-1).reshape(-1)
    degree = torch.bincount(vertex, minlength=len(mesh.vertices))
    inside = degree > 0
    inside[edges.ends[edges.border]] = False
    total = torch.zeros_like(mesh.vertices).index_add(0, vertex, mesh.vertices.index_select(0, neighbour))
    umbrella = total / degree.clamp(min=1)[:, None] - mesh.vertices
    return umbrella[inside].square().sum() / inside.sum().clamp(min=1)
