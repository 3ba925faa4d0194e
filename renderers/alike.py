"""How much drawings are like pictures: how much their outlines overlap, and how far apart their colours are."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

DARKEST, BRIGHTEST = 0.5, 1.5  # how much light a picture may be in


def compared(
    drawn: UInt8[Tensor, "N S S 4"], rgb: Float[Tensor, "M S S 3"], inside: Bool[Tensor, "M S S"], paired: bool = False
) -> Float[Tensor, "N *M 5"]:
    """Every drawing with every picture, or with the one in its place: what `judged` asks for."""
    there, shown = drawn[..., 3].flatten(1).gt(0).to(rgb), inside.flatten(1).to(rgb)
    own, other = (drawn[..., :3].to(rgb) / 255).flatten(1), (rgb * inside[..., None]).flatten(1)

    def dot(a: Float[Tensor, "N P"], b: Float[Tensor, "M P"]) -> Float[Tensor, "N *M"]:
        return (a * b).sum(1) if paired else a @ b.T

    both, square = dot(there, shown), dot(squared(own), shown)
    either = dot(there, torch.ones_like(shown)) + dot(torch.ones_like(there), shown) - both
    return torch.stack([both, either, dot(own, other), square, dot(there, squared(other))], dim=-1)


def squared(colours: Float[Tensor, "N C"]) -> Float[Tensor, "N P"]:
    """Of pixels whose channels follow one another."""
    return colours.unflatten(1, (-1, 3)).square().sum(-1)


def judged(sums: Float[Tensor, "*B 5"]) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """Intersection over union, and the root of the colours' mean square difference where both are.

    That in the light, between DARKEST and BRIGHTEST, that makes it least; 1 where nothing overlaps. sums: of pixels in
    both and in either, and over the first of products of colours, of own and of shown squares.
    """
    both, either, product, square, shown = sums.unbind(-1)
    light = (product / square.clamp(min=1e-6)).clamp(DARKEST, BRIGHTEST)
    apart = (shown - 2 * light * product + light * light * square).clamp(min=0) / (3 * both.clamp(min=1))
    return both / either.clamp(min=1), torch.where(both > 0, apart.sqrt(), 1.0)
