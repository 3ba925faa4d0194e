"""A volume out of a picture that has the picture's outline and, on the side that it shows, its colours.

The prior's angles tell from where the picture was taken, and its lift makes a volume of it in one go; where it knows
volumes by heart, it is the one of these that looks most like the picture. Where there is no lift, or there are words
too, it is the start: without angles, what it first makes of the picture tells, roughly, from where that was taken. Then
the start is asked again, and every guess on the way to clean volumes is carved and grown until the outline is right,
and the network makes the rest fit (in the way of Song et al. 2021, arXiv 2111.08005, who sample under a measurement by
projecting on it at every step). What sticks out beyond the outline in twice the resolution is cut off as well (space
carving, Kutulakos and Seitz 2000).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from threed.cutout import Cutout
from threed.distill import angles, embedded, exemplars, lift, ranker, start
from threed.distill.consensus import agreed
from threed.errors import Failure
from threed.even import evened_voxels
from threed.hull import Carving, Sight
from threed.kept import kept
from threed.recalled import recalled
from threed.renderers.voxels import Voxels
from threed.spread import light, spread
from threed.start import VoxelField, flattened, smoothed, upsampled
from threed.train import seeded
from threed.viewpoint import USUAL, Painted, Viewpoint, agreement, estimate, placed

GLANCES, GLANCE_STEPS = 4, 15  # volumes that tell from where a picture was taken, and steps to each
CANDIDATES, STEPS = 6, 25  # of those that are carved
STRANGE, FAMILIAR = 0.6, 0.9  # intersections over union of outlines: what of the start's depth is believed
FRONTAL = 0.1  # what a camera at 35 degrees from the front has to look more like it
OUTLINE = 192  # pixels a side of the outline


@dataclass(frozen=True)
class Guess:
    """What may stand before the camera, not yet carved."""

    voxels: Voxels
    sight: Sight
    seen: Viewpoint
    followed: bool = True  # whether its outline is made the picture's


@dataclass(frozen=True)
class Beginning:
    """The volume in its own colours, from where the picture shows it, where that is known, and in how much light."""

    field: VoxelField
    seen: Viewpoint | None = None
    light: float = 1.0
    followed: bool = True  # whether its outline is to be the picture's
    known: bool = False  # whether the prior knew it by heart


@dataclass(frozen=True)
class Words:
    """What the start is told of a picture, and by whom it is answered."""

    prompt: str
    negative: str
    seed: int
    prior: Path
    device: str


def carved(
    words: Words,
    small: Float[Tensor, "4 S S"],  # the picture as the start is shown it
    cutout: Cutout,
    elevation: float | None,
    fov: float,
    carving: bool = True,
) -> Beginning:
    """What the picture shows; without `carving`, as it first comes, whatever its outline.

    A lift knows things without light; where there is none, the light stays in the colours. Raises Failure where nothing
    solid comes out.
    """
    problem = None
    for begun in (lifted, dreamt) if lifts(words) else (dreamt,):  # of thin things a lift may leave nothing
        try:
            guess = begun(words, small, cutout, elevation, fov)
            coarse, carves = guess.voxels, carving and guess.followed
            if carves:
                hull = guess.sight.hull(len(coarse.distance))
                coarse = replace(coarse, distance=hull.grown(hull.carved(coarse.distance[None], False), False)[0])
            fine = finer(guess, coarse, words.prior)
            hull = guess.sight.hull(len(fine.distance))
            if carves:
                fine = replace(fine, distance=hull.carved(fine.distance[None], False)[0])
            seen = placed(coloured(fine), cutout, guess.seen)
            shone = light(fine, seen, cutout) if begun is lifted else 1.0
            field = VoxelField(spread(fine, seen, cutout.unlit(shone), hull.symmetrical))
            return Beginning(field, seen, shone, guess.followed, guess.sight.known)
        except ValueError as error:
            problem = error
    raise Failure(
        f"no volume came out of the picture ({problem}); try another --seed, --prompt with a few words about it, "
        "or another picture"
    ) from problem


def finer(guess: Guess, coarse: Voxels, prior: Path) -> Voxels:
    """In twice the resolution, even where it was carved; what is thin and whole is not torn."""
    flat = flattened(coarse)
    fine = upsampled(flat, prior)
    if guess.followed:
        return evened_voxels(smoothed(fine))
    return fine if fine.parts <= flat.parts else flat.finer(len(fine.distance))


def lifts(words: Words) -> bool:
    """Whether the prior makes volumes of pictures alone; words are only heard by its start."""
    return not words.prompt and (words.prior / "lift").is_dir() and (words.prior / "angles").is_dir()


def lifted(words: Words, small: Float[Tensor, "4 S S"], cutout: Cutout, elevation: float | None, fov: float) -> Guess:
    """What the prior's lift knows or makes of the picture. Raises ValueError where nothing is solid."""
    belief = angles.believed(kept(angles.load)(words.prior), small)
    azimuth, height = belief.middle
    at = Viewpoint(azimuth, height if elevation is None else elevation, fov)
    volume = lift.lifted(kept(lift.load)(words.prior), small, math.radians(at.azimuth), math.radians(at.elevation))
    solid = lift.voxels_of(volume, volume.shape[-1]) if (volume[0] < 0).any() else None
    known, ranking = kept(exemplars.load)(words.prior), kept(ranker.load)(words.prior)
    if known is not None and (found := recalled(known, ranking, belief, small, solid, elevation, fov)) is not None:
        at = replace(at, azimuth=found.azimuth, elevation=found.elevation)
        seen = placed(coloured(found.voxels), cutout, at)
        sight = Sight.of(seen, found.voxels, cutout, OUTLINE, known=True)
        return Guess(found.voxels, sight, seen, found.followed)
    if solid is None:
        raise ValueError("nothing of it is solid")
    shape = coloured(solid)
    seen = placed(shape, cutout, at)
    return Guess(solid, Sight.of(seen, solid, cutout, OUTLINE, trust(shape, cutout, seen)), seen)


