"""The hash encoding by tiny-cuda-nn (Müller 2021, BSD-3), in single precision, gradients as well.

Its parameters are one vector: level after level, in a level entry after entry, in an entry feature after feature, which
is a row-major `table`; what comes out is in the same order. Scales, resolutions, which levels are dense, and the hash
are those of `torch_ops.hashgrid`, which follows it; computed in single precision, a resolution could yet be another
one, so that every encoding is compared with the reference once. Entries have 1, 2, 4 or 8 features: others are filled
up with zeros, or split. Points outside the cube are clamped here; it would go on beyond.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from threed.renderers import torch_ops
from threed.renderers.ops import HashGrid
from threed.renderers.torch_ops.hashgrid import slope

__all__ = ["hash_encode", "hash_gradient"]

WIDTHS = (1, 2, 4, 8)  # features of an entry
PROBES = 64  # points at which an encoding is compared with the reference
ALIKE = 0.01  # of table values of about 1; another rule changes everything, another rounding far less


def hash_encode(x: Float[Tensor, "N 3"], table: Float[Tensor, "P F"], grid: HashGrid) -> Float[Tensor, "N LF"]:
    """The F features of each of the L levels, side by side; trilinear, and differentiable twice."""
    if not len(x):
        return torch_ops.hash_encode(x, table, grid)
    parts = []
    for part in table.split(WIDTHS[-1], dim=1):
        features = part.shape[1]
        width = next(width for width in WIDTHS if width >= features)
        whole = functional.pad(part, (0, width - features))
        encoded = _encoded(_encoding(grid, width, x.device), x, whole)
        parts.append(encoded.unflatten(1, (grid.levels, width))[..., :features])
    return torch.cat(parts, dim=-1).flatten(1)


def hash_gradient(
    x: Float[Tensor, "N 3"], table: Float[Tensor, "P F"], v: Float[Tensor, "N LF"], grid: HashGrid
) -> Float[Tensor, "N 3"]:
    """J(x)^T v with J the slope of `hash_encode`; differentiable in `table` and `v`, a constant in x."""
    return slope(hash_encode, x, table, v, grid)


def _encoded(encoding: Any, x: Float[Tensor, "N 3"], table: Float[Tensor, "P W"]) -> Float[Tensor, "N LW"]:
    """What the library makes of a table in the place of its own parameters."""
    found: Tensor = functional_call(encoding, {"params": table.reshape(-1)}, (x.clamp(0, 1),))
    return found


@cache
def _encoding(grid: HashGrid, width: int, device: torch.device) -> Any:
    """Raises ValueError for a grid that this version of the library lays out in another way."""
    import tinycudann

    told = {
        "otype": "HashGrid",
        "n_levels": grid.levels,
        "n_features_per_level": width,
        "log2_hashmap_size": grid.log2_table,
        "base_resolution": grid.coarsest,
        "per_level_scale": (grid.finest / grid.coarsest) ** (1 / max(grid.levels - 1, 1)),
    }
    encoding = tinycudann.Encoding(3, told, dtype=torch.float32).to(device)
    if encoding.params.numel() == grid.size * width:
        generator = torch.Generator().manual_seed(0)
        x, table = (torch.rand(n, m, generator=generator).to(device) for n, m in ((PROBES, 3), (grid.size, width)))
        with torch.no_grad():
            missed = (_encoded(encoding, x, table) - torch_ops.hash_encode(x, table, grid)).abs().max()
        if missed < ALIKE:
            return encoding
    raise ValueError(f"tinycudann lays out {grid} in another way than this program; leave --backend tinycudann out")
