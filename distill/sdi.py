"""Score distillation via inversion (Lukoianov et al. 2024, SDI, arXiv 2405.15891).

Score distillation is DDIM with the noise drawn anew in every step. Here the noise is the one that the prior itself
would have drawn the render from: DDIM is run backwards, from the render up to time t, and

    gradient = w(t) (x - clean_hat(z_t)),        z_t the render, inverted.

Nothing is drawn but the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from threed.distill.prior import Prior, guide
from threed.distill.sample import inverted
from threed.distill.score import Distillation, Noised, Shown, Weight


@dataclass(frozen=True)
class SDI(Distillation):
    """Raises ValueError for less than one step of inversion."""

    name: str = field(default="sdi", init=False)
    scale: float = 7.5
    weight: Weight = "clean"
    inversion_scale: float | None = (
        None  # guidance on the way up; without one -scale: what it takes, `scale` gives back
    )
    steps: int = 10  # of the inversion

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; the inversion takes one step or more")

    def away(self, prior: Prior, learned: Any, shown: Shown, seen: Noised) -> Float[Tensor, "P C h w"]:
        del learned
        upward = -self.scale if self.inversion_scale is None else self.inversion_scale
        z_t = inverted(prior, shown.conditions, shown.latents, float(seen.t[0]), self.steps, upward)
        return shown.latents - guide(prior, z_t, seen.t, shown.conditions, self.scale, self.rescale).clean
