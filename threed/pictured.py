"""From a picture to a run folder: what it shows becomes a volume, a solid, and the front of its texture.

The picture's light stays in the colours that it leaves on the texture; sides that it does not show keep the volume's.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from threed import pictures, viewpoint
from threed.cutout import Cutout, framed
from threed.distill import start
from threed.distill.conditions import reference_picture
from threed.distill.folder import located
from threed.overpaint import projected
from threed.photograph import Photograph
from threed.pipeline import deliver, report, solidify, warn
from threed.renderers.mesh import Asset
from threed.renderers.projection import Projection
from threed.run import Request, Run
from threed.start import begin
from threed.viewpoint import Viewpoint

FINEST, COARSEST = 768, 64  # pixels a side of the picture in its camera's frame


def picture_to_3d(request: Request, photograph: Photograph, mask: Float[Tensor, "H W"], how: str, run: Run) -> Asset:
    """Fill the run folder with the asset of the object that a picture shows where the mask says; returns it.

    `how` the mask was found goes into the report. Raises Failure when nothing solid comes out.
    """
    source, folder = request.picture, located(request.prior)
    assert source
    with run.log.stage("picture"):
        cutout = framed(photograph, mask)
        run.write("input.png", pictures.png(shown(cutout)))
        run.write("mask.png", pictures.png(Image.fromarray(_bytes(mask))))
        small = framed(photograph, mask, start.shape(folder).picture)
    with run.log.stage("start"):
        if request.prompt:
            warn(request, run)
        shape = begin("volume", request.prompt, request.seed, folder, "", told(small), request.device)
        assert shape
    with run.log.stage("mesh"):
        asset = solidify(shape, request)
    with run.log.stage("camera"):
        seen = viewpoint.estimate(asset, cutout, source.elevation, source.fov)
    with run.log.stage("texture"):
        asset = painted(asset, cutout, seen)
    with run.log.stage("export"):
        placed = deliver(asset, request, run)
    told_of = report(asset, placed, shape, run) | {"picture": reference(asset, cutout, seen, how)}
    run.write("report.json", (json.dumps(told_of, indent=2) + "\n").encode())
    return placed


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
    return projected(asset, Projection.of(asset.mesh, seen.camera, placed.rgb[None], placed.alpha[None]))


def reference(asset: Asset, cutout: Cutout, seen: Viewpoint, how: str) -> dict[str, Any]:
    """What the report says of the picture: its camera, and how far the asset looks like it from there."""
    psnr, iou = viewpoint.agreement(asset, cutout, seen)
    return {
        "mask_from": how,
        "azimuth_degrees": round(seen.azimuth, 1),
        "elevation_degrees": round(seen.elevation, 1),
        "fov_degrees": seen.fov,
        "distance_radii": round(float(seen.camera.distance), 3),
        "psnr_db": round(psnr, 2),
        "silhouette_iou": round(iou, 4),
    }


def _bytes(values: Tensor) -> np.ndarray:
    return (values.clamp(0, 1) * 255).round().byte().numpy()
