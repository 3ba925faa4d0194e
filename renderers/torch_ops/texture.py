"""Texture look-ups, bilinear in a picture and linear between smaller copies of it: the readable reference.

In texture coordinates u runs right and v down, texel centres lie at +0.5. Level of detail l is for look-ups that are
2^l texels apart (Williams 1983, "Pyramidal parametrics").
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Mipmap:
    """A picture and smaller ones that stand for it seen from afar; level l owns texels starts[l] to starts[l + 1]."""

    texels: Float[Tensor, "N C"]  # row by row, level by level
    sizes: tuple[tuple[int, int], ...]  # rows and columns of the levels

    @property
    def starts(self) -> tuple[int, ...]:
        return tuple(accumulate((height * width for height, width in self.sizes), initial=0))

    @property
    def levels(self) -> list[Float[Tensor, "_ _ C"]]:
        areas = [height * width for height, width in self.sizes]
        return [level.unflatten(0, size) for level, size in zip(self.texels.split(areas), self.sizes, strict=True)]


def mipmap(image: Float[Tensor, "Ht Wt C"]) -> Mipmap:
    """Level by level half the size, rounded down, to a single texel; differentiable.

    A texel is the mean of the area that it covers in the level before (a box filter): of 2 x 2 texels, and along an odd
    size of two and a bit (Guthe and Heckbert 2005), so that every level has the mean of the picture.
    """
    sizes = halvings(*image.shape[:2])
    levels = [image]
    for _ in sizes[1:]:
        levels.append(_halved(_halved(levels[-1]).transpose(0, 1)).transpose(0, 1))
    return Mipmap(torch.cat([level.flatten(0, 1) for level in levels]), sizes)


def texture(
    image: Float[Tensor, "Ht Wt C"] | Mipmap,
    uv: Float[Tensor, "*P 2"],
    wrap: Literal["clamp", "repeat"] = "clamp",
    lod: Float[Tensor, "*#P"] | None = None,
) -> Float[Tensor, "*P C"]:
    """Bilinear look-up, in the picture itself or, at a level of detail, in its mipmap: trilinear.

    Levels below 0 are the picture, those above the last the last. Differentiable to the picture, `uv` and `lod`. Who
    looks up the same picture often hands on its mipmap.
    """
    if isinstance(image, Tensor):
        image = single_level(image) if lod is None else mipmap(image)
    if lod is None:
        return _bilinear(image, uv.new_zeros(uv.shape[:-1]).long(), uv, wrap)
    last = len(image.sizes) - 1
    level = torch.where(lod > 0, lod, 0).clamp(max=last).expand(uv.shape[:-1])
    finer = level.detach().floor().long()
    near, far = (_bilinear(image, each, uv, wrap) for each in (finer, (finer + 1).clamp(max=last)))
    return torch.lerp(near, far, (level - finer)[..., None])


@torch.no_grad()
def level_of_detail(derivatives: Float[Tensor, "*P 2 2"], height: int, width: int) -> Float[Tensor, "*P"]:
    """Where neighbouring pixels are one texel of that level apart, along the direction in which they are farthest.

    `derivatives` are d(u, v) / d(x, y), of texture coordinates by pixel; the footprint of a pixel is the ellipse into
    which they take a circle (Heckbert 1989), and 2^lod its longer axis in texels. Without a gradient.
    """
    s, t = derivatives[..., 0, :] * width, derivatives[..., 1, :] * height
    across, down = (s.square() + t.square()).unbind(-1)
    longer = across + down + torch.hypot(across - down, 2 * (s.prod(-1) + t.prod(-1)))
    return (longer / 2).clamp(min=torch.finfo(longer.dtype).tiny).log2() / 2


def halvings(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """The sizes of all levels of a mipmap."""
    count = max(height, width).bit_length()
    return tuple((max(height >> level, 1), max(width >> level, 1)) for level in range(count))


def single_level(image: Float[Tensor, "Ht Wt C"]) -> Mipmap:
    """A picture without smaller ones."""
    height, width = image.shape[:2]
    return Mipmap(image.flatten(0, 1), ((height, width),))


def _halved(image: Float[Tensor, "H W C"]) -> Float[Tensor, "h W C"]:
    """Half the rows; an only one stays."""
    height = len(image)
    if height == 1:
        return image
    half, row = height // 2, torch.arange(height // 2).to(image)
    if height % 2:
        shares = torch.stack([half - row, torch.full_like(row, half), row + 1]) / height
    else:
        shares = image.new_full((2, half), 0.5)
    return torch.einsum("rwct,tr->rwc", image.unfold(0, len(shares), 2), shares)


def _bilinear(
    image: Mipmap, level: Int[Tensor, "*P"], uv: Float[Tensor, "*P 2"], wrap: Literal["clamp", "repeat"]
) -> Float[Tensor, "*P C"]:
    size, start = (torch.tensor(each, device=uv.device)[level] for each in (image.sizes, image.starts))
    height, width = size.unbind(-1)
    x, y = (uv * size.flip(-1) - 0.5).unbind(-1)
    left, top = x.floor(), y.floor()

    def index(texel: Tensor, size: Tensor) -> Tensor:
        texel = texel.long()
        return texel.remainder(size) if wrap == "repeat" else texel.clamp(min=0).minimum(size - 1)

    first, second = start + index(left, width), start + index(left + 1, width)
    upper, lower = (
        torch.lerp(image.texels[row * width + first], image.texels[row * width + second], (x - left)[..., None])
        for row in (index(top, height), index(top + 1, height))
    )
    return torch.lerp(upper, lower, (y - top)[..., None])
