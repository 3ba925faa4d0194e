"""The start: a small diffusion over volumes, so that distillation need not find the shape from nothing.

A volume is 4 x G^3: the signed distance to the surface over its truncation, then the display sRGB of the nearest
surface in [-1, 1]; axes x, y, z, the frame of `renderers.voxels`. Cubes of P^3 voxels become tokens: their components
in a fixed orthonormal basis (the principal components of the training set's cubes), each divided by the square root of
its spread, or the few large ones would drown the many small ones, which make edges sharp. A transformer over these
tokens and those of the text predicts the clean ones. z_t = alpha z + sigma noise, with t in (0, 1) and

    alpha, sigma = cos(s), sin(s),   tan(s) = shift tan(pi t / 2):

the cosine schedule with `shift` times its noise, because neighbouring voxels repeat one another (Hoogeboom et al. 2023,
arXiv 2301.11093, eq. 4). Guidance is `null + scale * (positive - null)` on the clean tokens, as everywhere.

A start may also be shown a picture of the object: RGB in [-1, 1] times alpha, and alpha, as the reference of a views
prior. It is not told from where: of the four quarter turns of the volume, it answers with the one whose front is within
45 degrees of the camera.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from threed.distill.attention import attention
from threed.distill.embedded import compute_dtype
from threed.distill.folder import readable, restore
from threed.distill.sample import mixed_anew
from threed.distill.text import Text, normalized
from threed.renderers.voxels import TRUNCATION, Voxels

CHANNELS = 4  # distance, red, green, blue
COLOUR_WEIGHT = 0.5  # of a colour's error, against that of the distance
FREQUENCIES = 16  # of the timestep's harmonics
ENCODER = (32, 64, 128, 256)  # channels of a picture's encoder, at half the pixels a side each
FIRST, LAST = 0.995, 0.005  # timesteps between which volumes are sampled


@dataclass(frozen=True)
class StartConfig:
    """The shape of the network; what config.json beside its weights says."""

    resolution: int = 32  # voxels a side
    patch: int = 8  # voxels a side of one token
    components: int = 192  # numbers that a token keeps
    width: int = 256
    layers: int = 8
    head: int = 64  # features of an attention head
    text_tokens: int = 16
    text_features: int = 128
    shift: float = 2.0  # of the noise, against the cosine schedule
    picture: int = 0  # pixels a side of the picture that it can be shown; 0 for none

    @property
    def cubes(self) -> int:
        return (self.resolution // self.patch) ** 3

    @property
    def picture_tokens(self) -> int:
        return (self.picture // 2 ** len(ENCODER)) ** 2


class Start(nn.Module):
    """Predicts the clean tokens of a volume from noised ones and a text, which see one another; time modulates all."""

    mean: Float[Tensor, "V"]
    basis: Float[Tensor, "K V"]
    scale: Float[Tensor, "K"]

    def __init__(self, config: StartConfig) -> None:
        super().__init__()
        self.config = config
        width, values = config.width, CHANNELS * config.patch**3
        self.register_buffer("mean", torch.zeros(values))  # of the training set's cubes
        self.register_buffer("basis", torch.zeros(config.components, values))  # orthonormal rows
        self.register_buffer("scale", torch.ones(config.components))  # what a component is divided by
        self.read_volume = nn.Linear(config.components, width)
        self.read_text = nn.Linear(config.text_features, width)
        self.place = nn.Parameter(torch.randn(config.text_tokens + config.cubes, width) * 0.02)
        self.read_time = nn.Linear(2 * FREQUENCIES, width)
        self.read_summary = nn.Linear(config.text_features, width)
        if config.picture:
            self.read_picture = PictureEncoder(width, config.picture_tokens)
        self.modulate = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList([Block(width, config.head) for _ in range(config.layers)])
        self.settle = nn.Linear(width, 2 * width)
        self.write = nn.Linear(width, config.components)
        for layer in (self.modulate, self.settle, self.write):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        z_t: Float[Tensor, "B N K"],
        t: Float[Tensor, "B"],
        text: Float[Tensor, "B T F"],
        summary: Float[Tensor, "B F"],
        picture: Float[Tensor, "B 4 S S"] | None = None,
    ) -> Float[Tensor, "B N K"]:
        """The clean tokens; `summary` is the mean of the text's real tokens."""
        state = self.read_time(harmonics(t)) + self.read_summary(summary)
        x = torch.cat([self.read_text(text), self.read_volume(z_t)], dim=1) + self.place
        if picture is not None:
            seen = self.read_picture(picture)
            state, x = state + seen.mean(1), torch.cat([x, seen], dim=1)
        state = functional.silu(state)[:, None]
        modulation = self.modulate(state)
        for block in self.blocks:
            x = block(x, modulation)
        shift, scale = self.settle(state).chunk(2, dim=-1)
        return self.write(modulated(x[:, text.shape[1] :][:, : z_t.shape[1]], shift, scale))

    def alpha_sigma(self, t: Float[Tensor, "B"]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        angle = torch.atan(self.config.shift * torch.tan(t * (math.pi / 2)))
        return angle.cos(), angle.sin()

    def encode(self, volume: Float[Tensor, "B 4 G G G"]) -> Float[Tensor, "B N K"]:
        weighted = (cut(volume, self.config.patch) - self.mean) * weights(self.config.patch).to(self.mean)
        return weighted @ self.basis.T / self.scale

    def decode(self, tokens: Float[Tensor, "B N K"]) -> Float[Tensor, "B 4 G G G"]:
        cubes = tokens * self.scale @ self.basis / weights(self.config.patch).to(self.mean) + self.mean
        return joined(cubes, self.config.patch)


class PictureEncoder(nn.Module):
    """A picture as tokens, one for each square of it."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        layers, before = list[nn.Module](), 4
        for channels in ENCODER:
            layers += [nn.Conv2d(before, channels, 4, stride=2, padding=1), nn.SiLU()]
            before = channels
        self.look = nn.Sequential(*layers)
        self.read = nn.Linear(before, width)
        self.place = nn.Parameter(torch.randn(tokens, width) * 0.02)

    def forward(self, picture: Float[Tensor, "B 4 S S"]) -> Float[Tensor, "B P W"]:
        return self.read(self.look(picture).flatten(2).mT) + self.place


class Block(nn.Module):
    """Attention and a feed-forward network, modulated by time (Peebles and Xie 2023, arXiv 2212.09748, adaLN-Zero).

    All blocks share one modulation, to which each adds its own constants (Chen et al. 2023, arXiv 2310.00426).
    """

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.constants = nn.Parameter(torch.randn(6 * width) * 0.02)
        self.attend = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "B N W"], modulation: Float[Tensor, "B 1 M"]) -> Float[Tensor, "B N W"]:
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (modulation + self.constants).chunk(6, dim=-1)
        heads = self.attend(modulated(x, shift_a, scale_a)).unflatten(-1, (3, -1, self.head))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        x = torch.addcmul(x, gate_a, self.attended(attention(query, key, value).transpose(1, 2).flatten(2)))
        wide = self.widen(modulated(x, shift_f, scale_f))
        return torch.addcmul(x, gate_f, self.narrow(functional.silu(wide)))


def modulated(
    x: Float[Tensor, "B N W"], shift: Float[Tensor, "B 1 W"], scale: Float[Tensor, "B 1 W"]
) -> Float[Tensor, "B N W"]:
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:]), 1 + scale)


def harmonics(t: Float[Tensor, "B"]) -> Float[Tensor, "B 32"]:
    """sin and cos of pi t, at geometric frequencies from 1 to 64."""
    angle = t[:, None] * math.pi * torch.logspace(0, 6, FREQUENCIES, base=2.0, device=t.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def weights(patch: int) -> Float[Tensor, "V"]:
    """Of the values of a cube."""
    return torch.tensor([1.0, *[COLOUR_WEIGHT] * 3]).repeat_interleave(patch**3)


def cut(volume: Float[Tensor, "B C G G G"], patch: int) -> Float[Tensor, "B N V"]:
    """Cubes of patch^3 voxels, x slowest."""
    b, c, g = len(volume), volume.shape[1], volume.shape[2] // patch
    cubes = volume.reshape(b, c, g, patch, g, patch, g, patch).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return cubes.reshape(b, g**3, c * patch**3)


def joined(cubes: Float[Tensor, "B N V"], patch: int) -> Float[Tensor, "B C G G G"]:
    """The inverse of `cut`."""
    b, n, v = cubes.shape
    g, c = round(n ** (1 / 3)), v // patch**3
    volume = cubes.reshape(b, g, g, g, c, patch, patch, patch).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return volume.reshape(b, c, g * patch, g * patch, g * patch)


def volume_of(voxels: Voxels) -> Float[Tensor, "4 G G G"]:
    """What the codec sees of voxels."""
    return torch.cat([voxels.distance[None] / TRUNCATION, 2 * voxels.colour.movedim(-1, 0) - 1])


def voxels_of(volume: Float[Tensor, "4 G G G"]) -> Voxels:
    """The inverse of `volume_of`, cut to what voxels may be."""
    volume = volume.clamp(-1, 1)
    return Voxels(volume[0] * TRUNCATION, (volume[1:].movedim(0, -1) + 1) / 2)


@torch.no_grad()
def sample(
    start: Start,
    text: Text,
    nothing: Text,
    count: int,
    generator: torch.Generator,
    steps: int = 25,
    scale: float = 2.0,
    picture: Float[Tensor, "4 S S"] | None = None,
    led: Callable[[Float[Tensor, "C 4 G G G"]], Float[Tensor, "C 4 G G G"]] | None = None,
) -> Float[Tensor, "C 4 G G G"]:
    """Volumes of one text, and of a picture, by deterministic DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12).

    Whatever is believed to be the clean volumes is first `led` to what is known of them besides; in the end, too.
    Raises ValueError for a picture where the start takes none, or of another size than it takes.
    """
    config, device = start.config, start.place.device
    shown = None if picture is None else checked(picture, config).expand(count, -1, -1, -1).to(device)
    z = torch.randn(count, config.cubes, config.components, generator=generator).to(device)
    told, untold = (Text(each.tokens.to(device), each.mean.to(device)) for each in (text, nothing))
    times = torch.linspace(FIRST, LAST, steps + 1, device=device)[:, None].expand(-1, count)
    for now, then in pairwise(times):
        with torch.autocast(device.type, torch.bfloat16, compute_dtype(device) == torch.bfloat16):
            clean = guided(start, z, now, told, untold, scale, shown)
        if led:
            clean = start.encode(led(start.decode(clean).cpu()).to(device))
        z = mixed_anew(clean, z, start.alpha_sigma(now), start.alpha_sigma(then))
    volumes = start.decode(clean)
    return led(volumes.cpu()).to(device) if led else volumes


def guided(
    start: Start,
    z_t: Float[Tensor, "B N K"],
    t: Float[Tensor, "B"],
    text: Text,
    nothing: Text,
    scale: float,
    picture: Float[Tensor, "B 4 S S"] | None = None,
) -> Float[Tensor, "B N K"]:
    """Clean tokens of texts, one for each volume or for all, and of pictures, led away from those of nothing."""

    def told(text: Text) -> tuple[Tensor, Tensor]:
        return text.tokens.expand(len(z_t), -1, -1), text.mean.expand(len(z_t), -1)

    positive = start(z_t, t, *told(text), picture).float()
    null = start(z_t, t, *told(nothing)).float()
    return null + scale * (positive - null)


def checked(picture: Float[Tensor, "4 S S"], config: StartConfig) -> Float[Tensor, "4 S S"]:
    """The picture, if the start takes such."""
    if not config.picture:
        raise ValueError("this start was trained without pictures; leave the picture out, or train the start again")
    if picture.shape != (4, config.picture, config.picture):
        raise ValueError(
            f"the picture is {tuple(picture.shape)}; this start takes 4 x {config.picture} x {config.picture}"
        )
    return picture


def load(folder: Path, device: torch.device | str = "cpu") -> Start:
    """The start in a prior's folder, compressed or not; raises UnreadablePrior when there is none or it is at fault."""
    start, model = Start(shape(folder)), folder / "start" / "model.safetensors"
    with readable(model):
        start.load_state_dict(restore(load_file(model)))
    return start.eval().requires_grad_(False).to(device)


def shape(folder: Path) -> StartConfig:
    """Of the start in a prior's folder; raises UnreadablePrior when there is none or it is at fault."""
    config = folder / "start" / "config.json"
    with readable(config):
        return StartConfig(**json.loads(config.read_text(encoding="utf-8")))


def untaught(prompt: str, folder: Path) -> list[str]:
    """The words of a prompt that the start in this folder was never told; none where it does not say what it was told.

    A prompt without any letter, such as a picture character, is a word of its own.

    Raises UnreadablePrior for a list that cannot be read.
    """
    path = folder / "start" / "words.txt"
    if not path.exists():
        return []
    with readable(path):
        known = set(path.read_text(encoding="utf-8").split())
    words = re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", normalized(prompt)) or [prompt]
    return [word for word in words if word not in known]
