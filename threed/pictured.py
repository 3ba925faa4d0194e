"""From a picture to a run folder: what it shows becomes a volume, a solid, and the front of its texture.

Its light is taken out of the colours that it leaves on the texture as far as the volume knows those of the thing; sides
that it does not show keep the volume's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from threed import pictures, viewpoint
from threed.carved import Beginning, Words, carved, coloured, lifts
from threed.cutout import Cutout, framed
from threed.distill import start
from threed.distill.conditions import reference_picture
from threed.distill.embedded import Embedded, Reference
from threed.distill.folder import UnreadablePrior, located
from threed.distill.hub.shown import Informed
from threed.distill.prior import Prior
from threed.distill.sample import FIRST
from threed.errors import Mistake
from threed.novel_view import remark
from threed.overpaint import projected
from threed.personal import acquainted
from threed.photograph import Photograph
from threed.pipeline import deliver, report, solidify, staged, warn
from threed.priors import load
from threed.reference import Target
from threed.renderers.mesh import Asset
from threed.renderers.projection import Projection
from threed.renderers.voxels import Voxels
from threed.run import Request, Run, Source
from threed.start import VoxelField, begin
from threed.viewpoint import Viewpoint

FINEST, COARSEST = 768, 64  # pixels a side of the picture in its camera's frame
TARGET = 256  # the same, of what stages are to look like
UNHEEDED = (
    "the embedded prior hardly heeds a picture: what it draws are the words of --prompt, over what the start made of "
    "the picture; Zero-1-to-3 heeds it, see: threed prior list"
)
RIM = 0.006  # of the frame: how far within its outline a picture still shows what is behind


def picture_to_3d(
    request: Request,
    photograph: Photograph,
    mask: Float[Tensor, "H W"],
    how: str,
    run: Run,
    prior: Prior | None = None,
) -> Asset:
    """Fill the run folder with the asset of the object that a picture shows where the mask says; returns it.

    `how` the mask was found goes into the report. `prior` stands in for the one that the request names, where stages
    ask one. Raises Failure when nothing solid comes out.
    """
    source, recipe, folder = request.picture, request.recipe, located(request.prior)
    assert source
    if not prior and (recipe.drawn or any(stage.loss for stage in recipe.stages)):
        with run.log.stage("load"):
            prior = load(request)
    with run.log.stage("picture"):
        cutout = framed(photograph, mask)
        run.write("input.png", pictures.png(shown(cutout)))
        run.write("mask.png", pictures.png(Image.fromarray(_bytes(mask))))
    with run.log.stage("start"):
        if request.prompt:
            warn(request, run)
        beginning = begun(request, source, cutout, framed(photograph, mask, start.shape(folder).picture))
        shape, seen, light = beginning.field, beginning.seen, beginning.light
        unlit = cutout.unlit(light)
        if recipe.stages:
            seen = levelled(seen or sighted(shape, request, unlit), prior)
            wanted = target(shape.voxels, unlit, seen, beginning.followed).to(request.device)
            prior, wanted = introduced(prior, wanted, request, run)
    asked = request
    if recipe.learns:
        assert prior
        prior, asked = acquainted(prior, wanted, request, run)
    grown = staged(shape, asked, run, prior, wanted) if recipe.stages else shape
    with run.log.stage("mesh"):
        asset = solidify(grown, request)
    with run.log.stage("camera"):
        seen = viewpoint.placed(asset, unlit, seen) if seen else sighted(asset, request, unlit)
    with run.log.stage("projection"):
        asset = painted(asset, unlit, seen)
    with run.log.stage("export"):
        placed = deliver(asset, request, run)
    shown_as = reference(asset, cutout, seen, light, how) | {"known_by_heart": beginning.known}
    told_of = report(asset, placed, grown, run) | {"picture": shown_as}
    run.write("report.json", (json.dumps(told_of, indent=2) + "\n").encode())
    return placed


def begun(request: Request, source: Source, cutout: Cutout, small: Cutout) -> Beginning:
    """What the prior makes of the picture, carved where the recipe says so."""
    folder, name = located(request.prior), request.recipe.start
    words = Words(request.prompt, request.negative, request.seed, folder, request.device)
    if name == "carved" or (name == "volume" and not words.negative and lifts(words)):
        return carved(words, told(small), cutout, source.elevation, source.fov, name == "carved")
    shape = begin(name, request.prompt, request.seed, folder, request.negative, told(small), request.device)
    assert shape
    return Beginning(shape)


def sighted(shape: VoxelField | Asset, request: Request, cutout: Cutout) -> Viewpoint:
    """From where the picture shows this."""
    assert request.picture
    thing = coloured(shape.voxels) if isinstance(shape, VoxelField) else shape
    return viewpoint.estimate(thing, cutout, request.picture.elevation, request.picture.fov)


@torch.no_grad()
def target(voxels: Voxels, cutout: Cutout, seen: Viewpoint, followed: bool = True) -> Target:
    """What the picture's camera is to see: the picture, and the depth and the normals of the start.

    Where the picture's outline is not followed, the start's, and its colours beside the picture.
    """
    placed, look = seen.placed(cutout, TARGET), seen.of(coloured(voxels), TARGET)
    if not followed:
        rgb = placed.rgb * look.alpha[0] + (1 - placed.alpha) * look.albedo[0]
        placed = Cutout(rgb, look.alpha[0])
    there = look.alpha[0] > 0
    depth = look.depth[0] / look.alpha[0].clamp(min=1e-3)
    normal = functional.normalize(look.normal[0], dim=-1, eps=1e-4)
    return Target(seen.camera, placed.rgb, placed.alpha, torch.where(there, depth, depth[there].mean()), normal)


def levelled(seen: Viewpoint, prior: Prior | None) -> Viewpoint:
    """From where a picture counts as taken to a prior whose views turn about its upright axis, see `Rig.level`."""
    rig = getattr(prior, "rig", None)
    return replace(seen, elevation=0.0) if rig and rig.level else seen


def introduced(prior: Prior | None, wanted: Target, request: Request, run: Run) -> tuple[Prior | None, Target]:
    """The prior, shown the picture if it can see; and what the stages ask for, of the start no more than they want."""
    drawn = request.recipe.drawn
    if isinstance(prior, Informed):
        prior = informed(prior, wanted, request, run)
    elif drawn and isinstance(prior, Embedded):
        run.log.note(UNHEEDED)
    if drawn and drawn.first == FIRST:  # the views have nothing to do with the start
        wanted = replace(wanted, depth=None, normal=None)
    return prior, wanted


def informed(prior: Informed, wanted: Target, request: Request, run: Run) -> Informed:
    """The prior, told of the picture. Raises Mistake for a network of pictures that cannot be used after all."""
    run.log.note(f"the prior {request.prior!r} is asked as {prior.name} is{remark(request.recipe.name)}")
    try:
        return prior.shown(Reference(told(Cutout(wanted.rgb, wanted.alpha))[None], wanted.camera))
    except UnreadablePrior as error:
        raise Mistake(str(error)) from error


def told(cutout: Cutout) -> Float[Tensor, "4 S S"]:
    """As a start is shown it."""
    rgb, alpha = (each.movedim(-1, 0)[None] for each in (cutout.rgb, cutout.alpha))
    return reference_picture(rgb, alpha)[0]


def shown(cutout: Cutout) -> Image.Image:
    """As a picture with alpha, for people, and for the command line again."""
    rgb = cutout.rgb / cutout.alpha.clamp(min=1 / 255)
    return Image.fromarray(_bytes(torch.cat([rgb, cutout.alpha], dim=-1)))


def painted(asset: Asset, cutout: Cutout, seen: Viewpoint) -> Asset:
    """With what the picture shows on the side that it shows, at the picture's resolution."""
    size = min(max(round(len(cutout.alpha) / seen.zoom), COARSEST), FINEST)
    placed = seen.placed(cutout, size)
    return projected(asset, Projection.of(asset.mesh, seen.camera, placed.rgb[None], within(placed.alpha)[None]))


def within(alpha: Float[Tensor, "S S 1"]) -> Float[Tensor, "S S 1"]:
    """Without its rim."""
    reach = round(RIM * len(alpha))
    least = functional.max_pool2d(-alpha.movedim(-1, 0)[None], 2 * reach + 1, stride=1, padding=reach)
    return -least[0].movedim(0, -1)


def reference(asset: Asset, cutout: Cutout, seen: Viewpoint, light: float, how: str) -> dict[str, Any]:
    """What the report says of the picture: its camera, its light, and how far the asset looks like it there."""
    psnr, iou = viewpoint.agreement(asset, cutout, seen, light=light)
    return {
        "mask_from": how,
        "azimuth_degrees": round(seen.azimuth, 1),
        "elevation_degrees": round(seen.elevation, 1),
        "fov_degrees": seen.fov,
        "distance_radii": round(float(seen.camera.distance), 3),
        "light": round(light, 3),
        "psnr_db": round(psnr, 2),
        "silhouette_iou": round(iou, 4),
    }


def _bytes(values: Tensor) -> np.ndarray:
    return (values.clamp(0, 1) * 255).round().byte().numpy()
