"""Score distillation sampling (Poole et al. 2022, DreamFusion, arXiv 2209.14988, eq. 3).

A render is noised and shown to the frozen prior; what the prior would change about it, less the noise that was added,
is the gradient that the scene receives:

    z_t = alpha x + sigma noise,        gradient = w(t) (noise_hat - noise) = w(t) alpha / sigma (x - clean_hat).

Guidance is `null + scale * (positive - null)`, everywhere in this project: scale 1 is the prior alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.anneal import Anneal
from threed.distill.prior import Conditions, Prior, guide


def pull(latents: Float[Tensor, "P C H W"], gradient: Float[Tensor, "P C H W"]) -> Float[Tensor, ""]:
    """A loss whose gradient with respect to `latents` is `gradient / P`, exactly, in any precision."""
    return (latents * gradient.detach()).sum() / len(latents)


@dataclass(frozen=True)
class SDS:
    """One noised picture of every view a step; all pictures of a step share their timestep."""

    scale: float = 100.0  # guidance scale
    rescale: float = 0.0  # 1 keeps the contrast of the unguided prediction (arXiv 2305.08891), 0 leaves it
    t_min: Anneal = field(default_factory=lambda: Anneal(0.02))  # timesteps are drawn uniformly from [t_min, t_max]
    t_max: Anneal = field(default_factory=lambda: Anneal(0.98))
    weight: Literal["sigma2", "uniform", "clean"] = "sigma2"  # w(t): sigma^2; 1; or sigma / alpha, giving x - clean_hat

    def init(self, prior: Prior) -> tuple[()]:
        """What it learns of its own while a scene is fitted: nothing."""
        return ()

    def __call__(
        self,
        prior: Prior,
        learned: tuple[()],
        latents: Float[Tensor, "P C H W"],
        conditions: Conditions,
        progress: float,
        generator: torch.Generator,
    ) -> dict[str, Float[Tensor, ""]]:
        """The distillation loss of P pictures; its gradient flows into `latents` alone."""
        del learned
        low, high = self.t_min(progress), self.t_max(progress)
        with torch.no_grad():
            t = (low + (high - low) * torch.rand(1, generator=generator)).to(latents).expand(len(latents))
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            alpha, sigma = (a[:, None, None, None] for a in prior.alpha_sigma(t))
            z_t = alpha * latents + sigma * noise
            guided = guide(prior, z_t, t, conditions, self.scale, self.rescale)
            toward_clean = latents - guided.clean
            weight = {"sigma2": alpha * sigma, "uniform": alpha / sigma, "clean": torch.ones_like(sigma)}[self.weight]
        return {"sds": pull(latents, weight * toward_clean)}
