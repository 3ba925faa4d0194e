"""The ranker: how much of an exemplar is right, told by how a picture and the exemplar look from one camera.

Two objects with the same outline may be far from the same behind it. A small network looks at the picture and at the
exemplar beside it, in its colours and in depth, and says how much their volumes will overlap: a regression of what can
be measured wherever a truth is known (relevance as a graded target, as in learning to rank: Burges 2010,
MSR-TR-2010-82).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from threed.distill.folder import readable, restore
from threed.renderers.alike import compared, judged

CHANNELS = 9  # of the picture sRGB and alpha, of the exemplar the same and its depth
TOLD = 3  # how much outlines overlap, how far apart colours are, whether the exemplar is turned
GROUPS = 8  # of channels, which are made alike together


@dataclass(frozen=True)
class RankerConfig:
    """The shape of the network; what config.json beside its weights says."""

    size: int = 32  # pixels a side; a multiple of 8
    width: int = 32  # channels at the first level, and so many more at each of the two others
    hidden: int = 96


class Ranker(nn.Module):
    """Logits of intersections over union of volumes."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * level for level in (1, 1, 2, 3)]
        self.begin = nn.Conv2d(CHANNELS, widths[0], 3, padding=1)
        self.levels = nn.Sequential(*[level(*pair) for pair in pairwise(widths)])
        self.end = nn.Sequential(
            nn.Linear(2 * widths[-1] + TOLD, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 1)
        )

    def forward(self, beside: Float[Tensor, "N 9 S S"], told: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        x = self.levels(functional.silu(self.begin(beside)))
        found: Tensor = self.end(torch.cat([x.mean((2, 3)), x.amax((2, 3)), told], dim=1))
        return found[:, 0]


def level(width: int, wider: int) -> nn.Sequential:
    """Half the pixels a side, and two convolutions there."""
    layers: list[nn.Module] = [nn.Conv2d(width, wider, 2, stride=2)]
    for _ in range(2):
        layers += [nn.Conv2d(wider, wider, 3, padding=1), nn.GroupNorm(GROUPS, wider), nn.SiLU()]
    return nn.Sequential(*layers)


def beside(
    rgb: Float[Tensor, "N S S 3"],
    inside: Bool[Tensor, "N S S"],
    drawn: UInt8[Tensor, "N S S 4"],
    toward: Float[Tensor, "N S S"],
    turned: Bool[Tensor, "N"],
) -> tuple[Float[Tensor, "N 9 S S"], Float[Tensor, "N 3"]]:
    """Pictures and exemplars, as they are drawn (`ops`), as the network sees them: what it is shown, and is told."""
    overlap, apart = judged(compared(drawn, rgb, inside, paired=True))
    alpha = inside[..., None].to(rgb)
    shown = torch.cat([rgb * alpha, alpha, drawn.to(rgb) / 255, toward[..., None]], dim=-1)
    return shown.movedim(-1, 1), torch.stack([overlap, apart, turned.to(overlap)], dim=1)


def load(folder: Path) -> Ranker | None:
    """That of a prior's folder, compressed or not, None where it has none; raises UnreadablePrior if it is at fault."""
    config, model = folder / "ranker" / "config.json", folder / "ranker" / "model.safetensors"
    if not config.exists():
        return None
    with readable(config):
        ranker = Ranker(RankerConfig(**json.loads(config.read_text(encoding="utf-8"))))
    with readable(model):
        ranker.load_state_dict(restore(load_file(model)))
    return ranker.eval().requires_grad_(False)
