"""The view oracle of a known solid, for the recipes that ask more of a prior than pictures.

It is centred on pictures of the solid, as the cameras of a step see it. To a negative prompt it answers as if any
picture were as likely: a normal distribution about grey, as wide as pictures go. Of an adapter it makes a `Memory`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from threed.distill.gaussian import ViewOracle
from threed.distill.prior import Conditions, Pictures, Prediction, Prompt
from threed.renderers import surface
from threed.renderers.camera import Cameras
from threed.renderers.light import studio
from threed.renderers.mesh import Asset

AROUND = 16  # azimuths of a memory
GAIN = 400.0  # of its numbers, so that an adapter's learning rates move a picture


def oracle(truth: Asset, size: int, std: float, lamp: bool = False) -> Oracle:
    """A prior that knows `truth` from every side, for pictures of `size` pixels, and the lamp of a finish."""

    def picture(cameras: Cameras, kinds: tuple[str, ...], background: Tensor, size: int) -> Tensor:
        light = studio(cameras.azimuth[0]) if lamp else None
        return Pictures(cameras, kinds, background).of(surface.render(truth, cameras, size, size, light=light))

    return Oracle(picture, std, size)


@dataclass(frozen=True)
class Told:
    """A condition: what is believed of these pictures."""

    mean: Float[Tensor, "P 3 h w"]
    std: float
    pictures: Pictures


@dataclass(frozen=True)
class Oracle(ViewOracle):
    def conditions(self, prompt: Prompt, negative: str, pictures: Pictures) -> Conditions:
        mean = super().conditions(prompt, negative, pictures).positive
        true, any_picture = Told(mean, self.std, pictures), Told(torch.zeros_like(mean), 1.0, pictures)
        return Conditions(positive=true, null=true, negative=any_picture if negative else None)

    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Told) -> Prediction:
        return ViewOracle.denoise(replace(self, std=condition.std), z_t, t, condition.mean)

    def adapter(self, rank: int, rate: float, seed: int) -> Memory:
        return Memory(self, rate)


class Memory(nn.Module):
    """Learns what sets pictures of a kind apart from the true ones, at some azimuths, and between them linearly."""

    def __init__(self, prior: Oracle, rate: float) -> None:
        super().__init__()
        self.prior, self.rate = prior, rate
        self.change = nn.Parameter(torch.zeros(len(prior.kinds), AROUND, 3, prior.image_size, prior.image_size))

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return self.prior.alpha_sigma(t)

    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Told) -> Prediction:
        kinds = [self.prior.kinds.index(kind) for kind in condition.pictures.kinds]
        place = condition.pictures.cameras.azimuth / (2 * math.pi) * AROUND
        before, share = place.floor().long(), (place - place.floor())[:, None, None, None]
        change = self.change[kinds]
        change = torch.lerp(change[:, before % AROUND], change[:, (before + 1) % AROUND], share)
        return self.prior.denoise(z_t, t, replace(condition, mean=condition.mean + GAIN * change.flatten(0, 1)))

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.change], "lr": self.rate}]
