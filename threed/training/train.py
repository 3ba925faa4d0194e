"""train: a folder of captioned meshes becomes a prior.

    OUTPUT/                         the prior, as soon as all parts that were asked for are finished
    OUTPUT/cache/views, volumes     what the assets look like; or the folder that was given for it
    OUTPUT/work/start, views, ...   one training each: settings.json, checkpoints, metrics.jsonl, samples.png, and at
                                    last the trained part and finished.json

The same call goes on where it was stopped, leaves alone what is finished, and ends in the same bytes. A part that is
not trained is the source's.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn

from threed import disk
from threed.distill.embedded import Embedded, compute_dtype
from threed.distill.folder import SHIPPED, UnreadablePrior
from threed.errors import Failure, Mistake
from threed.flags import make_folder
from threed.log import Log
from threed.machine import cores, memory_of
from threed.run import difference
from threed.train import seeded
from threed.training import card, publish
from threed.training.loop import Loss, Schedule, optimise
from threed.training.parts import TRAINEES, Data, Job, Trainee, grown, start_config
from threed.training.settings import PARTS, Settings, has, lasting

SMALLER = "train with a smaller --batch into another --output, with --cache so that nothing is rendered twice"
TRIAL = 12  # steps by which the time of all others is judged
EVALUATION = 16  # batches


@dataclass(frozen=True)
class Choices:
    """What the machine decides when a part begins, and what holds until it ends."""

    steps: int
    precision: Literal["bfloat16", "float32"]
    workers: int
    compiled: bool


@dataclass(frozen=True)
class Figures:
    """What is told of a finished part."""

    parameters: int
    steps: int
    batch: int
    assets: int
    assets_held_out: int
    loss: float  # of the assets that it was trained on
    loss_held_out: float | None


def train(
    folder: Path,
    captions: Path | None,
    output: Path,
    settings: Settings,
    console: Console | None = None,
    cache: Path | None = None,
) -> dict[str, Figures]:
    """Fill `output` from wherever it stands; returns the figures of all parts that are finished there.

    Raises, before any work, Mistake for assets, captions, a source or an output that cannot be used, or that contradict
    what the output holds; later Failure when a training cannot go on, and OSError when the disk is full.
    """
    publish.check(output)
    console = console or Console(quiet=True)
    data, prior = Data.gathered(folder, captions), sourced(settings)
    if "upsampler" in settings.parts and not guesses(output, settings):
        what = f"{source_name(settings)!r} has no start, and an upsampler is trained on what a start makes"
        raise Mistake(f"{what}; add start to --parts, or choose another --from")
    for part in settings.parts:
        agree(output, part, asked(settings, data, part))
    cache = cache or output / "cache"
    with publish.claimed(output), memory_of(settings.device, SMALLER):
        make_folder(cache, "--cache")
        tell(console, data)
        finished: dict[str, Figures] = {}
        for part in PARTS:
            job = Job(data, prior, settings, cache, output / "work" / part, console)
            if (job.work / "finished.json").exists():
                finished[part] = Figures(**json.loads((job.work / "finished.json").read_bytes()))
            elif part in settings.parts:
                finished[part] = completed(part, job)
        text = card.written(folder.resolve().name, data, captions, source_name(settings), finished)
        publish.publish(output, pieces(output, settings, finished), text)
    return finished


def sourced(settings: Settings) -> Embedded:
    """The prior that the training begins with. Raises Mistake for one that cannot be used."""
    try:
        prior = Embedded.load(settings.source, settings.device, torch.float32)
        if "start" in settings.parts:
            start_config(prior, settings)
        if "views" in settings.parts and settings.continued:
            grown(prior, settings)
    except UnreadablePrior as error:
        raise Mistake(str(error)) from error
    except ValueError as error:
        raise Mistake(f"cannot continue {str(settings.source)!r}: {error}") from error
    return prior


def guesses(output: Path, settings: Settings) -> bool:
    """Whether there is a start, or will be by the time that the upsampler is trained."""
    trained = (output / "work" / "start" / "finished.json").exists()
    return trained or "start" in settings.parts or has(settings.source, "start")


def source_name(settings: Settings) -> str:
    return "embedded" if settings.source == SHIPPED else str(settings.source)


def asked(settings: Settings, data: Data, part: str) -> dict[str, Any]:
    """All that a part was asked to be, as JSON: two trainings of the same are the same training."""
    schedule = asdict(settings.schedule(part))
    del schedule["precision"]  # which the machine decides
    if settings.minutes is not None:
        del schedule["steps"], schedule["warmup"]
    about = {
        "schedule": schedule,
        "minutes": settings.minutes,
        "device": settings.device,
        "source": source_name(settings),
        "continued": settings.continued,
        "data": {"assets": data.assets, "captions": len(data.train), "digest": data.digest},
    }
    size = {} if settings.continued else {"size": settings.size}
    own: dict[str, dict[str, Any]] = {
        "start": {"config": asdict(settings.config)},
        "upsampler": {"config": asdict(settings.upsampling)},
        "angles": {"config": asdict(settings.viewing), "shots": asdict(settings.shots)},
        "lift": {"config": asdict(settings.lifting), "shots": asdict(settings.shots)},
        "ranker": {"config": asdict(settings.ranking), "shots": asdict(settings.shots)},
        "views": {"shots": asdict(settings.shots)} | size,
    }
    found: dict[str, Any] = json.loads(json.dumps(about | own[part]))
    return found


def agree(output: Path, part: str, now: dict[str, Any]) -> None:
    """Raises Mistake where the output holds the beginning of another training."""
    if (known := read_settings(output / "work" / part)) and (changed := difference(known["asked"], now)):
        name, before, after = changed
        raise Mistake(
            f"{str(output)!r} holds another training: {name} of the {part} was {before!r} and is {after!r} now; "
            "use the old value or another --output"
        )


def read_settings(work: Path) -> dict[str, Any] | None:
    """What settings.json says. Raises Mistake when it does not say it."""
    path = work / "settings.json"
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        return {"asked": dict(found["asked"]), "choices": Choices(**found["choices"])}
    except (ValueError, KeyError, TypeError) as error:
        raise Mistake(f"cannot read {str(path)!r} ({error}); choose another --output") from error


def completed(part: str, job: Job) -> Figures:
    """Train a part, from its last checkpoint on, and save what comes out."""
    job.console.rule(Text(f"{part}: {job.work}"), align="left")
    log = job.log(job.work)
    trainee = TRAINEES[part](job)
    choices = chosen(part, job, trainee)
    schedule = replace(lasting(job.settings.schedule(part), choices.steps), precision=choices.precision)
    network = optimised(trainee, schedule, choices, log, job.settings)
    with log.stage("evaluate"):
        loss = evaluated(network, trainee.loss, schedule)
        loss_held_out = evaluated(network, trainee.held_out, schedule) if trainee.held_out else None
    try:
        trainee.save(network, schedule.steps)
    except ValueError as error:
        raise Failure(str(error)) from error
    size = sum(p.numel() for p in network.parameters())
    figures = Figures(size, schedule.steps, schedule.batch, *trainee.used, loss, loss_held_out)
    disk.write(job.work / "finished.json", json.dumps(asdict(figures), indent=1).encode() + b"\n")
    for prepared in job.work.glob("prepared*.safetensors"):
        prepared.unlink()
    return figures


def optimised(trainee: Trainee, schedule: Schedule, choices: Choices, log: Log, settings: Settings) -> nn.Module:
    return optimise(
        trainee.network,
        trainee.loss,
        schedule,
        log,
        hidden=trainee.hidden,
        sheet=trainee.sheet,
        workers=choices.workers,
        compiled=choices.compiled,
        checkpoint_every=settings.checkpoint_every,
        sheet_every=settings.sheet_every,
    )


def chosen(part: str, job: Job, trainee: Trainee) -> Choices:
    """What was decided when the part began; decided now if it only begins."""
    if known := read_settings(job.work):
        choices: Choices = known["choices"]
        return choices
    settings, schedule, device = job.settings, job.settings.schedule(part), torch.device(job.settings.device)
    low = compute_dtype(device) == torch.bfloat16
    choices = Choices(
        steps=schedule.steps,
        precision="bfloat16" if low else "float32",
        workers=min(settings.workers or cores(), schedule.batch) if device.type == "cpu" else 1,
        compiled=device.type == "cuda" and compilable(),
    )
    if (seconds := settings.seconds(part)) is not None:
        with job.log(job.work).stage("measure"):
            one = seconds_a_step(trainee, schedule, choices, job)
        choices = replace(choices, steps=max(1, int(seconds / one)))
        job.console.print(f"{one:.2f} s a step: {choices.steps} steps", highlight=False)
    told = {"asked": asked(settings, job.data, part), "choices": asdict(choices)}
    disk.write(job.work / "settings.json", (json.dumps(told, indent=1) + "\n").encode())
    return choices


def compilable() -> bool:
    """Whether PyTorch can compile for a GPU here: Triton builds its launchers with a C compiler."""
    return find_spec("triton") is not None and any(shutil.which(name) for name in ("cc", "gcc", "clang"))


def seconds_a_step(trainee: Trainee, schedule: Schedule, choices: Choices, job: Job) -> float:
    """By the clock of a few steps of a copy, which are then forgotten."""
    began: list[float] = []

    def timed(network: nn.Module, samples: int, generator: torch.Generator) -> Tensor:
        if generator.device.type == "cuda":
            torch.cuda.synchronize()
        began.append(time.monotonic())
        return trainee.loss(network, samples, generator)

    folder = job.work / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    copied = replace(trainee, network=copy.deepcopy(trainee.network), loss=timed, sheet=lambda _: b"")
    few = replace(lasting(schedule, TRIAL), precision=choices.precision)
    optimised(copied, few, choices, Log(folder), replace(job.settings, checkpoint_every=1e9))
    shutil.rmtree(folder, ignore_errors=True)
    steps = sorted(began)[:: choices.workers]
    return (steps[-1] - steps[TRIAL // 2]) / (TRIAL - 1 - TRIAL // 2)  # the first ones compile, or warm up caches


@torch.no_grad()
def evaluated(network: nn.Module, loss: Loss, schedule: Schedule) -> float:
    """The mean loss over a few batches that no step of the training has drawn."""
    device, losses = next(network.parameters()).device, []
    for number in range(EVALUATION):
        seed = seeded(schedule.seed, schedule.steps + number).initial_seed()
        generator = torch.Generator(device).manual_seed(seed)
        with torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bfloat16"):
            losses.append(loss(network, schedule.batch, generator).item())
    return float(f"{sum(losses) / len(losses):.5g}")


def pieces(output: Path, settings: Settings, finished: dict[str, Figures]) -> dict[str, Path]:
    """The files of the prior: those of the parts that were trained, and the source's where they were not."""
    found = dict[str, Path]()
    for part in PARTS:
        trained = output / "work" / part if part != "views" else output / "work" / part / "prior"
        files = publish.contents(trained if part in finished else settings.source)
        found |= {name: path for name, path in files.items() if part_of(name) == part}
    return found


def part_of(name: str) -> str:
    """The part of a prior that a file of its folder belongs to."""
    folder = name.split("/")[0]
    return folder if folder in PARTS else "views"


def tell(console: Console, data: Data) -> None:
    words = f"{data.assets} assets to train on, {data.assets_held_out} held out"
    missing = f"; {data.missing} captions name no mesh of the folder" if data.missing else ""
    console.print(words + missing, highlight=False)
