"""From a prompt to a run folder: coarse volume, solid, texture, files."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from threed import pictures
from threed.distill.folder import located
from threed.distill.prior import Prior
from threed.distill.start import untaught
from threed.distill.worded import Worded
from threed.drawn import Outlines, views_of
from threed.errors import Failure, Mistake
from threed.even import evened
from threed.exporters import export, place
from threed.exporters.bake import Look, bake_material
from threed.exporters.clean import clean
from threed.exporters.report import measure, verify
from threed.exporters.simplify import simplify
from threed.exporters.unwrap import has_room, unwrap
from threed.isosurface import best, extract, surface_colour
from threed.latents import Latents
from threed.machine import peak_memory
from threed.nerf import NeRF, NeRFConfig
from threed.overpaint import overpaint
from threed.paint import Paint, PaintConfig, Painted, PaintedConfig
from threed.particles import Particles, check_room
from threed.priors import load
from threed.recipe import STARTS, AssetSettings, Stage
from threed.reference import Target
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.ops import using
from threed.renderers.read import normalised, read
from threed.renderers.shading import bent
from threed.run import Request, Run
from threed.sdf import SDF, SDFConfig, imitate_voxels
from threed.sketch import Sketch
from threed.solid import Solid, SolidConfig
from threed.start import VoxelField, begin, imitate
from threed.tets import TetScene
from threed.train import Scene, fit, seeded

Shape = VoxelField | NeRF | SDF | Solid | Painted  # whatever can be seen, and made an asset of


def text_to_3d(request: Request, run: Run, prior: Prior | None = None) -> Asset:
    """Fill the run folder with the asset that `request` asks for, from wherever the run stands; returns it.

    `prior` stands in for the one that the request names. Raises Failure when nothing solid comes out.
    """
    if request.recipe.stages or request.recipe.overpaint:
        with run.log.stage("load"):
            prior = prior or load(request)
    shape = shaped(request, run, prior)
    with run.log.stage("mesh"):
        asset = solidify(shape, request)  # the solid that looks most like it, and its texture
    if how := request.recipe.overpaint:
        assert prior
        with run.log.stage("paint", len(how.elevations)) as log:
            brush = torch.Generator(request.device).manual_seed(seeded(request.seed).initial_seed())
            tell = partial(log, losses={})
            asset = overpaint(asset, prior, request.prompt, request.negative, how, brush, tell)
    with run.log.stage("export"):
        placed = deliver(asset, request, run)
    run.write("report.json", (json.dumps(report(asset, placed, shape, run), indent=2) + "\n").encode())
    return placed


def shaped(request: Request, run: Run, prior: Prior | None = None) -> Shape:
    """The recipe's start, and what its stages make of it by a prior; at once where the run has done it already."""
    recipe = request.recipe
    with run.log.stage("start"):
        if recipe.start == "volume":
            warn(request, run)
        folder = located(request.prior)
        told = request.prompt, request.seed, folder, request.negative
        shape: Shape | None = begin(recipe.start, *told, device=request.device)
    if recipe.overpaint and not recipe.stages and recipe.start not in STARTS:
        return begun(PaintedConfig(), shape, request)  # a mesh of which only the colours will change
    shape = staged(shape, request, run, prior)
    if shape is None:
        raise ValueError(f"recipe {recipe.name!r} has neither a start nor an optimisation; give it one of them")
    return shape


