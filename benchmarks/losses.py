"""Where every distillation loss leads points of a plane, under a prior that is a mixture.

    python benchmarks/losses.py           # the plane, seconds; pip install matplotlib
    python benchmarks/losses.py --cost    # what an adapter costs, in passes of the prior

What they make of prompts is benchmarks/prompted.py's.

The plane: the prompt means two of four spots, the first twice as likely as the second; the null condition is all four,
and the negative one, which nfsd asks, a wide blob. Timesteps fall as they do in recipes.
Each point is a scene of its own (under vsd, particles that share an exact adapter) and descends each loss's gradient
from the same places with the same noise. Writes benchmarks/results/losses.{json,png}: how many points end at each of
the prompt's spots, how far they are from them, and how wide the points of a spot lie, of its own width.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timing import kept, timed
from timing import told as told_of
from torch import Tensor

from threed.distill.anneal import Anneal
from threed.distill.csd import CSD
from threed.distill.embedded import Embedded
from threed.distill.gaussian import Mixture
from threed.distill.hifa import HiFA, root
from threed.distill.ism import ISM
from threed.distill.nfsd import NFSD
from threed.distill.prior import Conditions, Pictures, Prediction, cosine
from threed.distill.score import Distillation, Shown
from threed.distill.sdi import SDI
from threed.distill.sds import SDS
from threed.distill.sjc import SJC
from threed.distill.vsd import VSD, lesson
from threed.machine import set_threads
from threed.renderers.camera import orbit

RESULTS = Path(__file__).parent / "results"
SPOTS = torch.tensor([[-1.0, 0.7], [1.0, 0.7], [-1.0, -0.9], [1.0, -0.9]])
WIDTH = 0.18  # standard deviation of a spot
POINTS, STEPS, RATE = 256, 600, 0.03
TIMES = {"t_min": Anneal(0.02), "t_max": Anneal(0.9, 0.2)}
WANTED = (2 / 3, 1 / 3)  # of the prompt's points at each of its spots


@dataclass(frozen=True)
class Plane:
    """Latents of one pixel with two channels; a condition is a mixture."""

    kinds: tuple[str, ...] = ("albedo",)
    image_size: int = 1

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return cosine(t)

    def encode(self, image: Tensor) -> Tensor:
        return image.movedim(-1, 1)[:, :2]

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.pad(latents, (0, 0, 0, 0, 0, 1)).movedim(1, -1)

    def conditions(self, *_: Any) -> Conditions:
        spots = SPOTS[:, :, None, None].double()
        narrow, wide = torch.full_like(spots, WIDTH), torch.full((1, 2, 1, 1), 1.5).double()
        return Conditions(
            positive=Mixture(spots[:2], narrow[:2], torch.tensor([2.0, 1.0]).double()),
            null=Mixture(spots, narrow, torch.ones(4).double()),
            negative=Mixture(torch.zeros_like(wide), wide, torch.ones(1).double()),
        )

    def denoise(self, z_t: Tensor, t: Tensor, condition: Mixture) -> Prediction:
        return condition.denoise(z_t, t, None)


@dataclass
class Points:
    """The adapter that knows every particle."""

    places: Tensor

    alpha_sigma = staticmethod(cosine)

    def denoise(self, z_t: Tensor, t: Tensor, condition: Any) -> Prediction:
        narrow = torch.full_like(self.places, 1e-3)
        return Mixture(self.places, narrow, torch.ones(len(self.places)).double()).denoise(z_t, t, None)


def shown_on_plane() -> dict[str, Distillation]:
    """Every loss, without guidance and with some."""
    return {
        "sds": SDS(scale=1.0, **TIMES),
        "sds, scale 7.5": SDS(scale=7.5, **TIMES),
        "sjc, 4 draws": SJC(scale=1.0, draws=4, **TIMES),
        "csd": CSD(**TIMES),
        "nfsd": NFSD(scale=1.0, **TIMES),
        "hifa": HiFA(scale=1.0, t_min=root(0.9, 0.1), t_max=root(0.9, 0.1)),
        "sdi": SDI(scale=1.0, **TIMES),
        "ism": ISM(scale=1.0, t_min=Anneal(0.2), t_max=Anneal(0.9, 0.3)),
        "vsd": VSD(scale=1.0, **TIMES),
    }


def led(loss: Distillation) -> Tensor:
    """The points' way: every fourth step, STEPS / 4 + 1 x POINTS x 2."""
    generator, plane = torch.Generator().manual_seed(0), Plane()
    angle = torch.rand(POINTS, generator=generator) * 2 * math.pi
    start = torch.stack([angle.cos(), angle.sin()], dim=1) * (1.5 + 0.3 * torch.rand(POINTS, 1, generator=generator))
    x = start.double()[:, :, None, None].requires_grad_()
    optimizer, way = torch.optim.Adam([x], lr=RATE, betas=(0.9, 0.99)), [x.detach().flatten(1).clone()]
    conditions = plane.conditions()
    if not isinstance(loss, NFSD):
        conditions = replace(conditions, negative=None)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        adapter = Points(x.detach().clone()) if isinstance(loss, VSD) else None
        told = Shown(x, conditions, plane.decode(x))
        # What an exact adapter would learn does not matter; it has no weights.
        losses = loss(plane, adapter, told, step / STEPS, generator)
        sum(value for name, value in losses.items() if name != "adapter").backward()
        optimizer.step()
        if step % 4 == 3:
            way.append(x.detach().flatten(1).clone())
    return torch.stack(way)


