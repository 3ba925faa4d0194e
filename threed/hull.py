"""What the outline of a picture says of a volume: nothing lies beside it, and something lies behind all of it.

Volumes are those of `distill/start.py`, lattices and distances those of `renderers/voxels.py`. A lattice is placed
before a camera by `Sight`. Most things are alike on their left and on their right: what holds of such a thing holds of
its reflection in the plane x = 0, so that one picture counts for two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional

from threed.renderers.camera import Cameras
from threed.renderers.voxels import TRUNCATION, span

BINS = 40  # a side of the frame, of rays that are asked whether they meet the object
FILLED = 0.75  # mean alpha from which a bin of the picture has to meet it
DEPTH, REACH = 0.5, 0.7  # voxels: how deep inside its ray's best voxel is put, and how much of that its neighbours get
COVERED = 0.97  # share of the picture that a symmetrical thing must be able to fill
PACE = 0.5  # of the way to its right size and place, that the lattice goes at once
FASTEST = 0.1  # of its size, at most


@dataclass(frozen=True)
class Sight:
    """A lattice before a camera: what is at q in the frame of `Voxels.mesh` stands at `scale` (q - `middle`)."""

    camera: Cameras  # one
    alpha: Float[Tensor, "S S 1"]  # the picture, as the camera would have taken it
    scale: float  # metres
    middle: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the frame's unit

    def hull(self, resolution: int) -> Hull:
        """Of the outline, on a lattice of so many voxels a side."""
        side, size = span(resolution), len(self.alpha)
        points = self.scale * (lattice(resolution) - torch.tensor(self.middle))
        clip = functional.pad(points, (0, 1), value=1.0) @ self.camera.clip_from_world()[0].mT
        depth = clip[:, 3].clamp(min=1e-3)
        where = clip[:, :2] / depth[:, None] * torch.tensor([1.0, -1.0])  # row 0 on top
        pixel = depth * math.tan(float(self.camera.fov_y) / 2) * 2 / size / self.scale * side  # voxels
        apart = functional.grid_sample(
            pixels_away(self.alpha)[None, None], where[None, None], padding_mode="border", align_corners=False
        )
        beyond = (where.abs() - 1).clamp(min=0).sum(-1) * size / 2
        distance = ((apart.flatten() + beyond) * pixel).clamp(-TRUNCATION, TRUNCATION)
        column, row = ((where + 1) * (BINS / 2)).long().clamp(0, BINS - 1).unbind(-1)
        asked = functional.adaptive_avg_pool2d(self.alpha.movedim(-1, 0)[None], BINS).flatten() > FILLED
        return Hull(distance.reshape((resolution,) * 3), row * BINS + column, asked)

    def settled(self, distance: Float[Tensor, "C G G G"]) -> Sight:
        """With the lattice moved toward where these objects, in the middle, are as large as they should be."""
        low, high = bounds(distance)
        size, middle = float((high - low).max()), (low + high) / 2
        if size <= 0:
            return self
        growth = max(1 - FASTEST, min(1 + FASTEST, 1 + PACE * (size - 1)))
        shifted = torch.tensor(self.middle) - PACE * middle
        x, y, z = shifted.tolist()
        return replace(self, scale=self.scale * growth, middle=(x, y, z))


@dataclass(frozen=True)
class Hull:
    """Where the outline allows a lattice to be filled, and where it wants it to be."""

    distance: Float[Tensor, "G G G"]  # voxels, negative within the cone of the outline
    ray: Int[Tensor, "V"]  # of every voxel, the bin of the picture that it is seen in
    asked: Bool[Tensor, "R"]  # whether what is seen in a bin has to be the object

    @property
    def symmetrical(self) -> bool:
        """Whether what both this outline and its reflection allow can fill the picture."""
        nearest = self._nearest(torch.maximum(self.distance, self.distance.flip(0))[None])[0]
        met = self.asked & nearest.isfinite()
        return bool((nearest[met] < 0).float().mean() >= COVERED) if met.any() else False

    def carved(self, distance: Float[Tensor, "C G G G"], mirrored: bool) -> Float[Tensor, "C G G G"]:
        """Without what lies beside the outline, or beside its reflection."""
        kept = torch.maximum(distance, self.distance)
        return torch.maximum(kept, self.distance.flip(0)) if mirrored else kept

    def grown(self, distance: Float[Tensor, "C G G G"], mirrored: bool) -> Float[Tensor, "C G G G"]:
        """With something on every ray that has to meet the object: there where it is least far from being solid."""
        nearest = self._nearest(distance)
        lacking = torch.where(self.asked & nearest.isfinite(), (nearest + DEPTH).clamp(min=0), 0.0)
        apart = distance.flatten(1) - nearest[:, self.ray]
        filled = (distance.flatten(1) - lacking[:, self.ray] * (-apart / REACH).exp()).view_as(distance)
        return torch.minimum(filled, filled.flip(1)) if mirrored else filled

    def _nearest(self, distance: Float[Tensor, "C G G G"]) -> Float[Tensor, "C R"]:
        """The least distance along every ray; infinite for rays that meet no voxel."""
        none = distance.new_full((len(distance), len(self.asked)), torch.inf)
        return none.scatter_reduce(1, self.ray.expand(len(distance), -1), distance.flatten(1), "amin")


class Carving:
    """Leads volumes, while they are sampled, to what a picture shows; `sight` follows their size and place."""

    def __init__(self, sight: Sight, mirrored: bool | None = None) -> None:
        """mirrored: whether left and right are alike; None to see from the outline whether they can be."""
        self.sight, self.told = sight, mirrored

    def __call__(self, volumes: Float[Tensor, "C 4 G G G"]) -> Float[Tensor, "C 4 G G G"]:
        """The volumes that are nearest to these, in a way, and have the outline."""
        volumes = volumes.clamp(-1, 1)
        hull = self.sight.hull(volumes.shape[-1])
        mirrored = hull.symmetrical if self.told is None else self.told
        if mirrored:
            volumes = (volumes + volumes.flip(2)) / 2
        distance = hull.grown(hull.carved(volumes[:, 0] * TRUNCATION, mirrored), mirrored)
        self.sight = self.sight.settled(distance)
        return torch.cat([(distance / TRUNCATION).clamp(-1, 1)[:, None], volumes[:, 1:]], dim=1)


def lattice(resolution: int) -> Float[Tensor, "V 3"]:
    """The voxels' middles in the frame of `Voxels.mesh`, x slowest."""
    axis = (torch.arange(resolution) - (resolution - 1) / 2) / span(resolution)
    return torch.cartesian_prod(axis, axis, axis)


def pixels_away(alpha: Float[Tensor, "S S 1"]) -> Float[Tensor, "S S"]:
    """From the outline, in pixels, negative within it."""
    inside = (alpha[..., 0] > 0.5).numpy()
    outer, inner = distance_transform_edt(~inside), distance_transform_edt(inside)
    return torch.from_numpy(outer - inner).float()


def bounds(distance: Float[Tensor, "C G G G"]) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Of what is solid in most of the volumes, in the frame of `Voxels.mesh`; equal where nothing is."""
    resolution = distance.shape[-1]
    solid = (distance < 0).float().mean(0) > 0.5
    places = lattice(resolution)[solid.flatten()]
    if len(places) == 0:
        return torch.zeros(3), torch.zeros(3)
    return places.amin(0) - 0.5 / span(resolution), places.amax(0) + 0.5 / span(resolution)
