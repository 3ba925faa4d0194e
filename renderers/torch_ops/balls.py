"""Objects made of balls, as cameras see them, alone and compared with one picture; no gradient.

What a camera sees is framed: zoomed and moved until it is in the middle, and its longer side `extent` of the frame. A
ball covers the pixels whose middles are within its disc, and the nearest ball is seen.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from threed.renderers.alike import compared, judged
from threed.renderers.camera import Cameras
from threed.renderers.ops import Balls

LEAST = 0.5  # pixels: the radius of what is smaller


def draw_balls(
    balls: Balls, rows: Int[Tensor, "N"], cameras: Cameras, size: int, extent: float
) -> tuple[UInt8[Tensor, "N S S 4"], Float[Tensor, "N S S"]]:
    """Every object before its own camera: sRGB and alpha, 0 or 255; and how far toward the camera from the middle.

    That of the balls' middles, in metres; 0 where nothing is.
    """
    drawn = [_drawn(balls, int(row), cameras[n : n + 1], size, extent) for n, row in enumerate(rows)]
    pictures, toward = (torch.stack(each) for each in zip(*drawn, strict=True))
    return pictures, toward


def likeness(
    balls: Balls,
    rows: Int[Tensor, "N"],
    cameras: Cameras,
    rgb: Float[Tensor, "S S 3"],
    inside: Bool[Tensor, "S S"],
    extent: float,
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """How much the outlines of objects and picture overlap, and how far apart the colours are where they do.

    As `renderers.alike` has both.
    """
    views = torch.arange(len(cameras)).repeat(len(rows))
    drawn, _ = draw_balls(balls, rows.repeat_interleave(len(cameras)), cameras[views], len(inside), extent)
    sums = compared(drawn, rgb[None], inside[None])[:, 0]
    return judged(sums.unflatten(0, (len(rows), len(cameras))))


def _drawn(
    balls: Balls, row: int, camera: Cameras, size: int, extent: float
) -> tuple[UInt8[Tensor, "S S 4"], Float[Tensor, "S S"]]:
    mine = slice(int(balls.begin[row]), int(balls.begin[row + 1]))
    picture, toward = balls.colour.new_zeros(size, size, 4), balls.centre.new_zeros(size, size)
    if mine.start == mine.stop:
        return picture, toward
    x, y, z = (balls.centre[mine] @ camera.rotation[0]).unbind(-1)
    scale = 1 / ((camera.distance - z) * (camera.fov_y / 2).tan())
    x, y, radius = x * scale, -y * scale, balls.radius[mine] * scale
    left, right, top, bottom = (x - radius).min(), (x + radius).max(), (y - radius).min(), (y + radius).max()
    zoom = extent * size / torch.maximum(right - left, bottom - top)
    x, y = (x - (left + right) / 2) * zoom + size / 2, (y - (top + bottom) / 2) * zoom + size / 2
    middles = torch.arange(size, device=x.device) + 0.5
    away = (middles[None, :, None] - x).square() + (middles[:, None, None] - y).square()
    covers = away <= (radius * zoom).clamp(min=LEAST).square()
    nearest, there = torch.where(covers, z, -torch.inf).argmax(-1), covers.any(-1)
    picture[there] = torch.cat([balls.colour[mine], balls.colour.new_full((len(x), 1), 255)], dim=1)[nearest[there]]
    return picture, torch.where(there, z[nearest], toward)
