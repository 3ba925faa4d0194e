"""Which exemplars look like the pictures of a training: those among which a ranker learns to choose.

Pictures are compared with all exemplars but that of their own asset, in every quarter turn, from the nearest of CAMERAS
to where they were taken, give or take what is usually misjudged. They are thousands of times as many as the one that
`threed.recalled` compares: all that were taken from near one camera are compared at once, as matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from threed.distill.angles import within_quarter
from threed.distill.exemplars import Exemplars, chosen
from threed.distill.lift import EXTENT
from threed.recalled import Views
from threed.renderers.alike import compared, judged
from threed.renderers.ops import ops
from threed.training.angles import framed
from threed.training.pairs import Pairs
from threed.training.views_batch import look, shaded

CAMERAS = torch.cartesian_prod(torch.arange(-40.0, 41.0, 10.0), torch.arange(-10.0, 41.0, 12.5))  # degrees
MISJUDGED = torch.tensor([5.0, 4.0])  # degrees of azimuth and elevation, usually
FOV = 40.0  # degrees
SIZE = 32  # pixels a side
KEPT = 24  # exemplars of every picture
AT_ONCE = 1024  # pictures


@dataclass(frozen=True)
class Candidates:
    """The likest exemplars of S assets' V pictures, the best first."""

    row: Int[Tensor, "S V K"]
    turns: Int[Tensor, "S V K"]  # quarters until what is seen is the front


def candidates(
    exemplars: Exemplars, pairs: Pairs, own: bool, seed: int, tell: Callable[[int], object] = lambda done: None
) -> Candidates:
    """Of the pictures of pairs; `own` where the exemplars are of the pairs' volumes.

    On the processor. Calls `tell` with how many of CAMERAS are done.
    """
    generator, every = torch.Generator().manual_seed(seed), torch.arange(len(exemplars))
    kept = chosen(len(pairs.volumes))
    itself = torch.tensor([kept.index(row) if own and row in kept else -1 for row in pairs.rows[:, 0].tolist()])
    cameras = pairs.cache.cameras[pairs.rows[:, 1]]
    views = cameras.shape[1]
    near = nearest(cameras.flatten(0, 1), generator)
    found = torch.zeros(2, *cameras.shape[:2], KEPT, dtype=torch.int64)
    for camera, angles in enumerate(CAMERAS):
        mine = (near == camera).nonzero()[:, 0]
        seen = Views.quarters(*angles.tolist())
        before = seen.cameras(FOV)[torch.arange(4).repeat(len(exemplars))]
        drawn, _ = ops(torch.device("cpu")).draw_balls(
            exemplars.balls, every.repeat_interleave(4), before, SIZE, EXTENT
        )
        for part in mine.split(AT_ONCE) if len(mine) else ():
            asset, view = part // views, part % views
            sums = compared(drawn, *photographs(pairs, asset.numpy(), view.numpy(), generator))
            score = seen.resemblance(*judged(sums.movedim(0, 1).unflatten(1, (-1, 4))))
            is_own = itself[asset] >= 0
            score[is_own, itself[asset][is_own]] = -torch.inf
            best = score.flatten(1).topk(KEPT).indices
            found[:, asset, view] = torch.stack([best // 4, best % 4])
        tell(camera + 1)
    return Candidates(*found)


def nearest(cameras: Float[Tensor, "P 4"], generator: torch.Generator) -> Int[Tensor, "P"]:
    """Which of CAMERAS is nearest to where these are thought to be, whose azimuths are known up to quarters."""
    told = cameras[:, :2].rad2deg() + MISJUDGED * torch.randn(len(cameras), 2, generator=generator)
    told[:, 0] = within_quarter(told[:, 0])
    return torch.cdist(told, CAMERAS).argmin(1)


def photographs(
    pairs: Pairs, asset: Int[np.ndarray, "P"], view: Int[np.ndarray, "P"], generator: torch.Generator
) -> tuple[Float[Tensor, "P S S 3"], Bool[Tensor, "P S S"]]:
    """Lit and framed, and where the object is."""
    albedo, normal, alpha = look(pairs.cache, pairs.rows[asset, 1], view, torch.device("cpu"))
    return small(framed(torch.cat([shaded(albedo, normal, generator), alpha], dim=1)), SIZE)


def small(picture: Float[Tensor, "P 4 H W"], size: int) -> tuple[Float[Tensor, "P S S 3"], Bool[Tensor, "P S S"]]:
    """Of pictures, sRGB times alpha and alpha, in fewer pixels the colours and where the object is."""
    rgb, alpha = functional.adaptive_avg_pool2d(picture, size).movedim(1, -1).split([3, 1], dim=-1)
    return (rgb / alpha.clamp(min=0.05)).clamp(0, 1), alpha[..., 0] > 0.5
