"""fit: optimise a scene until, to a frozen prior, its renders look like the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.distill.prior import Pictures, Prior
from threed.distill.score import Learned, Shown
from threed.errors import Failure
from threed.mesh_regularizers import laplacian, normal_consistency
from threed.pictures import png, sheet
from threed.recipe import Stage, Terms
from threed.reference import Target, reference_terms
from threed.regularizers import eikonal, opacity, orientation, sparsity, z_variance
from threed.renderers.camera import Cameras, joined
from threed.renderers.mesh import Mesh
from threed.renderers.topology import Edges
from threed.renderers.volume import Rays, Render
from threed.run import Request, Run

CHECKPOINT_EVERY = 20  # steps
ATTEMPTS = 3  # at one stage before the run gives up
EMPTY, FULL = 0.002, 0.98  # mean alpha of a step's pictures beyond which nothing good comes any more


@runtime_checkable
class Scene(Protocol):
    """Whatever can be seen and optimised; an `nn.Module`, whose state is what a checkpoint keeps."""

    def render(self, cameras: Cameras, size: int | None = None, generator: torch.Generator | None = None) -> Render: ...
    def param_groups(self) -> list[dict[str, Any]]: ...
    def after_step(self, step: int, generator: torch.Generator) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> object: ...


def fit(
    scene: Scene,
    stage: Stage,
    prior: Prior | None,
    request: Request,
    run: Run,
    done: dict[str, Any] | None = None,
    target: Target | None = None,
    drawn: Sequence[Target] = (),
) -> None:
    """Optimise `scene` through `stage`, from the run's last checkpoint of it on.

    `done` has the states of the scenes of earlier stages by name; this stage's checkpoints carry them along. `target`
    is what a stage with a reference is to look like from there, `drawn` the views that the prior has drawn; a stage
    without a loss needs no prior.

    A loss that is not finite, an empty or a filled volume is noticed before it reaches the scene or the disk; the
    stage goes back to its last checkpoint and on with other noise. Raises Failure when that does not help either.
    """
    learned = stage.loss.init(prior, request.seed) if stage.loss and prior else None
    fitted = Fitted.begin(scene, learned)
    step, attempt = restore(run, stage, fitted)
    finished = step == stage.steps
    with run.log.stage(stage.name, stage.steps, step) as log:
        while not finished:
            generator = seeded(request.seed, attempt, step)  # so that a resumed run is the same run
            looks = [
                *distilled(fitted, stage, prior, request, step, generator),
                *referred(scene, stage, target, drawn, step, generator),
            ]
            losses = {name: loss for look in looks for name, loss in look.losses.items()}
            losses |= terms(stage.terms, looks[0].render, step / stage.steps)  # what we ask of any shape
            if problem := trouble(losses, [look.render for look in looks]):
                step, attempt = go_back(run, stage, fitted, problem, step, attempt)
                continue
            finished = step == stage.steps
            if step % CHECKPOINT_EVERY == 0 or finished:  # only a state that was looked at is kept, the last one too
                run.checkpoint(
                    {"stage": stage.name, "step": step, "attempt": attempt, **fitted.state(), "done": done or {}}
                )
            if finished:
                break
            fitted.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            fitted.optimizer.step()
            scene.after_step(step, generator)
            step += 1
            log(
                step,
                {name: loss.item() for name, loss in losses.items()},
                pictures=sum(len(look.shown) for look in looks),
            )
            log.picture(partial(contact_sheet, looks[0].shown, looks[0].columns))


@dataclass(frozen=True)
class Look:
    """What a step saw of the scene, and what is wrong with it."""

    render: Render
    losses: dict[str, Tensor]
    shown: Float[Tensor, "P H W 3"]  # for people too
    columns: int  # of a sheet of these


def distilled(
    fitted: Fitted, stage: Stage, prior: Prior | None, request: Request, step: int, generator: torch.Generator
) -> list[Look]:
    """The look that the prior judges; none where the stage has no loss."""
    if stage.loss is None:
        return []
    assert prior
    progress = step / stage.steps  # every schedule is a function of this
    cameras = stage.views.sample(generator).to(request.device)
    behind, again = background(stage, generator).to(request.device), generator.clone_state()
    render = fitted.scene.render(cameras, generator=generator)  # what we see
    pictures = Pictures(cameras, stage.kinds, behind, cache(partial(observed, fitted.scene, cameras, render, again)))
    latents, shown = encoded(prior, pictures, render)
    told = Shown(latents, prior.conditions(request.prompt, request.negative, pictures), shown)
    losses = stage.loss(prior, fitted.learned, told, progress, generator)  # how the prior wants it
    return [Look(render, losses, shown, len(cameras))]


def referred(
    scene: Scene, stage: Stage, picture: Target | None, drawn: Sequence[Target], step: int, generator: torch.Generator
) -> list[Look]:
    """The look from where the picture was taken and from some of the drawn views; none where this step takes none."""
    weights = stage.reference
    if weights is None:
        return []
    if picture is None and not (drawn and weights.drawn):
        raise ValueError(f"stage {stage.name!r} has a reference and no picture; use a recipe of pictures with one")
    due = step % weights.every == 0 or step == stage.steps
    some = torch.randperm(len(drawn), generator=generator)[: weights.drawn].tolist() if drawn else []
    wanted = [each.at(weights.resolution) for each in ([picture] if picture and due else []) + [drawn[k] for k in some]]
    if not wanted:
        return []
    render = scene.render(joined([target.camera for target in wanted]), weights.resolution, generator)
    losses = reference_terms(weights, render, wanted, step / stage.steps)
    asked = torch.stack([target.rgb + 1 - target.alpha for target in wanted])
    return [Look(render, losses, torch.cat([render.albedo.detach() + 1 - render.alpha.detach(), asked]), len(wanted))]


@dataclass(frozen=True)
class Fitted:
    """All that the steps to come depend on: the scene, and what the loss learns beside it."""

    scene: Scene
    learned: Learned | None
    optimizer: torch.optim.Optimizer

    @staticmethod
    def begin(scene: Scene, learned: Learned | None) -> Fitted:
        groups = scene.param_groups() + (learned.param_groups() if learned else [])
        return Fitted(scene, learned, torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15))

    def state(self) -> dict[str, Any]:
        learned = {"learned": self.learned.state_dict()} if self.learned else {}
        return {"scene": self.scene.state_dict(), "optimizer": self.optimizer.state_dict(), **learned}

    def load(self, state: dict[str, Any]) -> None:
        self.scene.load_state_dict(state["scene"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.learned:
            self.learned.load_state_dict(state["learned"])


def restore(run: Run, stage: Stage, fitted: Fitted) -> tuple[int, int]:
    """Put the run's last state of this stage back; returns its step and attempt, (0, 0) where there is none."""
    state = run.latest()
    if state and stage.name in state["done"]:
        fitted.scene.load_state_dict(state["done"][stage.name])
        return stage.steps, 0
    if state is None or state["stage"] != stage.name:
        return 0, 0
    fitted.load(state)
    return state["step"], state["attempt"]


