"""What is asked of any shape, whatever the prompt: pure functions of pictures, of rays, and of a field at points.

Each is a mean, over the pixels, the rays or the points, so that a weight means the same at any size of picture.
Packed samples lie along R rays as `ops.Packed` says, and their weights are those of `composite`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from threed.renderers.ops import Packed

SEEN = 0.5  # alpha above which a ray meets a surface


def sparsity(alpha: Float[Tensor, "B H W 1"]) -> Float[Tensor, ""]:
    """Empty space costs nothing, haze does: mean sqrt(alpha^2 + 0.01) (DreamFusion's public recipes)."""
    return (alpha.square() + 0.01).sqrt().mean()


def opacity(alpha: Float[Tensor, "B H W 1"]) -> Float[Tensor, ""]:
    """Binary entropy: a pixel shows the object or does not. Clamped so that the slope stays finite at 0 and 1."""
    a = alpha.clamp(1e-3, 1 - 1e-3)
    return -(a * a.log() + (1 - a) * (1 - a).log()).mean()


def orientation(
    weights: Float[Tensor, "N"], normal: Float[Tensor, "N 3"], directions: Float[Tensor, "R 3"], packed: Packed
) -> Float[Tensor, ""]:
    """What is seen faces the camera: the sum of w_i max(0, n_i . d)^2 along a ray (arXiv 2112.03907, equation 11).

    Normals and directions are unit vectors of the world, the latter away from the camera: 0 to 1, without unit.
    DreamFusion passes `weights.detach()` (arXiv 2209.14988), that density may turn but not vanish.
    """
    away = (normal * directions.index_select(0, packed.ray)).sum(-1).relu()
    return (weights * away.square()).sum() / max(len(directions), 1)


def z_variance(weights: Float[Tensor, "N"], packed: Packed) -> Float[Tensor, ""]:
    """A ray meets one thin surface: the variance of the depth at which it ends, in square metres (arXiv 2305.18766).

    The mean over the rays that meet a surface, 0 where none does. The weights of a ray are divided by their sum, its
    alpha, else making the object vanish would help too. A sample stands in the middle of its piece of the ray.
    """
    none, ray, z = weights.new_zeros(len(packed.starts) - 1), packed.ray, packed.middle
    alpha = none.index_add(0, ray, weights)
    seen = alpha > SEEN
    share = weights / alpha.clamp(min=SEEN).index_select(0, ray)
    mean = none.index_add(0, ray, share * z)
    variance = none.index_add(
        0, ray, share * (z - mean.index_select(0, ray)).square()
    )  # not a difference of two large numbers
    return variance[seen].sum() / seen.sum().clamp(min=1)


def eikonal(slope: Float[Tensor, "N 3"]) -> Float[Tensor, ""]:
    """A signed distance changes by a metre a metre: mean (|df/dx| - 1)^2 (IGR, arXiv 2002.10099, equation 2).

    `slope` is df/dx, in metres per metre; a slope of 0 costs 1 and has no direction in which to grow.
    """
    return (slope.norm(dim=-1) - 1).square().sum() / max(len(slope), 1)


def smoothness(here: Float[Tensor, "N C"], nearby: Float[Tensor, "N C"]) -> Float[Tensor, ""]:
    """A field changes little over a little way: mean |f(x) - f(x + e)|_1 (NeRFactor, arXiv 2106.01970).

    For the albedo, the normal or the roughness at points and at the same points `displaced`; in the field's own unit.
    The 1-norm lets it change in a few places, at the borders of materials, rather than a little everywhere.
    """
    return (here - nearby).abs().sum() / max(len(here), 1)


def displaced(x: Float[Tensor, "N 3"], spread: float, generator: torch.Generator) -> Float[Tensor, "N 3"]:
    """Points beside these, by Gaussian steps of a standard deviation of `spread` metres along every axis."""
    return x + spread * torch.randn(x.shape, generator=generator).to(x)
