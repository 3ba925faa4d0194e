"""The command line of priors: `threed prior list`, `train FOLDER`, `sample PROMPT`, `evaluate FOLDER` (`evaluate_cli`).

Everything a user can get wrong is checked before any work, and nothing heavy is imported for
what can be judged without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from threed import priors
from threed.commands import Command, Group
from threed.errors import Mistake, unknown
from threed.evaluate_cli import EVALUATE_HELP, Evaluate, evaluate
from threed.flags import SEED, check_device, check_output, check_ranges, check_words, said

if TYPE_CHECKING:
    from threed.training.loop import Schedule
    from threed.training.settings import Settings

STEPS = (1, 10_000_000)
MINUTES = (0.1, 100_000.0)
BATCH = (1, 65_536)
VIEWS = (1, 16)
PRIOR_HELP = (
    "Say which diffusion priors there are, train one on your own assets, look at what a prior draws by itself, and "
    "measure how good it is."
)
LIST_HELP = """Say which diffusion priors there are.

The embedded one came with the program. Of the others, checkpoints of text-to-image and, for threed image, of
picture-to-view networks that others trained, the first command that names one downloads it, and says so; nothing is
downloaded for this list.

For example:
  threed text "a barrel" --recipe dreamfusion --device cuda --prior sd:stable-diffusion-v1-5/stable-diffusion-v1-5
  threed text "a barrel" --recipe dreamfusion --device cuda --prior sd:checkpoints/my-fine-tune
"""
TRAIN_HELP = """Train a prior on a folder of meshes with captions.

FOLDER is searched for GLB, glTF and OBJ files, the front of every object towards +Z. FILE has a JSON object a line,
with paths relative to FILE or to FOLDER and short captions in plain words:

  {"path": "barrel.glb", "caption": "a wooden barrel"}

At least 16 assets are needed, and hundreds to learn something. A twentieth is held out and only measured.

A prior has six parts: a start (rough volumes out of a text, for threed text --start volume), an upsampler (these in
twice the resolution), views (pictures, which distillation asks), and for threed image angles (from where a picture was
taken), a lift (a volume out of a picture, and rough copies of the assets, about a kilobyte each, which it knows again)
and a ranker (which of these copies a picture shows). MY_PRIOR receives them with a model card, README.md. While a part
is trained, MY_PRIOR/work/PART has samples.png and metrics.jsonl. The defaults take about two hours on two cores, for
2,700 assets.

Stopped by Ctrl-C, kill -9 or a full disk? The same command goes on where it was and ends with the same bytes.
Afterwards MY_PRIOR/work and MY_PRIOR/cache may be deleted.

For example:
  threed prior train assets --captions assets/captions.jsonl --output my_prior
  threed prior train assets --output my_prior --minutes 20           # captions out of the files' names
  threed prior train assets --output my_prior --device cuda --views-size large --steps 100000
  threed prior train assets --output my_prior --from embedded        # go on from weights that are there
  threed prior train assets --output my_prior --parts start          # with the embedded prior's views

Then:
  threed prior sample "a wooden barrel" --prior my_prior
  threed prior evaluate other_assets --prior my_prior
  threed text "a wooden barrel" --prior my_prior
"""
SAMPLE_HELP = """Draw what a prior makes of a sentence, without an asset.

One picture: albedo, shaded and normals of the views in rows, and the volume of its start in a fourth where it has one.

For example:
  threed prior sample "a red chair" --prior my_prior --views 8
  threed prior sample "a red chair" --seed 3 --output chair.png       # of the embedded prior
