"""Volumes and pictures of the same assets: what a start learns from that is to be shown pictures.

A picture may be taken from any side. Its volume is turned by quarters until the camera stands within 45 degrees of its
front, as `distill/start.py` has it; half of the pairs are mirrored left to right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threed.training.cache import rows_in_common
from threed.training.collection import Item
from threed.training.views import host
from threed.training.views_batch import look, photographs
from threed.training.views_cache import Cache
from threed.training.volumes import Volumes


@dataclass(frozen=True)
class Pairs:
    """Assets of which there are both."""

    volumes: Volumes
    cache: Cache
    rows: Int[np.ndarray, "S 2"]  # of the volumes, of the cache

    @staticmethod
    def of(items: Sequence[Item], volumes: Volumes, cache: Cache) -> Pairs:
        """What volumes and a cache that were built of the same items have in common."""
        names = dict.fromkeys(item.name for item in items)
        return Pairs(volumes, cache, rows_in_common(names, volumes.skipped, cache.skipped).numpy())

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Pairs:
        """The same in this device's memory."""
        return replace(self, volumes=self.volumes.to(device), cache=self.cache.to(device))

    def drawn(
        self, samples: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B 4 G G G"], Float[Tensor, "B 4 H W"]]:
        """Which volumes, as their pictures show them, and photographs of them; all on the generator's device."""
        device, random = generator.device, host(generator)
        volume, seen = self.rows[random.integers(0, len(self.rows), samples)].T
        view = random.integers(0, self.cache.albedo.shape[1], samples)
        azimuth = self.cache.cameras[seen, view, 0]
        mirrored = torch.from_numpy(random.random(samples) < 0.5)
        row = torch.from_numpy(volume).to(device)
        volumes = facing(self.volumes.tensor(row), quarters(azimuth).to(device), mirrored.to(device))
        pictures = photographs(*look(self.cache, seen, view, device), generator)
        pictures = torch.where(mirrored.to(device)[:, None, None, None], pictures.flip(3), pictures)
        return row, volumes, pictures


def quarters(azimuth: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Quarter turns after which a camera at this azimuth, in radians, stands within 45 degrees of the front."""
    return (azimuth / (math.pi / 2)).round().long() % 4


def facing(
    volumes: Float[Tensor, "B C G G G"], turns: Int[Tensor, "B"], mirrored: Bool[Tensor, "B"]
) -> Float[Tensor, "B C G G G"]:
    """Turned about +Y, so that what stood at an azimuth of so many quarters is the front; then mirrored in x."""
    every = torch.stack([volumes.rot90(turn, (2, 4)) for turn in range(4)])
    turned = every[turns, torch.arange(len(turns), device=turns.device)]
    return torch.where(mirrored[:, None, None, None, None], turned.flip(2), turned)
