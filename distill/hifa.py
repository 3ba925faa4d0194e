"""HiFA (Zhu et al. 2023, arXiv 2305.18766): a picture denoised all the way, compared as latents and as an image.

From z_t several steps of DDIM lead to clean latents, and these are decoded. With latents z and image x,

    loss = w(t) (|z - clean|^2 + image_weight |x - decode(clean)|^2) / 2,

clean being held fixed. Timesteps are not drawn: they fall with the square root of progress (see `Anneal`), from large
to small ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.anneal import Anneal
from threed.distill.prior import Prior
from threed.distill.sample import travel
from threed.distill.score import Distillation, Noised, Shown, noised, pull


def root(first: float, last: float) -> Anneal:
    """From `first` to `last` by the square root of progress."""
    return Anneal(first, last, power=0.5)


@dataclass(frozen=True)
class HiFA(Distillation):
    """With one step and no weight for the image, score distillation sampling. Raises ValueError for less than a step.

    For a prior of pixels in [-1, 1] the image's share of the gradient is image_weight / 4 of the latents'.
    """

    name: str = field(default="hifa", init=False)
    t_min: Anneal = field(default_factory=lambda: root(0.98, 0.3))
    t_max: Anneal = field(default_factory=lambda: root(0.98, 0.3))
    steps: int = 4
    image_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a picture is denoised in one step or more")

    def __call__(
        self, prior: Prior, learned: Any, shown: Shown, progress: float, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        with torch.no_grad():
            seen = noised(prior, shown.latents, self.timestep(progress, generator), generator)
            away, weight = self.away(prior, learned, shown, seen), self.weighing(seen)
            image_away = shown.image - prior.decode(shown.latents - away)
        image = pull(shown.image, self.image_weight * weight * image_away)
        return {self.name: pull(shown.latents, weight * away), f"{self.name}_image": image}

    def away(self, prior: Prior, learned: Any, shown: Shown, seen: Noised) -> Float[Tensor, "P C h w"]:
        del learned
        first = float(seen.t[0])
        times = torch.linspace(first, 0.0, self.steps + 1, dtype=seen.t.dtype, device=seen.t.device)
        _, clean = travel(prior, shown.conditions, seen.z_t, times, self.scale, self.rescale)
        return shown.latents - clean
