"""Interval score matching (Liang et al. 2023, LucidDreamer, ISM, arXiv 2311.11284).

Two pictures on one trajectory are compared: DDIM without a prompt leads from the render up to time s = t - interval,
and one more step of it to t. There the prompt is heard:

    gradient = w(t) (noise_hat(z_t; prompt) - noise_hat(z_s; null)).

Nothing is drawn but the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from threed.distill.anneal import Anneal
from threed.distill.prior import Conditions, Prior, guide
from threed.distill.sample import NEARLY_CLEAN, inverted, mixed_anew
from threed.distill.score import Distillation, Noised, Shown


@dataclass(frozen=True)
class ISM(Distillation):
    """Raises ValueError for an interval that reaches below the clean picture, and for less than one step up to s."""

    name: str = field(default="ism", init=False)
    scale: float = 7.5
    t_min: Anneal = field(default_factory=lambda: Anneal(0.1))
    interval: float = 0.05  # from s to t
    steps: int = 5  # from the render to s

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; the inversion takes one step or more")
        lowest = min(self.t_min(0.0), self.t_min(1.0))
        if not 0 < self.interval < lowest - NEARLY_CLEAN:
            raise ValueError(f"the interval is {self.interval}; give a positive one, shorter than t_min = {lowest}")

    def away(self, prior: Prior, learned: Any, shown: Shown, seen: Noised) -> Float[Tensor, "P C h w"]:
        del learned
        null = shown.conditions.null
        s = seen.t - self.interval
        z_s = inverted(prior, Conditions(null, null), shown.latents, float(s[0]), self.steps, scale=1.0)
        before = prior.denoise(z_s, s, null)
        z_t = mixed_anew(before.clean, z_s, prior.alpha_sigma(s), prior.alpha_sigma(seen.t))
        after = guide(prior, z_t, seen.t, shown.conditions, self.scale, self.rescale)
        return seen.sigma / seen.alpha * (after.noise - before.noise)
