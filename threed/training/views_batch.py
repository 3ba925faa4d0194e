"""What the views prior is shown in training: which pictures, and what is said about them.

A batch holds groups of V pictures of one asset, which see one another in the network: one picture, four of one kind
a quarter turn apart, or eight, those four with light or without and then the same four as normals. The pictures of a
group share text, background, light, reference and time. A reference is told to each of them, and is itself one more
picture of its group, the last, which is given clean. `distill/conditions.py` has the network's inputs by number.

What is chosen for whole groups and pictures is chosen on the host (`plan`); everything with pixels happens where the
cache lies (`drawn`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from threed.distill.conditions import (
    REFERENCE_CHANNELS,
    Seen,
    before,
    geometry_picture,
    reference_picture,
    view_features,
)
from threed.distill.embedded import Condition, Embedded, Given
from threed.renderers.camera import Cameras
from threed.renderers.light import AMBIENT, TOWARD_LIGHT
from threed.training.captions import vary
from threed.training.recolour import UNCHANGED, Recolouring, draw
from threed.training.views_cache import Cache

KINDS = ("albedo", "shaded", "normal")
SHADED, NORMAL = KINDS.index("shaded"), KINDS.index("normal")
PAINTS = 16  # ways in which an asset is recoloured
MISJUDGED = 0.1  # radians, the usual error in saying from how high a photograph was taken


Paint = tuple[int, str, int]  # an asset, a caption of it, and one of its PAINTS
Painted = tuple[str, Recolouring]  # a caption and the colours that it speaks of


@dataclass(frozen=True)
class Chances:
    """How often a group is shown what; probabilities."""

    fours: float = 0.5  # share of the pictures that stand in groups of four
    eights: float = 0.3  # and of eight
    varied: float = 0.5  # a caption in other words
    recoloured: float = 0.3  # an asset in other colours, and its caption to match
    white: float = 0.5  # a white background; else a random colour
    reference: float = 0.5
    geometry: float = 0.4  # for groups of one or four that show no normals
    no_text: tuple[float, float] = (0.1, 0.5)  # without a reference, and with one
    no_azimuth: tuple[float, float] = (0.1, 0.6)


@dataclass(frozen=True)
class Plan:
    """What G groups, of N pictures in all, show; groups of one first, then those of four, then of eight."""

    runs: tuple[tuple[int, int], ...]  # how many groups, of how many pictures, references included
    group: Int[np.ndarray, "N"]  # whose picture it is
    view: Int[np.ndarray, "N"]
    kind: Int[np.ndarray, "N"]  # index into KINDS
    given: Bool[np.ndarray, "N"]  # whether it is its group's reference, and not to be denoised
    asset: Int[np.ndarray, "G"]
    captions: tuple[str, ...]  # of the groups
    recolourings: tuple[Recolouring, ...]
    reference: Int[np.ndarray, "G"]  # the view that is its reference, -1 without one
    azimuth: Bool[np.ndarray, "G"]  # whether it is told
    geometry: Bool[np.ndarray, "G"]  # whether it is given
    background: Float[np.ndarray, "G 3"]  # display sRGB
    t: Float[np.ndarray, "G"]


def plan(cache: Cache, count: int, chances: Chances, random: np.random.Generator, paints: dict[Paint, Painted]) -> Plan:
    """Choose what `count` pictures to denoise show; `paints` remembers, for the batches to come."""
    runs = parted(count, chances, random)
    pictures = np.repeat([v for _, v in runs], [n for n, _ in runs])
    seen = np.concatenate([np.arange(n) < int(chances.reference * n + random.random()) for n, _ in runs])
    groups, views, shown = len(pictures), cache.albedo.shape[1], pictures + seen
    group = np.repeat(np.arange(groups), shown)
    place = np.arange(len(group)) - (np.cumsum(shown) - shown)[group]
    given = place == pictures[group]
    kind = random.integers(0, np.where(pictures == 8, NORMAL, len(KINDS)))
    asset = random.integers(0, len(cache), groups)
    said = random.random(groups) >= np.where(seen, chances.no_text[1], chances.no_text[0])
    texts = [worded(cache, a, s, chances, random, paints) for a, s in zip(asset.tolist(), said.tolist(), strict=True)]
    colours = random.random((groups, 3))
    reference = np.where(seen, random.integers(0, views, groups), -1)
    around = (random.integers(0, views, groups)[group] + place % 4 * (views // 4)) % views
    return Plan(
        runs=tuple((len(list(each)), size) for size, each in groupby(shown.tolist())),
        group=group,
        view=np.where(given, reference[group], around),
        kind=np.select([given, place < 4], [SHADED, kind[group]], NORMAL),
        given=given,
        asset=asset,
        captions=tuple(caption for caption, _ in texts),
        recolourings=tuple(recolouring for _, recolouring in texts),
        reference=reference,
        azimuth=random.random(groups) >= np.where(seen, chances.no_azimuth[1], chances.no_azimuth[0]),
        geometry=(random.random(groups) < chances.geometry) & (kind != NORMAL) & (pictures != 8),
        background=np.where(random.random((groups, 1)) < chances.white, 1.0, colours).astype(np.float32),
        # One time in every G-th part of (0, 1): uniform, and less noise in the gradient.
        t=((random.permutation(groups) + random.random(groups)) / groups).astype(np.float32),
    )


def parted(count: int, chances: Chances, random: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """Groups of one, four and eight that make `count` pictures; their shares are right on average."""
    eights = min(int(chances.eights * count / 8 + random.random()), count // 8)
    fours = min(int(chances.fours * count / 4 + random.random()), (count - 8 * eights) // 4)
    runs = (count - 8 * eights - 4 * fours, 1), (fours, 4), (eights, 8)
    return tuple((groups, pictures) for groups, pictures in runs if groups)


def worded(
    cache: Cache,
    asset: int,
    said: bool,
    chances: Chances,
    random: np.random.Generator,
    paints: dict[Paint, Painted],
) -> Painted:
    """A caption of the asset, "" if nothing is said, and the colours that it speaks of."""
    caption, recolouring = str(random.choice(cache.captions[asset])), UNCHANGED
    if random.random() < chances.recoloured:
        paint = asset, caption, int(random.integers(PAINTS))
        if paint not in paints:  # which takes milliseconds, too long to do it again and again beside a GPU
            rng = np.random.default_rng((asset, paint[2]))
            paints[paint] = draw(caption, cache.colours[asset].float() / 255, rng)
        caption, recolouring = paints[paint]
    if random.random() < chances.varied:
        caption = vary(caption, random)
    return caption if said else "", recolouring


@dataclass(frozen=True)
class Batch:
    """P pictures to denoise, and what the network is told about them."""

    clean: Float[Tensor, "P 3 H W"]  # in [-1, 1]
    t: Float[Tensor, "P"]
    condition: Condition  # also of the references


def drawn(cache: Cache, prior: Embedded, planned: Plan, generator: torch.Generator) -> Batch:
    """The pictures of a plan; cache, text encoder and generator are on one device."""
    here = partial(moved, device=generator.device)
    asset, group = planned.asset[planned.group], here(planned.group)
    albedo, normal, alpha = look(cache, asset, planned.view, generator.device)
    albedo = recoloured(albedo, alpha, planned.recolourings, planned.group)
    lamp = lamps(len(planned.asset), 0.35, 0.15, generator)
    kind, background, given = here(planned.kind), here(planned.background)[group], here(planned.given)
    taken = cameras(cache, asset, planned.view, generator.device)
    shown = torch.stack([albedo, albedo * lit(normal, *(each[group] for each in lamp)), (normal + 1) / 2 * alpha])
    shown = shown[kind, torch.arange(len(kind), device=kind.device)]
    reference, seen = referred(cache, planned, generator)
    outlined = here(planned.geometry[planned.group] & ~planned.given)[:, None, None, None]
    text = prior.reader(planned.captions)
    labels = view_features(
        replace(taken, elevation=torch.where(given, seen.elevation[group], taken.elevation)),
        functional.one_hot(kind, len(KINDS)).float(),
        background,
        known=here(planned.azimuth)[group].float(),
        seen=Seen(seen.azimuth[group], seen.elevation[group], seen.given[group]),
    )
    condition = Condition(
        context=text.tokens[group],
        labels=torch.cat([labels, text.mean[group]], dim=1),
        joint=planned.runs,
        reference=reference[group],
        geometry=geometry_picture(normal, alpha) * outlined if prior.conventions.geometry else None,
        given=known(planned, background, reference[group]),
    )
    others = here(np.flatnonzero(~planned.given))
    clean = prior.encode((shown + (1 - alpha) * background[:, :, None, None]).permute(0, 2, 3, 1)[others])
    return Batch(clean, here(planned.t)[group[others]], condition)


def known(planned: Plan, background: Float[Tensor, "N 3"], reference: Float[Tensor, "N 4 H W"]) -> Given | None:
    """The references as pictures of their groups."""
    if not planned.given.any():
        return None
    given = planned.given
    order = np.where(given, (~given).sum() + given.cumsum() - 1, (~given).cumsum() - 1)
    which = moved(np.flatnonzero(given), reference.device)
    return Given(before(background[which], reference[which]), moved(order, reference.device))


def referred(cache: Cache, planned: Plan, generator: torch.Generator) -> tuple[Float[Tensor, "G 4 H W"], Seen]:
    """The reference of each group, zeros without one, and from where, as the network is told."""
    device, groups = generator.device, len(planned.asset)
    having = np.flatnonzero(planned.reference >= 0)
    albedo, normal, alpha = look(cache, planned.asset[having], planned.reference[having], device)
    albedo = recoloured(albedo, alpha, planned.recolourings, having)
    reference = albedo.new_zeros(groups, REFERENCE_CHANNELS, *albedo.shape[2:])
    if len(having):
        reference[moved(having, device)] = photographs(albedo, normal, alpha, generator)
    seen = cameras(cache, planned.asset, planned.reference.clip(0), device)
    misjudged = MISJUDGED * torch.randn(groups, generator=generator, device=device)
    return reference, Seen(seen.azimuth, seen.elevation + misjudged, moved(planned.reference >= 0, device).float())


def look(
    cache: Cache, asset: Int[np.ndarray, "P"], view: Int[np.ndarray, "P"], device: torch.device
) -> tuple[Float[Tensor, "P 3 H W"], Float[Tensor, "P 3 H W"], Float[Tensor, "P 1 H W"]]:
    """Albedo times alpha, unit normals, and alpha."""
    where = moved(asset, device), moved(view, device)
    albedo, normal, alpha = (each[where].float() / 255 for each in (cache.albedo, cache.normal, cache.alpha))
    alpha = alpha[:, None]
    return albedo, functional.normalize(2 * normal - alpha, dim=1, eps=1e-4), alpha


def cameras(cache: Cache, asset: Int[np.ndarray, "P"], view: Int[np.ndarray, "P"], device: torch.device) -> Cameras:
    return Cameras(*cache.cameras[asset, view].to(device, non_blocking=True).unbind(1))


def moved(values: np.ndarray, device: torch.device) -> Tensor:
    """On the device, which is not waited for."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def variants(
    count: int, random: np.random.Generator, device: torch.device
) -> tuple[Bool[Tensor, "P"], Int[Tensor, "P 3"]]:
    """Half of so many pictures mirrored; half with their channels in another order."""
    mirrored = moved(random.random(count) < 0.5, device)
    colours = moved(np.stack([random.permutation(3) for _ in range(count)]), device)
    exchanged = moved(random.random((count, 1)) < 0.5, device)
    return mirrored, torch.where(exchanged, colours, torch.arange(3, device=device))


