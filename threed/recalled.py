"""What a lift knows by heart: which exemplar looks most like a picture, and from where.

Every exemplar is drawn from where the angles believe that the picture was taken, the likeliest few of them again from
around the best place of each, and the likeliest one of these once more. Two outlines that agree from a camera that is
likely are evidence of the same shape, on the sides that are hidden as well; colours and what the lift makes of the
picture tell the rest. The angles know no front: of the four quarters, an exemplar may show any.

What a lift makes of a picture has its outline and its colours anyway, but is no better where it cannot see; an exemplar
may be a little less like the picture and yet be the better guess. Where its colours are far off, it is something else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from threed.distill.angles import Belief
from threed.distill.exemplars import Exemplars
from threed.distill.lift import EXTENT
from threed.renderers.camera import Cameras, framing
from threed.renderers.ops import ops
from threed.renderers.voxels import Voxels

AZIMUTHS, ELEVATIONS = range(-40, 41, 10), (-10, 5, 20, 35, 50)  # degrees: where exemplars are looked at from
VIEWS, VIEWS_TURNED = 16, 5  # the likeliest of these; fewer of exemplars that are turned, which few pictures show
UNLIKELY = 5.0  # nor any that is so many times less likely, as a logarithm
AROUND = (5.0, 7.0), (2.5, 3.5)  # degrees of azimuth and elevation, around the best
FEW = 96  # exemplars that are looked at again
COARSE, FINE = 40, 64  # pixels a side
COLOUR, LIFTED, BELIEVED, TURNED = 0.5, 0.08, 0.016, 0.05  # weights, against that of the outlines
BETTER = 0.05  # what an exemplar's score may lack of that of the lift's own volume
STRANGE = 0.17  # how far apart its colours may be


@dataclass(frozen=True)
class Views:
    """K cameras, by their angles in degrees and how many quarters the exemplars are turned before them."""

    azimuth: Float[Tensor, "K"]
    elevation: Float[Tensor, "K"]
    turns: Int[Tensor, "K"]

    def cameras(self, fov: float) -> Cameras:
        """Around exemplars that are not turned."""
        lens = torch.full_like(self.azimuth, math.radians(fov))
        distance = torch.full_like(lens, framing(math.radians(fov)))
        return Cameras((self.azimuth + 90 * self.turns).deg2rad(), self.elevation.deg2rad(), distance, lens)

    def around(self, view: int, steps: tuple[float, float], tilted: bool) -> Views:
        """One of them, and those a step to the side of it, or above and below it where the elevation may be another."""
        steps_up = [-steps[1], 0.0, steps[1]] if tilted else [0.0]
        across, up = torch.cartesian_prod(torch.tensor([-steps[0], 0.0, steps[0]]), torch.tensor(steps_up)).T
        return Views(self.azimuth[view] + across, self.elevation[view] + up, self.turns[view].expand(len(up)))


@dataclass(frozen=True)
class Recalled:
    """The exemplar that looks most like a picture, turned as the picture shows it."""

    voxels: Voxels
    row: int
    azimuth: float  # degrees
    elevation: float
    likeness: Likeness


@dataclass(frozen=True)
class Likeness:
    """How much something is like a picture, from where."""

    score: float
    overlap: float  # of the outlines, intersection over union
    apart: float  # root mean square of the colours' differences where they overlap, in the best light


@dataclass(frozen=True)
class Picture:
    """What exemplars are compared with."""

    rgb: Float[Tensor, "S S 3"]
    inside: Bool[Tensor, "S S"]

    @staticmethod
    def of(small: Float[Tensor, "4 S S"], size: int) -> Picture:
        """Of one as a lift is shown it."""
        shown = functional.interpolate(small[None], (size, size), mode="bilinear", antialias=True, align_corners=False)
        rgb, alpha = shown[0].movedim(0, -1).split([3, 1], dim=-1)
        return Picture((rgb + alpha) / 2 / alpha.clamp(min=0.05), alpha[..., 0] > 0.5)


@dataclass(frozen=True)
class Search:
    """What is known of a picture before any exemplar is looked at."""

    exemplars: Exemplars
    belief: Belief
    alike: Float[Tensor, "4 A"]  # overlaps of exemplars, turned by so many quarters, with what the lift makes of it
    small: Float[Tensor, "4 S S"]
    fov: float  # degrees

    def score(self, rows: Int[Tensor, "N"], views: Views, size: int) -> Float[Tensor, "3 N K"]:
        """How good every exemplar is from every view, how much the outlines overlap, how far apart colours are."""
        overlap, apart = self.compared(self.exemplars, rows, views, size)
        known = LIFTED * self.alike[views.turns][:, rows].T - TURNED * (views.turns > 0)
        return torch.stack([overlap - COLOUR * apart + known + self.likely(views), overlap, apart])

    def own(self, lifted: Voxels, elevation: float | None) -> float:
        """The score of what the lift makes of the picture, from where it was made."""
        azimuth, height = self.belief.middle
        middle = torch.tensor([azimuth]), torch.tensor([height if elevation is None else elevation])
        views = Views(*middle, torch.zeros(1, dtype=torch.int64))
        overlap, apart = self.compared(Exemplars.of([lifted]), torch.zeros(1, dtype=torch.int64), views, FINE)
        return float(overlap - COLOUR * apart + LIFTED + self.likely(views))

    def compared(
        self, exemplars: Exemplars, rows: Int[Tensor, "N"], views: Views, size: int
    ) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
        picture = Picture.of(self.small, size)
        return ops(torch.device("cpu")).likeness(
            exemplars.balls, rows, views.cameras(self.fov), picture.rgb, picture.inside, EXTENT
        )

    def likely(self, views: Views) -> Float[Tensor, "K"]:
        return BELIEVED * self.belief.likely(views.azimuth, views.elevation)


def recalled(
    exemplars: Exemplars,
    belief: Belief,
    small: Float[Tensor, "4 S S"],
    lifted: Voxels | None,
    elevation: float | None,
    fov: float,
) -> Recalled | None:
    """The exemplar that is likest to a picture, as a lift is shown it; degrees, None for what is not known.

    None if what the lift made is the better guess.
    """
    search = Search(exemplars, belief, alike(exemplars, lifted), small, fov)
    found = likest(search, likely(belief, elevation), elevation is None)
    if lifted is None:
        return found
    strange = found.likeness.apart > STRANGE or found.likeness.score < search.own(lifted, elevation) - BETTER
    return None if strange else found


def likest(search: Search, views: Views, tilted: bool) -> Recalled:
    """The best exemplar from any of these views and from around the best of them."""
    every = torch.arange(len(search.exemplars))
    score, view = search.score(every, views, COARSE)[0].max(1)
    few = score.topk(min(FEW, len(every))).indices
    found = [best(search, few[view[few] == k], views.around(k, AROUND[0], tilted)) for k in view[few].unique().tolist()]
    _, row, views, k = max(found, key=lambda one: one[0].score)
    like, row, views, k = best(search, torch.tensor([row]), views.around(k, AROUND[1], tilted))
    voxels, turns = search.exemplars[row], int(views.turns[k])
    turned = replace(voxels, distance=voxels.distance.rot90(turns, (0, 2)), colour=voxels.colour.rot90(turns, (0, 2)))
    return Recalled(turned, row, float(views.azimuth[k]), float(views.elevation[k]), like)


def best(search: Search, rows: Int[Tensor, "N"], views: Views) -> tuple[Likeness, int, Views, int]:
    """Which exemplar, among these views from which, and how it is like the picture."""
    found = search.score(rows, views, FINE)
    n, k = divmod(int(found[0].argmax()), len(views.azimuth))
    return Likeness(*found[:, n, k].tolist()), int(rows[n]), views, k


def alike(exemplars: Exemplars, lifted: Voxels | None) -> Float[Tensor, "4 A"]:
    """Overlaps of turned exemplars with a volume; 0 without one."""
    if lifted is None:
        return torch.zeros(4, len(exemplars))
    return torch.stack([exemplars.overlap(lifted.occupied.rot90(-turns, (0, 2)).contiguous()) for turns in range(4)])


def likely(belief: Belief, elevation: float | None) -> Views:
    """The likeliest views, those of exemplars that are not turned first."""
    heights = torch.tensor(ELEVATIONS if elevation is None else [elevation], dtype=torch.float32)
    azimuth, height = torch.cartesian_prod(torch.tensor(AZIMUTHS, dtype=torch.float32), heights).T
    order = belief.likely(azimuth, height).sort(descending=True)
    near = order.indices[order.values > order.values[0] - UNLIKELY]
    chosen = [near[: VIEWS_TURNED if turns else VIEWS] for turns in range(4)]
    turns = torch.cat([torch.full_like(each, turns) for turns, each in enumerate(chosen)])
    return Views(azimuth[torch.cat(chosen)], height[torch.cat(chosen)], turns)
