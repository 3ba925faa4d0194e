"""Score Jacobian chaining (Wang et al. 2022, SJC, arXiv 2212.00774): perturb and average.

In the variance-exploding view a picture y is perturbed with sigma_ve = sigma / alpha and the denoiser D is asked there:

    gradient = -score = mean over noises of (y - D(y + sigma_ve noise)) / sigma_ve,

D being the clean latents of z_t = alpha (y + sigma_ve noise). It is score distillation with w = 1: their difference of
noises is (y - D) / sigma_ve. The score of the perturbed picture itself, y + sigma_ve noise - D, has the same mean; the
paper leaves its noise out to reduce the variance, which it does where alpha std < sigma for pictures of this std.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.prior import Prior, guide
from threed.distill.score import Distillation, Noised, Shown, Weight, noised, pull


@dataclass(frozen=True)
class SJC(Distillation):
    """Raises ValueError for fewer than one draw."""

    name: str = field(default="sjc", init=False)
    weight: Weight = "uniform"
    draws: int = 1  # of noise, whose gradients are averaged
    reduced: bool = True  # whether the noise of the perturbed picture is left out

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}; perturb at least once")

    def __call__(
        self, prior: Prior, learned: Any, shown: Shown, progress: float, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        with torch.no_grad():
            t, gradient = self.timestep(progress, generator), torch.zeros_like(shown.latents)
            for _ in range(self.draws):
                seen = noised(prior, shown.latents, t, generator)
                gradient += self.weighing(seen) * self.away(prior, learned, shown, seen) / self.draws
        return {self.name: pull(shown.latents, gradient)}

    def away(self, prior: Prior, learned: Any, shown: Shown, seen: Noised) -> Float[Tensor, "P C h w"]:
        del learned
        perturbed = shown.latents if self.reduced else seen.z_t / seen.alpha
        return perturbed - guide(prior, seen.z_t, seen.t, shown.conditions, self.scale, self.rescale).clean
