"""How much memory a run takes, counted before it begins, and settings with which it takes less: `--vram`.

Under a checkpoint of others nearly all of it is the checkpoint's: its weights, and what the gradient through its
autoencoder has to keep; see `threed.footprint`. That is a count, not a measurement on a GPU: SLACK and CONTEXT stand
for what libraries take for themselves.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from threed.distill.hub.around import Around
from threed.distill.hub.checkpoint import Checkpoint, found, is_checkpoint
from threed.distill.losses import LEARNING
from threed.errors import Mistake
from threed.footprint import Footprint, footprint, sides
from threed.recipe import Recipe, Stage
from threed.run import Thrift

CONTEXT = 0.6e9  # bytes: what CUDA holds for itself, or a program without its networks
SLACK = 1.1  # what allocators round up, and libraries use while they compute
PIXEL = 1300  # bytes of a scene for each pixel of a step, at most; benchmarks/memory.py counts them


def planned(
    recipe: Recipe, prior: str, lora: str | None, device: str, gigabytes: float, control: Path | None = None
) -> tuple[Recipe, Thrift]:
    """The recipe, and how its prior is used, so that both fit; as little as that takes. Raises Mistake where none does.

    First gradients are worked out piece by piece, which changes no number beyond its rounding and takes longer; then
    the prior sees smaller pictures, which are worse. The embedded prior fits into any memory that a run may have.
    `control` is the folder of a ControlNet.
    """
    if not is_checkpoint(prior):
        return recipe, Thrift(gigabytes)
    checkpoint, needed = found(prior, lora), []
    own, step = sides(checkpoint)
    smaller = [side for side in (own * 3 // 4, own // 2) if side % step == 0 and checkpoint.family.latent]
    for thrift in (
        Thrift(gigabytes),
        Thrift(gigabytes, checkpointed=True),
        *(Thrift(gigabytes, True, side) for side in smaller),
    ):
        thrifty, side = frugal(recipe, thrift), thrift.side or own
        needed.append(_taken(thrifty, checkpoint, device, side, thrift.checkpointed, control))
        if needed[-1] <= 1e9 * gigabytes:
            return thrifty, thrift
    raise Mistake(
        f"--vram is {gigabytes:g}, and recipe {recipe.name!r} with the prior {prior!r} takes "
        f"{min(needed) / 1e9:.1f} GB at least; use a smaller --prior, see: threed prior list, or another --recipe"
    )


def check_room(
    recipe: Recipe, prior: str, lora: str | None, device: str, there: float, control: Path | None = None
) -> None:
    """That a GPU of so many bytes holds the recipe as it is, as far as that can be counted. Raises Mistake."""
    if not is_checkpoint(prior):
        return
    checkpoint = found(prior, lora)
    taken = _taken(recipe, checkpoint, device, sides(checkpoint)[0], False, control)
    if taken > there:
        raise Mistake(
            f"recipe {recipe.name!r} with the prior {prior!r} takes {taken / 1e9:.1f} GB, and this GPU has "
            f"{there / 1e9:.1f}; use --vram {max(2, int(there / 1e9))}, which looks for settings that fit, or a "
            "smaller --prior"
        )


def _taken(
    recipe: Recipe, checkpoint: Checkpoint, device: str, side: int, checkpointed: bool, control: Path | None
) -> float:
    learns = bool(recipe.learns) or any(isinstance(stage.loss, LEARNING) for stage in recipe.stages)
    return need(recipe, footprint(checkpoint, torch.device(device), side, checkpointed, learns, control))


def frugal(recipe: Recipe, thrift: Thrift) -> Recipe:
    """The recipe with scenes that spare memory as well."""
    if not thrift.checkpointed:
        return recipe

    def spared(stage: Stage) -> Stage:
        size = min(stage.scene.resolution, thrift.side or stage.scene.resolution)
        return replace(stage, scene=replace(stage.scene, resolution=size, deferred=True))

    return replace(recipe, stages=tuple(map(spared, recipe.stages)))


def need(recipe: Recipe, prior: Footprint) -> float:
    """Bytes at most, of any step of the recipe, and of what is read before it."""
    steps = [_step(stage, prior) for stage in recipe.stages]
    if learns := recipe.learns:
        judged = next(stage for stage in recipe.stages if stage.loss)
        drawn = judged.views.count * len(judged.kinds) if learns.network else 1
        steps += [prior.texts, prior.texts * bool(learns.word) + max(prior.learning * drawn, prior.encoding)]
    if how := recipe.drawn:
        steps.append((prior.rigged or len(how.rig) * len(how.kinds)) * prior.drawing)
    return SLACK * max(prior.texts, prior.weights + max([prior.images, *steps])) + CONTEXT


def _step(stage: Stage, prior: Footprint) -> float:
    """Bytes of one step, beside weights: the scene is kept while the prior is asked, then the gradient goes back."""
    pixels = stage.views.count * stage.scene.resolution**2 if stage.loss else 0
    if seen := stage.reference:
        pixels += (1 + seen.drawn) * seen.resolution**2
    scene = float(PIXEL * pixels)
    if stage.loss is None:
        return scene
    asked = prior.learning if isinstance(stage.loss, LEARNING) else prior.denoising
    return scene + stage.views.count * len(stage.kinds) * max(prior.kept + asked, prior.encoding)


def applied(prior: Any, thrift: Thrift | None) -> Any:
    """The prior, used as thriftily as that says."""
    if thrift is None:
        return prior
    if isinstance(prior, Around):
        return replace(prior, base=applied(prior.base, thrift))
    if thrift.checkpointed:
        for network in (prior.network, prior.autoencoder.network if prior.autoencoder else None):
            if network is not None:
                network.enable_gradient_checkpointing()
    return replace(prior, image_size=thrift.side or prior.image_size)
