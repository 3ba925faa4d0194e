"""Pictures out of noise: what a prior would draw by itself, all views of a group together.

Deterministic DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 with sigma = 0). Between two times the clean latents and
the noise that the prior believes in are mixed anew:

    z_s = alpha_s clean + sigma_s noise.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.prior import Conditions, Denoiser, Pictures, Prior, guide
from threed.renderers.camera import Cameras

FIRST = 0.999  # the time of the first step: at 1 nothing of a picture is left that noise could be told from
NEARLY_CLEAN = 0.001  # the time at which inversions begin: at 0 a schedule may have no noise to be told


@torch.no_grad()
def ddim(
    prior: Prior,
    conditions: Conditions,
    shape: tuple[int, int, int, int],  # P C h w
    steps: int,
    scale: float,
    rescale: float,
    generator: torch.Generator,
    limit: float = 1.0,
    over: Float[Tensor, "P C h w"] | None = None,
    first: float = FIRST,
) -> Float[Tensor, "P C h w"]:
    """Clean latents of one group, denoised in `steps` equal steps of time; made on the generator's device.

    scale, rescale: guidance, see `distill.prior.guide`. limit: clean latents stay within [-limit, limit], as pixels do.
    over: clean latents to draw over, noised to the time `first` (SDEdit, Meng et al. 2021, arXiv 2108.01073, eq. 5 in
    its variance-preserving form); without them everything begins as noise.
    """
    z_t = torch.randn(shape, generator=generator, device=generator.device)
    times = torch.linspace(first, 0.0, steps + 1).to(z_t)
    if over is not None:
        alpha, sigma = (a[:, None, None, None] for a in prior.alpha_sigma(times[:1]))
        z_t = alpha * over + sigma * z_t
    _, clean = travel(prior, conditions, z_t, times, scale, rescale, limit)
    return clean


@torch.no_grad()
def travel(
    prior: Denoiser,
    conditions: Conditions,
    z_t: Float[Tensor, "P C h w"],
    times: Float[Tensor, "T"],
    scale: float,
    rescale: float = 0.0,
    limit: float = math.inf,
) -> tuple[Float[Tensor, "P C h w"], Float[Tensor, "P C h w"]]:
    """From z_t at the first of `times` to z_t at the last, and the clean latents that the last step believed in."""
    clean = z_t
    for now, then in pairwise(times):
        t, s = now.expand(len(z_t)), then.expand(len(z_t))
        clean = guide(prior, z_t, t, conditions, scale, rescale).clean.clamp(-limit, limit)
        z_t = mixed_anew(clean, z_t, prior.alpha_sigma(t), prior.alpha_sigma(s))
    return z_t, clean


def inverted(
    prior: Prior, conditions: Conditions, latents: Float[Tensor, "P C h w"], t: float, steps: int, scale: float
) -> Float[Tensor, "P C h w"]:
    """z_t at time t of the way that ends in these clean latents: DDIM backwards, in `steps` equal steps of time."""
    times = torch.linspace(NEARLY_CLEAN, t, steps + 1, dtype=latents.dtype, device=latents.device)
    alpha, _ = prior.alpha_sigma(times[:1])
    z_t, _ = travel(prior, conditions, alpha * latents, times, scale)
    return z_t


def mixed_anew(
    clean: Float[Tensor, "B *S"],
    z_t: Float[Tensor, "B *S"],
    now: tuple[Float[Tensor, "B"], Float[Tensor, "B"]],
    then: tuple[Float[Tensor, "B"], Float[Tensor, "B"]],
) -> Float[Tensor, "B *S"]:
    """One step of DDIM: what z_t would be at another time; `now` and `then` are alpha and sigma of both."""
    alpha_t, sigma_t, alpha_s, sigma_s = (a.reshape(-1, *[1] * (z_t.ndim - 1)) for a in (*now, *then))
    noise = (z_t - alpha_t * clean) / sigma_t
    return alpha_s * clean + sigma_s * noise


def pictures(
    prior: Prior,
    prompt: str,
    cameras: Cameras,
    generator: torch.Generator,
    steps: int = 25,
    scale: float = 3.0,
    rescale: float = 0.7,
    background: Float[Tensor, "3"] | None = None,  # white without one
) -> Float[Tensor, "P H W 3"]:
    """Albedo, shaded and normals of a prompt from these cameras, kind-major; for priors whose latents are pixels.

    Albedo and normals are drawn as one group, which is what they are trained as; shaded pictures are another.
    """
    behind = torch.ones(3) if background is None else background
    drawn: dict[str, Tensor] = {}
    for kinds in (("albedo", "normal"), ("shaded",)):
        told = Pictures(cameras, kinds, behind.to(cameras.azimuth))
        shape = (len(told), 3, prior.image_size, prior.image_size)
        latents = ddim(prior, prior.conditions(prompt, "", told), shape, steps, scale, rescale, generator)
        drawn |= zip(kinds, prior.decode(latents).clamp(0, 1).chunk(len(kinds)), strict=True)
    return torch.cat([drawn[kind] for kind in ("albedo", "shaded", "normal")])