@overload
def staged(shape: Shape, request: Request, run: Run, prior: Prior | None, target: Target | None = None) -> Shape: ...
@overload
def staged(
    shape: None, request: Request, run: Run, prior: Prior | None, target: Target | None = None
) -> Shape | None: ...
def staged(
    shape: Shape | None, request: Request, run: Run, prior: Prior | None, target: Target | None = None
) -> Shape | None:
    """What the recipe's stages make of a start, by a prior, by what a picture shows, or by both."""
    done = dict[str, Any]()
    if request.thrift:
        run.log.note(str(request.thrift))
    if request.recipe.wording and prior:
        prior = Worded(prior, request.recipe.wording)
    drawn: list[Target] = []
    if how := request.recipe.drawn:
        assert prior
        with run.log.stage("views"):
            drawn = views_of(how, prior, request, run, shape.render if shape else None, target)
    with using(request.backends, run.log.note):
        for stage in request.recipe.stages:
            with run.log.stage(f"begin {stage.name}"):
                latents = latents_of(stage.scene, prior, request, run)
                begins = Outlines.of(target, drawn) if drawn and not done else shape
                scene = begun(stage.scene, begins, request, copy.deepcopy(latents)).to(request.device)
                fitted = together(scene, shape, stage, request, latents)
            fit(fitted, stage, prior, request, run, done, target, drawn)
            done[stage.name] = fitted.state_dict()
            shape = scene.cpu()  # what follows is work for processors
    return shape


def warn(request: Request, run: Run) -> None:
    """Say so when the prompt is far from what the start knows."""
    if words := untaught(request.prompt, located(request.prior)):
        run.log.note(
            f"the start was never told of {', '.join(map(repr, words))}, and its guess may be far off; "
            "other words may help, or --recipe dreamfusion, which begins with a sphere and asks the views alone"
        )


def latents_of(
    config: NeRFConfig | SDFConfig | SolidConfig | PaintedConfig, prior: Prior | None, request: Request, run: Run
) -> Latents | None:
    """The prior's latents, for a scene that is made of them; says so where they are its pixels."""
    match config:
        case NeRFConfig(latents=True) | PaintedConfig(paint=PaintConfig(latents=True)):
            assert prior
            latents = Latents.of(prior, request.device)
            if latents.side == prior.image_size:
                run.log.note(f"the latents of the prior {request.prior!r} are its pixels; so are the scene's")
            return latents
    return None


def together(
    scene: NeRF | SDF | Solid | Painted, shape: Shape | None, stage: Stage, request: Request, latents: Latents | None
) -> Scene:
    """The scene, among as many others as the stage wants. Raises Mistake when the memory does not hold them."""
    if stage.particles == 1:
        return scene
    check_room(sum(p.numel() for p in scene.parameters()), stage.particles)
    others = [
        begun(stage.scene, *copy.deepcopy((shape, request, latents)), k).to(request.device)
        for k in range(1, stage.particles)
    ]
    return Particles([scene, *others])


def begun(
    config: NeRFConfig | SDFConfig | SolidConfig | PaintedConfig,
    shape: Shape | Outlines | None,
    request: Request,
    latents: Latents | None = None,
    particle: int = 0,
) -> NeRF | SDF | Solid | Painted:
    """A scene that looks like what there is so far. Raises Failure for a volume without a surface."""
    generator = seeded(request.seed, particle) if particle else seeded(request.seed)
    match config, shape:
        case SolidConfig(), Solid():
            return shape.continued(config)
        case SolidConfig(), Outlines():
            return shape.solid(config, generator)
        case SolidConfig(), None:
            return Solid(config, TetScene.from_ellipsoid((config.start_radius,) * 3, config.tets))
        case SolidConfig(), NeRF() | SDF() | VoxelField():
            try:
                threshold, _ = best(shape, request.recipe.asset.grid)
                return Solid.from_volume(shape, threshold, config, generator)
            except ValueError as error:
                raise Failure(f"no surface came out of the volume: {error}") from error
        case PaintedConfig(), VoxelField():
            return Painted(config, own(request.recipe.start), generator, latents)
        case SDFConfig(), None | VoxelField():
            sdf = SDF(config, generator)
            if shape:
                imitate_voxels(sdf, shape.voxels, shape.radius.item(), generator)
            return sdf
        case NeRFConfig(lenience=None), None:
            return NeRF(config, generator, latents)
        case NeRFConfig(), VoxelField():
            nerf = NeRF(config, generator, latents)
            imitate(nerf, shape, generator)
            if config.lenience:
                nerf.sketch = Sketch.of(shape.voxels, shape.radius.item(), nerf.bound, config.lenience, generator)
            return nerf
        case NeRFConfig(latents=False, lenience=None), NeRF():
            nerf = shape.continued(config, generator)
            if shape.latents:
                imitate(nerf, shape, generator)
            return nerf
    raise ValueError(f"a {type(config).__name__} cannot begin as {shape}; change the recipe's stages")


