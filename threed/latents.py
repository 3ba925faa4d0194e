"""Latents as colours: scenes made of what a prior works on (Latent-NeRF, Metzer et al. 2022, arXiv 2211.07600).

Such a scene is rendered as latents at once, with no encoder between it and the loss. What it looks like meanwhile, and
what is meshed and painted of it, an affine map says, channels to colours (section 3.3 there). The map is fitted to what
the prior makes of smooth pictures; for a prior of pixels it is exact, because those are its latents.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from threed.distill.prior import Prior

PICTURES, PATCHES = 16, 8  # that the map is fitted to, and random colours along a side of each, blended


class Latents(nn.Module):
    """Colours of latents: display sRGB = latents @ weight + bias, cut off to [0, 1]."""

    weight: Float[Tensor, "C 3"]
    bias: Float[Tensor, "3"]

    def __init__(self, weight: Float[Tensor, "C 3"], bias: Float[Tensor, "3"], side: int) -> None:
        super().__init__()
        self.side = side  # latents along a side of a picture
        self.register_buffer("weight", weight, persistent=False)  # the prior says it again
        self.register_buffer("bias", bias, persistent=False)

    @staticmethod
    @torch.no_grad()
    def of(prior: Prior, device: str = "cpu") -> Latents:
        """Those of a prior that is on this device, by least squares."""
        patches = torch.rand(PICTURES, 3, PATCHES, PATCHES, generator=torch.Generator().manual_seed(0))
        pictures = functional.interpolate(patches, (prior.image_size,) * 2, mode="bilinear")
        latents = prior.encode(pictures.movedim(1, -1).to(device)).float().cpu()
        side = latents.shape[-1]
        seen = functional.adaptive_avg_pool2d(pictures, side)
        known, wanted = (each.movedim(1, -1).flatten(0, 2).double() for each in (latents, seen))
        known = functional.pad(known, (0, 1), value=1.0)
        # Channels that say the same as others, but for rounding, share what they say.
        found = torch.linalg.lstsq(known, wanted, rcond=1e-5, driver="gelsd").solution.float()
        return Latents(found[:-1], found[-1], side)

    @property
    def channels(self) -> int:
        return len(self.weight)

    def forward(self, latents: Float[Tensor, "N C"]) -> Float[Tensor, "N 3"]:
        return (latents @ self.weight + self.bias).clamp(0, 1)


def check(wanted: bool, latents: Latents | None) -> None:
    """Raises ValueError where a scene is to be made of latents and nobody says of which, or the other way round."""
    if wanted != (latents is not None):
        raise ValueError(f"latents is {wanted}, and those of a prior were {'not ' if wanted else ''}given; make it fit")
