"""The command line: `threed text`, `image`, `edit`, `batch`, `export`, `check`, `view`, `prior ...`, `doctor`.

Everything a user can get wrong is checked before any work, the cheap things before PyTorch is imported. Exit codes:
0 done, 1 the run cannot go on (a full disk), 2 a mistake in what was asked for, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from threed import __version__, batch_cli, check_cli, export_cli, image_cli, making, prior_cli, priors, view_cli
from threed.edit_cli import EDIT_HELP, Edit, as_text
from threed.errors import FULL, Failure, Mistake
from threed.flags import (
    FACES,
    HEIGHT,
    SCALE,
    SEED,
    STEPS,
    STRENGTH,
    TEXTURE,
    VRAM,
    Backends,
    Compile,
    ControlName,
    ControlStrength,
    Device,
    Faces,
    Folder,
    Formats,
    Height,
    Lora,
    LossName,
    Negative,
    Overwrite,
    PriorName,
    Resume,
    Scale,
    Seed,
    Steps,
    TextureSize,
    Vram,
    Watch,
    check_asset_flags,
    check_ranges,
    said,
)

if TYPE_CHECKING:
    from threed.run import Request

PARTICLES, PERP_NEG = (1, 64), (0.0, 100.0)
ROOM = {"text": 50, "batch": 500, "prior": 2000}  # MB that a run, or a training between two checkpoints, writes at most
TEXT_HELP = """Turn a sentence into a textured 3D asset.

The run folder, outputs/<prompt>-<seed>/, receives asset.glb, asset.obj, preview.png, turntable.webp, report.json and
recipe.json; where there is an optimisation, progress.png shows the object while it takes shape.

Recipes, as threed/recipes.py has them:
  instant          a volume out of the text, in seconds
  refined          that, and a little score distillation at low timesteps
  instant3d        views first: six of the text, drawn together, and a surface fitted to them
  dreamfusion      score distillation from nothing, of a soft volume
  magic3d          that, and then of a surface
  fantasia3d       a surface from a ball, by its normals alone; then its colours
  textmesh         score distillation of a signed distance
  latent-nerf      dreamfusion in the prior's own latents, which of the embedded prior are pixels; then in colours
  sketch-shape     that, held to the shape of a mesh far from its surface (--start MESH)
  latent-paint     a mesh in new colours, painted in the prior's own latents (--start MESH)
  mvdream          dreamfusion by a reconstruction loss
  hifa             dreamfusion with pictures denoised in several steps, and thin surfaces
  nfsd             dreamfusion without the noise that was added; has a negative prompt of its own
  sjc              dreamfusion by perturbing and averaging
  prolificdreamer  variational score distillation, of a volume, its surface and its texture
  repaint          a mesh in new colours (--start MESH, or threed edit)
  resculpt         a mesh in another shape, its colours where they were
  reshape          a mesh that becomes something else

For example:
  threed text "a wooden barrel"
  threed text "a small green pine tree" --seed 3 --faces 2000 --texture-size 512 --height 4
  threed text "a wooden barrel" --recipe dreamfusion             # score distillation from nothing, about a minute
  threed text "a wooden barrel" --recipe dreamfusion --resume    # go on where a run was stopped
  threed text "a wooden barrel" --recipe dreamfusion --loss vsd --particles 2    # under another loss
  threed text "a bronze statue" --recipe refined --start statue.glb    # grow from a mesh
  threed text "a stone castle" --recipe sketch-shape --start blocks.glb    # in the shape of one
"""
ABOUT = """A sentence or a picture becomes a game-ready 3D asset, on any machine.

  threed text "a wooden barrel"
  threed image chair.png                                     # or out of a picture
  threed edit outputs/a-wooden-barrel-0 "a purple barrel"    # change it
  threed batch prompts.csv --output library                  # all of a list
  threed export outputs/a-wooden-barrel-0 --preset godot --output barrel.glb    # LODs, colliders, budgets
  threed check barrel.glb                                    # judge any mesh file
  threed view                                                # look at all that was made
  threed prior train --help                                  # learn from your own assets
  threed --version
