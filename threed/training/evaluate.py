"""How good a prior is: what it draws, turns and colours by itself, judged against a folder of captioned assets.

Nothing is distilled here: the figures say what an optimisation has to build on. Beside most of them stands what real
renders of the same assets score, or a baseline that knows nothing; `measures.py` has the formulas, `ROWS` the words.
Captions, seeds and sizes decide everything but the seconds. The judge (`judge.py`) must not have been trained with the
prior. Pictures are display sRGB in [0, 1], channels last, on white.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from threed.distill import sample, start
from threed.distill.conditions import Seen, Text, encode, normalized, view_features
from threed.distill.embedded import SHIPPED, Condition, Embedded
from threed.distill.prior import Conditions, Pictures
from threed.distill.start import Start
from threed.errors import Mistake
from threed.log import Log
from threed.pictures import silhouette_iou
from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset
from threed.renderers.read import normalised, read
from threed.renderers.volume import Render
from threed.renderers.voxels import Voxels, voxelise
from threed.run import settings
from threed.start import CANDIDATES, VoxelField
from threed.train import seeded
from threed.training import collection as collections
from threed.training import measures
from threed.training.captions import can_be_coloured, colour_names, colour_words, paraphrases, parse, with_colour
from threed.training.judge import Judge
from threed.training.recolour import NAMES, Recolouring, colour_of, dominant, name_of
from threed.training.views_batch import KINDS
from threed.training.views_cache import surface_colours

SUPERSAMPLE = 3  # of renders, as in training
FIGURES = ("iou", "colour_error", "r_precision", "empty", "broken")  # of a volume
PIECES = ("views", "reference", "recolouring", "start")  # each with random numbers of its own

ROWS = {  # what a figure is called, and whether more or less of it is better
    "views.r_precision.captions": "R-precision of joint views, captions ↑",
    "views.r_precision.paraphrases": "  paraphrases ↑",
    "views.r_precision.renders": "  real renders",
    "views.feature_distance.samples": "Fréchet distance to renders, x 1000 ↓",
    "views.feature_distance.other_views": "  renders from elsewhere",
    "views.consistency_psnr.samples": "PSNR of one solid fitted to joint views ↑",
    "views.consistency_psnr.renders": "  to real renders",
    "reference.psnr.prior": "Reference to view, PSNR ↑",
    "reference.psnr.repeated": "  the reference, repeated",
    "reference.psnr.mean": "  mean view of other assets",
    "reference.ssim.prior": "Reference to view, SSIM ↑",
    "reference.ssim.repeated": "  the reference, repeated",
    "reference.ssim.mean": "  mean view of other assets",
    "reference.iou.prior": "Reference to view, silhouette IoU ↑",
    "reference.iou.repeated": "  the reference, repeated",
    "reference.iou.mean": "  mean view of other assets",
    "recolouring.samples.coloured": "New colours obeyed ↑",
    "recolouring.samples.still_the_thing": "  and still the thing ↑",
    "recolouring.samples.both": "  both ↑",
    "recolouring.renders.both": "  both, real renders repainted",
    "start.captions.iou": "Start, volume IoU, captions ↑",
    "start.paraphrases.iou": "  paraphrases ↑",
    "start.captions.colour_error": "Start, colour error in OKLab, captions ↓",
    "start.paraphrases.colour_error": "  paraphrases ↓",
    "start.captions.r_precision": "Start, R-precision of its renders, captions ↑",
    "start.paraphrases.r_precision": "  paraphrases ↑",
    "start.captions.empty": "Start, share of empty volumes ↓",
    "start.captions.broken": "Start, share of volumes in pieces ↓",
    "start.assets.broken": "  the assets' own",
    "start.seconds": "Start, seconds a volume ↓",
}


@dataclass(frozen=True)
class Sizes:
    """How much is looked at; the defaults take about half an hour on two cores."""

    captions: int = 100  # that are drawn, and that a picture is to be told among
    views: int = 4  # drawn jointly
    steps: int = 20  # of sampling
    fits: int = 12  # captions whose views a solid is fitted to
    fit_steps: int = 100
    references: int = 24  # assets that are turned
    cameras: int = 16  # around each; a multiple of 4
    recolourings: int = 50
    candidates: int = CANDIDATES  # volumes a caption, of which the most usual one is taken

    def __post_init__(self) -> None:
        least = {"captions": 2, "references": 2, "cameras": 4}
        for name, value in asdict(self).items():
            if value < least.get(name, 1):
                raise Mistake(f"an evaluation cannot have {name} {value}; use at least {least.get(name, 1)}")
        if self.cameras % 4:
            raise Mistake(f"cameras is {self.cameras}; use a multiple of 4, so that groups stand a quarter turn apart")


@dataclass(frozen=True)
class Prompt:
    """A caption, and what it should look like."""

    caption: str
    paraphrase: str | None  # in words that no training says; not every caption has any
    asset: Asset  # the first that it describes, at radius 1
    paths: tuple[Path, ...]  # all of them


@dataclass(frozen=True)
class Painting:
    """A thing in a colour in which nobody has seen it."""

    caption: str
    old: str | None  # the colour that the caption names
    name: str  # of the new one, in `recolour.NAMED`
    asset: Asset  # the first that it describes, at radius 1
    paint: Float[Tensor, "3"]  # what covers most of it

    @property
    def repainted(self) -> Asset:
        """The asset in the new colour: what should be drawn."""
        red, green, blue = self.paint.tolist()
        picture = Recolouring((red, green, blue), colour_of(self.name))(self.asset.material.base_color)
        return replace(self.asset, material=replace(self.asset.material, base_color=picture))

    def said(self, name: str) -> str:
        """The caption in this colour."""
        return with_colour(self.caption, self.old, name)


@dataclass(frozen=True)
class Trial:
    """What every measurement needs."""

    prior: Embedded
    judge: Judge
    sizes: Sizes
    seed: int
    log: Log
    device: torch.device

    @property
    def size(self) -> int:
        return self.prior.image_size

    def generator(self, piece: str, *numbers: int) -> torch.Generator:
        """Random numbers of one piece of the work, on the prior's device."""
        generator = seeded(self.seed, PIECES.index(piece), *numbers)
        if self.device.type == "cpu":
            return generator
        return torch.Generator(self.device).manual_seed(generator.initial_seed())

    def text(self, prompts: Sequence[str]) -> Text:
        return encode(prompts, self.prior.tokenizer, self.prior.text_encoder, self.prior.conventions.text_tokens)

    def takes(self, prompt: str) -> bool:
        """Whether the prior can read the whole prompt."""
        return len(self.prior.tokenizer(normalized(prompt)).input_ids) <= self.prior.conventions.text_tokens


