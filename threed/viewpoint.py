"""From where a picture was taken: cameras around an asset are tried until its outline and colours are the picture's.

Cameras of this project look at the origin, and a picture is framed by its object's outline. Between the two lie a zoom
and a shift of the picture, found together with the angles: `Viewpoint.placed` brings a picture into the camera's frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.cutout import Cutout
from threed.pictures import psnr, silhouette_iou
from threed.renderers import surface
from threed.renderers.camera import Cameras, framing
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.volume import Render

AZIMUTH, ELEVATION = (-45.0, 45.0), (-20.0, 60.0)  # degrees; a start answers with a front that near the camera
FOV = 40.0  # degrees, of the pictures that starts are trained with
COARSE_STEP = 10.0  # degrees
STEPS = (5.0, 2.5, 1.25, 0.6)  # degrees, of the refinement
SHARES = 0.008  # of zoom and shift, for each degree of a step
SIZE = 64  # pixels a side of the pictures that are compared
COLOUR = 0.5  # weight of the mean colour difference beside intersection over union
ASIDE = 2e-4  # taken off per degree away from the front: what decides of things that are round
# Taken off at 35 degrees from the usual elevation, by the square: what decides where the shape is far from the
# picture's, and outlines from below are hardly less like it than those from above. The right shape tells by more.
UNUSUAL, USUAL = 0.1, 15.0


@dataclass(frozen=True)
class Painted:
    """A mesh at radius 1, in colours."""

    mesh: Mesh
    albedo: surface.Albedo


@dataclass(frozen=True)
class Viewpoint:
    """A camera, in degrees, and the picture's place in its frame."""

    azimuth: float
    elevation: float
    fov: float = FOV
    zoom: float = 1.0  # the picture is so many times as large in the camera's frame
    right: float = 0.0  # and its middle lies there, in half sides of the frame
    down: float = 0.0

    @property
    def camera(self) -> Cameras:
        """At the distance from which a ball of radius 1 fills as much of the frame as in training."""
        fov = math.radians(self.fov)
        numbers = math.radians(self.azimuth), math.radians(self.elevation), framing(fov), fov
        return Cameras(*(torch.tensor([number]) for number in numbers))

    def of(self, thing: Asset | Painted, size: int) -> Render:
        """What this camera sees of a thing at radius 1."""
        if isinstance(thing, Painted):
            return surface.render(thing.mesh, self.camera, size, size, albedo=thing.albedo)
        return surface.render(thing, self.camera, size, size)

    def placed(self, cutout: Cutout, size: int) -> Cutout:
        """The picture as this camera would have taken it."""
        picture = torch.cat([cutout.rgb, cutout.alpha], dim=-1).movedim(-1, 0)[None]
        inverse = torch.tensor(
            [[[1 / self.zoom, 0, -self.right / self.zoom], [0, 1 / self.zoom, -self.down / self.zoom]]]
        )
        grid = functional.affine_grid(inverse, [1, 4, size, size], align_corners=False)
        moved = functional.grid_sample(picture, grid, align_corners=False)[0].movedim(0, -1)
        return Cutout(*moved.split([3, 1], dim=-1))


@torch.no_grad()
def estimate(
    asset: Asset | Painted, cutout: Cutout, elevation: float | None = None, fov: float = FOV, frontal: float = 0.0
) -> Viewpoint:
    """The viewpoint from which this asset, at radius 1, looks most like the picture; where given, at this elevation.

    `frontal` is taken off at 35 degrees from the front, by the square: for shapes that are only roughly the picture's.
    """

    def judged(score: float, at: Viewpoint) -> tuple[float, Viewpoint]:
        return score - frontal * (at.azimuth / 35) ** 2, at

    small = _reduced(cutout, SIZE)
    heights = grid(ELEVATION) if elevation is None else [elevation]
    around = [Viewpoint(azimuth, height, fov) for azimuth in grid(AZIMUTH) for height in heights]
    tried = [judged(*_aligned(at.of(asset, SIZE), small, at)) for at in around]
    score, best = max(tried, key=lambda one: one[0])
    for step in STEPS:
        moved = True
        while moved:
            moved = False
            for at in _turned(best, step, elevation is None):
                found, near = judged(*_settled(at.of(asset, SIZE), small, at, step))
                if found > score + 1e-6:
                    score, best, moved = found, near, True
                    break
    return best


@torch.no_grad()
def placed(asset: Asset | Painted, cutout: Cutout, at: Viewpoint, size: int = 2 * SIZE) -> Viewpoint:
    """The same camera, with the picture zoomed and moved to where it is most like what the camera sees."""
    render, small = at.of(asset, size), _reduced(cutout, size)
    _, best = _aligned(render, small, at)
    for step in STEPS:
        _, best = _settled(render, small, best, step)
    return best


