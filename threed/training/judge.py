"""The judge: says which caption a picture shows. It measures priors, so it is trained beside them and never with them.

Two towers (CLIP; Radford et al. 2021, arXiv 2103.00020): a small convolutional network reads a picture, a small network
reads the mean of a text, as the frozen text encoder that ships with the program has it; both end in unit vectors, whose
product is the similarity. Pictures are display sRGB in [0, 1], channels last, an object on a plain background.

It learns from a cache of views, and leaves out every fourth view of each asset, so that it can be looked at itself.
A folder holds `judge.json` and `model.safetensors`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from threed import disk
from threed.distill import embedded
from threed.distill.angles import Stage
from threed.distill.text import Text
from threed.errors import Mistake
from threed.log import Log
from threed.training.captions import vary
from threed.training.loop import Schedule, optimise
from threed.training.measures import r_precision
from threed.training.recolour import UNCHANGED
from threed.training.views import host
from threed.training.views_batch import Chances, Paint, Painted, lamps, lit, look, moved, recoloured, worded
from threed.training.views_cache import Cache

SCHEDULE = Schedule(steps=1500, batch=256, rate=2e-3, warmup=50, weight_decay=0.05, ema=0.99)
CHANCES = Chances(varied=0.5, recoloured=0.25, white=0.7)  # the others do not matter here
PROBE = "a wooden barrel"  # what it sounds like to the text encoder is kept, to know that encoder again
ASK = 256  # pictures at once
HOTTEST = 100.0  # similarities are never multiplied by more


@dataclass(frozen=True)
class JudgeConfig:
    """The shape of the network; what judge.json says."""

    size: int = 64  # pixels a side; a multiple of 16
    width: int = 64  # channels at a quarter of the pixels a side; at an eighth and a sixteenth twice and four times
    features: int = 128
    text_features: int = 128


class Towers(nn.Module):
    """Pictures and texts as unit vectors."""

    probe: Float[Tensor, "T"]

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.look = nn.Sequential(Stage(3, width, 4), Stage(width, 2 * width, 2), Stage(2 * width, 4 * width, 2))
        self.see = nn.Linear(4 * width, config.features)
        self.read = nn.Sequential(
            nn.Linear(config.text_features, 2 * config.text_features),
            nn.SiLU(),
            nn.Linear(2 * config.text_features, config.features),
        )
        self.temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # its logarithm, of what multiplies
        self.register_buffer("probe", torch.zeros(config.text_features))

    def pictures(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N F"]:
        return functional.normalize(self.see(self.look(2 * images - 1).mean((2, 3))).float(), dim=-1)

    def texts(self, mean: Float[Tensor, "N T"]) -> Float[Tensor, "N F"]:
        return functional.normalize(self.read(mean).float(), dim=-1)

    @property
    def scale(self) -> Float[Tensor, ""]:
        return self.temperature.clamp(max=math.log(HOTTEST)).exp()


@dataclass(frozen=True)
class Judge:
    """A trained one; make it with `train` or `load`."""

    towers: Towers
    read: Callable[[Sequence[str]], Text]

    @torch.no_grad()
    def features(self, images: Float[Tensor, "N H W 3"]) -> Float[Tensor, "N F"]:
        """Unit vectors. Raises ValueError for pictures of another size than it was trained on."""
        size = self.towers.config.size
        if images.shape[1:3] != (size, size):
            raise ValueError(
                f"pictures are {images.shape[2]} x {images.shape[1]}; this judge looks at {size} x {size} pixels"
            )
        return torch.cat([self.towers.pictures(some.movedim(-1, 1)) for some in images.split(ASK)])

    @torch.no_grad()
    def score(self, images: Float[Tensor, "N H W 3"], captions: Sequence[str]) -> Float[Tensor, "N M"]:
        """How well each picture and each caption fit: the cosine, within [-1, 1]."""
        return self.features(images) @ self.towers.texts(self.read(captions).mean).T


def contrastive(similarity: Float[Tensor, "N N"], same: Bool[Tensor, "N N"]) -> Float[Tensor, ""]:
    """InfoNCE both ways (van den Oord et al. 2018, arXiv 1807.03748, eq. 4; Radford et al. 2021, figure 3).

    Row i is picture i against all texts, already multiplied by the inverse temperature. A pair that is the `same`, off
    the diagonal, is no counterexample: it is left out.
    """
    others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    logits, own = similarity.masked_fill(others, -torch.inf), torch.arange(len(same), device=same.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


@dataclass(frozen=True)
class JudgeLoss:
    """What `loop.optimise` minimises."""

    cache: Cache  # where the network is
    read: Callable[[Sequence[str]], Text]
    views: Sequence[int]  # those of the cache to learn from
    chances: Chances = CHANCES
    paints: dict[Paint, Painted] = field(default_factory=dict, repr=False)

    def __call__(self, network: nn.Module, samples: int, generator: torch.Generator) -> Float[Tensor, ""]:
        with torch.no_grad(), torch.autocast(generator.device.type, enabled=False):
            images, captions, same = self.drawn(samples, generator)
            text = self.read(captions).mean.to(images.device)
        towers: Any = network  # or what torch.compile made of them
        similarity = towers.scale * towers.pictures(images) @ towers.texts(text).T
        return contrastive(similarity.float(), same)

    def drawn(
        self, samples: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "N 3 H W"], tuple[str, ...], Bool[Tensor, "N N"]]:
        """Pictures, what is said about them, and which texts fit which other pictures too."""
        random = host(generator)
        asset = random.permutation(len(self.cache))[:samples]
        asset = np.concatenate([asset, random.integers(0, len(self.cache), samples - len(asset))])
        plain = replace(self.chances, varied=0.0)
        told = [worded(self.cache, a, True, plain, random, self.paints) for a in asset.tolist()]
        said = tuple(vary(caption, random) if random.random() < self.chances.varied else caption for caption, _ in told)
        white = random.random((samples, 1)) < self.chances.white
        background = np.where(white, 1.0, random.random((samples, 3))).astype(np.float32)
        view = random.choice(np.asarray(self.views), samples)
        albedo, normal, alpha = look(self.cache, asset, view, generator.device)
        albedo = recoloured(albedo, alpha, [recolouring for _, recolouring in told], np.arange(samples))
        light = lit(normal, *lamps(samples, 0.35, 0.15, generator))
        shaded = moved(random.random(samples) < 0.5, generator.device)[:, None, None, None]
        images = torch.where(shaded, albedo * light, albedo)
        images = images + (1 - alpha) * moved(background, generator.device)[:, :, None, None]
        return images, said, moved(alike(self.cache, asset, told), generator.device)


def alike(cache: Cache, asset: Int[np.ndarray, "N"], told: Sequence[Painted]) -> Bool[np.ndarray, "N N"]:
    """Whether the caption of one fits the picture of the other: its own words or, in its own colours, any of its own.

    `told` has the captions as they were before they were varied.
    """
    fits = [
        {caption, *(cache.captions[a] if recolouring == UNCHANGED else ())}
        for a, (caption, recolouring) in zip(asset.tolist(), told, strict=True)
    ]
    one_way = np.array([[caption in names for caption, _ in told] for names in fits])
    return one_way | one_way.T


def fresh(config: JudgeConfig, read: Callable[[Sequence[str]], Text], seed: int) -> Towers:
    """Untrained ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = Towers(config)
    towers.probe.copy_(read([PROBE]).mean[0])
    return towers


