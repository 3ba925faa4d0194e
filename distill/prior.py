"""What a frozen diffusion model offers to the rest of the program.

A noised latent is `z_t = alpha z + sigma noise` with t in (0, 1): t near 0 is almost clean, t near 1 almost noise.
Whatever a network itself predicts (noise, clean picture, velocity, flow) becomes a `Prediction` here and nowhere else.
Pictures are channels last, display sRGB in [0, 1]; latents are channels first, as networks want them. A group of P
pictures is denoised jointly: all its cameras for the first kind, then all its cameras for the second ("kind-major").
Guidance has one convention: `null + scale * (positive - null)` on the clean latents, so scale 1 is the prior alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.renderers.camera import Cameras
from threed.renderers.volume import Render

Kind = Literal["noise", "clean", "velocity", "flow"]
Prompt = str | Sequence[str]  # one for all pictures of a group, or one for each


@dataclass(frozen=True)
class Pictures:
    """What the P = len(kinds) * C pictures of one jointly denoised group show, kind-major."""

    cameras: Cameras  # C of them
    kinds: tuple[str, ...]  # what is drawn: "albedo", "shaded", "normal"
    background: Float[Tensor, "3"]  # the plain colour behind the object, display sRGB in [0, 1]
    # What they are of, for priors that are steered by its shape: as the cameras see it now, in about so many pixels.
    scene: Callable[[int], Render] | None = None

    def __len__(self) -> int:
        return len(self.kinds) * len(self.cameras)

    def of(self, render: Render) -> Float[Tensor, "P H W 3"]:
        """These pictures of a scene, in front of the background; the unit normal n is drawn as (n + 1) / 2."""
        behind = (1 - render.alpha) * self.background
        normal = functional.normalize(render.normal, dim=-1, eps=1e-4)
        drawn = {"albedo": render.albedo, "shaded": render.rgb, "normal": (normal + 1) / 2 * render.alpha}
        return torch.cat([drawn[kind] + behind for kind in self.kinds])


@dataclass(frozen=True)
class Prediction:
    """What the noised latents are believed to be made of: z_t = alpha clean + sigma noise."""

    noise: Float[Tensor, "P C h w"]
    clean: Float[Tensor, "P C h w"]


@dataclass(frozen=True)
class Conditions:
    """What the pictures are told to show; each is whatever its own prior's `denoise` understands."""

    positive: Any
    null: Any
    negative: Any | None = None  # guidance leads away from it; without one, away from `null`
    aside: tuple[tuple[Any, Float[Tensor, "P"]], ...] = ()  # what else to lead away from, and how strongly: Perp-Neg
    bare: tuple[Any, float] | None = None  # told less still than null, and the scale at which all are led away from it


@runtime_checkable
class Denoiser(Protocol):
    """Whatever says what noised latents are made of."""

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        """The schedule: how much of the clean latents and of the noise z_t holds, for t in (0, 1)."""

    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Any) -> Prediction:
        """One group of pictures, denoised jointly."""


@runtime_checkable
class Prior(Denoiser, Protocol):
    """A frozen diffusion model of pictures."""

    @property
    def image_size(self) -> int:
        """Pixels a side of the square pictures that `encode` takes."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of picture it knows."""

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P C h w"]:
        """Latents of display sRGB pictures in [0, 1]; differentiable."""

    def decode(self, latents: Float[Tensor, "P C h w"]) -> Float[Tensor, "P H W 3"]:
        """Display sRGB pictures of latents, not clipped."""

    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        """What these pictures are told; an empty `negative` means none."""


