"""A checkpoint that is shown something beside what it denoises: a control map, or the picture that it is to change.

What it is shown goes with what it is told, as "shown" in the words of every condition; a `Sight` says what that is, and
lets the checkpoint's network, or an adapted one, see it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.hub.around import Around
from threed.distill.hub.families import Words
from threed.distill.hub.text_to_image import TextToImage
from threed.distill.prior import Conditions, Pictures, Prediction, Prompt

SHOWN = "shown"


@runtime_checkable
class Sight(Protocol):
    """What a checkpoint is shown, and how its network sees it; a frozen dataclass."""

    def conditions(self, prior: TextToImage, pictures: Pictures, told: Conditions) -> Conditions:
        """What these pictures are told, with what they are shown."""

    def seeing(self, network: Any, shown: Tensor) -> Any:
        """The network, which from now on sees that; called as diffusers' UNets are."""


@dataclass(frozen=True)
class Steered(Around):
    """A prior that is shown something, and is otherwise the one it holds."""

    sight: Sight

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.base.kinds

    @torch.no_grad()
    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        """Raises ValueError as the prior does, and for pictures that do not say what they are of."""
        return self.sight.conditions(self.base, pictures, self.base.conditions(prompt, negative, pictures))

    def answer(
        self, network: Any, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Words
    ) -> Prediction:
        """What this network or a changed one believes; differentiable."""
        return self.base.answer(self.sight.seeing(network, condition[SHOWN]), z_t, t, condition)


def showing(told: Conditions, shown: Tensor) -> Conditions:
    """The same, and under every condition this to look at."""

    def beside(words: Words) -> Words:
        return words | {SHOWN: shown}

    negative = None if told.negative is None else beside(told.negative)
    aside = tuple((beside(words), weight) for words, weight in told.aside)
    return replace(told, positive=beside(told.positive), null=beside(told.null), negative=negative, aside=aside)
