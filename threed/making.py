"""What `threed text` and `threed image` share: flags become a recipe, all is checked, and an asset is made of it.

Nothing heavy is imported before it is asked for, so that help and the cheap mistakes come at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from threed.errors import Mistake, unknown
from threed.flags import check_device, flag_of
from threed.priors import for_prior

if TYPE_CHECKING:
    from threed.image_cli import Picture
    from threed.recipe import Recipe
    from threed.run import Request, Run
    from threed.text_cli import Text

FULL = "use --vram with the gigabytes that are free, a smaller --prior, another --recipe, or --device cpu"


def recipe_for(what: str, name: str) -> Recipe:
    """The recipe of this name that makes assets of a text, or of a picture. Raises Mistake."""
    from threed.recipes import RECIPES

    commands = {"text": "threed text", "picture": "threed image"}
    if name not in RECIPES:
        raise unknown("recipe", name, (recipe.name for recipe in RECIPES.values() if recipe.wants == what))
    if (wants := RECIPES[name].wants) != what:
        raise Mistake(f"recipe {name!r} makes assets of a {wants}; use {commands[wants]}, or another --recipe")
    return RECIPES[name]


def formats_of(names: Sequence[str]) -> tuple[str, ...]:
    """File formats, each once. Raises Mistake."""
    from threed.exporters import ENCODERS

    formats = tuple(dict.fromkeys(name.lower().lstrip(".") for name in names))
    for name in formats:
        if f".{name}" not in ENCODERS:
            raise unknown("format", name, (suffix[1:] for suffix in ENCODERS))
    return formats


def device_of(name: str) -> str:
    """The device to compute on; auto is a GPU that can, else the CPU. Raises Mistake for one that is not there."""
    import torch

    from threed.doctor import unseen
    from threed.machine import check_gpu

    devices = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "cuda" and not devices[name] and (why := unseen()):
        raise Mistake(f"PyTorch finds no device 'cuda' on this machine: {why}, or use --device cpu")
    if name != "auto":
        check_device(name, devices | {"auto": True})
        if name == "cuda":
            check_gpu()
        return name
    try:
        check_gpu()
    except Mistake:
        return "cpu"
    return "cuda"


def backends_of(names: Sequence[str], device: str, recipe: Recipe) -> tuple[str, ...]:
    """Libraries of others, each once, and ready to be used. Raises Mistake."""
    from threed.renderers.external import LIBRARIES, obstacle
    from threed.renderers.ops import EXTERNAL

    backends = tuple(dict.fromkeys(names))
    for name in backends:
        if name not in LIBRARIES:
            raise unknown("backend", name, LIBRARIES)
        if device != EXTERNAL:
            raise Mistake(f"--backend {name} needs a CUDA device and this run has {device!r}; use --device cuda")
        if not recipe.stages:
            raise Mistake(f"recipe {recipe.name!r} optimises nothing that --backend {name} could; leave it out")
        if reason := obstacle(name):
            raise Mistake(f"{reason}, or leave --backend {name} out")
    return backends


def with_asset(recipe: Recipe, asked: Text | Picture) -> Recipe:
    """The recipe of an asset of the size that was asked for."""
    given = {name: getattr(asked, name) for name in ("faces", "texture_size", "height")}
    return replace(
        recipe, asset=replace(recipe.asset, **{name: value for name, value in given.items() if value is not None})
    )


def with_flags(recipe: Recipe, asked: Text | Picture) -> Recipe:
    """The recipe, with the flags that were given in place of its own values. Raises Mistake."""
    from threed.recipe import DISTILS

    recipe = with_asset(for_prior(recipe, asked), asked)
    recipe = replace(recipe, start=asked.start or recipe.start)
    if recipe.start == "mesh":
        raise Mistake(f"recipe {recipe.name!r} begins with a mesh; give it one with --start, or use threed edit")
    if not recipe.stages and recipe.start == "sphere":
        raise Mistake(
            f"recipe {recipe.name!r} would end with the sphere; use --start volume, a mesh file, or another --recipe"
        )
    flags = {name: getattr(asked, name, None) for name in ("loss", "scale", "particles", "view_words", "perp_neg")}
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    if given and not any(stage.loss for stage in recipe.stages):
        raise Mistake(
            f"{flag_of(min(given))} needs a recipe that distils, and {recipe.name!r} does not; leave it out, or use "
            f"--recipe {DISTILS[recipe.wants]}"
        )
    if given:
        recipe = under(recipe, **given)
    if asked.steps is None:
        return recipe
    if not recipe.stages and recipe.overpaint:
        return replace(recipe, overpaint=replace(recipe.overpaint, steps=asked.steps))
    if not recipe.stages:
        raise Mistake(
            f"--steps is {asked.steps}, and recipe {recipe.name!r} has none; leave it out, or use "
            f"--recipe {DISTILS[recipe.wants]}"
        )
    share = asked.steps / sum(stage.steps for stage in recipe.stages)
    return replace(recipe, stages=tuple(replace(s, steps=max(1, round(s.steps * share))) for s in recipe.stages))


def under(
    recipe: Recipe,
    loss: str | None = None,
    scale: float | None = None,
    particles: int | None = None,
    view_words: bool = False,
    perp_neg: float | None = None,
) -> Recipe:
    """The recipe with another loss, guidance scale, number of particles or wording. Raises Mistake."""
    from threed.distill.losses import LOSSES
    from threed.distill.worded import Wording
    from threed.recipe import distilled

    if loss is not None and loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    worded = view_words or perp_neg is not None
    wording = Wording(strength=perp_neg or 0.0) if worded else None
    try:
        return distilled(recipe, loss, scale, particles, wording)
    except ValueError as error:
        raise Mistake(str(error)) from error


def check_negative(recipe: Recipe, asked: Text) -> None:
    """That somebody hears what the asset should not look like. Raises Mistake."""
    from threed.distill.losses import hears_negative

    heard = (
        recipe.start == "volume"
        or recipe.overpaint
        or any(stage.loss and hears_negative(stage.loss) for stage in recipe.stages)
    )
    if asked.negative.strip() and not heard:
        raise Mistake(
            f"--negative is {asked.negative!r}, and at a guidance scale of 1 nothing is led away from it; "
            "leave it out, or use another --scale"
        )


def check_particles(request: Request) -> None:
    """That the memory holds as many scenes as any stage fits together. Raises Mistake."""
    from threed.particles import check_room, least

    for stage in request.recipe.stages:
        if stage.particles > 1:
            check_room(least(stage.scene), stage.particles)


def check_start(request: Request) -> None:
    """That there is something to begin from. Raises Mistake."""
    from threed.distill.folder import located
    from threed.nerf import NeRFConfig
    from threed.paint import PaintedConfig
    from threed.recipe import STARTS
    from threed.renderers.read import SUFFIXES

    name, stages = request.recipe.start, request.recipe.stages
    if name == "carved" and request.picture is None:
        raise Mistake("there is no picture to carve by; use threed image, --start volume, sphere, or a mesh file")
    if name in STARTS and any(isinstance(stage.scene, PaintedConfig) for stage in stages):
        raise Mistake(f"recipe {request.recipe.name!r} paints a mesh, and --start is {name!r}; give it a mesh file")
    if name == "sphere" and any(isinstance(stage.scene, NeRFConfig) and stage.scene.lenience for stage in stages):
        raise Mistake(f"recipe {request.recipe.name!r} keeps to a shape; use --start with a mesh file, or volume")
    if name == "volume" and not (located(request.prior) / "start").is_dir():
        raise Mistake(f"the prior {request.prior!r} has no start; use --start sphere, or a mesh file")
    if name in STARTS:
        return
    if Path(name).suffix.lower() not in SUFFIXES:
        known = [start for start in STARTS if request.picture or start != "carved"]
        raise Mistake(f"unknown start {name!r}; use {', '.join(known)}, or a mesh file ({', '.join(SUFFIXES)})")
    if not Path(name).is_file():
        raise Mistake(f"there is no file {name!r} to start from; check the path, or use --start volume")


def carry_out(asked: Text | Picture, request: Request, name: str, make: Callable[[Run], object]) -> None:
    """Make the asset in its run folder, unless it is made already; say where it is. Raises Mistake."""
    from threed.machine import memory_of
    from threed.run import Run
    from threed.viewer.companion import companion

    folder = asked.output or Path("outputs") / f"{name}-{request.seed}"
    opened = Run.create(folder, request, asked.resume, asked.overwrite, Console(stderr=True))
    with companion(asked.view) as show, opened as run:
        show(run)
        if not run.finished(request):
            with memory_of(request.device, FULL):
                make(run)
        summarise(run)


def summarise(run: Run) -> None:
    """Where the files are and what the run took."""
    from threed.machine import peak_memory
    from threed.run import FILES

    console = Console()
    for path in (run.path(name) for name in FILES if run.path(name).exists()):
        console.print(f"{path}  {path.stat().st_size / 1000:,.0f} kB", highlight=False, markup=False, soft_wrap=True)
    took = "  ".join(f"{stage} {seconds:.0f} s" for stage, seconds in run.log.seconds().items())
    memory = peak_memory()
    console.print(took + (f"  peak memory {memory / 1e9:.2f} GB" if memory else ""), highlight=False, soft_wrap=True)
