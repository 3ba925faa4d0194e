"""Textures drawn over: the prior paints pictures of an asset anew, and what it painted goes onto the surface.

Four views a quarter turn apart are drawn jointly, out of noised renders of what is there (SDEdit, Meng et al. 2021,
arXiv 2108.01073) and, where the prior takes it, led by the normals and the mask of the surface; then four more from
between and above them, which begin as what the first four have left (in the way of TEXTure, Richardson et al. 2023,
arXiv 2302.01721). Sides that no camera sees keep their colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.conditions import geometry_picture
from threed.distill.embedded import Embedded
from threed.distill.prior import Pictures, Prior
from threed.distill.sample import ddim
from threed.exporters.bake import nearest_covered, texels
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset
from threed.renderers.projection import Projection
from threed.renderers.volume import Render

SUPERSAMPLE = 4  # samples along a side of a pixel of what the prior is shown
VIEWS = 4  # a round, a quarter turn apart, as priors know groups


@dataclass(frozen=True)
class Overpaint:
    """How pictures are drawn over."""

    first: float = 0.7  # the time at which drawing begins; the nearer to 1, the less remains of the colours
    steps: int = 15
    scale: float = 2.0  # guidance
    rescale: float = 0.7
    elevations: tuple[float, ...] = (10.0, 35.0)  # degrees, of each round


def overpaint(
    asset: Asset,
    prior: Prior,
    prompt: str,
    negative: str,
    how: Overpaint,
    generator: torch.Generator,  # where the prior is
    tell: Callable[[int], None] = lambda rounds: None,
) -> Asset:
    """The asset, at radius 1, in a texture of what the prior makes of its pictures; mesh and UVs stay as they are.

    `tell` hears how many rounds are done.
    """
    for number, elevation in enumerate(how.elevations):
        around = orbit(VIEWS, elevation=math.radians(elevation))
        cameras = replace(around, azimuth=around.azimuth + number * math.pi / VIEWS)
        render = surface.render(asset, cameras, prior.image_size, prior.image_size, SUPERSAMPLE)
        painted = drawn_over(render, cameras, prior, (prompt, negative), how, generator)
        asset = projected(asset, Projection.of(asset.mesh, cameras, painted, render.alpha))
        tell(number + 1)
    return asset


def drawn_over(
    render: Render,
    cameras: Cameras,
    prior: Prior,
    words: tuple[str, str],  # prompt and negative
    how: Overpaint,
    generator: torch.Generator,
) -> Float[Tensor, "C H W 3"]:
    """What the prior makes of the albedo of these pictures, display sRGB times alpha."""
    device = generator.device
    told = Pictures(cameras.to(device), ("albedo",), torch.ones(3, device=device))
    if isinstance(prior, Embedded) and prior.conventions.geometry:
        geometry = geometry_picture(render.normal.movedim(-1, 1), render.alpha.movedim(-1, 1))
        conditions = prior.conditions(*words, told, geometry=geometry.to(device))
    else:
        conditions = prior.conditions(*words, told)
    over = prior.encode(render.albedo.to(device) + (1 - render.alpha.to(device)))
    count, channels, height, width = over.shape
    shape = (count, channels, height, width)
    latents = ddim(prior, conditions, shape, how.steps, how.scale, how.rescale, generator, over=over, first=how.first)
    picture = prior.decode(latents).float().cpu()
    return (picture - (1 - render.alpha)).clamp(min=0).minimum(render.alpha)


@torch.no_grad()
def projected(asset: Asset, projection: Projection) -> Asset:
    """The asset with what pictures of it show, in so far as they can be believed."""
    texture = asset.material.base_color
    ground = texels(asset.mesh, asset.uvs, asset.uv_faces, len(texture))
    colour, belief = projection(ground.points, ground.normals)
    painted = torch.lerp(texture[ground.covered], colour, belief).clamp(0, 1)
    material = replace(asset.material, base_color=painted[nearest_covered(ground.covered)])
    return replace(asset, material=material)
