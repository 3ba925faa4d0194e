"""A lumpy surface becomes one of even parts with edges between them, as if it had been modelled.

The normals of triangles are filtered, each among those around it that face nearly the same way (Zheng, Fu, Au and Tai
2011, "Bilateral normal filtering for mesh denoising", section 3.2); then vertices move until the triangles face so
(Sun, Rosin, Martin and Langbein 2007, "Fast and effective feature-preserving mesh denoising", eq. 12). Triangles stay,
and so does the volume.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from threed.renderers.bilateral import bilateral, touching
from threed.renderers.mesh import Mesh

ROUNDS = 3  # of both
NORMAL_STEPS, VERTEX_STEPS = 20, 10  # a round


def denoise(mesh: Mesh, sigma: float = 0.35) -> Mesh:
    """The closed mesh with its vertices moved; lumps and edges are told apart by how far normals differ.

    sigma: the length of the difference of two unit normals that still count as the same; an edge of a right angle has
    1.41. Filtering reaches some 25 triangles far, so that triangles should be of even size, and a twentieth of a lump.
    What is round stays so where normals differ by less than sigma from one triangle to the next, and becomes flat parts
    with edges where they differ by more (Perona and Malik 1990, section V, of such diffusion).
    Returns the mesh as it came where it has no volume, or would lose what it has.
    """
    if not mesh.volume > 0:
        return mesh
    vertices, faces = mesh.vertices.detach().cpu().double().numpy(), mesh.faces.cpu().numpy()
    around, moved = touching(faces), vertices
    for _ in range(ROUNDS):
        moved = faced(moved, faces, filtered_normals(moved, faces, around, sigma))
    volume = float(Mesh(torch.from_numpy(moved), mesh.faces.cpu()).volume)
    grown = volume / float(mesh.volume)
    if not 0.5 < grown < 2:
        return mesh
    centre = moved.mean(0)
    return mesh.with_vertices(torch.from_numpy(centre + (moved - centre) / np.cbrt(grown)).to(mesh.vertices))


def filtered_normals(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], around: csr_array, sigma: float
) -> Float[np.ndarray, "F 3"]:
    """Unit normals, filtered among triangles `around` one another, by their area and nearness."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area, middle = np.linalg.norm(normals, axis=1), corners.mean(1)
    pairs = around.tocoo()
    apart = ((middle[pairs.row] - middle[pairs.col]) ** 2).sum(1)
    pairs.data = area[pairs.col] * np.exp(-apart / (2 * apart[apart > 0].mean()))
    return bilateral(normals / np.maximum(area, 1e-30)[:, None], pairs.tocsr(), sigma, NORMAL_STEPS, unit=True)


def faced(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], normals: Float[np.ndarray, "F 3"]
) -> Float[np.ndarray, "V 3"]:
    """Vertices after some steps towards the planes through the triangles' middles that have these normals."""
    used = np.maximum(np.bincount(faces.ravel(), minlength=len(vertices)), 1)[:, None]
    for _ in range(VERTEX_STEPS):
        corners = vertices[faces]
        away = np.einsum("fk,fck->fc", normals, corners.mean(1, keepdims=True) - corners)
        step = (normals[:, None] * away[..., None]).reshape(-1, 3)
        vertices = vertices + np.stack([np.bincount(faces.ravel(), s, len(vertices)) for s in step.T], axis=1) / used
    return vertices
