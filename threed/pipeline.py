"""From a prompt to a run folder: coarse volume, solid, texture, files."""

from __future__ import annotations

import json

import torch

from threed import pictures
from threed.distill.embedded import Embedded, located
from threed.distill.prior import Prior
from threed.distill.start import untaught
from threed.errors import Failure
from threed.exporters import export, place
from threed.exporters.bake import bake
from threed.exporters.report import measure, verify
from threed.exporters.simplify import simplify
from threed.exporters.unwrap import unwrap
from threed.isosurface import Volume, extract, surface_colour
from threed.machine import peak_memory
from threed.nerf import NeRF
from threed.recipes import Stage
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Material
from threed.run import Request, Run, slug
from threed.start import VoxelField, begin, imitate
from threed.train import fit, seeded


def text_to_3d(request: Request, run: Run, prior: Prior | None = None) -> Asset:
    """Fill the run folder with the asset that `request` asks for, from wherever the run stands; returns it.

    `prior` stands in for the one that the request names. Raises Failure when nothing solid comes out.
    """
    recipe = request.recipe
    with run.log.stage("start"):
        if recipe.start == "volume":
            warn(request, run)
        start = begin(recipe.start, request.prompt, request.seed, located(request.prior))
    volume: Volume
    if recipe.coarse:
        volume = optimised(start, recipe.coarse, request, run, prior)
    elif start:
        volume = start
    else:
        raise ValueError(f"recipe {recipe.name!r} has neither a start nor an optimisation; give it one of them")
    with run.log.stage("mesh"):
        asset = solidify(volume, request)  # the solid that looks most like it, and its texture
    with run.log.stage("export"):
        placed = deliver(asset, request, run)
    run.write("report.json", (json.dumps(report(asset, placed, volume, run), indent=2) + "\n").encode())
    return placed


def warn(request: Request, run: Run) -> None:
    """Say so when the prompt is far from what the start knows."""
    if words := untaught(request.prompt, located(request.prior)):
        run.log.note(
            f"the start was never told of {', '.join(map(repr, words))}, and its guess may be far off; "
            "other words may help, or --recipe dreamfusion, which begins with a sphere and asks the views alone"
        )


def optimised(start: VoxelField | None, stage: Stage, request: Request, run: Run, prior: Prior | None) -> NeRF:
    """A soft volume that looks like the prompt, from a start or from nothing."""
    with run.log.stage("load"):
        prior = prior or load(request.prior, request.device)
        nerf = NeRF(request.recipe.nerf, seeded(request.seed))
        if start:
            imitate(nerf, start, seeded(request.seed))
        nerf.to(request.device)
    fit(nerf, stage, prior, request, run)
    return nerf.cpu()  # what follows is work for processors


def load(name: str, device: str) -> Prior:
    """The prior of this name, or in this folder."""
    return Embedded.load(located(name), device)


def solidify(volume: Volume, request: Request) -> Asset:
    """Surface, triangles, UVs and texture of a volume, still in the volume's own place and size."""
    wanted = request.recipe.asset
    try:
        mesh = simplify(extract(volume, wanted.grid, wanted.smoothing), wanted.faces)
        uvs, uv_faces = unwrap(mesh, wanted.texture_size)
        colour = bake(mesh, uvs, uv_faces, surface_colour(volume), wanted.texture_size)
        asset = Asset(slug(request.prompt), mesh, uvs, uv_faces, Material(colour))
        verify(asset)
    except ValueError as error:
        raise Failure(f"no asset came out of the volume: {error}") from error
    return asset


def deliver(asset: Asset, request: Request, run: Run) -> Asset:
    """Write the asset, on the ground and at its height, in the asked formats, with pictures of it; returns it."""
    placed = place(asset, request.recipe.asset.height)
    for suffix in request.formats:
        export(placed, run.path(f"asset.{suffix}"))
    run.write("preview.png", pictures.png(pictures.preview(placed)))
    run.write("turntable.webp", pictures.turntable(placed))
    return placed


@torch.no_grad()
def report(asset: Asset, placed: Asset, volume: Volume, run: Run) -> dict[str, object]:
    """What was made, how true it is to the volume, and what it took."""
    cameras = orbit(16)
    soft = volume.render(cameras)
    size = soft.alpha.shape[1]
    psnr, iou = pictures.agreement(surface.render(asset, cameras, size, size), soft)
    return {
        **measure(placed),
        "agreement_with_volume": {"psnr_db": round(psnr, 2), "silhouette_iou": round(iou, 4), "views": len(cameras)},
        "seconds": run.log.seconds(),
        "peak_memory_bytes": peak_memory(),
    }
