"""Trees of points, to find the nearest ones in."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree


def tree(points: Float[np.ndarray, "N D"] | Int[np.ndarray, "N D"]) -> KDTree:
    """A k-d tree whose cells are halved in space, not by count.

    Where most points have a coordinate of 0, SciPy's balanced trees split at the next larger number, which is 0 again
    once `threed.machine.set_threads` lets the CPU flush such small ones: they would never end.
    """
    return KDTree(points, balanced_tree=False)
