"""What priors have in common that are a checkpoint, and are told or shown something of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.hub.families import Words
from threed.distill.hub.text_to_image import TextToImage
from threed.distill.prior import Prediction

if TYPE_CHECKING:
    from threed.distill.adapter import LoRA


@dataclass(frozen=True)
class Around:
    """All that a prior does as the checkpoint in it does."""

    base: TextToImage

    @property
    def network(self) -> Any:
        return self.base.network

    @property
    def image_size(self) -> int:
        return self.base.image_size

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return self.base.alpha_sigma(t)

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P C h w"]:
        """Raises ValueError for pictures that are not square."""
        return self.base.encode(image)

    def decode(self, latents: Float[Tensor, "P C h w"]) -> Float[Tensor, "P H W 3"]:
        return self.base.decode(latents)

    @torch.no_grad()
    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Words) -> Prediction:
        return self.answer(self.network, z_t, t, condition)

    def answer(
        self, network: Any, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Words
    ) -> Prediction:
        """What this network or a changed one believes; differentiable."""
        return self.base.answer(network, z_t, t, condition)

    def adapter(self, rank: int, rate: float, seed: int) -> LoRA:
        """One that says what this prior says until it is trained; see `distill.vsd`."""
        from threed.distill.adapter import LoRA

        return LoRA(self, rank, rate, seed)
