"""Recipes of pictures under priors that know how other views follow from one, such as Zero-1-to-3.

The numbers are those of the papers, from `threed/single_view.py`. What such a prior was trained on is added: white
behind the object, colours and no normals, and one lens for all, that of the picture. Views are not named in words.
"""

from __future__ import annotations

from dataclasses import replace

from threed.recipe import Recipe, Reference, Stage
from threed.single_view import single_view
from threed.viewpoint import Viewpoint
from threed.views import Views
from threed.views_first import views_first

# Liu et al., as threestudio has it: 12, 8, then 4 views a step, from 10 degrees below to 80 above.
SEVERAL = {"zero123": Views(count=4, elevation=(-10.0, 80.0))}
TWO = ("magic123", "dreamcraft3d")  # whose papers have a prior of words beside the one of views


def novel_view(recipe: Recipe, guidance: float, fov: float) -> Recipe:
    """The recipe for a checkpoint that wants `guidance`, and a picture of this field of view, in degrees.

    Raises Mistake.
    """
    if recipe.drawn:
        return views_first(recipe, guidance, fov=fov)
    told = single_view(recipe, guidance)
    distance = float(Viewpoint(0.0, 0.0, fov).camera.distance)

    def shown(stage: Stage) -> Stage:
        views = SEVERAL.get(recipe.name, stage.views)
        reference = stage.reference
        if reference and stage.kinds == ("normal",):  # now judged by its colours, which the picture then holds
            reference = replace(reference, rgb=Reference().rgb)
        return replace(
            stage,
            views=replace(views, distance=(distance, distance), fov_y=fov),
            kinds=("albedo",),
            white_background=1.0,
            reference=reference,
        )

    return replace(told, stages=tuple(map(shown, told.stages)), wording=None, learns=None)


def remark(recipe: str) -> str:
    """What people should know of a recipe under such a prior."""
    if recipe not in TWO:
        return ""
    return f"; {recipe} has two priors in its paper, of words and of views, and here the one of views judges alone"
