"""Assets in other colours than they came in, and their captions to match, so that "a purple barrel" is obeyed.

Colours are display sRGB in [0, 1]. All judging and moving of them happens in OKLab (L lightness, a and b chroma;
Björn Ottosson 2020, https://bottosson.github.io/posts/oklab), where equal distances look about equally large.
Light and shade multiply linear sRGB and so scale L, a and b alike: the tint (a, b) / L of a surface is the same in the
light, in the shade and in an unlit picture. That is why colours are told apart, and moved, by tint and lightness.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from threed.renderers.colour import linear_from_srgb, srgb_from_linear
from threed.training.captions import can_be_coloured, colour_names, colour_words, with_colour

RGB = tuple[float, float, float]  # display sRGB in [0, 1]

# The first of a name's colours is what the word asks for; the others go by it too.
NAMED: dict[str, tuple[str, ...]] = {
    "red": ("#c62828", "#8e1b1b", "#e0473c", "#5c1414", "#8c3c32", "#cc5048"),
    "orange": ("#e87d1e", "#cc5f1a", "#f58c46", "#f5a04b"),
    "yellow": ("#f2d032", "#f5e27a", "#d8c94a"),
    "golden": ("#d9a321", "#b98a2c", "#c8b464"),
    "green": ("#3f9b3a", "#1f5a2a", "#7fc05a", "#6b7a2f", "#b5d99c", "#b4cc46", "#2e9464", "#7d8c5a", "#203a26"),
    "teal": ("#1f9a94", "#0f5c5c", "#6cc5bd", "#4b8282"),
    "blue": ("#2f62c9", "#1b2f6e", "#7fb0e8", "#4a9ad8", "#50789b", "#4a4f78", "#9cc4f0"),
    "purple": ("#7d3cb5", "#47246b", "#b48ae0", "#6e4678"),
    "pink": ("#ee7fb0", "#f5b5cf", "#d6459a", "#aa1e5a"),
    "brown": ("#7a4a26", "#4a2c1a", "#a8713f", "#8c5a4a", "#cd8a5a", "#55443c", "#b88c5c", "#dc9a68"),
    "beige": ("#e0cda4", "#cbb58a", "#f0dcb8", "#aa9b82"),
    "white": ("#f0f0f0", "#dcdfe4", "#f5efe2", "#e2dad4"),
    "grey": ("#8a8a8a", "#5a5a5a", "#b8b8b8", "#6e7a86", "#a5b0ba", "#484a50", "#7d746c", "#9696b0"),
    "black": ("#262626", "#161616", "#303030"),
}

NAMES = tuple(NAMED)
CANDIDATES = 32  # colours that are tried as the paint that covers most
SMALLEST_PART = 0.03  # of the surface, for a colour that a caption names to count as seen
SMALLEST_WHOLE = 0.5  # of the surface, for a caption to name one colour for all of it
TOLERANCE = 0.05  # OKLab; by so much a colour may be nearer to another name and still be meant
DARKEST = 0.15  # L; what is darker has no tint to speak of, and no light and shade to keep
FAINTEST = 1e-3  # L; divisions are by no less

# Ottosson 2020: linear sRGB to the cones' responses, and their cube roots to L, a, b.
LMS_FROM_RGB = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
LAB_FROM_LMS = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def oklab_from_srgb(srgb: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
    """OKLab of display sRGB in [0, 1]; L of white is 1."""
    return (linear_from_srgb(srgb) @ srgb.new_tensor(LMS_FROM_RGB).T) ** (1 / 3) @ srgb.new_tensor(LAB_FROM_LMS).T


def srgb_from_oklab(lab: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
    """Display sRGB of OKLab, clamped to [0, 1]."""
    lms = (lab @ lab.new_tensor(LAB_FROM_LMS).inverse().T) ** 3
    linear = (lms @ lab.new_tensor(LMS_FROM_RGB).inverse().T).clamp(min=0)
    return srgb_from_linear(linear).clamp(max=1)


def colour_of(name: str) -> RGB:
    """What a name of `NAMED` asks for."""
    return _rgb(NAMED[name][0])


def name_of(srgb: Float[Tensor, "3"] | RGB) -> str:
    """The name in `NAMED` of the nearest colour in OKLab."""
    return NAMES[int(_distances(torch.as_tensor(srgb).float()[None])[0].argmin())]


@dataclass(frozen=True)
class Recolouring:
    """A map of colours that paints what has the colour `source`, in light and shade, with `target`.

    Colours of the source's tint get the target's, keeping their difference from it; their lightness changes in
    proportion, and less above the source's so that it stays below white. Clearly other colours stay as they are, and
    what is between moves in part, so that the map is continuous. Works on albedo, shaded pictures and volumes alike.
    """

    source: RGB
    target: RGB

    def __call__(self, srgb: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
        """Within [0, 1]; what does not move, all of it where source and target are equal, comes back bit by bit."""
        if self.source == self.target:
            return srgb
        lab = oklab_from_srgb(srgb.clamp(0, 1))
        source, target = oklab_from_srgb(srgb.new_tensor([self.source, self.target]))
        moves = kinship(lab, source)[..., None]
        old, new, light = source[0].clamp(FAINTEST, 1 - FAINTEST), target[0].clamp(0, 1), lab[..., :1]
        # Two straight lines, from black through the source's lightness, on which lies the target's, and up to white.
        slope, slope_above = new / old, torch.minimum(new / old, (1 - new) / (1 - old))
        new_light = torch.where(light < old, light * slope, new + (light - old) * slope_above)
        new_light = light + moves * (new_light - light)
        new_tint = _tint(lab) + moves * (_tint(target) - _tint(source))
        moved = srgb_from_oklab(torch.cat([new_light, new_light * new_tint], dim=-1))
        return torch.where(moves == 0, srgb, moved)


UNCHANGED = Recolouring((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def kinship(lab: Float[Tensor, "*#N 3"], source: Float[Tensor, "*#N 3"]) -> Float[Tensor, "*_"]:
    """How well OKLab colours pass for the paint `source` in another light: 1 if they do, 0 if they clearly do not.

    Paints are told by their tint. Grey ones have hardly any, so they are told by their lightness too.
    """
    own = _tint(source)
    vividness = own.norm(dim=-1)
    same_tint = _fall((_tint(lab) - own).norm(dim=-1) / (0.022 + 0.17 * vividness), 1, 1.7)
    stops = (lab[..., 0].clamp(min=FAINTEST) / source[..., 0].clamp(min=FAINTEST)).log2()
    same_light = _fall(stops, 0.3, 0.5) * _fall(-stops, 0.8, 1.3)  # shade goes further than any lamp
    return same_tint * (1 - _fall(vividness, 0.05, 0.12) * (1 - same_light))


def dominant(srgb: Float[Tensor, "N 3"], weights: Float[Tensor, "N"]) -> Float[Tensor, "3"]:
    """The paint that covers most, its light and dark shades counted together and averaged; weights are areas."""
    _, index = torch.unique((srgb * 15).round(), dim=0, return_inverse=True)
    area = weights.new_zeros(int(index.max()) + 1).index_add(0, index, weights)
    total = srgb.new_zeros(len(area), 3).index_add(0, index, oklab_from_srgb(srgb) * weights[:, None])
    lab = total / area[:, None].clamp(min=1e-12)
    candidates = lab[area.topk(min(len(area), CANDIDATES)).indices]
    families = kinship(lab[None], candidates[:, None]) * area
    family = families[families.sum(1).argmax()]
    return srgb_from_oklab((family[:, None] * lab).sum(0) / family.sum())


def draw(caption: str, colours: Float[Tensor, "N 3"], rng: np.random.Generator) -> tuple[str, Recolouring]:
    """Another colour for an asset, and the caption that says so; `colours` are those of evenly spread visible points.

    Where the caption names colours, one of them that the asset shows is replaced. Where it names none, what covers most
    of the asset is recoloured, and the caption says so. Where neither would be true, it is `UNCHANGED`.
    """
    said = colour_words(caption)
    if said:
        masks = {colour: shown(colours, colour, said) for colour in said}
        old = str(rng.choice(said))
        seen = masks.pop(old)
        if any(set(colour_names(old)) & set(colour_names(other)) for other in masks):
            return caption, UNCHANGED
    else:
        old, masks, seen = None, {}, torch.full_like(colours[:, 0], can_be_coloured(caption), dtype=torch.bool)
    if seen.sum() <= SMALLEST_PART * len(colours):
        return caption, UNCHANGED
    source = dominant(colours[seen], torch.ones_like(colours[seen][:, 0]))
    taken = {name_of(source)}.union(*map(colour_names, said))
    target = str(rng.choice([name for name in NAMES if name not in taken]))
    recolouring = Recolouring(_tuple(source), like(target, rng))
    if not _comes_true(recolouring, colours, list(masks.values()), SMALLEST_PART if said else SMALLEST_WHOLE):
        return caption, UNCHANGED
    return with_colour(caption, old, target), recolouring


def shown(colours: Float[Tensor, "N 3"], colour: str, said: tuple[str, ...] = ()) -> Bool[Tensor, "N"]:
    """Which colours a caption's word may mean: those of its name or, failing that, nearly of its name.

    Where several words are `said`, each colour belongs to the one that fits best.
    """
    distances = _distances(colours)
    mine, every = _least(distances, colour_names(colour)), {name for word in said for name in colour_names(word)}
    best = mine <= _least(distances, {*every, *colour_names(colour)})
    meant = [best & (mine <= distances.amin(1) + tolerance) for tolerance in (0, TOLERANCE)]
    return meant[0] if meant[0].sum() > SMALLEST_PART * len(colours) else meant[1]


def like(name: str, rng: np.random.Generator) -> RGB:
    """A colour near the one that a name asks for, and of that name."""
    light, chroma = rng.uniform(0.95, 1.08), rng.uniform(0.9, 1.1)
    lab = oklab_from_srgb(torch.tensor(colour_of(name)))
    near = srgb_from_oklab(lab * torch.tensor([light, light * chroma, light * chroma], dtype=lab.dtype))
    return _tuple(near) if name_of(near) == name else colour_of(name)


def _comes_true(
    recolouring: Recolouring, colours: Float[Tensor, "N 3"], others: list[Bool[Tensor, "N"]], least: float
) -> bool:
    """Whether enough changes, all that does gets the target's name, and the `others` that the caption names stay."""
    source = oklab_from_srgb(colours.new_tensor(recolouring.source))
    moves = kinship(oklab_from_srgb(colours), source)
    if source[0] < DARKEST or moves.mean() < least or any(moves[other].mean() > 0.5 for other in others if other.any()):
        return False
    painted = recolouring(colours[moves > 0.5])
    return name_of(dominant(painted, torch.ones_like(painted[:, 0]))) == name_of(recolouring.target)