def judged(ends: Tensor) -> dict[str, float]:
    """Figures of where the points end."""
    away = torch.cdist(ends, SPOTS.double())
    nearest = away.argmin(1)
    shares = [(nearest == spot).double().mean().item() for spot in range(2)]
    near = torch.cat([ends[nearest == spot] - ends[nearest == spot].mean(0) for spot in range(2)])
    return {
        "first spot": shares[0],
        "second spot": shares[1],
        "others": 1 - sum(shares),
        "distance to the nearest, in widths": (away.amin(1).mean() / WIDTH).item(),
        "width of the points, in widths": (near.std() / WIDTH).item(),
    }


def plane() -> None:
    import matplotlib.pyplot as plt

    found, losses = {}, shown_on_plane()
    figure, axes = plt.subplots(3, 3, figsize=(9, 9), layout="constrained")
    grid = torch.linspace(-2, 2, 160)
    across, up = torch.meshgrid(grid, grid, indexing="xy")
    near = (-0.5 * ((torch.stack([across, up], -1)[..., None, :] - SPOTS) / WIDTH).square().sum(-1)).exp()
    for axis, (name, loss) in zip(axes.flat, losses.items(), strict=True):
        way = led(loss)
        found[name] = judged(way[-1])
        print(name, {key: round(value, 2) for key, value in found[name].items()})
        axis.contourf(across, up, near @ torch.tensor([2.0, 1.0, 0.0, 0.0]), levels=8, cmap="Oranges")
        axis.contour(across, up, near[..., 2:].sum(-1), levels=3, colors="0.8", linewidths=0.6)
        for k in range(0, POINTS, 8):
            axis.plot(*way[:, k].T, color="0.35", linewidth=0.3)
        axis.scatter(*way[-1].T, s=3, color="tab:blue", zorder=3)
        told = found[name]
        axis.set_title(f"{name}: {told['first spot']:.0%} and {told['second spot']:.0%}", fontsize=9)
        axis.set(xlim=(-2, 2), ylim=(-2, 2), xticks=[], yticks=[], aspect="equal")
    figure.savefig(RESULTS / "losses.png", dpi=90)
    wanted = {"first spot": WANTED[0], "second spot": WANTED[1]}
    (RESULTS / "losses.json").write_text(json.dumps({"the prompt": wanted} | found, indent=1) + "\n")


def cost() -> None:
    """What the prior and its adapter cost, 8 pictures of a step, in forward passes of the prior."""
    set_threads()
    prior, views = Embedded.load(), Pictures(orbit(4), ("albedo", "normal"), torch.ones(3))
    told, adapter = prior.conditions("a wooden barrel", "", views).positive, prior.adapter(4, 1e-3, 0)
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(len(views), 3, prior.image_size, prior.image_size, generator=generator)
    t = torch.full((len(views),), 0.5)

    def forward() -> object:
        with torch.no_grad():
            return adapter.denoise(z_t, t, told)

    def learn() -> object:
        return torch.autograd.grad(lesson(adapter, z_t, told, generator), list(adapter.weights.values()))

    tasks = {
        "prior / forward": lambda: prior.denoise(z_t, t, told),
        "adapter / forward": forward,
        "adapter / step": learn,
    }
    kept("losses-cost", {"seconds": told_of(timed(tasks, 7), lambda name: "prior / forward", "8 pictures")})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", action="store_true", help="time the prior and its adapter instead")
    if parser.parse_args().cost:
        cost()
    else:
        plane()
