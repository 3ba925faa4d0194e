"""Texture look-ups with numba, and their gradients; `torch_ops.texture` states the conventions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from threed.renderers.cpu_ops.launch import kernel, launch
from threed.renderers.torch_ops.texture import Mipmap, halvings, single_level


def mipmap(image: Float[Tensor, "Ht Wt C"]) -> Mipmap:
    """Level by level half the size, rounded down, to a single texel; differentiable.

    A texel is the mean of the area that it covers in the level before (a box filter): of 2 x 2 texels, and along an odd
    size of two and a bit (Guthe and Heckbert 2005), so that every level has the mean of the picture.
    """
    sizes = halvings(*image.shape[:2])
    return Mipmap(_Mipmap.apply(image, sizes), sizes)


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
    level = uv.new_zeros(()) if lod is None else lod
    level = level.expand(uv.shape[:-1]).reshape(-1)
    colours = _Texture.apply(image.texels, uv.reshape(-1, 2), level, image, wrap == "repeat")
    return colours.view(*uv.shape[:-1], image.texels.shape[1])


class _Mipmap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, sizes: tuple[tuple[int, int], ...]) -> Tensor:
        ctx.sizes = sizes
        out = Mipmap(image.new_empty(sum(height * width for height, width in sizes), image.shape[2]), sizes)
        out.levels[0].copy_(image)
        for finer, coarser in pairwise(out.levels):
            launch(_halve, finer, coarser)
        return out.texels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        levels = Mipmap(gradient.clone(memory_format=torch.contiguous_format), ctx.sizes).levels
        for coarser, finer in pairwise(reversed(levels)):
            launch(_halve_backward, coarser, finer)
        return levels[0], None


class _Texture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, texels: Tensor, uv: Tensor, lod: Tensor, image: Mipmap, repeat: bool) -> Tensor:
        ctx.save_for_backward(texels, uv, lod)
        ctx.layout = torch.tensor(image.sizes), torch.tensor(image.starts), repeat
        out = texels.new_empty(len(uv), texels.shape[1])
        launch(_texture, texels, uv, lod, *ctx.layout, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        texels, uv, lod = ctx.saved_tensors
        to_texels = to_uv = to_lod = None
        if ctx.needs_input_grad[0]:
            to_texels = torch.zeros_like(texels, memory_format=torch.contiguous_format)
            launch(_spread, uv, lod, *ctx.layout, gradient, to_texels)
        if any(ctx.needs_input_grad[1:3]):
            to_uv = torch.zeros_like(uv, memory_format=torch.contiguous_format)
            to_lod = torch.zeros_like(lod, memory_format=torch.contiguous_format)
            launch(_slopes, texels, uv, lod, *ctx.layout, gradient, to_uv, to_lod)
        return to_texels, to_uv, to_lod, None, None


@kernel(parallel=True)
def _halve(image, out):
    """Fill the level after `image`: first mix its rows, then the columns."""
    (height, width, channels), (rows, columns, _) = image.shape, out.shape
    real = image.dtype.type
    for row in prange(rows):
        line = np.zeros(width * channels, image.dtype)
        for i in range(_taps(height)):
            line += real(_share(row, i, height)) * image[2 * row + i].reshape(-1)
        texels = line.reshape(width, channels)
        for x in range(columns):
            for c in range(channels):
                total = real(0)
                for j in range(_taps(width)):
                    total += real(_share(x, j, width)) * texels[2 * x + j, c]
                out[row, x, c] = total


@kernel(parallel=True)
def _halve_backward(gradient, to_image):
    """Add to the gradient of a level what it is through the next one."""
    (height, width, channels), (rows, columns, _) = to_image.shape, gradient.shape
    real = gradient.dtype.type
    for y in prange(height):
        line = np.zeros((columns, channels), gradient.dtype)
        for i in range(y % 2, min(_taps(height), y + 1), 2):
            row = (y - i) // 2
            if row < rows:
                share = real(_share(row, i, height))
                for x in range(columns):
                    for c in range(channels):
                        line[x, c] += share * gradient[row, x, c]
        for x in range(columns):
            for j in range(_taps(width)):
                share = real(_share(x, j, width))
                for c in range(channels):
                    to_image[y, 2 * x + j, c] += share * line[x, c]


@kernel()
def _taps(size):
    """How many texels of an axis of this size one of the next level covers, all or in part."""
    return 1 if size == 1 else 2 + size % 2


@kernel()
def _share(texel, tap, size):
    """Which part of a texel of the next level is the texel 2 texel + tap."""
    half = size // 2
    if size % 2 == 0:
        return 0.5
    if size == 1:
        return 1.0
    return (half - texel if tap == 0 else half if tap == 1 else texel + 1) / size


@kernel(parallel=True)
def _texture(texels, uv, lod, sizes, starts, repeat, out):
    one = lod.dtype.type(1)
    for n in prange(len(uv)):
        for c in range(out.shape[1]):
            out[n, c] = 0
        finer, coarser, share = _levels(lod, n, len(sizes))
        for level in range(finer, coarser + 1):
            weight = share if level > finer else one - share
            p, q, r, s, x, y = _corners(uv, n, sizes, starts, level, repeat)
            for c in range(out.shape[1]):
                out[n, c] += weight * _mixed(texels[p, c], texels[q, c], texels[r, c], texels[s, c], x, y)


@kernel()
def _spread(uv, lod, sizes, starts, repeat, gradient, to_texels):
    """The gradient of the texels; look-ups share texels, hence one after the other."""
    one = lod.dtype.type(1)
    for n in range(len(uv)):
        finer, coarser, share = _levels(lod, n, len(sizes))
        for level in range(finer, coarser + 1):
            weight = share if level > finer else one - share
            p, q, r, s, x, y = _corners(uv, n, sizes, starts, level, repeat)
            above, below = weight * (one - y), weight * y
            for c in range(gradient.shape[1]):
                g = gradient[n, c]
                to_texels[p, c] += above * (one - x) * g
                to_texels[q, c] += above * x * g
                to_texels[r, c] += below * (one - x) * g
                to_texels[s, c] += below * x * g


@kernel(parallel=True)
def _slopes(texels, uv, lod, sizes, starts, repeat, gradient, to_uv, to_lod):
    """Add the gradient of where and at which level is looked."""
    real = uv.dtype.type
    for n in prange(len(uv)):
        finer, coarser, share = _levels(lod, n, len(sizes))
        for level in range(finer, coarser + 1):
            weight = share if level > finer else real(1) - share
            p, q, r, s, x, y = _corners(uv, n, sizes, starts, level, repeat)
            value = across = down = real(0)
            for c in range(gradient.shape[1]):
                g, right, below = gradient[n, c], texels[q, c] - texels[p, c], texels[r, c] - texels[p, c]
                twist = texels[s, c] - texels[r, c] - right
                value += g * _mixed(texels[p, c], texels[q, c], texels[r, c], texels[s, c], x, y)
                across += g * (right + y * twist)
                down += g * (below + x * twist)
            to_uv[n, 0] += weight * real(sizes[level, 1]) * across
            to_uv[n, 1] += weight * real(sizes[level, 0]) * down
            if coarser > finer:
                to_lod[n] += value if level > finer else -value


@kernel()
def _levels(lod, n, count):
    """The two levels between which a look-up lies, and the share of the coarser; beyond the ends they are one."""
    real = lod.dtype.type
    if not lod[n] > 0:  # a lod that is no number, too
        return 0, 0, real(0)
    if lod[n] >= count - 1:
        return count - 1, count - 1, real(0)
    finer = int(lod[n])
    return finer, finer + 1, lod[n] - real(finer)


@kernel()
def _corners(uv, n, sizes, starts, level, repeat):
    """The texels around a place, upper left first, lower right last, and how far from the first it is to it."""
    height, width, real = sizes[level, 0], sizes[level, 1], uv.dtype.type
    x, y = uv[n, 0] * real(width) - real(0.5), uv[n, 1] * real(height) - real(0.5)
    left, top = np.floor(x), np.floor(y)
    first, second = _inside(int(left), width, repeat), _inside(int(left) + 1, width, repeat)
    upper = starts[level] + _inside(int(top), height, repeat) * width
    lower = starts[level] + _inside(int(top) + 1, height, repeat) * width
    p, q, r, s = upper + first, upper + second, lower + first, lower + second
    return np.uintp(p), np.uintp(q), np.uintp(r), np.uintp(s), x - left, y - top


@kernel()
def _inside(texel, size, repeat):
    if 0 <= texel < size:
        return texel
    return texel % size if repeat else min(max(texel, 0), size - 1)


@kernel()
def _mixed(p, q, r, s, x, y):
    upper, lower = p + x * (q - p), r + x * (s - r)
    return upper + y * (lower - upper)
