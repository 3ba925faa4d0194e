"""What a prior learns of one picture before it judges what the picture does not show.

Textual inversion (Gal et al. 2022, arXiv 2208.01618; for shapes: RealFusion, Melas-Kyriazi et al. 2023, arXiv
2302.10663, section 3.2): a word whose vectors v are such that the frozen prior denoises the picture best,

    v = argmin E_t,noise  w(t) |clean_hat(alpha x + sigma noise; "v prompt") - x|^2.

DreamBooth (Ruiz et al. 2022, arXiv 2208.12242, equation 2) as a LoRA (Hu et al. 2021, arXiv 2106.09685): the same, of
low-rank changes of the network, and beside it the same of what the prior itself draws of the prompt without the word,
so that it forgets nothing else. The error is `vsd.lesson` for both, as of every adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from threed.distill.adapter import LoRA, Networked
from threed.distill.prior import Prediction, Prior
from threed.distill.word import Word


@dataclass(frozen=True)
class Inversion:
    """How a word is learned; with these numbers as RealFusion's for Stable Diffusion."""

    steps: int = 3000
    rate: float = 2e-3
    batch: int = 4  # pictures a step, each framed, noised and put before a colour of its own
    vectors: int = 1


@dataclass(frozen=True)
class DreamBooth:
    """How the network learns; with these numbers as diffusers' LoRA does for Stable Diffusion."""

    steps: int = 500
    rate: float = 1e-4
    batch: int = 1
    rank: int = 4
    drawn: int = 100  # groups of pictures that the prior draws of the prompt, and is not to forget; from 1
    drawn_steps: int = 25  # of denoising
    drawn_scale: float = 7.5  # guidance scale


@dataclass(frozen=True)
class Learns:
    """What is learned of a picture, the word first. A network that learns without one is told one that means nothing
    new, by which it knows the object."""

    word: Inversion | None = None
    network: DreamBooth | None = None
    # Distances from which the picture may have been taken, as shares of its camera's: how it is framed at random.
    framing: tuple[float, float] = (0.85, 1.25)

    @property
    def vectors(self) -> int:
        return self.word.vectors if self.word else 1


@runtime_checkable
class Teachable(Networked, Prior, Protocol):
    """A prior that hears words and can learn one, and can have another network in the place of its own."""

    def adapter(self, rank: int, rate: float, seed: int) -> LoRA:
        """One that says what the prior says until it is trained, at this learning rate."""

    def beginning(self, prompt: str, count: int) -> Word:
        """A word of so many vectors that means what the prompt does, or, of an empty one, everything a little."""

    def knowing(self, word: Word) -> Teachable:
        """The same prior for prompts with this word in them; its conditions are differentiable to it."""

    def thinking(self, network: Any) -> Teachable:
        """The same prior with this network."""


@dataclass(frozen=True)
class Differentiable:
    """A frozen prior through which gradients reach what it is told."""

    prior: Networked

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return self.prior.alpha_sigma(t)

    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Any) -> Prediction:
        return self.prior.answer(self.prior.network, z_t, t, condition)
