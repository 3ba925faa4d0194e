"""Recipes under priors of several views, such as MVDream: the papers' numbers, four views a step, told by number.

What `threed.single_view` says of steps, losses and pixels holds here too; but the views of a step stand a quarter turn
apart and are denoised together, no prompt names a view, nothing is led aside, and guidance is weaker, half of what it
adds in contrast taken back. The numbers are those of Shi et al. 2023 (arXiv 2308.16512) and of their code, which takes
back contrast by one factor for the four views; here each has its own.
"""

from __future__ import annotations

from dataclasses import replace

from threed.distill.anneal import Anneal
from threed.distill.rig import Rig
from threed.distill.sds import SDS
from threed.recipe import Recipe, Stage
from threed.single_view import single_view
from threed.views import Views
from threed.views_first import views_first

GUIDANCE = 50.0  # the guidance scale of MVDream's score distillation
DRAWING, FOUR = 7.5, Rig((45.0, 135.0, 225.0, 315.0), (20.0,) * 4, fov=40.0)  # at which it draws, and from where
VIEWS = Views(count=4, elevation=(0.0, 30.0))
RESCALE = 0.5
HALF = 5_000  # steps at 64 pixels, then as many at more
RESOLUTION = 256  # pixels a side


def multi_view(recipe: Recipe, guidance: float = GUIDANCE) -> Recipe:
    """The recipe for a checkpoint that denoises views together. Raises Mistake."""
    if how := recipe.drawn:
        return views_first(replace(recipe, drawn=replace(how, rig=FOUR)), DRAWING)
    recipe = single_view(recipe, guidance)
    stages = tuple(_seen(stage, guidance) for stage in recipe.stages)
    if recipe.name == "mvdream":
        stages = _mvdream(stages[0], guidance)
    return replace(recipe, stages=stages, wording=None)


def _seen(stage: Stage, guidance: float) -> Stage:
    """From four sides. Where a loss, as VSD, wants little guidance anyway, no contrast is taken back."""
    loss = stage.loss
    if loss and loss.scale == guidance:
        loss = replace(loss, rescale=RESCALE)
    return replace(stage, views=VIEWS, loss=loss)


def _mvdream(stage: Stage, guidance: float) -> tuple[Stage, Stage]:
    """Timesteps fall from 0.98 to [0.02, 0.5] in 8,000 of 10,000 steps, of which the second half has more pixels."""
    low, high = Anneal(0.98, 0.02, until=0.8), Anneal(0.98, 0.5, until=0.8)
    loss = SDS(scale=guidance, rescale=RESCALE, weight="clean")
    first, last = (
        replace(loss, t_min=Anneal(low(a), low(b), until), t_max=Anneal(high(a), high(b), until))
        for a, b, until in ((0.0, 0.5, 1.0), (0.5, 1.0, 0.6))
    )
    coarse = replace(stage, steps=HALF, loss=first)
    scene = replace(stage.scene, resolution=RESOLUTION)
    return coarse, replace(stage, name="fine", scene=scene, steps=HALF, loss=last)
