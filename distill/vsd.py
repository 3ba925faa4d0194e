"""Variational score distillation (Wang et al. 2023, ProlificDreamer, arXiv 2305.16213, eq. 9 and algorithm 1).

SDS pulls every render to the one picture that the prior likes best on average. VSD asks that the *distribution* of
renders be the prior's: it takes from the prior's answer that of a second network, an adapter of the prior, which learns
beside the scene what its renders look like:

    gradient = w(t) (noise_hat - noise_hat_adapter),

zero where scene and prior agree on what is likely; noise that both see alike is gone from it. Several scenes, the
particles of that distribution, may share one adapter.

Bootstrapped (BSD: Sun et al. 2023, DreamCraft3D, arXiv 2310.16818, eq. 7), the prior is itself an adapter, one that
learns from renders after the prior has made them crisp: it knows this object, from all sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.anneal import Anneal
from threed.distill.prior import Conditions, Denoiser, Prior, guide
from threed.distill.sample import NEARLY_CLEAN, travel
from threed.distill.score import Distillation, Learned, Noised, Shown, noised

CLEANEST, NOISIEST = 0.02, 0.98  # timesteps between which adapters learn
MOST = 5.0  # weight of a clean picture's error at most (Min-SNR: Hang et al. 2023, arXiv 2303.09556)


@runtime_checkable
class Adapter(Denoiser, Learned, Protocol):
    """A denoiser that learns; its `denoise` is differentiable to what it learns."""


@runtime_checkable
class Adaptable(Prior, Protocol):
    """A prior of which there are adapters."""

    def adapter(self, rank: int, rate: float, seed: int) -> Adapter:
        """One that says what the prior says until it is trained, at this learning rate."""


@dataclass(frozen=True)
class VSD(Distillation):
    """A step costs what one of SDS costs, and of the adapter a forward pass and a training step."""

    name: str = field(default="vsd", init=False)
    scale: float = 7.5
    rank: int = 4  # of the adapter's matrices
    rate: float = 1e-4  # at which it learns

    def init(self, prior: Prior, seed: int) -> Learned | None:
        return adapted(prior, self.rank, self.rate, seed)

    def __call__(
        self, prior: Prior, learned: Any, shown: Shown, progress: float, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Besides the pull on the scene, what the adapter learns from its pictures: "adapter"."""
        losses = super().__call__(prior, learned, shown, progress, generator)
        pictures = shown.latents.detach()
        return losses | {"adapter": lesson(learned, pictures, shown.conditions.positive, generator)}

    def away(self, prior: Prior, learned: Any, shown: Shown, seen: Noised) -> Float[Tensor, "P C h w"]:
        wanted = guide(prior, seen.z_t, seen.t, shown.conditions, self.scale, self.rescale)
        return learned.denoise(seen.z_t, seen.t, shown.conditions.positive).clean - wanted.clean


@dataclass(frozen=True)
class BSD(Distillation):
    """Sun et al. train the whole network; here both are adapters, so that a checkpoint stays small."""

    name: str = field(default="bsd", init=False)
    scale: float = 2.0
    rank: int = 4
    rate: float = 1e-4
    cycles: int = 5  # times that the bootstrapped adapter learns, in the first part of each
    part: float = 0.2
    crisp: Anneal = field(default_factory=lambda: Anneal(0.5, 0.1))  # timestep from which renders are made crisp
    crisp_scale: float = 7.5  # guidance scale with which they are
    crisp_steps: int = 3

    def init(self, prior: Prior, seed: int) -> Learned | None:
        return Pair(*(adapted(prior, self.rank, self.rate, seed + k) for k in range(2)))

    def __call__(
        self, prior: Prior, learned: Any, shown: Shown, progress: float, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Besides the pull on the scene, what both adapters learn: "adapter" and, now and then, "bootstrap"."""
        losses = super().__call__(prior, learned, shown, progress, generator)
        pictures, positive = shown.latents.detach(), shown.conditions.positive
        losses["adapter"] = lesson(learned.renders, pictures, positive, generator)
        if progress * self.cycles % 1 < self.part:
            noisy = noised(prior, pictures, self.crisp(progress), generator)
            better = cleaned(prior, noisy, shown.conditions, self.crisp_scale, self.crisp_steps)
            losses["bootstrap"] = lesson(learned.booted, better, positive, generator)
        return losses

    def away(self, prior: Prior, learned: Any, shown: Shown, seen: Noised) -> Float[Tensor, "P C h w"]:
        wanted = guide(learned.booted, seen.z_t, seen.t, shown.conditions, self.scale, self.rescale)
        return learned.renders.denoise(seen.z_t, seen.t, shown.conditions.positive).clean - wanted.clean


@dataclass(frozen=True)
class Pair:
    """The adapter that knows the renders, and the one that knows how they should be."""

    renders: Adapter
    booted: Adapter

    def param_groups(self) -> list[dict[str, Any]]:
        return self.renders.param_groups() + self.booted.param_groups()

    def state_dict(self) -> dict[str, Any]:
        return {"renders": self.renders.state_dict(), "booted": self.booted.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.renders.load_state_dict(state["renders"])
        self.booted.load_state_dict(state["booted"])


def adapted(prior: Prior, rank: int, rate: float, seed: int) -> Adapter:
    """An adapter of the prior; raises ValueError for a prior of which there is none."""
    if not isinstance(prior, Adaptable):
        raise ValueError(
            f"a {type(prior).__name__} has no adapter, which this loss trains; use another loss, such as sds"
        )
    return prior.adapter(rank, rate, seed)


def lesson(
    adapter: Denoiser, pictures: Float[Tensor, "P C h w"], condition: Any, generator: torch.Generator
) -> Float[Tensor, ""]:
    """The error of an adapter's clean pictures at a timestep of its own, weighted by min(snr, MOST)."""
    t = CLEANEST + (NOISIEST - CLEANEST) * torch.rand(1, generator=generator).item()
    seen = noised(adapter, pictures, t, generator)
    error = (adapter.denoise(seen.z_t, seen.t, condition).clean - pictures).square().mean(dim=(1, 2, 3))
    return ((seen.alpha / seen.sigma).square().clamp(max=MOST).flatten() * error).mean()


@torch.no_grad()
def cleaned(
    prior: Denoiser, seen: Noised, conditions: Conditions, scale: float, steps: int
) -> Float[Tensor, "P C h w"]:
    """What the prior makes of noised pictures, by deterministic DDIM from where they are."""
    times = seen.t[0] * torch.linspace(1, 0, steps + 1).to(seen.t)
    _, clean = travel(prior, conditions, seen.z_t, times.clamp(min=NEARLY_CLEAN), scale)
    return clean
