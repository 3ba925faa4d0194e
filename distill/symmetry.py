"""What volumes look the same under: turns about the upright axis through their middle, and mirrors through it.

A symmetric volume is the mean over its group: g v = v for all g of the group where v <- mean_g g v (Mitra, Pauly, Wand
and Ceylan 2013, "Symmetry in 3D geometry: extraction and applications", section 4). Volumes are (.., 4, G, G, G):
signed distance, negative inside, then colour, all in [-1, 1]; axes x, y (up), z.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Symmetry = Literal["round", "quarters", "both", "left-right", "front-back"]

# Intersection over union with the mean over the group that makes a symmetry likely, the strongest first.
LEAST: dict[Symmetry, float] = {"round": 0.88, "quarters": 0.88, "both": 0.88, "left-right": 0.8, "front-back": 0.8}
MIRRORS = ("left-right", "front-back")
MOTTLED = 0.09  # how much colours at the surface may differ from the mean's, root mean square in sRGB
SKIN = 0.4  # of the truncation: what is so near counts as the surface
TURNS, RINGS = 128, 0.75  # samples around a ring; voxels from one ring to the next


def symmetrised(volume: Float[Tensor, "*B C G G G"], symmetry: Symmetry) -> Float[Tensor, "*B C G G G"]:
    """The mean over the group: any turn, quarter turns and mirrors, both mirrors, or one of them."""
    match symmetry:
        case "left-right":
            return (volume + volume.flip(-3)) / 2
        case "front-back":
            return (volume + volume.flip(-1)) / 2
        case "both":
            return symmetrised(symmetrised(volume, "left-right"), "front-back")
        case "quarters":
            even = symmetrised(volume, "both")
            return (even + even.transpose(-3, -1)) / 2
        case "round":
            return turned(volume)


def turned(volume: Float[Tensor, "*B C G G G"]) -> Float[Tensor, "*B C G G G"]:
    """The mean over all turns: along rings around the axis, then between these."""
    side = volume.shape[-1]
    around, ring, between = rings(side)
    planes = volume.movedim(-2, 0).reshape(side, -1, side, side)  # at each height
    seen = functional.grid_sample(planes, around.expand(side, -1, -1, -1), padding_mode="border", align_corners=False)
    profile = seen.mean(-1)
    even = torch.lerp(profile[..., ring], profile[..., ring + 1], between)
    return even.reshape(side, *volume.shape[:-3], side, side).movedim(0, -2)


@cache
def rings(side: int) -> tuple[Float[Tensor, "1 R T 2"], Tensor, Tensor]:
    """Where `grid_sample` finds the points of every ring; the ring within every column, and how far beyond it it is."""
    centred = torch.arange(side) - (side - 1) / 2
    radius = torch.hypot(centred[:, None], centred)  # voxels, x by z
    inner = (radius / RINGS).long()
    angle = (torch.arange(TURNS) + 0.5) / TURNS * 2 * math.pi
    reach = torch.arange(int(inner.max()) + 2) * RINGS / (side / 2)
    around = torch.stack([torch.outer(reach, angle.cos()), torch.outer(reach, angle.sin())], dim=-1)[None]
    return around, inner, radius / RINGS - inner


def likely(volumes: Float[Tensor, "C 4 G G G"], weights: Float[Tensor, "C"]) -> list[Symmetry]:
    """The symmetries that volumes have by themselves, in the weighted mean, the strongest first."""
    weights = weights / weights.sum().clamp(min=1e-12)
    found = {symmetry: [float(weights @ each) for each in kept(volumes, symmetry)] for symmetry in LEAST}
    order = sorted(LEAST, key=lambda symmetry: -found[symmetry][0] if symmetry in MIRRORS else -math.inf)
    return [each for each in order if found[each][0] >= LEAST[each] and found[each][1] <= MOTTLED]


def kept(volumes: Float[Tensor, "C 4 G G G"], symmetry: Symmetry) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
    """How far volumes stay as they are: intersection over union; difference of colours at the surface, RMS in sRGB."""
    even = symmetrised(volumes, symmetry)
    inside, there = volumes[:, 0] < 0, even[:, 0] < 0
    both, either = (each.flatten(1).sum(1) for each in (inside & there, inside | there))
    skin = (volumes[:, 0].abs() < SKIN) & (even[:, 0].abs() < SKIN)
    apart = ((volumes - even)[:, 1:] / 2).square().sum(1) * skin
    return both / either.clamp(min=1), (apart.flatten(1).sum(1) / skin.flatten(1).sum(1).clamp(min=1)).sqrt()
