"""Means that stop at edges: bilateral filtering of what lies at the nodes of a graph.

A node takes the mean of its neighbours and itself, weighted by how much they resemble it (Tomasi and Manduchi 1998,
"Bilateral filtering for gray and color images", eq. 5):

    v_i <- sum_j w_ij exp(-|v_i - v_j|^2 / 2 sigma^2) v_j / sum_j w_ij exp(-|v_i - v_j|^2 / 2 sigma^2).

Repeated, what differs by less than about sigma becomes one, and what differs by more comes apart.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array, eye_array

from threed.renderers.nearest import tree


def bilateral(
    values: Float[np.ndarray, "N C"], weights: csr_array, sigma: float, iterations: int, unit: bool = False
) -> Float[np.ndarray, "N C"]:
    """Filtered values; `weights` (N x N) are those of neighbours, a node's own on its diagonal.

    unit: the values are unit vectors, and stay such; directions that cancel stay as they were.
    """
    entries = weights.tocoo()
    for _ in range(iterations):
        apart = values[entries.row] - values[entries.col]
        unlike = np.einsum("nc,nc->n", apart, apart)  # several times as quick as a sum
        weight = entries.data * np.exp(-unlike / (2 * sigma**2))
        total = csr_array((weight, weights.indices, weights.indptr), shape=weights.shape) @ values
        size = np.linalg.norm(total, axis=1) if unit else np.bincount(entries.row, weight, len(values))
        values = np.where(size[:, None] > 1e-12, total / np.maximum(size, 1e-12)[:, None], values)
    return values


def touching(groups: Int[np.ndarray, "N K"]) -> csr_array:
    """1 for every pair of the N that share one of their K groups, and for each with itself."""
    count = groups.size
    member = coo_array((np.ones(count), (np.repeat(np.arange(len(groups)), groups.shape[1]), groups.ravel())))
    shared = (member.tocsr() @ member.tocsr().T).tocsr()
    shared.data[:] = 1.0
    return shared


def within(points: Float[np.ndarray, "N D"] | Int[np.ndarray, "N D"], radius: float) -> csr_array:
    """1 for every pair of points that lie at most so far apart, and for each with itself."""
    i, j = tree(points).query_pairs(radius, output_type="ndarray").T
    near = coo_array((np.ones(len(i)), (i, j)), shape=(len(points),) * 2)
    return (near + near.T + eye_array(len(points))).tocsr()
