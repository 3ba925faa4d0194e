"""What a prior is asked when it is evaluated: captions, other words for them, and things in new colours.

The seed alone chooses, among those captions of a folder that the priors can read; no asset comes twice. Assets are at
radius 1, colours display sRGB in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.embedded import Embedded
from threed.distill.text import Text
from threed.errors import Mistake
from threed.log import Log
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset
from threed.renderers.read import normalised, read
from threed.renderers.volume import Render
from threed.start import CANDIDATES
from threed.train import seeded
from threed.training.captions import can_be_coloured, colour_names, colour_words, paraphrases, parse, with_colour
from threed.training.collection import Item
from threed.training.judge import Judge
from threed.training.recolour import NAMES, Recolouring, colour_of, dominant, name_of
from threed.training.views_cache import surface_colours

PIECES = ("views", "reference", "recolouring", "start", "pictures")  # each with random numbers of its own
SUPERSAMPLE = 3  # of renders, as in training


@dataclass(frozen=True)
class Sizes:
    """How much is looked at, where the folder has as much; the defaults take about half an hour on two cores."""

    captions: int = 100  # that are drawn, and that a picture is to be told among
    views: int = 4  # drawn jointly
    steps: int = 20  # of sampling
    fits: int = 12  # captions whose views a solid is fitted to
    fit_steps: int = 100
    references: int = 25  # assets that are turned
    cameras: int = 16  # around each; a multiple of 4
    recolourings: int = 50
    candidates: int = CANDIDATES  # volumes a caption, of which the most usual one is taken

    def __post_init__(self) -> None:
        least = {"captions": 2, "references": 2, "cameras": 4}
        for name, value in asdict(self).items():
            if value < least.get(name, 1):
                raise Mistake(f"an evaluation cannot have {name} {value}; use at least {least.get(name, 1)}")
        if self.cameras % 4:
            raise Mistake(f"cameras is {self.cameras}; use a multiple of 4, so that groups stand a quarter turn apart")


def scaled(captions: int) -> Sizes:
    """For so many captions, the rest in proportion."""
    return Sizes(
        captions, fits=max(1, captions // 8), references=max(2, captions // 4), recolourings=max(1, captions // 2)
    )


@dataclass(frozen=True)
class Prompt:
    """A caption, and what it should look like."""

    caption: str
    paraphrase: str | None  # in words that no training says; not every caption has any
    asset: Asset  # the first that it describes, at radius 1
    paths: tuple[Path, ...]  # all of them


@dataclass(frozen=True)
class Painting:
    """A thing in a colour in which nobody has seen it."""

    caption: str
    old: str | None  # the colour that the caption names
    name: str  # of the new one, in `recolour.NAMED`
    asset: Asset  # the first that it describes, at radius 1
    paint: Float[Tensor, "3"]  # what covers most of it

    @property
    def repainted(self) -> Asset:
        """The asset in the new colour: what should be drawn."""
        red, green, blue = self.paint.tolist()
        picture = Recolouring((red, green, blue), colour_of(self.name))(self.asset.material.base_color)
        return replace(self.asset, material=replace(self.asset.material, base_color=picture))

    def said(self, name: str) -> str:
        """The caption in this colour."""
        return with_colour(self.caption, self.old, name)


@dataclass(frozen=True)
class Trial:
    """What every measurement of a prior needs."""

    prior: Embedded
    judge: Judge
    sizes: Sizes
    seed: int
    log: Log
    device: torch.device

    @property
    def size(self) -> int:
        return self.prior.image_size

    def generator(self, piece: str, *numbers: int) -> torch.Generator:
        """Random numbers of one piece of the work, on the prior's device."""
        generator = seeded(self.seed, PIECES.index(piece), *numbers)
        if self.device.type == "cpu":
            return generator
        return torch.Generator(self.device).manual_seed(generator.initial_seed())

    def text(self, prompts: Sequence[str]) -> Text:
        return self.prior.reader(prompts)


def chosen(
    items: Sequence[Item], sizes: Sizes, seed: int, takes: Callable[[str], bool], log: Log
) -> tuple[Prompt, ...]:
    """Captions to draw, by the seed alone, each with assets of its own; as many as there are, up to `sizes.captions`.

    takes: whether the priors can read a whole prompt. Raises Mistake for fewer than two.
    """
    paths, used = owners(items), set[Path]()
    random, prompts = np.random.default_rng((seed, 0)), list[Prompt]()
    for caption in random.permutation(sorted(paths)).tolist():
        others = [words for words in paraphrases(caption) if takes(words)]
        paraphrase = str(random.choice(others)) if others else None
        if not takes(caption) or used & {*paths[caption]}:
            continue
        if (asset := first(paths[caption], log)) is not None:
            used.update(paths[caption])
            prompts.append(Prompt(caption, paraphrase, asset, paths[caption]))
        if len(prompts) == sizes.captions:
            break
    if len(prompts) < 2:
        raise Mistake(
            f"{len(prompts)} of {len(paths)} captions are short enough, with an asset of their own that can be drawn; "
            "an evaluation needs at least 2"
        )
    return tuple(prompts)


def painted(
    items: Sequence[Item],
    sizes: Sizes,
    seed: int,
    takes: Callable[[str], bool],
    log: Log,
    known: Collection[str] = (),
) -> tuple[Painting, ...]:
    """ "a COLOUR THING", by the seed alone: every thing once, in a colour that neither its captions nor it has.

    known: further captions, whose colours are not new.
    """
    paths, used = owners(items), set[Path]()
    random, said, found = np.random.default_rng((seed, 1)), {*known, *paths}, dict[str, Painting]()
    for caption in random.permutation(sorted(paths)).tolist():
        phrase, own = parse(caption), colour_words(caption)
        simple = phrase.determiner in ("a", "an") and not phrase.tail and len(own) < 2 and can_be_coloured(caption)
        old = own[0] if own else None
        if not simple or used & {*paths[caption]} or (thing := with_colour(caption, old, NAMES[0])) in found:
            continue
        if (asset := first(paths[caption], log)) is None:
            continue
        colours = surface_colours(asset, 256, random)
        paint = dominant(colours, torch.ones_like(colours[:, 0]))
        taken = {name_of(paint), *(colour_names(old) if old else ())}
        others = {name: with_colour(caption, old, name) for name in NAMES if name not in taken}
        free = [name for name, words in others.items() if words not in said and takes(words)]
        if free:
            used.update(paths[caption])
            found[thing] = Painting(caption, old, str(random.choice(free)), asset, paint)
        if len(found) == sizes.recolourings:
            break
    return tuple(found.values())


def owners(items: Sequence[Item]) -> dict[str, tuple[Path, ...]]:
    """The files of every caption."""
    paths: dict[str, tuple[Path, ...]] = {}
    for item in items:
        paths[item.caption] = (*paths.get(item.caption, ()), item.path)
    return paths


def first(paths: Sequence[Path], log: Log) -> Asset | None:
    """The first that can be used, at radius 1."""
    for path in paths:
        try:
            asset = read(path)
            return replace(asset, mesh=normalised(asset.mesh))
        except ValueError as error:
            log.note(f"skipped: {error}")
    return None


def seen_once(asset: Asset, size: int, generator: torch.Generator) -> tuple[Cameras, Render]:
    """A camera somewhere between the front and the right, 15 degrees above the ground, and what it sees."""
    azimuth = math.pi / 4 * torch.rand(1, generator=generator, device=generator.device)
    camera = replace(orbit(1), azimuth=azimuth.cpu())
    return camera, surface.render(asset, camera, size, size, SUPERSAMPLE)
