"""Analytic priors: what a perfect denoiser would say, in closed form, when the pictures are Gaussian.

If z ~ N(mean, std^2) and z_t = alpha z + sigma noise, then z_t ~ N(alpha mean, alpha^2 std^2 + sigma^2) and

    E[z | z_t] = (sigma^2 mean + alpha std^2 z_t) / (alpha^2 std^2 + sigma^2),

element by element. Latents are pixels in [-1, 1]. These priors read no prompt; null and positive are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.prior import (
    Conditions,
    Pictures,
    Prediction,
    Prompt,
    cosine,
    from_pixels,
    pixels,
    prediction_from,
)
from threed.renderers.camera import Cameras

KINDS = ("albedo", "shaded", "normal")


def posterior_mean(z_t: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor, std: Tensor | float) -> Tensor:
    """E[z | z_t] for z ~ N(mean, std^2), all of broadcastable shapes."""
    return (sigma**2 * mean + alpha * std**2 * z_t) / (alpha**2 * std**2 + sigma**2)


@dataclass(frozen=True)
class Gaussian:
    """Every picture is drawn from one normal distribution with a diagonal covariance."""

    mean: Float[Tensor, "C h w"]
    std: Float[Tensor, "C h w"]
    kinds: tuple[str, ...] = KINDS

    @property
    def image_size(self) -> int:
        return self.mean.shape[-1]

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return cosine(t)

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P 3 H W"]:
        return pixels(image)

    def decode(self, latents: Float[Tensor, "P 3 H W"]) -> Float[Tensor, "P H W 3"]:
        return from_pixels(latents)

    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        return Conditions(positive=None, null=None)

    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: None) -> Prediction:
        alpha, sigma = self.alpha_sigma(t)
        clean = posterior_mean(z_t, alpha[:, None, None, None], sigma[:, None, None, None], self.mean, self.std)
        return prediction_from("clean", clean, z_t, alpha, sigma)


@dataclass(frozen=True)
class Mixture:
    """Every picture is drawn, as a whole, from one of K normal distributions."""

    means: Float[Tensor, "K C h w"]
    stds: Float[Tensor, "K C h w"]
    weights: Float[Tensor, "K"]  # positive; their sum does not matter
    kinds: tuple[str, ...] = KINDS

    @property
    def image_size(self) -> int:
        return self.means.shape[-1]

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return cosine(t)

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P 3 H W"]:
        return pixels(image)

    def decode(self, latents: Float[Tensor, "P 3 H W"]) -> Float[Tensor, "P H W 3"]:
        return from_pixels(latents)

    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        return Conditions(positive=None, null=None)

    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: None) -> Prediction:
        """E[z | z_t] = sum_k p(k | z_t) E_k[z | z_t]."""
        alpha, sigma = self.alpha_sigma(t)
        a, s = alpha[:, None, None, None, None], sigma[:, None, None, None, None]
        components = torch.distributions.Normal(a * self.means, (a**2 * self.stds**2 + s**2).sqrt())
        log_likelihood = components.log_prob(z_t[:, None]).sum(dim=(2, 3, 4))
        belief = (log_likelihood + self.weights.log()).softmax(dim=1)
        each = posterior_mean(z_t[:, None], a, s, self.means, self.stds)
        return prediction_from("clean", torch.einsum("pk,pkchw->pchw", belief, each), z_t, alpha, sigma)


@dataclass(frozen=True)
class ViewOracle:
    """Knows the object: a Gaussian centred on its true pictures, whatever cameras and kinds are asked for."""

    picture: Callable[[Cameras, tuple[str, ...], Tensor, int], Tensor]  # cameras, kinds, background, size -> P H W 3
    std: float = 0.1  # in latents, so half of it in display sRGB
    image_size: int = 64
    kinds: tuple[str, ...] = KINDS

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return cosine(t)

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P 3 H W"]:
        return pixels(image)

    def decode(self, latents: Float[Tensor, "P 3 H W"]) -> Float[Tensor, "P H W 3"]:
        return from_pixels(latents)

    @torch.no_grad()
    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        image = self.picture(pictures.cameras, pictures.kinds, pictures.background, self.image_size)
        expected = (len(pictures), self.image_size, self.image_size, 3)
        if image.shape != expected:
            raise ValueError(f"the oracle's picture has shape {tuple(image.shape)}; return {expected}, kind-major")
        mean = self.encode(image)
        return Conditions(positive=mean, null=mean)

    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Tensor) -> Prediction:
        alpha, sigma = self.alpha_sigma(t)
        clean = posterior_mean(z_t, alpha[:, None, None, None], sigma[:, None, None, None], condition, self.std)
        return prediction_from("clean", clean, z_t, alpha, sigma)
