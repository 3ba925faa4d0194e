"""The prior learns what a picture shows before the stages ask it: `distill/personal.py`, step by step in a run folder.

It is shown the picture from the camera that took it alone: what it learns of this side has to carry to the others. All
that was learned is kept as learned.safetensors, and until then in the run's checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed import checkpoint
from threed.cutout import Cutout
from threed.distill import vsd
from threed.distill.hub.steered import Steered
from threed.distill.hub.text_to_image import TextToImage
from threed.distill.personal import Differentiable, DreamBooth, Inversion, Teachable
from threed.distill.prior import Denoiser, Pictures, Prior
from threed.distill.sample import ddim
from threed.distill.word import Word, spoken
from threed.errors import Failure
from threed.priors import hear
from threed.recipe import Stage
from threed.reference import Target
from threed.run import Request, Run
from threed.train import CHECKPOINT_EVERY, background, seeded
from threed.viewpoint import Viewpoint

LEARNED = "learned.safetensors"
LOUD = 2.0**14  # times the loss: Adam does not mind, and half precision would lose small gradients
EXAM = 16  # noised pictures by which the log says what was learned
STAGES = ("word", "network")  # of a run, before those of its recipe

Lesson = Callable[[torch.Generator], Float[Tensor, ""]]  # the error of what learns, of a picture that chance brings


def acquainted(prior: Prior, target: Target, request: Request, run: Run) -> tuple[Prior, Request]:
    """The prior that has learned the picture as the recipe says, and the request whose prompt has the word in it.

    Raises ValueError for a prior that hears no words, and Failure where nothing finite is learned.
    """
    learns = request.recipe.learns
    assert learns
    if isinstance(prior, Steered):  # by a scene that is not there yet
        inner, told = acquainted(prior.base, target, request, run)
        assert isinstance(inner, TextToImage)
        return replace(prior, base=inner), told
    if not isinstance(prior, Teachable):
        raise ValueError(f"a {type(prior).__name__} hears no words, and cannot learn one; leave --learn out")
    told = replace(request, prompt=spoken(request.prompt, learns.vectors))
    shown, done, first = Shown.of(target, told), kept(run), None
    if "word" not in done:
        first = prior.beginning(request.prompt, learns.vectors)
        done["word"] = learned_word(prior, first, learns.word, shown, told, run) if learns.word else first
    taught = prior.knowing(done["word"])
    hear(taught, told)
    if how := learns.network:
        adapter = taught.adapter(how.rank, how.rate, request.seed)
        if "network" not in done:
            others = remembered(taught, adapter, how, shown.stage, request, run)
            lessons = shown.lesson(adapter, taught), others
            practise("network", adapter.weights, lessons, how, request, run, done)
            done["network"] = adapter.state_dict()
        adapter.load_state_dict(done["network"])
        taught = taught.thinking(adapter.fused())
    if not run.path(LEARNED).exists():
        checkpoint.save(run.path(LEARNED), done)
    if first:
        before, after = (shown.error(each) for each in (prior.knowing(first), taught))
        run.log.note(f"the prior denoises the picture with an error of {after:.4g}, which was {before:.4g} before")
    return taught, told


def learned_word(prior: Teachable, first: Word, how: Inversion, shown: Shown, told: Request, run: Run) -> Word:
    """By textual inversion, from what it means at first."""
    word = {part: vectors.clone().requires_grad_() for part, vectors in first.items()}
    pupil = prior.knowing(word)
    hear(pupil, told)
    practise("word", word, (shown.lesson(Differentiable(pupil), pupil),), how, told, run, {})
    return {part: vectors.detach() for part, vectors in word.items()}


@dataclass(frozen=True)
class Shown:
    """The picture, as the prior is shown it, and what it is told."""

    target: Target
    stage: Stage  # whose pictures it is one of
    framing: tuple[float, float]
    prompt: str

    @staticmethod
    def of(target: Target, told: Request) -> Shown:
        stage = next(stage for stage in told.recipe.stages if stage.loss)
        assert told.recipe.learns
        return Shown(target, stage, told.recipe.learns.framing, told.prompt)

    def lesson(self, denoiser: Denoiser, prior: Prior) -> Lesson:
        """The denoiser's error of the picture, framed and before a colour as chance has it.

        The prior encodes it, and knows what such a picture is told.
        """

        def error(generator: torch.Generator) -> Tensor:
            latents, pictures = self.framed(prior, generator)
            condition = prior.conditions(self.prompt, "", pictures).positive
            return vsd.lesson(denoiser, latents, condition, generator)

        return error

    @torch.no_grad()
    def framed(self, prior: Prior, generator: torch.Generator) -> tuple[Float[Tensor, "1 C h w"], Pictures]:
        """From nearer or farther, through the lens that the stage has, whatever the picture's was."""
        low, high = self.framing
        share = low + (high - low) * torch.rand(1, generator=generator).item()
        took, device = self.target.camera, self.target.rgb.device
        azimuth, elevation = (math.degrees(angle) for angle in (took.azimuth, took.elevation))
        seen = Viewpoint(azimuth, elevation, self.stage.views.fov_y, zoom=1 / share)
        placed = seen.placed(Cutout(self.target.rgb.cpu(), self.target.alpha.cpu()), len(self.target.alpha))
        small = Target(seen.camera, placed.rgb, placed.alpha).at(prior.image_size).to(device)
        behind = background(self.stage, generator).to(device)
        camera = replace(small.camera, distance=share * small.camera.distance)
        latents = prior.encode((small.rgb + (1 - small.alpha) * behind)[None])
        return latents, Pictures(camera, self.stage.kinds[:1], behind)

    @torch.no_grad()
    def error(self, prior: Prior) -> float:
        """Of the prior, on average over pictures that are always the same."""
        found = self.lesson(prior, prior)
        return sum(found(seeded(k, *b"exam")).item() for k in range(EXAM)) / EXAM


