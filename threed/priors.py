"""The prior that is asked for: what it makes of a recipe, whether it is whole, and the prior itself.

Nothing heavy is imported before it is asked for, so that help and the cheap mistakes come at once.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console

from threed.errors import Mistake, unknown

if TYPE_CHECKING:
    from threed.distill.personal import Learns
    from threed.distill.prior import Prior
    from threed.image_cli import Picture
    from threed.recipe import Recipe
    from threed.run import Control, Request
    from threed.text_cli import Text


def for_prior(recipe: Recipe, asked: Text | Picture) -> Recipe:
    """The recipe with the numbers that the prior wants. Raises Mistake."""
    from threed.distill.folder import UnreadablePrior
    from threed.distill.hub.checkpoint import is_checkpoint

    control = control_of(asked)
    if not is_checkpoint(asked.prior):
        given = {"--lora": asked.lora is not None, "--control": control, "--compile": asked.compile}
        for flag in (flag for flag, there in given.items() if there):
            raise Mistake(f"{flag} belongs to text-to-image checkpoints, and --prior is {asked.prior!r}; use sd:NAME")
        from threed.recipes import LEARNS

        return learning(recipe, LEARNS, asked)

    from threed.distill.hub import checkpoint, controlnet, download
    from threed.multi_view import multi_view
    from threed.novel_view import novel_view
    from threed.single_view import LEARNS, single_view
    from threed.views_first import views_first

    tell = Console(stderr=True, highlight=False).print
    try:
        if known := checkpoint.hub_id(asked.prior):
            download.fetched(known, tell)
        if control and (known := controlnet.hub_id(control.name)):
            controlnet.fetched(known, tell)
        family = checkpoint.found(asked.prior).family
        if family.shown:
            picture = shown_by(recipe, asked)
            if not family.rigged:
                return novel_view(recipe, family.guidance, picture.fov)
            if not recipe.drawn:
                raise Mistake(
                    f"the prior {asked.prior!r} is {family.about}, which draws its views from its own cameras and no "
                    f"others, and recipe {recipe.name!r} asks for views from all around; use --recipe "
                    f"{'wonder3d' if 'normal' in family.rigged else 'zero123plus'} with it"
                )
            return views_first(recipe, family.guidance, kinds=family.rigged)
        recipe = (multi_view if family.views else single_view)(recipe, family.guidance)
        recipe = learning(recipe, LEARNS, asked, None if family.inverts else family.about)
        return replace(recipe, wording=None) if family.edits else recipe  # what to do has no sides
    except UnreadablePrior as error:
        raise Mistake(str(error)) from error


def shown_by(recipe: Recipe, asked: Text | Picture) -> Picture:
    """What was asked, where a prior that is told a picture can do it. Raises Mistake."""
    from threed.distill.losses import LOSSES, NEGATIVE
    from threed.image_cli import Picture

    if recipe.wants != "picture" or not isinstance(asked, Picture):
        raise Mistake(
            f"the prior {asked.prior!r} is told a picture, and hears no words; use threed image, or a text-to-image "
            "checkpoint, see: threed prior list"
        )
    words = {"--lora": asked.lora is not None, "--negative": bool(asked.negative.strip()), "--compile": asked.compile}
    words[f"--learn {asked.learn}"] = asked.learn not in (None, "nothing")
    words[f"--loss {asked.loss}"] = LOSSES.get(asked.loss or "") in NEGATIVE
    for flag in (flag for flag, given in words.items() if given):
        raise Mistake(f"{flag} belongs to priors that hear words, and {asked.prior!r} is told a picture; leave it out")
    return asked


def learning(recipe: Recipe, numbers: Learns, asked: Text | Picture, deaf: str | None = None) -> Recipe:
    """The recipe with what --learn says, by the numbers that the prior wants. Raises Mistake.

    `deaf` is a family whose text encoders let no gradient through.
    """
    parts = {"nothing": (), "word": ("word",), "network": ("network",), "both": ("word", "network")}
    name = getattr(asked, "learn", None)
    if name is None:
        return replace(recipe, learns=None) if deaf else recipe
    if name not in parts:
        raise unknown("lesson", name, parts)
    if not (wanted := parts[name]):
        return replace(recipe, learns=None)
    if not any(stage.loss for stage in recipe.stages):
        raise Mistake(f"--learn is {name!r}, and recipe {recipe.name!r} distils nothing; use --recipe realfusion")
    if deaf and "word" in wanted:
        raise Mistake(f"no gradient goes through the text encoder of {deaf}; use --learn network")
    word, network = (getattr(numbers, part) if part in wanted else None for part in ("word", "network"))
    return replace(recipe, learns=replace(numbers, word=word, network=network))


def lora_of(asked: Text | Picture) -> str | None:
    """As a request has it."""
    return None if asked.lora is None else str(asked.lora)


def control_of(asked: Text | Picture) -> Control | None:
    """As a request has it. Raises Mistake for a name that does not say what it is steered by."""
    if asked.control is None:
        if asked.control_strength is not None:
            raise Mistake(f"--control-strength is {asked.control_strength}, and there is no --control; give one")
        return None

    from threed.distill.folder import UnreadablePrior
    from threed.distill.hub import controlnet
    from threed.run import Control

    try:
        kind, name = controlnet.named(asked.control)
    except UnreadablePrior as error:
        raise Mistake(str(error)) from error
    return Control(kind, name, 1.0 if asked.control_strength is None else asked.control_strength)


def check_prior(request: Request) -> None:
    """That the weights are whole and the prompts short enough, with views named, too. Raises Mistake."""
    from threed.distill.embedded import Conventions
    from threed.distill.folder import UnreadablePrior, located, verify
    from threed.distill.hub.checkpoint import is_checkpoint
    from threed.distill.text import load_tokenizer, pieces
    from threed.kept import kept

    if is_checkpoint(request.prior):
        check_compiler(request)
        return check_checkpoint(request)
    folder = located(request.prior)
    if request.prior != "embedded" and not (folder / "prior.json").is_file():
        raise Mistake(
            f"unknown prior {request.prior!r}; it is neither embedded nor a folder with a prior.json; "
            "see: threed prior list"
        )
    try:
        kept(verify)(folder)
        limit, tokenizer = Conventions.read(folder).text_tokens, kept(load_tokenizer)(folder)
        worded = [f"{request.prompt}, {view}" for view in wording.views] if (wording := request.recipe.wording) else []
        vectors = request.recipe.learns.vectors if request.recipe.learns else 0
        prompts = [("prompt", each, vectors) for each in (request.prompt, *worded)]
        for what, prompt, beside in (*prompts, ("--negative", request.negative, 0)):
            count = len(pieces(tokenizer, prompt)) + beside
            if count > limit:
                shown = prompt if len(prompt) <= 100 else prompt[:96] + " ..."
                raise Mistake(f"the {what} {shown!r} takes {count} tokens of at most {limit}; shorten it")
    except UnreadablePrior as error:
        raise Mistake(str(error)) from error


def check_compiler(request: Request) -> None:
    """That what torch.compile works with is there, as far as that can be seen without doing it. Raises Mistake."""
    if not request.compiled:
        return
    if request.device.startswith("cuda"):
        if find_spec("triton") is None:
            raise Mistake("--compile needs the package triton on CUDA, and it is not there; leave --compile out")
    elif not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        raise Mistake("--compile needs a C++ compiler, and none is found; install one, or leave --compile out")


def check_checkpoint(request: Request) -> None:
    """That a text-to-image checkpoint, a LoRA and a ControlNet are whole and what they say. Raises Mistake."""
    from threed.distill.folder import UnreadablePrior
    from threed.distill.hub import controlnet
    from threed.distill.hub.checkpoint import found, verify
    from threed.recipe import STARTS

    try:
        base = found(request.prior, request.lora)
        verify(base)
        if base.family.edits and (request.recipe.start in STARTS or request.picture):
            raise Mistake(
                f"{request.prior!r} is {base.family.about}, which changes what is there; use threed edit, or give "
                "threed text a mesh with --start"
            )
        if request.control:
            controlnet.verify(controlnet.found(request.control.name), base)
    except UnreadablePrior as error:
        raise Mistake(str(error)) from error


def within(request: Request, gigabytes: float | None) -> Request:
    """The request with settings that fit into so much memory; without a number, as it is, where a GPU has the room.

    Raises Mistake where none does.
    """
    if gigabytes is None and request.device != "cuda":
        return request
    from threed.distill.folder import UnreadablePrior
    from threed.distill.hub import controlnet
    from threed.machine import gpu_memory
    from threed.memory import check_room, planned

    told = request.recipe, request.prior, request.lora, request.device
    try:
        control = controlnet.found(request.control.name) if request.control else None
        if gigabytes is None:
            check_room(*told, gpu_memory(), control)
            return request
        recipe, thrift = planned(*told, gigabytes, control)
    except UnreadablePrior as error:
        raise Mistake(str(error)) from error
    return replace(request, recipe=recipe, thrift=thrift)


def load(request: Request) -> Prior:
    """The prior that a request names; of a checkpoint of others, the prompts are read now, and its text encoders gone.

    Raises Mistake for a checkpoint that cannot be used after all, and for too long a prompt.
    """
    from threed.distill.embedded import Embedded
    from threed.distill.folder import located
    from threed.distill.hub import controlnet, shown, text_to_image
    from threed.distill.hub.checkpoint import found, is_checkpoint
    from threed.distill.hub.instruct import Original
    from threed.distill.hub.steered import Steered
    from threed.kept import kept
    from threed.memory import applied
    from threed.renderers.read import normalised, read

    if not is_checkpoint(request.prior):
        return kept(Embedded.load)(located(request.prior), request.device)
    try:
        checkpoint = found(request.prior, request.lora)
        if checkpoint.family.shown:
            return applied(shown.load(checkpoint, request.device), request.thrift)
        prior = applied(text_to_image.load(checkpoint, request.device, told=prompts(request)), request.thrift)
        prior = text_to_image.compiled(prior) if request.compiled else prior
        if checkpoint.family.edits:
            asset = read(request.recipe.start)
            before = replace(asset, mesh=normalised(asset.mesh))
            return Steered(prior, Original.of(before, request.device))
        if control := request.control:
            folder = controlnet.found(control.name)
            return Steered(prior, controlnet.load(folder, control.kind, control.strength, prior))
    except ValueError as error:
        raise Mistake(str(error)) from error
    return prior


def prompts(request: Request) -> list[str]:
    """All that the request will tell its prior."""
    wording = request.recipe.wording
    return [request.prompt, request.negative, *(wording.told(request.prompt) if wording else [])]


def hear(prior: Prior, request: Request) -> None:
    """A checkpoint of others reads all that the request will tell it, so that its text encoders are loaded once.

    Raises Mistake for too long a prompt.
    """
    from threed.distill.hub.text_to_image import TextToImage

    try:
        if isinstance(prior, TextToImage):
            prior.read(prompts(request))
    except ValueError as error:
        raise Mistake(str(error)) from error
