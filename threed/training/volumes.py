"""The voxels of every asset of a collection, looked at once and kept on disk.

Arrays, a row an asset: `distance.npy` (G G G), int8, in steps of TRUNCATION / 127, and `colour.npy` (G G G 3), uint8;
axes, frame and colours are those of `renderers.voxels`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, overload

import numpy as np
import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from threed.log import Log
from threed.renderers.voxels import TRUNCATION, Voxels, voxelise
from threed.training import cache
from threed.training.cache import FEWEST
from threed.training.collection import Item

STEPS = 127  # of a distance, from the surface to TRUNCATION


@dataclass(frozen=True)
class Lattice:
    """How an asset is cut into voxels; changing any of it does all of it anew."""

    stage: ClassVar[str] = "voxels"

    resolution: int = 32  # voxels a side
    most_triangles: int = 500_000
    seed: int = 0

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        shape = (self.resolution,) * 3
        return {"distance": ("int8", shape), "colour": ("uint8", (*shape, 3))}

    def rows(self, path: Path, place: int) -> tuple[np.ndarray, ...]:
        del place  # all are looked at alike
        voxels = solid(path, self)
        distance = (voxels.distance * (STEPS / TRUNCATION)).round().char()
        return distance.numpy(), (voxels.colour * 255).round().byte().numpy()


@dataclass(frozen=True)
class Volumes(Sequence[Voxels]):
    """The voxels of A assets, read from the disk as they are asked for."""

    captions: tuple[tuple[str, ...], ...]  # of every asset at least one
    distance: Int8[Tensor, "A G G G"]
    colour: UInt8[Tensor, "A G G G 3"]  # display sRGB
    skipped: dict[str, str]  # the names of assets that cannot be used, and why

    def __len__(self) -> int:
        return len(self.captions)

    @overload
    def __getitem__(self, index: int) -> Voxels: ...

    @overload
    def __getitem__(self, index: slice) -> list[Voxels]: ...

    def __getitem__(self, index: int | slice) -> Voxels | list[Voxels]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return Voxels(self.distance[index].float() * (TRUNCATION / STEPS), self.colour[index].float() / 255)

    def __iter__(self) -> Iterator[Voxels]:
        return (self[place] for place in range(len(self)))

    def tensor(self, rows: Int[Tensor, "B"]) -> Float[Tensor, "B 4 G G G"]:
        """`distill.start.volume_of` of many."""
        distance, colour = self.distance[rows].float() / STEPS, self.colour[rows].float() / 127.5 - 1
        return torch.cat([distance[:, None], colour.movedim(-1, 1)], dim=1)

    def to(self, device: torch.device | str) -> Volumes:
        """The same in this device's memory."""
        return replace(self, distance=self.distance.to(device), colour=self.colour.to(device))


def build(
    items: Iterable[Item],
    folder: Path,
    log: Log,
    lattice: Lattice | None = None,
    workers: int | None = None,
    fewest: int = FEWEST,
) -> Volumes:
    """`cache.build` of voxels."""
    found = cache.build(items, folder, log, lattice or Lattice(), workers, fewest)
    return Volumes(found.captions, skipped=found.skipped, **found.arrays)


def solid(path: Path, lattice: Lattice) -> Voxels:
    """The voxels of a file, some of them inside; raises ValueError for files that are broken, empty or too large."""
    asset = cache.sound(path, lattice.most_triangles)
    try:
        voxels = voxelise(asset, lattice.resolution, lattice.seed)
    except Exception as error:  # one of thousands of files shall not end the work on all others
        raise ValueError(f"{str(path)!r} cannot be cut into voxels ({error}); export it again") from error
    if not voxels.occupied.any():
        raise ValueError(f"{str(path)!r} is too thin for voxels; make it thicker, or export it again")
    return voxels
