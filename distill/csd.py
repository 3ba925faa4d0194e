"""Classifier score distillation (Yu et al. 2023, CSD, arXiv 2310.19415): guidance alone, without the prior it corrects.

The difference between what the prior says with and without the prompt is the score of an implicit classifier:

    gradient = w(t) (noise_hat(z_t; prompt) - noise_hat(z_t; null)).

The added noise is no part of it; between Gaussians of one width nothing of it is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from threed.distill.prior import Prior, asked
from threed.distill.score import Distillation, Noised, Shown


@dataclass(frozen=True)
class CSD(Distillation):
    """With a negative condition as in the paper: scale (prompt - null) + repel (null - negative), in noise predictions.

    Equal `scale` and `repel` put the negative in the place of null. Raises ValueError for a `rescale`.
    """

    name: str = field(default="csd", init=False)
    scale: float = 1.0
    repel: float = 1.0  # 0 leaves a negative condition unheard

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rescale:
            raise ValueError(f"rescale is {self.rescale}, and csd compares no contrasts; leave it at 0")

    def away(self, prior: Prior, learned: Any, shown: Shown, seen: Noised) -> Float[Tensor, "P C h w"]:
        del learned
        told = shown.conditions
        positive, null = asked(prior, seen.z_t, seen.t, replace(told, negative=None))
        away = self.scale * (null - positive)
        if told.negative is None or self.repel == 0:
            return away
        return away + self.repel * (prior.denoise(seen.z_t, seen.t, told.negative).clean - null)