def go_back(run: Run, stage: Stage, fitted: Fitted, problem: str, step: int, attempt: int) -> tuple[int, int]:
    """To the last sound state, and on from there with other noise. Raises Failure when that was tried often enough."""
    if attempt + 1 == ATTEMPTS or step == 0:
        raise Failure(f"{stage.name}, step {step}: {problem}, {attempt + 1} times now; try another --seed or prompt")
    sound, _ = restore(run, stage, fitted)
    run.log.note(f"{stage.name}, step {step}: {problem}; going back to step {sound} and on with other noise")
    return sound, attempt + 1


def seeded(*numbers: int) -> torch.Generator:
    """A generator of its own for these numbers, independent of those of all others."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def background(stage: Stage, generator: torch.Generator) -> Float[Tensor, "3"]:
    """The plain colour, display sRGB, that all pictures of one step share."""
    chance, colour = torch.rand(1, generator=generator), torch.rand(3, generator=generator)
    return torch.ones(3) if chance < stage.white_background else colour


@torch.no_grad()
def observed(scene: Scene, cameras: Cameras, render: Render, again: torch.Generator, size: int) -> Render:
    """What a step saw of the scene, once more where a surface is worth more pixels; `again` draws what was drawn."""
    if render.rays or render.alpha.shape[1] >= size:
        return render
    return scene.render(cameras, size, again.clone_state())


def encoded(
    prior: Prior, pictures: Pictures, render: Render
) -> tuple[Float[Tensor, "P C h w"], Float[Tensor, "P H W 3"]]:
    """The latents of these pictures of a scene, and the pictures: by the encoder, or, of a scene that is made of
    latents, by the decoder. The albedo alone is made of them; other kinds are enlarged and encoded.
    """
    if render.latents is None:
        shown = pictures.of(render)
        return prior.encode(shown), shown
    side = prior.image_size
    plain = prior.encode(pictures.background.expand(1, side, side, 3))
    found = {"albedo": render.latents.movedim(-1, 1) + (1 - render.alpha.movedim(-1, 1)) * plain}
    for kind in {*pictures.kinds} - {*found}:
        small = replace(pictures, kinds=(kind,)).of(render).movedim(-1, 1)
        found[kind] = prior.encode(functional.interpolate(small, (side, side), mode="bilinear").movedim(1, -1))
    latents = torch.cat([found[kind] for kind in pictures.kinds])
    return latents, prior.decode(latents)


def terms(weights: Terms, render: Render, progress: float) -> dict[str, Tensor]:
    """The weighted regularizers that a stage asks for by now."""
    asked = {term.name: getattr(weights, term.name)(progress) for term in fields(weights)}
    return {name: weight * TERMS[name](render) for name, weight in asked.items() if weight}


def _of_rays(render: Render) -> Rays:
    if render.rays is None:
        raise ValueError("orientation and z_variance are terms of volumes; leave them out for a surface")
    return render.rays


def _eikonal(render: Render) -> Tensor:
    if render.slope is None:
        raise ValueError("eikonal is a term of signed distances; leave it out for other scenes")
    return eikonal(render.slope)


def _of_surface(render: Render) -> tuple[Mesh, Edges | None]:
    if render.mesh is None:
        raise ValueError("normal_consistency and laplacian are terms of surfaces; leave them out for a volume")
    return render.mesh, render.edges


def _sketch(render: Render) -> Tensor:
    if render.sketch is None:
        raise ValueError("sketch is a term of volumes with a lenience that began as a mesh; leave it out for others")
    return render.sketch


def _orientation(render: Render) -> Tensor:
    rays = _of_rays(render)
    return orientation(rays.weights.detach(), rays.normal, rays.directions, rays.packed)


def _z_variance(render: Render) -> Tensor:
    rays = _of_rays(render)
    return z_variance(rays.weights, rays.packed)


TERMS: dict[str, Callable[[Render], Tensor]] = {
    "sparsity": lambda render: sparsity(render.alpha),
    "opacity": lambda render: opacity(render.alpha),
    "orientation": _orientation,
    "z_variance": _z_variance,
    "eikonal": _eikonal,
    "sketch": _sketch,
    "normal_consistency": lambda render: normal_consistency(*_of_surface(render)),
    "laplacian": lambda render: laplacian(*_of_surface(render)),
}


def trouble(losses: dict[str, Tensor], renders: Sequence[Render]) -> str | None:
    """What is wrong with this step, if anything: such a scene must neither be kept nor exported."""
    if bad := [name for name, loss in losses.items() if not loss.isfinite()]:
        return f"the loss {bad[0]!r} is not finite"
    covers = [float(render.alpha.detach().mean()) for render in renders]
    if min(covers) < EMPTY:
        return "the volume is empty"
    if max(covers) > FULL:
        return "the volume fills the pictures"
    return None


def contact_sheet(shown: Float[Tensor, "P H W 3"], columns: int) -> bytes:
    """The pictures of a step as a PNG, a row a kind, enlarged for people."""
    enlarged = shown.detach().repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)
    return png(sheet(enlarged, columns))
