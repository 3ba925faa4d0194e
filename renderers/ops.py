"""The one place that chooses a backend.

Every primitive has the same name, signature and meaning in every backend; `torch_ops` is the readable reference that
the others are tested against, values and gradients.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from types import ModuleType

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class HashGrid:
    """The geometry of a multi-resolution hash grid (Müller et al. 2022, arXiv 2201.05989, section 3)."""

    levels: int = 8
    features: int = 2
    log2_table: int = 15  # at most 2**log2_table entries a level
    coarsest: int = 16  # cells along an axis at the first level
    finest: int = 128  # and at the last

    @property
    def scales(self) -> tuple[float, ...]:
        """Grid units along a side of the unit cube, level by level: geometric, less one, as in tiny-cuda-nn."""
        ratio, steps = self.finest / self.coarsest, max(self.levels - 1, 1)
        return tuple(self.coarsest * ratio ** (level / steps) - 1 for level in range(self.levels))

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Vertices along an axis, level by level."""
        return tuple(math.ceil(scale) + 1 for scale in self.scales)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Level l owns entries offsets[l] to offsets[l + 1] of the table, at most one for each vertex."""
        sizes = [min(-(-(resolution**3) // 8) * 8, 2**self.log2_table) for resolution in self.resolutions]
        return tuple(accumulate(sizes, initial=0))

    @property
    def size(self) -> int:
        """Entries of the whole table."""
        return self.offsets[-1]


@dataclass(frozen=True)
class Packed:
    """Samples of R rays, ragged, one ray after the other: ray r owns samples starts[r] to starts[r + 1]."""

    starts: Int[Tensor, "S"]  # int64, S = R + 1
    ray: Int[Tensor, "N"]  # int64, the ray of each sample
    near: Float[Tensor, "N"]  # each sample stands for the piece [near, far] of its ray, in metres from the origin
    far: Float[Tensor, "N"]

    @property
    def middle(self) -> Float[Tensor, "N"]:
        return (self.near + self.far) / 2

    def select(self, kept: Int[Tensor, "K"]) -> Packed:
        """Only the samples of these ascending indices, of the same rays."""
        starts = torch.searchsorted(kept, self.starts)
        return Packed(starts, *(each.index_select(0, kept) for each in (self.ray, self.near, self.far)))


@dataclass(frozen=True)
class Balls:
    """A objects of balls, one after the other: object a owns balls begin[a] to begin[a + 1]."""

    begin: Int[Tensor, "S"]  # int64, S = A + 1
    centre: Float[Tensor, "P 3"]  # metres
    radius: Float[Tensor, "P"]
    colour: UInt8[Tensor, "P 3"]  # display sRGB


def ops(device: torch.device) -> ModuleType:
    """The fastest backend for tensors of this device; on CUDA, with what `using` turned on in its place."""
    return _mixed(device, _turned_on) if _turned_on and device.type == EXTERNAL else own(device)


def own(device: torch.device) -> ModuleType:
    """The fastest of the project's own backends for tensors of this device."""
    return importlib.import_module(f"{__package__}.{backend(device)}")


EXTERNAL = "cuda"  # the device of the primitives by others
_turned_on: tuple[str, ...] = ()  # of the process; a run has one answer for all of its threads


@contextmanager
def using(names: Sequence[str], tell: Callable[[str], object]) -> Iterator[None]:
    """Libraries of others, see `external`, for their primitives in here; what has to be known of a licence is told.

    Raises ValueError for one that is not known, or not there.
    """
    global _turned_on
    external = importlib.import_module(f"{__package__}.external")
    for name in names:
        if name not in external.LIBRARIES:
            raise ValueError(f"unknown backend {name!r}; use one of {', '.join(external.LIBRARIES)}")
        if notice := external.LIBRARIES[name].notice:
            tell(notice)
        if reason := external.obstacle(name):
            raise ValueError(reason)
    before, _turned_on = _turned_on, tuple(names)
    try:
        yield
    finally:
        _turned_on = before


@cache
def _mixed(device: torch.device, names: tuple[str, ...]) -> ModuleType:
    """The project's own primitives, and over them those of these libraries."""
    mixed = ModuleType("+".join((backend(device), *names)))
    for module in (own(device), *(importlib.import_module(f"{__package__}.external.{name}") for name in names)):
        vars(mixed).update({name: getattr(module, name) for name in module.__all__})
    return mixed


@cache
def backend(device: torch.device) -> str:
    """Its name; warns, once, where a GPU is there and kernels cannot be compiled for it."""
    if device.type == "cpu":
        return "cpu_ops"
    if device.type == "cuda":
        reason = importlib.import_module(f"{__package__}.cuda_ops.driver").obstacle(device)
        if reason is None:
            return "cuda_ops"
        warnings.warn(f"this GPU computes with slow primitives: {reason}", stacklevel=3)
    return "torch_ops"
