"""What a recipe is: a start, stages with their losses, what the asset is to look like. `threed/recipes.py` has them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from threed import even
from threed.distill.anneal import Anneal
from threed.distill.losses import LEARNING, NEGATIVE, instead
from threed.distill.personal import Learns
from threed.distill.rig import Rig
from threed.distill.sample import FIRST as NOISE
from threed.distill.score import Distillation
from threed.distill.worded import Wording
from threed.nerf import NeRFConfig
from threed.overpaint import Overpaint
from threed.paint import PaintedConfig
from threed.sdf import SDFConfig
from threed.solid import SolidConfig
from threed.views import Views

FAULTS = "unrealistic, blurry, low quality, ugly"  # the negative prompt of losses that need one
DISTILS = {"text": "dreamfusion", "picture": "zero123"}  # a recipe that distils, for those who ask for one
# What a shape can begin as, beside a mesh: a soft ball, a volume out of the text or the picture, or one that has the
# picture's outline.
STARTS = ("sphere", "volume", "carved")


@dataclass(frozen=True)
class Terms:
    """Weights of what is asked of any shape, whatever the prompt; per picture, beside a loss summed over pixels."""

    sparsity: Anneal = field(default_factory=lambda: Anneal(0.0))  # no haze
    opacity: Anneal = field(default_factory=lambda: Anneal(0.0))  # solid or empty, nothing between
    orientation: Anneal = field(default_factory=lambda: Anneal(0.0))  # of a volume: what is seen faces the camera
    sketch: Anneal = field(default_factory=lambda: Anneal(0.0))  # of a volume: it is the mesh that it began as
    z_variance: Anneal = field(default_factory=lambda: Anneal(0.0))  # of a volume: a ray meets one thin surface
    eikonal: Anneal = field(default_factory=lambda: Anneal(0.0))  # of a signed distance: its slope has length 1
    normal_consistency: Anneal = field(default_factory=lambda: Anneal(0.0))  # of a surface: neighbours face one way
    laplacian: Anneal = field(default_factory=lambda: Anneal(0.0))  # of a surface: vertices lie amid their neighbours


@dataclass(frozen=True)
class Reference:
    """Weights of what pictures ask of the views that they show, see `threed.reference`, and how often each is seen."""

    rgb: Anneal = field(default_factory=lambda: Anneal(1000.0))
    mask: Anneal = field(default_factory=lambda: Anneal(1000.0))
    depth: Anneal = field(default_factory=lambda: Anneal(0.0))
    normal: Anneal = field(default_factory=lambda: Anneal(0.0))
    every: int = 1  # steps from one look at the picture to the next
    resolution: int = 96  # pixels a side
    drawn: int = 0  # at so many of the views that the prior has drawn every step looks, beside the picture
    dropped: float = 0.0  # share of a view's normals that are not asked for: those that are farthest off

    def __post_init__(self) -> None:
        if self.every < 1 or self.resolution < 8:
            raise ValueError(f"{self} is never seen; use every from 1, and a resolution from 8 pixels")
        if self.drawn < 0 or not 0 <= self.dropped < 1:
            raise ValueError(f"{self} looks at less than nothing; use drawn from 0, and dropped from 0 to below 1")


@dataclass(frozen=True)
class Drawn:
    """Views of the object that the prior draws together before anything is fitted to them, see `threed.drawn`."""

    rig: Rig  # where a prior has a rig of its own, that one is taken
    kinds: tuple[str, ...]  # what they show: the albedo, and the normals where the prior knows them
    steps: int  # of the sampler
    scale: float  # guidance
    rescale: float = 0.7
    first: float = NOISE  # the time at which drawing begins, over what the start looks like; NOISE: over nothing
    weights: tuple[float, ...] = ()  # of each view in the fit; 1 without any

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.rig):
            raise ValueError(f"{len(self.weights)} weights of {len(self.rig)} views; give one of each, or none")
        if self.kinds not in (("albedo",), ("albedo", "normal")):
            raise ValueError(f"kinds are {self.kinds}; views to fit to show the albedo, or the albedo and the normals")
        if not 0 < self.first <= NOISE or self.steps < 1:
            raise ValueError(f"{self} draws nothing; use steps from 1, and first above 0 up to {NOISE}")


@dataclass(frozen=True)
class Stage:
    """One optimisation: of what, how long, seen from where, under which loss."""

    name: str
    scene: NeRFConfig | SDFConfig | SolidConfig | PaintedConfig  # begins as what is there
    steps: int
    views: Views
    kinds: tuple[str, ...]  # what the pictures of every view show
    loss: Distillation | None  # without one, a fit to the picture, or to views that the prior has drawn, alone
    terms: Terms = field(default_factory=Terms)
    white_background: float = 0.5  # share of the steps on white; the others have a random plain colour
    particles: int = 1  # scenes that are fitted together, a step each in turn of chance; the first goes on
    reference: Reference | None = None  # what pictures ask for: the one that is given, and those that were drawn

    def __post_init__(self) -> None:
        seen = self.reference and (self.reference.every == 1 or self.reference.drawn)
        if self.loss is None and not seen:
            raise ValueError(
                f"stage {self.name!r} has steps without any aim; give it a loss, or a reference every step"
            )
        if self.reference and self.particles > 1:
            raise ValueError(f"stage {self.name!r} has a reference, which one scene alone is fitted to; use 1 particle")


@dataclass(frozen=True)
class AssetSettings:
    """What the exported asset looks like."""

    faces: int = 8000  # at most
    texture_size: int = 1024  # texels a side, a power of two
    height: float = 1.0  # metres
    grid: int = 128  # cells a side of the isosurface
    smoothing: int = 10  # Taubin iterations
    evening: float = even.SIGMA  # how much normals may differ and still be made one; 0 leaves lumps


@dataclass(frozen=True)
class Recipe:
    name: str
    about: str  # what it is and whose, in one line
    wants: Literal["text", "picture"] = "text"  # what it makes an asset of: `threed text` or `threed image`
    start: str = "sphere"  # one of STARTS, or a mesh file, which "mesh" asks for
    drawn: Drawn | None = None  # what the prior draws first, for the stages to be fitted to
    stages: tuple[Stage, ...] = ()  # one after the other; without any the start is the shape
    negative: str = ""  # what it should not look like, unless the user says so
    wording: Wording | None = None  # how prompts say from where each picture is seen; None: a prior is told by number
    learns: Learns | None = None  # what the prior learns of the picture before the stages; of recipes that want one
    overpaint: Overpaint | None = None  # how the texture is drawn over, once there is one
    asset: AssetSettings = field(default_factory=AssetSettings)


def distilled(
    recipe: Recipe,
    loss: str | None = None,
    scale: float | None = None,
    particles: int | None = None,
    wording: Wording | None = None,
) -> Recipe:
    """The recipe under another loss, with another guidance scale, of several particles, or worded; where not None.

    Every particle has the steps that one scene has. Raises ValueError for what cannot work.
    """
    if not any(stage.loss for stage in recipe.stages):
        raise ValueError(
            f"recipe {recipe.name!r} distils nothing; use another --recipe, such as {DISTILS[recipe.wants]}"
        )
    stages, negative = recipe.stages, recipe.negative
    if loss is not None:
        stages = tuple(replace(s, loss=instead(s.loss, loss)) if s.loss else s for s in stages)
    if scale is not None:
        stages = tuple(replace(s, loss=replace(s.loss, scale=scale)) if s.loss else s for s in stages)
    if particles is not None and any(stage.reference for stage in stages):
        raise ValueError(f"recipe {recipe.name!r} fits one scene to its picture; leave --particles out")
    if particles is not None:
        learns = [isinstance(stage.loss, LEARNING) for stage in stages]
        if not any(learns):
            raise ValueError("particles share what a loss learns, and these stages' learn nothing; use --loss vsd")
        each = {True: particles, False: 1}
        stages = tuple(
            replace(s, particles=each[does], steps=s.steps * each[does]) for s, does in zip(stages, learns, strict=True)
        )
    if any(isinstance(stage.loss, NEGATIVE) for stage in stages):
        negative = negative or FAULTS
    return replace(recipe, stages=stages, negative=negative, wording=wording or recipe.wording)