def remembered(prior: Prior, adapter: Denoiser, how: DreamBooth, stage: Stage, request: Request, run: Run) -> Lesson:
    """The adapter's error of what the prior draws of the prompt without the word, seen as the stage sees things."""
    drawn = []
    with run.log.stage("drawn", how.drawn) as log:
        for k in range(how.drawn):
            generator = seeded(request.seed, k, *b"drawn")
            cameras = stage.views.sample(generator).to(request.device)
            pictures = Pictures(cameras, stage.kinds, background(stage, generator).to(request.device))
            drawn.append((draw(prior, request, pictures, how, generator), pictures))
            log(k + 1, {}, len(pictures))

    def error(generator: torch.Generator) -> Tensor:
        latents, pictures = drawn[int(torch.randint(len(drawn), (1,), generator=generator))]
        return vsd.lesson(adapter, latents, prior.conditions(request.prompt, "", pictures).positive, generator)

    return error


def draw(
    prior: Prior, request: Request, pictures: Pictures, how: DreamBooth, generator: torch.Generator
) -> Float[Tensor, "P C h w"]:
    """One group of pictures of the prompt, as latents."""
    side = prior.image_size
    with torch.no_grad():
        blank = prior.encode(pictures.background.expand(1, side, side, 3))
    limit = 1.0 if blank.shape[-1] == side else math.inf  # pixels, where there are no other latents
    brush = torch.Generator(request.device).manual_seed(generator.initial_seed())
    conditions = prior.conditions(request.prompt, request.negative, pictures)
    shape = (len(pictures), *blank.shape[1:])
    return ddim(prior, conditions, shape, how.drawn_steps, how.drawn_scale, 0.0, brush, limit)


def practise(
    name: str,
    weights: Mapping[str, Tensor],
    lessons: Sequence[Lesson],
    how: Inversion | DreamBooth,
    request: Request,
    run: Run,
    done: dict[str, Any],
) -> None:
    """Adam on these weights, in place, from the run's last checkpoint of it on; all lessons count alike.

    `done` is what was learned before, which checkpoints carry along. Raises Failure.
    """
    optimizer, step, state = torch.optim.Adam(weights.values(), lr=how.rate), 0, run.latest()
    if state and state["stage"] == name:
        step = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for part, found in state["learned"].items():
                weights[part].copy_(found)
    with run.log.stage(name, how.steps, step) as log:
        while step < how.steps:
            generator = seeded(request.seed, step, *name.encode())  # so that a resumed run is the same run
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for lesson in how.batch * list(lessons):  # one after the other, for the sake of memory
                error = lesson(generator) / how.batch
                (LOUD * error).backward()
                total += error.item()
            if not math.isfinite(total):
                raise Failure(f"{name}, step {step}: what the prior learns is not finite; try another --seed")
            optimizer.step()
            step += 1
            if step % CHECKPOINT_EVERY == 0 or step == how.steps:
                learned = {part: found.detach() for part, found in weights.items()}
                state = {"stage": name, "step": step, "learned": learned, "optimizer": optimizer.state_dict()}
                run.checkpoint(state | {"done": done})
            log(step, {"denoising": total}, how.batch)


def kept(run: Run) -> dict[str, Any]:
    """What has been learned already, by name."""
    if run.path(LEARNED).exists():
        try:
            return dict(checkpoint.load(run.path(LEARNED)))
        except checkpoint.Torn as error:
            run.log.note(f"{error}; learning it again")
            run.path(LEARNED).unlink()
    state = run.latest()
    return dict(state["done"]) if state and state["stage"] in STAGES else {}
