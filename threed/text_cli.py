"""The command line of texts: `threed text PROMPT`, everything checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from threed import making, priors
from threed.errors import Mistake
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
    check_words,
    said,
)

if TYPE_CHECKING:
    from threed.run import Request

PARTICLES, PERP_NEG = (1, 64), (0.0, 100.0)
HELP = """Turn a sentence into a textured 3D asset.

The run folder, outputs/<prompt>-<seed>/, receives asset.glb, asset.obj, preview.png, turntable.webp, report.json and
recipe.json; where there is an optimisation, progress.png shows the object while it takes shape.

Recipes, as threed/recipes.py has them:
  instant          a volume out of the text, in seconds
  refined          that, and a little score distillation at low timesteps
  instant3d        views first: six of the text, drawn together, and a surface fitted to them
  dreamfusion      score distillation from nothing, of a soft volume
  magic3d          that, and then of a surface
  fantasia3d       a surface from a ball, by its normals alone; then its material, under a light
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
  threed text "a stone castle" --recipe sketch-shape --start blocks.glb    # in the shape of a mesh
"""


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
        said(f"Scenes that vsd or bsd optimises together, {PARTICLES[0]} to {PARTICLES[1]}; the first is kept.", "1"),
    ] = None
    view_words: Annotated[
        bool,
        said(
            "Name the view in the prompt, for priors that know no cameras; the embedded one does.",
            "off; sd: priors, on",
        ),
    ] = False
    perp_neg: Annotated[
        float | None,
        said(
            f"Perp-Neg: name the view, and steer away from the other views so strongly, {PERP_NEG[0]:g} to "
            f"{PERP_NEG[1]:g}.",
            "0; sd: priors, 1",
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


def main(asked: Text) -> None:
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
    check_words(prompt=asked.prompt, negative=asked.negative)
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
