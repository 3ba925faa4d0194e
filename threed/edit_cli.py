"""The command line of edits: `threed edit RUN_OR_MESH PROMPT`, which is `threed text` with a mesh to begin from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from threed import text_cli
from threed.errors import Mistake, unknown
from threed.flags import (
    HEIGHT,
    Backends,
    Compile,
    ControlName,
    ControlStrength,
    Device,
    Folder,
    Formats,
    Lora,
    Negative,
    Overwrite,
    PriorName,
    Resume,
    Seed,
    Steps,
    TextureSize,
    Vram,
    Watch,
    said,
)

CHANGES = {"texture": "repaint", "shape": "resculpt", "both": "reshape"}  # what is changed, and the recipe that does it
HELP = """Change an asset to what a new sentence says.

WHAT is the run folder of an earlier command, or a mesh: GLB, glTF, OBJ; its front towards +Z. Everything goes into a
new run folder; WHAT stays as it is. With --change texture triangles and UVs stay, too, unless the UVs leave no room for
a new texture, as those of palettes do: then it gets new ones.

For example:
  threed edit outputs/a-wooden-barrel-0 "a purple barrel"
  threed edit chair.glb "a golden throne" --change both --steps 200
  threed edit chair.glb "make it golden" --device cuda --prior sd:timbrooks/instruct-pix2pix    # by an instruction
"""


@dataclass(frozen=True)
class Edit:
    """What `threed edit` was asked for, as it was typed; None where the recipe decides."""

    what: Annotated[tyro.conf.Positional[Path], said("A run folder or a mesh.", metavar="WHAT")]
    prompt: Annotated[tyro.conf.Positional[str], said("What it shall be, in a few plain words.", metavar="PROMPT")]
    change: Annotated[str, said("What may change: texture, shape, or both.")] = "texture"
    output: Folder = None
    seed: Seed = 0
    prior: PriorName = "embedded"
    lora: Lora = None
    control: ControlName = None
    control_strength: ControlStrength = None
    negative: Negative = ""
    steps: Steps = None
    format: Formats = ("glb", "obj")
    texture_size: TextureSize = None
    height: Annotated[float | None, said(f"Metres, {HEIGHT[0]:g} to {HEIGHT[1]:g}.", "as tall as it was")] = None
    device: Device = "cpu"
    backend: Backends = ()
    vram: Vram = None
    compile: Compile = False
    view: Watch = False
    resume: Resume = False
    overwrite: Overwrite = False


def main(asked: Edit) -> None:
    """`threed edit`: check everything, make the asset, say where it is. Raises Mistake."""
    text_cli.main(text_cli.Text(**as_text(asked)))


def as_text(asked: Edit) -> dict[str, Any]:
    """The flags of `threed text` that do it. Raises Mistake for what cannot be edited."""
    if asked.change not in CHANGES:
        raise unknown("change", asked.change, CHANGES)
    mesh = asked.what / "asset.glb" if asked.what.is_dir() else asked.what
    if not mesh.is_file():
        raise Mistake(f"there is no mesh {str(mesh)!r} to edit; name a run folder that is finished, or a mesh")
    if asked.output and asked.what.is_dir() and asked.output.resolve() == asked.what.resolve():
        raise Mistake(f"--output is {str(asked.output)!r}, the run to be edited; choose another folder")
    flags = {name: value for name, value in vars(asked).items() if name not in {"what", "change"}}
    tall = height(mesh) if asked.height is None else asked.height
    return flags | {"recipe": CHANGES[asked.change], "start": str(mesh), "height": tall}


def height(mesh: Path) -> float:
    """In metres. Raises Mistake for a file that cannot be read."""
    from threed.renderers.read import read

    try:
        y = read(mesh).mesh.vertices[:, 1]
    except ValueError as error:
        raise Mistake(str(error)) from error
    return float(y.amax() - y.amin())
