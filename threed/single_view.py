"""Recipes under priors of single pictures, such as Stable Diffusion: the papers' numbers, and views named in words.

The numbers of `threed/recipes.py` are those of a small prior that is told cameras and draws views together. A
text-to-image checkpoint wants what the papers used: strong guidance, timesteps drawn from nearly all, one view a step,
thousands of steps; and, against the Janus problem, prompts that name the view, led aside from other views.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from threed.distill.anneal import Anneal
from threed.distill.hifa import HiFA, root
from threed.distill.nfsd import NFSD
from threed.distill.personal import DreamBooth, Inversion, Learns
from threed.distill.score import Distillation
from threed.distill.sds import SDS
from threed.distill.sjc import SJC
from threed.distill.vsd import BSD, VSD
from threed.distill.worded import Wording
from threed.errors import Mistake
from threed.recipe import DISTILS, Recipe, Stage
from threed.views import Views

LEARNS = Learns(Inversion(), DreamBooth())
TAUGHT = {"realfusion": Learns(Inversion())}  # by recipe, what a prior learns of the picture unless it is told to
STRONG = 100.0  # the guidance scale of DreamFusion and of what followed it
VIEW = Views(count=1, elevation=(-10.0, 45.0))


@dataclass(frozen=True)
class Paper:
    """What a paper did in one stage."""

    steps: int
    loss: Distillation = field(default_factory=SDS)
    resolution: int = 64  # pixels a side of what is rendered, before it is enlarged to the prior's size


def low(last: float = 0.5) -> SDS:
    """Score distillation that keeps what is there: no timestep is above `last`."""
    return SDS(t_max=Anneal(last))


# By recipe, a stage after the other; the comments of `threed/recipes.py` have the sources.
PAPERS: dict[str, tuple[Paper, ...]] = {
    "refined": (Paper(2_000, low()),),
    "dreamfusion": (Paper(10_000),),
    "magic3d": (Paper(5_000), Paper(3_000, low(), 512)),
    "fantasia3d": (Paper(2_000, low(), 512), Paper(2_000, SDS(weight="fantasia3d"), 512)),
    "textmesh": (Paper(10_000),),
    "latent-nerf": (Paper(5_000), Paper(1_000, low())),
    "sketch-shape": (Paper(5_000), Paper(1_000, low())),
    "latent-paint": (Paper(5_000),),
    "mvdream": (Paper(10_000, SDS(scale=50.0, rescale=0.5, weight="clean")),),
    "hifa": (Paper(10_000, HiFA(t_min=root(0.98, 0.3), t_max=root(0.98, 0.3))),),
    "nfsd": (Paper(10_000, NFSD()),),
    "sjc": (Paper(10_000, SJC(t_min=Anneal(0.01), t_max=Anneal(0.97))),),
    "prolificdreamer": (
        Paper(25_000, VSD(t_max=Anneal(0.98, 0.5, until=0.2))),
        Paper(15_000, SDS(), 512),
        Paper(30_000, VSD(t_max=Anneal(0.98, 0.5, until=0.2)), 512),
    ),
    "realfusion": (Paper(5_000),),
    "zero123": (Paper(600, SDS(scale=3.0, t_min=Anneal(0.4, 0.2, until=1 / 3), t_max=Anneal(0.85, 0.5, until=1 / 3))),),
    "magic123": (
        Paper(5_000, SDS(t_min=Anneal(0.2), t_max=Anneal(0.6)), 128),
        Paper(5_000, SDS(t_min=Anneal(0.2), t_max=Anneal(0.6)), 512),
    ),
    "dreamcraft3d": (
        Paper(5_000, SDS(t_min=Anneal(0.7, 0.2, until=0.04), t_max=Anneal(0.85, 0.5, until=0.04)), 128),
        Paper(5_000, low(), 512),
        Paper(5_000, BSD(t_max=Anneal(0.5, 0.2)), 512),
    ),
    "repaint": (Paper(5_000, SDS(), 512),),
    "resculpt": (Paper(3_000, low(), 512),),
    "reshape": (Paper(3_000, low(), 512),),
}


def single_view(recipe: Recipe, guidance: float = STRONG) -> Recipe:
    """The recipe for a checkpoint that wants `guidance` where Stable Diffusion wants 100. Raises Mistake."""
    if recipe.drawn:
        raise Mistake(
            f"recipe {recipe.name!r} wants views that are drawn together, and this --prior draws single pictures; use "
            "one of several views, see: threed prior list, or leave --prior out"
        )
    if recipe.name not in PAPERS:
        raise Mistake(
            f"recipe {recipe.name!r} asks no prior of pictures; use --recipe {DISTILS[recipe.wants]} with this "
            "--prior, or leave --prior out"
        )
    stages = zip(recipe.stages, PAPERS[recipe.name], strict=True)
    return replace(
        recipe,
        stages=tuple(_seen(*each, guidance) for each in stages),
        wording=Wording(),
        learns=TAUGHT.get(recipe.name),
    )


def _seen(stage: Stage, paper: Paper, guidance: float) -> Stage:
    """Of albedo and normals drawn together, the albedo; normals by themselves stay, taken for pictures."""
    loss = replace(paper.loss, scale=guidance) if paper.loss.scale == STRONG else paper.loss
    kinds = stage.kinds if len(stage.kinds) == 1 else ("albedo",)
    scene = replace(stage.scene, resolution=paper.resolution)
    return replace(stage, scene=scene, steps=paper.steps, views=VIEW, kinds=kinds, loss=loss)
