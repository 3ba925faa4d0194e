"""How much noise z_t holds at time t, and what the network calls that time, by a checkpoint's own scheduler.

discrete    T timesteps k = 0 .. T - 1, variance preserving: k = t T. Between two of them the angle
            atan2(sigma, alpha) is interpolated, which is finite even where a last timestep is all noise
            (Lin et al. 2023, arXiv 2305.08891); networks take the fraction as it is.
straight    flow matching: sigma = s t / (1 + (s - 1) t), alpha = 1 - sigma, with the shift s toward noise that
            large pictures want (Esser et al. 2024, arXiv 2403.03206, eq. 23).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Discrete:
    """Of T timesteps."""

    angles: Float[Tensor, "T"]  # atan2(sigma, alpha), radians

    @staticmethod
    def of(alphas_cumprod: Float[Tensor, "T"], device: torch.device | str = "cpu") -> Discrete:
        """By alpha^2 of every timestep, as diffusers names it."""
        kept = alphas_cumprod.double()
        return Discrete(torch.atan2((1 - kept).sqrt(), kept.sqrt()).float().to(device))

    def timestep(self, t: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        """k; below T - 1, beyond which nothing was trained."""
        return (len(self.angles) * t).clamp(0, len(self.angles) - 1)

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        k = self.timestep(t)
        below = k.floor().long()
        above = (below + 1).clamp(max=len(self.angles) - 1)
        angle = torch.lerp(self.angles[below].to(t), self.angles[above].to(t), k - below)
        return angle.cos(), angle.sin()


@dataclass(frozen=True)
class Straight:
    """A straight way from picture to noise."""

    shift: float = 1.0
    timesteps: int = 1000  # what sigma is multiplied by for the network

    def sigma(self, t: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def timestep(self, t: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return self.timesteps * self.sigma(t)

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        sigma = self.sigma(t)
        return 1 - sigma, sigma


def schedule_of(scheduler: Any, tokens: int, device: torch.device | str = "cpu") -> Discrete | Straight:
    """A diffusers scheduler's; `tokens` a picture decide a shift that depends on them. Raises ValueError."""
    if hasattr(scheduler, "alphas_cumprod"):
        return Discrete.of(scheduler.alphas_cumprod, device)
    if "shift" in scheduler.config:
        return Straight(shift_of(scheduler.config, tokens), scheduler.config["num_train_timesteps"])
    raise ValueError(f"a {type(scheduler).__name__} tells neither alphas_cumprod nor a shift")


def shift_of(config: Mapping[str, Any], tokens: int) -> float:
    """A fixed shift, or one that grows with the number of tokens (Flux): exp(mu), mu linear in it."""
    if not config.get("use_dynamic_shifting"):
        return config["shift"]
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    share = (tokens - low) / (high - low)
    mu = config["base_shift"] + share * (config["max_shift"] - config["base_shift"])
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