def dreamt(words: Words, small: Float[Tensor, "4 S S"], cutout: Cutout, elevation: float | None, fov: float) -> Guess:
    """What the start makes of picture and words, led to the outline at every step. Raises ValueError."""
    encode = kept(embedded.text_reader)(words.prior)
    told = encode([words.prompt]), encode([words.negative])
    network = kept(start.load)(words.prior, words.device)
    glances = start.sample(network, *told, GLANCES, seeded(words.seed), GLANCE_STEPS, picture=small).cpu()
    glance = start.voxels_of(agreed(glances))
    seen, trusted = sighted(words.prior, small, coloured(glance), cutout, elevation, fov)
    led = Carving(Sight.of(seen, glance, cutout, OUTLINE, trusted))
    volumes = start.sample(network, *told, CANDIDATES, seeded(words.seed, 1), STEPS, picture=small, led=led)
    return Guess(start.voxels_of(agreed(volumes.cpu())), led.sight, seen)


def trust(glance: Painted, cutout: Cutout, seen: Viewpoint) -> float:
    """In the depth of a glance: none where its outline is far from the picture's, all where it is near."""
    _, iou = agreement(glance, cutout, seen, 64)
    return min(max((iou - STRANGE) / (FAMILIAR - STRANGE), 0.0), 1.0)


def sighted(
    prior: Path,
    small: Float[Tensor, "4 S S"],
    glance: Painted,
    cutout: Cutout,
    elevation: float | None,
    fov: float,
) -> tuple[Viewpoint, float]:
    """From where the picture was taken, and how far a glance is trusted.

    The prior's angles say it where it has them: on assets held out, they are nearer than what a glance tells.
    """
    if (prior / "angles").is_dir():
        azimuth, height = angles.believed(angles.load(prior), small).middle
        seen = placed(glance, cutout, Viewpoint(azimuth, height if elevation is None else elevation, fov))
        return seen, trust(glance, cutout, seen)
    seen = estimate(glance, cutout, elevation, fov, FRONTAL)
    trusted = trust(glance, cutout, seen)
    return usual(seen, trusted, elevation is None), trusted


def usual(seen: Viewpoint, trusted: float, tilted: bool) -> Viewpoint:
    """From the front and from the usual height, the more so the less a glance is trusted."""
    height = USUAL + trusted * (seen.elevation - USUAL) if tilted else seen.elevation
    return replace(seen, azimuth=trusted * seen.azimuth, elevation=height)


def coloured(voxels: Voxels) -> Painted:
    """Its surface, at radius 1. Raises ValueError where nothing is solid."""
    mesh = voxels.mesh()
    radius = mesh.vertices.norm(dim=-1).max()
    return Painted(replace(mesh, vertices=mesh.vertices / radius), lambda points: voxels.at(points * radius)[1])
