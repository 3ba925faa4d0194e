"""The upsampler: a start's volume in twice its resolution, without the seams between its tokens.

A convolutional network that looks at the voxels around (a U-Net, Ronneberger et al. 2015, arXiv 1505.04597) adds what
is missing to the interpolated volume; the voxels of the fine lattice are channels of the coarse one until the end (Shi
et al. 2016, arXiv 1609.05158). It is a regression and draws nothing at random: what a coarse volume leaves open is
little, and is made the most likely. Volumes are those of `distill/start.py`; the fine one's distances are in its own
voxels, half as long.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from threed.distill.folder import readable, restore

CHANNELS = 4  # distance, red, green, blue
CELLS = 8  # voxels of the fine lattice in one of the coarse

Layer = TypeVar("Layer", nn.Conv3d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class UpsamplerConfig:
    """The shape of the network; what config.json beside its weights says."""

    width: int = 32  # channels at the coarse lattice, doubled at every halving


class Upsampler(nn.Module):
    """From a volume to the finer one; a network without training interpolates."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.read = kept(nn.Conv3d(CHANNELS, width, 3, padding=1))
        self.down = nn.ModuleList([Residual(width), Residual(2 * width)])
        self.shrink = nn.ModuleList([kept(nn.Conv3d(w, 2 * w, 2, stride=2)) for w in (width, 2 * width)])
        self.middle = nn.Sequential(Residual(4 * width), Residual(4 * width))
        self.grow = nn.ModuleList([kept(nn.ConvTranspose3d(2 * w, w, 2, stride=2)) for w in (2 * width, width)])
        self.up = nn.ModuleList([Residual(2 * width), Residual(width)])
        self.write = kept(nn.Conv3d(width, CHANNELS * CELLS, 3, padding=1))
        nn.init.zeros_(self.write.weight)

    def forward(self, volume: Float[Tensor, "B 4 G G G"]) -> Float[Tensor, "B 4 2*G 2*G 2*G"]:
        """The side is a multiple of 4, for it is halved twice."""
        x, seen = self.read(volume.contiguous(memory_format=torch.channels_last_3d)), list[Tensor]()
        for look, shrink in zip(self.down, self.shrink, strict=True):
            seen.append(look(x))
            x = shrink(seen[-1])
        x = self.middle(x)
        for grow, look in zip(self.grow, self.up, strict=True):
            x = look(grow(x) + seen.pop())
        return interpolated(volume) + unfolded(self.write(functional.silu(x)))


class Residual(nn.Module):
    """Two convolutions that add a little to what there is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = kept(nn.Conv3d(width, width, 3, padding=1))
        self.second = kept(nn.Conv3d(width, width, 3, padding=1))
        with torch.no_grad():
            self.second.weight.mul_(0.3)  # or variances would add up

    def forward(self, x: Float[Tensor, "B C G G G"]) -> Float[Tensor, "B C G G G"]:
        change: Tensor = self.second(functional.silu(self.first(functional.silu(x))))
        return x + change


def kept(layer: Layer) -> Layer:
    """The layer with weights that keep a signal's variance: without norms, PyTorch's own would let it die away."""
    fan_in = layer.weight[0].numel() if isinstance(layer, nn.Conv3d) else layer.weight.shape[0]
    nn.init.normal_(layer.weight, std=(1.5 / fan_in) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def interpolated(volume: Float[Tensor, "B 4 G G G"]) -> Float[Tensor, "B 4 2*G 2*G 2*G"]:
    """Trilinear; distances in voxels half as long, and cut where they are cut."""
    fine = functional.interpolate(volume.contiguous(), scale_factor=2, mode="trilinear", align_corners=False)
    return torch.cat([2 * fine[:, :1], fine[:, 1:]], dim=1).clamp(-1, 1)


def unfolded(cells: Float[Tensor, "B C G G G"]) -> Float[Tensor, "B 4 2*G 2*G 2*G"]:
    """The channels of a voxel as the 2 x 2 x 2 that lie in it."""
    b, _, g = cells.shape[:3]
    cells = cells.contiguous().view(b, CHANNELS, 2, 2, 2, g, g, g).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return cells.reshape(b, CHANNELS, 2 * g, 2 * g, 2 * g)


def load(folder: Path, device: torch.device | str = "cpu") -> Upsampler:
    """The upsampler in a prior's folder, compressed or not; raises UnreadablePrior when it is at fault."""
    config, model = folder / "upsampler" / "config.json", folder / "upsampler" / "model.safetensors"
    with readable(config):
        upsampler = Upsampler(UpsamplerConfig(**json.loads(config.read_text(encoding="utf-8"))))
    with readable(model):
        upsampler.load_state_dict(restore(load_file(model)))
    return laid_out(upsampler).eval().requires_grad_(False).to(device)


def laid_out(upsampler: Upsampler) -> Upsampler:
    """Its memory laid out for speed."""
    return upsampler.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]
