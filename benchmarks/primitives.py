"""The primitives of volume rendering and of balls: numba or CUDA against the PyTorch reference, and memory's limit.

    python benchmarks/primitives.py [cuda]

The floor of the hash grid is one random read and one random addition of a table entry for every corner of every cell,
and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numba
import numpy as np
import torch
from timing import kept, timed, told
from torch import Tensor

from threed.renderers import torch_ops
from threed.renderers.camera import orbit
from threed.renderers.ops import Balls, HashGrid, ops

POINTS, ROUNDS = 2**17, 7
GRID = HashGrid(levels=8, features=2, log2_table=15)
DEVICE = torch.device(*sys.argv[1:2] or ["cpu"])
OURS = ops(DEVICE)
NAMES = {OURS: "cuda" if DEVICE.type == "cuda" else "numba", torch_ops: "torch"}


@numba.njit(parallel=True, fastmath=True)
def _read(table: np.ndarray, entries: np.ndarray, sums: np.ndarray) -> None:
    for level in numba.prange(len(entries)):
        first, second = np.float32(0), np.float32(0)
        for entry in entries[level]:
            first += table[level, entry, 0]
            second += table[level, entry, 1]
        sums[level] = first + second


@numba.njit(parallel=True)
def _add(table: np.ndarray, entries: np.ndarray) -> None:
    for level in numba.prange(len(entries)):
        for entry in entries[level]:
            table[level, entry, 0] += np.float32(1)
            table[level, entry, 1] += np.float32(1)


def hash_grid(generator: torch.Generator) -> dict[str, Callable[[], object]]:
    x = torch.rand(POINTS, 3, generator=generator).to(DEVICE)
    table = torch.rand(GRID.size, GRID.features, generator=generator).to(DEVICE).requires_grad_()
    g = torch.rand(POINTS, GRID.levels * GRID.features, generator=generator).to(DEVICE)
    entries = torch.randint(2**GRID.log2_table, (GRID.levels, 8 * POINTS), generator=generator)
    tables = np.zeros((GRID.levels, 2**GRID.log2_table, GRID.features), np.float32)
    flat = (entries + torch.arange(GRID.levels)[:, None] * 2**GRID.log2_table).reshape(-1).to(DEVICE)

    def floor() -> None:
        if DEVICE.type == "cpu":
            _read(tables, entries.numpy(), np.zeros(GRID.levels, np.float32))
            _add(tables, entries.numpy())
        else:  # writes what it reads, and reads what it adds
            every = torch.zeros(tables.size // GRID.features, GRID.features, device=DEVICE)
            every.index_add_(0, flat, every.index_select(0, flat))

    def both_ways(backend: object) -> Callable[[], object]:
        return lambda: torch.autograd.grad(backend.hash_encode(x, table, GRID), table, g)

    return {
        "hash grid / floor": floor,
        **{f"hash grid / {name}": both_ways(backend) for backend, name in NAMES.items()},
    }


def normals(generator: torch.Generator) -> dict[str, Callable[[], object]]:
    """Density and trainable normals of a hash grid with a linear head."""
    x = torch.rand(POINTS, 3, generator=generator).to(DEVICE)
    table = torch.rand(GRID.size, GRID.features, generator=generator).to(DEVICE).requires_grad_()
    head = torch.rand(GRID.levels * GRID.features, generator=generator).to(DEVICE).requires_grad_()
    offsets = torch.cat([torch.eye(3), -torch.eye(3)]).to(DEVICE) * 1e-3

    def density(points: Tensor) -> Tensor:
        return torch.nn.functional.softplus(OURS.hash_encode(points, table, GRID) @ head)

    def analytic() -> object:
        logit = OURS.hash_encode(x, table, GRID) @ head
        slope = OURS.hash_gradient(x, table, torch.sigmoid(logit)[:, None] * head, GRID)
        return torch.autograd.grad(torch.nn.functional.softplus(logit).sum() + slope.square().sum(), (table, head))

    def differences() -> object:
        taps = density((x[None] + offsets[:, None]).reshape(-1, 3)).reshape(2, 3, -1)
        slope = (taps[0] - taps[1]) / 2e-3
        return torch.autograd.grad(density(x).sum() + slope.square().sum(), (table, head))

    return {"normals / analytic": analytic, "normals / six taps": differences}


def rays(generator: torch.Generator) -> dict[str, Callable[[], object]]:
    """Four views of 64 x 64 pixels, 64 steps along the cube, the ball in it occupied."""
    origins, directions = (each.reshape(-1, 3) for each in orbit(4).to(DEVICE).rays(64, 64))
    axis = torch.linspace(-1, 1, 48, device=DEVICE)
    occupied = torch.cartesian_prod(axis, axis, axis).norm(dim=-1).reshape(48, 48, 48) < 1
    jitter = torch.rand(len(origins), generator=generator).to(DEVICE)
    packed = OURS.march(origins, directions, occupied, 1.0, 2 / 64, jitter)
    density = (torch.rand(len(packed.ray), generator=generator) * 5).to(DEVICE).requires_grad_()
    values = torch.rand(len(packed.ray), 6, generator=generator).to(DEVICE).requires_grad_()

    def march(backend: object) -> Callable[[], object]:
        return lambda: backend.march(origins, directions, occupied, 1.0, 2 / 64, jitter)

    def composite(backend: object) -> Callable[[], object]:
        def both_ways() -> object:
            accumulated, alpha, depth, _ = backend.composite(density, values, packed)
            return torch.autograd.grad(accumulated.sum() + alpha.sum() + depth.sum(), (density, values))

        return both_ways

    return {
        f"{what.__name__} / {name}": what(backend) for what in (march, composite) for backend, name in NAMES.items()
    }


def balls(generator: torch.Generator) -> dict[str, Callable[[], object]]:
    """Sixteen objects of 700 balls from eight cameras, 40 x 40 pixels, as a picture is compared with exemplars."""
    objects, parts, size, extent = 16, 700, 40, 0.78
    centre = 0.6 * (2 * torch.rand(objects * parts, 3, generator=generator) - 1)
    colour = torch.randint(0, 256, centre.shape, generator=generator, dtype=torch.uint8)
    begin, radius = torch.arange(objects + 1) * parts, torch.full((len(centre),), 0.04)
    things = Balls(*(each.to(DEVICE) for each in (begin, centre, radius, colour)))
    rows, cameras = torch.arange(objects, device=DEVICE), orbit(8).to(DEVICE)
    rgb = torch.rand(size, size, 3, generator=generator).to(DEVICE)
    inside = torch.rand(size, size, generator=generator).to(DEVICE) < 0.5
    every = torch.arange(8, device=DEVICE).repeat(objects)

    def draw_balls(backend: object) -> Callable[[], object]:
        return lambda: backend.draw_balls(things, rows.repeat_interleave(8), cameras[every], size, extent)

    def likeness(backend: object) -> Callable[[], object]:
        return lambda: backend.likeness(things, rows, cameras, rgb, inside, extent)

    whats = (draw_balls, likeness)
    return {f"{what.__name__} / {name}": what(backend) for what in whats for backend, name in NAMES.items()}


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    tasks = hash_grid(generator) | normals(generator) | rays(generator) | balls(generator)
    seconds = timed(tasks, ROUNDS)
    best = {name.split(" / ")[0]: name for name in reversed(seconds) if name.endswith((NAMES[OURS], "analytic"))}
    rows = told(seconds, lambda name: best[name.split(" / ")[0]], f"{POINTS} points, {ROUNDS} rounds")
    kept(
        "primitives" if DEVICE.type == "cpu" else f"primitives-{DEVICE.type}",
        {"points": POINTS, "rounds": ROUNDS, "seconds": rows},
    )


if __name__ == "__main__":
    main()