def evaluate(
    prior_folder: Path | None,
    asset_folder: Path,
    captions: Path | None,
    judge: Judge,
    log: Log,
    sizes: Sizes | None = None,
    seed: int = 0,
    known: Collection[str] = (),
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """All figures of a prior (None: the shipped one) as a nested dictionary, for `show` and for JSON.

    captions: as for `collection.gather`. known: further captions of the prior's training, so that colours are new.
    A figure that there is none of is None; so is all of "start" for a prior without one. Raises Mistake for a folder
    with too few captions, or a judge of another size; UnreadablePrior; what `gather` raises.
    """
    folder, sizes = SHIPPED if prior_folder is None else prior_folder, sizes or Sizes()
    prior = Embedded.load(folder, device)
    if judge.towers.config.size != prior.image_size:
        raise Mistake(
            f"the judge looks at {judge.towers.config.size} pixels a side and the prior draws {prior.image_size}; "
            "train a judge on pictures of that size"
        )
    volumes = start.load(folder, device) if (folder / "start").is_dir() else None
    gathered = collections.gather(asset_folder, captions)
    trial = Trial(prior, judge, sizes, seed, log, torch.device(device))
    prompts, paintings = chosen(trial, gathered.items), painted(trial, gathered.items, known)
    began = time.perf_counter()
    table = {
        "prior": "shipped" if prior_folder is None else prior_folder.name,
        "sizes": asdict(sizes),
        "seed": seed,
        "prompts": len(prompts),
        "views": views(trial, prompts),
        "reference": reference(trial, prompts),
        "recolouring": recolouring(trial, paintings),
        "start": None if volumes is None else starts(trial, volumes, prompts),
    }
    return rounded(table | {"seconds": time.perf_counter() - began})


def show(*tables: Mapping[str, Any]) -> Table:
    """Priors side by side; rich prints it."""
    table = Table("", *(str(each["prior"]) for each in tables))
    flat = [settings(dict(each)) for each in tables]
    for name, words in ROWS.items():
        figures = [each.get(name) for each in flat]
        scale = 1000 if "feature_distance" in name else 1
        table.add_row(words, *("" if value is None else f"{scale * value:.3f}" for value in figures))
    return table


def chosen(trial: Trial, items: Sequence[collections.Item]) -> tuple[Prompt, ...]:
    """Captions to draw, by the seed alone, each with assets of its own. Raises Mistake for fewer than two."""
    paths, used = owners(items), set[Path]()
    random, prompts = np.random.default_rng((trial.seed, 0)), list[Prompt]()
    for caption in random.permutation(sorted(paths)).tolist():
        others = [words for words in paraphrases(caption) if trial.takes(words)]
        paraphrase = str(random.choice(others)) if others else None
        if not trial.takes(caption) or used & {*paths[caption]}:
            continue
        if (asset := first(trial, paths[caption])) is not None:
            used.update(paths[caption])
            prompts.append(Prompt(caption, paraphrase, asset, paths[caption]))
        if len(prompts) == trial.sizes.captions:
            break
    if len(prompts) < 2:
        raise Mistake(f"{len(prompts)} captions have an asset that can be drawn; an evaluation needs at least 2")
    return tuple(prompts)


def painted(trial: Trial, items: Sequence[collections.Item], known: Collection[str] = ()) -> tuple[Painting, ...]:
    """ "a COLOUR THING", by the seed alone: every thing once, in a colour that neither its captions nor it has."""
    paths, used = owners(items), set[Path]()
    random, said, found = np.random.default_rng((trial.seed, 1)), {*known, *paths}, dict[str, Painting]()
    for caption in random.permutation(sorted(paths)).tolist():
        phrase, own = parse(caption), colour_words(caption)
        simple = phrase.determiner in ("a", "an") and not phrase.tail and len(own) < 2 and can_be_coloured(caption)
        old = own[0] if own else None
        if not simple or used & {*paths[caption]} or (thing := with_colour(caption, old, NAMES[0])) in found:
            continue
        if (asset := first(trial, paths[caption])) is None:
            continue
        colours = surface_colours(asset, 256, random)
        paint = dominant(colours, torch.ones_like(colours[:, 0]))
        taken = {name_of(paint), *(colour_names(old) if old else ())}
        others = {name: with_colour(caption, old, name) for name in NAMES if name not in taken}
        free = [name for name, words in others.items() if words not in said and trial.takes(words)]
        if free:
            used.update(paths[caption])
            found[thing] = Painting(caption, old, str(random.choice(free)), asset, paint)
        if len(found) == trial.sizes.recolourings:
            break
    return tuple(found.values())


def owners(items: Sequence[collections.Item]) -> dict[str, tuple[Path, ...]]:
    """The files of every caption."""
    paths: dict[str, tuple[Path, ...]] = {}
    for item in items:
        paths[item.caption] = (*paths.get(item.caption, ()), item.path)
    return paths


def first(trial: Trial, paths: Sequence[Path]) -> Asset | None:
    """The first that can be used, at radius 1."""
    for path in paths:
        try:
            asset = read(path)
            return replace(asset, mesh=normalised(asset.mesh))
        except ValueError as error:
            trial.log.note(f"skipped: {error}")
    return None


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
            azimuth = math.pi / 4 * torch.rand(1, generator=generator, device=trial.device)
            camera = replace(orbit(1), azimuth=azimuth.cpu())
            seen = surface.render(prompt.asset, camera, trial.size, trial.size, SUPERSAMPLE)
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
                psnr, ssim = (measure(picture, real[number]) for measure in (measures.psnr, measures.ssim))
                found[name].append({"psnr": psnr, "ssim": ssim, "iou": iou})
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
    prior, kinds, apart = trial.prior, ("shaded", "normal"), len(cameras) // 4
    count, shape = 4 * len(kinds), (4 * len(kinds), 3, trial.size, trial.size)
    picture = torch.cat([2 * seen.rgb - seen.alpha, seen.alpha], dim=-1).movedim(-1, 1).to(trial.device)
    which = torch.tensor([[float(kind == known) for known in prior.kinds] for kind in kinds]).repeat_interleave(4, 0)
    source = Seen(camera.azimuth.expand(count), camera.elevation.expand(count), torch.ones(count))
    nothing, found = trial.text([""]), torch.empty(len(kinds), len(cameras), trial.size, trial.size, 3)
    for place in range(apart):
        group = cameras[torch.arange(place, len(cameras), apart).repeat(len(kinds))]
        view = view_features(group, which, torch.ones(count, 3), known=torch.zeros(count), seen=source)
        labels = torch.cat([view.to(nothing.mean), nothing.mean.expand(count, -1)], dim=1)
        context, reference = nothing.tokens.expand(count, -1, -1), picture.expand(count, -1, -1, -1)
        told = Condition(context, labels, joint=count, reference=reference)
        latents = sample.ddim(prior, Conditions(told, told), shape, trial.sizes.steps, 1.0, 0.0, generator)
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


def starts(trial: Trial, volumes: Start, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the start makes of captions and of other words for them."""
    captions, truths = [prompt.caption for prompt in prompts], solids(trial, prompts, volumes.config.resolution)
    asked = [("captions", number, prompt.caption) for number, prompt in enumerate(prompts)]
    asked += [("paraphrases", number, p.paraphrase) for number, p in enumerate(prompts) if p.paraphrase]
    asked = [each for each in asked if truths[each[1]]]
    found: dict[str, list[dict[str, float]]] = {"captions": [], "paraphrases": []}
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
            tell(step + 1, {})
    whole = [float(measures.is_whole(voxels.occupied)) for own in truths for voxels in own]
    return {
        "resolution": volumes.config.resolution,
        **{
            part: {name: measures.mean([row[name] for row in rows]) for name in FIGURES} for part, rows in found.items()
        },
        "assets": {"broken": 1 - measures.mean(whole)},
        "seconds": seconds / max(len(asked) * trial.sizes.candidates, 1),
    }


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
    """Of the most usual of C volumes against the best of its caption's assets; of all C, whether anything is wrong."""
    every = [start.voxels_of(volume) for volume in made]
    best, filled = every[start.medoid(made)], [each.occupied for each in every if each.occupied.any()]
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


def rounded(tree: Any) -> Any:
    """Four significant digits; None for what is no number, which JSON does not know."""
    if isinstance(tree, dict):
        return {name: rounded(value) for name, value in tree.items()}
    if isinstance(tree, float):
        return float(f"{tree:.4g}") if math.isfinite(tree) else None
    return tree