def exchanged(picture: Float[Tensor, "B 3 *S"], colours: Int[Tensor, "B 3"]) -> Float[Tensor, "B 3 *S"]:
    """With its channels in this order."""
    return picture[torch.arange(len(picture), device=picture.device)[:, None], colours]


def lamps(
    count: int, spread: float, ambience: float, generator: torch.Generator
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N"]]:
    """Soft lights around the one of `renderers.surface`: where they stand, and the share that comes from everywhere."""
    device = generator.device
    middle = functional.normalize(moved(np.array(TOWARD_LIGHT, np.float32), device), dim=0)
    toward = middle + spread * torch.randn(count, 3, generator=generator, device=device)
    ambient = AMBIENT + ambience * (2 * torch.rand(count, generator=generator, device=device) - 1)
    return functional.normalize(toward, dim=1), ambient


def lit(
    normal: Float[Tensor, "P 3 H W"], toward: Float[Tensor, "P 3"], ambient: Float[Tensor, "P"]
) -> Float[Tensor, "P 1 H W"]:
    """The share of light that is sent back, as `renderers.light.headlight` has it."""
    facing = torch.einsum("pchw,pc->phw", normal, toward).clamp(min=0)[:, None]
    return ambient[:, None, None, None] + (1 - ambient[:, None, None, None]) * facing


def recoloured(
    albedo: Float[Tensor, "P 3 H W"],
    alpha: Float[Tensor, "P 1 H W"],
    recolourings: Sequence[Recolouring],
    owner: Int[np.ndarray, "P"],
) -> Float[Tensor, "P 3 H W"]:
    """Albedo times alpha with new colours; `owner` says which recolouring is a picture's, in ascending order."""
    albedo = albedo.clone()
    for index in np.unique(owner):
        if recolourings[index] == UNCHANGED:
            continue
        start, end = np.searchsorted(owner, [index, index + 1])
        cover = alpha[start:end]
        colour = (albedo[start:end] / cover.clamp(min=1 / 255)).movedim(1, -1)
        albedo[start:end] = recolourings[index](colour).movedim(-1, 1) * cover
    return albedo


def photographs(
    albedo: Float[Tensor, "N 3 H W"],
    normal: Float[Tensor, "N 3 H W"],
    alpha: Float[Tensor, "N 1 H W"],
    generator: torch.Generator,
) -> Float[Tensor, "N 4 H W"]:
    """What a network is shown of photographs of these: RGB in [-1, 1] times alpha, and alpha."""
    lit_up = torch.cat([shaded(albedo, normal, generator), alpha], dim=1)
    return reference_picture(*photographed(lit_up, generator).split([3, 1], dim=1))


def shaded(
    albedo: Float[Tensor, "N 3 H W"], normal: Float[Tensor, "N 3 H W"], generator: torch.Generator
) -> Float[Tensor, "N 3 H W"]:
    """In the light of a photograph, that of each from elsewhere."""
    return albedo * lit(normal, *lamps(len(albedo), 1.0, 0.35, generator))


def photographed(
    picture: Float[Tensor, "N 4 H W"], generator: torch.Generator, strength: float = 1.0
) -> Float[Tensor, "N 4 H W"]:
    """RGB times alpha, and alpha, of a render as of a photograph that was cut out.

    Elsewhere in the frame, a little unsharp, cut too wide or too narrow here and there, with leftovers of what stood
    behind along its outline, in light of another colour, noisy: some pictures more of all that, some nearly none.
    """
    count, _, height, width = picture.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator, device=generator.device)

    much = uniform(0, strength, 1, 1, 1)
    zoom, shift = 1 + much[:, 0] * uniform(-0.1, 0.3, 1, 1), much[:, 0] * uniform(-0.12, 0.12, 2, 1)
    frame = torch.cat([zoom * torch.eye(2, device=zoom.device), shift], dim=2)
    grid = functional.affine_grid(frame, [*picture.shape], align_corners=False)
    picture = functional.grid_sample(picture, grid, align_corners=False)
    unsharp = functional.avg_pool2d(picture, 3, stride=1, padding=1)
    rgb, alpha = torch.lerp(picture, unsharp, much * uniform(0, 1, 1, 1, 1)).split([3, 1], dim=1)

    wide, narrow = (sign * functional.max_pool2d(sign * alpha, 3, stride=1, padding=1) for sign in (1, -1))
    places = functional.interpolate(uniform(0, 1, 1, 4, 4), (height, width), mode="bilinear")
    cut = much * places * uniform(-1, 1, 1, 1, 1)
    outline = alpha + cut.clamp(min=0) * (wide - alpha) + cut.clamp(max=0) * (alpha - narrow)
    leftover = (outline - alpha).clamp(min=0) * uniform(0, 1, 3, 1, 1)
    rgb = rgb * (outline / alpha.clamp(min=1e-4)).clamp(max=1) + leftover

    light = 1 + much * (uniform(-0.25, 0.25, 1, 1, 1) + uniform(-0.15, 0.15, 3, 1, 1))
    noise = torch.randn(rgb.shape, generator=generator, device=generator.device)
    rgb = rgb * light + 0.04 * much * noise * outline
    return torch.cat([rgb.clamp(min=0).minimum(outline), outline], dim=1)
