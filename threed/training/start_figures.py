"""How good the start of a prior is: its volumes of captions and of pictures, against the voxels of their assets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill import start
from threed.distill.conditions import reference_picture
from threed.distill.consensus import consensus
from threed.distill.start import Start
from threed.distill.upsampler import Upsampler, interpolated
from threed.renderers.camera import orbit
from threed.renderers.read import read
from threed.renderers.voxels import Voxels, voxelise
from threed.start import VoxelField
from threed.train import seeded
from threed.training import measures
from threed.training.trials import PIECES, Prompt, Trial, seen_once

FIGURES = ("iou", "colour_error", "r_precision", "empty", "broken")  # of a volume


def starts(
    trial: Trial, volumes: Start, prompts: Sequence[Prompt], upsampler: Upsampler | None = None
) -> dict[str, Any]:
    """What the start makes of captions and of other words for them, and what an upsampler makes of that."""
    captions, truths = [prompt.caption for prompt in prompts], solids(trial, prompts, volumes.config.resolution)
    asked = [("captions", number, prompt.caption) for number, prompt in enumerate(prompts)]
    asked += [("paraphrases", number, p.paraphrase) for number, p in enumerate(prompts) if p.paraphrase]
    asked = [each for each in asked if truths[each[1]]]
    found: dict[str, list[dict[str, float]]] = {"captions": [], "paraphrases": []}
    usual = dict[int, Tensor]()  # volumes of captions
    nothing, seconds = trial.text([""]), 0.0
    with trial.log.stage("start", max(len(asked), 1)) as tell:
        for step, (part, number, words) in enumerate(asked):
            generator, text, began = (
                seeded(trial.seed, PIECES.index("start"), step),
                trial.text([words]),
                time.perf_counter(),
            )
            made = start.sample(volumes, text, nothing, trial.sizes.candidates, generator).cpu()
            seconds += time.perf_counter() - began
            found[part].append(volume_figures(trial, made, truths[number], captions, number))
            if part == "captions":
                usual[number], _ = consensus(made)
            tell(step + 1, {})
    whole = [float(measures.is_whole(voxels.occupied)) for own in truths for voxels in own]
    return {
        "resolution": volumes.config.resolution,
        **{part: averaged(rows) for part, rows in found.items()},
        "upsampled": upsampled(trial, usual, prompts, upsampler) if upsampler else None,
        "pictures": pictured(trial, volumes, prompts[: trial.sizes.references]) if volumes.config.picture else None,
        "assets": {"broken": 1 - measures.mean(whole)},
        "seconds": seconds / max(len(asked) * trial.sizes.candidates, 1),
    }


@torch.no_grad()
def upsampled(
    trial: Trial, usual: Mapping[int, Float[Tensor, "4 G G G"]], prompts: Sequence[Prompt], upsampler: Upsampler
) -> dict[str, float]:
    """Volumes of captions in twice the resolution, against the caption's assets there; and if they are interpolated."""
    fine = solids(trial, [prompts[number] for number in usual], 2 * next(iter(usual.values())).shape[1])
    found: dict[str, list[float]] = {"iou": [], "interpolated_iou": []}
    for volume, truths in zip(usual.values(), fine, strict=True):
        volume = volume.clamp(-1, 1)[None]
        for name, made in (("iou", upsampler(volume)), ("interpolated_iou", interpolated(volume))):
            occupied = start.voxels_of(made[0]).occupied
            found[name].append(max(measures.volume_iou(occupied, truth.occupied) for truth in truths))
    return {name: measures.mean(values) for name, values in found.items()}


def pictured(trial: Trial, volumes: Start, prompts: Sequence[Prompt]) -> dict[str, float]:
    """What the start makes of one shaded picture of an asset, without a word."""
    nothing, captions, found = trial.text([""]), [prompt.caption for prompt in prompts], list[dict[str, float]]()
    with trial.log.stage("start from pictures", len(prompts)) as tell:
        for number, prompt in enumerate(prompts):
            generator = seeded(trial.seed, PIECES.index("pictures"), number)
            _, seen = seen_once(prompt.asset, trial.size, generator)
            picture = reference_picture(seen.rgb.movedim(-1, 1), seen.alpha.movedim(-1, 1))[0]
            made = start.sample(volumes, nothing, nothing, trial.sizes.candidates, generator, picture=picture).cpu()
            truth = voxelise(prompt.asset, volumes.config.resolution)
            found.append(volume_figures(trial, made, [truth], captions, number))
            tell(number + 1, {})
    return averaged(found)


def averaged(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: measures.mean([row[name] for row in rows]) for name in FIGURES}


def solids(trial: Trial, prompts: Sequence[Prompt], resolution: int) -> list[list[Voxels]]:
    """The voxels of all assets of every prompt; of those that can be used."""
    found = list[list[Voxels]]()
    with trial.log.stage("voxels", len(prompts)) as tell:
        for prompt in prompts:
            own = list[Voxels]()
            for path in prompt.paths:
                with contextlib.suppress(ValueError):  # told of when it was first read
                    own.append(voxelise(read(path), resolution))
            found.append(own)
            tell(len(found), {})
    return found


def volume_figures(
    trial: Trial, made: Float[Tensor, "C 4 G G G"], truths: Sequence[Voxels], captions: Sequence[str], own: int
) -> dict[str, float]:
    """Of what C volumes agree on against the best of its caption's assets; of all C, whether anything is wrong."""
    every = [start.voxels_of(volume) for volume in made]
    best, filled = start.voxels_of(consensus(made)[0]), [each.occupied for each in every if each.occupied.any()]
    ious = [measures.volume_iou(best.occupied, truth.occupied) for truth in truths]
    nearest = truths[int(np.argmax(ious))]
    both = best.occupied & nearest.occupied
    relevant, precision = torch.arange(len(captions)).expand(trial.sizes.views, -1) == own, 0.0
    if best.occupied.any():
        shown = VoxelField(best).render(orbit(trial.sizes.views), trial.size).over(torch.ones(3))
        precision = measures.r_precision(trial.judge.score(shown, captions), relevant)
    colour = measures.colour_error(best.colour[both], nearest.colour[both])
    broken = 1 - measures.mean([float(measures.is_whole(occupied)) for occupied in filled])
    return dict(zip(FIGURES, (max(ious), colour, precision, 1 - len(filled) / len(every), broken), strict=True))
