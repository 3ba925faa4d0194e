"""View-worded prompts and Perp-Neg: telling a prior that knows no cameras from where each picture is taken.

A prior of single pictures draws the front of a thing on every side of it, the Janus problem. Two remedies, for any
prior and any loss, because both live in `Conditions`:

- every picture's prompt says its view (DreamFusion, Poole et al. 2022, arXiv 2209.14988, section 3.2): "front view",
  "side view" or "back view", whichever is nearest in azimuth, or "overhead view" from high above;
- guidance is led aside from the views that the picture must not show (Perp-Neg, Armandpour et al. 2023,
  arXiv 2304.04968). With r the nearness to the first of two neighbouring views, 1 there and 0 at the second,

      between front and side:  from "front" by a decay of r, from "side" by the same decay of 1 - r,
      between side and back:   from "side" by one decay of r, from "front" by another,

  each of them amount * exp(-rate r) + offset. From above nothing is led aside.

The paper also mixes the texts of neighbouring views; here the nearest view is told, and a picture is not led aside from
its own words, which have nothing orthogonal to themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.prior import Conditions, Pictures, Prediction, Prior, Prompt
from threed.distill.vsd import Adapter, adapted

QUARTER = math.pi / 2


@dataclass(frozen=True)
class Decay:
    """amount * exp(-rate r) + offset."""

    amount: float
    rate: float
    offset: float

    def __call__(self, r: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return self.amount * torch.exp(-self.rate * r) + self.offset


@dataclass(frozen=True)
class Wording:
    """How views are worded and what is led aside from; the decays' numbers are those that are widely used.

    They meet at the side, and vanish where a picture would be led away from the view that it shows.
    """

    front: str = "front view"
    side: str = "side view"
    back: str = "back view"
    overhead: str = "overhead view"
    above: float = 60.0  # degrees of elevation from which a view is from overhead
    strength: float = 1.0  # of all that is led aside; 0 words the prompts alone
    front_before_side: Decay = field(default_factory=lambda: Decay(4.0, 0.5, -2.426))  # from front and from side
    side_before_back: Decay = field(default_factory=lambda: Decay(1.0, 0.5, -0.606))  # from side
    front_before_back: Decay = field(default_factory=lambda: Decay(1.0, 0.5, 0.967))  # from front

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength is {self.strength}; give a number from 0 on, such as 1")

    @property
    def views(self) -> tuple[str, ...]:
        """All that a prompt may have to say besides what it shows."""
        return self.front, self.side, self.back, self.overhead

    def told(self, prompt: str) -> list[str]:
        """All that a prior may be told of a prompt."""
        aside = [self.front, self.side] if self.strength else []
        return [*(f"{prompt}, {view}" for view in self.views), *aside]

    def words(self, azimuth: Float[Tensor, "P"], elevation: Float[Tensor, "P"]) -> list[str]:
        """What each view is called."""
        corners = torch.tensor([0.5, 1.5]).to(azimuth)  # quarters of a turn; a view on one has the farther name
        nearest = torch.bucketize(turned(azimuth) / QUARTER, corners, right=True).tolist()
        overhead = (elevation > math.radians(self.above)).tolist()
        named = (self.front, self.side, self.back)
        return [self.overhead if high else named[n] for n, high in zip(nearest, overhead, strict=True)]

    def weights(
        self, azimuth: Float[Tensor, "P"], elevation: Float[Tensor, "P"]
    ) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        """How strongly each view is led aside from the front view, and from the side view."""
        turn = turned(azimuth) / QUARTER
        r = torch.where(turn < 1, 1 - turn, 2 - turn)
        front = torch.where(turn < 1, self.front_before_side(r), self.front_before_back(r))
        side = torch.where(turn < 1, self.front_before_side(1 - r), self.side_before_back(r))
        heard = self.strength * (elevation <= math.radians(self.above))
        return heard * front.clamp(min=0), heard * side.clamp(min=0)


def turned(azimuth: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
    """The angle from the front, left or right, in [0, pi]."""
    return (torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi).abs()


@dataclass(frozen=True)
class Worded:
    """A prior that is told views in words, and is otherwise the one it holds."""

    prior: Prior
    wording: Wording = field(default_factory=Wording)

    @property
    def image_size(self) -> int:
        return self.prior.image_size

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.prior.kinds

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return self.prior.alpha_sigma(t)

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P C h w"]:
        return self.prior.encode(image)

    def decode(self, latents: Float[Tensor, "P C h w"]) -> Float[Tensor, "P H W 3"]:
        return self.prior.decode(latents)

    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        """Those of the prompts with their views named, led aside from views that are not theirs."""
        prompts = [prompt] * len(pictures) if isinstance(prompt, str) else prompt
        azimuth, elevation = (
            angle.repeat(len(pictures.kinds)) for angle in (pictures.cameras.azimuth, pictures.cameras.elevation)
        )

        def told(words: Sequence[str]) -> Conditions:
            named = [f"{each}, {view}" for each, view in zip(prompts, words, strict=True)]
            return self.prior.conditions(named, negative, pictures)

        asked = told(self.wording.words(azimuth, elevation))
        if self.wording.strength == 0:
            return asked
        views = (self.wording.front, self.wording.side)
        weights = self.wording.weights(azimuth, elevation)
        aside = tuple(
            (told([view] * len(pictures)).positive, weight) for view, weight in zip(views, weights, strict=True)
        )
        return replace(asked, aside=aside)

    def adapter(self, rank: int, rate: float, seed: int) -> Adapter:
        """Of the prior it holds; raises ValueError where that has none."""
        return adapted(self.prior, rank, rate, seed)

    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Any) -> Prediction:
        return self.prior.denoise(z_t, t, condition)