"""


@dataclass(frozen=True)
class List:
    """`threed prior list` takes no flags."""


@dataclass(frozen=True)
class Train:
    """What `threed prior train` was asked for, as it was typed; None where the device's preset decides."""

    folder: Annotated[tyro.conf.Positional[Path], said("The meshes: GLB, glTF, OBJ.", metavar="FOLDER")]
    output: Annotated[Path, said("The folder of the prior, a new one or that of an earlier start of this command.")]
    captions: Annotated[Path | None, said("Which meshes, and what they show.", "all of them, by their names")] = None
    parts: Annotated[tuple[str, ...], said("What is trained: start, upsampler, views, angles, lift, ranker.")] = (
        "start",
        "upsampler",
        "views",
        "angles",
        "lift",
        "ranker",
    )
    views_size: Annotated[
        str | None, said("tiny, small, medium or large: 4 to 24 million weights.", "small, on a GPU medium")
    ] = None
    source: Annotated[
        str | None, said("A prior to go on from: embedded, or a folder.", "fresh weights", name="from")
    ] = None
    steps: Annotated[
        int | None, said(f"Training steps of every part, {STEPS[0]} to {STEPS[1]}.", "the device's preset")
    ] = None
    minutes: Annotated[
        float | None,
        said("As many steps as fit into so many minutes, all parts together, after renders are cached.", "by --steps"),
    ] = None
    batch: Annotated[int | None, said("Samples a step, of every part; fewer take less memory.", "the preset's")] = None
    seed: Annotated[int, said(f"Another seed, another prior; at least {SEED[0]}.")] = 0
    device: Annotated[str, said("Where to compute: cpu, cuda.")] = "cpu"
    cache: Annotated[
        Path | None, said("Where renders of the assets are kept, for other trainings.", "OUTPUT/cache")
    ] = None


@dataclass(frozen=True)
class Sample:
    """What `threed prior sample` was asked for, as it was typed."""

    prompt: Annotated[tyro.conf.Positional[str], said("What to draw, in a few plain words.", metavar="PROMPT")]
    prior: Annotated[str, said("The diffusion model: embedded (it came with the program) or a folder.")] = "embedded"
    views: Annotated[int, said(f"Cameras around it, {VIEWS[0]} to {VIEWS[1]}; 4 is what priors are trained with.")] = 4
    seed: Annotated[int, said(f"Another seed, another object; at least {SEED[0]}.")] = 0
    output: Annotated[Path | None, said("The picture, a PNG.", "<prompt>-<seed>.png")] = None


def show(_: List) -> None:
    """`threed prior list`: two lines a prior."""
    from threed.distill.folder import SHIPPED
    from threed.distill.hub.known import CONTROLS, KNOWN

    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) / 1e9
    lines = ["embedded", f"  single objects, told cameras, 64 px; {size:.2f} GB; licence as this program; here"]
    for each in (*KNOWN, *CONTROLS):
        flag = "--control " if each in CONTROLS else "sd:"
        gone = f"; in the place of {each.instead_of}, which is gone" if each.instead_of else ""
        gated = ", gated: accept it on the hub" if each.gated else ""
        here = "; in the local cache" if each.here else ""
        lines += [
            f"{flag}{each.id}",
            f"  {each.what}; about {each.gigabytes:.1f} GB; licence {each.licence}{gated}{gone}{here}",
        ]
    lines += ["sd:PATH", "  a folder in diffusers' layout, fine-tunes too, or a .safetensors file; --lora adds a LoRA"]
    for line in lines:
        Console().print(line, highlight=False, markup=False, soft_wrap=True)


def train(asked: Train) -> None:
    """`threed prior train`: check everything, train, say what came out."""
    check_train(asked)
    settings = resolve(asked)

    from threed.machine import set_threads
    from threed.training import train as training

    set_threads()
    console = Console(stderr=True)
    finished = training.train(asked.folder, asked.captions, asked.output, settings, console, asked.cache)
    console = Console()
    for part, figures in finished.items():
        held_out = "" if figures.loss_held_out is None else f", {figures.loss_held_out:.4g} of assets held out"
        line = f"{part}: {figures.steps} steps, loss {figures.loss:.4g}{held_out}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    line = f"{asked.output} is a prior; look at it: threed prior sample PROMPT --prior {asked.output}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def check_train(asked: Train) -> None:
    """What can be judged without importing anything. Raises Mistake."""
    if not asked.parts:
        raise Mistake("--parts names nothing; give at least one, for example: --parts start views")
    for part in asked.parts:
        if part not in Train.parts:
            raise unknown("part", part, Train.parts)
    check_ranges(asked, {"steps": STEPS, "minutes": MINUTES, "batch": BATCH, "seed": SEED})
    if asked.steps is not None and asked.minutes is not None:
        raise Mistake("--steps and --minutes contradict each other; give one of them")
    if asked.source is not None and asked.views_size is not None:
        raise Mistake("--from and --views-size contradict each other: a prior keeps its size; give one of them")
    if asked.source is not None:
        check_own(asked.source)
    if asked.source not in (None, "embedded") and not Path(asked.source).is_dir():
        raise Mistake(f"unknown prior {asked.source!r}; it is neither embedded nor a folder; check --from")


