"""Exemplars: the volumes that a lift was trained on, by heart, small enough to travel with it.

A regression answers with the middle of what may be; what it was shown it can name. Distances are kept near surfaces
alone, in sevenths of a voxel, and colours at the voxels of surfaces alone, 5 bits a channel; both streams lie
compressed (LZMA) beside the lift's weights. Frames are those of `renderers/voxels.py`.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8, UInt8
from safetensors.torch import load_file
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from threed.distill.folder import readable
from threed.renderers.ops import Balls
from threed.renderers.voxels import TRUNCATION, Voxels

LEVELS = 7  # of distance, a voxel; kept up to a voxel away
SHADES = 5  # bits of a colour's channel
PLUMP = 0.3  # voxels: what the balls of voxels have beyond the surface, to close the gaps between them
DEEPEST = 0.5  # voxels: what they have beneath it, at most
MOST = 5_000  # assets; of more, so many are kept
LARGEST = 64  # voxels a side
ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)  # of every byte
FILE = "exemplars.safetensors"
MEMORY = 1 << 27  # bytes that LZMA may need


@dataclass(frozen=True)
class Exemplars:
    """A objects as small numbers: what `load` reads and `write` writes."""

    level: Int8[np.ndarray, "A G G G"]  # from -LEVELS to LEVELS - 1, negative inside
    shade: UInt8[np.ndarray, "P 3"]  # of the voxels of `surface`, in their order

    @staticmethod
    def of(volumes: Sequence[Voxels]) -> Exemplars:
        """Those that are `chosen`."""
        kept = [volumes[row] for row in chosen(len(volumes))]
        level = np.stack([(each.distance * LEVELS).floor().clamp(-LEVELS, LEVELS - 1).char().numpy() for each in kept])
        colours = [
            (each.colour * 255).round().byte().numpy()[skin] for each, skin in zip(kept, surfaces(level), strict=True)
        ]
        return Exemplars(level, np.concatenate(colours) >> (8 - SHADES))

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, row: int) -> Voxels:
        """Beyond a voxel from the surface, the distance is that of the nearest voxel that is not, and the way to it."""
        level, surface = self.level[row], self.surface[row]
        near = (level > -LEVELS) & (level < LEVELS - 1)
        way, voxel = distance_transform_edt(~(near if near.any() else surface), return_indices=True)
        known = (level[tuple(voxel)] + 0.5) / LEVELS
        size = np.minimum(np.abs(known) + way, TRUNCATION)
        shades = np.zeros((*level.shape, 3), np.float32)
        shades[surface] = (self.shade[self.begin[row] : self.begin[row + 1]] + 0.5) / (1 << SHADES)
        nearest = distance_transform_edt(~surface, return_distances=False, return_indices=True)
        return Voxels(
            torch.from_numpy(np.where(level < 0, -size, size)).float(), torch.from_numpy(shades[tuple(nearest)])
        )

    @cached_property
    def surface(self) -> Bool[np.ndarray, "A G G G"]:
        return surfaces(self.level)

    @cached_property
    def begin(self) -> Int[np.ndarray, "N"]:
        """Where the shades of every object begin."""
        return np.concatenate([[0], self.surface.reshape(len(self), -1).sum(1).cumsum()])

    @cached_property
    def bits(self) -> UInt8[np.ndarray, "A W"]:
        """Where there is something, eight voxels a byte."""
        return packed(self.level < 0)

    def overlap(self, occupied: Bool[Tensor, "G G G"]) -> Float[Tensor, "A"]:
        """Intersection over union with a volume."""
        return overlaps(self.bits, packed(occupied.numpy()[None]))[:, 0]

    def turned(self, row: int, turns: int) -> Bool[np.ndarray, "G G G"]:
        """Where there is something, when it is turned by so many quarters."""
        return np.rot90(self.level[row] < 0, turns, (0, 2))

    @cached_property
    def balls(self) -> Balls:
        """Of the voxels of surfaces, every object at radius 1, about the middle of its box."""
        row, *place = np.nonzero(self.surface)
        side = self.level.shape[-1]
        centre = (np.stack(place, axis=1) - (side - 1) / 2).astype(np.float32)  # voxels
        radius = np.minimum(-(self.level[self.surface] + 0.5) / LEVELS, DEEPEST).astype(np.float32) + PLUMP
        farthest = np.zeros(len(self), np.float32)
        np.maximum.at(farthest, row, np.linalg.norm(centre, axis=1) + radius)
        scale = 1 / farthest[row]
        return Balls(
            torch.from_numpy(self.begin),
            torch.from_numpy(centre * scale[:, None]),
            torch.from_numpy(radius * scale),
            torch.from_numpy((self.shade << (8 - SHADES)) + (1 << (7 - SHADES))),
        )


def packed(occupied: Bool[np.ndarray, "A G G G"]) -> UInt8[np.ndarray, "A W"]:
    """Eight voxels a byte."""
    return np.packbits(occupied.reshape(len(occupied), -1), axis=1)


def overlaps(bits: UInt8[np.ndarray, "A W"], others: UInt8[np.ndarray, "B W"]) -> Float[Tensor, "A B"]:
    """Intersections over unions of all volumes with all others."""
    both, either = (
        np.stack([ONES[join(bits, other)].sum(1, dtype=np.int64) for other in others], axis=1)
        for join in (np.bitwise_and, np.bitwise_or)
    )
    return torch.from_numpy(both / np.maximum(either, 1)).float()


def chosen(count: int) -> range:
    """Which of so many volumes become exemplars: of more than MOST, so many at equal steps."""
    return range(0, count, -(-count // MOST))


def surfaces(level: Int8[np.ndarray, "A G G G"]) -> Bool[np.ndarray, "A G G G"]:
    """Voxels inside, one of whose six neighbours is not, or is beyond the lattice."""
    inside = np.pad(level < 0, ((0, 0), (1, 1), (1, 1), (1, 1)))
    middle = inside[:, 1:-1, 1:-1, 1:-1]
    deep = middle.copy()
    for axis in (1, 2, 3):
        for step in (0, 2):
            there = [slice(None), *[slice(1, -1)] * 3]
            there[axis] = slice(step, step + middle.shape[axis])
            deep &= inside[tuple(there)]
    return middle & ~deep


def load(folder: Path) -> Exemplars | None:
    """Those of a prior's folder; None where it has none. Raises UnreadablePrior when they are at fault."""
    if not (path := folder / "lift" / FILE).exists():
        return None
    with readable(path):
        stored = load_file(path)
        count, side = (int(number) for number in stored["shape"])
        if not (1 <= count <= MOST and 8 <= side <= LARGEST):
            raise ValueError(f"it has {count} exemplars of {side} voxels a side; at most {MOST} of {LARGEST} are read")
        level = opened(stored["level"], count * side**3).view(np.int8).reshape(count, side, side, side)
        found = Exemplars(level, opened(stored["shade"], 3 * level.size).reshape(-1, 3))
        if len(found.shade) != found.begin[-1]:
            raise ValueError(f"it has {len(found.shade)} colours for {found.begin[-1]} voxels of surfaces")
        return found


def opened(stream: UInt8[Tensor, "B"], most: int) -> UInt8[np.ndarray, "S"]:
    """The bytes of a compressed stream. Raises ValueError where it is broken or they are too many."""
    try:
        found = lzma.LZMADecompressor(memlimit=MEMORY).decompress(stream.numpy().tobytes(), most + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"its stream is broken ({error})") from error
    if len(found) > most:
        raise ValueError(f"its stream has more than the {most} bytes that were told")
    return np.frombuffer(found, np.uint8)
