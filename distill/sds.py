"""Score distillation sampling (Poole et al. 2022, DreamFusion, arXiv 2209.14988, eq. 3).

A render is noised and shown to the frozen prior; what the prior would change about it, less the noise that was added,
is the gradient that the scene receives:

    gradient = w(t) (noise_hat - noise) = w(t) alpha / sigma (x - clean_hat).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from threed.distill.prior import Prior, guide
from threed.distill.score import Distillation, Noised, Shown


@dataclass(frozen=True)
class SDS(Distillation):
    """With weight "clean" and a `rescale`, MVDream's loss: 0.5 |x - clean_hat|^2 (arXiv 2308.16512, eq. 4)."""

    name: str = field(default="sds", init=False)

    def away(self, prior: Prior, learned: Any, shown: Shown, seen: Noised) -> Float[Tensor, "P C h w"]:
        del learned
        return shown.latents - guide(prior, seen.z_t, seen.t, shown.conditions, self.scale, self.rescale).clean
