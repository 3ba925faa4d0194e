"""The start's part of a training: a basis for the cubes of its volumes, and the loss of its diffusion.

Every asset is prepared in several versions, as it came and in other colours with captions to match, each under several
wordings, so that a step only draws and adds noise. A share of every batch is shown pictures instead (`pairs`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor, nn

from threed import disk
from threed.distill.start import Start, StartConfig, cut, load, sample, volume_of, voxels_of, weights
from threed.distill.text import Text
from threed.pictures import png
from threed.pictures import sheet as paper
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Material
from threed.renderers.read import normalised
from threed.renderers.voxels import Voxels
from threed.train import seeded
from threed.training import networks
from threed.training.captions import vary
from threed.training.pairs import Pairs
from threed.training.recolour import draw

BASIS_CUBES = 40_000  # that the basis is made from
NEAR = 1.0  # voxels; so near to the surface a colour is one of the surface's own


@dataclass(frozen=True)
class Versions:
    """A assets in V versions under W wordings out of S texts."""

    tokens: Float16[Tensor, "A V N K"]
    wording: Int[Tensor, "A V W"]
    texts: Text
    nothing: Text  # the empty caption's
    caption: tuple[tuple[str, ...], ...]  # A x V, for people

    def to(self, device: torch.device | str) -> Versions:
        """The same in this device's memory."""
        texts, nothing = (Text(t.tokens.to(device), t.mean.to(device)) for t in (self.texts, self.nothing))
        return replace(
            self, tokens=self.tokens.to(device), wording=self.wording.to(device), texts=texts, nothing=nothing
        )


