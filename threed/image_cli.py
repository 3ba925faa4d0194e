"""The command line of pictures: `threed image PICTURE`, everything checked before any work, as `threed text` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
    from threed.photograph import Photograph
    from threed.run import Request

ELEVATION, FOV = (-45.0, 80.0), (5.0, 100.0)  # degrees
HELP = """Turn a picture of one object into a textured 3D asset.

PICTURE is a PNG, JPEG, WebP, AVIF, GIF, TIFF or BMP file that shows the whole object, best seen from the front or half
from the side, before a plain background or none: an alpha channel says what the object is, or else --mask does, or else
whatever does not look like the border of the picture. The run folder, outputs/<picture>-<seed>/, receives what
`threed text` writes, and input.png, the object as it was cut out, and mask.png: where that is wrong, correct it in any
painting program and give it back with --mask.

A prior's lift makes the volume, in one go, or knows again what looks like an asset that it was trained on. With
--prompt it is the start, which draws volumes from text: another take, where the first one is not good.

What the picture shows goes onto the front of the texture as it is, its light and its shadows included; the other sides
are a guess. The front of the asset is the quarter that the camera stood nearest to.

Recipes, as threed/recipes.py has them:
  carved        a volume that has the picture's outline, its surface fitted to that, and the picture onto its front
  lrm           a volume out of the picture, as it first comes, and the picture onto its front
  realfusion    carved, then score distillation of a volume that is held to the picture
  zero123       the same in fewer steps, at timesteps that fall fast
  magic123      the same, and then of its surface
  dreamcraft3d  a volume, its surface by its normals, its texture by bootstrapped distillation
  syncdreamer   views first: sixteen from above, drawn together, and a surface fitted to them and to the picture
  zero123plus   the same with six, from above and below in turn
  wonder3d      the same with six level with the picture, by their normals as well
From realfusion on, a prior judges or draws the sides that the picture does not show. The embedded prior does so by the
words of --prompt alone: it does not know how another view follows from a picture, and without words it has little to
say. Zero-1-to-3 and Stable-Zero123 do know (docs/priors.md). magic123 and dreamcraft3d have two priors in their papers,
of words and of views; here the one of --prior judges alone.

With --learn the prior learns the picture before it judges: a word of its own (textual inversion), its network
(DreamBooth, as a LoRA), or both. Under checkpoints of others realfusion learns the word unasked, as its paper does; the
embedded prior was not seen to gain by it (docs/pipeline.md).

For example:
  threed image chair.png
  threed image chair.jpg --prompt "a wooden chair"          # another take: out of words as well
  threed image chair.jpg --mask outputs/chair-0/mask.png --overwrite    # the mask, corrected
  threed image chair.png --seed 3 --faces 2000 --texture-size 512 --height 0.9
  threed image top.png --elevation 50 --fov 20              # taken from above, with a long lens
  threed image chair.png --prompt "a wooden chair" --recipe magic123 --resume    # go on where it was stopped
  threed image chair.png --recipe realfusion --learn both --device cuda --prior sd:checkpoints/my-fine-tune
  threed image chair.png --recipe zero123 --device cuda --prior sd:ashawkey/zero123-xl-diffusers
