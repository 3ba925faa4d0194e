"""A checkpoint that is shown something beside what it denoises: a control map, or the picture that it is to change.

What it is shown goes with what it is told, as "shown" in the words of every condition; a `Sight` says what that is, and
lets the checkpoint's network, or an adapted one, see it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.hub.families import Words
from threed.distill.hub.text_to_image import TextToImage
from threed.distill.prior import Conditions, Pictures, Prediction, Prompt

if TYPE_CHECKING:
    from threed.distill.adapter import LoRA

SHOWN = "shown"


@runtime_checkable
class Sight(Protocol):
    """What a checkpoint is shown, and how its network sees it; a frozen dataclass."""

    def conditions(self, prior: TextToImage, pictures: Pictures, told: Conditions) -> Conditions:
        """What these pictures are told, with what they are shown."""

    def seeing(self, network: Any, shown: Tensor) -> Any:
        """The network, which from now on sees that; called as diffusers' UNets are."""


@dataclass(frozen=True)
class Steered:
    """A prior that is shown something, and is otherwise the one it holds."""

    prior: TextToImage
    sight: Sight

    @property
    def image_size(self) -> int:
        return self.prior.image_size

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.prior.kinds

    @property
    def network(self) -> Any:
        return self.prior.network

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return self.prior.alpha_sigma(t)

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P C h w"]:
        return self.prior.encode(image)

    def decode(self, latents: Float[Tensor, "P C h w"]) -> Float[Tensor, "P H W 3"]:
        return self.prior.decode(latents)

    @torch.no_grad()
    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        """Raises ValueError as the prior does, and for pictures that do not say what they are of."""
        return self.sight.conditions(self.prior, pictures, self.prior.conditions(prompt, negative, pictures))

    @torch.no_grad()
    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Words) -> Prediction:
        return self.answer(self.network, z_t, t, condition)

    def answer(
        self, network: Any, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Words
    ) -> Prediction:
        """What this network or a changed one believes; differentiable."""
        return self.prior.answer(self.sight.seeing(network, condition[SHOWN]), z_t, t, condition)

    def adapter(self, rank: int, rate: float, seed: int) -> LoRA:
        """One that is shown the same, and says what this prior says until it is trained."""
        from threed.distill.adapter import LoRA

        return LoRA(self, rank, rate, seed)


def showing(told: Conditions, shown: Tensor) -> Conditions:
    """The same, and under every condition this to look at."""

    def beside(words: Words) -> Words:
        return words | {SHOWN: shown}

    negative = None if told.negative is None else beside(told.negative)
    aside = tuple((beside(words), weight) for words, weight in told.aside)
    return replace(told, positive=beside(told.positive), null=beside(told.null), negative=negative, aside=aside)
