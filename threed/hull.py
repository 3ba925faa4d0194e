"""What the outline of a picture says of a volume: nothing lies beside it, and something lies behind all of it.

Volumes are those of `distill/start.py`, lattices and distances those of `renderers/voxels.py`. A lattice is placed
before a camera by `Sight`. Most things are alike on their left and on their right: what holds of such a thing holds of
its reflection in the plane x = 0, so that one picture counts for two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.ndimage import distance_transform_edt
from scipy.sparse.linalg import splu
from torch import Tensor
from torch.nn import functional

from threed.cutout import Cutout
from threed.distill.symmetry import symmetrised
from threed.renderers.camera import Cameras
from threed.renderers.voxels import TRUNCATION, Voxels, lattice, span
from threed.viewpoint import Viewpoint

BINS = 1.25  # a voxel's side of the lattice, along the frame's: of rays that are asked whether they meet the object
FILLED = 0.75  # mean alpha from which a bin of the picture has to meet it
DEEP = 0.5  # voxels: how deep inside its ray's best voxel has to be, not to lack anything
NEAR, REACH = 2.0, 0.7  # voxels: up to where it swells, and how far from that voxel on its ray
FILL, CORE = 0.6, 0.5  # of a bulge: what a ray is filled with that lacks something; and any, where nothing is trusted
COVERED = 0.985  # share of the picture that a symmetrical thing must be able to fill
PACE = 0.5  # of the way to its right size and place, that the lattice goes at once
FASTEST = 0.1  # of its size, at most
TRUSTED = 0.6  # from where on there is no core
LEAST_ROUND = 0.5  # what is trusted most is twice as deep as a bulge, at most
STRETCHES, MOST_STRETCHED = 12, 20.0  # rounds of fitting a height, and how far it may go


@dataclass(frozen=True)
class Sight:
    """A lattice before a camera: what is at q in the frame of `Voxels.mesh` stands at `scale` (q - `middle`)."""

    camera: Cameras  # one
    alpha: Float[Tensor, "S S 1"]  # the picture, as the camera would have taken it
    scale: float  # metres
    bulge: Float[Tensor, "S S"]  # pixels to either side of the middle plane: how deep a thing with this outline is
    trust: float = 1.0  # from 0 to 1, in volumes; the less, the rounder and the nearer to the bulge
    middle: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the frame's unit
    known: bool = False  # whether how deep it is needs no bound

    @staticmethod
    def of(
        seen: Viewpoint, voxels: Voxels, cutout: Cutout, size: int, trust: float = 1.0, known: bool = False
    ) -> Sight:
        """Of a lattice whose object may yet become as high as the picture says: the voxels show how deep it is.

        They are stretched until their picture is as much higher than wide as the object's, and then as large. With less
        `trust` in the voxels, from 1 to 0, the object is rounder: at 0, as round as its outline is.
        """
        left, right, top, bottom = extent(cutout.alpha)
        vertices, stretch = voxels.mesh().vertices, 1.0
        for _ in range(STRETCHES):
            stretched = vertices * torch.tensor([1.0, stretch, 1.0])
            low, high = stretched.amin(0), stretched.amax(0)
            stretched = (stretched - (low + high) / 2) / (high - low).max()
            scale = 1 / float(stretched.norm(dim=-1).max())
            places = projected(scale * stretched, seen.camera)
            (x, y), (width, height) = (places.amax(0) + places.amin(0)) / 2, places.amax(0) - places.amin(0)
            stretch *= float((bottom - top) / (right - left) * width / height)
            stretch = min(max(stretch, 1 / MOST_STRETCHED), MOST_STRETCHED)
        zoom = math.sqrt(float(width * height) / ((right - left) * (bottom - top)))
        at = replace(
            seen,
            zoom=zoom,
            right=float(x) - zoom * (left + right) / 2,
            down=float(y) - zoom * (top + bottom) / 2,
        )
        alpha = at.placed(cutout, size).alpha
        return Sight(seen.camera, alpha, scale, inflated(alpha), trust, known=known)

    def hull(self, resolution: int) -> Hull:
        """Of the outline, on a lattice of so many voxels a side."""
        side, size = span(resolution), len(self.alpha)
        points = self.scale * (lattice(resolution) - torch.tensor(self.middle))
        where = projected(points, self.camera)
        depth = (points - self.camera.position) @ -self.camera.rotation[0, :, 2]
        pixel = depth * math.tan(float(self.camera.fov_y) / 2) * 2 / size / self.scale * side  # voxels
        maps = torch.stack([pixels_away(self.alpha), self.bulge])[None]
        apart, high = functional.grid_sample(maps, where[None, None], padding_mode="border", align_corners=False)[0]
        beyond = (where.abs() - 1).clamp(min=0).sum(-1) * size / 2
        beside = (apart.flatten() + beyond) * pixel
        before, high = (points @ level(self.camera)).abs() * side / self.scale, high.flatten() * pixel

        def bounded(height: Tensor) -> Tensor:
            found = torch.maximum(beside, before - height).clamp(-TRUNCATION, TRUNCATION)
            return found.reshape((resolution,) * 3)

        most = torch.full_like(high, math.inf) if self.known else high / max(1 - self.trust, LEAST_ROUND)
        allowed, fill = bounded(most), bounded(FILL * high)
        core = bounded(CORE * (1 - self.trust) * high) if self.trust < TRUSTED else torch.full_like(fill, TRUNCATION)
        bins = round(BINS * resolution)
        column, row = ((where + 1) * (bins / 2)).long().clamp(0, bins - 1).unbind(-1)
        asked = functional.adaptive_avg_pool2d(self.alpha.movedim(-1, 0)[None], bins).flatten() > FILLED
        return Hull(allowed, core, fill, row * bins + column, asked)

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

    distance: Float[Tensor, "G G G"]  # voxels, negative where something may be
    core: Float[Tensor, "G G G"]  # the same, where something is in any case
    fill: Float[Tensor, "G G G"]  # and where something is on rays that lack it
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
        """With something on every ray that has to meet the object.

        Where the object nearly reaches it swells; rays that are far from it are filled around the middle plane.
        """
        nearest = self._nearest(distance)
        lack = torch.where(self.asked, (nearest + DEEP).clamp(min=0), 0.0)[:, self.ray].view_as(distance)
        apart = distance - nearest[:, self.ray].view_as(distance)
        swollen = distance - lack * (-apart / REACH).exp()
        far = lack > NEAR + DEEP
        filled = torch.where(far, torch.minimum(distance, self.fill), swollen).minimum(self.core)
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
        """These volumes, with the outline."""
        volumes = volumes.clamp(-1, 1)
        hull = self.sight.hull(volumes.shape[-1])
        mirrored = hull.symmetrical if self.told is None else self.told
        alone = hull.grown(hull.carved(volumes[:, 0] * TRUNCATION, False), False)
        self.sight = self.sight.settled(alone)  # what is mirrored is always in the middle
        if mirrored:
            volumes = symmetrised(volumes, "left-right")
            alone = hull.grown(hull.carved(volumes[:, 0] * TRUNCATION, True), True)
        return torch.cat([(alone / TRUNCATION).clamp(-1, 1)[:, None], volumes[:, 1:]], dim=1)


def projected(points: Float[Tensor, "N 3"], camera: Cameras) -> Float[Tensor, "N 2"]:
    """Right and down in half sides of the frame."""
    clip = functional.pad(points, (0, 1), value=1.0) @ camera.clip_from_world()[0].mT
    return clip[:, :2] / clip[:, 3:].clamp(min=1e-3) * clip.new_tensor([1.0, -1.0])


def extent(alpha: Float[Tensor, "S S 1"]) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of a picture's object, in half sides of the frame. Raises ValueError for none."""
    inside = alpha[..., 0] > 0.5
    if not inside.any():
        raise ValueError("the picture shows nothing")
    columns, rows = (torch.nonzero(inside.any(axis)).flatten() for axis in (0, 1))
    ends = torch.stack([columns[0], columns[-1] + 1, rows[0], rows[-1] + 1]) * (2 / len(alpha)) - 1
    left, right, top, bottom = ends.tolist()
    return left, right, top, bottom


