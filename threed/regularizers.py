"""What is asked of any shape, whatever the prompt: pure functions of a render. Each is a mean over pixels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def sparsity(alpha: Float[Tensor, "B H W 1"]) -> Float[Tensor, ""]:
    """Empty space costs nothing, haze does: mean sqrt(alpha^2 + 0.01) (DreamFusion's public recipes)."""
    return (alpha.square() + 0.01).sqrt().mean()


def opacity(alpha: Float[Tensor, "B H W 1"]) -> Float[Tensor, ""]:
    """Binary entropy: a pixel shows the object or does not. Clamped so that the slope stays finite at 0 and 1."""
    a = alpha.clamp(1e-3, 1 - 1e-3)
    return -(a * a.log() + (1 - a) * (1 - a).log()).mean()
