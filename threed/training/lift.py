"""The lift's part of a training: pictures of the views' cache as photographs, and the volumes that they show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.distill.conditions import reference_picture
from threed.distill.lift import EXTENT, ROOM, Lift, LiftConfig, before, laid_out, lattice
from threed.distill.start import voxels_of
from threed.pictures import png
from threed.pictures import sheet as paper
from threed.renderers.voxels import TRUNCATION, span
from threed.training import networks
from threed.training.angles import framed, outline
from threed.training.pairs import Pairs, facing, quarters
from threed.training.start import drawn
from threed.training.views import host
from threed.training.views_batch import exchanged, look, moved, photographed, shaded, variants

NEAR = 1.5  # voxels: distances count up to there, and colours of what is nearer
FAR = 0.1  # weight of voxels that are far outside, which are most
DISTANCE_WEIGHT = 4.0  # of a distance's error, against that of a colour
SHARPNESS = 4.0  # a voxel: how fast what is solid ends at a surface, where overlaps are measured
MISJUDGED = math.radians(7), math.radians(6)  # the usual errors in azimuth and elevation when they are told


@dataclass(frozen=True)
class LiftLoss:
    """Mean absolute error, and how little volumes and their silhouettes along the axes overlap the truth's.

    The error alone is least at the median of all that a picture leaves open, where thin parts are lost and so are
    those whose place is unsure. Half of the pictures are mirrored, half have their colours exchanged.
    """

    pairs: Pairs
    radius: Float[Tensor, "A"]  # of the volumes' surfaces about their middle, where the longest side is 1

    @staticmethod
    def of(pairs: Pairs) -> LiftLoss:
        return LiftLoss(pairs, torch.stack([each.mesh().vertices.norm(dim=-1).max() for each in pairs.volumes]))

    def to(self, device: torch.device | str) -> LiftLoss:
        """The same in this device's memory."""
        return LiftLoss(self.pairs.to(device), self.radius.to(device))

    def __call__(self, network: Any, samples: int, generator: torch.Generator) -> Float[Tensor, ""]:
        with torch.no_grad(), torch.autocast(generator.device.type, enabled=False):
            picture, angle, truth = self.drawn(samples, network.config.resolution, generator)
            noise = torch.randn(samples, 2, generator=generator, device=generator.device)
            told = angle + torch.tensor(MISJUDGED, device=generator.device) * noise
        found = network(picture, before(*told.unbind(1))).float()
        weight = torch.where(truth[:, 0] < NEAR / TRUNCATION * 0.999, 1.0, FAR)
        distance = (weight * (found[:, 0] - truth[:, 0]).abs()).sum() / weight.sum()
        near = (truth[:, :1].abs() < NEAR / TRUNCATION * 0.999).expand(-1, 3, -1, -1, -1)
        colour = ((found - truth).abs()[:, 1:] * near).sum() / near.sum().clamp(min=1)
        return DISTANCE_WEIGHT * distance + colour + apart(found[:, 0], truth[:, 0])

    def drawn(
        self, samples: int, resolution: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B 4 H W"], Float[Tensor, "B 2"], Float[Tensor, "B 4 G G G"]]:
        """Photographs, their azimuths within a quarter about 0 and elevations, and what stands in their lattices."""
        cache, device, random = self.pairs.cache, generator.device, host(generator)
        volume, seen = self.pairs.rows[random.integers(0, len(self.pairs), samples)].T
        view = random.integers(0, cache.albedo.shape[1], samples)
        mirrored, colours = variants(samples, random, device)
        albedo, normal, alpha = look(cache, seen, view, device)
        albedo = exchanged(albedo, colours)
        picture = framed(photographed(torch.cat([shaded(albedo, normal, generator), alpha], dim=1), generator))
        picture = reference_picture(*picture.split([3, 1], dim=1))
        picture = torch.where(mirrored[:, None, None, None], picture.flip(3), picture)

        azimuth, elevation, distance, fov_y = cache.cameras[seen, view].to(device).unbind(1)
        turns, row = quarters(azimuth), moved(volume, device)
        azimuth = (azimuth + math.pi / 4) % (math.pi / 2) - math.pi / 4
        angle = torch.stack([torch.where(mirrored, -azimuth, azimuth), elevation], dim=1)
        volumes = facing(self.pairs.volumes.tensor(row), turns, mirrored)
        volumes = torch.cat([volumes[:, :1], exchanged(volumes[:, 1:], colours)], dim=1)
        scale, middle = outline(alpha)
        middle = torch.stack([torch.where(mirrored, -middle[:, 0], middle[:, 0]), middle[:, 1]], dim=1)
        half = distance * (fov_y / 2).tan()  # metres of half the frame
        size = half * scale * (EXTENT * ROOM)
        return picture, angle, standing(volumes, self.radius[row], angle, size, half[:, None] * middle, resolution)


def standing(
    volumes: Float[Tensor, "B 4 G G G"],
    radius: Float[Tensor, "B"],
    angle: Float[Tensor, "B 2"],
    size: Float[Tensor, "B"],
    middle: Float[Tensor, "B 2"],
    resolution: int,
) -> Float[Tensor, "B 4 R R R"]:
    """Volumes of objects at radius 1 in lattices, half a side of which is `size` metres, as a camera sees them.

    middle: right and down from the object's middle to the lattice's, in metres.
    """
    rotation = before(*angle.unbind(1)).rotation
    shift = (rotation[..., 0] * middle[:, :1]) - rotation[..., 1] * middle[:, 1:]
    places = lattice(resolution)[None] * size[:, None, None] + shift[:, None]  # metres
    side = volumes.shape[-1]
    inside = places * radius[:, None, None] * (2 * span(side) / side)  # half sides of the volumes' lattices
    grid = inside.flip(-1)[:, None, None]  # grid_sample wants the last axis first
    found = functional.grid_sample(volumes, grid, padding_mode="border", align_corners=False)[:, :, 0, 0]
    beyond = (inside.abs() - (1 - 1 / side)).clamp(min=0).norm(dim=-1) * (side / 2)
    step = 2 / resolution * size * radius * span(side)  # of the volumes' voxels in one of the lattices'
    distance = (found[:, 0] * TRUNCATION + beyond) / step[:, None]
    found = torch.cat([(distance.clamp(-NEAR, NEAR) / TRUNCATION)[:, None], found[:, 1:]], dim=1)
    return found.unflatten(2, (resolution,) * 3)


def apart(found: Float[Tensor, "B G G G"], truth: Float[Tensor, "B G G G"]) -> Float[Tensor, ""]:
    """One less the overlap of volumes, of distances over TRUNCATION, and one less that of three silhouettes.

    The overlap is intersection over union (Rahman and Wang 2016, 10.1007/978-3-319-50835-1_22, eq. 3), of every object
    by itself, so that what is thin counts as much as what is massive.
    """

    def solid(distance: Float[Tensor, "B G G G"]) -> list[Float[Tensor, "B N"]]:
        every = [distance, *[distance.amin(axis) for axis in (1, 2, 3)]]
        return [(each * (-SHARPNESS * TRUNCATION)).sigmoid().flatten(1) for each in every]

    def overlap(a: Float[Tensor, "B N"], b: Float[Tensor, "B N"]) -> Float[Tensor, ""]:
        both = (a * b).sum(1)
        return (both / (a.sum(1) + b.sum(1) - both)).mean()

    whole, *outlines = map(overlap, solid(found), solid(truth))
    return 2 - whole - sum(outlines) / 3


def fresh(config: LiftConfig, seed: int) -> Lift:
    """An untrained network."""
    return laid_out(networks.seeded(partial(Lift, config), seed))


@torch.no_grad()
def sheet(network: Lift, loss: LiftLoss, count: int = 6, size: int = 128, seed: int = 0) -> bytes:
    """A PNG: photographs in the first row; what becomes of them in the second; the truth."""
    device, resolution = next(network.parameters()).device, network.config.resolution
    picture, angle, truth = loss.drawn(count, resolution, torch.Generator(device).manual_seed(seed))
    found = network(picture, before(*angle.unbind(1)))
    rgb, alpha = picture.cpu().split([3, 1], dim=1)
    shown = functional.interpolate((rgb + alpha) / 2 + 1 - alpha, (size, size))  # on white
    volumes = [drawn(voxels_of(each.float().cpu()), size) for row in (found, truth) for each in row]
    return png(paper(torch.stack([*shown.movedim(1, -1), *volumes]), count))


def write(folder: Path, lift: Lift) -> None:
    """Put it into a prior's folder, in bfloat16. Raises OSError."""
    networks.write(folder / "lift", lift)
