"""Noise-free score distillation (Katzir et al. 2023, NFSD, arXiv 2310.17590).

What guidance predicts is taken apart into a step into the domain of real pictures, one toward the prompt, and the noise
that was added; the noise is left out. With noises named by their condition,

    gradient = w(t) (delta_D + scale delta_C),        delta_C = noise(prompt) - noise(null),
    delta_D = noise(null) for t < 0.2, where little noise is in it, else noise(null) - noise(negative),

because a negative prompt of the faults that renders have predicts the added noise and no way to better pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from threed.distill.prior import Prior, asked
from threed.distill.score import Distillation, Noised, Shown


@dataclass(frozen=True)
class NFSD(Distillation):
    """Raises ValueError for a `rescale`, and when it is called without a negative condition."""

    name: str = field(default="nfsd", init=False)
    scale: float = 7.5
    quiet: float = 0.2  # below this time noise(null) is taken to be free of the added noise

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rescale:
            raise ValueError(f"rescale is {self.rescale}, and nfsd compares no contrasts; leave it at 0")
        if not 0 <= self.quiet <= 1:
            raise ValueError(f"quiet is {self.quiet}; give a time in [0, 1], such as 0.2")

    def away(self, prior: Prior, learned: Any, shown: Shown, seen: Noised) -> Float[Tensor, "P C h w"]:
        del learned
        told = shown.conditions
        if told.negative is None:
            raise ValueError('nfsd needs a negative prompt; give one, such as --negative "blurry, low quality"')
        positive, null = asked(prior, seen.z_t, seen.t, replace(told, negative=None))
        if seen.t[0] < self.quiet:
            domain = seen.z_t / seen.alpha - null  # sigma / alpha noise(null)
        else:
            domain = prior.denoise(seen.z_t, seen.t, told.negative).clean - null
        return domain + self.scale * (null - positive)
