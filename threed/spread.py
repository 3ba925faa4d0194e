"""Colours for the sides that a picture does not show: those that it shows of what is like them.

And how much of a thing's own colours a picture shows, by what the voxels believe these to be.

A thing mostly has at one height what it has at the same height elsewhere. Every hidden place of a surface takes the
mean of the colours seen, each by how near it is, in height above all, and in the colour that the start believed both to
have (a joint bilateral filter, Petschnigg et al. 2004, over a surface). Colours are display sRGB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from threed.cutout import Cutout
from threed.renderers.projection import Projection
from threed.renderers.voxels import Voxels
from threed.viewpoint import Viewpoint

NEAR = 2.0  # voxels from the surface: whose colours are changed
# How far like is like: right, up and toward the front, of the longest side; and in display sRGB. What lies behind takes
# what the front has at its height and on its side.
ACROSS, HEIGHT, DEEP, LIKE = 0.12, 0.025, 0.4, 0.3
SAMPLES = 2048  # places that are seen and asked
CHUNK = 1 << 12
PICTURE = 256  # pixels a side
DIMMEST = 1 / 1.5  # light that a picture is believed to be taken in
HIGHLIGHTS = 0.01  # share of a picture's object that may become brighter than white without it


@torch.no_grad()
def spread(voxels: Voxels, seen: Viewpoint, cutout: Cutout, mirrored: bool) -> Voxels:
    """The voxels in the picture's colours, where it shows them and where it does not.

    mirrored: whether left and right are alike. Where the picture shows nothing of the surface, nothing changes.
    """
    skin = Skin.of(voxels, seen, cutout)
    if skin.belief.max() < 0.5:
        return voxels
    hidden = likened(skin.surface, skin.believed, skin.colour, skin.belief[:, 0], mirrored)
    changed = voxels.colour.clone()
    x, y, z = skin.places.T
    changed[x, y, z] = torch.lerp(hidden, skin.colour, skin.belief).clamp(0, 1)
    return replace(voxels, colour=changed)


@torch.no_grad()
def light(voxels: Voxels, seen: Viewpoint, cutout: Cutout) -> float:
    """How bright the picture shows what it shows, beside the voxels' colours; from DIMMEST to 1.

    The means over all of it are compared: a single place may be in light or in shade. A photograph that is as bright as
    can be was taken in all the light, whatever the voxels' colours are.
    """
    inside = cutout.rgb[cutout.alpha[..., 0] > 0.9].amax(-1)
    brightest = float(inside.quantile(1 - HIGHLIGHTS)) if len(inside) else 0.0
    skin = Skin.of(voxels, seen, cutout)
    own, lit = (float((skin.belief * each).sum()) for each in (skin.believed, skin.colour))
    return min(max(lit / own, DIMMEST, brightest), 1.0) if own and lit else 1.0


@dataclass(frozen=True)
class Skin:
    """What is near the surface of voxels, and what a picture shows of it."""

    places: Int[Tensor, "N 3"]  # in the lattice
    surface: Float[Tensor, "N 3"]  # the nearest point of it, in the frame of `Voxels.mesh`
    believed: Float[Tensor, "N 3"]  # the voxels' own colours
    colour: Float[Tensor, "N 3"]  # the picture's
    belief: Float[Tensor, "N 1"]  # from 0, not seen, to 1

    @staticmethod
    def of(voxels: Voxels, seen: Viewpoint, cutout: Cutout) -> Skin:
        places = (voxels.distance.abs() < NEAR).nonzero()
        x, y, z = places.T
        points = voxels.points(places)
        slope = torch.stack(torch.gradient(voxels.distance), dim=-1)[x, y, z]
        normals = torch.nn.functional.normalize(slope, dim=-1)
        surface = points - normals * voxels.distance[x, y, z, None] * voxels.pitch
        mesh = voxels.mesh()
        radius = mesh.vertices.norm(dim=-1).max()
        placed = seen.placed(cutout, PICTURE)
        shown = Projection.of(
            replace(mesh, vertices=mesh.vertices / radius), seen.camera, placed.rgb[None], placed.alpha[None]
        )
        return Skin(places, surface, voxels.colour[x, y, z], *shown(surface / radius, normals))


def likened(
    points: Float[Tensor, "N 3"],
    believed: Float[Tensor, "N 3"],
    colour: Float[Tensor, "N 3"],
    belief: Float[Tensor, "N"],
    mirrored: bool,
) -> Float[Tensor, "N 3"]:
    """For every point the mean of the colours of points that are like it, weighted by belief, 0 to 1, in what is seen.

    Points are in the frame of `Voxels.mesh`; `believed` is the colour that each had before.
    """
    scaled = points / points.new_tensor([ACROSS, HEIGHT, DEEP])
    if mirrored:
        scaled[:, 0] = scaled[:, 0].abs()
    features = torch.cat([scaled, believed / LIKE], dim=-1)
    sound = (belief > 0).nonzero().flatten()
    asked = sound[torch.linspace(0, len(sound) - 1, min(SAMPLES, len(sound))).round().long()]
    found = list[Tensor]()
    for some in features.split(CHUNK):
        weights = torch.softmax(belief[asked].log() - torch.cdist(some, features[asked]).square() / 2, dim=-1)
        found.append(weights @ colour[asked])
    return torch.cat(found)
