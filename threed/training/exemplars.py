"""The file of exemplars that goes with a lift."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors.torch import save
from torch import Tensor

from threed import disk
from threed.distill.exemplars import FILE, Exemplars

PRESET = 9  # of LZMA


def write(folder: Path, exemplars: Exemplars) -> None:
    """Put them beside the lift in a prior's folder. Raises OSError."""
    tensors = {
        "level": compressed(exemplars.level),
        "shade": compressed(exemplars.shade),
        "shape": torch.tensor(exemplars.level.shape[:2], dtype=torch.int64),
    }
    disk.write(folder / "lift" / FILE, save(tensors, {"format": "pt"}))


def compressed(array: np.ndarray) -> UInt8[Tensor, "B"]:
    return torch.frombuffer(bytearray(lzma.compress(array.tobytes(), preset=PRESET)), dtype=torch.uint8)
