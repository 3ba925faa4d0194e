"""The one place that chooses a backend.

Every primitive has the same name, signature and meaning in every backend; `torch_ops` is the readable reference that
the others are tested against, values and gradients.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class HashGrid:
    """The geometry of a multi-resolution hash grid (Müller et al. 2022, arXiv 2201.05989, section 3)."""

    levels: int = 8
    features: int = 2
    log2_table: int = 15  # at most 2**log2_table entries a level
    coarsest: int = 16  # cells along an axis at the first level
    finest: int = 128  # and at the last


@dataclass(frozen=True)
class Packed:
    """Samples of R rays, ragged, one ray after the other: ray r owns samples starts[r] to starts[r + 1]."""

    starts: Int[Tensor, "R+1"]  # int64
    ray: Int[Tensor, "N"]  # int64, the ray of each sample
    near: Float[Tensor, "N"]  # each sample stands for the piece [near, far] of its ray, in metres from the origin
    far: Float[Tensor, "N"]


def ops(device: torch.device) -> ModuleType:
    """The fastest backend for tensors of this device."""
    name = "cpu_ops" if device.type == "cpu" else "torch_ops"
    return importlib.import_module(f"{__package__}.{name}")
