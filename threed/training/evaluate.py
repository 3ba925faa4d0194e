"""How good a prior is: what it draws, turns and colours by itself, judged against a folder of captioned assets.

Nothing is distilled here: the figures say what an optimisation has to build on. Beside most of them stands what real
renders of the same assets score, or a baseline that knows nothing. `trials` has what is asked, `views_figures` and
`start_figures` ask it, `measures` has the formulas and `ROWS` the words. Captions, seeds and sizes decide everything
but the seconds. The judge must not have been trained with the prior.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from threed.distill import start
from threed.distill import upsampler as upsamplers
from threed.distill.embedded import Embedded
from threed.distill.folder import located
from threed.distill.start import Start
from threed.distill.text import pieces
from threed.distill.upsampler import Upsampler
from threed.errors import Mistake
from threed.log import Log
from threed.run import settings
from threed.training.collection import Item
from threed.training.judging import judged
from threed.training.parts import Data
from threed.training.start_figures import starts
from threed.training.trials import Painting, Prompt, Sizes, Trial, chosen, painted
from threed.training.views_figures import recolouring, reference, views

ROWS = {  # what a figure is called, and whether more or less of it is better
    "prompts": "Captions, told apart by R-precision",
    "views.r_precision.captions": "R-precision of joint views, captions ↑",
    "views.r_precision.paraphrases": "  paraphrases ↑",
    "views.r_precision.renders": "  real renders",
    "views.feature_distance.samples": "Fréchet distance to renders, x 1000 ↓",
    "views.feature_distance.other_views": "  renders from elsewhere",
    "views.consistency_psnr.samples": "PSNR of one solid fitted to joint views ↑",
    "views.consistency_psnr.renders": "  to real renders",
    "reference.assets": "Assets that are turned",
    "reference.psnr.prior": "Reference to view, PSNR ↑",
    "reference.psnr.repeated": "  the reference, repeated",
    "reference.psnr.mean": "  mean view of other assets",
    "reference.ssim.prior": "Reference to view, SSIM ↑",
    "reference.ssim.repeated": "  the reference, repeated",
    "reference.ssim.mean": "  mean view of other assets",
    "reference.iou.prior": "Reference to view, silhouette IoU ↑",
    "reference.iou.repeated": "  the reference, repeated",
    "reference.iou.mean": "  mean view of other assets",
    "recolouring.prompts": "Things in new colours, told apart",
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
    "start.upsampled.iou": "Start in twice the resolution, volume IoU, captions ↑",
    "start.upsampled.interpolated_iou": "  interpolated instead",
    "start.pictures.iou": "Start, volume IoU, one picture and no words ↑",
    "start.pictures.colour_error": "Start, colour error in OKLab, one picture ↓",
    "start.captions.empty": "Start, share of empty volumes ↓",
    "start.captions.broken": "Start, share of volumes in pieces ↓",
    "start.assets.broken": "  the assets' own",
    "start.seconds": "Start, seconds a volume ↓",
}


def compare(
    priors: Sequence[str],
    items: Sequence[Item],
    judge_folder: Path,
    learn: Data | None,
    console: Console,
    sizes: Sizes | None = None,
    seed: int = 0,
    known: Collection[str] = (),
) -> dict[str, Any]:
    """All figures of priors ("embedded", or folders) that are asked the same, for `show` and for JSON.

    learn: what the judge is trained on where `judge_folder` has none; None when it has one, of whatever assets. known:
    further captions, so that colours are new. Raises, before a judge is trained, Mistake for too few captions and for
    priors or a judge of different sizes, and UnreadablePrior; later what training a judge raises.
    """
    sizes, device = sizes or Sizes(), torch.device("cpu")
    folders = [located(name) for name in priors]
    loaded = [Embedded.load(folder, device) for folder in folders]
    volumes = [start.load(folder, device) if (folder / "start").is_dir() else None for folder in folders]
    finer = [upsamplers.load(folder, device) if (folder / "upsampler").is_dir() else None for folder in folders]
    drawn = sorted({prior.image_size for prior in loaded})
    if len(drawn) > 1:
        raise Mistake(f"the priors draw pictures of {' and '.join(map(str, drawn))} pixels; compare those of one size")

    def takes(prompt: str) -> bool:
        return all(readable(prior, prompt) for prior in loaded)

    with TemporaryDirectory() as folder:
        log, tables = Log(Path(folder), console), list[dict[str, Any]]()
        prompts = chosen(items, sizes, seed, takes, log)
        paintings = painted(items, sizes, seed, takes, log, known)
        judge, about = judged(judge_folder, drawn[0], learn, console)
        for name, prior, own, fine in zip(priors, loaded, volumes, finer, strict=True):
            console.rule(Text(name), align="left")
            figures = evaluate(Trial(prior, judge, sizes, seed, log, device), own, prompts, paintings, fine)
            tables.append({"prior": name if name == "embedded" else located(name).resolve().name} | figures)
    return {"threads": torch.get_num_threads(), "judge": about, "priors": tables}


def evaluate(
    trial: Trial,
    volumes: Start | None,
    prompts: Sequence[Prompt],
    paintings: Sequence[Painting],
    upsampler: Upsampler | None = None,
) -> dict[str, Any]:
    """All figures of one prior with its start and its upsampler, as a nested dictionary.

    A figure that there is none of is None; so is all of "start" for a prior without one.
    """
    began = time.perf_counter()
    table = {
        "sizes": asdict(trial.sizes),
        "seed": trial.seed,
        "prompts": len(prompts),
        "views": views(trial, prompts),
        "reference": reference(trial, prompts),
        "recolouring": recolouring(trial, paintings),
        "start": None if volumes is None else starts(trial, volumes, prompts, upsampler),
    }
    found: dict[str, Any] = rounded(table | {"seconds": time.perf_counter() - began})
    return found


def readable(prior: Embedded, prompt: str) -> bool:
    """Whether the prior can read the whole prompt."""
    return len(pieces(prior.reader.tokenizer, prompt)) <= prior.reader.limit


def show(*tables: Mapping[str, Any]) -> Table:
    """Priors side by side; rich prints it."""
    table = Table("", *(Column(Text(str(each["prior"]))) for each in tables))
    flat = [settings(dict(each)) for each in tables]
    for name, words in ROWS.items():
        scale = 1000 if "feature_distance" in name else 1
        table.add_row(words, *(said(each.get(name), scale) for each in flat))
    return table


def said(value: float | None, scale: int) -> str:
    """A count, a figure, or nothing."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{scale * value:.3f}"


def rounded(tree: Any) -> Any:
    """Four significant digits; None for what is no number, which JSON does not know."""
    if isinstance(tree, dict):
        return {name: rounded(value) for name, value in tree.items()}
    if isinstance(tree, float):
        return float(f"{tree:.4g}") if math.isfinite(tree) else None
    return tree
