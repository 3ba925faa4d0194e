"""What every distillation loss shares: a render is noised, the frozen prior is asked, the answer becomes a gradient.

With z_t = alpha x + sigma noise, every loss of this family says how far the latents x are from where they should be, as
a difference `away` of clean latents, and weighs it:

    gradient = weight(t) away,   for example away = x - clean_hat for score distillation sampling.

In the field's notation, differences of noise, noise_hat - noise = alpha / sigma (x - clean_hat): the weights below have
that factor in them. Guidance is `null + scale * (positive - null)`, everywhere in this project: scale 1 is the prior
alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.anneal import Anneal
from threed.distill.prior import Conditions, Denoiser, Prior

Weight = Literal["sigma2", "uniform", "clean", "fantasia3d"]


@dataclass(frozen=True)
class Shown:
    """What a step shows the prior of a scene: P pictures of it, with the scene's gradient."""

    latents: Float[Tensor, "P C h w"]  # `prior.encode(image)`
    conditions: Conditions
    image: Float[Tensor, "P H W 3"]  # display sRGB in [0, 1]


@dataclass(frozen=True)
class Noised:
    """Latents with noise on them, without a gradient: z_t = alpha latents + sigma noise."""

    z_t: Float[Tensor, "P C h w"]
    t: Float[Tensor, "P"]
    noise: Float[Tensor, "P C h w"]
    alpha: Float[Tensor, "P 1 1 1"]
    sigma: Float[Tensor, "P 1 1 1"]


@runtime_checkable
class Learned(Protocol):
    """What a loss learns while a scene is fitted, beside it; an `nn.Module`."""

    def param_groups(self) -> list[dict[str, Any]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> object: ...


@runtime_checkable
class Loss(Protocol):
    """How a prior wants a scene changed; a frozen dataclass of settings."""

    def init(self, prior: Prior, seed: int) -> Learned | None:
        """What it learns of its own; raises ValueError for a prior that it cannot work with."""

    def __call__(
        self, prior: Prior, learned: Any, shown: Shown, progress: float, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses by name; their gradient flows into the pictures, and into what was learned."""


def pull(latents: Float[Tensor, "P C H W"], gradient: Float[Tensor, "P C H W"]) -> Float[Tensor, ""]:
    """A loss whose gradient with respect to `latents` is `gradient / P`, exactly, in any precision."""
    return (latents * gradient.detach()).sum() / len(latents)


@torch.no_grad()
def noised(prior: Denoiser, latents: Float[Tensor, "P C h w"], t: float, generator: torch.Generator) -> Noised:
    """Fresh noise on all latents, at one timestep."""
    times = torch.full((len(latents),), t, dtype=latents.dtype, device=latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    alpha, sigma = (a[:, None, None, None] for a in prior.alpha_sigma(times))
    return Noised(alpha * latents + sigma * noise, times, noise, alpha, sigma)


@dataclass(frozen=True)
class Distillation(ABC):
    """One noised picture of every view a step; all pictures of a step share their timestep.

    Raises ValueError for settings that cannot work.
    """

    name: str = field(default="", init=False)  # of the loss, in recipe.json and metrics.jsonl
    scale: float = 100.0  # guidance scale
    rescale: float = 0.0  # 1 keeps the contrast of the unguided prediction (arXiv 2305.08891), 0 leaves it
    t_min: Anneal = field(default_factory=lambda: Anneal(0.02))  # timesteps are drawn uniformly from [t_min, t_max]
    t_max: Anneal = field(default_factory=lambda: Anneal(0.98))
    weight: Weight = "sigma2"  # of a difference of noise: sigma^2; 1; sigma / alpha, which leaves `away`; alpha sigma^2

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"the guidance scale is {self.scale}; give a number from 0 on, such as 7.5")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale is {self.rescale}; give a number in [0, 1]")
        for progress in (0.0, 1.0):
            low, high = self.t_min(progress), self.t_max(progress)
            if not 0 < low <= high < 1:
                raise ValueError(
                    f"timesteps are drawn from [{low:g}, {high:g}] when progress is {progress:g}; "
                    "they lie between 0 and 1, the lower bound first"
                )

    def init(self, prior: Prior, seed: int) -> Learned | None:
        """Most learn nothing."""
        del prior, seed
        return None

    def __call__(
        self, prior: Prior, learned: Any, shown: Shown, progress: float, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """The distillation loss of P pictures; its gradient flows into their latents alone."""
        with torch.no_grad():
            seen = noised(prior, shown.latents, self.timestep(progress, generator), generator)
            away = self.away(prior, learned, shown, seen)
            gradient = self.weighing(seen) * away
        return {self.name: pull(shown.latents, gradient)}

    @abstractmethod
    def away(self, prior: Prior, learned: Any, shown: Shown, seen: Noised) -> Float[Tensor, "P C h w"]:
        """What the latents have too much of, as a difference of clean latents."""

    def timestep(self, progress: float, generator: torch.Generator) -> float:
        """Drawn uniformly between the bounds of now."""
        low, high = self.t_min(progress), self.t_max(progress)
        return low + (high - low) * torch.rand(1, generator=generator).item()

    def weighing(self, seen: Noised) -> Float[Tensor, "P 1 1 1"]:
        """Of a difference of clean latents."""
        alpha, sigma = seen.alpha, seen.sigma
        match self.weight:
            case "sigma2":  # DreamFusion's
                return alpha * sigma
            case "uniform":
                return alpha / sigma
            case "clean":
                return torch.ones_like(sigma)
            case "fantasia3d":  # Chen et al. 2023, section 3.3
                return alpha**2 * sigma
        raise ValueError(f"unknown weight {self.weight!r}; use one of 'sigma2', 'uniform', 'clean', 'fantasia3d'")
