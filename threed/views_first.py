"""Recipes that draw views first, under checkpoints of others: out of noise, and fitted to in more pixels and steps.

The numbers of `threed/recipes.py` are those of a small prior, whose views agree where they are drawn over something.
"""

from __future__ import annotations

from dataclasses import replace

from threed.distill.sample import FIRST
from threed.recipe import Recipe, Stage

RESOLUTION, FIT = 256, 400  # pixels a side of what is fitted, and steps


def views_first(
    recipe: Recipe, scale: float, steps: int = 50, fov: float | None = None, kinds: tuple[str, ...] = ("albedo",)
) -> Recipe:
    """The recipe of a prior that draws in `steps` steps at the guidance `scale`, through a lens of `fov` degrees."""
    how = recipe.drawn
    assert how
    rig = replace(how.rig, fov=how.rig.fov if fov is None else fov)
    how = replace(how, rig=rig, kinds=kinds, steps=steps, scale=scale, rescale=0.0, first=FIRST)
    return replace(recipe, drawn=how, stages=tuple(map(_finer, recipe.stages)), wording=None)


def _finer(stage: Stage) -> Stage:
    reference = stage.reference and replace(stage.reference, resolution=RESOLUTION)
    return replace(stage, scene=replace(stage.scene, resolution=RESOLUTION), steps=FIT, reference=reference)
