"""Texture look-ups on CUDA, and their gradients; `torch_ops.texture` states the conventions.

The gradients of texels are summed by atomic additions, in an order that may differ from run to run.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from threed.renderers.cuda_ops.launch import launch
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
    colours = _Texture.apply(image.texels, uv.reshape(-1, 2), level, image.sizes, wrap == "repeat")
    return colours.view(*uv.shape[:-1], image.texels.shape[1])


Sizes = tuple[tuple[int, int], ...]


class _Mipmap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, sizes: Sizes) -> Tensor:
        ctx.sizes = sizes
        out = Mipmap(image.new_empty(sum(height * width for height, width in sizes), image.shape[2]), sizes)
        out.levels[0].copy_(image)
        for finer, coarser in pairwise(out.levels):
            height, width, channels = finer.shape
            rows, columns, _ = coarser.shape
            launch("texture", "halve", columns * channels, finer, height, width, channels, coarser, rows=rows)
        return out.texels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        levels = Mipmap(gradient.clone(memory_format=torch.contiguous_format), ctx.sizes).levels
        for coarser, finer in pairwise(reversed(levels)):
            height, width, channels = finer.shape
            sizes = height, width, *coarser.shape
            launch("texture", "halve_backward", width * channels, coarser, *sizes, finer, rows=height)
        return levels[0], None


class _Texture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, texels: Tensor, uv: Tensor, lod: Tensor, sizes: Sizes, repeat: bool) -> Tensor:
        ctx.save_for_backward(texels, uv, lod)
        ctx.layout = *_layout(sizes, uv.device), len(sizes), int(repeat), texels.shape[1]
        out = texels.new_empty(len(uv), texels.shape[1])
        launch("texture", "texture", len(uv), texels, uv, lod, *ctx.layout, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad
        found = [
            torch.zeros_like(each, memory_format=torch.contiguous_format) if needed else None
            for each, needed in zip(saved, wanted, strict=False)
        ]
        launch("texture", "texture_backward", len(saved[1]), *saved, *ctx.layout, gradient, *found)
        return *found, None, None


@cache
def _layout(sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sizes and starts of the levels, moved to a device once."""
    starts = Mipmap(torch.empty(0, 1), sizes).starts
    return torch.tensor(sizes, device=device), torch.tensor(starts, device=device)
