"""What a lift knows by heart: which exemplar looks most like a picture, and from where.

Every exemplar is drawn from where the angles believe that the picture was taken, the likeliest few of them again from
around the best place of each, and the likeliest one of these once more. Two outlines that agree from a camera that is
likely are evidence of the same shape, on the sides that are hidden as well; colours and what the lift makes of the
picture tell the rest. The angles know no front: of the four quarters, an exemplar may show any.

What a lift makes of a picture has its outline and its colours anyway, but is no better where it cannot see. So both are
weighed: how likely each is, and how much it has in common with all that is likely. What has neither the picture's
outline nor its colours is something else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from threed.distill.angles import Belief
from threed.distill.exemplars import Exemplars, overlaps, packed
from threed.distill.lift import EXTENT
from threed.distill.ranker import Ranker, beside
from threed.renderers.camera import Cameras, framing
from threed.renderers.ops import ops
from threed.renderers.voxels import Voxels

AZIMUTHS, ELEVATIONS = range(-40, 41, 10), (-10, 5, 20, 35, 50)  # degrees: where exemplars are looked at from
VIEWS, VIEWS_TURNED = 16, 5  # the likeliest of these; fewer of exemplars that are turned, which few pictures show
UNLIKELY = 5.0  # nor any that is so many times less likely, as a logarithm
AROUND = (5.0, 7.0), (2.5, 3.5)  # degrees of azimuth and elevation, around the best
FEW = 96  # exemplars that are looked at again
COARSE, FINE = 40, 64  # pixels a side
COLOUR, LIFTED, BELIEVED, TURNED, RANKED = 0.5, 0.08, 0.016, 0.05, 1.5  # weights, against that of the outlines
UNSURE = 0.05  # of worth: what is worth so much less is e times less likely to be the truth
FOLLOWED = 0.8  # overlap of the outlines of what may yet take on the picture's
STRANGE = 0.17  # how far apart the colours of others may be
ITSELF = 0.3  # weight of what one is worth by itself, against that of what it has in common with the others
MADE = 0.2  # what the lift's own volume seems worth too much, which has the picture's outline and colours anyway


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

    @staticmethod
    def quarters(azimuth: float, elevation: float) -> Views:
        """One camera, whatever the exemplars' fronts."""
        return Views(torch.full((4,), azimuth), torch.full((4,), elevation), torch.arange(4))

    def __getitem__(self, index: Tensor) -> Views:
        return Views(self.azimuth[index], self.elevation[index], self.turns[index])

    def resemblance(self, overlap: Float[Tensor, "*B K"], apart: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """How much exemplars resemble a picture, from every view."""
        return overlap - COLOUR * apart - TURNED * (self.turns > 0)

    def around(self, view: int, steps: tuple[float, float], tilted: bool) -> Views:
        """One of them, and those a step to the side of it, or above and below it where the elevation may be another."""
        steps_up = [-steps[1], 0.0, steps[1]] if tilted else [0.0]
        across, up = torch.cartesian_prod(torch.tensor([-steps[0], 0.0, steps[0]]), torch.tensor(steps_up)).T
        return Views(self.azimuth[view] + across, self.elevation[view] + up, self.turns[view].expand(len(up)))


@dataclass(frozen=True)
class Sighted:
    """N exemplars, each from one of K views."""

    rows: Int[Tensor, "N"]
    view: Int[Tensor, "N"]
    views: Views  # the chosen ones, N
    score: Float[Tensor, "N"]
    overlap: Float[Tensor, "N"]  # of the outlines, intersection over union
    apart: Float[Tensor, "N"]  # root mean square of the colours' differences where they overlap, in the best light

    def __getitem__(self, index: Tensor) -> Sighted:
        return Sighted(**{name: value[index] for name, value in vars(self).items()})

    @staticmethod
    def joined(parts: Sequence[Sighted]) -> Sighted:
        """All of them, one after the other."""
        views = Views(*(torch.cat([getattr(part.views, f.name) for part in parts]) for f in fields(Views)))
        names = [f.name for f in fields(Sighted) if f.name != "views"]
        return Sighted(views=views, **{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Recalled:
    """The exemplar that is most like a picture, turned as the picture shows it."""

    voxels: Voxels
    row: int
    azimuth: float  # degrees
    elevation: float
    overlap: float  # of the outlines
    apart: float  # root mean square of the colours' differences

    @property
    def followed(self) -> bool:
        """Whether its outline is to be made the picture's; of others, which are thin, little would stay."""
        return self.overlap >= FOLLOWED


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
    ranker: Ranker | None
    belief: Belief
    alike: Float[Tensor, "4 A"]  # overlaps of exemplars, turned by so many quarters, with what the lift makes of it
    small: Float[Tensor, "4 S S"]
    fov: float  # degrees

    def looked(self, rows: Int[Tensor, "N"], views: Views, size: int) -> Sighted:
        """Exemplars, each from the view from which it resembles the picture most, as far as that is likely."""
        picture, cpu = Picture.of(self.small, size), ops(torch.device("cpu"))
        overlap, apart = cpu.likeness(
            self.exemplars.balls, rows, views.cameras(self.fov), picture.rgb, picture.inside, EXTENT
        )
        likely = BELIEVED * self.belief.likely(views.azimuth, views.elevation)
        known = LIFTED * self.alike[views.turns][:, rows].T + likely
        score, view = (views.resemblance(overlap, apart) + known).max(1)
        every = torch.arange(len(rows))
        return Sighted(rows, view, views[view], score, overlap[every, view], apart[every, view])

    def worth(self, seen: Sighted) -> Float[Tensor, "N"]:
        """How good guesses exemplars are: as far as they resemble the picture, and by what the ranker says of them."""
        if self.ranker is None:
            return seen.score
        size, cameras = self.ranker.config.size, seen.views.cameras(self.fov)
        drawn, toward = ops(torch.device("cpu")).draw_balls(self.exemplars.balls, seen.rows, cameras, size, EXTENT)
        picture = Picture.of(self.small, size)
        rgb, inside = picture.rgb.expand(len(drawn), -1, -1, -1), picture.inside.expand(len(drawn), -1, -1)
        right = self.ranker(*beside(rgb, inside, drawn, toward, seen.views.turns > 0)).sigmoid()
        return seen.score + RANKED * right

    def own(self, lifted: Voxels, elevation: float | None) -> tuple[Search, Sighted]:
        """What the lift makes of the picture as the only exemplar, from where it was made."""
        search = replace(self, exemplars=Exemplars.of([lifted]), alike=torch.ones(4, 1))
        azimuth, height = self.belief.middle
        middle = torch.tensor([azimuth]), torch.tensor([height if elevation is None else elevation])
        front = torch.zeros(1, dtype=torch.int64)
        return search, search.looked(front, Views(*middle, front), FINE)


def recalled(
    exemplars: Exemplars,
    ranker: Ranker | None,
    belief: Belief,
    small: Float[Tensor, "4 S S"],
    lifted: Voxels | None,
    elevation: float | None,
    fov: float,
) -> Recalled | None:
    """The exemplar that is likest to a picture, as a lift is shown it; degrees, None for what is not known.

    None if what the lift made is the better guess.
    """
    search = Search(exemplars, ranker, belief, alike(exemplars, lifted), small, fov)
    tilted = elevation is None
    near = nearer(search, likely(belief, elevation), tilted)
    if lifted is not None:
        near = near[(near.apart <= STRANGE) | (near.overlap >= FOLLOWED)]
        if not len(near.rows):
            return None
    place = expected(search, near, lifted, elevation).argmax()
    if place == len(near.rows):
        return None
    seen = search.looked(near.rows[place[None]], near.views.around(int(place), AROUND[1], tilted), FINE)
    row, turns = int(seen.rows), int(seen.views.turns)
    voxels = exemplars[row]
    turned = replace(voxels, distance=voxels.distance.rot90(turns, (0, 2)), colour=voxels.colour.rot90(turns, (0, 2)))
    return Recalled(
        turned, row, float(seen.views.azimuth), float(seen.views.elevation), float(seen.overlap), float(seen.apart)
    )


def expected(search: Search, near: Sighted, lifted: Voxels | None, elevation: float | None) -> Float[Tensor, "N"]:
    """How much of exemplars, and of what the lift made after them, will be right, where one of them is the truth.

    What is likely may be like nothing else that is; what has most in common with all that is likely is the better guess
    (minimum Bayes risk, as in Kumar and Byrne 2004, aclanthology.org/N04-1022). Of those that have as much in common,
    as have volumes in several colours, it is the one that is worth more.
    """
    worth = search.worth(near)
    solid = [search.exemplars.turned(*each) for each in zip(near.rows.tolist(), near.views.turns.tolist(), strict=True)]
    if lifted is not None:
        own, seen = search.own(lifted, elevation)
        worth = torch.cat([worth, own.worth(seen) - MADE])
        solid.append(lifted.occupied.numpy())
    bits = packed(np.stack(solid))
    return overlaps(bits, bits) @ (worth / UNSURE).softmax(0) + ITSELF * worth


def nearer(search: Search, views: Views, tilted: bool) -> Sighted:
    """The few that resemble the picture most, each from around its best view."""
    every = search.looked(torch.arange(len(search.exemplars)), views, COARSE)
    few = every[every.score.topk(min(FEW, len(every.rows))).indices]
    return Sighted.joined([
        search.looked(few.rows[few.view == k], views.around(k, AROUND[0], tilted), FINE)
        for k in few.view.unique().tolist()
    ])  # fmt: skip


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
