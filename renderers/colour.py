"""Display sRGB and the linear light that it stands for (IEC 61966-2-1).

Both functions go on beyond [0, 1], and neither has an infinite gradient anywhere; whoever shows a picture clamps it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

DARKEST_SRGB, DARKEST_LINEAR = 0.04045, 0.0031308  # below, the curve is a line of slope 12.92


def linear_from_srgb(srgb: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
    # Clamped, because the gradient of the branch not taken must be finite too.
    curve = ((srgb.clamp(min=DARKEST_SRGB) + 0.055) / 1.055) ** 2.4
    return torch.where(srgb <= DARKEST_SRGB, srgb / 12.92, curve)


def srgb_from_linear(linear: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
    curve = 1.055 * linear.clamp(min=DARKEST_LINEAR) ** (1 / 2.4) - 0.055
    return torch.where(linear <= DARKEST_LINEAR, 12.92 * linear, curve)
