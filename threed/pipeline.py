"""From a prompt to a run folder: coarse volume, solid, texture, files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from threed import pictures
from threed.distill.prior import Prior
from threed.errors import Failure
from threed.exporters import export, place
from threed.exporters.bake import bake
from threed.exporters.report import measure, verify
from threed.exporters.simplify import simplify
from threed.exporters.unwrap import unwrap
from threed.isosurface import extract, surface_colour
from threed.machine import peak_memory
from threed.nerf import NeRF
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Material
from threed.run import Request, Run, slug
from threed.train import fit, seeded


def text_to_3d(request: Request, run: Run, prior: Prior | None = None) -> Asset:
    """Fill the run folder with the asset that `request` asks for, from wherever the run stands; returns it.

    `prior` stands in for the one that the request names. Raises Failure when the optimisation finds nothing solid.
    """
    with run.log.stage("load"):
        prior = prior or load(request.prior, request.device)
        nerf = NeRF(request.recipe.nerf, seeded(request.seed)).to(request.device)
    fit(nerf, request.recipe.coarse, prior, request, run)  # a soft volume: shape from nothing
    nerf.cpu()  # what follows is work for processors
    with run.log.stage("mesh"):
        asset = solidify(nerf, request)  # the solid that looks most like it, and its texture
    with run.log.stage("export"):
        placed = deliver(asset, request, run)
    run.write("report.json", (json.dumps(report(asset, placed, nerf, run), indent=2) + "\n").encode())
    return placed


def load(name: str, device: str) -> Prior:
    """The prior of this name, or in this folder."""
    from threed.distill.embedded import Embedded

    return Embedded.load(None if name == "embedded" else Path(name), device)


def solidify(nerf: NeRF, request: Request) -> Asset:
    """Surface, triangles, UVs and texture of a volume, still in the volume's own place and size."""
    wanted = request.recipe.asset
    try:
        mesh = simplify(extract(nerf, wanted.grid, wanted.smoothing), wanted.faces)
        uvs, uv_faces = unwrap(mesh, wanted.texture_size)
        colour = bake(mesh, uvs, uv_faces, surface_colour(nerf), wanted.texture_size)
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
def report(asset: Asset, placed: Asset, nerf: NeRF, run: Run) -> dict[str, object]:
    """What was made, how true it is to the volume, and what it took."""
    cameras = orbit(16)
    volume = nerf.render(cameras)
    size = volume.alpha.shape[1]
    psnr, iou = pictures.agreement(surface.render(asset, cameras, size, size), volume)
    return {
        **measure(placed),
        "agreement_with_volume": {"psnr_db": round(psnr, 2), "silhouette_iou": round(iou, 4), "views": len(cameras)},
        "seconds": run.log.seconds(),
        "peak_memory_bytes": peak_memory(),
    }
