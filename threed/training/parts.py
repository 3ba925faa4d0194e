"""The parts of a prior in training: out of assets a network, what it shall minimise, and what becomes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from torch import nn

from threed import checkpoint
from threed.distill import angles as seen_from
from threed.distill import lift as lifts
from threed.distill import ranker as rankers
from threed.distill import start as starts
from threed.distill import upsampler as upsamplers
from threed.distill.angles import Angles
from threed.distill.embedded import Embedded
from threed.distill.exemplars import Exemplars
from threed.distill.lift import Lift
from threed.distill.ranker import Ranker
from threed.distill.start import Start, StartConfig
from threed.distill.text import Text
from threed.distill.upsampler import Upsampler
from threed.errors import Mistake
from threed.log import Log
from threed.training import angles as angles_training
from threed.training import exemplars as exemplar_training
from threed.training import lift as lift_training
from threed.training import ranker as ranker_training
from threed.training import start as start_training
from threed.training import upsampler as upsampler_training
from threed.training import views, views_cache, volumes
from threed.training.angles import AnglesLoss
from threed.training.cache import FEWEST, rows_in_common
from threed.training.candidates import CAMERAS, Candidates, candidates
from threed.training.captions import spoken
from threed.training.collection import Item, gather, held_out
from threed.training.lift import LiftLoss
from threed.training.loop import Loss
from threed.training.pairs import Pairs
from threed.training.ranker import RankerLoss
from threed.training.settings import Settings, has
from threed.training.start import StartLoss, Versions
from threed.training.upsampler import Lattices, UpsamplerLoss
from threed.training.views_cache import Cache
from threed.training.volumes import Lattice, Volumes

VOLUME_PROMPTS, VIEWS_PROMPTS = 8, 3  # on a sheet
VIEWS_STEPS = 15  # of a sheet's pictures, so that a CPU is not kept for long

Assets = TypeVar("Assets", Volumes, Cache)


@dataclass(frozen=True)
class Data:
    """What there is to train on, and what is held out."""

    train: tuple[Item, ...]
    held_out: tuple[Item, ...]
    missing: int = 0  # captions without a file

    @staticmethod
    def gathered(folder: Path, captions: Path | None) -> Data:
        """Raises Mistake for a folder or captions that cannot be used, and for too few assets."""
        collection = gather(folder, captions)
        data = Data(*held_out(collection.items), collection.missing)
        if data.assets < FEWEST:
            held = f" and {data.assets_held_out} to hold out" if data.held_out else ""
            what = f"{data.assets} captioned assets to train on{held}"
            raise Mistake(f"{str(folder)!r} has {what}; training needs at least {FEWEST}")
        return data

    @property
    def assets(self) -> int:
        return len({item.name for item in self.train})

    @property
    def assets_held_out(self) -> int:
        return len({item.name for item in self.held_out})

    @property
    def digest(self) -> str:
        """Of names and captions; what is in the files is the caches' business."""
        lines = "".join(f"{item.name}\t{item.caption}\n" for item in self.train)
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def prompts(self, count: int) -> list[str]:
        """Captions of the training set, from all over it."""
        different = sorted({item.caption for item in self.train})
        return different[:: max(1, len(different) // count)][:count]


@dataclass(frozen=True)
class Job:
    """One part's training: out of what, how, and where."""

    data: Data
    prior: Embedded  # the settings' source, on their device
    settings: Settings
    cache: Path
    work: Path  # the part's own folder
    console: Console

    def log(self, folder: Path) -> Log:
        folder.mkdir(parents=True, exist_ok=True)
        return Log(folder, self.console)

    def encode(self, prompts: Sequence[str]) -> Text:
        """On the processor."""
        told = self.prior.reader(prompts)
        return Text(told.tokens.cpu(), told.mean.cpu())

    def assets(self, build: Callable[..., Assets], name: str, content: Any) -> tuple[Assets, Assets | None]:
        """What the cache of this name has of the training set, and of what is held out if that can be used."""

        def built(items: Sequence[Item], side: str, fewest: int) -> Assets:
            folder = self.cache / name / side
            return build(items, folder, self.log(folder), content, self.settings.workers, fewest)

        train = built(self.data.train, "train", FEWEST)
        held = built(self.data.held_out, "held-out", 0) if self.data.held_out else None
        return train, held if held else None


@dataclass(frozen=True)
class Trainee:
    """A network with all that its training asks for."""

    network: nn.Module
    loss: Loss
    held_out: Loss | None  # the same of the assets that are held out
    sheet: Callable[[nn.Module], bytes]
    save: Callable[[nn.Module, int], None]  # of a network that was trained for so many steps
    hidden: Callable[[str], bool] | None = None  # which matrices are Muon's
    used: tuple[int, int] = (0, 0)  # assets to train on, and held out


def start(job: Job) -> Trainee:
    """The diffusion over volumes."""
    config, settings = start_config(job.prior, job.settings), job.settings
    train, held = job.assets(volumes.build, "volumes", Lattice(config.resolution))
    seen, seen_held = job.assets(views_cache.build, "views", shots(job.prior, settings))
    network, versions = prepared(job, config, train)
    pairs, loss_held_out = Pairs.of(job.data.train, train, seen).to(settings.device), None
    if held and seen_held:
        others = start_training.prepare(network, held, held.captions, job.encode, settings.start.seed)
        left = Pairs.of(job.data.held_out, held, seen_held)
        loss_held_out = StartLoss(others.to(settings.device), left.to(settings.device))

    def save(trained: nn.Module, steps: int) -> None:
        del steps  # nobody asks a start for them
        assert isinstance(trained, Start)
        words = spoken((item.caption for item in job.data.train), np.random.default_rng(settings.start.seed))
        start_training.write(job.work, trained, words)

    return Trainee(
        network=network.to(settings.device),
        loss=StartLoss(versions.to(settings.device), pairs),
        held_out=loss_held_out,
        sheet=partial(
            start_training.sheet, texts=job.encode(job.data.prompts(VOLUME_PROMPTS)), nothing=job.encode([""])
        ),
        save=save,
        hidden=lambda name: name.startswith("blocks"),
        used=(len(train), len(held or ())),
    )


def start_config(prior: Embedded, settings: Settings) -> StartConfig:
    """The shape of the start. Raises ValueError for one to go on with that does not understand its prior's texts."""
    tokens, features = prior.conventions.text_tokens, prior.reader.features
    if not (settings.continued and has(settings.source, "start")):
        return replace(settings.config, text_tokens=tokens, text_features=features, picture=prior.image_size)
    config = starts.load(settings.source).config
    if (config.text_tokens, config.text_features) != (tokens, features):
        raise ValueError(
            f"its start reads {config.text_tokens} tokens of {config.text_features} numbers, and the prior writes "
            f"{tokens} of {features}; choose another --from"
        )
    return replace(config, picture=config.picture or prior.image_size)


def prepared(job: Job, config: StartConfig, train: Volumes) -> tuple[Start, Versions]:
    """The network before its first step and the versions of its volumes: made once, then read from the work folder."""
    path, seed = job.work / "prepared.safetensors", job.settings.start.seed
    index = hashlib.sha256((job.cache / "volumes" / "train" / "index.json").read_bytes()).hexdigest()
    of = [asdict(config), seed, index]
    if (found := kept(path)) and found["of"] == of:
        network = Start(config)
        network.load_state_dict(found["network"])
        texts, nothing = (Text(*found[name]) for name in ("texts", "nothing"))
        return network, Versions(found["tokens"], found["wording"], texts, nothing, found["caption"])
    with job.log(job.work).stage("prepare", len(train)) as log:
        if job.settings.continued and has(job.settings.source, "start"):
            network = start_training.continued(job.settings.source, config, seed)
        else:
            network = start_training.fresh(config, train, seed)
        tell = partial(log, losses={})
        versions = start_training.prepare(network, train, train.captions, job.encode, seed, tell=tell)
    told = {name: (text.tokens, text.mean) for name, text in (("texts", versions.texts), ("nothing", versions.nothing))}
    drawn = {"tokens": versions.tokens, "wording": versions.wording, "caption": versions.caption}
    checkpoint.save(path, {"of": of, "network": network.state_dict(), **told, **drawn})
    return network, versions


def kept(path: Path) -> Any | None:
    """What was saved there, if it is whole."""
    try:
        return checkpoint.load(path) if path.exists() else None
    except checkpoint.Torn:
        return None


def upsampler(job: Job) -> Trainee:
    """What makes volumes finer, trained on what the start beside it makes."""
    settings, device = job.settings, job.settings.device
    trained = job.work.parent / "start"
    guessing = starts.load(trained if (trained / "finished.json").exists() else settings.source, device)
    resolution = guessing.config.resolution
    coarse, coarse_held = job.assets(volumes.build, "volumes", Lattice(resolution))
    fine, fine_held = job.assets(volumes.build, "fine", Lattice(2 * resolution))
    nothing = job.encode([""])

    def loss(items: Sequence[Item], coarse: Volumes, fine: Volumes) -> UpsamplerLoss:
        rows = rows_in_common(dict.fromkeys(item.name for item in items), coarse.skipped, fine.skipped)
        texts = job.encode([captions[0] for captions in coarse.captions])
        return UpsamplerLoss(Lattices(coarse, fine, rows, texts, nothing).to(device), guessing)

    learned = loss(job.data.train, coarse, fine)
    held = loss(job.data.held_out, coarse_held, fine_held) if coarse_held and fine_held else None

    def save(trained: nn.Module, steps: int) -> None:
        del steps  # nobody asks an upsampler for them
        assert isinstance(trained, Upsampler)
        upsampler_training.write(job.work, trained)

    if settings.continued and has(settings.source, "upsampler"):
        network = upsamplers.load(settings.source, device).requires_grad_(True)
    else:
        network = upsampler_training.fresh(settings.upsampling, settings.upsampler.seed).to(device)
    return Trainee(
        network=network,
        loss=learned,
        held_out=held,
        sheet=partial(upsampler_training.sheet, loss=learned),
        save=save,
        used=(len(learned.lattices.rows), len(held.lattices.rows) if held else 0),
    )


def pictures(job: Job) -> Trainee:
    """The diffusion over pictures."""
    settings, device = job.settings, job.settings.device
    train, held = job.assets(views_cache.build, "views", shots(job.prior, settings))
    prior = grown(job.prior, settings)

    def save(trained: nn.Module, steps: int) -> None:
        was = json.loads((settings.source / "prior.json").read_text(encoding="utf-8"))
        earlier = was.get("steps", 0) if settings.continued else 0
        about = {"steps": earlier + steps, "distance": list(settings.shots.distance)}
        views.write(job.work / "prior", replace(prior, unet=trained), settings.source, about)

    return Trainee(
        network=prior.unet,
        loss=views.ViewsLoss(train.to(device), prior),
        held_out=views.ViewsLoss(held.to(device), prior) if held else None,
        sheet=partial(views.sheet, prior=prior, prompts=job.data.prompts(VIEWS_PROMPTS), steps=VIEWS_STEPS),
        save=save,
        used=(len(train), len(held or ())),
    )


def angles(job: Job) -> Trainee:
    """What tells from where a picture was taken."""
    settings, device = job.settings, job.settings.device
    train, held = job.assets(views_cache.build, "views", shots(job.prior, settings))
    if settings.continued and has(settings.source, "angles"):
        network = seen_from.load(settings.source).requires_grad_(True)
    else:
        config = replace(settings.viewing, size=job.prior.image_size)
        network = angles_training.fresh(config, settings.angles.seed)

    def save(trained: nn.Module, steps: int) -> None:
        del steps  # nobody asks them for it
        assert isinstance(trained, Angles)
        angles_training.write(job.work, trained)

    learned = AnglesLoss(train.to(device))
    return Trainee(
        network=network.to(device),
        loss=learned,
        held_out=AnglesLoss(held.to(device)) if held else None,
        sheet=partial(angles_training.sheet, loss=learned),
        save=save,
        used=(len(train), len(held or ())),
    )


def lift(job: Job) -> Trainee:
    """What makes a volume of a picture whose camera is known."""
    settings, device = job.settings, job.settings.device
    config = replace(settings.lifting, size=job.prior.image_size)
    if settings.continued and has(settings.source, "lift"):
        network = lifts.load(settings.source).requires_grad_(True)
        config = network.config
    else:
        network = lift_training.fresh(config, settings.lift.seed)
    train, held = job.assets(volumes.build, "volumes", Lattice(config.resolution))
    seen, seen_held = job.assets(views_cache.build, "views", shots(job.prior, settings))

    def loss(items: Sequence[Item], volumes: Volumes, cache: Cache) -> LiftLoss:
        return LiftLoss.of(Pairs.of(items, volumes, cache)).to(device)

    def save(trained: nn.Module, steps: int) -> None:
        del steps  # nobody asks it for them
        assert isinstance(trained, Lift)
        lift_training.write(job.work, trained)
        exemplar_training.write(job.work, Exemplars.of(train))

    learned = loss(job.data.train, train, seen)
    left = loss(job.data.held_out, held, seen_held) if held and seen_held else None
    return Trainee(
        network=network.to(device),
        loss=learned,
        held_out=left,
        hidden=lambda name: not name.startswith(("begin", "write")),
        sheet=partial(lift_training.sheet, loss=left or learned),
        save=save,
        used=(len(learned.pairs), len(left.pairs) if left else 0),
    )


def ranker(job: Job) -> Trainee:
    """What tells which exemplar a picture shows."""
    settings, device, seed = job.settings, job.settings.device, job.settings.ranker.seed
    train, held = job.assets(volumes.build, "volumes", Lattice(settings.lifting.resolution))
    seen, seen_held = job.assets(views_cache.build, "views", shots(job.prior, settings))
    exemplars = Exemplars.of(train)

    def loss(side: str, items: Sequence[Item], volumes: Volumes, cache: Cache) -> RankerLoss:
        pairs = Pairs.of(items, volumes, cache)
        return RankerLoss(pairs, exemplars, found(job, side, exemplars, pairs)).to(device)

    def save(trained: nn.Module, steps: int) -> None:
        del steps  # nobody asks it for them
        assert isinstance(trained, Ranker)
        ranker_training.write(job.work, trained)

    if settings.continued and (before := rankers.load(settings.source)):
        network = before.requires_grad_(True)
    else:
        network = ranker_training.fresh(settings.ranking, seed)
    learned = loss("train", job.data.train, train, seen)
    left = loss("held-out", job.data.held_out, held, seen_held) if held and seen_held else None
    return Trainee(
        network=network.to(device),
        loss=learned,
        held_out=left,
        sheet=partial(ranker_training.sheet, loss=left or learned),
        save=save,
        used=(len(learned.pairs), len(left.pairs) if left else 0),
    )


def found(job: Job, side: str, exemplars: Exemplars, pairs: Pairs) -> Candidates:
    """The candidates of this side's pictures: found once, then read from the work folder."""
    path, seed = job.work / f"prepared-{side}.safetensors", job.settings.ranker.seed
    indices = [job.cache / "volumes" / "train", job.cache / "volumes" / side, job.cache / "views" / side]
    of = [seed, *(hashlib.sha256((each / "index.json").read_bytes()).hexdigest() for each in indices)]
    if (before := kept(path)) and before["of"] == of:
        return Candidates(before["row"].long(), before["turns"].long())
    with job.log(job.work).stage(f"search {side}", len(CAMERAS)) as log:
        made = candidates(exemplars, pairs, side == "train", seed, tell=partial(log, losses={}))
    checkpoint.save(path, {"of": of, "row": made.row.short(), "turns": made.turns.char()})
    return made


def shots(prior: Embedded, settings: Settings) -> views_cache.Shots:
    """The pictures that this prior knows."""
    return replace(settings.shots, size=prior.image_size, fov_y=prior.conventions.fov_y)


def grown(prior: Embedded, settings: Settings) -> Embedded:
    """The views prior before its first step. Raises ValueError for one to go on with of other kinds of picture."""
    if settings.continued:
        return views.continued(prior)
    return views.fresh(prior, views.SIZES[settings.size], settings.views.seed)


TRAINEES: dict[str, Callable[[Job], Trainee]] = {
    "start": start,
    "upsampler": upsampler,
    "views": pictures,
    "angles": angles,
    "lift": lift,
    "ranker": ranker,
}
