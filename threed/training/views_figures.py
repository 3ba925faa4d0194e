"""How good the views of a prior are: what it draws, turns and colours by itself.

Beside most figures stands what real renders of the same assets score, or a baseline that knows nothing; `measures.py`
has the formulas. Pictures are display sRGB in [0, 1], channels last, on white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill import sample
from threed.distill.conditions import reference_picture
from threed.distill.embedded import Reference
from threed.distill.prior import Pictures
from threed.pictures import psnr, silhouette_iou
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset
from threed.renderers.volume import Render
from threed.train import seeded
from threed.training import measures
from threed.training.recolour import dominant
from threed.training.trials import PIECES, SUPERSAMPLE, Painting, Prompt, Trial, seen_once
from threed.training.views_batch import KINDS


def rendered(asset: Asset, cameras: Cameras, size: int) -> Float[Tensor, "K C H W 3"]:
    """Real pictures, of every kind."""
    render = surface.render(asset, cameras, size, size, SUPERSAMPLE)
    return Pictures(cameras, KINDS, torch.ones(3)).of(render).unflatten(0, (len(KINDS), -1))


def drawn(trial: Trial, prompt: str, generator: torch.Generator) -> Float[Tensor, "K C H W 3"]:
    """What the prior draws of a prompt, all views jointly, of every kind."""
    cameras = orbit(trial.sizes.views).to(trial.device)
    shown = sample.pictures(trial.prior, prompt, cameras, generator, trial.sizes.steps)
    return shown.float().cpu().unflatten(0, (len(KINDS), -1))


def views(trial: Trial, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Whether joint views show their caption, look like renders, and show one solid."""
    cameras, captions = orbit(trial.sizes.views), [prompt.caption for prompt in prompts]
    between = replace(cameras, azimuth=cameras.azimuth + math.pi / trial.sizes.views)
    reworded = [(number, prompt.paraphrase) for number, prompt in enumerate(prompts) if prompt.paraphrase]
    asked, pictures = [*enumerate(captions), *reworded], list[Tensor]()
    with trial.log.stage("views", len(asked)) as tell:
        for _, words in asked:
            pictures.append(drawn(trial, words, trial.generator("views", len(pictures))))
            tell(len(pictures), {}, pictures=len(KINDS) * len(cameras))
    told = torch.stack(pictures[: len(prompts)])
    real, elsewhere = (
        torch.stack([rendered(prompt.asset, around, trial.size) for prompt in prompts]) for around in (cameras, between)
    )

    def precision(pictures: Sequence[Tensor], numbers: Sequence[int]) -> float:
        """Of albedo and shaded pictures, each by itself."""
        if not numbers:
            return math.nan
        relevant = torch.eye(len(captions), dtype=torch.bool)[torch.tensor(numbers)]
        score = trial.judge.score(coloured(torch.stack(list(pictures))), captions)
        return measures.r_precision(score, relevant.repeat_interleave(2 * len(cameras), dim=0))

    everyone, others = range(len(prompts)), [number for number, _ in reworded]
    features = [trial.judge.features(coloured(each)) for each in (real, told, elsewhere)]
    return {
        "paraphrases": len(reworded),
        "r_precision": {
            "captions": precision(list(told), everyone),
            "paraphrases": precision(pictures[len(prompts) :], others),
            "renders": precision(list(real), everyone),
        },
        "feature_distance": {
            "samples": measures.frechet_distance(features[0], features[1]),
            "other_views": measures.frechet_distance(features[0], features[2]),
        },
        "consistency_psnr": {
            name: solidity(trial, cameras, each) for name, each in (("samples", told), ("renders", real))
        },
    }


def coloured(pictures: Float[Tensor, "N K C H W 3"]) -> Float[Tensor, "M H W 3"]:
    """Albedo and shaded pictures, those of one prompt in a row."""
    return pictures[:, [KINDS.index("albedo"), KINDS.index("shaded")]].flatten(0, 2)


def solidity(trial: Trial, cameras: Cameras, pictures: Float[Tensor, "N K C H W 3"]) -> float:
    """How well one solid explains the albedo of joint views, mean over the first few."""
    found = list[float]()
    with trial.log.stage("solids", min(trial.sizes.fits, len(pictures))) as tell:
        for each in pictures[: trial.sizes.fits, KINDS.index("albedo")]:
            generator = seeded(trial.seed, PIECES.index("views"), len(found))
            found.append(measures.consistency(each, cameras, generator, trial.sizes.fit_steps)[0])
            tell(len(found), {})
    return measures.mean(found)