@functools.cache
def _exemplars() -> tuple[Float[Tensor, "E 3"], list[int]]:
    """OKLab of all colours in `NAMED`, and how many each name has."""
    colours = torch.tensor([_rgb(code) for codes in NAMED.values() for code in codes])
    return oklab_from_srgb(colours), [len(codes) for codes in NAMED.values()]


def _distances(srgb: Float[Tensor, "N 3"]) -> Float[Tensor, "N names"]:
    """To the nearest colour of every name, in OKLab."""
    exemplars, counts = _exemplars()
    every = torch.cdist(oklab_from_srgb(srgb), exemplars.to(srgb))
    return torch.stack([of_one.amin(1) for of_one in torch.split(every, counts, dim=1)], dim=1)


def _least(distances: Float[Tensor, "N names"], names: Iterable[str]) -> Float[Tensor, "N"]:
    return distances[:, [NAMES.index(name) for name in names]].amin(1)


def _tint(lab: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 2"]:
    return lab[..., 1:] / lab[..., :1].clamp(min=FAINTEST)


def _fall(x: Float[Tensor, "*N"], start: float, end: float) -> Float[Tensor, "*N"]:
    """1 up to `start`, 0 from `end` on, smooth between."""
    t = ((x - start) / (end - start)).clamp(0, 1)
    return 1 - t * t * (3 - 2 * t)


def _rgb(code: str) -> RGB:
    red, green, blue = bytes.fromhex(code.removeprefix("#"))
    return red / 255, green / 255, blue / 255


def _tuple(srgb: Float[Tensor, "3"]) -> RGB:
    red, green, blue = srgb.tolist()
    return red, green, blue