"""
DOCTOR_HELP = "Say what this machine offers and what is missing; exit code 1 if a run would fail."


@dataclass(frozen=True)
class Text:
    """What `threed text` was asked for, as it was typed; None where the recipe decides."""

    prompt: Annotated[tyro.conf.Positional[str], said("What to make, in a few plain words.", metavar="PROMPT")]
    output: Folder = None
    seed: Seed = 0
    recipe: Annotated[str, said("How it is made; see the list above.")] = "instant"
    loss: LossName = None
    scale: Scale = None
    particles: Annotated[
        int | None,
        said(f"Scenes that vsd or bsd fits together, {PARTICLES[0]} to {PARTICLES[1]}; the first is made.", "one"),
    ] = None
    view_words: Annotated[
        bool,
        said("Let prompts name the view, for priors that are told no cameras; embedded is.", "off; of sd: priors, on"),
    ] = False
    perp_neg: Annotated[
        float | None,
        said(
            f"Name views, and lead pictures aside from other views so strongly, {PERP_NEG[0]:g} to {PERP_NEG[1]:g}: "
            "Perp-Neg.",
            "0; of sd: priors, 1",
        ),
    ] = None
    prior: PriorName = "embedded"
    lora: Lora = None
    control: ControlName = None
    control_strength: ControlStrength = None
    negative: Negative = ""
    start: Annotated[
        str | None,
        said("What it grows from: sphere, volume (a rough shape out of the text), or a mesh file.", "the recipe's"),
    ] = None
    steps: Steps = None
    format: Formats = ("glb", "obj")
    faces: Faces = None
    texture_size: TextureSize = None
    height: Height = None
    device: Device = "cpu"
    backend: Backends = ()
    vram: Vram = None
    compile: Compile = False
    view: Watch = False
    resume: Resume = False
    overwrite: Overwrite = False


@dataclass(frozen=True)
class Doctor:
    """`threed doctor` takes no flags."""


Command = (
    Annotated[Text, tyro.conf.subcommand("text", description=TEXT_HELP, prefix_name=False)]
    | Annotated[image_cli.Picture, tyro.conf.subcommand("image", description=image_cli.HELP, prefix_name=False)]
    | Annotated[Edit, tyro.conf.subcommand("edit", description=EDIT_HELP, prefix_name=False)]
    | Annotated[batch_cli.Batch, tyro.conf.subcommand("batch", description=batch_cli.HELP, prefix_name=False)]
    | Annotated[export_cli.Export, tyro.conf.subcommand("export", description=export_cli.HELP, prefix_name=False)]
    | Annotated[check_cli.Check, tyro.conf.subcommand("check", description=check_cli.HELP, prefix_name=False)]
    | Annotated[view_cli.View, tyro.conf.subcommand("view", description=view_cli.HELP, prefix_name=False)]
    | Annotated[prior_cli.Prior, tyro.conf.subcommand("prior", description=prior_cli.PRIOR_HELP, prefix_name=False)]
    | Annotated[Doctor, tyro.conf.subcommand("doctor", description=DOCTOR_HELP, prefix_name=False)]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        Console().print(f"threed {__version__}", highlight=False)
        return 0
    try:
        command = tyro.cli(
            Command,
            prog="threed",
            description=ABOUT,
            args=arguments or ["--help"],
            config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
        )
        if isinstance(command, Doctor):
            from threed import doctor

            return doctor.main()
        if isinstance(command, batch_cli.Batch):
            return batch_cli.main(command)
        if isinstance(command, check_cli.Check):
            return check_cli.main(command)
        if isinstance(command, export_cli.Export):
            export_cli.main(command)
        elif isinstance(command, prior_cli.Prior):
            prior_cli.main(command.command)
        elif isinstance(command, view_cli.View):
            view_cli.main(command)
        elif isinstance(command, image_cli.Picture):
            image_cli.main(command)
        else:
            text(Text(**as_text(command)) if isinstance(command, Edit) else command)
    except Mistake as mistake:
        return complain(str(mistake), 2)
    except Failure as failure:
        return complain(str(failure), 1)
    except BrokenPipeError:  # `threed ... | head` has read enough; Python must not flush into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in FULL:
            raise
        room = ROOM.get(arguments[0], ROOM["text"])
        return complain(f"the disk is full ({error}); free {room} MB and continue with: {again(arguments)}", 1)
    except KeyboardInterrupt:
        return complain(f"stopped; continue with: {again(arguments)}", 130)
    return 0


def again(arguments: Sequence[str]) -> str:
    """The command that goes on where this one was stopped."""
    if arguments[:1] not in (["text"], ["image"], ["edit"]):
        return shlex.join(["threed", *arguments])
    return shlex.join(["threed", *(a for a in arguments if a not in {"--resume", "--overwrite"}), "--resume"])


def text(asked: Text) -> None:
    """`threed text`: check everything, make the asset, say where it is."""
    request = checked(asked)

    from threed.machine import set_threads
    from threed.pipeline import text_to_3d
    from threed.run import slug

    set_threads()
    making.carry_out(asked, request, slug(request.prompt), lambda run: text_to_3d(request, run))


def checked(asked: Text) -> Request:
    """The whole request, and nothing left that would stop it. Raises Mistake."""
    check_cheaply(asked)
    request = resolve(asked)
    priors.check_prior(request)
    request = priors.within(request, asked.vram)
    making.check_start(request)
    making.check_particles(request)
    return request


def check_cheaply(asked: Text) -> None:
    """What can be judged without importing anything. Raises Mistake."""
    if not asked.prompt.strip():
        raise Mistake('the prompt is empty; say what to make, for example: threed text "a wooden barrel"')
    ranges = {
        "seed": SEED,
        "steps": STEPS,
        "scale": SCALE,
        "control_strength": STRENGTH,
        "particles": PARTICLES,
        "perp_neg": PERP_NEG,
        "faces": FACES,
        "texture_size": TEXTURE,
        "height": HEIGHT,
        "vram": VRAM,
    }
    check_ranges(asked, ranges)
    check_asset_flags(asked)


def resolve(asked: Text) -> Request:
    """The whole request, every name looked up and every default filled in. Raises Mistake."""
    from threed.run import Request

    recipe = making.recipe_for("text", asked.recipe)
    formats = making.formats_of(asked.format)
    device = making.device_of(asked.device)
    recipe = making.with_flags(recipe, asked)
    backends = making.backends_of(asked.backend, device, recipe)
    making.check_negative(recipe, asked)
    return Request(
        prompt=" ".join(asked.prompt.split()),
        negative=" ".join(asked.negative.split()) or recipe.negative,
        seed=asked.seed,
        prior=asked.prior,
        lora=priors.lora_of(asked),
        control=priors.control_of(asked),
        device=device,
        backends=backends,
        compiled=asked.compile,
        formats=formats,
        recipe=recipe,
    )


def complain(message: str, code: int) -> int:
    """One line on stderr."""
    sys.stderr.write(f"threed: {message}\n")
    return code
