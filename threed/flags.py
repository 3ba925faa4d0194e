"""What the flags of all commands share: how they are explained, and what is checked of them before any work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import tyro

from threed.errors import Mistake, unknown

SEED = (0, 2**63 - 1)
STEPS = (1, 100_000)
SCALE = (0.0, 1000.0)
STRENGTH = (0.0, 10.0)
FACES = (100, 60_000)
TEXTURE = (64, 4096)
HEIGHT = (0.001, 1000.0)
VRAM = (2.0, 1000.0)


def said(text: str, default: str | None = None, metavar: str | None = None, name: str | None = None) -> object:
    """A flag's help, and what holds where the flag is left out if that is not a plain value."""
    hint = f"(default: {default})" if default else None
    return tyro.conf.arg(help=text, help_behavior_hint=hint, metavar=metavar, name=name)


# What every command that makes an asset can be told; None where the recipe decides.
Folder = Annotated[Path | None, said("The run folder.", "outputs/<prompt>-<seed>")]
Seed = Annotated[int, said(f"Another seed, another asset; the same seed, the same bytes. At least {SEED[0]}.")]
PriorName = Annotated[
    str,
    said(
        "The diffusion model: embedded (it came with the program), a folder, or sd:NAME, a text-to-image checkpoint of "
        "others by folder, .safetensors file or id of the hub; see threed prior list."
    ),
]
Lora = Annotated[Path | None, said("A LoRA, .safetensors, that is added to the sd: prior.", "none")]
ControlName = Annotated[
    str | None,
    said(
        "A ControlNet or T2I-Adapter that steers the sd: prior by the scene's shape: depth:NAME or normal:NAME, a "
        "folder or an id of the hub; a name that says which needs no prefix.",
        "none",
    ),
]
ControlStrength = Annotated[float | None, said(f"Of --control, {STRENGTH[0]:g} to {STRENGTH[1]:g}.", "1")]
Negative = Annotated[str, said("What it should not look like.", "the recipe's, mostly nothing")]
Steps = Annotated[int | None, said(f"Steps of all stages, {STEPS[0]} to {STEPS[1]}.", "the recipe's")]
LossName = Annotated[
    str | None,
    said("What the prior's answers become: sds, sjc, csd, nfsd, hifa, sdi, ism, vsd, bsd.", "the recipe's"),
]
Scale = Annotated[float | None, said(f"Of guidance, {SCALE[0]:g} to {SCALE[1]:g}.", "the recipe's")]
Formats = Annotated[tuple[str, ...], said("File formats of the asset: glb, gltf, obj, ply, stl, usdz.")]
TextureSize = Annotated[
    int | None, said(f"Texels a side, a power of two, {TEXTURE[0]} to {TEXTURE[1]}.", "the recipe's")
]
Faces = Annotated[int | None, said(f"Triangles at most, {FACES[0]} to {FACES[1]}.", "the recipe's")]
Height = Annotated[float | None, said(f"Metres, {HEIGHT[0]:g} to {HEIGHT[1]:g}.", "the recipe's")]
Device = Annotated[str, said("Where to compute: cpu, cuda, mps, or auto: a GPU if there is one.")]
Backends = Annotated[
    tuple[str, ...],
    said("Libraries of others in the place of kernels, on CUDA: tinycudann, nerfacc, nvdiffrast.", "none"),
]
Vram = Annotated[
    float | None,
    said(
        f"Gigabytes that the device has for it, {VRAM[0]:g} to {VRAM[1]:g}: settings that fit are chosen.", "no limit"
    ),
]
Compile = Annotated[
    bool, said("Compile the network of the sd: prior: minutes at the beginning, for steps that may be shorter.", "off")
]
Watch = Annotated[bool, said("Show the run in the browser while it works, and the asset after it.", "off")]
Resume = Annotated[bool, said("Go on with the run in this folder; begin it if there is none.", "off")]
Overwrite = Annotated[bool, said("Remove the run in this folder first, and only its files.", "off")]


def check_ranges(asked: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises Mistake for the first of these fields that is given and out of its range, ends included."""
    for name, (low, high) in ranges.items():
        value = getattr(asked, name)
        if value is not None and not low <= value <= high:  # NaN is in no range
            flag = "--" + name.replace("_", "-")
            raise Mistake(f"{flag} is {value}; it must lie between {low:.15g} and {high:.15g}")


def check_asset_flags(asked: object) -> None:
    """What is asked of an asset and its folder, beyond ranges. Raises Mistake."""
    formats, resume, overwrite, texels = (
        getattr(asked, name) for name in ("format", "resume", "overwrite", "texture_size")
    )
    if not formats:
        raise Mistake("--format names nothing; give at least one, for example: --format glb")
    if resume and overwrite:
        raise Mistake("--resume and --overwrite contradict each other; give one of them")
    if texels is not None and texels.bit_count() != 1:
        near = 2 ** round(math.log2(max(texels, 1)))
        raise Mistake(f"--texture-size is {texels}; it must be a power of two, for example {near}")


def check_device(name: str, devices: Mapping[str, bool]) -> None:
    """Raises Mistake for a device that is not known, or not there."""
    if name not in devices:
        raise unknown("device", name, devices)
    if not devices[name]:
        offered = ", ".join(name for name, there in devices.items() if there)
        raise Mistake(f"PyTorch finds no device {name!r} on this machine; use one of: {offered}")


def check_output(path: Path, example: str) -> None:
    """Raises Mistake for a path that no file of the example's kind can be written to."""
    suffix = Path(example).suffix
    if path.is_dir():
        raise Mistake(f"{str(path)!r} is a folder; name a file in it, for example --output {path / example}")
    if path.suffix.lower() != suffix:
        raise Mistake(f"--output is {str(path)!r}; its name must end with {suffix}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise Mistake(f"cannot write {str(path)!r} ({str(above)!r} is not a folder); choose another --output")
    if not os.access(above, os.W_OK):
        raise Mistake(f"cannot write {str(path)!r} ({str(above)!r} is read-only); choose another --output")


def make_folder(folder: Path, flag: str, named: Path | None = None) -> None:
    """Raises Mistake for a folder that cannot be made; `named` is what the flag says, where the folder is inside it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(
            f"cannot write into {str(named or folder)!r} ({error.strerror or error}); choose another {flag}"
        ) from error
