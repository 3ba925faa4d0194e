"""The upsampler's part of a training: crops of a start's guesses, and of what they should have been, twice as fine.

The start guesses a volume that it is shown through noise, as it does in the last steps of sampling, and its guess has
the faults of its samples; but this one has a truth. Crops are turned by quarters about +Y, mirrored, and their colours'
channels exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from threed.distill.start import Start, guided, voxels_of
from threed.distill.text import Text
from threed.distill.upsampler import Upsampler, UpsamplerConfig, interpolated, laid_out
from threed.pictures import png
from threed.pictures import sheet as paper
from threed.training import networks
from threed.training.pairs import facing
from threed.training.start import chance, drawn
from threed.training.volumes import Volumes

SIDE = 16  # voxels of a crop, where the volume is not smaller
CROPS = 2  # of every volume that the start has guessed
NEAR = 0.5  # of the truncation: so near to the surface a colour counts, and a crop is drawn about it
DISTANCE_WEIGHT = 3.0  # of a distance's error, against that of a colour
SHOWN = 0.3  # the time of the noise in the volumes of a sheet

Crops = tuple[Float[Tensor, "B 4 S S S"], Float[Tensor, "B 4 T T T"]]  # of guesses, and what they should have been


@dataclass(frozen=True)
class Lattices:
    """A assets, coarse and twice as fine, with a caption of each."""

    coarse: Volumes
    fine: Volumes
    rows: Int[Tensor, "A 2"]  # of the coarse volumes, of the fine ones
    texts: Text  # of the coarse volumes
    nothing: Text

    def to(self, device: torch.device | str) -> Lattices:
        """The same in this device's memory."""
        texts, nothing = (Text(t.tokens.to(device), t.mean.to(device)) for t in (self.texts, self.nothing))
        return Lattices(self.coarse.to(device), self.fine.to(device), self.rows.to(device), texts, nothing)


@dataclass(frozen=True)
class UpsamplerLoss:
    """Mean absolute error, whose best answer to an open question is the median: an edge, and one of two colours."""

    lattices: Lattices
    start: Start
    latest: float = 0.5  # times up to which volumes are noised
    scale: float = 2.0  # guidance

    def __call__(self, network: Any, samples: int, generator: torch.Generator) -> Float[Tensor, ""]:
        with torch.no_grad(), torch.autocast(generator.device.type, enabled=False):
            guess, fine = self.volumes(-(-samples // CROPS), generator)
            coarse, truth = cropped(guess, fine, samples, generator)
        found = network(coarse).float()
        distance = (found[:, 0] - truth[:, 0]).abs().mean()
        near = (truth[:, :1].abs() < NEAR).expand(-1, 3, -1, -1, -1)
        colour = ((found - truth).abs()[:, 1:] * near).sum() / near.sum().clamp(min=1)
        return DISTANCE_WEIGHT * distance + colour

    def volumes(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B 4 G G G"], Float[Tensor, "B 4 F F F"]]:
        """What the start makes of noised volumes, and these in truth."""
        lattices, device = self.lattices, generator.device
        some = torch.randint(len(lattices.rows), (count,), generator=generator, device=device)
        t = (self.latest * torch.rand(count, generator=generator, device=device)).clamp(min=1e-3)
        coarse, fine = lattices.rows[some].unbind(1)
        told = Text(lattices.texts.tokens[coarse], lattices.texts.mean[coarse])
        guess = guessed(self.start, lattices.coarse.tensor(coarse), t, told, lattices.nothing, self.scale, generator)
        return guess, lattices.fine.tensor(fine)


def guessed(
    start: Start,
    volume: Float[Tensor, "B 4 G G G"],
    t: Float[Tensor, "B"],
    text: Text,
    nothing: Text,
    scale: float,
    generator: torch.Generator,
) -> Float[Tensor, "B 4 G G G"]:
    """What the start believes that noised volumes are."""
    clean = start.encode(volume)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    alpha, sigma = (a[:, None, None] for a in start.alpha_sigma(t))
    return start.decode(guided(start, alpha * clean + sigma * noise, t, text, nothing, scale)).clamp(-1, 1)


def cropped(
    coarse: Float[Tensor, "V 4 G G G"], fine: Float[Tensor, "V 4 F F F"], samples: int, generator: torch.Generator
) -> Crops:
    """`samples` places of the volumes, CROPS of each, in the coarse and in the fine one, at the surface."""
    device, voxels = generator.device, coarse.shape[2]
    side = min(SIDE, voxels)
    surface = functional.max_pool3d((fine[:, :1].abs() < NEAR).float(), 2).flatten(1) + 1e-6  # where there is none, any
    place = torch.multinomial(surface, CROPS, replacement=True, generator=generator).flatten()[:samples]
    middle = torch.stack([place // voxels**2, place // voxels % voxels, place % voxels], dim=1)
    corner = middle - torch.randint(side, (samples, 3), generator=generator, device=device)
    corner = corner.clamp(min=0).clamp(max=voxels - side)
    colours = 1 + torch.rand(samples, 3, generator=generator, device=device).argsort(1)
    channels = torch.cat([torch.zeros_like(colours[:, :1]), colours], dim=1)
    turns = torch.randint(4, (samples,), generator=generator, device=device)
    mirrored = chance(0.5, samples, generator)

    def cut(volumes: Tensor, scale: int) -> Tensor:
        x, y, z = (scale * corner.T[:, :, None] + torch.arange(scale * side, device=device)).unbind(0)
        owner = torch.arange(samples, device=device) // CROPS
        found = volumes[
            owner[:, None, None, None, None],
            channels[:, :, None, None, None],
            x[:, None, :, None, None],
            y[:, None, None, :, None],
            z[:, None, None, None, :],
        ]
        return facing(found, turns, mirrored)

    return cut(coarse, 1), cut(fine, 2)


def fresh(config: UpsamplerConfig, seed: int) -> Upsampler:
    """An untrained network, which interpolates."""
    return laid_out(networks.seeded(partial(Upsampler, config), seed))


@torch.no_grad()
def sheet(network: Upsampler, loss: UpsamplerLoss, count: int = 6, size: int = 128, seed: int = 0) -> bytes:
    """A PNG: guesses of the start as they are, interpolated, in the first row; upsampled in the second; the truth."""
    device = next(network.parameters()).device
    shown = replace(loss, latest=SHOWN)
    guess, truth = shown.volumes(count, torch.Generator(device).manual_seed(seed))
    rows = [interpolated(guess), network(guess), truth]
    return png(paper(torch.stack([drawn(voxels_of(v.float().cpu()), size) for row in rows for v in row]), count))


def write(folder: Path, upsampler: Upsampler) -> None:
    """Put it into a prior's folder, in bfloat16. Raises OSError."""
    networks.write(folder / "upsampler", upsampler)
