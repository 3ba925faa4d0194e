"""The camera's part of a training: pictures of the views' cache as photographs, and from where each was taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from threed.distill.angles import (
    AZIMUTHS,
    BIN,
    ELEVATIONS,
    LOWEST,
    QUARTER,
    Angles,
    AnglesConfig,
    middles,
    within_quarter,
)
from threed.distill.conditions import reference_picture
from threed.pictures import png
from threed.pictures import sheet as paper
from threed.training import networks
from threed.training.views import host
from threed.training.views_batch import look, photographed, shaded
from threed.training.views_cache import Cache

EXTENT = 0.78  # of the frame's side, the longer side of an object: what `threed.cutout` frames it to
SOFT = 4.0  # degrees: a bin beside the right one is nearly right


@dataclass(frozen=True)
class AnglesLoss:
    """Cross entropy of azimuth and elevation; half of the pictures are mirrored, half have their colours exchanged."""

    cache: Cache

    def __call__(self, network: nn.Module, samples: int, generator: torch.Generator) -> Float[Tensor, ""]:
        with torch.no_grad(), torch.autocast(generator.device.type, enabled=False):
            picture, azimuth, elevation = self.drawn(samples, generator)
            across, height = likely(azimuth, -QUARTER / 2, AZIMUTHS, QUARTER), likely(elevation, LOWEST, ELEVATIONS)
        told = network(picture).float().split([AZIMUTHS, ELEVATIONS], dim=1)
        return functional.cross_entropy(told[0], across) + functional.cross_entropy(told[1], height)

    def drawn(
        self, samples: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B 4 H W"], Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Photographs, their azimuths within a quarter about 0, and their elevations."""
        device, random = generator.device, host(generator)
        asset = random.integers(0, len(self.cache), samples)
        view = random.integers(0, self.cache.albedo.shape[1], samples)
        albedo, normal, alpha = look(self.cache, asset, view, device)
        colours = torch.rand(samples, 3, generator=generator, device=device).argsort(1)
        exchanged = torch.rand(samples, 1, generator=generator, device=device) < 0.5
        colours = torch.where(exchanged, colours, torch.arange(3, device=device))
        albedo = albedo.gather(1, colours[:, :, None, None].expand_as(albedo))
        picture = photographed(framed(torch.cat([shaded(albedo, normal, generator), alpha], dim=1)), generator)
        picture = reference_picture(*picture.split([3, 1], dim=1))
        mirrored = torch.rand(samples, generator=generator, device=device) < 0.5
        picture = torch.where(mirrored[:, None, None, None], picture.flip(3), picture)
        camera = self.cache.cameras[asset, view].to(device) * (180 / math.pi)
        azimuth = camera[:, 0] * torch.where(mirrored, -1, 1)
        return picture, within_quarter(azimuth), camera[:, 1]


def likely(angle: Float[Tensor, "B"], lowest: float, bins: int, period: float = math.inf) -> Float[Tensor, "B K"]:
    """Shares of the bins from `lowest` on: a bell about the angle, on a circle where there is a period."""
    apart = (middles(bins, lowest, angle.device) - angle[:, None]).abs()
    apart = torch.minimum(apart, period - apart)
    return (-((apart / SOFT) ** 2) / 2).softmax(1)


def framed(picture: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """With the object, of which the last channel is alpha, in the middle and EXTENT of the frame long."""
    scale, middle = outline(picture[:, -1:])
    frame = scale[:, None, None] * torch.eye(2, device=picture.device)
    grid = functional.affine_grid(torch.cat([frame, middle[:, :, None]], dim=2), [*picture.shape], align_corners=False)
    return functional.grid_sample(picture, grid, align_corners=False)


def outline(alpha: Float[Tensor, "N 1 H W"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N 2"]]:
    """Of squares in which the object is EXTENT long: their sides, and their middles, right and down.

    In half sides of the frame.
    """
    side = alpha.shape[-1]
    axis = (torch.arange(side, device=alpha.device) + 0.5) * (2 / side) - 1
    inside = alpha[:, 0] > 0.5
    ends = []
    for across in (1, 2):  # columns, then rows
        there = inside.any(across)
        low = torch.where(there, axis, 1.0).amin(1) - 1 / side
        high = torch.where(there, axis, -1.0).amax(1) + 1 / side
        ends.append(torch.where(there.any(1), torch.stack([low, high]), torch.tensor([[-1.0], [1.0]]).to(low)))
    (left, right), (top, bottom) = ends
    scale = torch.maximum(right - left, bottom - top) / (2 * EXTENT)
    return scale, torch.stack([left + right, top + bottom], dim=1) / 2


def fresh(config: AnglesConfig, seed: int) -> Angles:
    """An untrained network, which knows nothing."""
    angles = networks.seeded(partial(Angles, config), seed)
    nn.init.zeros_(angles.tell.weight)
    nn.init.zeros_(angles.tell.bias)
    return angles


@torch.no_grad()
def sheet(network: Angles, loss: AnglesLoss, count: int = 8, seed: int = 0) -> bytes:
    """A PNG: photographs, and below each how likely every azimuth and elevation is, the true ones in red."""
    device = next(network.parameters()).device
    picture, azimuth, elevation = loss.drawn(count, torch.Generator(device).manual_seed(seed))
    across, height = (each.softmax(1) for each in network(picture).float().split([AZIMUTHS, ELEVATIONS], dim=1))
    likely_there = (height.flip(1)[:, :, None] * across[:, None]).sqrt()
    likely_there = likely_there / likely_there.amax((1, 2), keepdim=True)
    column = ((azimuth + QUARTER / 2) / BIN).long().clamp(0, AZIMUTHS - 1)
    row = (ELEVATIONS - 1 - (elevation - LOWEST) / BIN).ceil().long().clamp(0, ELEVATIONS - 1)
    maps = likely_there[..., None].repeat(1, 1, 1, 3)
    maps[torch.arange(count), row, column, 0] = 1
    size = picture.shape[-1]
    rgb, alpha = picture.split([3, 1], dim=1)
    shown = (rgb + alpha) / 2 + 1 - alpha  # RGB in [-1, 1] times alpha, on white
    maps = functional.interpolate(maps.movedim(-1, 1), (size, size))
    return png(paper(torch.cat([shown, maps]).movedim(1, -1).clamp(0, 1).cpu(), count))


def write(folder: Path, angles: Angles) -> None:
    """Put it into a prior's folder, in bfloat16. Raises OSError."""
    networks.write(folder / "angles", angles)
