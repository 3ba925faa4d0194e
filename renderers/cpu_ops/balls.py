"""Objects made of balls beside a picture, on the CPU, one thread an object; `torch_ops.balls` states the meaning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numba import prange
from torch import Tensor

from threed.renderers.alike import judged
from threed.renderers.camera import Cameras
from threed.renderers.cpu_ops.launch import kernel, launch
from threed.renderers.ops import Balls
from threed.renderers.torch_ops.balls import LEAST


def draw_balls(
    balls: Balls, rows: Int[Tensor, "N"], cameras: Cameras, size: int, extent: float
) -> tuple[UInt8[Tensor, "N S S 4"], Float[Tensor, "N S S"]]:
    """Every object before its own camera: sRGB and alpha, 0 or 255; and how far toward the camera from the middle."""
    pictures, toward = torch.zeros(len(rows), size, size, 4, dtype=torch.uint8), torch.zeros(len(rows), size, size)
    launch(_picture, *_arrays(balls, rows, cameras), float(extent), pictures, toward)
    return pictures, toward


def likeness(
    balls: Balls,
    rows: Int[Tensor, "N"],
    cameras: Cameras,
    rgb: Float[Tensor, "S S 3"],
    inside: Bool[Tensor, "S S"],
    extent: float,
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """How much the outlines of objects and picture overlap, and how far apart the colours are where they do."""
    found = torch.zeros(len(rows), len(cameras), 5)
    launch(_compare, *_arrays(balls, rows, cameras), rgb, inside, float(extent), found)
    return judged(found)


def _arrays(balls: Balls, rows: Int[Tensor, "N"], cameras: Cameras) -> tuple[Tensor, ...]:
    lens = torch.stack([cameras.distance, (cameras.fov_y / 2).tan()], dim=1)
    return balls.begin, balls.centre, balls.radius, balls.colour, rows, cameras.rotation.mT, lens


@kernel(parallel=True)
def _picture(
    begin: Any,
    centre: Any,
    radius: Any,
    colour: Any,
    rows: Any,
    rotation: Any,
    lens: Any,
    extent: float,
    pictures: Any,
    toward: Any,
) -> None:
    size = pictures.shape[1]
    for n in prange(len(rows)):
        low, high = begin[rows[n]], begin[rows[n] + 1]
        if low == high:
            continue
        seen = np.empty((high - low, 4), np.float32)
        nearest, whose = np.empty((size, size), np.float32), np.empty((size, size), np.int64)
        _see(centre, radius, low, high, rotation[n], lens[n], extent, seen, nearest, whose)
        for y in range(size):
            for x in range(size):
                if whose[y, x] >= 0:
                    pictures[n, y, x, :3] = colour[low + whose[y, x]]
                    pictures[n, y, x, 3] = 255
                    toward[n, y, x] = nearest[y, x]


@kernel(parallel=True)
def _compare(
    begin: Any,
    centre: Any,
    radius: Any,
    colour: Any,
    rows: Any,
    rotation: Any,
    lens: Any,
    rgb: Any,
    inside: Any,
    extent: float,
    found: Any,
) -> None:
    size = len(inside)
    for n in prange(len(rows)):
        low, high = begin[rows[n]], begin[rows[n] + 1]
        if low == high:
            continue
        seen = np.empty((high - low, 4), np.float32)
        nearest, whose = np.empty((size, size), np.float32), np.empty((size, size), np.int64)
        for k in range(len(rotation)):
            _see(centre, radius, low, high, rotation[k], lens[k], extent, seen, nearest, whose)
            for y in range(size):
                for x in range(size):
                    ball = whose[y, x]
                    if ball >= 0 and inside[y, x]:
                        found[n, k, 0] += 1
                        for c in range(3):
                            own, shown = colour[low + ball, c] / 255.0, rgb[y, x, c]
                            found[n, k, 2] += own * shown
                            found[n, k, 3] += own * own
                            found[n, k, 4] += shown * shown
                    if ball >= 0 or inside[y, x]:
                        found[n, k, 1] += 1


@kernel()
def _see(
    centre: Any,
    radius: Any,
    low: int,
    high: int,
    rotation: Any,
    lens: Any,
    extent: float,
    seen: Any,
    nearest: Any,
    whose: Any,
) -> None:
    """Which ball of an object every pixel of the frame sees, -1 for none, and how far toward the camera."""
    _project(centre, radius, low, high, rotation, lens, seen)
    _frame(seen, extent, len(whose))
    _draw(seen, nearest, whose)


@kernel()
def _project(centre: Any, radius: Any, low: int, high: int, rotation: Any, lens: Any, seen: Any) -> None:
    """Right, down and radius in half sides of the frame, and how far toward the camera."""
    for p in range(low, high):
        x, y, z = centre[p, 0], centre[p, 1], centre[p, 2]
        toward = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z
        scale = 1 / ((lens[0] - toward) * lens[1])
        seen[p - low, 0] = (rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z) * scale
        seen[p - low, 1] = -(rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z) * scale
        seen[p - low, 2] = radius[p] * scale
        seen[p - low, 3] = toward


@kernel()
def _frame(seen: Any, extent: float, size: int) -> None:
    """Into pixels, the outline in the middle and so much of the frame."""
    left, right, top, bottom = np.inf, -np.inf, np.inf, -np.inf
    for p in range(len(seen)):
        left, right = min(left, seen[p, 0] - seen[p, 2]), max(right, seen[p, 0] + seen[p, 2])
        top, bottom = min(top, seen[p, 1] - seen[p, 2]), max(bottom, seen[p, 1] + seen[p, 2])
    zoom = extent * size / max(right - left, bottom - top)
    for p in range(len(seen)):
        seen[p, 0] = (seen[p, 0] - (left + right) / 2) * zoom + size / 2
        seen[p, 1] = (seen[p, 1] - (top + bottom) / 2) * zoom + size / 2
        seen[p, 2] = max(seen[p, 2] * zoom, LEAST)


@kernel()
def _draw(seen: Any, nearest: Any, whose: Any) -> None:
    """Which ball every pixel's middle sees, -1 for none."""
    size = len(whose)
    nearest[:] = -np.inf
    whose[:] = -1
    for p in range(len(seen)):
        x, y, r = seen[p, 0] - 0.5, seen[p, 1] - 0.5, seen[p, 2]
        for row in range(max(0, math.ceil(y - r)), min(size - 1, math.floor(y + r)) + 1):
            for column in range(max(0, math.ceil(x - r)), min(size - 1, math.floor(x + r)) + 1):
                near = (column - x) ** 2 + (row - y) ** 2 <= r * r
                if near and seen[p, 3] > nearest[row, column]:
                    nearest[row, column] = seen[p, 3]
                    whose[row, column] = p
