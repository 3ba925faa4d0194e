"""From where a picture was taken, as a small convolutional network believes it.

What it says is relative to the front that a start answers with (`distill/start.py`): of the four quarters of a thing
the one that the camera stood nearest to. An azimuth is then known up to quarter turns and lies within 45 degrees of 0,
and the beliefs close a circle: what is seen from 44 degrees is nearly what another quarter shows from -44. Many
things look alike from several sides: it answers with distributions, over bins of equal width. Angles are degrees.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from threed.distill.folder import readable, restore

BIN = 5.0  # degrees
QUARTER = 90.0  # degrees, after which azimuths begin anew
AZIMUTHS = 18  # bins, from -45 to 45
LOWEST, ELEVATIONS = -20.0, 16  # bins, from -20 to 60
BLUR = 6.0  # degrees, standard deviation
PICTURE_CHANNELS = 4


@dataclass(frozen=True)
class AnglesConfig:
    """The shape of the network; what config.json beside its weights says."""

    size: int = 64  # pixels a side of the picture; a multiple of 16
    width: int = 32  # channels at a quarter of the pixels a side; at an eighth and a sixteenth twice and four times


class Stage(nn.Module):
    """So many times fewer pixels a side, then a residual block (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, before: int, after: int, times: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(before, after, 2 * times, stride=times, padding=times // 2)
        self.norms = nn.ModuleList([nn.GroupNorm(8, after) for _ in range(2)])
        self.convolutions = nn.ModuleList([nn.Conv2d(after, after, 3, padding=1) for _ in range(2)])

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        x = change = self.reduce(x)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            change = convolution(functional.silu(norm(change)))
        return x + change


class Angles(nn.Module):
    """Logits of the bins of azimuth, then of elevation, of pictures as a start is shown them."""

    def __init__(self, config: AnglesConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.look = nn.Sequential(
            Stage(PICTURE_CHANNELS, width, 4), Stage(width, 2 * width, 2), Stage(2 * width, 4 * width, 2)
        )
        self.tell = nn.Linear(4 * width * (config.size // 16) ** 2, AZIMUTHS + ELEVATIONS)

    def forward(self, picture: Float[Tensor, "N 4 S S"]) -> Float[Tensor, "N B"]:
        found: Tensor = self.tell(functional.silu(self.look(picture)).flatten(1))
        return found


@dataclass(frozen=True)
class Belief:
    """Where one picture may have been taken from: logarithms of probabilities."""

    azimuth: Float[Tensor, "A"]
    elevation: Float[Tensor, "E"]

    @property
    def middle(self) -> tuple[float, float]:
        """The medians of azimuth and elevation: the least wrong where several are as likely."""
        return median(self.azimuth) - QUARTER / 2, median(self.elevation) + LOWEST

    def likely(self, azimuth: Float[Tensor, "N"], elevation: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Logarithms of how likely it is to have been taken from there, give or take BLUR."""
        turned = within_quarter(azimuth[:, None] - middles(AZIMUTHS, -QUARTER / 2))
        tilted = elevation[:, None] - middles(ELEVATIONS, LOWEST)
        return blurred(turned, self.azimuth) + blurred(tilted, self.elevation)


def within_quarter(azimuth: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """The same up to quarter turns, from -45 to 45 degrees."""
    return (azimuth + QUARTER / 2) % QUARTER - QUARTER / 2


def middles(count: int, lowest: float, device: torch.device | None = None) -> Float[Tensor, "B"]:
    """Of bins, in degrees."""
    return lowest + (torch.arange(count, device=device) + 0.5) * BIN


def blurred(apart: Float[Tensor, "N B"], bins: Float[Tensor, "B"]) -> Float[Tensor, "N"]:
    """Of places so many degrees apart from the bins."""
    return (bins - (apart / BLUR).square() / 2).logsumexp(1)


def median(bins: Float[Tensor, "B"]) -> float:
    """Degrees from the beginning of the first bin, of logarithms of shares that each bin has evenly spread."""
    share = bins.double().softmax(0)
    below = share.cumsum(0)
    half = int((below >= 0.5).nonzero()[0])
    return BIN * (half + 1 - float((below[half] - 0.5) / share[half]))


@torch.no_grad()
def believed(angles: Angles, picture: Float[Tensor, "4 S S"]) -> Belief:
    """Of a picture, at any size, and of its mirror image, which was taken from the other side."""
    small = functional.adaptive_avg_pool2d(picture, angles.config.size)
    logits = angles(torch.stack([small, small.flip(2)]))
    azimuth, elevation = (each.log_softmax(-1) for each in logits.split([AZIMUTHS, ELEVATIONS], dim=-1))
    return Belief(
        torch.stack([azimuth[0], azimuth[1].flip(0)]).logsumexp(0).log_softmax(0),
        elevation.logsumexp(0).log_softmax(0),
    )


def load(folder: Path) -> Angles:
    """That of a prior's folder, compressed or not; raises UnreadablePrior when it is at fault."""
    config, model = folder / "angles" / "config.json", folder / "angles" / "model.safetensors"
    with readable(config):
        angles = Angles(AnglesConfig(**json.loads(config.read_text(encoding="utf-8"))))
    with readable(model):
        angles.load_state_dict(restore(load_file(model)))
    return angles.eval().requires_grad_(False)