def level(camera: Cameras) -> Float[Tensor, "3"]:
    """The direction in which a camera looks, without its tilt."""
    azimuth = camera.azimuth[0]
    return -torch.stack([azimuth.sin(), torch.zeros_like(azimuth), azimuth.cos()])


def inflated(alpha: Float[Tensor, "S S 1"]) -> Float[Tensor, "S S"]:
    """How high an outline bulges, in pixels, the square of which is u: laplacian u = -4 within it, u = 0 without.

    That makes a ball of a disc, exactly (what Igarashi et al. 1999, Teddy, do by hand, as a Poisson equation).
    """
    inside = (alpha[..., 0] > 0.5).numpy()
    number = np.cumsum(inside).reshape(inside.shape) - 1
    count, padded = int(inside.sum()), np.pad(np.where(inside, number, -1), 1, constant_values=-1)
    here = padded[1:-1, 1:-1][inside]
    beside = [np.roll(padded, step, axis)[1:-1, 1:-1][inside] for step in (-1, 1) for axis in (0, 1)]
    pairs = [(here[there >= 0], there[there >= 0]) for there in beside]
    rows, columns = (np.concatenate([pair[k] for pair in pairs]) for k in (0, 1))
    matrix = sparse.identity(count, format="csc") * 4 - sparse.csc_matrix(
        (np.ones(len(rows)), (rows, columns)), shape=(count, count)
    )
    square = np.zeros(inside.shape)
    if count:
        square[inside] = splu(matrix).solve(np.full(count, 4.0))
    return torch.from_numpy(np.sqrt(square.clip(min=0))).float()


def pixels_away(alpha: Float[Tensor, "S S 1"]) -> Float[Tensor, "S S"]:
    """From the outline, in pixels, negative within it."""
    inside = np.pad((alpha[..., 0] > 0.5).numpy(), 1)  # what is beyond the frame is not the object
    away = distance_transform_edt(~inside) - distance_transform_edt(inside)
    return torch.from_numpy(away[1:-1, 1:-1]).float()


def bounds(distance: Float[Tensor, "C G G G"]) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Of what is solid in a volume, in the frame of `Voxels.mesh`, the mean over them; equal where nothing is."""
    resolution, solid = distance.shape[-1], distance < 0
    half, found = 0.5 / span(resolution), [lattice(resolution)[each.flatten()] for each in solid if each.any()]
    if not found:
        return torch.zeros(3), torch.zeros(3)
    low, high = (torch.stack(ends).mean(0) for ends in ([p.amin(0) for p in found], [p.amax(0) for p in found]))
    return low - half, high + half