def cosine(t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
    """The cosine schedule, variance preserving (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17): alpha, sigma."""
    angle = (t + 0.008) / 1.008 * (math.pi / 2)
    return angle.cos(), angle.sin()


def pixels(image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P 3 H W"]:
    """The latents of a model that works on pixels: the same picture in [-1, 1]."""
    return (2 * image - 1).permute(0, 3, 1, 2)


def from_pixels(latents: Float[Tensor, "P 3 H W"]) -> Float[Tensor, "P H W 3"]:
    """The picture that these are the `pixels` of."""
    return (latents.permute(0, 2, 3, 1) + 1) / 2


def prediction_from(
    kind: Kind,
    output: Float[Tensor, "P C h w"],
    z_t: Float[Tensor, "P C h w"],
    alpha: Float[Tensor, "P"],
    sigma: Float[Tensor, "P"],
) -> Prediction:
    """Noise and clean latents from what a network predicts; raises ValueError for an unknown `kind`.

    velocity = alpha noise - sigma clean (Salimans and Ho 2022, arXiv 2202.00512, appendix D);
    flow = noise - clean, the direction of a straight path (Liu et al. 2022, arXiv 2209.03003, eq. 1).
    """
    alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
    match kind:
        case "noise":
            return Prediction(noise=output, clean=(z_t - sigma * output) / alpha)
        case "clean":
            return Prediction(noise=(z_t - alpha * output) / sigma, clean=output)
        case "velocity":
            length = alpha**2 + sigma**2
            noise, clean = sigma * z_t + alpha * output, alpha * z_t - sigma * output
            return Prediction(noise=noise / length, clean=clean / length)
        case "flow":
            length = alpha + sigma
            return Prediction(noise=(z_t + alpha * output) / length, clean=(z_t - sigma * output) / length)
    raise ValueError(f"unknown prediction type {kind!r}; use one of 'noise', 'clean', 'velocity', 'flow'")


def guide(
    prior: Denoiser,
    z_t: Float[Tensor, "P C h w"],
    t: Float[Tensor, "P"],
    conditions: Conditions,
    scale: float,
    rescale: float = 0.0,
) -> Prediction:
    """Classifier-free guidance, `null + scale * (positive - null)`; a negative condition stands in for null."""
    if scale == 1.0 and not conditions.aside and not conditions.bare:
        return prior.denoise(z_t, t, conditions.positive)
    clean = guided(*asked(prior, z_t, t, conditions), scale, rescale)
    return prediction_from("clean", clean, z_t, *prior.alpha_sigma(t))


def asked(
    prior: Denoiser, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], conditions: Conditions
) -> tuple[Float[Tensor, "P C h w"], Float[Tensor, "P C h w"]]:
    """Clean latents by the positive condition, and by null or the negative that stands in for it.

    The positive ones are led aside (Perp-Neg, Armandpour et al. 2023, arXiv 2304.04968): with
    delta = positive - null and perp_i the part of aside_i - null that is orthogonal to delta,

        positive - sum_i weight_i perp_i.

    Both are led away from `bare`, where there is one (Brooks et al. 2023, arXiv 2211.09800, eq. 3): by its scale s,

        x + (s - 1) (null - bare).
    """
    positive = prior.denoise(z_t, t, conditions.positive).clean
    null = prior.denoise(z_t, t, conditions.null if conditions.negative is None else conditions.negative).clean
    delta = positive - null
    for condition, weight in conditions.aside:
        other = prior.denoise(z_t, t, condition).clean - null
        positive = positive - weight.to(other)[:, None, None, None] * perpendicular(other, delta)
    if conditions.bare:
        condition, scale = conditions.bare
        led = (scale - 1) * (null - prior.denoise(z_t, t, condition).clean)
        return positive + led, null + led
    return positive, null


def perpendicular(x: Float[Tensor, "P C h w"], direction: Float[Tensor, "P C h w"]) -> Float[Tensor, "P C h w"]:
    """The part of every picture of `x` that is orthogonal to its `direction`; all of it where there is none."""
    along, length = ((each * direction).sum(dim=(1, 2, 3), keepdim=True) for each in (x, direction))
    return x - torch.where(length > 0, along / length, 0.0) * direction


def guided(
    positive: Float[Tensor, "P C h w"], null: Float[Tensor, "P C h w"], scale: float, rescale: float
) -> Float[Tensor, "P C h w"]:
    """Clean latents, guided, then led back by `rescale` to the contrast of `positive` (arXiv 2305.08891, eq. 15-16)."""
    pushed = null + scale * (positive - null)
    kept, found = (x.std(dim=(1, 2, 3), keepdim=True) for x in (positive, pushed))
    contrast = torch.where(found > 0, kept / found, 1.0)  # a picture of one colour has none to lead back
    return torch.lerp(pushed, contrast * pushed, rescale)
