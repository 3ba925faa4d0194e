"""The ranker's part of a training: pictures, the exemplars that look like them, and how alike their volumes are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from threed.distill.angles import within_quarter
from threed.distill.exemplars import Exemplars
from threed.distill.lift import EXTENT
from threed.distill.ranker import Ranker, RankerConfig, beside
from threed.pictures import png
from threed.pictures import sheet as paper
from threed.recalled import Views
from threed.renderers.ops import ops
from threed.training import networks
from threed.training.angles import framed
from threed.training.candidates import FOV, MISJUDGED, Candidates, small
from threed.training.pairs import Pairs, quarters
from threed.training.views import host
from threed.training.views_batch import exchanged, look, photographed, shaded, variants

TOGETHER = 8  # exemplars of a picture that are compared with one another
WORSE = 0.5  # how often they are any of the candidates, and not the best
SPREAD = 0.05  # of overlap: what is so much less is e times less likely to be chosen
ERROR_WEIGHT = 10.0  # of an overlap's squared error, against that of the choice


@dataclass(frozen=True)
class Beside:
    """P pictures, each beside K exemplars."""

    shown: Float[Tensor, "N C S S"]  # N = P * K
    told: Float[Tensor, "N T"]
    overlap: Float[Tensor, "P K"]  # intersection over union of the volumes


@dataclass(frozen=True)
class RankerLoss:
    """The overlaps' mean squared error, and how far the choice that they lead to is from the one that the truth does.

    The second is ListNet's (Cao et al. 2007, 10.1145/1273496.1273513, eq. 5), as a divergence. Half of the pictures are
    mirrored, half have their colours exchanged.
    """

    pairs: Pairs
    exemplars: Exemplars
    candidates: Candidates

    def to(self, device: torch.device | str) -> RankerLoss:
        """The same with its pictures in this device's memory; exemplars are drawn by the processor."""
        return replace(self, pairs=replace(self.pairs, cache=self.pairs.cache.to(device)))

    def __call__(self, network: Any, samples: int, generator: torch.Generator) -> Float[Tensor, ""]:
        with torch.no_grad(), torch.autocast(generator.device.type, enabled=False):
            drawn = self.drawn(samples, network.config.size, generator)
        found = network(drawn.shown, drawn.told).float().sigmoid().view_as(drawn.overlap)
        chosen, right = ((each / SPREAD).log_softmax(1) for each in (found, drawn.overlap))
        return ERROR_WEIGHT * functional.mse_loss(found, drawn.overlap) + functional.kl_div(
            chosen, right, reduction="batchmean", log_target=True
        )

    def drawn(self, samples: int, size: int, generator: torch.Generator) -> Beside:
        """So many pictures as photographs, and TOGETHER of the candidates of each."""
        cache, device, random = self.pairs.cache, generator.device, host(generator)
        asset = random.integers(0, len(self.pairs), samples)
        volume, seen = self.pairs.rows[asset].T
        view = random.integers(0, cache.albedo.shape[1], samples)
        albedo, normal, alpha = look(cache, seen, view, device)
        taken = photographed(torch.cat([shaded(albedo, normal, generator), alpha], dim=1), generator)
        pictures = small(framed(taken), size)
        row, turns = self.some(asset, view, random)
        camera = cache.cameras[seen, view, :2]
        drawn, toward = (each.to(device) for each in self.seen(row, turns, camera, size, random))
        rgb, inside = (each.repeat_interleave(TOGETHER, dim=0) for each in pictures)
        shown, told = beside(rgb, inside, drawn, toward, turns.flatten().to(device) > 0)
        mirrored, colours = (each.repeat_interleave(TOGETHER, dim=0) for each in variants(samples, random, device))
        rgb, alpha, other, rest = shown.split([3, 1, 3, 2], dim=1)
        shown = torch.cat([exchanged(rgb, colours), alpha, exchanged(other, colours), rest], dim=1)
        shown = torch.where(mirrored[:, None, None, None], shown.flip(3), shown)
        overlap = self.overlap(torch.from_numpy(volume), quarters(camera[:, 0]), row, turns)
        return Beside(shown, told, overlap.to(device))

    def some(
        self, asset: Int[np.ndarray, "P"], view: Int[np.ndarray, "P"], random: np.random.Generator
    ) -> tuple[Int[Tensor, "P K"], Int[Tensor, "P K"]]:
        """Candidates of these pictures, by row and quarter turns."""
        kept = self.candidates.row.shape[2]
        any_of_them = random.random((len(asset), kept)).argsort(1)
        some = np.where(random.random((len(asset), 1)) < WORSE, any_of_them, np.arange(kept))[:, :TOGETHER]
        place = asset[:, None], view[:, None], some
        return self.candidates.row[place], self.candidates.turns[place]

    def seen(
        self,
        row: Int[Tensor, "P K"],
        turns: Int[Tensor, "P K"],
        camera: Float[Tensor, "P 2"],
        size: int,
        random: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Exemplars from about where pictures were taken, each from a little elsewhere."""
        noise = torch.from_numpy(random.standard_normal((*row.shape, 2)).astype(np.float32))
        angle = torch.stack([within_quarter(camera[:, 0].rad2deg()), camera[:, 1].rad2deg()], dim=1)
        azimuth, elevation = (angle[:, None] + MISJUDGED * noise).flatten(0, 1).unbind(1)
        before = Views(azimuth, elevation, turns.flatten()).cameras(FOV)
        return ops(torch.device("cpu")).draw_balls(self.exemplars.balls, row.flatten(), before, size, EXTENT)

    def overlap(
        self, volume: Int[Tensor, "P"], front: Int[Tensor, "P"], row: Int[Tensor, "P K"], turns: Int[Tensor, "P K"]
    ) -> Float[Tensor, "P K"]:
        """Intersection over union of volumes that pictures show, whose front is so many quarters on, and exemplars."""
        truth = self.pairs.volumes.distance[volume] < 0
        turned = torch.stack([truth.rot90(quarter, (1, 3)) for quarter in range(4)])
        truth = turned[(front[:, None] - turns) % 4, torch.arange(len(volume))[:, None]]
        other = torch.from_numpy(self.exemplars.level[row.numpy()] < 0)
        return (truth & other).sum((2, 3, 4)) / (truth | other).sum((2, 3, 4)).clamp(min=1)


def fresh(config: RankerConfig, seed: int) -> Ranker:
    """An untrained network."""
    return networks.seeded(partial(Ranker, config), seed)


@torch.no_grad()
def sheet(network: Ranker, loss: RankerLoss, count: int = 6, seed: int = 0) -> bytes:
    """A PNG: in each row a photograph and exemplars, the best to the network first, a green bar for how right it is."""
    device, size = next(network.parameters()).device, network.config.size
    drawn = loss.drawn(count, size, torch.Generator(device).manual_seed(seed))
    order = network(drawn.shown, drawn.told).view_as(drawn.overlap).argsort(1, descending=True)
    shown = drawn.shown.unflatten(0, drawn.overlap.shape).movedim(2, -1)
    white = torch.cat([each[..., :3] + 1 - each[..., 3:] for each in (shown[:, :1, ..., :4], shown[..., 4:8])], dim=1)
    place = torch.arange(count, device=device)[:, None]
    tiles = torch.cat([white[:, :1], white[:, 1:][place, order]], dim=1).cpu()
    right = torch.cat([torch.zeros(count, 1), drawn.overlap[place, order].cpu()], dim=1)
    bar = torch.arange(size) < right[..., None] * size
    tiles[:, :, -2:] = torch.where(bar[:, :, None, :, None], torch.tensor([0.2, 0.7, 0.3]), tiles[:, :, -2:])
    return png(paper(tiles.flatten(0, 1).clamp(0, 1), 1 + TOGETHER))


def write(folder: Path, ranker: Ranker) -> None:
    """Put it into a prior's folder, in bfloat16. Raises OSError."""
    networks.write(folder / "ranker", ranker)