def train(cache: Cache, log: Log, schedule: Schedule = SCHEDULE, width: int = JudgeConfig.width) -> Judge:
    """A judge of this cache, where its pictures lie; the log's folder keeps checkpoints, from which it goes on.

    Raises what `loop.optimise` raises.
    """
    read = embedded.text_reader()
    config = JudgeConfig(size=cache.albedo.shape[-1], width=width)
    towers = fresh(config, read, schedule.seed).to(cache.albedo.device)
    shown, _ = split(cache)
    average = optimise(towers, JudgeLoss(cache, read, shown), schedule, log)
    assert isinstance(average, Towers)
    return Judge(average.cpu(), read)


def split(cache: Cache) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The views to learn from, and those that are left out."""
    views = range(cache.albedo.shape[1])
    return tuple(v for v in views if v % 4 != 3), tuple(views[3::4])


@torch.no_grad()
def accuracy(judge: Judge, cache: Cache, views: Sequence[int], among: int = 100, seed: int = 0) -> float:
    """R-precision of real pictures among so many captions, mean over as many such sets as the captions allow.

    A picture for every caption: one of the `views` of one of its assets, shaded or not, on white. Chance is 1 / among.
    Raises ValueError for fewer captions than that.
    """
    random, owners = np.random.default_rng(seed), dict[str, list[int]]()
    for owner, captions in enumerate(cache.captions):
        for caption in captions:
            owners.setdefault(caption, []).append(owner)
    if len(owners) < among:
        raise ValueError(f"there are {len(owners)} captions; ask for the precision among at most that many")
    every = random.permutation(sorted(owners)).tolist()
    found = []
    for start in range(0, len(every) - among + 1, among):
        told = every[start : start + among]
        asset = np.array([random.choice(owners[caption]) for caption in told])
        albedo, normal, alpha = look(cache, asset, random.choice(np.asarray(views), among), torch.device("cpu"))
        light = lit(normal, *lamps(among, 0.0, 0.0, torch.Generator()))
        shaded = moved(random.random(among) < 0.5, albedo.device)[:, None, None, None]
        images = torch.where(shaded, albedo * light, albedo) + 1 - alpha
        relevant = torch.tensor([[caption in cache.captions[a] for caption in told] for a in asset.tolist()])
        found.append(r_precision(judge.score(images.movedim(1, -1), told), relevant))
    return float(np.mean(found))


def write(folder: Path, judge: Judge, about: Mapping[str, Any] | None = None) -> None:
    """Save it in half precision; `about` is what else judge.json shall say. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in judge.towers.state_dict().items()}
    told = json.dumps(asdict(judge.towers.config) | dict(about or {}), indent=1) + "\n"
    disk.write(folder / "model.safetensors", save(weights, {"format": "pt"}))
    disk.write(folder / "judge.json", told.encode())


def load(folder: Path) -> Judge:
    """Raises Mistake when a file is at fault, or when it was trained with another text encoder than the shipped one."""
    path, read = folder / "judge.json", embedded.text_reader()
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        towers = Towers(JudgeConfig(**{each.name: told[each.name] for each in fields(JudgeConfig)}))
        path = folder / "model.safetensors"
        towers.load_state_dict(load_file(path))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]  # PyTorch lists every weight
        raise Mistake(f"cannot use the judge's {str(path)!r} ({reason}); train it again") from error
    if not torch.allclose(towers.probe, read([PROBE]).mean[0], atol=0.01):
        raise Mistake(f"the judge in {str(folder)!r} was trained with another text encoder; train it again")
    return Judge(towers.eval().requires_grad_(False), read)