@dataclass(frozen=True)
class StartLoss:
    """Mean squared error of the clean tokens; timesteps spread evenly over (0, 1)."""

    versions: Versions
    pairs: Pairs | None = None
    recoloured: float = 0.4  # share of samples in other colours than their own
    reworded: float = 0.5  # share of samples under other words than their own
    untold: float = 0.1  # share of samples without a text, for guidance
    shown: float = 0.3  # share of samples with a picture, where there are pairs
    unsaid: float = 0.5  # share of these without a text

    def __call__(self, network: Any, samples: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """`network` is a Start, or what PyTorch compiled of one."""
        shown = int(self.shown * samples) if self.pairs else 0
        errors = [self.error(network, *self.drawn(samples - shown, generator), None, generator)]
        if shown:
            errors.append(self.error(network, *self.pictured(network, shown, generator), generator))
        return torch.cat(errors).mean()

    def error(
        self,
        network: Any,
        clean: Float[Tensor, "B N K"],
        text: Text,
        picture: Float[Tensor, "B 4 H W"] | None,
        generator: torch.Generator,
    ) -> Float[Tensor, "B"]:
        """Of what the network makes of every sample at a time of its own."""
        count, device = len(clean), clean.device
        first = torch.rand(1, generator=generator, device=device)
        t = ((first + torch.arange(count, device=device) / count) % 1).clamp(1e-3, 1 - 1e-3)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        alpha, sigma = (a[:, None, None] for a in network.alpha_sigma(t))
        predicted: Tensor = network(alpha * clean + sigma * noise, t, text.tokens, text.mean, picture)
        return (predicted.float() - clean).square().mean(dim=(1, 2))

    def pictured(
        self, network: Any, samples: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B N K"], Text, Float[Tensor, "B 4 H W"]]:
        """Clean tokens in the frame of a picture, what they are called, and the picture."""
        assert self.pairs
        with torch.no_grad(), torch.autocast(generator.device.type, enabled=False):
            asset, volume, picture = self.pairs.drawn(samples, generator)
            clean = network.encode(volume)
        return clean, self.said(asset, torch.zeros_like(asset), self.unsaid, generator), picture

    def drawn(self, samples: int, generator: torch.Generator) -> tuple[Float[Tensor, "B N K"], Text]:
        """Clean tokens and what they are called."""
        versions = self.versions
        assets, others, _ = versions.wording.shape
        device = versions.tokens.device

        def integers(most: int) -> Tensor:
            return torch.randint(most, (samples,), generator=generator, device=device)

        asset, other = integers(assets), 1 + integers(max(others - 1, 1))
        version = torch.where(chance(self.recoloured, samples, generator), other, 0) % others
        return versions.tokens[asset, version].float(), self.said(asset, version, self.untold, generator)

    def said(
        self, asset: Int[Tensor, "B"], version: Int[Tensor, "B"], untold: float, generator: torch.Generator
    ) -> Text:
        """A wording of each version, or nothing."""
        versions, samples = self.versions, len(asset)
        some = torch.randint(versions.wording.shape[2], (samples,), generator=generator, device=generator.device)
        word = torch.where(chance(self.reworded, samples, generator), some, 0)
        row, nothing = versions.wording[asset, version, word], chance(untold, samples, generator)
        tokens = torch.where(nothing[:, None, None], versions.nothing.tokens, versions.texts.tokens[row])
        return Text(tokens, torch.where(nothing[:, None], versions.nothing.mean, versions.texts.mean[row]))


def chance(share: float, samples: int, generator: torch.Generator) -> Bool[Tensor, "B"]:
    return torch.rand(samples, generator=generator, device=generator.device) < share


def fresh(config: StartConfig, volumes: Sequence[Voxels], seed: int) -> Start:
    """An untrained network, with the principal components of these volumes' cubes as its basis."""
    torch.manual_seed(seed)
    start = Start(config)
    share = max(1, len(volumes) * config.cubes // BASIS_CUBES)
    some = torch.stack([volume_of(v) for v in volumes[::share]])
    cubes = cut(torch.cat([some, some.flip(2)]), config.patch).flatten(0, 1)
    start.mean.copy_(cubes.mean(0))
    cubes = (cubes - start.mean) * weights(config.patch)
    _, vectors = torch.linalg.eigh(cubes.T @ cubes / len(cubes))
    start.basis.copy_(vectors[:, -config.components :].flip(1).T)
    spread = (cubes @ start.basis.T).std(0)
    start.scale.copy_((spread * spread.mean()).sqrt())  # the mean variance of a token's numbers is 1
    return start


def continued(folder: Path, config: StartConfig, seed: int) -> Start:
    """The network of a prior's folder, to be trained on; what it does not have of `config` yet is untrained.

    Raises UnreadablePrior.
    """
    known = load(folder)
    torch.manual_seed(seed)
    start = Start(config)
    start.load_state_dict(start.state_dict() | known.state_dict())
    return start


@torch.no_grad()
def prepare(
    start: Start,
    volumes: Sequence[Voxels],
    captions: Sequence[Sequence[str]],
    encode: Callable[[Sequence[str]], Text],
    seed: int,
    others: int = 3,
    wordings: int = 6,
    tell: Callable[[int], None] | None = None,
) -> Versions:
    """All versions and wordings of the assets, drawn once; `captions` has one or more for each of them.

    `tell` hears how many assets are done. The start may be on any device, the versions stay on the processor.
    """
    tokens, rows, told, texts = [], [], [], dict[str, int]()
    for number, (voxels, own) in enumerate(zip(volumes, captions, strict=True)):
        random = np.random.default_rng((seed, number))
        looks = [(str(random.choice(own)), voxels), *repainted(voxels, own, others, random)]
        tokens.append(start.encode(torch.stack([volume_of(look) for _, look in looks])).half())
        told.append(tuple(caption for caption, _ in looks))
        for caption in told[-1]:
            wording = [caption, *(vary(caption, random) for _ in range(wordings - 1))]
            rows.append([texts.setdefault(words, len(texts)) for words in wording])
        if tell:
            tell(number + 1)
    encoded = [encode(list(texts)[i : i + 512]) for i in range(0, len(texts), 512)]
    return Versions(
        torch.stack(tokens),
        torch.tensor(rows).reshape(len(tokens), 1 + others, wordings),
        Text(torch.cat([text.tokens for text in encoded]), torch.cat([text.mean for text in encoded])),
        encode([""]),
        tuple(told),
    )


def repainted(
    voxels: Voxels, captions: Sequence[str], count: int, random: np.random.Generator
) -> Iterator[tuple[str, Voxels]]:
    """The asset in other colours, with captions to match; where none come true, as it is. Colours count as 8 bits."""
    skin = voxels.colour[voxels.distance.abs() < NEAR]
    palette, place = swatches(voxels.colour)
    for _ in range(count):
        caption, recolouring = draw(str(random.choice(captions)), skin[:: max(1, len(skin) // 256)], random)
        yield caption, replace(voxels, colour=recolouring(palette)[place])


def swatches(colour: Float[Tensor, "*S 3"]) -> tuple[Float[Tensor, "C 3"], Int[Tensor, "*S"]]:
    """The colours that occur, in 8 bits a channel, and which of them is where: few, so that each is moved only once."""
    red, green, blue = (colour * 255).round().long().unbind(-1)
    codes, place = torch.unique(red << 16 | green << 8 | blue, return_inverse=True)
    return torch.stack([codes >> 16, codes >> 8 & 255, codes & 255], dim=-1).float() / 255, place


def sheet(network: nn.Module, texts: Text, nothing: Text, size: int = 128, columns: int = 8, seed: int = 0) -> bytes:
    """A PNG of one volume of every text, seen from half a side as a mesh; white where nothing is solid."""
    start = copy.deepcopy(network).cpu()  # a sheet now and then does not keep a processor busy
    assert isinstance(start, Start)
    pictures = []
    for row in range(len(texts.mean)):
        text = Text(texts.tokens[row : row + 1].cpu(), texts.mean[row : row + 1].cpu())
        volume = sample(start, text, Text(nothing.tokens.cpu(), nothing.mean.cpu()), 1, seeded(seed))[0]
        pictures.append(drawn(voxels_of(volume), size))
    return png(paper(torch.stack(pictures), columns))


def drawn(voxels: Voxels, size: int) -> Float[Tensor, "H W 3"]:
    """What the voxels look like on white: their surface, every triangle in the colour of its middle."""
    try:
        mesh = voxels.mesh()
    except ValueError:
        return torch.ones(size, size, 3)
    _, colour = voxels.at(mesh.corners.mean(1))
    middle = (torch.arange(len(colour)) + 0.5) / len(colour)  # of each one's texel, in a picture one texel high
    uvs = torch.stack([middle, torch.full_like(middle, 0.5)], dim=-1)
    corners = torch.arange(len(colour))[:, None].expand(-1, 3)
    asset = Asset("volume", normalised(mesh), uvs, corners, Material(colour[None]))
    return surface.render(asset, orbit(8)[1:2], size, size, smooth=True).over(torch.ones(3))[0]


def write(folder: Path, start: Start, words: Iterable[str]) -> None:
    """Put it into a prior's folder, in bfloat16, with the words that it was taught. Raises OSError."""
    networks.write(folder / "start", start)
    disk.write(folder / "start" / "words.txt", "".join(f"{word}\n" for word in sorted(set(words))).encode())
