"""Objects made of balls, seen by cameras and compared with one picture; no gradient."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threed.renderers.camera import Cameras
from threed.renderers.ops import Balls

LEAST = 0.5  # pixels: the radius of what is smaller
DARKEST, BRIGHTEST = 0.5, 1.5  # how much light the picture may be in


def likeness(
    balls: Balls,
    rows: Int[Tensor, "N"],
    cameras: Cameras,
    rgb: Float[Tensor, "S S 3"],
    inside: Bool[Tensor, "S S"],
    extent: float,
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """How much the outlines of objects and picture overlap, and how far apart the colours are where they do.

    What a camera sees is framed: zoomed and moved until it is in the middle, and its longer side `extent` of the frame.
    A ball covers the pixels whose middles are within its disc, and the nearest ball is seen. The first result is
    intersection over union; the second the root of the mean square, in the light, between DARKEST and BRIGHTEST, that
    makes it least, and 1 where nothing overlaps.
    """
    sums = [
        _sums(balls, int(row), cameras[k : k + 1], rgb, inside, extent) for row in rows for k in range(len(cameras))
    ]
    return judged(torch.stack(sums).view(len(rows), len(cameras), 5))


def judged(sums: Float[Tensor, "N K 5"]) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Of pixels in both and in either, and over the first of products of colours, of own and of shown squares."""
    both, either, product, square, shown = sums.unbind(-1)
    light = (product / square.clamp(min=1e-6)).clamp(DARKEST, BRIGHTEST)
    apart = (shown - 2 * light * product + light * light * square).clamp(min=0) / (3 * both.clamp(min=1))
    return both / either.clamp(min=1), torch.where(both > 0, apart.sqrt(), 1.0)


def _sums(
    balls: Balls,
    row: int,
    camera: Cameras,
    rgb: Float[Tensor, "S S 3"],
    inside: Bool[Tensor, "S S"],
    extent: float,
) -> Float[Tensor, "5"]:
    mine, size = slice(int(balls.begin[row]), int(balls.begin[row + 1])), len(inside)
    if mine.start == mine.stop:
        return rgb.new_zeros(5)
    x, y, z = (balls.centre[mine] @ camera.rotation[0]).unbind(-1)
    scale = 1 / ((camera.distance - z) * (camera.fov_y / 2).tan())
    x, y, radius = x * scale, -y * scale, balls.radius[mine] * scale
    left, right, top, bottom = (x - radius).min(), (x + radius).max(), (y - radius).min(), (y + radius).max()
    zoom = extent * size / torch.maximum(right - left, bottom - top)
    x, y = (x - (left + right) / 2) * zoom + size / 2, (y - (top + bottom) / 2) * zoom + size / 2
    middles = torch.arange(size, device=x.device) + 0.5
    away = (middles[None, :, None] - x).square() + (middles[:, None, None] - y).square()
    covers = away <= (radius * zoom).clamp(min=LEAST).square()
    nearest = torch.where(covers, z, -torch.inf).argmax(-1)
    there = covers.any(-1)
    own, shown = balls.colour[mine][nearest[there & inside]] / 255, rgb[there & inside]
    counts = (there & inside).sum(), (there | inside).sum()
    return torch.stack([*counts, (own * shown).sum(), own.square().sum(), shown.square().sum()]).to(rgb)
