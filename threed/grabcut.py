"""GrabCut: an object and what is behind it, told apart by their colours (Rother, Kolmogorov and Blake 2004).

A mixture of Gaussians learns the colours of either side from a first guess; then the border between the two moves to
where it is cheap, because neighbours differ; and so on in turns. With u = 1 inside and 0 outside, it minimises

    E(u) = sum cost u + CONTRAST sum over neighbours exp(-|c_p - c_q|^2 / (2 mean |c_p - c_q|^2)) |u_p - u_q|.

Over 0 <= u <= 1 this is convex and has the minimum of the minimal cut (Chan, Esedoglu and Nikolova 2006), to which
first-order primal-dual steps on whole arrays lead (Chambolle and Pock 2011, algorithm 1), the faster the nearer they
begin: no graph is built. Pictures are display sRGB in [0, 1]; nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

COMPONENTS = 5  # Gaussians a side
CONTRAST = 50.0  # what a border between neighbours of one colour costs, in nats
GRAIN = 0.012  # the least spread of a Gaussian, and of what is split up: three steps of 8 bits
ROUNDS, STEPS = 5, 60  # turns, and steps of each
SURE = 1e3  # nats


@dataclass(frozen=True)
class Mixture:
    """Gaussians in colour space."""

    mean: Float[np.ndarray, "K 3"]
    whiten: Float[np.ndarray, "K 3 3"]  # the inverse Cholesky factor of the covariance
    height: Float[np.ndarray, "K"]  # the logarithm of the weight times the density at the mean, less a constant

    @staticmethod
    def of(colours: Float[np.ndarray, "N 3"], which: Int[np.ndarray, "N"]) -> Mixture:
        """One for every number in `which`."""
        parts = [colours[which == k].astype(np.float64) for k in np.unique(which)]
        spread = [np.cov(part.T, bias=True) + GRAIN**2 * np.eye(3) for part in parts]
        whiten = np.linalg.inv(np.linalg.cholesky(np.stack(spread)))
        density = np.log(np.diagonal(whiten, axis1=1, axis2=2)).sum(1)
        weight = np.log([len(part) / len(colours) for part in parts])
        mean = np.stack([part.mean(0) for part in parts])
        return Mixture(mean.astype(np.float32), whiten.astype(np.float32), (weight + density).astype(np.float32))

    def logs(self, colours: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N K"]:
        """The logarithm of every Gaussian's weighted density, in nats, less a constant."""
        away = [((colours - m) @ w.T) ** 2 for m, w in zip(self.mean, self.whiten, strict=True)]
        return self.height - np.stack([each.sum(-1) for each in away], axis=-1) / 2

    def cost(self, colours: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N"]:
        """That of the likeliest Gaussian, negative (equation 9)."""
        nats: Float[np.ndarray, "N"] = -self.logs(colours).max(1)
        return nats


@dataclass(frozen=True)
class Edges:
    """What a border costs between a pixel and its right and its lower neighbour, 0 at the ends."""

    right: Float[np.ndarray, "H W"]
    below: Float[np.ndarray, "H W"]

    @staticmethod
    def of(rgb: Float[np.ndarray, "H W 3"]) -> Edges:
        right, below = (np.square(np.diff(rgb, axis=axis)).sum(-1) for axis in (1, 0))
        mean = max((right.sum() + below.sum()) / (right.size + below.size), 1e-12)
        likeness = (np.exp(-each / (2 * mean)) for each in (right, below))
        return Edges(*(np.pad(w, p) for w, p in zip(likeness, ([(0, 0), (0, 1)], [(0, 1), (0, 0)]), strict=True)))

    def along(self, inside: Bool[np.ndarray, "H W"]) -> float:
        """Of the whole border."""
        right, below = (np.diff(inside, axis=axis) for axis in (1, 0))
        return float(self.right[:, :-1][right].sum() + self.below[:-1][below].sum())


@dataclass(frozen=True)
class Cut:
    """Where a minimisation stands."""

    inside: Float[np.ndarray, "H W"]  # u
    right: Float[np.ndarray, "H W"]  # what flows to the right neighbour, at most what the border to it costs
    below: Float[np.ndarray, "H W"]

    @staticmethod
    def begun(inside: Bool[np.ndarray, "H W"]) -> Cut:
        start = inside.astype(np.float32)
        return Cut(start, np.zeros_like(start), np.zeros_like(start))

    def towards(self, cost: Float[np.ndarray, "H W"], edges: Edges, steps: int) -> Cut:
        """So many steps nearer to the minimum; `cost` is in units of what the dearest border costs."""
        inside, right, below = self.inside, self.right.copy(), self.below.copy()
        ahead, rate = inside, np.float32(1 / math.sqrt(8))
        for _ in range(steps):
            right[:, :-1] += rate * np.diff(ahead, axis=1)
            below[:-1] += rate * np.diff(ahead, axis=0)
            np.clip(right, -edges.right, edges.right, out=right)
            np.clip(below, -edges.below, edges.below, out=below)
            gained = right + below - cost
            gained[:, 1:] -= right[:, :-1]
            gained[1:] -= below[:-1]
            moved = np.clip(inside + rate * gained, 0, 1)
            ahead, inside = 2 * moved - inside, moved
        return Cut(inside, right, below)


@dataclass(frozen=True)
class Division:
    """A picture in two."""

    inside: Bool[np.ndarray, "H W"]
    object: Mixture
    background: Mixture
    energy: float  # nats a pixel; the lower, the better the picture is explained


def divided(
    rgb: Float[np.ndarray, "H W 3"],
    guesses: Sequence[Bool[np.ndarray, "H W"]],
    sure: Bool[np.ndarray, "H W"],
) -> Division | None:
    """The best division that any of the guesses of the object leads to; background where that is sure.

    None where nothing, or everything, becomes the object of all of them.
    """
    found = [division for guess in guesses if (division := settled(rgb, guess & ~sure, sure))]
    return min(found, key=lambda division: division.energy, default=None)


def settled(
    rgb: Float[np.ndarray, "H W 3"], inside: Bool[np.ndarray, "H W"], sure: Bool[np.ndarray, "H W"]
) -> Division | None:
    """What one guess leads to."""
    edges, cut = Edges.of(rgb), Cut.begun(inside)
    ours: Mixture | None = None
    theirs: Mixture | None = None
    for _ in range(ROUNDS):
        if not inside.any() or inside.all():
            return None
        ours, theirs = learned(rgb[inside], ours), learned(rgb[~inside], theirs)
        costs = [side.cost(rgb.reshape(-1, 3)).reshape(inside.shape) for side in (ours, theirs)]
        cut = cut.towards(np.where(sure, SURE, costs[0] - costs[1]) / np.float32(CONTRAST), edges, STEPS)
        inside = (cut.inside > 0.5) & ~sure
    assert ours
    assert theirs
    energy = float(np.where(inside, *costs).sum()) + CONTRAST * edges.along(inside)
    return Division(inside, ours, theirs, energy / inside.size)


def learned(colours: Float[np.ndarray, "N 3"], before: Mixture | None) -> Mixture:
    """A mixture of these colours, each with the Gaussian that was the likeliest, or first of all split up."""
    return Mixture.of(colours, before.logs(colours).argmax(1) if before else split(colours))


def split(colours: Float[np.ndarray, "N 3"]) -> Int[np.ndarray, "N"]:
    """Into COMPONENTS at most: again and again the widest, across its principal axis (Orchard and Bouman 1991)."""
    which = np.zeros(len(colours), np.int64)
    for new in range(1, COMPONENTS):
        parts = [colours[which == k] for k in range(new)]
        values, axes = np.linalg.eigh(np.stack([len(p) * np.cov(p.T.astype(np.float64), bias=True) for p in parts]))
        widest = int(values[:, -1].argmax())
        if values[widest, -1] < GRAIN**2 * len(parts[widest]):
            break
        along = (colours - parts[widest].mean(0)) @ axes[widest, :, -1]
        which[(which == widest) & (along > 0)] = new
    return which


def refined(
    rgb: Float[np.ndarray, "H W 3"], inside: Bool[np.ndarray, "H W"], near: Bool[np.ndarray, "H W"], how: Division
) -> Bool[np.ndarray, "H W"]:
    """The border moved, only where it is `near`, by the colours of a division of the same picture in fewer pixels."""
    rows, columns = (np.flatnonzero(near.any(axis)) for axis in (1, 0))
    if not rows.size:
        return inside
    window = slice(max(0, rows[0] - 1), rows[-1] + 2), slice(max(0, columns[0] - 1), columns[-1] + 2)
    cost = np.where(inside[window], -SURE, SURE).astype(np.float32)
    band = rgb[window][near[window]]
    cost[near[window]] = how.object.cost(band) - how.background.cost(band)
    # Of a border as long as the picture, twice the pixels a side hold four times the colours and only twice the border.
    contrast = CONTRAST * math.sqrt(inside.size / how.inside.size)
    cut = Cut.begun(inside[window]).towards(cost / np.float32(contrast), Edges.of(rgb[window]), STEPS)
    moved = inside.copy()
    moved[window] = cut.inside > 0.5
    return moved