def likeness(render: Render, cutout: Cutout, viewpoint: Viewpoint) -> float:
    """Soft intersection over union of the outlines, less the difference of colours, both as bright, where they meet."""
    placed = viewpoint.placed(cutout, render.alpha.shape[1])
    mine, theirs = render.alpha[0], placed.alpha
    both, either = mine.minimum(theirs), mine.maximum(theirs)
    inside = (mine * theirs).sum().clamp(min=1e-6)
    ours, shown = render.albedo[0] * theirs, placed.rgb * mine
    gain = (ours * shown).sum() / ours.square().sum().clamp(min=1e-6)  # what the light makes of it
    apart = (gain * ours - shown).abs().mean(-1).sum() / inside
    unlikely = ASIDE * abs(viewpoint.azimuth) + UNUSUAL * ((viewpoint.elevation - USUAL) / 35) ** 2
    return float(both.sum() / either.sum().clamp(min=1e-6) - COLOUR * apart) - unlikely


@torch.no_grad()
def agreement(
    asset: Asset | Painted, cutout: Cutout, viewpoint: Viewpoint, size: int = 256, light: float = 1.0
) -> tuple[float, float]:
    """PSNR of the asset's colours, in so much light, on white beside the picture, in dB, and IoU of the outlines."""
    render = viewpoint.of(asset, size)
    placed = viewpoint.placed(_reduced(cutout, size), size)
    theirs = placed.rgb + 1 - placed.alpha
    mine = light * render.albedo + 1 - render.alpha
    return psnr(mine, theirs[None]), silhouette_iou(render.alpha, placed.alpha[None])


def grid(span: tuple[float, float]) -> list[float]:
    """Degrees at equal steps, ends included."""
    return torch.linspace(*span, round((span[1] - span[0]) / COARSE_STEP) + 1).tolist()


def _aligned(render: Render, cutout: Cutout, at: Viewpoint) -> tuple[float, Viewpoint]:
    """With the picture brought to the place and the area of what the camera sees; and how like it then is."""
    (area, x, y), (area_there, right, down) = _moments(cutout.alpha), _moments(render.alpha[0])
    zoom = math.sqrt(area_there / area) if area_there and area else 1.0
    placed = replace(at, zoom=zoom, right=right - zoom * x, down=down - zoom * y)
    return likeness(render, cutout, placed), placed


def _settled(render: Render, cutout: Cutout, at: Viewpoint, step: float) -> tuple[float, Viewpoint]:
    """With the picture moved and zoomed to where it is most like what the camera sees."""
    score, best = max((likeness(render, cutout, at), at), _aligned(render, cutout, at), key=lambda one: one[0])
    moved = True
    while moved:
        around = [(likeness(render, cutout, near), near) for near in _shifted(best, SHARES * step)]
        found, near = max(around, key=lambda one: one[0])
        moved = found > score + 1e-6
        if moved:
            score, best = found, near
    return score, best


def _moments(alpha: Float[Tensor, "S S 1"]) -> tuple[float, float, float]:
    """Share of the frame, and the mean place, right and down, in half sides."""
    size = len(alpha)
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    total = alpha.sum().clamp(min=1e-6)
    return (
        float(alpha.mean()),
        float((alpha[..., 0].sum(0) * axis).sum() / total),
        float((alpha[..., 0].sum(1) * axis).sum() / total),
    )


def _turned(at: Viewpoint, step: float, tilted: bool) -> list[Viewpoint]:
    """Cameras a step of so many degrees away, and where it is."""
    azimuths = [at.azimuth + turn for turn in (-step, step) if AZIMUTH[0] <= at.azimuth + turn <= AZIMUTH[1]]
    heights = [at.elevation + rise for rise in (-step, step) if ELEVATION[0] <= at.elevation + rise <= ELEVATION[1]]
    found = [at] + [replace(at, azimuth=azimuth) for azimuth in azimuths]
    return found + [replace(at, elevation=height) for height in heights if tilted]


def _shifted(at: Viewpoint, share: float) -> list[Viewpoint]:
    """The picture a little larger or smaller, or moved by this share of half a side."""
    found = [replace(at, zoom=at.zoom * factor) for factor in (1 - share, 1 + share)]
    found += [replace(at, right=at.right + shift) for shift in (-share, share)]
    return found + [replace(at, down=at.down + shift) for shift in (-share, share)]


def _reduced(cutout: Cutout, size: int) -> Cutout:
    """At most so many pixels a side."""
    if len(cutout.alpha) <= size:
        return cutout
    picture = torch.cat([cutout.rgb, cutout.alpha], dim=-1).movedim(-1, 0)[None]
    small = functional.interpolate(picture, (size, size), mode="bilinear", antialias=True)[0].movedim(0, -1)
    return Cutout(*small.split([3, 1], dim=-1))