def reference(trial: Trial, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Shaded views all around, out of one shaded picture and no words, against two that know less."""
    prompts, cameras, white = prompts[: trial.sizes.references], orbit(trial.sizes.cameras), torch.ones(3)
    truths = [surface.render(prompt.asset, cameras, trial.size, trial.size, SUPERSAMPLE) for prompt in prompts]
    real, outlines = (
        torch.stack([truth.over(white) for truth in truths]),
        torch.stack([truth.alpha for truth in truths]),
    )
    found: dict[str, list[dict[str, float]]] = {"prior": [], "repeated": [], "mean": []}
    with trial.log.stage("reference", len(prompts)) as tell:
        for number, prompt in enumerate(prompts):
            generator = trial.generator("reference", number)
            camera, seen = seen_once(prompt.asset, trial.size, generator)
            shaded, normal = turned(trial, seen, camera, cameras, generator)
            others = torch.arange(len(prompts)) != number
            guesses = {
                "prior": (shaded, measures.mask_of_normals(normal)),
                "repeated": (seen.over(white), seen.alpha),
                "mean": (real[others].mean((0, 1))[None], outlines[others].mean((0, 1))[None]),
            }
            for name, (picture, mask) in guesses.items():
                picture, mask = picture.expand_as(real[number]), mask.expand_as(outlines[number])
                iou = silhouette_iou(mask, outlines[number])
                likeness = {"psnr": psnr(picture, real[number]), "ssim": measures.ssim(picture, real[number])}
                found[name].append(likeness | {"iou": iou})
            tell(number + 1, {}, pictures=2 * len(cameras))
    figures = {
        figure: {name: measures.mean([row[figure] for row in rows]) for name, rows in found.items()}
        for figure in ("psnr", "ssim", "iou")
    }
    return {"assets": len(prompts)} | figures


def turned(
    trial: Trial, seen: Render, camera: Cameras, cameras: Cameras, generator: torch.Generator
) -> tuple[Float[Tensor, "C H W 3"], Float[Tensor, "C H W 3"]]:
    """What an object that was `seen` by one camera looks like to C others, shaded and as normals, on white.

    Drawn in groups of four, a quarter turn apart, without guidance: the least error is that of the mean of what is
    likely. Where the object's front is, the prior is not told.
    """
    kinds, apart = ("shaded", "normal"), len(cameras) // 4
    picture = reference_picture(seen.rgb.movedim(-1, 1), seen.alpha.movedim(-1, 1)).to(trial.device)
    reference, found = Reference(picture, camera), torch.empty(len(kinds), len(cameras), trial.size, trial.size, 3)
    for place in range(apart):
        group = cameras[torch.arange(place, len(cameras), apart)].to(trial.device)
        told = trial.prior.conditions("", "", Pictures(group, kinds, torch.ones(3)), reference)
        shape = (4 * len(kinds), 3, trial.size, trial.size)
        latents = sample.ddim(trial.prior, told, shape, trial.sizes.steps, 1.0, 0.0, generator)
        shown = ((latents.float().cpu() + 1) / 2).clamp(0, 1).movedim(1, -1)
        found[:, place::apart] = shown.unflatten(0, (len(kinds), 4))
    return found[0], found[1]


def recolouring(trial: Trial, paintings: Sequence[Painting]) -> dict[str, Any]:
    """Whether things come in the colours that were asked for, and are still themselves among all in that colour."""
    cameras, found = orbit(trial.sizes.views), {"samples": list[tuple[bool, bool]](), "renders": []}
    with trial.log.stage("recolouring", max(len(paintings), 1)) as tell:
        for number, painting in enumerate(paintings):
            captions = [other.said(painting.name) for other in paintings]
            asked, own = captions[number], torch.arange(len(paintings))[None] == number
            shown = {
                "samples": drawn(trial, asked, trial.generator("recolouring", number)),
                "renders": rendered(painting.repainted, cameras, trial.size),
            }
            for name, pictures in shown.items():
                score = trial.judge.score(coloured(pictures[None]), captions).mean(0, keepdim=True)
                is_thing = measures.r_precision(score, own) == 1
                found[name].append((obeyed(pictures, painting.name), is_thing))
            tell(number + 1, {}, pictures=len(KINDS) * len(cameras))

    def shares(rows: Sequence[tuple[bool, bool]]) -> dict[str, float]:
        return {
            "coloured": measures.mean([float(colour) for colour, _ in rows]),
            "still_the_thing": measures.mean([float(thing) for _, thing in rows]),
            "both": measures.mean([float(colour and thing) for colour, thing in rows]),
        }

    return {"prompts": len(paintings)} | {name: shares(rows) for name, rows in found.items()}


def obeyed(pictures: Float[Tensor, "K C H W 3"], name: str) -> bool:
    """Whether what covers most of the object's albedo has the colour of this name; without an object, nothing has."""
    inside = measures.mask_of_normals(pictures[KINDS.index("normal")])[..., 0] > 0
    albedo = pictures[KINDS.index("albedo")][inside]
    return len(albedo) > 0 and measures.shows(dominant(albedo, torch.ones_like(albedo[:, 0])), name)