def resolve(asked: Train) -> Settings:
    """The device's preset, with the flags that were given in place of its own values. Raises Mistake."""
    import torch

    from threed.distill.folder import located
    from threed.training.settings import GENTLE, PRESETS, has, lasting
    from threed.training.views import SIZES

    check_device(asked.device, {"cpu": True, "cuda": torch.cuda.is_available()})
    if asked.views_size is not None and asked.views_size not in SIZES:
        raise unknown("views size", asked.views_size, SIZES)
    settings = PRESETS[asked.device]

    def asked_for(part: str) -> Schedule:
        schedule, trained = settings.schedule(part), asked.source is not None and has(located(asked.source), part)
        lasts = lasting(schedule, asked.steps or schedule.steps)
        rate = schedule.rate * (GENTLE if trained else 1)
        return replace(lasts, batch=asked.batch or schedule.batch, rate=rate, seed=asked.seed)

    parts = tuple(part for part in Train.parts if part in asked.parts)
    schedules = {part: asked_for(part) for part in Train.parts}
    settings = replace(settings, **schedules, parts=parts, minutes=asked.minutes)  # type: ignore[arg-type]
    if asked.source is not None:
        return replace(settings, source=located(asked.source), continued=True)
    return replace(settings, size=asked.views_size or settings.size)


def sample(asked: Sample) -> None:
    """`threed prior sample`: check everything, draw, say where it is."""
    check_words(prompt=asked.prompt)
    if not asked.prompt.strip():
        raise Mistake('the prompt is empty; say what to draw, for example: threed prior sample "a red chair"')
    check_ranges(asked, {"views": VIEWS, "seed": SEED})
    prompt = " ".join(asked.prompt.split())

    from threed import disk, drawing
    from threed.distill.folder import UnreadablePrior
    from threed.machine import set_threads
    from threed.run import slug

    path = asked.output or Path(f"{slug(prompt)}-{asked.seed}.png")
    check_output(path, "sheet.png")
    check_prior(prompt, asked.prior)
    set_threads()
    try:
        content = drawing.sheet(prompt, asked.prior, asked.views, asked.seed, Console(stderr=True))
    except UnreadablePrior as error:
        raise Mistake(str(error)) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write(path, content)
    Console().print(f"{path}  {len(content) / 1000:,.0f} kB", highlight=False, markup=False, soft_wrap=True)


def check_own(name: str) -> None:
    """That a prior is of this program's own kind. Raises Mistake."""
    from threed.distill.hub.checkpoint import is_checkpoint

    if is_checkpoint(name):
        raise Mistake(f"{name!r} is a checkpoint of others, which only threed text, image and edit ask; use embedded")


def check_prior(prompt: str, name: str) -> None:
    """What `threed text` checks of a prior and a prompt. Raises Mistake."""
    check_own(name)
    from threed.recipes import RECIPES
    from threed.run import Request

    priors.check_prior(Request(prompt, RECIPES["dreamfusion"], prior=name))


COMMANDS = Group(
    PRIOR_HELP,
    {
        "list": Command(List, LIST_HELP, show),
        "train": Command(Train, TRAIN_HELP, train),
        "sample": Command(Sample, SAMPLE_HELP, sample),
        "evaluate": Command(Evaluate, EVALUATE_HELP, evaluate),
    },
)
