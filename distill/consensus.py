"""What volumes of one text agree on, and look the same under.

Volumes are those of `distill/start.py`: signed distance, then colour; axes x, y (up), z.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.symmetry import Symmetry, likely, symmetrised

POWERS, KEPT = (2, 4, 8, 16), 0.9  # of likeness, in a mean; share of the longest side that must remain


def consensus(volumes: Float[Tensor, "C 4 G G G"]) -> tuple[Float[Tensor, "4 G G G"], Symmetry | None]:
    """The mean of volumes, under the strongest symmetry that they have without losing a part that stands out.

    Things that people make mostly have one, and what a sample has beside it is noise.
    """
    volumes = volumes.clamp(-1, 1)
    plain, alike = agreed(volumes), likeness(volumes)[medoid(volumes)]
    for symmetry in likely(volumes, alike ** POWERS[0]):
        even = symmetrised(agreed(symmetrised(volumes, symmetry)), symmetry)
        if longest(even) >= KEPT * longest(plain):
            return even, symmetry
    return plain, None


def agreed(volumes: Float[Tensor, "C 4 G G G"]) -> Float[Tensor, "4 G G G"]:
    """The mean around the volume most like the others.

    Each counts by a power of its intersection over union with that one, so that failures hardly do. Noise, which is
    different in all of them, goes. So may a thin part that stands elsewhere in each, a trunk: where the mean is shorter
    than that volume is, more is left to those that are alike, and in the end to that one alone.
    """
    volumes = volumes.clamp(-1, 1)
    first = medoid(volumes)
    usual, alike = volumes[first], likeness(volumes)[first]
    for power in POWERS if longest(usual) else ():
        weights = alike**power
        mean = torch.einsum("n,ncxyz->cxyz", weights / weights.sum(), volumes)
        if longest(mean) >= KEPT * longest(usual):
            return mean
    return usual


def longest(volume: Float[Tensor, "4 G G G"]) -> int:
    """Voxels along the longest side of what is solid."""
    filled = torch.nonzero(volume[0] < 0)
    return int((filled.amax(0) - filled.amin(0)).max()) + 1 if len(filled) else 0


def medoid(volumes: Float[Tensor, "C 4 G G G"]) -> int:
    """The volume most like the others: rarely a failure."""
    return int(likeness(volumes).sum(1).argmax())


def likeness(volumes: Float[Tensor, "C 4 G G G"]) -> Float[Tensor, "C C"]:
    """Intersection over union of all pairs; 0 for what is empty."""
    inside = (volumes[:, 0] < 0).flatten(1).float()
    both = inside @ inside.T
    size = inside.sum(1)
    return both / (size[:, None] + size - both).clamp(min=1)