def own(path: str) -> Asset:
    """A user's asset, at radius 1. Raises Mistake for one that could not be exported again, before any work on it."""
    asset = read(path)
    try:
        verify(asset, watertight=False)
    except ValueError as error:
        raise Mistake(f"cannot paint {path!r}: {error}") from error
    return replace(asset, mesh=normalised(asset.mesh))


def solidify(shape: Shape, request: Request) -> Asset:
    """Surface, triangles, UVs and texture of a shape, still in the shape's own place and size."""
    wanted = request.recipe.asset
    try:
        mesh, uvs, uv_faces = laid_out(shape, wanted)
        material = bake_material(mesh, uvs, uv_faces, look_of(shape), wanted.texture_size)
        asset = Asset(request.name, mesh, uvs, uv_faces, material)
        verify(asset, watertight=not isinstance(shape, Painted))
    except ValueError as error:
        raise Failure(f"no asset came out of the volume: {error}") from error
    return asset


def laid_out(shape: Shape, wanted: AssetSettings) -> tuple[Mesh, Tensor, Tensor]:
    """Triangles, UVs and their indices. Raises ValueError."""
    if isinstance(shape, Painted):
        mesh, uvs, uv_faces = shape.asset.mesh, shape.asset.uvs, shape.asset.uv_faces
        if has_room(uvs, uv_faces, wanted.texture_size):
            return mesh, uvs, uv_faces
    elif isinstance(shape, Solid):
        mesh = simplify(clean(shape.surface(), smoothing=0), wanted.faces)
    else:
        mesh = evened(extract(shape, wanted.grid, wanted.smoothing), wanted.faces, wanted.evening)
    return mesh, *unwrap(mesh, wanted.texture_size)


def look_of(shape: Shape) -> Callable[[Tensor, Tensor], Look]:
    """What is to be baked of points of its surface, in metres, and their unit normals."""
    if isinstance(shape, Painted | Solid):
        return partial(_painted, shape.paint)
    colour = surface_colour(shape)
    return lambda points, normals: Look(colour(points, normals))


def _painted(paint: Paint, points: Tensor, normals: Tensor) -> Look:
    """It is the same from all sides."""
    albedo = paint(points)
    if paint.finish is None:
        return Look(albedo)
    found = paint.finish(points)
    return Look(albedo, torch.cat([found.roughness, found.metallic], dim=-1), bent(normals, found.bump))


def deliver(asset: Asset, request: Request, run: Run) -> Asset:
    """Write the asset, on the ground and at its height, in the asked formats, with pictures of it; returns it."""
    placed = place(asset, request.recipe.asset.height)
    for suffix in request.formats:
        export(placed, run.path(f"asset.{suffix}"))
    run.write("preview.png", pictures.png(pictures.preview(placed)))
    run.write("turntable.webp", pictures.turntable(placed))
    return placed


@torch.no_grad()
def report(asset: Asset, placed: Asset, shape: Shape, run: Run) -> dict[str, object]:
    """What was made, how true it is to the shape that was optimised, and what it took."""
    cameras = orbit(16)
    soft = shape.render(cameras)
    size = soft.alpha.shape[1]
    hard = surface.render(asset, cameras, size, size)
    psnr, iou = pictures.agreement(hard, soft)
    colours = pictures.colour_psnr(hard, soft)
    return {
        **measure(placed),
        "agreement_with_volume": {
            "psnr_db": round(psnr, 2),
            "silhouette_iou": round(iou, 4),
            "colour_psnr_db": round(colours, 2) if math.isfinite(colours) else None,  # JSON knows no infinity
            "views": len(cameras),
        },
        "seconds": run.log.seconds(),
        "peak_memory_bytes": peak_memory(),
    }