"""


@dataclass(frozen=True)
class Picture:
    """What `threed image` was asked for, as it was typed; None where the recipe decides."""

    picture: Annotated[tyro.conf.Positional[Path], said("A picture of one object.", metavar="PICTURE")]
    output: Annotated[Path | None, said("The run folder.", "outputs/<picture>-<seed>")] = None
    seed: Seed = 0
    prompt: Annotated[str, said("What it shows, in a few plain words.", "nothing")] = ""
    mask: Annotated[Path | None, said("A picture of the same proportions, white where the object is.", "found")] = None
    remove_background: Annotated[bool, said("Take the whole picture for the object.", "off")] = True
    elevation: Annotated[
        float | None,
        said(f"How high the camera stood, in degrees, {ELEVATION[0]:g} to {ELEVATION[1]:g}.", "estimated"),
    ] = None
    fov: Annotated[float, said(f"The camera's field of view, in degrees, {FOV[0]:g} to {FOV[1]:g}.")] = 40.0
    recipe: Annotated[str, said("How it is made; see the list above.")] = "carved"
    learn: Annotated[
        str | None,
        said("What the prior learns of the picture first: nothing, word, network, or both.", "the recipe's"),
    ] = None
    loss: LossName = None
    scale: Scale = None
    prior: PriorName = "embedded"
    lora: Lora = None
    control: ControlName = None
    control_strength: ControlStrength = None
    negative: Negative = ""
    start: Annotated[
        str | None,
        said("What it grows from: carved, volume (with no regard to the outline), or a mesh file.", "the recipe's"),
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


def main(asked: Picture) -> None:
    """`threed image`: check everything, make the asset, say where it is. Raises Mistake."""
    request, picture, mask = checked(asked)

    from threed.cutout import masked
    from threed.machine import set_threads
    from threed.pictured import picture_to_3d

    set_threads()
    found, how = masked(picture, mask, asked.remove_background)
    making.carry_out(asked, request, request.name, lambda run: picture_to_3d(request, picture, found, how, run))


def checked(asked: Picture) -> tuple[Request, Photograph, Photograph | None]:
    """The whole request, its picture and its mask, and nothing left that would stop it. Raises Mistake."""
    check_cheaply(asked)

    from threed import photograph

    picture = photograph.read(asked.picture)
    mask = photograph.read(asked.mask) if asked.mask else None
    request = resolve(asked, picture, mask)
    priors.check_prior(request)
    request = priors.within(request, asked.vram)
    check_start(request)
    return request, picture, mask


def check_cheaply(asked: Picture) -> None:
    """What can be judged without importing anything. Raises Mistake."""
    for path, remedy in ((asked.picture, "check the path"), (asked.mask, "check the path after --mask")):
        if path and not path.is_file():
            raise Mistake(f"there is no picture {str(path)!r}; {remedy}")
    if asked.mask and not asked.remove_background:
        raise Mistake("--mask and --no-remove-background contradict each other; give one of them")
    ranges = {"seed": SEED, "scale": SCALE, "steps": STEPS, "faces": FACES, "texture_size": TEXTURE, "height": HEIGHT}
    limits = {"control_strength": STRENGTH, "elevation": ELEVATION, "fov": FOV, "vram": VRAM}
    check_words(prompt=asked.prompt, negative=asked.negative)
    check_ranges(asked, ranges | limits)
    check_asset_flags(asked)


def resolve(asked: Picture, picture: Photograph, mask: Photograph | None) -> Request:
    """The whole request, every name looked up and every default filled in. Raises Mistake."""
    from threed.run import Request, Source, slug

    recipe = making.with_flags(making.recipe_for("picture", asked.recipe), asked)
    formats = making.formats_of(asked.format)
    device = making.device_of(asked.device)
    backends = making.backends_of(asked.backend, device, recipe)
    return Request(
        prompt=" ".join(asked.prompt.split()),
        seed=asked.seed,
        prior=asked.prior,
        lora=priors.lora_of(asked),
        control=priors.control_of(asked),
        device=device,
        backends=backends,
        compiled=asked.compile,
        formats=formats,
        negative=" ".join(asked.negative.split()) or recipe.negative,
        recipe=recipe,
        picture=Source(
            name=slug(asked.picture.stem),
            digest=picture.digest,
            mask=mask.digest if mask else None,
            remove_background=asked.remove_background,
            elevation=asked.elevation,
            fov=asked.fov,
        ),
    )


def check_start(request: Request) -> None:
    """That the prior has a start that may be shown pictures, and the recipe one that is of use. Raises Mistake."""
    from threed.distill import start
    from threed.distill.folder import UnreadablePrior, located

    if request.recipe.start == "sphere":
        raise Mistake("a sphere does not tell from where the picture was taken; use --start carved, volume, or a mesh")
    folder = located(request.prior)
    if not (folder / "start").is_dir():
        raise Mistake(f"the prior {request.prior!r} has no start; use --prior embedded, or train one")
    try:
        if not start.shape(folder).picture:
            raise Mistake(f"the start of the prior {request.prior!r} takes no pictures; use --prior embedded")
    except UnreadablePrior as error:
        raise Mistake(str(error)) from error
    making.check_start(request)
